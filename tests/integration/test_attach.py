"""Attaching to running applications without a change in their code: servers with workers, scripts, forks, gevent."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pooling.observe.view import Viewer
from tests.integration.tools import environment, wait_until

WORKERS = 4
SOON = 3.0  # seconds in which a process is attached, unless the machine is busy
ATTEMPTS = 3
SECRET = "hunter2"


class Home:
    """A private directory of a user, and the programs that run in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.pooling = path / "pooling"
        self.pooling.mkdir(mode=0o700)
        self.env = environment(
            XDG_RUNTIME_DIR=str(path), POOLING_METRICS_DIR="", POOLING_ATTACH="1",
            PYTHONWARNINGS="ignore::DeprecationWarning",
        )  # fmt: skip
        self.started: list[subprocess.Popen[str]] = []

    def start(self, *command: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, *command], env=self.env, cwd=self.path, text=True, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        self.started.append(process)
        return process

    def script(self, code: str) -> subprocess.Popen[str]:
        """Start a script, and wait until it prints a line."""
        process = self.start("-c", code)
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        return process

    def close(self) -> None:
        for process in self.started:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    made = Home(tmp_path)
    try:
        yield made
    finally:
        made.close()


def pids(viewer: Viewer) -> set[int]:
    return {one["pid"] for one in viewer.view()["processes"]}


def pool_of(viewer: Viewer, name: str) -> dict[str, Any]:
    pools: list[dict[str, Any]] = viewer.view()["pools"]
    return next((one for one in pools if one["name"] == name), {})


def empty(home: Home) -> bool:
    return os.listdir(home.pooling) == []


SCRIPT = """
import sys, time
import pooling
pool = pooling.Pool(object, name="db", max_size=3)
lease = pool.acquire()
def held_here():
    return pool.acquire()
second = held_here()
print("ready", flush=True)
for line in sys.stdin:
    lease.release()
    print("released", flush=True)
"""


def test_script_is_attached_within_3_seconds(home: Home) -> None:
    script = home.script(SCRIPT)
    viewer = Viewer.of_directory(home.pooling)
    times = []
    for _ in range(ATTEMPTS):
        began = time.monotonic()
        wait_until(lambda: pids(viewer) == {script.pid})
        times.append(time.monotonic() - began)
        if times[-1] < SOON:
            break
        wait_until(lambda: empty(home))
    assert min(times) < SOON, times
    mine = pool_of(viewer, "db")
    assert (mine["in_use"], mine["size"], mine["max_size"], mine["kind"]) == (2, 2, 3, "Pool")
    assert ["held_here()" in one["where"] for one in mine["holders"]] == [False, True]
    assert script.stdin is not None and script.stdout is not None
    script.stdin.write("release\n")
    script.stdin.flush()
    script.stdout.readline()
    wait_until(lambda: pool_of(viewer, "db")["in_use"] == 1)


def test_writing_stops_when_the_watcher_is_gone(home: Home) -> None:
    script = home.script(SCRIPT)
    viewer = Viewer.of_directory(home.pooling)
    wait_until(lambda: pids(viewer) == {script.pid})
    wait_until(lambda: empty(home))
    wait_until(lambda: pids(viewer) == {script.pid})  # another watcher
    assert script.poll() is None


CHILDREN = """
import os, sys, time
import pooling
pool = pooling.Pool(object, name="db", max_size=3)
with pool.acquire(): pass
time.sleep(1)
child = os.fork()
if child == 0:
    with pool.acquire(): pass
if child == 0 or os.fork() != 0:  # the second child uses no pool
    os.write(1, b"ready\\n")  # whole lines, whoever is first
sys.stdin.read()
time.sleep(600)
"""


def test_forks_and_kills(home: Home) -> None:
    """A child that uses the pool is attached, too; one that was killed is gone from the view."""
    viewer = Viewer.of_directory(home.pooling)
    viewer.view()
    parent = home.script(CHILDREN)

    def both() -> bool:
        found = pids(viewer)
        return len(found) == 2 and parent.pid in found

    wait_until(both)
    (child,) = pids(viewer) - {parent.pid}
    assert pool_of(viewer, "db")["processes"] == 2
    os.kill(child, signal.SIGKILL)
    wait_until(lambda: pids(viewer) == {parent.pid})
    os.killpg(parent.pid, signal.SIGKILL)
    wait_until(lambda: pids(viewer) == set())
    assert viewer.view()["pools"] == []
    assert sorted(os.listdir(home.pooling)) == ["retired.v1", "watch"]


GEVENT = """
from gevent import monkey
monkey.patch_all()
import gevent, pooling, sys
pool = pooling.Pool(object, name="db", max_size=3)
lease = pool.acquire()
print("ready", flush=True)
gevent.sleep(600)
"""


def test_gevent_script(home: Home) -> None:
    pytest.importorskip("gevent")
    script = home.script(GEVENT)
    viewer = Viewer.of_directory(home.pooling)
    wait_until(lambda: pids(viewer) == {script.pid})
    assert pool_of(viewer, "db")["in_use"] == 1


WITHOUT = """
import sys, pooling
pool = pooling.Pool(object, name="db")
print("ready", flush=True)
sys.stdin.read()
"""


def test_process_that_uses_no_pool_is_not_attached(home: Home) -> None:
    home.script(WITHOUT)
    user = home.script(SCRIPT)
    viewer = Viewer.of_directory(home.pooling)
    wait_until(lambda: pids(viewer))
    assert pids(viewer) == {user.pid}


def test_process_that_exits_is_gone(home: Home) -> None:
    script = home.script(SCRIPT)
    viewer = Viewer.of_directory(home.pooling)
    wait_until(lambda: pids(viewer) == {script.pid})
    assert script.stdin is not None
    script.stdin.close()
    script.stdin = None
    assert script.wait(30) == 0
    assert pids(viewer) == set()


SITE = f"""
import os, time
import pooling

def failing():
    raise OSError("no connection to postgresql://me:{SECRET}@db.invalid/shop")

db = pooling.Pool(object, name="db", max_size=2, acquire_timeout=60)
down = pooling.Pool(failing, name="down", acquire_timeout=0.05)

def application(environ, start_response):
    start_response("200 OK", [("X-Pid", str(os.getpid()))])
    if environ["PATH_INFO"] == "/down":
        try:
            down.acquire()
        except pooling.PoolError:
            pass
    with db.acquire():
        time.sleep(float(environ["QUERY_STRING"] or 0))
    return [b"done"]
"""


def test_gunicorn_with_four_workers(home: Home) -> None:
    (home.path / "site_of_the_test.py").write_text(SITE)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    home.env["PYTHONPATH"] += f"{os.pathsep}{home.path}"
    home.start(
        "-m", "gunicorn", "-k", "gthread", "--threads", "3", "-w", str(WORKERS), "--preload", "--log-level", "error",
        "-b", f"127.0.0.1:{port}", "--no-control-socket", "site_of_the_test:application",
    )  # fmt: skip

    def get(path: str) -> int:
        conn = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        try:
            conn.request("GET", path, headers={"Connection": "close"})
            answer = conn.getresponse()
            answer.read()
            return int(answer.headers["X-Pid"])
        finally:
            conn.close()

    def answers() -> bool:
        with contextlib.suppress(OSError):
            return bool(get("/"))
        return False

    wait_until(answers, patience=60)
    viewer = Viewer.of_directory(home.pooling)
    used: set[int] = set()

    def all_attached() -> bool:
        used.add(get("/?0.01"))
        return len(used) == WORKERS and pids(viewer) == used

    wait_until(all_attached, patience=60)
    get("/down")
    wait_until(lambda: pool_of(viewer, "down").get("state") == "down")
    found = viewer.view()
    mine = next(one for one in found["pools"] if one["name"] == "db")
    assert (mine["processes"], mine["max_size"]) == (WORKERS, 2 * WORKERS)
    assert sorted(one["pid"] for one in mine["by_process"]) == sorted(used)
    assert "gunicorn" in found["processes"][0]["command"]
    error = next(one for one in found["pools"] if one["name"] == "down")["last_error"]
    assert error == "OSError: no connection to postgresql://me:***@db.invalid/shop"
    assert "outage" in {one["kind"] for one in found["events"]}
    stored = b"".join(file.read_bytes() for file in home.pooling.iterdir())
    assert SECRET not in json.dumps(found) and SECRET.encode() not in stored and b"db.invalid" in stored

    victim = get("/")
    os.kill(victim, signal.SIGKILL)
    wait_until(lambda: victim not in pids(viewer))
    used.clear()
    wait_until(all_attached, patience=60)  # with the one that replaces it
    assert len(os.listdir(home.pooling)) <= WORKERS + 2
    wait_until(lambda: empty(home))

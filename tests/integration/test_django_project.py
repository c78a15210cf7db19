"""The example project, through its own command line, on Django's servers and test runner."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.servers import PostgresServer, find_postgres

pytest.importorskip("django")  # installed in CI: see test_django.py

ROOT = Path(__file__).parents[2]
PROJECT = ROOT / "examples" / "django_project"


@pytest.fixture(scope="module")
def database(postgres: PostgresServer) -> str:
    with postgres.connect(autocommit=True) as conn:
        conn.execute("CREATE DATABASE shop")
    return postgres.dsn.rpartition("/")[0] + "/shop"


def environment(database: str, **more: str) -> dict[str, str]:
    programs = find_postgres()
    return {
        **os.environ, "DATABASE_URL": database, "PYTHONPATH": str(ROOT),
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}", "PYTHONDONTWRITEBYTECODE": "1", **more,
    }  # fmt: skip


def manage(database: str, *arguments: str, told: str = "", code: int = 0) -> subprocess.CompletedProcess[str]:
    run = subprocess.run(
        [sys.executable, "manage.py", *arguments], cwd=PROJECT, env=environment(database), input=told,
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert run.returncode == code, run.stdout + run.stderr
    return run


@pytest.fixture(scope="module")
def migrated(database: str) -> str:
    manage(database, "migrate", "--verbosity", "0")
    return database


def test_check_migrate_and_no_migration_missing(migrated: str) -> None:
    assert "no issues" in manage(migrated, "check", "--database", "default").stdout
    assert "No changes" in manage(migrated, "makemigrations", "--check", "--dry-run").stdout


def test_dbshell(migrated: str) -> None:
    run = manage(migrated, "dbshell", "--", "-At", told="SELECT count(*) FROM shop_order;")
    assert run.stdout.strip() == "0"


def test_command(migrated: str) -> None:
    assert "default: PostgresPool, at most 8 in each process" in manage(migrated, "pooling", "status").stdout
    assert "overall: up" in manage(migrated, "pooling", "doctor").stdout
    nowhere = migrated.removesuffix("shop") + "nowhere"
    assert "nowhere" in manage(nowhere, "pooling", "doctor", "--timeout", "3", code=1).stdout


def test_parallel_test_runner(migrated: str) -> None:
    """Clones are created from a template, to which there must be no connection."""
    run = manage(migrated, "test", "--parallel", "2", "--noinput")
    assert "Cloning test database" in run.stderr
    assert "OK" in run.stderr


def test_parallel_test_runner_on_sqlite() -> None:
    assert "OK" in manage("", "test", "--parallel", "2", "--noinput").stderr


@contextlib.contextmanager
def serving(
    command: list[str],
    database: str,
    port: int,
    *,
    folder: Path = PROJECT,
    own_words: tuple[str, ...] = (),
    ends: signal.Signals = signal.SIGINT,
    group: bool = False,
) -> Iterator[subprocess.Popen[str]]:
    """Run a server until the block ends, then stop it: it must end at once, without output.

    Args:
        command, database, port: The command, its database and port.
        folder: The folder of the project.
        own_words: Beginnings of allowed lines on standard error; without any, all lines that are not errors.
        ends: The signal that stops it.
        group: Whether its children get the signal, too, as from a terminal.
    """
    process = subprocess.Popen(
        command, cwd=folder, env=environment(database, BIND=f"127.0.0.1:{port}"),
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and process.poll() is None:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.05)
        yield process
    finally:
        (os.killpg if group else os.kill)(process.pid, ends)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    assert process.stderr is not None
    with process.stderr as stderr:
        said = [line for line in stderr.read().splitlines() if line.strip()]
    if own_words:
        assert [line for line in said if not line.startswith(own_words)] == []
    else:
        assert [line for line in said if "Traceback" in line or "Warning" in line] == []


def ask(port: int, method: str, path: str, body: str = "") -> bytes:
    client = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    client.request(method, path, body, headers)
    answer = client.getresponse()
    text = answer.read()
    client.close()
    assert answer.status == 200, text
    return text


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.parametrize("server", ["runserver", "gunicorn"])
def test_serve(migrated: str, server: str) -> None:
    port = free_port()
    command, ends = [sys.executable, "manage.py", "runserver", f"127.0.0.1:{port}", "--noreload"], signal.SIGINT
    if server == "gunicorn":
        # After SIGINT its threaded worker acquires the lock of its thread pool in a signal handler, and
        # the interrupted thread may hold it (27.0).
        command, ends = [sys.executable, "run.py"], signal.SIGTERM
    with serving(command, migrated, port, ends=ends):
        for number in range(5):
            told = json.loads(ask(port, "POST", "/orders/", f"item=lamp+{number}"))
            assert told["orders"][0]["item"] == f"lamp {number}"
            assert "1/8 in use" in told["pool"]
        assert len(ask(port, "GET", "/export/").splitlines()) >= 5
        assert ask(port, "GET", "/health/") == b"up"


def sessions(postgres: PostgresServer) -> set[int]:
    with postgres.connect() as conn:
        rows = conn.execute("SELECT pid FROM pg_stat_activity WHERE datname = 'shop'").fetchall()
    return {pid for (pid,) in rows}


def eventually(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_serve_and_reload(migrated: str, postgres: PostgresServer, tmp_path: Path) -> None:
    """A new process serves after each change to a file; the last one leaves nothing behind."""
    folder = tmp_path / "project"
    shutil.copytree(PROJECT, folder)
    views, port = folder / "shop" / "views.py", free_port()
    server = [sys.executable, "manage.py", "runserver", f"127.0.0.1:{port}"]
    words = ("Watching for file changes", str(views), "[", "WARNING: This is a development server")

    def order() -> bool:
        """Use a connection, unless the server is just restarting."""
        with contextlib.suppress(OSError, http.client.HTTPException):
            return "1/8 in use" in json.loads(ask(port, "POST", "/orders/", "item=lamp"))["pool"]
        return False

    def reloaded() -> bool:
        if not sessions(postgres) & before:
            return True
        age = views.stat().st_mtime
        os.utime(views, (age + 1, age + 1))  # once more, in case it had not yet read the file for the first time
        return False

    with serving(server, migrated, port, folder=folder, own_words=words, group=True):
        for _ in range(2):
            eventually(order)
            before = sessions(postgres)
            assert before
            eventually(reloaded)
        eventually(order)
        eventually(lambda: len(sessions(postgres)) == 1)
    eventually(lambda: not sessions(postgres))

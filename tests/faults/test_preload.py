"""P9, P10 behind real servers that load the application first and fork then.

uWSGI forks in C, without Python's hooks (that is its default); gunicorn
forks in Python, and its gevent worker patches the process after that. Each has
two workers, of which one is killed and replaced, all are told to reload, and
all to end.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType

import pytest

from tests.faults.recorder import LOOPBACK, Recorder
from tests.servers import requires

ROOT = Path(__file__).parents[2]
PATIENCE = 30.0
AT_ONCE = 15.0  # seconds, on a busy machine; gunicorn kills a worker that does not end after 30
WORKERS = 2

COMPLAINTS = re.compile(r"Traceback|Error\b|Exception|WARNING.*pool|pool 'preloaded'|Fatal|core dumped|SIGSEGV")

SERVERS = {
    "uwsgi": [],
    "uwsgi-threads": ["--threads", "4"],
    "gunicorn-sync": ["--worker-class", "sync"],
    "gunicorn-gthread": ["--worker-class", "gthread", "--threads", "4"],
    "gunicorn-gevent": ["--worker-class", "gevent"],
}  # fmt: skip


class Server:
    """A server that has loaded the application; a context manager."""

    def __init__(self, kind: str, directory: Path) -> None:
        self.kind = kind
        self.log = directory / "log"
        self.reload_file = directory / "reload"
        self.reload_file.touch()
        with socket.create_server((LOOPBACK, 0)) as probe:
            self.port = probe.getsockname()[1]
        self.recorder = Recorder()

    def __enter__(self) -> Server:
        self.recorder.__enter__()
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                self._command(), cwd=ROOT, start_new_session=True,
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                env={"PATH": "/usr/bin:/bin", "PORT": str(self.recorder.port), "PYTHONDEVMODE": "1"},
            )  # fmt: skip
        return self

    def _command(self) -> list[str]:
        if self.kind.startswith("uwsgi"):
            return [
                program("uwsgi"), "--master", "--processes", str(WORKERS), *SERVERS[self.kind], "--need-app",
                "--http-socket", f"{LOOPBACK}:{self.port}", "--touch-workers-reload", str(self.reload_file),
                "--pythonpath", str(ROOT), "--wsgi", "tests.faults.preloaded", "--home", sys.prefix,
            ]  # fmt: skip
        return [
            sys.executable, "-m", "gunicorn", "--preload", "--workers", str(WORKERS), *SERVERS[self.kind],
            "--bind", f"{LOOPBACK}:{self.port}", "tests.faults.preloaded:application",
        ]  # fmt: skip

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)  # the workers too, if they are left
        self.process.wait()
        self.recorder.__exit__(exc_type, error, traceback)

    def ask(self, _: object = None) -> int | None:
        """Have a worker use the pool; return its process id, or ``None`` if none answers now."""
        try:
            with urllib.request.urlopen(f"http://{LOOPBACK}:{self.port}/", timeout=PATIENCE) as response:
                worker, *makers = map(int, response.read().split())
        except urllib.error.HTTPError as error:
            pytest.fail(f"{self.kind}: {error}\n{self.log.read_text()}")
        except OSError:  # not yet there, or killed just now
            return None
        assert makers == [worker], f"{self.kind}: {worker} was lent what {makers} made"
        return worker

    def workers(self, without: frozenset[int] = frozenset()) -> frozenset[int]:
        """Ask until exactly the expected workers have answered."""
        found: set[int] = set()
        deadline = time.monotonic() + PATIENCE
        with ThreadPoolExecutor(4) as askers:
            while len(found - without) < WORKERS:
                assert time.monotonic() < deadline, f"{self.kind}: {found} answered\n{self.log.read_text()}"
                found.update(worker for worker in askers.map(self.ask, range(4)) if worker)
        return frozenset(found - without)

    def replace_one(self, workers: frozenset[int]) -> None:
        """Kill a worker; the master, whose pool has had time to age, forks another."""
        os.kill(min(workers), signal.SIGKILL)
        deadline = time.monotonic() + PATIENCE
        while self.ask() in {None, *workers}:
            assert time.monotonic() < deadline, f"{self.kind}: no new worker\n{self.log.read_text()}"

    def reload(self, workers: frozenset[int]) -> None:
        """Have all workers replaced."""
        if self.kind.startswith("uwsgi"):
            os.utime(self.reload_file, (time.time() + 10, time.time() + 10))
        else:
            self.process.send_signal(signal.SIGHUP)
        self.workers(without=workers)

    def end(self) -> float:
        """Stop all workers; return how long that took."""
        began = time.monotonic()
        self.process.send_signal(signal.SIGINT if self.kind.startswith("uwsgi") else signal.SIGTERM)
        assert self.process.wait(PATIENCE) == 0, self.log.read_text()
        return time.monotonic() - began

    def judge(self) -> None:
        """Check that no process used another's connection, and that nothing was logged."""
        recorder = self.recorder
        assert recorder.until(lambda: all(record.ended for record in recorder.records))
        for record in recorder.records:
            assert not record.foreign, f"{self.kind}: {record.foreign} on a connection of {record.maker}"
        complaints = [line for line in self.log.read_text().splitlines() if COMPLAINTS.search(line)]
        assert not complaints, f"{self.kind}: {complaints}"


def program(name: str) -> str:
    """The path of a program that pip installed beside this interpreter, or of one on the PATH."""
    return shutil.which(name, path=sysconfig.get_path("scripts")) or shutil.which(name) or ""


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Server]]:
    """One of each kind, all started at once."""
    with ExitStack() as running:
        yield {
            kind: running.enter_context(Server(kind, tmp_path_factory.mktemp(kind)))
            for kind in SERVERS
            if not kind.startswith("uwsgi") or program("uwsgi")
        }


@pytest.mark.parametrize("kind", SERVERS)
def test_application_that_uses_its_pool_before_the_fork(servers: dict[str, Server], kind: str) -> None:
    requires("uWSGI", not kind.startswith("uwsgi") or program("uwsgi"), "pip install pyuwsgi")
    server = servers[kind]
    first = server.workers()
    server.replace_one(first)
    server.reload(server.workers() | first)
    took = server.end()
    server.judge()
    assert took < AT_ONCE, f"{kind}: its end took {took:.1f} s"

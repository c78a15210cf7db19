"""Starts `otel_site` in real servers."""

from __future__ import annotations

import contextlib
import http.client
import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.integration.tools import ROOT, environment, wait_until

__all__ = ["POOL", "WORKERS", "OtelServer", "otel_server"]

WORKERS = 3
POOL = "db.client.connection.pool.name"
COMMANDS = {
    "gunicorn": ["-m", "gunicorn", "-k", "gthread", "--threads", "2", "-w", str(WORKERS), "--preload"],
    "gunicorn gevent": ["-m", "gunicorn", "-k", "gevent", "-w", str(WORKERS), "--preload"],
    "uWSGI": ["--processes", str(WORKERS), "--enable-threads"],
}
HOOK = """
def post_fork(server, worker):
    from tests.integration.otel_site import begin_worker
    begin_worker()
"""


def find_uwsgi() -> str | None:
    return shutil.which("uwsgi", path=os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", "")]))


class OtelServer:
    """A server whose workers export their figures.

    Args:
        kind: Which one.
        home: A directory for its files.
        variables: For the environment.
    """

    def __init__(self, kind: str, home: Path, **variables: str) -> None:
        self.log = home / "log"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        env = environment(**variables)
        app, address = "tests.integration.otel_site:application", f"127.0.0.1:{self.port}"
        if kind == "uWSGI":
            env["PYTHONPATH"] = os.pathsep.join([str(ROOT), *map(sysconfig.get_path, ("purelib", "platlib"))])
            env["VIRTUAL_ENV"] = sys.prefix
            command = [
                find_uwsgi() or "uwsgi", *COMMANDS[kind], "--http-socket", address, "--module", app, "--master",
                "--need-app", "--die-on-term", "--disable-logging", "--listen", "100",
            ]  # fmt: skip
        else:
            hook = home / "gunicorn.conf.py"
            hook.write_text(HOOK)
            command = [
                sys.executable, *COMMANDS[kind], "-c", str(hook), "-b", address, "--no-control-socket", app,
            ]  # fmt: skip
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command, env=env, cwd=home, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                start_new_session=True,
            )  # fmt: skip

    def use(self, times: int) -> tuple[int, int]:
        """Have a worker take so many leases; return which one, and how many."""
        conn = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            conn.request("GET", f"/use?n={times}", headers={"Connection": "close"})
            answer = conn.getresponse()
            return int(answer.headers["X-Pid"]), int(answer.read())
        finally:
            conn.close()

    def wait(self) -> None:
        def answers() -> bool:
            assert self.process.poll() is None, self.log.read_text(errors="replace")
            with contextlib.suppress(OSError, http.client.HTTPException):
                return self.use(0)[1] == 0
            return False

        wait_until(answers, patience=60)

    def use_all(self, leases: Counter[int]) -> None:
        """Go on until each worker has taken some; add them up by worker."""
        with ThreadPoolExecutor(2 * WORKERS) as clients:  # at the same time: one by one, the same worker may answer

            def complete() -> bool:
                for pid, times in clients.map(self.use, [1] * 2 * WORKERS):
                    leases[pid] += times
                return len([pid for pid, number in leases.items() if number]) == WORKERS

            wait_until(complete, patience=60)

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@contextlib.contextmanager
def otel_server(kind: str, home: Path, **variables: str) -> Iterator[OtelServer]:
    """Run a server."""
    server = OtelServer(kind, home, **variables)
    try:
        server.wait()
        yield server
    finally:
        server.close()

"""How each server is started, told to restart, and ended."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

__all__ = ["TIMEOUT", "Mode", "Prefork", "Server", "ends_of_tracebacks"]

ROOT = Path(__file__).parents[3]
MODULES = {"wsgi": "site_wsgi", "flask": "site_flask", "django": "app_django", "lifespan": "site_lifespan"}
TIMEOUT = 2  # seconds until a worker that hangs is killed


@dataclass(frozen=True)
class Mode:
    """One server in one mode.

    Attributes:
        name: Its name in tables.
        command: Its arguments, with placeholders ``{app}``, ``{port}``, ``{log}`` and ``{settings}``.
        workers: Number of worker processes; 0 if the only process serves.
        parent: Whether its parent process also has the application and its pools.
        kills: Whether it kills workers that time out, at any point.
        last_words: Last lines of the tracebacks that such a worker leaves in the log.
        ends: The signal that stops it.
        noise: Beginnings of its own lines on standard error, which are not complaints.
    """

    name: str
    command: Sequence[str]
    workers: int = 0
    parent: bool = False
    kills: bool = False
    last_words: tuple[str, ...] = ()
    ends: signal.Signals = signal.SIGTERM
    noise: tuple[str, ...] = ()

    @property
    def installed(self) -> bool:
        """Whether the server is installed."""
        return self.command[0] != "uwsgi" or _program("uwsgi") is not None


class Server:
    """A server that runs one of the applications.

    Args:
        mode: The server and its mode.
        app: The application: a key of `MODULES`.
        dsn: The database.
        more: Further variables of its environment.
    """

    def __init__(self, mode: Mode, app: str, dsn: str, more: dict[str, str] | None = None) -> None:
        self.mode = mode
        self.home = Path(tempfile.mkdtemp(prefix="pooling-matrix-"))
        self.port = _free_port()
        self._log, self._err = self.home / "log", self.home / "stderr"
        values = {
            "app": f"tests.integration.matrix.{MODULES[app]}", "port": self.port, "log": self._log,
            "settings": "tests.integration.matrix.site_django", "timeout": TIMEOUT,
        }  # fmt: skip
        program, *arguments = (part.format(**values) for part in mode.command)
        command = [str(_program("uwsgi"))] if program == "uwsgi" else [sys.executable, "-m", program]
        environment = {
            **os.environ, "MATRIX_DSN": dsn, "PYTHONFAULTHANDLER": "",
            # pyuwsgi restarts as the bare interpreter, outside the virtual environment.
            "PYTHONPATH": os.pathsep.join([str(ROOT), sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]),
            "VIRTUAL_ENV": sys.prefix, **(more or {}),
        }  # fmt: skip
        if mode.parent:
            environment["MATRIX_FORKS"] = "1"
        with self._err.open("wb") as errors:
            self._process = subprocess.Popen(
                [*command, *arguments], cwd=self.home, env=environment, stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL, stderr=errors, start_new_session=True,
            )  # fmt: skip
        self._psutil = psutil.Process(self._process.pid)

    def wait_until_up(self, timeout: float = 60.0) -> None:
        """Wait until it accepts connections.

        Raises:
            RuntimeError: It does not; the message ends with its output.
        """
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline and self._process.poll() is None:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return
            time.sleep(0.05)
        raise RuntimeError(f"{self.mode.name} did not start: {self._tail()}")

    def workers(self) -> list[int]:
        """Return the pids of the serving processes."""
        if not self.mode.workers:
            return [self._process.pid]
        found = []
        with contextlib.suppress(psutil.NoSuchProcess):
            for child in self._psutil.children():
                with contextlib.suppress(psutil.NoSuchProcess):
                    if child.status() != psutil.STATUS_ZOMBIE:
                        found.append(child.pid)
        return found

    def processes(self) -> int:
        """Return how many processes there are that may have connections."""
        return len(self.workers()) + (1 if self.mode.parent else 0)

    def state(self) -> str:
        """Describe the workers and the end of the log, for a complaint."""
        workers = []
        for pid in self.workers():
            with contextlib.suppress(psutil.NoSuchProcess):
                worker = psutil.Process(pid)
                age, cpu = time.time() - worker.create_time(), sum(worker.cpu_times()[:2])
                workers.append(f"{pid} ({worker.status()}, {age:.1f} s old, CPU {cpu:.2f} s)")
        return f"workers: {', '.join(workers)}; log: {self._tail()}"

    def restart(self, timeout: float = 60.0) -> str | None:
        """Make it replace its workers one by one, and wait for that; return complaints."""
        before = set(self.workers())
        self._process.send_signal(signal.SIGHUP)
        return self._wait_for_others(before, before, timeout)

    def kill_one(self, timeout: float = 60.0) -> str | None:
        """Kill one worker, and wait until another one has replaced it; return complaints."""
        before = self.workers()
        os.kill(before[0], signal.SIGKILL)
        return self._wait_for_others(set(before[:1]), set(before), timeout)

    def _wait_for_others(self, gone: set[int], before: set[int], timeout: float) -> str | None:
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            now = set(self.workers())
            if not gone & now and len(now) == self.mode.workers and now - before:
                return None
            time.sleep(0.02)
        return f"workers are {self.workers()}, before they were {sorted(before)}"

    def end(self, timeout: float = 30.0) -> tuple[float, int | None]:
        """Stop it; return the seconds until its end, and its exit code."""
        began = time.monotonic()
        self._process.send_signal(self.mode.ends)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout)
        return time.monotonic() - began, self._process.returncode

    def complaints(self, *, killed: bool) -> list[str]:
        """Return the lines on standard error and in its log, except for the server's own.

        Args:
            killed: Whether workers were killed, which may have caused output.
        """
        lines = self._err.read_text(errors="replace").splitlines()
        found = [line for line in lines if line.strip() and not line.startswith(self.mode.noise or ("\0",))]
        log = self._log.read_text(errors="replace") if self._log.exists() else ""
        found += [line for line in log.splitlines() if any(word in line for word in _TROUBLE)]
        expected = self.mode.last_words if killed else ()
        return found + [f"traceback: {end}" for end in ends_of_tracebacks(log) if end not in expected]

    def close(self) -> None:
        """Kill its remaining processes, and remove its files."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        shutil.rmtree(self.home, ignore_errors=True)

    def _tail(self) -> str:
        log = self._log.read_text(errors="replace") if self._log.exists() else ""
        return (self._err.read_text(errors="replace") + log)[-2000:]


class Prefork:
    """A program that forks workers itself, see `prefork`; it has the same interface as a `Server`."""

    def __init__(self, kind: str, dsn: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.integration.matrix.prefork", kind], cwd=ROOT,
            env={**os.environ, "MATRIX_DSN": dsn, "PYTHONPATH": str(ROOT)}, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
        self._psutil = psutil.Process(self._process.pid)
        self._err = ""

    def processes(self) -> int:
        """Return how many processes there are that may have connections."""
        with contextlib.suppress(psutil.NoSuchProcess):
            return 1 + len(self._psutil.children())
        return 1

    def told(self, timeout: float = 120.0) -> dict[str, str]:
        """Wait for its end, and return its complaints for each phase."""
        out, self._err = self._process.communicate(timeout=timeout)
        if self._process.returncode != 0:
            return {"load": f"code {self._process.returncode}"}
        found: dict[str, str] = json.loads(out)
        return found

    def complaints(self) -> list[str]:
        """Return its lines on standard error, except for billiard's messages about killed workers."""
        return [line for line in self._err.splitlines() if not line.startswith("Process 'ForkPoolWorker")]

    def close(self) -> None:
        """Kill its remaining processes."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


# Signs of errors of ours, or of the interpreter, that appear in a server's log without a traceback.
_TROUBLE = (
    "Segmentation", "Exception ignored", "ResourceWarning", "DeprecationWarning", "LeaseError", "forgotten",
    "ProgrammingError", "InterfaceError", "AssertionError", "OperationalError", "PoolTimeout", "PoolUnavailable",
    "CreateFailed", "TooManyWaiting", "dropped without release",
)  # fmt: skip
_TRACEBACK = re.compile(
    r"^Traceback \(most recent call last\):\n(?:[ \t].*\n)*(\S.*)$(?!\n\n(?:During handling|The above exception))", re.M
)


def ends_of_tracebacks(log: str) -> list[str]:
    """Return the last line of each traceback, which names the error; for chained tracebacks only the last."""
    return _TRACEBACK.findall(log)


def _program(name: str) -> str | None:
    return shutil.which(name, path=os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", "")]))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])

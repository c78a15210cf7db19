"""The processes and files of a run: started, and gone in the end."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import requests

__all__ = ["HarnessError", "Stage"]

ROOT = Path(__file__).resolve().parents[3]
_PATIENCE = 30.0  # seconds for a process to start
_GRACE = 20.0  # seconds for gunicorn to end


class HarnessError(Exception):
    """Something that a run needs does not work; the text is for the user."""


class Stage:
    """The provider's backends, gunicorn, and a folder for their files.

    Args:
        workers: Of gunicorn.
        backends: How many the provider has.
        dsn: Where PostgreSQL stores the orders; ``None`` means in SQLite.
        pooled_cache: Whether the cache has a pool.
        port: Of the application; another one is taken if it is in use.
        interrupted: Returns whether the run is to end.

    Attributes:
        folder: The temporary folder.
        url: The application's address.
        orders: The orders' SQLite file or DSN, as the harness reaches it.
        schema: The temporary schema in PostgreSQL.
        alerts: The file that the workers append alerts to.
        log: gunicorn's, with the library's warnings.
    """

    def __init__(
        self, *, workers: int, backends: int, dsn: str | None, pooled_cache: bool, port: int,
        interrupted: Callable[[], bool],
    ) -> None:  # fmt: skip
        self._workers, self._number, self._port = workers, backends, port
        self._pooled, self._interrupted = pooled_cache, interrupted
        self._end = contextlib.ExitStack()
        self._backends: list[subprocess.Popen[str]] = []
        self._web: subprocess.Popen[bytes] | None = None
        self.dsn, self.url = dsn, ""
        self.ports: list[int] = []
        self.schema = None if dsn is None else f"market_{secrets.token_hex(6)}"

    def __enter__(self) -> Stage:
        self.folder = Path(tempfile.mkdtemp(prefix="market-"))
        self._end.callback(shutil.rmtree, self.folder, ignore_errors=True)
        self.cache, self.alerts, self.log = (self.folder / name for name in ("cache.db", "alerts", "gunicorn.log"))
        self.orders = self.dsn if self.dsn is not None else str(self.folder / "orders.db")
        return self

    def __exit__(self, *error: object) -> None:
        self._end.close()

    @property
    def backends(self) -> list[str]:
        """The addresses of the provider's backends."""
        return [f"http://127.0.0.1:{port}" for port in self.ports]

    # -- the provider -----------------------------------------------------------------

    def start_provider(self) -> None:
        """Start all backends."""
        for number in range(self._number):
            process, port = self._start_backend(number, 0)
            self._backends.append(process)
            self.ports.append(port)
        self._end.callback(self._stop_provider)

    def _start_backend(self, number: int, port: int) -> tuple[subprocess.Popen[str], int]:
        process = subprocess.Popen(
            [sys.executable, "-m", "examples.market.provider", str(number + 1), str(port)],
            cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line.strip().isdigit():
            _end(process)
            raise HarnessError("a backend of the provider did not start")
        return process, int(line)

    def kill_backend(self, number: int) -> int:
        """End a backend with ``kill -9``; return its process id."""
        process = self._backends[number]
        _end(process)
        return process.pid

    def restart_backend(self, number: int) -> None:
        """Start it again, at the same address."""
        self._backends[number], _ = self._start_backend(number, self.ports[number])

    def _stop_provider(self) -> None:
        for process in self._backends:
            _end(process)

    # -- PostgreSQL --------------------------------------------------------------------

    def make_schema(self) -> str:
        """Create the schema in PostgreSQL; return the server's version.

        Raises:
            HarnessError: The server cannot be reached, or refuses; or psycopg is not installed.
        """
        try:
            import psycopg
        except ImportError as error:
            raise HarnessError(f"--dsn needs psycopg and libpq (pip install 'pooling[binary]'): {error}") from None
        assert self.dsn is not None
        try:
            with psycopg.connect(self.dsn, autocommit=True, connect_timeout=10) as conn:
                conn.execute(f"CREATE SCHEMA {self.schema}")  # type: ignore[call-overload]
                version = conn.execute("SHOW server_version").fetchone()
        except psycopg.Error as error:
            raise HarnessError(f"PostgreSQL: {_without_password(error, self.dsn)}") from None
        self._end.callback(self._drop_schema)
        return str(version[0]) if version else ""

    def _drop_schema(self) -> None:
        import psycopg

        assert self.dsn is not None
        try:
            with psycopg.connect(self.dsn, autocommit=True, connect_timeout=10) as conn:
                conn.execute("SET lock_timeout = '10s'")
                conn.execute(f"DROP SCHEMA {self.schema} CASCADE")  # type: ignore[call-overload]
        except psycopg.Error as error:
            text = _without_password(error, self.dsn)
            print(f"schema {self.schema} was not dropped: {text}", file=sys.stderr)

    # -- the application ---------------------------------------------------------------

    def environment(self, orders: str) -> dict[str, str]:
        """Return the application's settings.

        Args:
            orders: How it reaches the orders.
        """
        found = {
            "MARKET_BACKENDS": ",".join(self.backends), "MARKET_CACHE": str(self.cache), "MARKET_ORDERS": orders,
            "MARKET_CACHE_POOLED": str(int(self._pooled)), "MARKET_ALERTS": str(self.alerts),
            "MARKET_WORKERS": str(self._workers), "POOLING_METRICS_DIR": str(self.folder / "metrics"),
        }  # fmt: skip
        if self.schema is not None:
            found["MARKET_SCHEMA"] = self.schema
        return found

    def start_application(self, orders: str | None = None, faults: bool = False) -> None:
        """Start gunicorn, and wait until it answers.

        Args:
            orders: How the application reaches the orders; ``None`` means as the harness does.
            faults: Whether it may be made to misbehave.

        Raises:
            HarnessError: It did not start.
        """
        (self.folder / "metrics").mkdir(mode=0o700)
        listener = _listen(self._port)
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        environment = {
            **os.environ, **self.environment(orders or self.orders), **({"MARKET_FAULTS": "1"} if faults else {}),
            "MARKET_BIND": f"fd://{listener.fileno()}", "PYTHONDONTWRITEBYTECODE": "1",
        }  # fmt: skip
        with listener, self.log.open("ab") as log:
            self._web = subprocess.Popen(
                [sys.executable, "-m", "gunicorn", "-c", "examples/market/gunicorn.conf.py"],
                cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                pass_fds=[listener.fileno()], start_new_session=True,
            )  # fmt: skip
        self._end.callback(self._stop_application)
        self._wait_for_workers(self._web)

    def _wait_for_workers(self, web: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + _PATIENCE
        while not self._interrupted():
            if web.poll() is not None or time.monotonic() > deadline:
                raise HarnessError("gunicorn did not start; its log ends with\n" + self.log_tail())
            with contextlib.suppress(requests.RequestException):
                if requests.get(f"{self.url}/health", timeout=5).ok and len(self.workers()) == self._workers:
                    return
            time.sleep(0.1)

    def workers(self) -> list[int]:
        """Return the process ids of gunicorn's workers."""
        assert self._web is not None
        return sorted(child.pid for child in psutil.Process(self._web.pid).children())

    def log_tail(self, lines: int = 15) -> str:
        """Return the end of gunicorn's log."""
        text = self.log.read_text(encoding="utf-8", errors="replace")
        return "\n".join(text.splitlines()[-lines:])

    def _stop_application(self) -> None:
        assert self._web is not None
        workers: list[psutil.Process] = []
        with contextlib.suppress(ProcessLookupError, psutil.NoSuchProcess):
            workers = psutil.Process(self._web.pid).children()
            self._web.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._web.wait(_GRACE)
        with contextlib.suppress(ProcessLookupError):  # workers that hang
            os.killpg(self._web.pid, signal.SIGKILL)
        self._web.wait()
        psutil.wait_procs(workers, 5)  # a worker that was killed is left to the system


def _end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()


def _listen(port: int) -> socket.socket:
    """Return a socket that listens at this port of the loopback address, or at another one if it is in use."""
    try:
        return socket.create_server(("127.0.0.1", port), backlog=1024)
    except OSError:
        return socket.create_server(("127.0.0.1", 0), backlog=1024)


def _without_password(error: Exception, dsn: str) -> str:
    from psycopg.conninfo import conninfo_to_dict

    try:
        password = str(conninfo_to_dict(dsn).get("password") or "")
    except Exception:  # libpq would quote the DSN
        return "the DSN is neither a postgresql:// URL nor key=value pairs"
    text = str(error).strip()
    return text.replace(password, "***") if password else text

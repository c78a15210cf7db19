"""A private PgBouncer in front of a `PostgresServer`; tests may kill it."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import psycopg

from tests.servers import LOOPBACK, PostgresServer, _account, _free_port, _Home, requires

__all__ = ["PgBouncer", "find_pgbouncer", "needs_pgbouncer"]


def find_pgbouncer() -> Path | None:
    """Return PgBouncer's program, or ``None``; Debian's is often not on the path."""
    found = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin:/usr/local/sbin")
    return Path(found) if found else None


def needs_pgbouncer() -> None:
    """Skip the test if PgBouncer is not installed; with ``CI=true`` fail it."""
    requires("PgBouncer", find_pgbouncer(), "apt-get install pgbouncer")


class PgBouncer:
    """A private PgBouncer on loopback, without passwords.

    Args:
        server: The server behind it.
        settings: Lines of its ``[pgbouncer]`` section; see `configure`.
    """

    def __init__(self, server: PostgresServer, **settings: object) -> None:
        self._home = _Home("pgbouncer")
        self._process: subprocess.Popen[bytes] | None = None
        self.port = _free_port()
        self._server = server
        self._settings: dict[str, object] = {
            "listen_addr": LOOPBACK,
            "listen_port": self.port,
            "unix_socket_dir": "",
            "auth_type": "any",  # every client is the user of the line below
            "admin_users": "postgres",
            "server_login_retry": 0.1,
            "logfile": self._home.path / "log",
            "ignore_startup_parameters": "extra_float_digits",
            **settings,
        }
        self._write()

    @property
    def dsn(self) -> str:
        """The address of the ``postgres`` database behind it."""
        return f"postgresql://postgres@{LOOPBACK}:{self.port}/postgres"

    @property
    def version(self) -> tuple[int, ...]:
        """Its version."""
        text = subprocess.run([_program(), "--version"], capture_output=True, text=True, check=True).stdout
        found = re.search(r"(\d+)\.(\d+)", text)
        assert found is not None
        return tuple(map(int, found.groups()))

    def connect(self, **options: Any) -> psycopg.Connection[tuple[Any, ...]]:
        """Return a plain psycopg connection through it."""
        return psycopg.connect(self.dsn, **options)

    def admin(self, command: str) -> list[dict[str, str | None]]:
        """Execute a command on its console and return the result."""
        conninfo = f"host={LOOPBACK} port={self.port} user=postgres dbname=pgbouncer"
        with contextlib.closing(psycopg.connect(conninfo, autocommit=True)) as conn:
            result = conn.pgconn.exec_(command.encode())  # the console supports only simple queries
            if result.error_message:
                raise RuntimeError(result.error_message.decode())
            names = [(result.fname(column) or b"").decode() for column in range(result.nfields)]
            return [
                {name: _text(result.get_value(row, column)) for column, name in enumerate(names)}
                for row in range(result.ntuples)
            ]

    def start(self, timeout: float = 30.0) -> None:
        """Start it, unless it runs, and return when it answers."""
        if self._process is not None and self._process.poll() is None:
            return
        account = _account()
        other: dict[str, Any] = {}
        if account is not None:
            other = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
        self._process = subprocess.Popen(
            [_program(), self._home.path / "pgbouncer.ini"],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            cwd=self._home.path, start_new_session=True, **other,
        )  # fmt: skip
        self._home.note(self._process.pid)
        deadline = time.monotonic() + timeout
        while True:
            try:
                self.admin("SHOW VERSION")
                return
            except psycopg.OperationalError as error:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    log = self._home.path / "log"
                    text = log.read_text() if log.exists() else "no log"
                    raise RuntimeError(f"PgBouncer did not start:\n{text}") from error
            time.sleep(0.01)

    def kill(self) -> None:
        """``kill -9``; its server connections end with it."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
            self._home.note(None)

    def configure(self, **settings: object) -> None:
        """Change lines of its configuration and ``RELOAD`` it."""
        self._settings.update(settings)
        self._write()
        self.admin("RELOAD")

    def close(self) -> None:
        """Stop it and remove its files."""
        self.kill()
        self._home.remove()

    def __enter__(self) -> PgBouncer:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _write(self) -> None:
        lines = ["[databases]", f"postgres = host={LOOPBACK} port={self._server.port} dbname=postgres user=postgres"]
        lines += ["[pgbouncer]", *(f"{name} = {value}" for name, value in self._settings.items())]
        file = self._home.path / "pgbouncer.ini"
        file.write_text("\n".join(lines) + "\n")
        account = _account()
        if account is not None:
            os.chown(file, account.pw_uid, account.pw_gid)


def _program() -> Path:
    program = find_pgbouncer()
    if program is None:
        raise RuntimeError("PgBouncer not found")
    return program


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode()


def bouncers(server: PostgresServer, **settings: object) -> Iterator[PgBouncer]:
    """For fixtures: a PgBouncer that is stopped with the test or the module."""
    needs_pgbouncer()
    with PgBouncer(server, **settings) as bouncer:
        yield bouncer

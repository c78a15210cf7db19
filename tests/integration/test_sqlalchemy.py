"""The documented behavior of SQLAlchemy's QueuePool, tested with QueuePool and with our pool.

Tests that use `kind` run with both; those at the end of the file concern only ours.
"""

from __future__ import annotations

import gc
import logging
import os
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest

from pooling import Pool as CorePool
from pooling import PoolSettings
from pooling.adapters.dbapi import DBAPIAdapter
from tests.mariadb import MariaDBServer, needs_mariadb
from tests.servers import PostgresServer, requires

try:
    import sqlalchemy
    from sqlalchemy import event, exc
    from sqlalchemy.pool import QueuePool

    from pooling.adapters.sqlalchemy import Pool
except ImportError:
    requires("SQLAlchemy", None, "pip install SQLAlchemy")
    pytest.skip("SQLAlchemy is not installed", allow_module_level=True)

PATIENCE = 30.0
ROOT = Path(__file__).parents[2]
Kind = type[Any]


@pytest.fixture(params=[QueuePool, Pool], ids=["QueuePool", "ours"])
def kind(request: pytest.FixtureRequest) -> Kind:
    """QueuePool, then ours."""
    return request.param  # type: ignore[no-any-return]


class Maker:
    """Creates SQLite connections, and keeps them."""

    def __init__(self) -> None:
        self.made: list[sqlite3.Connection] = []
        self.broken = False

    def __call__(self) -> sqlite3.Connection:
        if self.broken:
            raise sqlite3.OperationalError("unable to open")
        self.made.append(sqlite3.connect(":memory:", check_same_thread=False))
        return self.made[-1]

    def open(self) -> int:
        return sum(is_open(conn) for conn in self.made)


@pytest.fixture
def maker() -> Iterator[Maker]:
    maker = Maker()
    yield maker
    for conn in maker.made:
        conn.close()


@pytest.fixture
def engines(kind: Kind, postgres: PostgresServer) -> Iterator[Callable[..., sqlalchemy.Engine]]:
    """Create engines for the server's database with this kind of pool; they are disposed of at the end."""
    yield from _engines(kind, postgres)


def _engines(kind: Kind, postgres: PostgresServer) -> Iterator[Callable[..., sqlalchemy.Engine]]:
    made = []

    def make(**options: Any) -> sqlalchemy.Engine:
        url = postgres.dsn.replace("postgresql://", "postgresql+psycopg://")
        engine = sqlalchemy.create_engine(url, poolclass=kind, **options)
        made.append(engine)
        return engine

    yield make
    for engine in made:
        engine.dispose()


def is_open(conn: sqlite3.Connection) -> bool:
    try:
        return conn.total_changes >= 0
    except sqlite3.ProgrammingError:
        return False


def backend(conn: sqlalchemy.Connection) -> int:
    return conn.execute(sqlalchemy.text("SELECT pg_backend_pid()")).scalar_one()  # type: ignore[no-any-return]


def kill(server: PostgresServer, *backends: int) -> None:
    with server.connect(autocommit=True) as conn:
        for pid in backends:
            conn.execute("SELECT pg_terminate_backend(%s)", [pid])
        deadline = time.monotonic() + PATIENCE
        find = "SELECT 1 FROM pg_stat_activity WHERE pid = ANY(%s)"
        while conn.execute(find, [list(backends)]).rowcount:
            assert time.monotonic() < deadline, "the backends are still there"


def figures(pool: Any) -> tuple[int, int, int, int]:
    return pool.size(), pool.checkedin(), pool.overflow(), pool.checkedout()


# -- sizes ---------------------------------------------------------------------------


def test_new_pool_has_no_connections(kind: Kind, maker: Maker) -> None:
    pool = kind(maker)
    assert maker.made == []
    assert figures(pool) == (5, 0, -5, 0)
    assert pool.timeout() == 30


def test_close_releases_the_connection_for_reuse(kind: Kind, maker: Maker) -> None:
    pool = kind(maker, pool_size=1)
    for _ in range(3):
        conn = pool.connect()
        assert conn.dbapi_connection is maker.made[0]
        conn.close()
    assert len(maker.made) == 1


def test_overflow_is_closed_when_released(kind: Kind, maker: Maker) -> None:
    pool = kind(maker, pool_size=2, max_overflow=1)
    conns = [pool.connect() for _ in range(3)]
    assert figures(pool) == (2, 0, 1, 3)
    for conn in conns:
        conn.close()
    assert figures(pool) == (2, 2, 0, 0)
    assert maker.open() == 2
    assert pool.status() == (
        "Pool size: 2  Connections in pool: 2 Current Overflow: 0 Current Checked out connections: 0"
    )


def test_timeout(kind: Kind, maker: Maker) -> None:
    pool = kind(maker, pool_size=1, max_overflow=1, timeout=0.05)
    conns = [pool.connect() for _ in range(2)]
    with pytest.raises(exc.TimeoutError) as caught:
        pool.connect()
    assert caught.value.code == "3o7r"  # SQLAlchemy's page about it
    conns[0].close()
    pool.connect().close()
    conns[1].close()


def connection_after_wait(pool: Any) -> Any:
    """Return the only connection of a pool, acquired by a thread that waited for its release."""
    conn = pool.connect()
    got: list[Any] = []
    thread = threading.Thread(target=lambda: got.append(pool.connect()))
    thread.start()
    conn.close()
    thread.join(PATIENCE)
    return got[0]


def test_waiter_gets_the_released_connection(kind: Kind, maker: Maker) -> None:
    pool = kind(maker, pool_size=1, max_overflow=0)
    got = connection_after_wait(pool)
    assert got.dbapi_connection is maker.made[0]
    got.close()


def test_timeout_of_none_means_no_limit(kind: Kind, maker: Maker) -> None:
    pool = kind(maker, pool_size=1, max_overflow=0, timeout=None)
    assert pool.timeout() is None
    pool = pool.recreate()
    connection_after_wait(pool).close()
    assert pool.timeout() is None


@pytest.mark.parametrize(
    "options", [{"pool_size": 0}, {"pool_size": 0, "max_overflow": -5}, {"pool_size": 1, "max_overflow": -1}]
)
def test_no_limit(kind: Kind, maker: Maker, options: dict[str, int]) -> None:
    pool = kind(maker, timeout=0.05, **options)
    conns = [pool.connect() for _ in range(20)]
    for conn in conns:
        conn.close()
    assert maker.open() == (20 if options["pool_size"] == 0 else 1)


def test_first_in_first_out(kind: Kind, maker: Maker) -> None:
    pool = kind(maker, pool_size=3)
    for conn in [pool.connect() for _ in range(3)]:
        conn.close()
    order = []
    for _ in range(4):
        conn = pool.connect()
        order.append(maker.made.index(conn.dbapi_connection))
        conn.close()
    assert order == [0, 1, 2, 0]


def test_last_in_first_out(kind: Kind, maker: Maker) -> None:
    pool = kind(maker, pool_size=3, use_lifo=True)
    for conn in [pool.connect() for _ in range(3)]:
        conn.close()
    for _ in range(4):
        conn = pool.connect()
        assert conn.dbapi_connection is maker.made[2]
        conn.close()


# -- creating and losing connections ------------------------------------------------------


def test_error_of_the_creator_is_raised_at_once(kind: Kind, maker: Maker) -> None:
    pool = kind(maker, pool_size=1, max_overflow=0)
    maker.broken = True
    for _ in range(3):
        with pytest.raises(sqlite3.OperationalError, match="unable to open"):
            pool.connect()
    assert figures(pool) == (1, 0, -1, 0)
    maker.broken = False
    pool.connect().close()


def test_engine_wraps_the_error_of_the_creator(kind: Kind) -> None:
    engine = sqlalchemy.create_engine("postgresql+psycopg://postgres@127.0.0.1:1/postgres", poolclass=kind)
    with pytest.raises(exc.OperationalError):
        engine.connect()


def test_creator_may_take_the_record(kind: Kind, maker: Maker) -> None:
    records = []

    def creator(connection_record: Any) -> sqlite3.Connection:
        records.append(connection_record)
        return maker()

    with closing(kind(creator).connect()) as conn:
        assert conn._connection_record is records[0]


def test_invalidate_replaces_the_connection(kind: Kind, maker: Maker) -> None:
    pool = kind(maker, pool_size=1)
    conn = pool.connect()
    conn.info["is"] = "old"
    conn.record_info["is"] = "kept"
    conn.invalidate()
    assert not is_open(maker.made[0])
    assert not conn.is_valid
    conn = pool.connect()
    assert conn.dbapi_connection is maker.made[1]
    assert conn.info == {}
    assert conn.record_info == {"is": "kept"}
    conn.close()


def test_soft_invalidation_replaces_the_connection_at_the_next_checkout(kind: Kind, maker: Maker) -> None:
    pool = kind(maker, pool_size=1)
    conn = pool.connect()
    time.sleep(0.02)
    conn.invalidate(soft=True)
    assert is_open(maker.made[0])
    assert conn.is_valid
    conn.close()
    with closing(pool.connect()) as conn:
        assert conn.dbapi_connection is maker.made[1]
    assert not is_open(maker.made[0])


def test_recycle(kind: Kind, maker: Maker) -> None:
    pool = kind(maker, pool_size=1, recycle=60)
    with closing(pool.connect()) as conn:
        conn._connection_record.starttime -= 61  # its creation, by the time of day
    pool.connect().close()
    assert len(maker.made) == 2
    assert not is_open(maker.made[0])


def test_detach(kind: Kind, maker: Maker) -> None:
    pool = kind(maker, pool_size=1, max_overflow=0, timeout=0.05)
    conn = pool.connect()
    conn.detach()
    assert conn.is_detached
    pool.connect().close()  # its slot is free
    assert is_open(maker.made[0])
    conn.close()
    assert not is_open(maker.made[0])


def test_dropped_connection_is_released(kind: Kind, maker: Maker) -> None:
    pool = kind(maker, pool_size=1, max_overflow=0, timeout=PATIENCE)
    conn = pool.connect()
    del conn
    gc.collect()
    assert figures(pool) == (1, 1, 0, 0)
    pool.connect().close()
    assert len(maker.made) == 1


def test_dispose(kind: Kind, maker: Maker) -> None:
    pool = kind(maker, pool_size=2)
    out = pool.connect()
    pool.connect().close()
    pool.dispose()
    assert not is_open(maker.made[1])
    assert is_open(maker.made[0])  # a connection in use stays open
    out.execute("SELECT 1")
    out.close()
    with closing(pool.connect()) as conn:  # and the pool can still be used
        conn.execute("SELECT 1")


def test_recreate(kind: Kind, maker: Maker) -> None:
    seen: list[str] = []
    pool = kind(
        maker, pool_size=3, max_overflow=2, timeout=7, use_lifo=True, recycle=90, pre_ping=False,
        reset_on_return="commit", logging_name="mine",
    )  # fmt: skip
    event.listen(pool, "checkout", lambda *args: seen.append("checkout"))
    other = pool.recreate()
    assert type(other) is kind
    assert other is not pool
    for name in ("_recycle", "_pre_ping", "_reset_on_return", "_orig_logging_name", "_max_overflow"):
        assert getattr(other, name) == getattr(pool, name)
    assert (other.size(), other.timeout(), other.checkedin()) == (3, 7, 0)
    other.connect().close()
    assert seen == ["checkout"]


# -- reset on return ------------------------------------------------------------------------


class Recorded:
    """A DB-API connection that records which methods are called."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> Callable[[], None]:
        return lambda: self.calls.append(name)


@pytest.mark.parametrize(
    ("option", "expected"),
    [("rollback", ["rollback"]), (True, ["rollback"]), ("commit", ["commit"]), (None, []), (False, [])],
)
def test_reset_on_return(kind: Kind, option: object, expected: list[str]) -> None:
    conn = Recorded()
    pool = kind(lambda: conn, reset_on_return=option)
    pool.connect().close()
    assert conn.calls == expected


def test_failed_reset_invalidates(kind: Kind, maker: Maker) -> None:
    pool = kind(maker, pool_size=1)

    def fail(*args: object) -> None:
        raise sqlite3.OperationalError("cannot reset")

    event.listen(pool, "reset", fail)
    pool.connect().close()
    assert not is_open(maker.made[0])
    event.remove(pool, "reset", fail)
    pool.connect().close()
    assert len(maker.made) == 2


# -- events ----------------------------------------------------------------------------------


def test_events(kind: Kind, maker: Maker) -> None:
    heard: list[tuple[str, int]] = []
    pool = kind(maker, pool_size=1)
    names = (
        "first_connect", "connect", "checkout", "checkin", "reset", "invalidate", "soft_invalidate", "close",
        "detach", "close_detached",
    )  # fmt: skip
    for name in names:
        event.listen(pool, name, lambda *args, name=name: heard.append((name, threading.get_ident())))
    conn = pool.connect()
    conn.invalidate(soft=True)
    conn.close()
    conn = pool.connect()
    conn.invalidate()
    conn = pool.connect()
    conn.detach()
    conn.close()
    assert {name for name, _ in heard} == set(names)
    assert [name for name, _ in heard][:3] == ["first_connect", "connect", "checkout"]
    assert {thread for _, thread in heard} == {threading.get_ident()}  # listeners run in the borrower's thread


def test_disconnection_error_at_checkout_tries_again(kind: Kind, maker: Maker) -> None:
    pool = kind(maker, pool_size=1)
    pool.connect().close()

    @event.listens_for(pool, "checkout")
    def refuse_the_first(conn: Any, record: Any, proxy: Any) -> None:
        if conn is maker.made[0]:
            raise exc.DisconnectionError

    with closing(pool.connect()) as conn:
        assert conn.dbapi_connection is maker.made[1]
    assert not is_open(maker.made[0])


def test_failed_checkout_loses_no_slot(kind: Kind, maker: Maker) -> None:
    pool = kind(maker, pool_size=1, max_overflow=0, timeout=0.5)

    def fail(*args: object) -> None:
        raise ZeroDivisionError

    event.listen(pool, "checkout", fail)
    for _ in range(3):
        with pytest.raises(ZeroDivisionError):
            pool.connect()
    event.remove(pool, "checkout", fail)
    pool.connect().close()


def test_echo_logs_as_sqlalchemy_pool(kind: Kind, maker: Maker, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "sqlalchemy.pool"):
        pool = kind(maker, logging_name="mine")
        pool.connect().close()
    texts = [r.getMessage() for r in caplog.records if r.name.startswith("sqlalchemy.pool.") and "mine" in r.name]
    assert any("checked out" in text for text in texts)
    assert any("returned to pool" in text for text in texts)


def test_echo_pool_of_the_engine(
    engines: Callable[..., sqlalchemy.Engine], capsys: pytest.CaptureFixture[str]
) -> None:
    with engines(echo_pool="debug", pool_logging_name="echoing").connect():
        pass
    assert "checked out" in capsys.readouterr().out
    logging.getLogger("sqlalchemy").handlers.clear()


# -- engines, on PostgreSQL ------------------------------------------------------------------


def test_engine_with_all_settings(engines: Callable[..., sqlalchemy.Engine]) -> None:
    engine = engines(
        pool_size=2, max_overflow=1, pool_timeout=0.2, pool_recycle=60, pool_pre_ping=True, pool_use_lifo=True,
        pool_reset_on_return="rollback",
    )  # fmt: skip
    with engine.begin() as conn:
        conn.execute(sqlalchemy.text("CREATE TEMP TABLE t (n int)"))
        conn.execute(sqlalchemy.text("INSERT INTO t VALUES (1)"))
    with engine.connect() as conn:
        assert conn.execute(sqlalchemy.text("SELECT n FROM t")).all() == [(1,)]
    conns = [engine.connect() for _ in range(3)]
    with pytest.raises(exc.TimeoutError):
        engine.connect()
    for conn in conns:
        conn.close()


def test_creator(kind: Kind, postgres: PostgresServer) -> None:
    engine = sqlalchemy.create_engine("postgresql+psycopg://", creator=postgres.connect, poolclass=kind)
    with engine.connect() as conn:
        assert backend(conn)
    engine.dispose()


def test_pre_ping_after_a_restart(
    kind: Kind, private_postgres: PostgresServer
) -> None:
    for make in _engines(kind, private_postgres):
        engine = make(pool_size=3, pool_pre_ping=True)
        for conn in [engine.connect() for _ in range(3)]:
            conn.close()
        private_postgres.restart()
        for _ in range(6):
            with engine.connect() as conn:
                assert backend(conn)


def test_disconnect_invalidates_all(engines: Callable[..., sqlalchemy.Engine], postgres: PostgresServer) -> None:
    engine = engines(pool_size=3)
    conns = [engine.connect() for _ in range(3)]
    pids = list(map(backend, conns))
    for conn in conns[1:]:
        conn.close()
    kill(postgres, *pids)
    with conns[0] as conn, pytest.raises(exc.DBAPIError) as caught:
        backend(conn)
    assert caught.value.connection_invalidated
    for _ in range(4):  # one error for all of them
        with engine.connect() as conn:
            assert backend(conn) not in pids


def test_engine_can_be_used_after_dispose(engines: Callable[..., sqlalchemy.Engine]) -> None:
    engine = engines(pool_size=2)
    with engine.connect() as conn:
        first = backend(conn)
    before = engine.pool
    engine.dispose()
    assert engine.pool is not before
    with engine.connect() as conn:
        assert backend(conn) != first


def test_engine_dispose_without_close(engines: Callable[..., sqlalchemy.Engine]) -> None:
    engine = engines(pool_size=1)
    with engine.connect() as conn:
        backend(conn)
    before = engine.pool
    engine.dispose(close=False)
    assert before.checkedin() == 1  # type: ignore[attr-defined]
    with engine.connect() as conn:
        assert backend(conn)
    before.dispose()


def test_sessions_of_the_orm(engines: Callable[..., sqlalchemy.Engine]) -> None:
    from sqlalchemy.orm import Session

    engine = engines(pool_size=1, max_overflow=0, pool_timeout=0.5)
    for _ in range(3):
        with Session(engine) as session:
            assert session.execute(sqlalchemy.text("SELECT 1")).scalar_one() == 1


# -- engines, on MySQL ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mariadb() -> Iterator[MariaDBServer]:
    needs_mariadb()
    with MariaDBServer() as server:
        yield server


def test_mysql(kind: Kind, mariadb: MariaDBServer) -> None:
    engine = sqlalchemy.create_engine(mariadb.url, poolclass=kind, pool_size=1, max_overflow=0, pool_pre_ping=True)
    with engine.begin() as conn:
        conn.exec_driver_sql("CREATE OR REPLACE TABLE kept (n int) ENGINE=InnoDB")
        conn.exec_driver_sql("INSERT INTO kept VALUES (1)")
    with engine.connect() as conn:
        conn.exec_driver_sql("INSERT INTO kept VALUES (2)")  # and rolled back on return
        first = conn.exec_driver_sql("SELECT connection_id()").scalar_one()
    with engine.connect() as conn:
        assert conn.exec_driver_sql("SELECT n FROM kept").all() == [(1,)]
        assert conn.exec_driver_sql("SELECT connection_id()").scalar_one() == first
    mariadb.kill()
    mariadb.start()
    with engine.connect() as conn:  # the ping fails, and the connection is replaced
        assert conn.exec_driver_sql("SELECT 1").scalar_one() == 1
    engine.dispose()


# -- only ours -----------------------------------------------------------------------


def test_waiters_are_served_in_order_of_arrival(maker: Maker) -> None:
    pool = Pool(maker, pool_size=1, max_overflow=0)
    first = pool.connect()
    order: list[int] = []

    def borrow(number: int) -> None:
        with closing(pool.connect()):
            order.append(number)

    threads = []
    for number in range(5):
        threads.append(threading.Thread(target=borrow, args=[number]))
        threads[-1].start()
        deadline = time.monotonic() + PATIENCE
        while pool.core.stats()["waiting"] <= number:
            assert time.monotonic() < deadline
    first.close()
    for thread in threads:
        thread.join(PATIENCE)
    assert order == [0, 1, 2, 3, 4]


def test_timeout_names_the_holders(maker: Maker) -> None:
    pool = Pool(maker, pool_size=1, max_overflow=0, timeout=0.05)
    with closing(pool.connect()):
        with pytest.raises(exc.TimeoutError, match=r"test_sqlalchemy\.py:\d+ test_timeout_names_the_holders"):
            pool.connect()
        assert pool.holders()[0].function == "test_timeout_names_the_holders"
    assert pool.metrics.snapshot().timeouts == 1


def test_any_negative_max_overflow_means_no_limit(maker: Maker) -> None:
    pool = Pool(maker, pool_size=1, max_overflow=-5, timeout=0.05)
    conns = [pool.connect() for _ in range(20)]
    for conn in conns:
        conn.close()
    assert maker.open() == 1


def test_thread_that_ended_with_a_connection_is_named(maker: Maker) -> None:
    pool = Pool(maker, pool_size=1, max_overflow=0, timeout=0.05)
    pool.connect().close()
    kept: list[Any] = []
    thread = threading.Thread(target=lambda: kept.append(pool.connect()), name="importer")
    thread.start()
    thread.join()
    with pytest.raises(exc.TimeoutError, match=r" in importer, ended \d+ s ago, for "):
        pool.connect()
    kept.pop().close()


def ended_by(port: int) -> int:
    """How many of this process's connections the server at the port has ended."""
    found = psutil.Process().net_connections()
    return sum(one.status == psutil.CONN_CLOSE_WAIT and one.raddr[1:] == (port,) for one in found)


def test_connection_that_a_mysql_server_ended_is_not_lent(mariadb: MariaDBServer) -> None:
    engine = sqlalchemy.create_engine(mariadb.url, poolclass=Pool, pool_size=3)
    conns = [engine.connect() for _ in range(3)]
    drivers: list[Any] = [conn.connection.driver_connection for conn in conns]
    for conn in conns:
        conn.close()
    with engine.connect() as admin:
        kept = admin.connection.driver_connection
        for driver in drivers:
            if driver is not kept:
                admin.exec_driver_sql(f"KILL {driver.thread_id()}")
    end = time.monotonic() + PATIENCE
    while ended_by(mariadb.port) < 2:
        assert time.monotonic() < end
        time.sleep(0.01)
    for _ in range(2):
        conns = [engine.connect() for _ in range(3)]
        assert [conn.exec_driver_sql("SELECT 1").scalar() for conn in conns] == [1, 1, 1]
        for conn in conns:
            conn.close()
    raw = [engine.raw_connection() for _ in range(3)]
    assert kept in [conn.driver_connection for conn in raw]
    for one in raw:
        one.close()
    engine.dispose()


def test_idle_connections_are_closed_when_dispose_returns(postgres: PostgresServer) -> None:
    engine = sqlalchemy.create_engine("postgresql+psycopg://", creator=postgres.connect, poolclass=Pool, pool_size=4)
    conns = [engine.raw_connection() for _ in range(4)]
    drivers: list[Any] = [conn.driver_connection for conn in conns]
    for conn in conns:
        conn.close()
    engine.dispose()
    assert all(driver.closed for driver in drivers)


def test_dropped_pool_is_collected(maker: Maker) -> None:
    pool = Pool(maker, pool_size=2)
    pool.connect().close()
    gone = __import__("weakref").ref(pool.core)
    del pool
    gc.collect()
    assert gone() is None


def test_connection_in_use_at_dispose_is_closed_when_released(maker: Maker) -> None:
    pool = Pool(maker)
    conn = pool.connect()
    pool.dispose()
    conn.close()
    assert not is_open(maker.made[0])


@pytest.mark.parametrize(
    ("options", "error"),
    [({"pool_size": -1}, ValueError), ({"max_overflow": 1.5}, TypeError), ({"pool_size": "5"}, TypeError)],
)
def test_bad_arguments(maker: Maker, options: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error, match=next(iter(options))):
        Pool(maker, **options)


FORKING = """
import os, sys
import pooling
import sqlalchemy
from pooling.adapters.sqlalchemy import Pool

engine = sqlalchemy.create_engine(sys.argv[1], poolclass=Pool, pool_size=2, max_overflow=0, pool_timeout=10)
pid = "SELECT pg_backend_pid()"
with engine.connect() as conn:
    mine = conn.exec_driver_sql(pid).scalar_one()
out = engine.connect()
held = out.exec_driver_sql(pid).scalar_one()
child = os.fork()
if child == 0:
    with engine.connect() as one, engine.connect() as two:
        pids = {one.exec_driver_sql(pid).scalar_one(), two.exec_driver_sql(pid).scalar_one()}
    assert not pids & {mine, held}, pids
    try:
        out.exec_driver_sql(pid)
    except sqlalchemy.exc.StatementError as error:
        assert isinstance(error.orig, pooling.LeaseError), error
    else:
        raise AssertionError("the parent's connection was used")
    print("child ok", flush=True)
    sys.exit()
assert os.waitpid(child, 0)[1] == 0
assert out.exec_driver_sql(pid).scalar_one() == held
out.close()
with engine.connect() as conn:
    assert conn.exec_driver_sql(pid).scalar_one() in (mine, held)
print("parent ok", flush=True)
engine.dispose()
"""


def test_fork(postgres: PostgresServer) -> None:
    url = postgres.dsn.replace("postgresql://", "postgresql+psycopg://")
    run = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", FORKING, url],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert (run.returncode, run.stdout, run.stderr) == (0, "child ok\nparent ok\n", "")


# -- DBAPIAdapter: our pool of any driver's connections -------------------------------------------


def test_any_driver_sqlite(tmp_path: Path) -> None:
    path = tmp_path / "any.db"
    adapter = DBAPIAdapter(lambda: sqlite3.connect(path, check_same_thread=False), enforces_timeouts=True)
    with CorePool(adapter=adapter, settings=PoolSettings(min_size=0, max_size=1)) as pool:
        with pool.acquire() as conn:
            conn.execute("CREATE TABLE t (n int)")
            conn.execute("INSERT INTO t VALUES (1)")
            conn.commit()
            conn.execute("INSERT INTO t VALUES (2)")  # not committed
        with pool.acquire() as same:
            assert same is conn
            assert same.execute("SELECT n FROM t").fetchall() == [(1,)]
        pool.check()
        assert pool.stats()["idle"] == 1


@pytest.mark.parametrize("enforces_timeouts", [False, True])
def test_any_driver_postgres(postgres: PostgresServer, enforces_timeouts: bool) -> None:
    settings = PoolSettings(min_size=0, max_size=1, validation_interval=0, acquire_timeout=PATIENCE)
    adapter = DBAPIAdapter(postgres.connect, query="SELECT 2", enforces_timeouts=enforces_timeouts)
    with CorePool(adapter=adapter, settings=settings) as pool:
        with pool.acquire() as conn:
            first = conn.info.backend_pid
            conn.execute("SELECT 1")
        with pool.acquire() as same:
            assert same is conn
            assert same.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
        kill(postgres, first)
        with pool.acquire() as conn:
            assert conn.info.backend_pid != first
            conn.execute("SELECT 1")


def test_any_driver_mysql(mariadb: MariaDBServer) -> None:
    settings = PoolSettings(min_size=0, max_size=2, validation_interval=0, acquire_timeout=PATIENCE)
    adapter = DBAPIAdapter(lambda: mariadb.connect(read_timeout=10, write_timeout=10), enforces_timeouts=True)
    with CorePool(adapter=adapter, settings=settings) as pool:
        with pool.acquire() as conn, closing(conn.cursor()) as cursor:
            cursor.execute("CREATE OR REPLACE TABLE pooled (n int) ENGINE=InnoDB")
            cursor.execute("INSERT INTO pooled VALUES (1)")  # not committed
        with pool.acquire() as same, closing(same.cursor()) as cursor:
            assert same is conn
            cursor.execute("SELECT n FROM pooled")
            assert cursor.fetchall() == ()
        mariadb.kill()
        mariadb.start()
        with pool.acquire() as other, closing(other.cursor()) as cursor:
            assert other is not conn
            cursor.execute("SELECT 1")
            assert cursor.fetchone() == (1,)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [(("dsn",), TypeError), ((sqlite3.connect, 5), TypeError), ((sqlite3.connect, " "), ValueError)],
)
def test_bad_arguments_of_the_adapter(arguments: tuple[Any, ...], error: type[Exception]) -> None:
    creator, *query = arguments
    with pytest.raises(error):
        DBAPIAdapter(creator, **({"query": query[0]} if query else {}))

"""What psycopg_pool's documentation promises, point by point, for the original and for our facade.

Every test runs against both, on a real server, and passes on both.
"""

from __future__ import annotations

import gc
import importlib
import inspect
import logging
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import psycopg
import psycopg_pool
import pytest
from psycopg.pq import TransactionStatus
from psycopg.rows import DictRow, dict_row

from pooling.compat import psycopg_pool as ours
from tests.integration.tools import in_thread, wait_until
from tests.servers import PostgresServer

PATIENCE = 30.0
UNREACHABLE = "postgresql://postgres@127.0.0.1:1/postgres?connect_timeout=2"

Make = Callable[..., Any]


@pytest.fixture(params=["psycopg_pool", "pooling.compat.psycopg_pool"])
def lib(request: pytest.FixtureRequest) -> ModuleType:
    """The original, then ours."""
    return importlib.import_module(request.param)


@pytest.fixture
def make(lib: ModuleType, postgres: PostgresServer) -> Iterator[Make]:
    """Create open pools, which are closed at the end."""
    pools = []

    def make(kind: str = "ConnectionPool", conninfo: Any = postgres.dsn, **options: Any) -> Any:
        options.setdefault("open", True)
        pool = getattr(lib, kind)(conninfo, **options)
        pools.append(pool)
        return pool

    yield make
    for pool in pools:
        pool.close()


def outcome(function: Callable[[], object]) -> object:
    """Return a function's result, or the class of its exception."""
    try:
        return function()
    except Exception as error:
        return type(error)


def pid(conn: psycopg.Connection[Any]) -> int:
    return conn.info.backend_pid


def kill(server: PostgresServer, backend: int) -> None:
    with server.connect(autocommit=True) as conn:
        conn.execute("SELECT pg_terminate_backend(%s)", [backend])
        wait_until(lambda: conn.execute("SELECT 1 FROM pg_stat_activity WHERE pid = %s", [backend]).rowcount == 0)


# -- opening, waiting, closing ------------------------------------------------------


def test_defaults(make: Make) -> None:
    pool = make()
    assert (pool.min_size, pool.max_size, pool.timeout, pool.max_waiting) == (4, 4, 30, 0)
    assert (pool.max_lifetime, pool.max_idle, pool.reconnect_timeout, pool.num_workers) == (3600, 600, 300, 3)
    assert pool.close_returns is False


def test_opens_in_the_background_and_wait_returns_when_ready(make: Make) -> None:
    pool = make(min_size=2)
    pool.wait(PATIENCE)
    assert pool.get_stats()["pool_available"] == 2


def test_not_open_until_opened(make: Make, lib: ModuleType) -> None:
    pool = make(open=False)
    assert pool.closed
    for call in (pool.getconn, pool.wait, lambda: pool.connection().__enter__()):
        with pytest.raises(lib.PoolClosed):
            call()
    pool.open(wait=True, timeout=PATIENCE)
    assert not pool.closed
    pool.open()  # again is fine
    pool.putconn(pool.getconn())


def test_a_closed_pool_cannot_be_reopened(make: Make, lib: ModuleType) -> None:
    pool = make()
    pool.close()
    pool.close()  # again is fine
    assert pool.closed
    with pytest.raises(lib.PoolClosed):
        pool.getconn()
    with pytest.raises(lib.PoolClosed):
        pool.open()


def test_context_manager_opens_and_closes(make: Make) -> None:
    pool = make(open=False)
    with pool as same:
        assert same is pool
        assert not pool.closed
        with pool.connection() as conn:
            conn.execute("SELECT 1")
    assert pool.closed


def test_implicit_open_is_deprecated(lib: ModuleType, postgres: PostgresServer) -> None:
    pool = lib.ConnectionPool(postgres.dsn, min_size=1)
    try:
        assert not pool.closed
        with pytest.warns(DeprecationWarning, match="open"):
            conn = pool.getconn()
        pool.putconn(conn)
        pool.putconn(pool.getconn())  # warns only once: another warning would be an error here
    finally:
        pool.close()


@pytest.mark.parametrize("use", ["connection", "getconn", "wait"])
@pytest.mark.parametrize("kind", [ours.ConnectionPool, ours.NullConnectionPool])
def test_implicit_open_warns_at_the_line_that_uses_it(kind: Any, use: str, postgres: PostgresServer) -> None:
    """Only for ours: the original's warning names its own file."""
    pool = kind(postgres.dsn, max_size=1, **({"min_size": 1} if kind is ours.ConnectionPool else {}))
    with pytest.warns(DeprecationWarning, match="open") as caught:
        if use == "connection":
            with pool.connection():
                pass
        elif use == "getconn":
            pool.putconn(pool.getconn())
        else:
            pool.wait()
    assert [warning.filename for warning in caught] == [__file__]
    pool.close()


@pytest.mark.parametrize("name", ["ConnectionPool", "NullConnectionPool"])
def test_signatures_are_the_originals(name: str) -> None:
    """In `help()`, in editors and to type checkers, too."""

    def arguments(lib: ModuleType) -> list[tuple[str, Any, Any]]:
        parameters = inspect.signature(getattr(lib, name)).parameters.values()
        return [(each.name, each.kind, each.default) for each in parameters]

    theirs = arguments(psycopg_pool)
    if not any(each[0] == "close_returns" for each in theirs):  # psycopg_pool < 3.3
        theirs.insert(10, ("close_returns", inspect.Parameter.KEYWORD_ONLY, False))
    assert arguments(ours) == theirs


def test_explicit_open_and_with_do_not_warn(lib: ModuleType, postgres: PostgresServer) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with lib.ConnectionPool(postgres.dsn, min_size=1) as pool:
            pool.putconn(pool.getconn())
        with lib.ConnectionPool(postgres.dsn, min_size=1, open=True) as pool:
            pool.putconn(pool.getconn())


def test_wait_that_times_out_closes_the_pool(make: Make, lib: ModuleType) -> None:
    pool = make(conninfo=UNREACHABLE, min_size=1)
    with pytest.raises(lib.PoolTimeout):
        pool.wait(0.3)
    assert pool.closed


def test_open_can_wait(make: Make, lib: ModuleType) -> None:
    with pytest.raises(lib.PoolTimeout):
        make(conninfo=UNREACHABLE, min_size=1, open=False).open(wait=True, timeout=0.3)


def test_close_fails_waiters_but_not_borrowers(make: Make, lib: ModuleType) -> None:
    pool = make(min_size=1)
    conn = pool.getconn()
    results: list[object] = []
    waiter = in_thread(lambda: results.append(outcome(pool.getconn)))
    wait_until(lambda: pool.get_stats()["requests_waiting"] == 1)
    in_thread(pool.close).join(PATIENCE)  # not by the borrower
    waiter.join(PATIENCE)
    assert results == [lib.PoolClosed]
    assert conn.execute("SELECT 1").fetchone() == (1,)
    conn.rollback()
    pool.putconn(conn)
    wait_until(lambda: conn.closed)


def test_close_closes_idle_connections(make: Make, postgres: PostgresServer) -> None:
    pool = make(min_size=2, kwargs={"application_name": "closes-idle"})
    pool.wait(PATIENCE)
    pool.close()
    with postgres.connect(autocommit=True) as conn:
        find = "SELECT 1 FROM pg_stat_activity WHERE application_name = 'closes-idle'"
        wait_until(lambda: conn.execute(find).rowcount == 0)


def test_collected_without_close(lib: ModuleType, postgres: PostgresServer) -> None:
    pool = lib.ConnectionPool(postgres.dsn, min_size=1, open=True, kwargs={"application_name": "collected"})
    pool.wait(PATIENCE)
    gone = weakref.ref(pool)
    del pool
    gc.collect()
    assert gone() is None
    with postgres.connect(autocommit=True) as conn:
        find = "SELECT 1 FROM pg_stat_activity WHERE application_name = 'collected'"
        wait_until(lambda: gc.collect() or conn.execute(find).rowcount == 0)


# -- arguments ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"min_size": -1},
        {"min_size": 2, "max_size": 1},
        {"min_size": 0},
        {"min_size": 0, "max_size": 0},
        {"num_workers": 0},
    ],
)
def test_bad_sizes_are_refused(make: Make, options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="size|workers"):
        make(**options)


def test_name(make: Make) -> None:
    assert make(name="orders").name == "orders"
    one, other = make(), make()
    assert one.name != other.name
    assert one.name.startswith("pool-")
    assert "'orders'" in repr(make(name="orders"))


def test_subscript_at_run_time(lib: ModuleType, postgres: PostgresServer) -> None:
    kind = lib.ConnectionPool[psycopg.Connection[DictRow]]
    options = {"min_size": 1, "open": False, "kwargs": {"row_factory": dict_row}}
    with kind(postgres.dsn, **options) as pool, pool.connection() as conn:
        assert conn.execute("SELECT 1 AS one").fetchone() == {"one": 1}


class Special(psycopg.Connection[Any]):
    """A user's own class."""


def test_connection_class_and_kwargs(make: Make) -> None:
    pool = make(min_size=1, connection_class=Special, kwargs={"autocommit": True, "application_name": "mine"})
    with pool.connection() as conn:
        assert isinstance(conn, Special)
        assert conn.autocommit
        assert conn.execute("SHOW application_name").fetchone() == ("mine",)
    assert pool.connection_class is Special
    assert pool.kwargs["application_name"] == "mine"


def test_conninfo_and_kwargs_may_be_callables(make: Make, postgres: PostgresServer) -> None:
    calls: list[str] = []

    def conninfo() -> str:
        calls.append("conninfo")
        return postgres.dsn

    def kwargs() -> dict[str, Any]:
        calls.append("kwargs")
        return {"application_name": "called"}

    pool = make(conninfo=conninfo, kwargs=kwargs, min_size=1)
    with pool.connection() as conn:
        assert conn.execute("SHOW application_name").fetchone() == ("called",)
    assert {"conninfo", "kwargs"} == set(calls)


def test_conninfo_from_the_environment(
    make: Make, postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGHOST", "127.0.0.1")
    monkeypatch.setenv("PGPORT", str(postgres.port))
    monkeypatch.setenv("PGUSER", "postgres")
    monkeypatch.setenv("DATABASE_URL", UNREACHABLE)
    with make(conninfo="", min_size=1).connection(PATIENCE) as conn:
        assert conn.info.port == postgres.port


# -- lending and returning --------------------------------------------------------------


def test_connection_commits(make: Make) -> None:
    pool = make(min_size=1)
    with pool.connection() as conn:
        conn.execute("CREATE TEMP TABLE kept (n int)")
    with pool.connection() as conn:
        assert conn.execute("SELECT count(*) FROM kept").fetchone() == (0,)
        assert pid(conn)


def test_connection_rolls_back(make: Make) -> None:
    pool = make(min_size=1)
    with pytest.raises(ZeroDivisionError), pool.connection() as conn:
        conn.execute("CREATE TEMP TABLE lost (n int)")
        raise ZeroDivisionError
    with pool.connection() as conn:
        assert conn.execute("SELECT to_regclass('lost')").fetchone() == (None,)


def test_a_dropped_block_is_reclaimed(make: Make) -> None:
    pool = make(min_size=1)
    block = pool.connection()
    block.__enter__()
    del block
    gc.collect()
    with pool.connection(PATIENCE) as conn:
        conn.execute("SELECT 1")


def test_getconn_and_putconn(make: Make) -> None:
    pool = make(min_size=1)
    conn = pool.getconn()
    assert conn.execute("SELECT 1").fetchone() == (1,)
    pool.putconn(conn)
    assert conn.info.transaction_status == TransactionStatus.IDLE  # rolled back
    assert pool.getconn() is conn
    pool.putconn(conn)


def test_rolling_back_is_logged(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    pool = make(min_size=1)
    conn = pool.getconn()
    conn.execute("SELECT 1")
    with caplog.at_level(logging.WARNING, "psycopg.pool"):
        pool.putconn(conn)
    assert [record.levelname for record in caplog.records if record.name == "psycopg.pool"] == ["WARNING"]


def test_returned_during_a_command(make: Make) -> None:
    pool = make(min_size=1)
    conn = pool.getconn()
    conn.pgconn.send_query(b"SELECT pg_sleep(30)")
    pool.putconn(conn)
    with pool.connection(PATIENCE) as other:
        assert other is not conn
    wait_until(lambda: conn.closed)


def test_foreign_connections_are_refused(make: Make, postgres: PostgresServer) -> None:
    pool, other = make(min_size=1), make(min_size=1)
    conn = other.getconn()
    with pytest.raises(ValueError):
        pool.putconn(conn)
    other.putconn(conn)
    with pytest.raises(ValueError):
        other.putconn(conn)  # twice
    with postgres.connect() as stranger, pytest.raises(ValueError):
        pool.putconn(stranger)


def test_timeout(make: Make, lib: ModuleType) -> None:
    pool = make(min_size=1, timeout=0.1)
    conn = pool.getconn(PATIENCE)
    for call in (pool.getconn, lambda: pool.getconn(timeout=0.05), lambda: pool.connection(0.05).__enter__()):
        with pytest.raises(lib.PoolTimeout):
            call()
    pool.putconn(conn)
    pool.putconn(pool.getconn(PATIENCE))  # it is not given to waiters that timed out


def test_errors_are_the_originals_and_operational(make: Make, lib: ModuleType) -> None:
    for name in ("PoolTimeout", "PoolClosed", "TooManyRequests"):
        assert issubclass(getattr(lib, name), getattr(psycopg_pool, name))
        assert issubclass(getattr(lib, name), psycopg.OperationalError)
    pool = make(min_size=1)
    conn = pool.getconn()
    with pytest.raises(psycopg_pool.PoolTimeout):
        pool.getconn(timeout=0.05)
    pool.putconn(conn)


def test_max_waiting(make: Make, lib: ModuleType) -> None:
    pool = make(min_size=1, max_waiting=1)
    conn = pool.getconn()
    got: list[Any] = []
    waiter = in_thread(lambda: got.append(pool.getconn()))
    wait_until(lambda: pool.get_stats()["requests_waiting"] == 1)
    with pytest.raises(lib.TooManyRequests):
        pool.getconn()
    pool.putconn(conn)
    waiter.join(PATIENCE)
    pool.putconn(got[0])
    pool.max_waiting = 0
    assert pool.max_waiting == 0


def test_first_come_first_served(make: Make) -> None:
    pool = make(min_size=1)
    conn = pool.getconn()
    order: list[int] = []

    def borrow(number: int) -> None:
        with pool.connection():
            order.append(number)

    threads = []
    for number in range(5):
        threads.append(in_thread(lambda number=number: borrow(number)))  # type: ignore[misc]
        wait_until(lambda number=number: pool.get_stats()["requests_waiting"] == number + 1)  # type: ignore[misc]
    pool.putconn(conn)
    for thread in threads:
        thread.join(PATIENCE)
    assert order == [0, 1, 2, 3, 4]


def test_grows_up_to_max_size(make: Make, lib: ModuleType) -> None:
    pool = make(min_size=1, max_size=3)
    conns = [pool.getconn() for _ in range(3)]
    assert len(set(map(pid, conns))) == 3
    with pytest.raises(lib.PoolTimeout):
        pool.getconn(timeout=0.05)
    for conn in conns:
        pool.putconn(conn)
    assert pool.get_stats()["pool_size"] == 3


def test_shrinks_to_min_size_after_max_idle(make: Make) -> None:
    pool = make(min_size=1, max_size=3, max_idle=0.2)
    conns = [pool.getconn() for _ in range(3)]
    for conn in conns:
        pool.putconn(conn)
    wait_until(lambda: pool.get_stats()["pool_size"] == 1)


def test_max_lifetime(make: Make) -> None:
    pool = make(min_size=1, max_lifetime=0.3)
    with pool.connection() as conn:
        first = pid(conn)
        time.sleep(0.35)
    with pool.connection() as conn:
        assert pid(conn) != first


def test_close_returns(make: Make, lib: ModuleType) -> None:
    pool = make(min_size=1, close_returns=True)
    conn = pool.getconn()
    conn.close()
    assert not conn.closed
    assert pool.getconn() is conn
    conn.close()
    pool.close()
    wait_until(lambda: conn.closed)


def test_close_without_close_returns_loses_the_connection(make: Make) -> None:
    pool = make(min_size=1)
    with pool.connection() as conn:
        conn.close()
        assert conn.closed
    with pool.connection(PATIENCE) as other:
        assert other is not conn
    assert pool.get_stats()["returns_bad"] == 1


# -- configure, check, reset ---------------------------------------------------------------


def test_configure(make: Make) -> None:
    calls: list[int] = []

    def configure(conn: psycopg.Connection[Any]) -> None:
        calls.append(pid(conn))
        with conn.transaction():
            conn.execute("SET application_name TO 'configured'")
        conn.row_factory = dict_row

    pool = make(min_size=1, configure=configure)
    for _ in range(2):
        with pool.connection() as conn:
            assert conn.execute("SHOW application_name").fetchone() == {"application_name": "configured"}
    assert len(calls) == 1


def test_configure_that_leaves_a_transaction(make: Make, lib: ModuleType) -> None:
    pool = make(min_size=1, configure=lambda conn: conn.execute("SELECT 1"))
    with pytest.raises(lib.PoolTimeout):
        pool.getconn(timeout=0.3)


def test_configure_that_fails(make: Make, lib: ModuleType) -> None:
    def configure(conn: psycopg.Connection[Any]) -> None:
        conn.execute("WAT")

    pool = make(min_size=1, configure=configure)
    with pytest.raises(lib.PoolTimeout):
        pool.getconn(timeout=0.3)


def test_reset(make: Make) -> None:
    calls: list[TransactionStatus] = []

    def reset(conn: psycopg.Connection[Any]) -> None:
        calls.append(conn.info.transaction_status)
        with conn.transaction():
            conn.execute("RESET ALL")

    pool = make(min_size=1, reset=reset)
    conn = pool.getconn()
    conn.execute("SET application_name TO 'dirty'")
    conn.commit()
    conn.execute("SELECT 1")
    pool.putconn(conn)
    with pool.connection() as same:
        assert same is conn
        assert same.execute("SHOW application_name").fetchone() != ("dirty",)
    wait_until(lambda: len(calls) == 2)
    assert set(calls) == {TransactionStatus.IDLE}  # the pool rolls back first


@pytest.mark.parametrize("statement", ["SELECT 1", "WAT"])
def test_reset_that_fails_or_leaves_a_transaction(make: Make, statement: str) -> None:
    pool = make(min_size=1, reset=lambda conn: conn.execute(statement))
    with pool.connection() as conn:
        pass
    with pool.connection(PATIENCE) as other:
        assert other is not conn
    wait_until(lambda: conn.closed)


def test_check_is_called_for_each_request(make: Make) -> None:
    calls: list[int] = []
    pool = make(min_size=1, check=lambda conn: calls.append(pid(conn)))
    pool.wait(PATIENCE)
    for _ in range(3):
        with pool.connection():
            pass
    assert len(calls) == 3


def test_check_connection_replaces_dead_ones(make: Make, lib: ModuleType, postgres: PostgresServer) -> None:
    pool = make(min_size=1, check=lib.ConnectionPool.check_connection)
    with pool.connection() as conn:
        first = pid(conn)
    kill(postgres, first)
    with pool.connection(PATIENCE) as conn:
        assert pid(conn) != first
        conn.execute("SELECT 1")
    assert pool.get_stats()["connections_lost"] == 1


def test_check_connection_as_a_function(lib: ModuleType, postgres: PostgresServer) -> None:
    conn = postgres.connect()
    lib.ConnectionPool.check_connection(conn)
    assert conn.info.transaction_status == TransactionStatus.IDLE
    assert not conn.autocommit
    kill(postgres, pid(conn))
    with pytest.raises(psycopg.OperationalError):
        lib.ConnectionPool.check_connection(conn)
    conn.close()


def test_check_of_the_pool(make: Make, postgres: PostgresServer) -> None:
    pool = make(min_size=3)
    pool.wait(PATIENCE)
    conns = [pool.getconn() for _ in range(3)]
    pids = list(map(pid, conns))
    for conn in conns:
        pool.putconn(conn)
    kill(postgres, pids[1])
    pool.check()
    pool.wait(PATIENCE)
    wait_until(lambda: pool.get_stats()["pool_available"] == 3)
    conns = [pool.getconn() for _ in range(3)]
    now = set(map(pid, conns))
    for conn in conns:
        pool.putconn(conn)
    assert pids[1] not in now
    assert pool.get_stats()["connections_lost"] == 1


# -- control --------------------------------------------------------------------------------


def test_resize(make: Make, lib: ModuleType) -> None:
    pool = make(min_size=1)
    pool.resize(2, 4)
    assert (pool.min_size, pool.max_size) == (2, 4)
    pool.wait(PATIENCE)
    conns = [pool.getconn() for _ in range(4)]
    for conn in conns:
        pool.putconn(conn)
    pool.resize(1)
    assert (pool.min_size, pool.max_size) == (1, 1)
    for sizes in ((-1,), (2, 1), (0,)):
        with pytest.raises(ValueError):
            pool.resize(*sizes)


def test_drain(make: Make) -> None:
    pool = make(min_size=2, max_size=2)
    pool.wait(PATIENCE)
    out = pool.getconn()
    with pool.connection() as conn:
        idle = conn
    pool.drain()
    wait_until(lambda: idle.closed)
    assert not out.closed
    pool.putconn(out)
    wait_until(lambda: out.closed)
    wait_until(lambda: pool.get_stats()["pool_available"] == 2)
    with pool.connection() as conn:
        assert conn not in (idle, out)


# -- outages ----------------------------------------------------------------------------------


def test_reconnect_failed(make: Make) -> None:
    told: list[Any] = []
    failed = threading.Event()

    def reconnect_failed(pool: Any) -> None:
        told.append(pool)
        failed.set()

    pool = make(conninfo=UNREACHABLE, min_size=1, reconnect_timeout=0.3, reconnect_failed=reconnect_failed)
    assert failed.wait(PATIENCE)
    assert told[0] is pool


def test_connects_when_the_server_starts_later(make: Make, private_postgres: PostgresServer) -> None:
    private_postgres.stop()
    pool = make(conninfo=private_postgres.dsn, min_size=1)
    wait_until(lambda: pool.get_stats().get("connections_errors", 0) >= 1)
    private_postgres.start()
    with pool.connection(PATIENCE) as conn:
        conn.execute("SELECT 1")


def test_connecting_that_fails_is_logged(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "psycopg.pool"):
        make(conninfo=UNREACHABLE, min_size=1, name="lost")
        wait_until(lambda: any(r.name == "psycopg.pool" and "lost" in r.getMessage() for r in caplog.records))


# -- statistics ---------------------------------------------------------------------------------


def test_get_stats(make: Make) -> None:
    pool = make(min_size=1, max_size=2)
    pool.wait(PATIENCE)
    with pool.connection():
        stats = pool.get_stats()
        assert (stats["pool_min"], stats["pool_max"], stats["pool_available"]) == (1, 2, 0)
        time.sleep(0.02)
    one, other = pool.getconn(), pool.getconn()
    with pytest.raises(psycopg_pool.PoolTimeout):
        pool.getconn(timeout=0.05)
    for conn in (one, other):
        pool.putconn(conn)
    stats = pool.get_stats()
    assert stats["requests_num"] == 4
    assert stats["requests_errors"] == 1
    assert stats["requests_queued"] == 2  # for the second connection, without success
    assert stats["requests_wait_ms"] >= 50
    assert stats["usage_ms"] >= 20
    assert stats["connections_num"] == 2
    assert stats["connections_ms"] >= 0
    assert (stats["pool_size"], stats["pool_available"], stats["requests_waiting"]) == (2, 2, 0)
    assert not any(stats.get(name) for name in ("returns_bad", "connections_errors", "connections_lost"))
    assert all(isinstance(number, int) for number in stats.values())


def test_pop_stats(make: Make) -> None:
    pool = make(min_size=1)
    pool.wait(PATIENCE)
    for _ in range(3):
        with pool.connection():
            pass
    assert pool.pop_stats()["requests_num"] == 3
    with pool.connection():
        pass
    stats = pool.pop_stats()
    assert stats["requests_num"] == 1
    assert stats["pool_size"] == 1  # gauges are not reset
    assert not pool.get_stats().get("requests_num")


def test_failed_connections_are_counted(make: Make) -> None:
    pool = make(conninfo=UNREACHABLE, min_size=1)
    wait_until(lambda: pool.get_stats().get("connections_errors", 0) >= 1)
    stats = pool.get_stats()
    assert stats["connections_num"] >= stats["connections_errors"]


# -- the null pool -------------------------------------------------------------------------------


def test_null_pool_keeps_no_connection(make: Make) -> None:
    pool = make("NullConnectionPool", max_size=1)
    assert (pool.min_size, pool.max_size) == (0, 1)
    with pool.connection() as conn:
        first = pid(conn)
    wait_until(lambda: conn.closed)
    with pool.connection() as conn:
        assert pid(conn) != first
    wait_until(lambda: pool.get_stats()["pool_size"] == 0)


def test_null_pool_hands_connections_to_waiters(make: Make) -> None:
    pool = make("NullConnectionPool", max_size=1)
    conn = pool.getconn()
    got: list[Any] = []
    waiter = in_thread(lambda: got.append(pool.getconn()))
    wait_until(lambda: pool.get_stats()["requests_waiting"] == 1)
    pool.putconn(conn)
    waiter.join(PATIENCE)
    assert got == [conn]
    pool.putconn(conn)


def test_null_pool_is_bounded(make: Make, lib: ModuleType) -> None:
    pool = make("NullConnectionPool", max_size=2, max_waiting=1, timeout=0.05)
    conns = [pool.getconn(PATIENCE) for _ in range(2)]
    with pytest.raises(lib.PoolTimeout):
        pool.getconn()
    for conn in conns:
        pool.putconn(conn)


@pytest.mark.parametrize("size", [None, 0])
def test_null_pool_without_a_limit(make: Make, size: int | None) -> None:
    pool = make("NullConnectionPool", max_size=size)
    assert pool.max_size == 0
    conns = [pool.getconn(PATIENCE) for _ in range(6)]
    for conn in conns:
        pool.putconn(conn)


def test_null_pool_waits_and_checks(make: Make, lib: ModuleType) -> None:
    pool = make("NullConnectionPool", max_size=1)
    pool.wait(PATIENCE)
    pool.check()
    pool.resize(0, 2)
    assert pool.max_size == 2
    wait_until(lambda: pool.get_stats()["pool_available"] == 0)
    with pytest.raises(ValueError):
        pool.resize(1, 2)
    lost = make("NullConnectionPool", conninfo=UNREACHABLE)
    with pytest.raises(lib.PoolTimeout):
        lost.wait(0.3)
    assert lost.closed


def test_null_pool_refuses_a_min_size(make: Make) -> None:
    with pytest.raises(ValueError, match="min_size"):
        make("NullConnectionPool", min_size=1)


def test_null_pool_resets_connections_for_waiters(make: Make) -> None:
    calls: list[int] = []
    pool = make(
        "NullConnectionPool", max_size=1, reset=lambda conn: calls.append(2), configure=lambda conn: calls.append(1)
    )
    conn = pool.getconn()
    waiter = in_thread(lambda: pool.putconn(pool.getconn()))
    wait_until(lambda: pool.get_stats()["requests_waiting"] == 1)
    pool.putconn(conn)
    waiter.join(PATIENCE)
    assert calls[:2] == [1, 2]


# -- details that programs rely on ----------------------------------------------------


def test_messages_of_a_pool_that_is_not_open(make: Make, lib: ModuleType) -> None:
    pool = make(open=False)
    with pytest.raises(lib.PoolClosed, match="is not open yet"):
        pool.getconn()
    pool.open()
    pool.close()
    with pytest.raises(lib.PoolClosed, match="is already closed"):
        pool.getconn()
    with pytest.raises(lib.PoolClosed, match="cannot be reused"):
        pool.open()


def test_open_does_not_suppress_the_implicit_open_warning(lib: ModuleType, postgres: PostgresServer) -> None:
    pool = lib.ConnectionPool(postgres.dsn, min_size=1)
    pool.open()
    with pytest.warns(DeprecationWarning, match="open"):
        pool.wait(PATIENCE)
    pool.close()


@pytest.mark.parametrize("kind", ["ConnectionPool", "NullConnectionPool"])
def test_check_is_called_for_a_new_connection(make: Make, kind: str) -> None:
    checked: list[int] = []
    pool = make(kind, min_size=0, max_size=1, check=lambda conn: checked.append(pid(conn)))
    with pool.connection(PATIENCE) as conn:
        assert pid(conn) in checked or kind == "NullConnectionPool"
    assert checked


def test_check_that_always_fails(make: Make, lib: ModuleType) -> None:
    def check(conn: psycopg.Connection[Any]) -> None:
        raise RuntimeError("no good")

    pool = make(min_size=1, check=check)
    pool.wait(PATIENCE)
    with pytest.raises(lib.PoolTimeout):
        pool.getconn(0.5)
    assert pool.get_stats()["connections_num"] < 50


def test_a_reset_that_fails_is_logged_with_the_status(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, logger="psycopg.pool")
    pool = make(min_size=1, reset=lambda conn: conn.execute("SELECT 1"))
    pool.putconn(pool.getconn(PATIENCE))
    pool.putconn(pool.getconn(PATIENCE))
    assert "error resetting connection" in messages(caplog)[0]
    assert "INTRANS" in messages(caplog)[0]


def messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if record.name == "psycopg.pool"]  # its status at that time


@pytest.mark.parametrize("kind", ["ConnectionPool", "NullConnectionPool"])
def test_a_connection_returned_during_a_command_is_logged_before_and_after_its_close(
    make: Make, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, logger="psycopg.pool")
    pool = make(kind, min_size=1 if kind == "ConnectionPool" else 0, max_size=1)
    conn = pool.getconn(PATIENCE)
    waiting = in_thread(lambda: pool.putconn(pool.getconn(PATIENCE)))
    wait_until(lambda: pool.get_stats()["requests_waiting"] == 1)
    conn.pgconn.exec_(b"COPY (SELECT 1) TO STDOUT")
    pool.putconn(conn)
    waiting.join()
    assert ["ACTIVE" in text for text in messages(caplog)] == [True, False]
    assert "BAD" in messages(caplog)[1]


def test_an_overridden_rollback_is_called_and_may_fail(
    make: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, logger="psycopg.pool")
    pool = make(min_size=1)
    conn = pool.getconn(PATIENCE)
    backend, original = pid(conn), conn.rollback

    def rollback() -> None:
        conn.pgconn.finish()
        original()

    conn.execute("SELECT 1")
    monkeypatch.setattr(conn, "rollback", rollback)
    pool.putconn(conn)
    again = pool.getconn(PATIENCE)
    assert pid(again) != backend
    pool.putconn(again)
    for text, word in zip(messages(caplog), ["INTRANS", "OperationalError", "BAD"], strict=True):
        assert word in text


def test_check_of_the_pool_logs_what_it_discards(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, logger="psycopg.pool")
    pool = make(min_size=2)
    pool.wait(PATIENCE)
    with pool.connection() as conn:
        pass
    wait_until(lambda: pool.get_stats()["pool_available"] == 2)
    conn.close()
    pool.check()
    assert len(messages(caplog)) == 1
    assert "broken" in messages(caplog)[0]
    pool.wait(PATIENCE)


class Returning(psycopg.Connection[Any]):
    """Returns to the pool when it is closed, as in programs for psycopg_pool < 3.3."""

    def close(self) -> None:
        pool = getattr(self, "_pool", None)
        if pool:
            pool.putconn(self)
        else:
            super().close()


def test_a_class_whose_close_returns_the_connection(make: Make) -> None:
    pool = make(min_size=1, connection_class=Returning)
    conn = pool.getconn(PATIENCE)
    conn.close()
    assert not conn.closed
    wait_until(lambda: pool.get_stats()["pool_available"] == 1)
    pool.close()
    assert conn.closed


def test_hooks_may_use_a_connection_in_a_with_statement(make: Make) -> None:
    def hook(conn: psycopg.Connection[Any]) -> None:
        with conn:
            conn.execute("SELECT 1")

    pool = make(min_size=1, configure=hook, reset=hook)
    backends = set()
    for _ in range(3):
        with pool.connection(PATIENCE) as conn:
            backends.add(pid(conn))
    assert len(backends) == 1


def test_reconnect_failed_is_called_again_while_the_server_is_away(make: Make) -> None:
    called: list[object] = []
    pool = make(conninfo=UNREACHABLE, min_size=1, reconnect_timeout=0.5, reconnect_failed=called.append)
    wait_until(lambda: len(called) == 1)
    with pytest.raises(Exception):  # noqa: B017  # who asks again makes the original try again
        pool.getconn(0.2)
    wait_until(lambda: len(called) == 2)
    assert called == [pool, pool]


def test_null_pool_closes_connections_before_putconn_returns(make: Make) -> None:
    resets: list[object] = []
    pool = make("NullConnectionPool", reset=resets.append)
    with pool.connection(PATIENCE) as conn:
        pass
    assert conn.closed
    conn = pool.getconn(PATIENCE)
    pool.putconn(conn)
    assert conn.closed
    assert resets == []  # must not be lent


def test_null_pool_counts_requests_that_wait_for_a_release(make: Make) -> None:
    pool = make("NullConnectionPool", max_size=1)
    pool.wait(PATIENCE)
    stats = pool.get_stats()
    assert (stats["pool_size"], stats["pool_available"], stats["connections_num"]) == (0, 0, 1)
    assert stats.get("requests_num", 0) == 0
    conn = pool.getconn(PATIENCE)
    waiting = in_thread(lambda: pool.putconn(pool.getconn(PATIENCE)))
    wait_until(lambda: pool.get_stats()["requests_waiting"] == 1)
    time.sleep(0.05)
    pool.putconn(conn)
    waiting.join()
    stats = pool.get_stats()
    assert (stats["requests_num"], stats["requests_queued"]) == (2, 1)
    assert stats["requests_wait_ms"] >= 50


@pytest.mark.parametrize("workers", [1, 3])
def test_num_workers_connections_are_created_at_once(make: Make, workers: int) -> None:
    lock, now, most = threading.Lock(), 0, 0

    def configure(conn: psycopg.Connection[Any]) -> None:
        nonlocal now, most
        with lock:
            now += 1
            most = max(now, most)
        time.sleep(0.05)
        with lock:
            now -= 1

    pool = make(min_size=6, num_workers=workers, configure=configure)
    pool.wait(PATIENCE)
    assert most <= workers


def test_requests_refused_by_a_null_pool_do_not_count_as_queued(postgres: PostgresServer) -> None:
    with ours.NullConnectionPool(postgres.dsn, max_size=1, max_waiting=1, open=True, timeout=10) as pool:
        waiting = threading.Thread(target=lambda: pool.putconn(pool.getconn()))
        with pool.connection():
            waiting.start()
            while not pool.get_stats()["requests_waiting"]:
                time.sleep(0.001)
            with pytest.raises(ours.TooManyRequests):
                pool.getconn()
        waiting.join()
        assert pool.get_stats()["requests_queued"] == 1

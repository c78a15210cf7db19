"""Where the drop-in for psycopg_pool does more than the original, or differs on purpose."""

from __future__ import annotations

import gc
import logging
import sys
import threading
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from pooling.compat.psycopg_pool import ConnectionPool, NullConnectionPool, PoolTimeout
from tests.integration.tools import in_thread, wait_until
from tests.servers import PostgresServer

PATIENCE = 30.0


@pytest.fixture
def pool(postgres: PostgresServer) -> Iterator[ConnectionPool[Any]]:
    with ConnectionPool(postgres.dsn, min_size=1, open=False) as pool:
        pool.wait(PATIENCE)
        yield pool


# -- dropped connections ------------------------------------------------------------


@pytest.mark.parametrize("close_returns", [False, True])
@pytest.mark.parametrize("kind", [ConnectionPool, NullConnectionPool])
@pytest.mark.skipif(tuple(map(int, psycopg.__version__.split(".")[:2])) < (3, 3), reason="close_returns")
def test_an_unreturned_connection_is_reported_and_its_slot_freed(
    kind: Any, close_returns: bool, postgres: PostgresServer, caplog: pytest.LogCaptureFixture
) -> None:
    least = 1 if kind is ConnectionPool else 0
    with kind(postgres.dsn, max_size=1, min_size=least, open=False, close_returns=close_returns) as pool:
        conn = pool.getconn(PATIENCE)
        line = sys._getframe().f_lineno - 1
        backend = conn.info.backend_pid
        conn.execute("SELECT 1")  # it is in a transaction
        conn = conn.cursor()  # which refers to it
        gc.collect()
        with pytest.raises(PoolTimeout):
            pool.getconn(0.01)
        del conn
        again = pool.getconn(PATIENCE)
        assert again.info.backend_pid != backend
        pool.putconn(again)
        (warning,) = [r.getMessage() for r in caplog.records if "dropped" in r.getMessage()]
        assert f"{__file__}:{line} test_an_unreturned_connection" in warning
    with postgres.connect(autocommit=True) as conn:
        find = "SELECT 1 FROM pg_stat_activity WHERE pid = %s"
        wait_until(lambda: conn.execute(find, [backend]).rowcount == 0)


def test_a_connection_dropped_in_a_cycle_is_found_while_a_thread_waits(pool: ConnectionPool[Any]) -> None:
    cycle: list[Any] = [pool.getconn()]
    cycle.append(cycle)
    gc.disable()
    try:
        del cycle
        gc.enable()
        pool.putconn(pool.getconn(PATIENCE))
    finally:
        gc.enable()


def test_a_thread_local_connection_is_reclaimed_when_its_thread_ends(pool: ConnectionPool[Any]) -> None:
    mine = threading.local()

    def work() -> None:
        mine.conn = pool.getconn()

    in_thread(work).join()
    pool.putconn(pool.getconn(PATIENCE))


def test_a_thread_that_ended_while_holding_a_connection_is_named(pool: ConnectionPool[Any]) -> None:
    pool.putconn(pool.getconn())  # so that it is acquired without waiting
    kept: list[Any] = []
    thread = threading.Thread(target=lambda: kept.append(pool.getconn()), name="importer")
    thread.start()
    thread.join()
    with pytest.raises(PoolTimeout, match=r" in importer, ended \d+ s ago, for "):
        pool.getconn(0.01)
    pool.putconn(kept.pop())


def test_the_connection_returned_is_the_original(postgres: PostgresServer) -> None:
    """While a connection is lent, the pool keeps a stand-in for it; hooks get the real one."""
    seen: list[int] = []
    with ConnectionPool(postgres.dsn, min_size=1, open=False, reset=lambda conn: seen.append(id(conn))) as pool:
        conn = pool.getconn(PATIENCE)
        conn.row_factory = psycopg.rows.dict_row
        pool.putconn(conn)
        with pytest.raises(ValueError, match="cannot return a connection that this pool has not lent"):
            pool.putconn(conn)
        with pool.connection() as same:
            assert same is conn and same.row_factory is psycopg.rows.tuple_row
        assert seen == [id(conn)] * 2
        del conn, same
        assert pool.get_stats()["pool_available"] == 1


class Slotted(psycopg.Connection[Any]):
    """A class whose objects have more than a ``__dict__``."""

    __slots__ = ("tenant",)

    def close(self) -> None:
        self.tenant = None
        super().close()


def test_a_class_with_slots(postgres: PostgresServer, caplog: pytest.LogCaptureFixture) -> None:
    with ConnectionPool(postgres.dsn, min_size=1, open=False, connection_class=Slotted) as pool:
        conn = pool.getconn(PATIENCE)
        conn.tenant = "a"
        pool.putconn(conn)
        with pool.connection() as conn:
            assert conn.tenant == "a"
        del conn
        pool.getconn(PATIENCE)
        pool.putconn(pool.getconn(PATIENCE))
    assert any("dropped" in record.getMessage() for record in caplog.records)
    assert not [record for record in caplog.records if record.levelno > logging.WARNING]


# -- closing ------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [ConnectionPool, NullConnectionPool])
def test_putconn_to_a_closed_pool_closes_the_connection_before_it_returns(kind: Any, postgres: PostgresServer) -> None:
    for _ in range(20):
        pool = kind(postgres.dsn, max_size=3, min_size=0, open=True)
        given, dirty = pool.getconn(PATIENCE), pool.getconn(PATIENCE)
        with pool.connection(PATIENCE) as conn:
            pool.close()
            assert not (conn.closed or given.closed)
            dirty.execute("SELECT 1")
        assert conn.closed
        pool.putconn(given)
        assert given.closed
        pool.putconn(dirty)
        assert dirty.closed


def test_idle_connections_are_closed_when_close_returns(postgres: PostgresServer) -> None:
    for _ in range(20):
        pool: ConnectionPool[Any] = ConnectionPool(postgres.dsn, min_size=4, open=True)
        pool.wait(PATIENCE)
        conns = [pool.getconn() for _ in range(4)]
        for conn in conns:
            pool.putconn(conn)
        pool.close()
        assert all(conn.closed for conn in conns)

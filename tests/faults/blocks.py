"""A program that forks inside a block that holds a PostgreSQL connection; `test_fork_blocks` runs it.

``python -m tests.faults.blocks KIND HOW DSN``: KIND is a function below, HOW is
``hook`` (`os.fork`) or ``bare`` (C's ``fork``, as uWSGI does: no hook of
Python's runs).

A child leaves its copy of the block in each of the ways there are. The
transaction is the parent's: it must neither be committed nor rolled back, which
its number shows.
"""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, closing
from typing import Any

import psycopg

from pooling import LeaseError, Pool, PoolSettings, PostgresPool
from pooling.adapters.dbapi import DBAPIAdapter
from pooling.compat.psycopg_pool import ConnectionPool
from tests.faults.rest import let_others_come_to_rest

CHILDS_TIME = 15  # seconds until a child that is stuck is killed
SETTINGS = PoolSettings(min_size=0, max_size=2, acquire_timeout=10)
Lend = Callable[[], AbstractContextManager[Any]]
# How a connection is lent, and the error for a child that ends its copy of the block without an error.
Kind = tuple[Lend, type[Exception] | None]


def facade(dsn: str) -> Kind:
    pool: ConnectionPool[Any] = ConnectionPool(dsn, min_size=1, max_size=2, open=True)
    pool.wait(10)
    return pool.connection, None  # psycopg_pool logs nothing either


def facade_by_hand(dsn: str) -> Kind:
    pool: ConnectionPool[Any] = ConnectionPool(dsn, min_size=1, max_size=2, open=True)

    class ByHand:
        def __enter__(self) -> Any:
            self.conn, self.maker = pool.getconn(), os.getpid()
            return self.conn

        def __exit__(self, *problem: object) -> None:
            if os.getpid() == self.maker:
                self.conn.rollback()
            pool.putconn(self.conn)

    return ByHand, None


def postgres(dsn: str) -> Kind:
    return PostgresPool(dsn, SETTINGS).connection, LeaseError


def transaction(dsn: str) -> Kind:
    return PostgresPool(dsn, SETTINGS).transaction, LeaseError


def dbapi(dsn: str) -> Kind:
    return Pool(adapter=DBAPIAdapter(lambda: psycopg.connect(dsn)), settings=SETTINGS).acquire, None


def engine(dsn: str) -> Any:
    import sqlalchemy

    from pooling.adapters.sqlalchemy import Pool as EnginePool

    url = dsn.replace("postgresql://", "postgresql+psycopg://")
    return sqlalchemy.create_engine(url, poolclass=EnginePool, pool_size=2, max_overflow=0, pool_timeout=10)


def sqlalchemy(dsn: str) -> Kind:
    return engine(dsn).connect, None


def sqlalchemy_begin(dsn: str) -> Kind:
    return engine(dsn).begin, LeaseError


def sqlalchemy_raw(dsn: str) -> Kind:
    made = engine(dsn)
    return lambda: closing(made.raw_connection()), None


def ask(conn: Any, query: str) -> Any:
    """Execute a query that has one value."""
    if hasattr(conn, "exec_driver_sql"):
        return conn.exec_driver_sql(query).scalar_one()
    with closing(conn.cursor()) as cursor:
        cursor.execute(query)
        return cursor.fetchone()[0]


def leave_well(block: Any, refusal: type[Exception] | None) -> None:
    try:
        block.__exit__(None, None, None)
    except Exception as error:
        if refusal is None or not isinstance(error, refusal):
            raise
    else:
        assert refusal is None, "it said that all is well"


def leave_by_exit(block: Any, refusal: type[Exception] | None) -> None:
    ending = SystemExit()
    try:
        assert not block.__exit__(SystemExit, ending, None)
    except SystemExit as error:
        assert error is ending


def drop(block: Any, refusal: type[Exception] | None) -> None:
    """The caller has no other reference either."""


def fork(how: str) -> int:
    if how == "hook":
        return os.fork()
    let_others_come_to_rest()
    return int(ctypes.PyDLL(None).fork())


def in_child(held: list[Any], leave: Callable[..., None], lend: Lend, refusal: type[Exception] | None) -> None:
    signal.alarm(CHILDS_TIME)
    _, block = held
    held.clear()  # what the block holds and no other
    leave(block, refusal)
    del block
    gc.collect()
    with lend() as own:
        assert ask(own, "SELECT pg_backend_pid()") != backend, "the parent's connection was lent"


if __name__ == "__main__":
    signal.alarm(60)
    name, how, dsn = sys.argv[1:]
    lend, refusal = globals()[name](dsn)
    for leave in (leave_well, leave_by_exit, drop):
        block = lend()
        conn = block.__enter__()
        backend = ask(conn, "SELECT pg_backend_pid()")
        number = ask(conn, "SELECT pg_current_xact_id()::text")
        held = [conn, block]
        del conn, block
        child = fork(how)
        if child == 0:
            status = 1
            try:
                in_child(held, leave, lend, refusal)
                status = 0
            except BaseException:
                sys.excepthook(*sys.exc_info())
            sys.stderr.flush()
            os._exit(status)
        assert os.waitpid(child, 0)[1] == 0
        conn, block = held
        assert ask(conn, "SELECT pg_current_xact_id()::text") == number, f"the child has ended it: {leave.__name__}"
        assert ask(conn, "SELECT pg_backend_pid()") == backend
        block.__exit__(None, None, None)
    print("parent ok")

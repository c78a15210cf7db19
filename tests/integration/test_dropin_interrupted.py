"""The drop-in, and an exception at any of its lines: no slot is lost (P8)."""

from __future__ import annotations

import gc
import logging
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest

from pooling.compat import arguments, psycopg_pool
from pooling.compat.psycopg_pool import ConnectionPool, NullConnectionPool
from tests.servers import PostgresServer

FILES = {arguments.__file__, psycopg_pool.__file__}


class Strike(BaseException):
    pass


def struck(work: Callable[[], object], number: int) -> bool:
    """Do it, and raise at the line with that number; ``False`` if there are fewer lines."""
    seen = 0

    def line(frame: FrameType, event: str, arg: Any) -> Any:
        nonlocal seen
        if event == "line":
            seen += 1
            if seen == number:
                raise Strike
        return line

    sys.settrace(lambda frame, event, arg: line if frame.f_code.co_filename in FILES else None)
    try:
        work()
    except Strike:
        pass
    finally:
        sys.settrace(None)
    return seen >= number


def block(pool: Any) -> None:
    with pool.connection() as conn:
        conn.execute("SELECT 1")


def failing(pool: Any) -> None:
    try:
        with pool.connection() as conn:
            conn.execute("SELECT 1")
            raise ValueError
    except ValueError:
        pass


def by_hand(pool: Any) -> None:
    conn = pool.getconn()
    conn.execute("SELECT 1")
    pool.putconn(conn)


@pytest.mark.usefixtures("small_heap")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # raised in a __del__
@pytest.mark.parametrize("kind", [ConnectionPool, NullConnectionPool])
@pytest.mark.parametrize("work", [block, failing, by_hand])
def test_exception_at_each_line(
    postgres: PostgresServer, kind: Any, work: Callable[[Any], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("psycopg.pool"), "disabled", True)  # pytest keeps records: connections
    lost, number = [], 1
    sizes = {"max_size": 1} if kind is NullConnectionPool else {"min_size": 1, "max_size": 1}
    pool = kind(postgres.dsn, open=True, timeout=5, **sizes)
    while struck(lambda: work(pool), number):
        gc.collect()
        try:
            block(pool)
        except psycopg_pool.PoolTimeout:
            lost.append(number)
            break
        number += 1
    pool.close()
    assert number > 20 and not lost

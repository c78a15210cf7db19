"""`PostgresPool.run`: a unit of work is run again after a conflict, and after a connection was lost."""

from __future__ import annotations

import queue
import random
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

import psycopg

from ..._masking import shown
from ...core.engine import Engine
from ...errors import TransactionRolledBack
from ...settings import Backoff
from . import failures
from .blocks import CommittingPool, CommitUnknown, Transaction
from .tracking import Connection, notes_of

__all__ = ["run"]

T = TypeVar("T")

# Between two runs.
_PAUSE = Backoff(initial=0.01, maximum=1.0)


def run(pool: CommittingPool, function: Callable[[Connection], T], retries: int, timeout: float | None) -> T:
    """See `PostgresPool.run`, which calls this directly."""
    if isinstance(retries, bool) or not isinstance(retries, int):
        raise TypeError(f"retries must be a whole number, not {shown(retries)}")
    if retries < 0:
        raise ValueError(f"retries must be at least 0, not {shown(retries)}")
    for number in range(1, retries + 2):
        again = False
        try:
            with pool.acquire(timeout, 3) as conn:
                try:
                    with Transaction(pool, conn):
                        return function(conn)
                except Exception as error:
                    again = number <= retries and _may_run_again(pool.engine, conn, error)
                    raise
        except Exception:
            if not again:
                raise
        _sleep(pool.engine, _PAUSE.delay(number, waiting=False, random=random.random))
    raise AssertionError("the last run returns or raises")


def _may_run_again(engine: Engine[Connection], conn: Connection, error: Exception) -> bool:
    if isinstance(error, (CommitUnknown, TransactionRolledBack, psycopg.ProgrammingError)):
        return False  # it may be committed; or the work has a mistake, and would fail again
    if notes_of(conn).cancel is not None:
        return False  # it was ended at its time limit, or because the pool was closed
    return failures.repeatable(error) or engine.adapter.is_broken(conn, error)


def _sleep(engine: Engine[Connection], seconds: float) -> None:
    box: queue.SimpleQueue[None] = queue.SimpleQueue()
    with suppress(queue.Empty):
        engine.clock.get(box, seconds)

"""A unit of work is run again after a conflict, and after a connection was lost."""

from __future__ import annotations

import queue
import random
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from typing import Any, Protocol, TypeVar

from ..._masking import shown
from ...core.engine import Engine
from ...core.lease import Lease
from ...settings import Backoff

__all__ = ["run"]

C = TypeVar("C")
T = TypeVar("T")

# Between two runs.
_PAUSE = Backoff(initial=0.01, maximum=1.0)


class RunningPool(Protocol[C]):
    """The part of a pool that `run` needs."""

    @property
    def engine(self) -> Engine[C]:
        """The mechanism."""

    def acquire(self, timeout: float | None = None, _depth: int = 1) -> Lease[C]:
        """Lend a connection."""


def run(
    pool: RunningPool[C],
    function: Callable[[C], T],
    retries: int,
    timeout: float | None,
    transaction: Callable[[C], AbstractContextManager[Any]],
    may_run_again: Callable[[C, Exception], bool],
) -> T:
    """See `PostgresPool.run` and `MySQLPool.run`, which call this directly.

    Args:
        pool: The pool.
        function: The work.
        retries: How often it may be run again.
        timeout: Seconds to wait for a connection, for each run.
        transaction: Returns the block in which it is run.
        may_run_again: Whether that may help after an error.
    """
    if isinstance(retries, bool) or not isinstance(retries, int):
        raise TypeError(f"retries must be a whole number, not {shown(retries)}")
    if retries < 0:
        raise ValueError(f"retries must be at least 0, not {shown(retries)}")
    for number in range(1, retries + 2):
        again = False
        try:
            with pool.acquire(timeout, 3) as conn:
                try:
                    with transaction(conn):
                        return function(conn)
                except Exception as error:
                    again = number <= retries and may_run_again(conn, error)
                    raise
        except Exception:
            if not again:
                raise
        _sleep(pool.engine, _PAUSE.delay(number, waiting=False, random=random.random))
    raise AssertionError("the last run returns or raises")


def _sleep(engine: Engine[Any], seconds: float) -> None:
    box: queue.SimpleQueue[None] = queue.SimpleQueue()
    with suppress(queue.Empty):
        engine.clock.get(box, seconds)

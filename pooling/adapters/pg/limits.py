"""Commands that take too long: stopped by the server, else cancelled, else cut off.

All three within ``command_timeout``, whatever the server or the network does:
the server's own ``statement_timeout`` is a little shorter, which also ends what
runs for a process that is no more. It all happens in the holder's own thread,
because nobody else may touch its connection.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Generator
from time import monotonic
from typing import Any, TypeVar

import psycopg
from psycopg import pq

from ...errors import PoolError

__all__ = ["CommandTimeout", "check_limit", "limited", "server_limits"]

R = TypeVar("R")
logger = logging.getLogger("pooling")


class CommandTimeout(PoolError, psycopg.errors.QueryCanceled, TimeoutError):
    """A command took longer than its limit and the server could not be made to stop it.

    The connection was closed, and what became of the command is not known. A
    server that did stop it says so itself: ``psycopg.errors.QueryCanceled``,
    which this is too.
    """


def _reserve(limit: float) -> float:
    """Return how much sooner than the limit the server is to stop a command by itself."""
    return min(1.0, limit / 10)


def limited(
    steps: Generator[Any, Any, R], conn: psycopg.Connection[Any], limit: float
) -> Generator[Any, Any, R]:
    """Go through psycopg's steps of a command, for so many seconds.

    Time counts while the server owes an answer: who waits for notifications
    may wait for ever.
    """
    spare = _reserve(limit) / 2
    end = monotonic() + limit
    cancel_at = end - spare
    try:
        wish = next(steps)
        while True:
            ready = yield wish
            now = monotonic()
            if now >= cancel_at and conn.pgconn.transaction_status == pq.TransactionStatus.ACTIVE:
                if now >= end:
                    _cut_off(conn, limit)
                cancel_at = end
                _cancel(conn, spare / 2)
            wish = steps.send(ready)
    except StopIteration as done:
        result: R = done.value
        return result


def _cancel(conn: psycopg.Connection[Any], timeout: float) -> None:
    try:
        conn.cancel_safe(timeout=timeout)
    except Exception as error:  # the next look closes it then
        logger.debug("a command could not be cancelled: %s", error)


def _cut_off(conn: psycopg.Connection[Any], limit: float) -> None:
    conn.pgconn.finish()
    raise CommandTimeout(f"a command took over {limit:g} s, and the server did not answer to a cancel")


def check_limit(name: str, value: float | None) -> float | None:
    """Check a time limit of the constructor."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number of seconds or None, not {value!r}")
    if not 0.01 <= value <= 2_000_000:  # the server counts milliseconds in 32 bits
        raise ValueError(f"{name} must be from 0.01 to 2000000 seconds or None, not {value!r}")
    return float(value)


def server_limits(command: float | None, idle: float | None) -> dict[str, int]:
    """Return what the server is told of our limits, in its milliseconds."""
    limits = {}
    if command is not None:
        limits["statement_timeout"] = math.ceil((command - _reserve(command)) * 1000)
    if idle is not None:
        limits["idle_in_transaction_session_timeout"] = math.ceil(idle * 1000)
    return limits


CommandTimeout.__module__ = "pooling"  # where users import it from

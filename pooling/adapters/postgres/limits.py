"""Time limits of commands: the server stops a command, else it is cancelled, else its connection is closed.

All three happen within the limit, whatever the server or the network does: the
server's own ``statement_timeout`` is a little shorter, which also ends commands
of a process that has died. All of it is done in the holder's thread, because no
other thread may use its connection. Only a cancel request that was not sent
in time is left to the worker that closes the connection.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Generator
from time import monotonic
from typing import Any, TypeVar, final

import psycopg
from psycopg import pq

from ..._fields import fields
from ..._masking import shown
from ...errors import PoolError
from .wire import Cancel, spare_handle

__all__ = ["CommandTimeout", "Limit", "check_limit", "limited", "pace", "server_limits"]

R = TypeVar("R")
logger = logging.getLogger("pooling")

LEAST = 0.01  # seconds that a command gets at least: otherwise even a ROLLBACK would cost the connection


class CommandTimeout(PoolError, psycopg.errors.QueryCanceled, TimeoutError):
    """A command took longer than its limit and the server could not be made to stop it.

    The connection was closed, and the outcome of the command is unknown: a
    cancel request is sent, and may come too late. A server that does stop a
    command reports ``psycopg.errors.QueryCanceled``, of which this is a subclass.
    """


@final
class Limit:
    """How long commands may take.

    Args:
        each: Seconds for each command; ``None`` means no limit.
        total: Seconds for all together, as the user gave them; ``None`` means no limit.
        left: How many seconds of ``total`` are left; ``None`` means all.
    """

    __slots__ = ("_each", "_total", "_end")

    def __init__(self, each: float | None, total: float | None = None, left: float | None = None) -> None:
        self._each = math.inf if each is None else each
        self._total = math.inf if total is None else total
        self._end = monotonic() + (self._total if left is None else left)

    def left(self) -> float:
        """Return the seconds that the next command may take."""
        return max(LEAST, min(self._each, self._end - monotonic()))

    def __str__(self) -> str:
        if monotonic() >= self._end - LEAST:
            return f"not done within {self._total:g} s"
        return f"a command took over {self._each:g} s"


def _reserve(limit: float) -> float:
    """Return how many seconds before the limit the server is to stop a command by itself."""
    return min(1.0, limit / 10)


def pace(limit: float) -> float:
    """Return the interval of `limited`'s checks in seconds: several must fall between the cancel and the limit."""
    return max(0.001, _reserve(limit) / 8)  # 0 would be a busy loop


def limited(
    steps: Generator[Any, Any, R], conn: psycopg.Connection[Any], limit: Limit, left: float
) -> Generator[Any, Any, R]:
    """Run psycopg's steps of a command, for at most ``left`` seconds.

    Only the time counts in which the server owes an answer: waiting for
    notifications is not limited.

    Raises:
        CommandTimeout: The server could not be made to stop; the connection is closed.
    """
    end = monotonic() + left
    cancel_at = end - 0.75 * _reserve(left)
    cancel: Cancel | None = None
    try:
        wanted = next(steps)
        while True:
            ready = yield wanted
            now = monotonic()
            if now >= cancel_at and conn.pgconn.transaction_status == pq.TransactionStatus.ACTIVE:
                if now >= end:
                    _cut_off(conn, limit, cancel)
                cancel_at = end
                cancel = _cancel(conn, end - now)
            wanted = steps.send(ready)
    except StopIteration as done:
        result: R = done.value
        return result


def _cancel(conn: psycopg.Connection[Any], timeout: float) -> Cancel:
    cancel = Cancel(conn)
    try:
        cancel.send(timeout)
    except Exception as error:  # closing the connection tries again
        logger.debug("a command could not be cancelled: %s", error, extra=fields("cancel_failed", error=str(error)))
    return cancel


def _cut_off(conn: psycopg.Connection[Any], limit: Limit, cancel: Cancel | None) -> None:
    """Close the connection, and keep what its close needs to stop the command on the server."""
    notes = conn._pooling  # type: ignore[attr-defined]
    notes.cancel, notes.peer = cancel or Cancel(conn), spare_handle(conn)
    conn.pgconn.finish()
    failure = "answer" if cancel is None else "respond to the cancel request"
    raise CommandTimeout(f"{limit}, and the server did not {failure}")


def check_limit(name: str, value: float | None) -> float | None:
    """Check a time limit of the constructor."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number of seconds or None, not {shown(value)}")
    if not 0.01 <= value <= 2_000_000:  # the server counts milliseconds in 32 bits
        raise ValueError(f"{name} must be from 0.01 to 2000000 seconds or None, not {shown(value)}")
    return float(value)


def server_limits(command: float | None, idle: float | None) -> dict[str, int]:
    """Return the server's settings for these limits (seconds), in milliseconds."""
    limits = {}
    if command is not None:
        limits["statement_timeout"] = math.ceil((command - _reserve(command)) * 1000)
    if idle is not None:
        limits["idle_in_transaction_session_timeout"] = math.ceil(idle * 1000)
    return limits


CommandTimeout.__module__ = "pooling"  # where users import it from

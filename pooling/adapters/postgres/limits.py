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
from typing import Any, TypeVar

import psycopg
from psycopg import pq

from ... import errors
from ..._fields import fields
from ..shared.limits import LEAST, Limit, check_limit, reserve
from .wire import Cancel, spare_handle

__all__ = ["LEAST", "CommandTimeout", "Limit", "cancel_command", "check_limit", "limited", "pace", "server_limits"]

R = TypeVar("R")
logger = logging.getLogger("pooling")

class CommandTimeout(errors.CommandTimeout, psycopg.errors.QueryCanceled):
    """`pooling.CommandTimeout`, of PostgreSQL.

    A cancel request is sent, and may come too late. A server that does stop a
    command reports ``psycopg.errors.QueryCanceled``, of which this is a subclass.
    """


def pace(limit: float) -> float:
    """Return the interval of `limited`'s checks in seconds: several must fall between the cancel and the limit."""
    return max(0.001, reserve(limit) / 8)  # 0 would be a busy loop


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
    cancel_at = end - 0.75 * reserve(left)
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
                cancel = cancel_command(conn, end - now)
            wanted = steps.send(ready)
    except StopIteration as done:
        result: R = done.value
        return result


def cancel_command(conn: psycopg.Connection[Any], timeout: float) -> Cancel:
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


def server_limits(command: float | None, idle: float | None) -> dict[str, int]:
    """Return the server's settings for these limits (seconds), in milliseconds."""
    limits = {}
    if command is not None:
        limits["statement_timeout"] = math.ceil((command - reserve(command)) * 1000)
    if idle is not None:
        limits["idle_in_transaction_session_timeout"] = math.ceil(idle * 1000)
    return limits


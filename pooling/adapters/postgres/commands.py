"""BEGIN, COMMIT and savepoints with fewer releases of the GIL than psycopg's own.

Overrides ``Connection._exec_command`` of psycopg, by which it executes them,
with `wire.exchange`; where nothing else needs attention meanwhile, libpq
itself waits for the answer, in one call (see `may_block`).

Gain: GAIN_COMMANDS
Without (another name, or ``POOLING_PLAIN=1``) psycopg executes them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any, TypeVar

import psycopg
from psycopg import pq
from psycopg.pq.abc import PGconn, PGresult

from ...core.runtime.gevent import patched
from . import peek
from .internals import available
from .stalls import Watch, explained
from .wire import exchange, is_lost, notify, refuse_failed

__all__ = ["AVAILABLE", "FastCommands", "execute", "may_block", "waiting"]

R = TypeVar("R")
AVAILABLE = available(
    "commands",
    "Connection._exec_command", "Connection._check_connection_ok", "Connection._pipeline",
    "Connection._notify_handlers",
)  # fmt: skip
# Where no statement runs. Numbers, which are compared much faster than members of an enumeration.
BETWEEN = tuple(int(pq.TransactionStatus[name]) for name in ("IDLE", "INTRANS", "INERROR"))

if TYPE_CHECKING:
    _Base = object  # mypy would compare each method with psycopg's
else:
    _Base = psycopg.Connection  # so that an existing connection's class can be changed to a subclass of this one


class FastCommands(_Base):
    """Mixed into connection classes where `AVAILABLE`."""

    def _exec_command(self, command: Any, *args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
        conn: Any = self
        if type(command) is not bytes or args or kwargs or conn._pipeline:
            return (yield from super()._exec_command(command, *args, **kwargs))  # type: ignore[misc]
        conn._check_connection_ok()
        if conn._pooling.limit is None and conn.pgconn.transaction_status in BETWEEN and may_block(conn.pgconn):
            result = waiting(conn, conn._pooling, execute, conn.pgconn, command)
        else:
            results: list[Any] = []
            try:
                yield from exchange(conn.pgconn, command, results)
            finally:
                refuse_failed(results)
            result = results[-1]
        if conn._notify_handlers:
            notify(conn)
        return result


def may_block(pgconn: PGconn) -> bool:
    """Return whether this thread may wait within libpq for the answer to one statement.

    It must not be the main thread, which handles signals, nor a greenlet. And
    nothing may have been received: that may be the server's reason for
    closing the connection, which only `wire.answers` reports.
    """
    if threading.get_ident() == threading.main_thread().ident or patched():
        return False
    return peek.has_received_nothing(pgconn.socket)


def execute(pgconn: PGconn, statement: bytes) -> PGresult:
    """Execute one statement and return its result; call it only if `may_block`.

    Releases the GIL once, where psycopg does nine times and `wire.exchange`
    five. Only the server's answer, or the end of the connection, ends it: too
    dangerous for queries, which may take long.

    Raises:
        psycopg.Error: The statement failed.
    """
    result = pgconn.exec_(statement)
    if is_lost(result):
        raise psycopg.OperationalError(pq.error_message(pgconn))
    refuse_failed([result])
    return result


def waiting(conn: psycopg.Connection[Any], watch: Watch, function: Callable[..., R], *args: Any) -> R:
    """Call a function that waits for the server other than by ``conn.wait()``.

    Meanwhile ``conn.close()`` in another thread only shuts the socket down,
    and the connection is closed here: libpq is still using it.
    """
    watch.turn += 1
    watch.waits = True
    try:
        return function(*args)
    except psycopg.Error as error:
        if watch.stalled is not None:
            raise explained(watch, error)  # noqa: B904
        raise
    finally:
        watch.waits = False
        if watch.closing:
            conn.pgconn.finish()

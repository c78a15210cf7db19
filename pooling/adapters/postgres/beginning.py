"""BEGIN sent together with the first statement of a transaction.

psycopg begins a transaction with a round trip of its own when the first
statement is executed. Here both are sent at once, in libpq's pipeline mode,
which is left when the answers are there. If the BEGIN fails, the server does
not execute the statement; if the statement fails, the transaction is aborted,
as ever.

A pipeline takes neither several statements in one string nor a COPY. So this
is done for statements that begin like a query or a change of rows, and have no
semicolon but at their end. With what psycopg prepares first, ``transaction()``,
``executemany()`` and cursors of other classes, a transaction begins in its way.

Overrides ``Connection._start_query`` of psycopg, and ``Cursor._execute_gen`` in
`cursors`.

Gain: one of three round trips for a block with one statement.
Without (other names, or ``POOLING_PLAIN=1``) psycopg begins the transaction.
"""

from __future__ import annotations

import re
from collections.abc import Generator
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import pq

from .internals import available
from .libpq import queue
from .wire import refuse_failed

__all__ = [
    "AVAILABLE", "Beginning", "begin_of", "begin_pipeline", "end_pipeline", "fits", "serves_replication", "take_begin",
]  # fmt: skip

AVAILABLE = available(
    "beginning",
    "Connection._start_query", "Connection._get_tx_start_command", "Connection._autocommit",
    "Cursor._execute_gen", "Cursor._execute_send",
) and psycopg.capabilities.has_pipeline()  # fmt: skip
_IDLE = int(pq.TransactionStatus.IDLE)
_QUERY = re.compile(rb"\s*(?:SELECT|INSERT|UPDATE|DELETE|WITH|VALUES|MERGE)\b", re.I)
_NUMBERED = re.compile(rb"\$[0-9]")

if TYPE_CHECKING:
    _Base = object  # mypy would compare each method with psycopg's
else:
    _Base = psycopg.Connection  # so that an existing connection's class can be changed to a subclass of this one


class Beginning(_Base):
    """Mixed into connection classes where `AVAILABLE`: leaves the BEGIN to a cursor that takes it."""

    def _start_query(self) -> Generator[Any, Any, None]:
        conn: Any = self
        notes = conn._pooling
        begins = not conn._autocommit and conn.pgconn.transaction_status == _IDLE
        if begins and notes.begin_within == notes.wait_number and not conn._pipeline:
            notes.begin_command = conn._get_tx_start_command()
            return
        yield from super()._start_query()  # type: ignore[misc]


def take_begin(conn: Any) -> None:
    """Have the BEGIN that this wait may need left to `begin_of`."""
    if isinstance(conn, Beginning):  # a cursor's class may also be used with another connection
        notes = conn._pooling  # type: ignore[attr-defined]
        notes.begin_within, notes.begin_command = notes.wait_number, b""


def begin_of(conn: Any) -> bytes:
    """Return the BEGIN to send before the statement, empty if it needs none."""
    if not isinstance(conn, Beginning):
        return b""
    notes = conn._pooling  # type: ignore[attr-defined]
    command: bytes = notes.begin_command if notes.begin_within == notes.wait_number else b""
    return command


def fits(query: bytes, params: Any) -> bool:
    """Whether a statement can be sent in a pipeline."""
    end = query.find(b";")
    if _QUERY.match(query) is None or (end >= 0 and query[end + 1 :].strip()):
        return False
    # Without a value for it, a pipeline makes a "protocol violation" of "there is no parameter $1".
    return bool(params) or _NUMBERED.search(query) is None


def serves_replication(pgconn: Any) -> bool:
    """Return whether it is a connection with ``replication=database``, on which the server refuses a pipeline."""
    return any(option.keyword == b"replication" and option.val for option in pgconn.info)


def begin_pipeline(pgconn: Any, begin: bytes) -> None:
    """Begin a pipeline with this command. Nothing is sent before ``pipeline_sync()``."""
    pgconn.enter_pipeline_mode()
    queue(pgconn, begin)


def end_pipeline(pgconn: Any, results: list[Any]) -> list[Any]:
    """Leave the pipeline mode, and return the results without those of the BEGIN and of the end.

    Raises:
        psycopg.Error: The BEGIN has failed.
    """
    pgconn.exit_pipeline_mode()
    refuse_failed(results[:1], pgconn)
    return results[1:-1]

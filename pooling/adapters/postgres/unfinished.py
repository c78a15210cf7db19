"""What a borrower has left open on a connection, such as a COPY, and how it is taken away."""

from __future__ import annotations

from contextlib import suppress

import psycopg

from .tracking import ACTIVE, BETWEEN, NO_PIPELINE, Connection, notes_of
from .wire import Cancel, copying, hang_up, spare_handle

__all__ = ["PIPELINE", "cut_off", "is_unfinished", "left_open"]

PIPELINE = "an open pipeline()"
_MOMENT = 0.05  # seconds, for a thread that holds the lock between two waits


def is_unfinished(conn: Connection, status: int) -> bool:
    """Return whether something is under way that only the borrower could end."""
    return status not in BETWEEN or conn.pgconn.pipeline_status != NO_PIPELINE or conn.lock.locked()


def left_open(conn: Connection, patience: float) -> str | None:
    """Return a description of what is open on a connection; ``None`` if nothing is.

    Args:
        conn: The connection.
        patience: Seconds to wait for a command of another thread.
    """
    pgconn, notes = conn.pgconn, notes_of(conn)
    if conn.closed or not is_unfinished(conn, pgconn.transaction_status):
        return None
    if conn.lock.locked() and patience and conn.lock.acquire(timeout=patience if notes.within else _MOMENT):
        conn.lock.release()
        return left_open(conn, 0.0)
    if notes.within:
        return "a command of another thread under way"
    if pgconn.pipeline_status != NO_PIPELINE:
        return PIPELINE
    if pgconn.transaction_status in BETWEEN:
        return "an open notifies()"
    if copying(pgconn):
        return "an open COPY"
    return "an open stream()" if conn.lock.locked() else "a query under way"


def cut_off(conn: Connection) -> None:
    """Take a connection away from a borrower who has left something open; its close cancels that on the server."""
    notes = notes_of(conn)
    with suppress(psycopg.Error):
        if conn.pgconn.transaction_status == ACTIVE:
            notes.cancel = Cancel(conn)
    if notes.within:  # another thread is using it, which then closes it
        hang_up(conn)
    else:
        notes.peer = spare_handle(conn)
        conn.pgconn.finish()

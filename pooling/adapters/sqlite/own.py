"""How a `SQLitePool` runs statements of its own on a connection that it has borrowed."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from .adapter import end_transaction
from .connection import Connection

__all__ = ["interrupted_after", "plain"]


@contextmanager
def plain(conn: sqlite3.Connection) -> Iterator[None]:
    """Let our own statements run without a limit and with nobody's factories; the reset undoes that."""
    assert isinstance(conn, Connection)
    limit, conn.limit = conn.limit, None
    end_transaction(conn)  # VACUUM and others run outside of any
    conn.set_progress_handler(None, 0)
    conn.row_factory, conn.text_factory = None, str
    try:
        yield
    finally:
        conn.limit = limit


@contextmanager
def interrupted_after(conn: sqlite3.Connection, seconds: float) -> Iterator[None]:
    """Interrupt what runs in the block if it takes longer.

    By a thread: SQLite's progress handler is not asked in all of its long work.
    """
    struck = threading.Event()

    def strike() -> None:
        struck.set()
        conn.interrupt()

    timer = threading.Timer(seconds, strike)
    timer.daemon = True
    timer.start()
    try:
        yield
    except sqlite3.OperationalError as error:
        if not struck.is_set():
            raise
        raise TimeoutError(f"interrupted after {seconds:g} s") from error
    finally:
        timer.cancel()
        timer.join()  # or it might strike the next borrower

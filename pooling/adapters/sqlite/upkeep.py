"""Maintenance of the database file, on a connection that is already leased."""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from .connection import Connection, end_transaction

__all__ = ["DatabaseSize", "find_damage", "interrupted_after", "measure", "optimize", "optimize_before_close"]

_STATISTICS = ("PRAGMA analysis_limit=400", "PRAGMA optimize")


class DatabaseSize(NamedTuple):
    """The size of a database, in bytes.

    Attributes:
        file: Of the database file.
        wal: Of its write-ahead log.
        free: Of the unused pages in the file.
    """

    file: int
    wal: int
    free: int


def measure(conn: sqlite3.Connection) -> DatabaseSize:
    """Return the size of a database."""
    assert isinstance(conn, Connection)
    with _default_behavior(conn):
        (page,), (pages,), (free,) = (
            conn.execute(f"PRAGMA {name}").fetchone() for name in ("page_size", "page_count", "freelist_count")
        )
    file = conn.initial.file
    wal = f"{file[0]}-wal" if file else ""
    return DatabaseSize(page * pages, os.path.getsize(wal) if os.path.exists(wal) else 0, page * free)


def optimize(conn: sqlite3.Connection, *, vacuum: bool) -> None:
    """Refresh the statistics, rebuild the file if ``vacuum``, and write the WAL back into the file."""
    with _default_behavior(conn):
        for statement in (*_STATISTICS, *(["VACUUM"] if vacuum else []), "PRAGMA wal_checkpoint(TRUNCATE)"):
            conn.execute(statement).fetchall()


def optimize_before_close(conn: Connection) -> None:
    """Refresh the statistics as sqlite.org/lang_analyze.html advises; fail at once if the database is locked."""
    end_transaction(conn)
    conn.set_trace_callback(None)
    conn.set_progress_handler(None, 0)
    cursor = sqlite3.Cursor(conn)
    for statement in ("PRAGMA busy_timeout=0", *_STATISTICS):
        cursor.execute(statement)


def find_damage(conn: sqlite3.Connection, timeout: float, *, full: bool) -> list[str]:
    """Return descriptions of damage in the file; an empty list means that it is intact.

    Args:
        conn: A leased connection.
        timeout: Seconds until the check is interrupted.
        full: Also compare indexes with their tables.

    Raises:
        TimeoutError: The check took longer.
        sqlite3.OperationalError: SQLite could not run it.
    """
    with _default_behavior(conn), interrupted_after(conn, timeout):
        try:
            found = [row[0] for row in conn.execute(f"PRAGMA {'integrity_check' if full else 'quick_check'}")]
        except sqlite3.OperationalError:  # busy, or interrupted
            raise
        except sqlite3.DatabaseError as error:  # the damage prevents the check itself
            found = [str(error)]
    return [] if found == ["ok"] else found


@contextmanager
def _default_behavior(conn: sqlite3.Connection) -> Iterator[None]:
    """Run statements without the statement limit and the user's factories; the reset at release restores them."""
    assert isinstance(conn, Connection)
    limit, conn.limit = conn.limit, None
    end_transaction(conn)  # VACUUM fails inside a transaction
    conn.set_progress_handler(None, 0)
    conn.row_factory, conn.text_factory = None, str
    try:
        yield
    finally:
        conn.limit = limit


@contextmanager
def interrupted_after(conn: sqlite3.Connection, seconds: float) -> Iterator[None]:
    """Interrupt the connection if the block takes longer.

    A thread does it, because some long operations of SQLite do not call the
    progress handler.

    Raises:
        TimeoutError: The block was interrupted.
    """
    interrupted = threading.Event()

    def interrupt() -> None:
        interrupted.set()
        conn.interrupt()

    timer = threading.Timer(seconds, interrupt)
    timer.daemon = True
    timer.start()
    try:
        yield
    except sqlite3.OperationalError as error:
        if not interrupted.is_set():
            raise
        raise TimeoutError(f"interrupted after {seconds:g} s") from error
    finally:
        timer.cancel()
        timer.join()  # otherwise it could interrupt the next borrower

"""SQLite: a pool of ``sqlite3.Connection`` objects on one database file.

SQLite has one writer at a time. A pool of a few connections therefore writes
faster than a connection for each thread: who waits, waits in the pool's fair
line instead of in SQLite's busy handler, which sleeps and tries its luck.
"""

from __future__ import annotations

import ctypes
import os
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..core.adapter import Adapter
from ..core.pool import Pool
from ..settings import PoolSettings

__all__ = ["SQLitePool", "SQLiteAdapter"]

#: Set on every connection, and again when it is released.
PRAGMAS: dict[str, object] = {"foreign_keys": "ON"}

Params = Sequence[Any] | Mapping[str, Any]


class SQLitePool(Pool[sqlite3.Connection]):
    """Lends connections to a SQLite database, in WAL mode with foreign keys checked.

    Transactions are sqlite3's classic ones: statements that write begin one,
    with ``BEGIN IMMEDIATE``, so that a writer waits for its turn at its
    beginning, where the busy timeout works; a transaction that turns from
    reading to writing later would fail at once. Reads begin none.

    Example::

        db = SQLitePool("app.db")
        with db.connection() as conn:                 # commit, or roll back on an error
            conn.execute("INSERT INTO seen VALUES (?)", (url,))
        rows = db.execute_query("SELECT count(*) FROM seen")

    Args:
        path: The database file, or a ``file:`` URI. ``":memory:"`` would give
            each connection an empty database of its own.
        settings: Size, ages and time limits; ``None`` means the defaults.
        timeout: Seconds to wait for another writer before
            ``sqlite3.OperationalError: database is locked``.
        pragmas: Further ones to set on each connection, such as
            ``{"synchronous": "NORMAL"}``.
        name: How the pool is called in messages.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        settings: PoolSettings | None = None,
        *,
        timeout: float = 5.0,
        pragmas: Mapping[str, object] | None = None,
        name: str | None = None,
    ) -> None:
        settings = settings or PoolSettings()
        adapter = SQLiteAdapter(
            path, timeout=timeout, pragmas=pragmas, validation_query=settings.validation_query
        )
        super().__init__(adapter=adapter, settings=settings, name=name)

    @contextmanager
    def connection(self, timeout: float | None = None) -> Iterator[sqlite3.Connection]:
        """Lend a connection for one transaction: committed at the end, rolled back on an error.

        Args:
            timeout: Seconds to wait for a connection; ``None`` means the
                pool's ``acquire_timeout``.

        Raises:
            PoolTimeout: None came in time.
            sqlite3.Error: As from sqlite3, the commit's included.
        """
        # Skipped frames: this one is 0, contextlib's __enter__ is 1, its caller is the holder.
        with self._acquire_for(timeout, 2) as conn, conn:
            yield conn

    def execute_query(self, sql: str, params: Params = ()) -> list[Any]:
        """Execute one statement in a transaction of its own and return its rows.

        Args:
            sql: The statement, with ``?`` or ``:name`` for parameters.
            params: Their values.

        Raises:
            PoolTimeout: No connection came in time.
            sqlite3.Error: As from sqlite3.
        """
        with self._acquire_for(None, 1) as conn, conn:
            return conn.execute(sql, params).fetchall()


class SQLiteAdapter(Adapter[sqlite3.Connection]):
    """How connections are made and kept; see :class:`SQLitePool` for the arguments."""

    noun = "connection"
    bounded = True  # checks and rollbacks wait for nobody but the disk

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        timeout: float = 5.0,
        pragmas: Mapping[str, object] | None = None,
        validation_query: str | None = None,
    ) -> None:
        self.path = os.fspath(path)
        self.timeout = timeout
        self.query = validation_query or "SELECT 1"
        self.pragmas = PRAGMAS | {"busy_timeout": int(timeout * 1000)} | dict(pragmas or {})
        self._cleaning = [f"PRAGMA {name}={value}" for name, value in self.pragmas.items()]

    def create(self) -> sqlite3.Connection:
        conn = sqlite3.connect(
            self.path,
            timeout=self.timeout,
            isolation_level="IMMEDIATE",
            check_same_thread=False,  # one thread at a time, says the pool (P1)
            uri=self.path.startswith("file:"),
        )
        try:
            conn.execute("PRAGMA journal_mode=WAL")
            self._clean(conn)
        except BaseException:
            conn.close()
            raise
        return conn

    def is_alive(self, resource: sqlite3.Connection) -> bool:
        try:
            return resource.total_changes >= 0  # a closed one raises
        except sqlite3.ProgrammingError:
            return False

    def validate(self, resource: sqlite3.Connection, timeout: float) -> None:
        resource.execute(self.query).fetchall()

    def reset(self, resource: sqlite3.Connection) -> None:
        resource.rollback()
        self._clean(resource)

    def close(self, resource: sqlite3.Connection) -> None:
        resource.close()

    def interrupt(self, resource: sqlite3.Connection) -> None:
        resource.interrupt()

    def abandon(self, resource: sqlite3.Connection) -> None:
        # "Do not open an SQLite database connection, then fork(2), then try to use that
        # connection in the child", nor close it: that would drop the locks of the
        # parent (sqlite.org/howtocorrupt.html, 2.6). A reference for ever, past the
        # interpreter's end, is what keeps it open.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(resource))

    def is_broken(self, resource: sqlite3.Connection, error: BaseException) -> bool:
        return not self.is_alive(resource)

    def is_final(self, error: BaseException) -> bool:
        if getattr(error, "sqlite_errorname", None) == "SQLITE_NOTADB":  # CPython 3.11+
            return True
        return not self.path.startswith("file:") and not Path(self.path).parent.is_dir()

    def _clean(self, conn: sqlite3.Connection) -> None:
        """Set all that a borrower can set on the connection to the pool's values."""
        if conn.isolation_level != "IMMEDIATE":
            conn.isolation_level = "IMMEDIATE"
        conn.row_factory = None
        conn.text_factory = str
        for pragma in self._cleaning:
            conn.execute(pragma)


SQLitePool.__module__ = "pooling"  # where users import it from

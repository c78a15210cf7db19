"""`SQLitePool`: a pool of ``sqlite3.Connection`` objects for one database."""

from __future__ import annotations

import os
import re
import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..._masking import shown
from ...core.clock import seconds
from ...core.managed import ManagedPool
from ...core.pool import Pool
from ...errors import PoolTimeout
from ...settings import PoolOptions, PoolSettings, check_flag, with_options
from . import upkeep
from .adapter import SQLiteAdapter
from .arguments import check_connect, check_number
from .blocks import Block
from .connection import Connection
from .paths import checked_path, default_name
from .queries import QuerySnapshot, QueryStats
from .split import SplitPool, resized
from .turns import let_writers_run
from .upkeep import DatabaseSize
from .urls import parse_url

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["DatabaseSize", "SQLitePool"]

Params = Sequence[Any] | Mapping[str, Any]

# A single statement that begins like this only reads. The words that follow do not matter
# (replace() is also a function), except after WITH.
_READS = re.compile(
    r"\s*(?:(?:SELECT|VALUES|EXPLAIN)\b|WITH\b(?!.*\b(?:INSERT|UPDATE|DELETE|REPLACE)\b))", re.I | re.S
)

INTEGRITY_CHECK_INTERVAL = 600.0
"""Seconds between two integrity checks by `SQLitePool.health_check`: they read the whole file."""


class SQLitePool(SplitPool[sqlite3.Connection]):
    """Lends connections to a SQLite database, in WAL mode with foreign keys enforced.

    WAL (write-ahead log) is set when a connection is opened, and stays with
    the file: readers do not block the writer, nor the writer them. It needs a
    local disk; ``pragmas={"journal_mode": "DELETE"}`` turns it off.

    SQLite allows one writer at a time. Without ``readers``, other writers wait
    in SQLite's busy handler, which sleeps and retries in no particular order.
    With ``readers``, writes go through one connection, and writers wait for it
    in the order of their arrival.

    Transactions are sqlite3's classic ones: a statement that writes begins one,
    with ``BEGIN IMMEDIATE``, so that a writer waits at the beginning, where the
    busy timeout works. A transaction that begins with a read and writes later
    would fail at once. Reads begin no transaction.

    A database file that was replaced or deleted is detected at the next
    acquire: the old connections are closed, and a warning is logged.

    Example::

        db = SQLitePool("app.db", readers=4)          # one writer, four readers
        with db.connection() as conn:                 # commits, or rolls back on an error
            conn.execute("INSERT INTO seen VALUES (?)", (url,))
        rows = db.execute_query("SELECT count(*) FROM seen")

    Args:
        path: The database file, or a ``file:`` URI. ``":memory:"`` is a
            database that the pool's connections share and that ends with the
            pool; a child process has an empty one (SQLite 3.36 or newer).
            It has no WAL: while a query is partly read, or a transaction
            reads, a write fails with "database is locked" after ``timeout``,
            also with ``readers``.
        settings: Size, ages and time limits; ``None`` means the defaults.
        timeout: Seconds to wait for another writer before
            ``sqlite3.OperationalError: database is locked``; at most
            ``statement_timeout``, which cannot interrupt this wait.
        pragmas: Further PRAGMAs to set on each connection, such as
            ``{"synchronous": "NORMAL"}``.
        readers: The number of connections that only read, see `connection`;
            the pool itself then lends only the ``writer`` connections.
            ``max_size`` of the settings has no effect then; `resize` and
            `reconfigure` set the number of readers. If most reads are served
            from memory, use twice the number of processors: with 16 threads on
            two processors and reads of 2 ms, 8 readers were as fast as 4, and 2
            were 4 % slower, with a 99th percentile of 58, 30 and 14 ms. If reads
            wait for the disk, use more.
        writer: The number of connections that may write, if there are ``readers``.
        statement_timeout: Seconds until a statement is interrupted, measured
            until its last row is fetched or the connection's next statement
            begins. ``None`` means no limit.
        configure: Called with each new connection, to set functions,
            collations, ``row_factory``, ``text_factory``, a trace callback or a
            progress handler for every borrower. Use ``pragmas`` for PRAGMAs.
        optimize: Whether SQLite may refresh its statistics before a connection
            is closed, as its manual advises.
        detect_types, cached_statements: As for ``sqlite3.connect``.
        uri: Whether a path that begins with ``file:`` is a URI (the default)
            or the name of a file. Relative paths are resolved now.
        factory: A subclass of ``sqlite3.Connection``. The pool lends instances
            of a subclass of it, which records what a reset must undo; methods
            that ``factory`` overrides must call ``super()``.
        isolation_level: As for ``sqlite3.connect``, but ``"IMMEDIATE"`` by
            default. With ``None`` there is no transaction unless a borrower
            begins one, and `connection` rolls nothing back on an error.
        autocommit: As for ``sqlite3.connect``, from CPython 3.12 on; ``None``
            means its default. ``True`` begins no transactions either;
            ``False`` begins a deferred one at once, also for reads.
        name: The pool's name in messages; the file's name by default.
        options: Fields of `PoolSettings`; they override ``settings``.

    Raises:
        ValueError, TypeError: An argument is out of bounds or of the wrong
            type; the path is empty.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        settings: PoolSettings | None = None,
        *,
        timeout: float = 5.0,
        pragmas: Mapping[str, object] | None = None,
        readers: int | None = None,
        writer: int = 1,
        statement_timeout: float | None = None,
        optimize: bool = True,
        configure: Callable[[sqlite3.Connection], object] | None = None,
        detect_types: int = 0,
        cached_statements: int = 128,
        uri: bool | None = None,
        factory: type[sqlite3.Connection] = sqlite3.Connection,
        isolation_level: str | None = "IMMEDIATE",
        autocommit: bool | int | None = None,
        name: str | None = None,
        **options: Unpack[PoolOptions],
    ) -> None:
        if configure is not None and not callable(configure):
            raise TypeError(f"configure must be callable, not {shown(configure)}")
        connect: dict[str, Any] = {
            "isolation_level": isolation_level, "autocommit": autocommit, "factory": factory, "uri": uri,
            "detect_types": detect_types, "cached_statements": cached_statements,
        }  # fmt: skip
        check_connect(**connect)
        check_number("timeout", timeout, least=0.0)
        check_number("statement_timeout", statement_timeout, least=0.001, optional=True)
        check_number("readers", readers, least=1, optional=True)
        check_number("writer", writer, least=1)
        settings = with_options(settings or PoolSettings(), options, SQLitePool.__init__)
        name = name or default_name(checked_path(path))
        self._queries = QueryStats()
        common: dict[str, Any] = {
            "timeout": timeout, "validation_query": settings.validation_query, "statement_timeout": statement_timeout,
            "configure": configure, "stats": self._queries if settings.enable_metrics else None, **connect,
        }  # fmt: skip
        adapter = SQLiteAdapter(path, pragmas=pragmas, optimize=check_flag("optimize", optimize), **common)
        self._memory = adapter.memory
        self._integrity_check_at = float("-inf")
        if readers is None:
            super().__init__(Pool(adapter=adapter, settings=settings, name=name), None)
            return
        writers = Pool(adapter=adapter, settings=resized(settings, writer), name=name)
        pragmas = {**(pragmas or {}), "query_only": "ON"}
        reading = SQLiteAdapter(path, pragmas=pragmas, optimize=False, memory=adapter.memory, **common)
        name = f"{writers.name}-readers"
        super().__init__(writers, Pool(adapter=reading, settings=resized(settings, readers), name=name))

    @classmethod
    def from_url(
        cls, url: str, *, settings: PoolSettings | None = None, name: str | None = None, **arguments: Any
    ) -> SQLitePool:
        """Create a pool from ``sqlite:///relative.db``, ``sqlite:////absolute.db`` or ``sqlite://``.

        The last, and ``sqlite:///:memory:``, is a database in memory.

        Args:
            url: Its query may contain ``timeout``, ``readers``, ``writer``,
                ``statement_timeout``, ``optimize``, ``detect_types``, ``uri``,
                ``cached_statements``, ``isolation_level`` and ``autocommit``;
                after ``sqlite:///file:app.db`` also SQLite's own, such as ``mode``.
            settings, name, arguments: As for the class; they override the URL.

        Raises:
            ValueError: The URL contains a host or an unknown parameter.
        """
        path, parameters = parse_url(url)
        given: dict[str, Any] = {**parameters, **arguments}
        return cls(path if path.startswith(("file:", ":memory:")) else Path(path), settings, name=name, **given)

    # -- use ------------------------------------------------------------------------

    def connection(self, timeout: float | None = None, *, readonly: bool = False, lane: str | None = None) -> Block:
        """Lend a connection for one transaction: committed at the end, rolled back on an error.

        Args:
            timeout: Seconds to wait for a connection; ``None`` means the
                pool's ``acquire_timeout``.
            readonly: Use one of the ``readers``, on which a write fails; no
                effect without ``readers``.
            lane: As for `Pool.acquire`.

        Raises:
            PoolTimeout: None came in time.
            TransactionRolledBack: A statement failed, and SQLite rolled back
                everything before it (``ON CONFLICT ROLLBACK``,
                ``RAISE(ROLLBACK)``, a full disk, an interrupted INSERT), but
                the error did not leave the block. Nothing was stored.
            sqlite3.Error: From sqlite3, including the commit.
        """
        lender = self.readers if readonly and self.readers is not None else self
        return Block(lender, self.name, None if self.readers is None else self.writer, timeout, lane)

    def execute_query(self, sql: str, params: Params = ()) -> list[Any]:
        """Execute one statement in a transaction of its own and return its rows.

        With ``readers``, a statement that only reads runs on a reader.

        Args:
            sql: The statement, with ``?`` or ``:name`` for parameters.
            params: Their values.

        Raises:
            PoolTimeout: No connection came in time.
            sqlite3.Error: From sqlite3.
        """
        readers = self.readers
        pool = readers if readers is not None and (sql[:7] == "SELECT " or _READS.match(sql)) else self
        with pool.acquire(None, 2) as conn, conn:
            # Not of the user's class, which may override `execute`.
            rows = conn.query(sql, params) if type(conn) is Connection else conn.execute(sql, params).fetchall()
        if readers is not None:
            let_writers_run(self.writer)
        return rows

    def _readers_or_self(self) -> ManagedPool[sqlite3.Connection]:
        return self if self.readers is None else self.readers

    def queries(self) -> QuerySnapshot:
        """Return the durations of statements, in seconds: count, mean, percentiles and the slowest.

        A statement is timed from its start to its first row, and while
        ``fetchall`` fetches the others; the time between fetches of single rows
        is the borrower's. Values are never shown, only the statement's text.

        Statements shorter than 0.1 ms are only counted and summed, which is
        cheaper. They enter the percentiles with their mean, and are never among
        the slowest. If all are that short, the percentiles and the maximum are
        equal to the mean, and ``slowest`` is empty.
        """
        return self._queries.snapshot()

    # -- the file -------------------------------------------------------------------

    def size(self) -> DatabaseSize:
        """Return the size of the database and of its unused part, in bytes.

        Raises:
            PoolTimeout: No connection came in time.
            sqlite3.Error: From sqlite3.
        """
        with self._readers_or_self().acquire(None, 2) as conn:
            return upkeep.measure(conn)

    def optimize(self, *, vacuum: bool = False) -> None:
        """Refresh SQLite's statistics, and write the WAL back into the file.

        Args:
            vacuum: Also rebuild the file without its unused part. It takes as
                long as copying the file, and blocks writers.

        Raises:
            PoolTimeout: No connection came in time.
            sqlite3.Error: From sqlite3, for example because the database is in use.
        """
        with self.acquire(None, 2) as conn:
            upkeep.optimize(conn, vacuum=vacuum)

    def check_integrity(self, timeout: float | None = None, *, full: bool = False) -> list[str]:
        """Check the file for damage; return what was found, an empty list if it is intact.

        Args:
            timeout: Seconds until the check is interrupted; ``None`` means
                ``health_check_timeout``.
            full: Also compare indexes with their tables, which takes far longer.

        Raises:
            PoolTimeout: No connection came in time.
            TimeoutError: The check was interrupted.
            sqlite3.OperationalError: SQLite could not run the check.
        """
        limit = self._check_timeout(timeout)
        with self._readers_or_self().acquire(limit, 2) as conn:
            return upkeep.find_damage(conn, limit, full=full)

    def health_check(self, timeout: float | None = None) -> None:
        """Read from the database, and sometimes check the file for damage; raise if something is wrong.

        `check_integrity` runs if its last run was ten minutes ago or found
        damage. If the database is too large to be checked in half of the time,
        reading is enough.

        Args:
            timeout: Seconds for all of it; ``None`` means ``health_check_timeout``.

        Raises:
            sqlite3.DatabaseError: The file is damaged, or cannot be read.
            PoolTimeout: All connections are in use, and no health check waits for one; or none came in time.
            PoolUnavailable: The database cannot be opened.
        """
        busy = self.probe(timeout)
        if busy is not None:
            raise PoolTimeout(f"pool {self.name!r}: {busy}")

    def probe(self, timeout: float | None = None) -> str | None:
        """Check the database as `health_check` does, on an idle or a new connection; never wait behind borrowers.

        Returns:
            ``None``, or a warning: ``"exhausted: 5 of 5 in use, ..."``, at once, if no connection is free; with
            ``readers``, also if others wait for the writer.

        Raises:
            sqlite3.DatabaseError, PoolUnavailable: As for `health_check`.
        """
        limit = self._check_timeout(timeout)
        if self.readers is None:
            return self.writer._probe.run(limit, self._examine)
        text = self.readers._probe.run(limit, self._examine)
        return self.exhaustion() if text is None else f"readers {text}"

    def _examine(self, conn: sqlite3.Connection, limit: float) -> None:
        """Read from the database, and check the file for damage if that is due; raise if something is wrong."""
        conn.execute("SELECT count(*) FROM sqlite_master").fetchall()
        now = time.monotonic()
        if now < self._integrity_check_at:
            return
        try:
            damage = upkeep.find_damage(conn, limit / 2, full=False)
        except TimeoutError:
            damage = []
        if damage:
            raise sqlite3.DatabaseError(f"the file is damaged: {damage[0]}")
        self._integrity_check_at = now + INTEGRITY_CHECK_INTERVAL

    def _check_timeout(self, timeout: float | None) -> float:
        return self.settings.health_check_timeout if timeout is None else seconds(timeout)

    def close(self, timeout: float | None = None, *, interrupt: bool = True) -> None:
        """Close the pool for good, see `Pool.close`; a database in memory is deleted.

        Args:
            timeout: Seconds to wait for connections in use; ``None`` means ``close_timeout``.
            interrupt: Whether to interrupt those still in use after that.
        """
        super().close(timeout, interrupt=interrupt)
        if self._memory is not None:
            self._memory.drop()


SQLitePool.__module__ = "pooling"  # where users import it from

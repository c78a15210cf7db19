"""SQLite: a pool of ``sqlite3.Connection`` objects on one database.

SQLite has one writer at a time. Who waits for it, waits either in SQLite's
busy handler, which sleeps and tries its luck, or, with ``readers=``, in this
pool's fair line: then one connection writes and the others read.
"""

from __future__ import annotations

import math
import operator
import os
import re
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import unquote_to_bytes

from ..._masking import shown, suspicious
from ...core.clock import seconds
from ...core.observer import Observer
from ...core.pool import Pool
from ...core.report.holders import Holder
from ...settings import OTHER_SCHEMES, PoolOptions, PoolSettings, with_options
from .adapter import SQLiteAdapter, path_of, readable
from .arguments import check_connect, check_number, parse, split_uri
from .connection import Connection, TransactionRolledBack
from .own import interrupted_after, plain
from .queries import QuerySnapshot, QueryStats

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["DatabaseSize", "SQLiteAdapter", "SQLitePool"]

Params = Sequence[Any] | Mapping[str, Any]

# One statement alone is executed: what begins like this only reads, whatever words follow (replace() is
# a function, too), but for WITH, after which may stand any.
_READS = re.compile(
    r"\s*(?:(?:SELECT|VALUES|EXPLAIN)\b|WITH\b(?!.*\b(?:INSERT|UPDATE|DELETE|REPLACE)\b))", re.I | re.S
)

_since = operator.attrgetter("since")
_GIL = getattr(sys, "_is_gil_enabled", lambda: True)()
_ASIDE = 1e-4  # seconds; the scheduler makes some 150 µs of it
_TURN = 3e-4  # seconds: twice what a short durable write takes on a fast disk

INTEGRITY_EVERY = 600.0
"""Seconds between two looks for damage by `SQLitePool.health_check`: they read the whole file."""


class DatabaseSize(NamedTuple):
    """How large a database is: bytes of its file and of its WAL, and of what is unused in it."""

    file: int
    wal: int
    free: int


class SQLitePool(Pool[sqlite3.Connection]):
    """Lends connections to a SQLite database, in WAL mode with foreign keys checked.

    WAL (write-ahead log) is set when a connection is opened, and stays with
    the file: readers do not block the writer, nor the writer them. It needs
    a local disk; ``pragmas={"journal_mode": "DELETE"}`` goes without.

    Transactions are sqlite3's classic ones: statements that write begin one,
    with ``BEGIN IMMEDIATE``, so that a writer waits for its turn at its
    beginning, where the busy timeout works; a transaction that turns from
    reading to writing later would fail at once. Reads begin none.

    A file that was replaced or deleted is noticed at the next lease: the old
    connections are closed, and a warning is logged.

    Example::

        db = SQLitePool("app.db", readers=4)          # one writes, four read
        with db.connection() as conn:                 # commit, or roll back on an error
            conn.execute("INSERT INTO seen VALUES (?)", (url,))
        rows = db.execute_query("SELECT count(*) FROM seen")

    Args:
        path: The database file, or a ``file:`` URI. ``":memory:"`` is a
            database that the pool's connections share, and that ends with the
            pool; a child process finds an empty one (SQLite 3.36 or newer).
            It has no WAL: while somebody has read a query's rows half, or
            reads in a transaction, writing fails with "database is locked"
            after ``timeout``, with ``readers`` as well.
        settings: Size, ages and time limits; ``None`` means the defaults.
        timeout: Seconds to wait for another writer before
            ``sqlite3.OperationalError: database is locked``; at most
            ``statement_timeout``, which cannot interrupt this wait.
        pragmas: Further ones to set on each connection, such as
            ``{"synchronous": "NORMAL"}``.
        readers: With a number, the pool itself lends nothing but the
            ``writer`` connections, and so many others read: see `connection`.
            ``max_size`` of the settings has no meaning then, and `resize`
            and `reconfigure` set the number of readers. Where reads come from
            memory, take twice the number of processors: with 16 threads on two
            and reads of 2 ms, 8 readers did as much as 4, and 2 did 4 % less,
            with a 99th percentile of 58, 30 and 14 ms. Where reads wait for the
            disk, take more.
        writer: How many connections may write, when there are ``readers``.
        statement_timeout: Seconds until a statement is interrupted: until its
            last row is fetched, or the connection's next statement begins.
            ``None`` means no limit.
        configure: Called with each new connection: for functions, collations,
            ``row_factory`` and ``text_factory``, a trace callback or progress
            handler, which every borrower finds then. PRAGMAs belong into
            ``pragmas``.
        optimize: Let SQLite refresh its statistics where that is due, before
            a connection is closed, as its manual advises.
        detect_types, cached_statements: As for ``sqlite3.connect``.
        uri: Whether a path that begins with ``file:`` is a URI, as it is by
            default, or the name of a file. Relative paths in it are those of
            the directory at the beginning.
        factory: A subclass of ``sqlite3.Connection``. What is lent is of a
            subclass that notes what has to be cleaned; its own methods have to
            call those that they override by ``super()``.
        isolation_level: As for ``sqlite3.connect``, but ``"IMMEDIATE"`` by
            default. With ``None`` there is no transaction unless a borrower
            begins one, and `connection` undoes nothing on an error.
        autocommit: As for ``sqlite3.connect``, from CPython 3.12 on; ``None``
            means its default. ``True`` begins no transactions either;
            ``False`` begins a deferred one at once, also for reading.
        name: How the pool is called in messages; the file's name by default.
        options: Fields of `PoolSettings`; they beat ``settings``.

    Raises:
        ValueError, TypeError: A number is out of its bounds, or is none; the
            path is empty.
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
        name = name or _name_of(path_of(path))
        self.readers: Pool[sqlite3.Connection] | None = None
        """Those that only read, a pool of its own; ``None`` without ``readers=``."""
        common: dict[str, Any] = {
            "timeout": timeout,
            "validation_query": settings.validation_query,
            "statement_timeout": statement_timeout,
            "configure": configure,
            **connect,
        }
        adapter = SQLiteAdapter(path, pragmas=pragmas, optimize=optimize, **common)
        self._adapters = [adapter]
        self._limit = settings.health_check_timeout
        self._look_after = float("-inf")  # when a health check looks for damage again
        if readers is not None:
            reading = {**dict(pragmas or {}), "query_only": "ON"}
            second = SQLiteAdapter(
                path, pragmas=reading, optimize=False, memory=adapter.memory, **common
            )
            self._adapters.append(second)
            self.readers = Pool(
                adapter=second, settings=_resized(settings, readers), name=f"{name}-readers"
            )
            self.readers.engine.owner = None  # a part of this pool
            settings = _resized(settings, writer)
        self._queries = QueryStats()
        for one in self._adapters:
            one.stats = self._queries if settings.enable_metrics else None
        super().__init__(adapter=adapter, settings=settings, name=name)

    @classmethod
    def from_url(
        cls,
        url: str,
        *,
        settings: PoolSettings | None = None,
        name: str | None = None,
        **arguments: Any,
    ) -> SQLitePool:
        """Make a pool from ``sqlite:///relative.db``, ``sqlite:////absolute.db`` or ``sqlite://``.

        The last, and ``sqlite:///:memory:``, is a database in memory.

        Args:
            url: Its query may hold ``timeout``, ``readers``, ``writer``,
                ``statement_timeout``, ``optimize``, ``detect_types``, ``uri``,
                ``cached_statements``, ``isolation_level`` and ``autocommit``;
                behind ``sqlite:///file:app.db`` SQLite's own, such as ``mode``, too.
            settings, name, arguments: As for the class.

        Raises:
            ValueError: It names a host, or a parameter that is none of these.
        """
        scheme, separator, rest = url.partition("://")
        if not separator or OTHER_SCHEMES.get(scheme.lower(), scheme.lower()) != "sqlite":
            raise ValueError("url must begin with sqlite://, or pooling.from_url takes it")
        host, _, path = rest.partition("?")[0].partition("/")
        if host:
            if suspicious(host):
                raise ValueError("a host means nothing here; a relative path has three slashes, an absolute one four")
            raise ValueError(f"a host ({host!r}) means nothing here; sqlite:///{host} is a relative path")
        if "@" in url.partition("?")[2]:  # an address that is none of ours
            raise ValueError("the path and the parameters must be percent-encoded, ? as %3F and @ as %40")
        path = os.fsdecode(unquote_to_bytes(path)) or ":memory:"
        path, pairs = split_uri(path, url.partition("?")[2])
        for key, text in pairs:
            arguments.setdefault(key, parse(key, text))
        return cls(path if path.startswith(("file:", ":memory:")) else Path(path), settings, name=name, **arguments)

    # -- use ------------------------------------------------------------------------

    @contextmanager
    def connection(
        self, timeout: float | None = None, *, readonly: bool = False
    ) -> Iterator[sqlite3.Connection]:
        """Lend a connection for one transaction: committed at the end, rolled back on an error.

        Args:
            timeout: Seconds to wait for a connection; ``None`` means the
                pool's ``acquire_timeout``.
            readonly: Take one of the ``readers``, on which writing fails;
                without ``readers=`` it changes nothing.

        Raises:
            PoolTimeout: None came in time.
            TransactionRolledBack: With the error of a statement, which did not
                leave the block, SQLite undid all that was done before (``ON
                CONFLICT ROLLBACK``, ``RAISE(ROLLBACK)``, a full disk, an
                INSERT that was interrupted); nothing was stored.
            sqlite3.Error: As from sqlite3, the commit's included.
        """
        pool = self.readers if readonly and self.readers is not None else self
        # Skipped frames: this one is 0, contextlib's __enter__ is 1, its caller is the holder.
        with pool.acquire(timeout, 3) as conn, conn:
            yield conn
            self._refuse_undone(conn)
        self._step_aside()

    def _refuse_undone(self, conn: sqlite3.Connection) -> None:
        """What SQLite undid by itself is not to look as if it were stored: the rest goes, too."""
        undone = getattr(conn, "undone", None)
        if undone is not None:
            raise TransactionRolledBack(
                f"pool {self.name!r}: SQLite rolled the transaction of this block back, with an error that did not "
                f"leave the block: {undone}"
            )

    def execute_query(self, sql: str, params: Params = ()) -> list[Any]:
        """Execute one statement in a transaction of its own and return its rows.

        With ``readers=`` a statement that is plainly a query goes to a reader.

        Args:
            sql: The statement, with ``?`` or ``:name`` for parameters.
            params: Their values.

        Raises:
            PoolTimeout: No connection came in time.
            sqlite3.Error: As from sqlite3.
        """
        pool: Pool[sqlite3.Connection] = self
        if self.readers is not None and _READS.match(sql):
            pool = self.readers
        with pool.acquire(None, 2) as conn, conn:
            rows = conn.execute(sql, params).fetchall()
        self._step_aside()
        return rows

    def _step_aside(self) -> None:
        """Sleep for a moment if somebody waits to write, and whose turn it is takes long.

        Who writes needs the GIL back after each of SQLite's calls, and who
        has just been woken to write needs it for the first time. A thread
        that reads on and on lets go of it for microseconds only, so each of
        them would wait for the switch interval, 5 ms: four that read and two
        that write, and the 99th percentile of a write was 24 ms instead of 2.
        While turns are short nobody is held up like that, and a sleep for each
        read would only cost changes of threads: of 16 threads with 20 % writes
        it made 17,000 operations a second out of 25,000.
        """
        if not self.engine.state.waiters or self.readers is None or not _GIL:
            return
        began = max(map(_since, list(self.engine.state.entries)), default=math.inf)  # whose turn began last
        if self.engine.clock.now() - began > _TURN:
            time.sleep(_ASIDE)

    # -- looking --------------------------------------------------------------------

    def queries(self) -> QuerySnapshot:
        """Return how long statements took: count, mean, percentiles and the slowest.

        A statement is timed from its start to its first row, and while
        ``fetchall`` gets the others; stepping through a cursor is the
        borrower's time. Values never show, only the statement's text.

        Statements shorter than 0.1 ms are counted and summed only, which is
        cheaper: they count in the percentiles with their mean, and none of
        them is among the slowest. Where all are that short, the percentiles
        and the maximum are all this mean, and ``slowest`` is empty.
        """
        return self._queries.snapshot()

    def size(self) -> DatabaseSize:
        """Return how large the database is, and how much of it is unused."""
        pool = self.readers or self
        with pool.acquire(None, 2) as conn, plain(conn):
            (page,), (pages,), (free,) = (
                conn.execute(f"PRAGMA {name}").fetchone()
                for name in ("page_size", "page_count", "freelist_count")
            )
            assert isinstance(conn, Connection)
            wal = f"{conn.file[0]}-wal" if conn.file else ""
        return DatabaseSize(page * pages, os.path.getsize(wal) if os.path.exists(wal) else 0, page * free)

    def optimize(self, *, vacuum: bool = False) -> None:
        """Refresh SQLite's statistics, and write the WAL back into the file.

        Args:
            vacuum: Also rebuild the file without what is unused in it; it
                takes as long as copying, and nobody writes meanwhile.

        Raises:
            sqlite3.Error: As from sqlite3; others use the database, for example.
        """
        with self.acquire(None, 2) as conn, plain(conn):
            for statement in (
                "PRAGMA analysis_limit=400",
                "PRAGMA optimize",
                *(["VACUUM"] if vacuum else []),
                "PRAGMA wal_checkpoint(TRUNCATE)",
            ):
                conn.execute(statement).fetchall()

    def check_integrity(self, timeout: float | None = None, *, full: bool = False) -> list[str]:
        """Have SQLite look for damage in the file, and return what it found: nothing, if all is well.

        Args:
            timeout: Seconds for it, after which it is interrupted; ``None``
                means ``health_check_timeout``.
            full: Compare indexes with their tables, too; takes far longer.

        Raises:
            TimeoutError: It did not come to its end in time.
            sqlite3.OperationalError: SQLite could not look.
        """
        limit = self._limit if timeout is None else seconds(timeout)
        pragma = "integrity_check" if full else "quick_check"
        pool = self.readers or self
        with pool.acquire(limit, 2) as conn, plain(conn), interrupted_after(conn, limit):
            try:
                found = [row[0] for row in conn.execute(f"PRAGMA {pragma}")]
            except sqlite3.OperationalError:  # busy, or interrupted
                raise
            except sqlite3.DatabaseError as error:  # so badly damaged that the look itself fails
                found = [str(error)]
        return [] if found == ["ok"] else found

    def health_check(self, timeout: float | None = None) -> None:
        """Read from the database, and now and then look for damage; raise if something is wrong.

        The look (`check_integrity`) is taken when the last one is ten minutes
        old or found something. A database too large to be looked through in
        half of the time is read from, and no more.

        Raises:
            sqlite3.DatabaseError: The file is damaged, or cannot be read.
            PoolTimeout: No connection came in time.
        """
        limit = self._limit if timeout is None else seconds(timeout)
        pool = self.readers or self
        with pool.acquire(limit, 2) as conn:
            conn.execute("SELECT count(*) FROM sqlite_master").fetchall()
        now = self.engine.clock.now()
        if now < self._look_after:
            return
        try:
            damage = self.check_integrity(limit / 2)
        except TimeoutError:
            damage = []
        if damage:
            raise sqlite3.DatabaseError(f"the file is damaged: {damage[0]}")
        self._look_after = now + INTEGRITY_EVERY

    def probe(self, timeout: float | None = None) -> str | None:
        """As `health_check`."""
        self.health_check(timeout)
        return None

    def stats(self) -> dict[str, Any]:
        """Return how many are where, and the settings that bound them; of the readers, too."""
        found = super().stats()
        if self.readers is not None:
            found["readers"] = self.readers.stats()
        return found

    def holders(self) -> list[Holder]:
        """Return who holds a connection, to write or to read; longest first."""
        found = super().holders()
        if self.readers is not None:
            found = sorted(found + self.readers.holders(), key=lambda holder: -holder.seconds)
        return found

    def __repr__(self) -> str:
        own = super().__repr__()
        return own if self.readers is None else f"{own[:-1]}; readers {self.readers!r}>"

    # -- size and settings, of the readers as well -------------------------------------

    def reconfigure(self, **changes: Any) -> None:
        """Change settings of a running pool, see `Pool.reconfigure`; sizes are those of the readers.

        With ``readers=``, `resize` sets how many read, too: there are as many
        ``writer`` connections as before.
        """
        if self.readers is not None:
            self.readers.reconfigure(**changes)  # refuses what is wrong before anything is changed
            mine = _resized(self.readers.settings, self.engine.settings.max_size)
            changes |= {"max_size": mine.max_size, "min_size": mine.min_size, "max_idle": mine.max_idle}
        super().reconfigure(**changes)

    def fill(self, size: int | None = None) -> None:
        """Make connections ahead of need, see `Pool.fill`; with ``readers=``, so many of these."""
        if self.readers is None:
            super().fill(size)
        else:
            self.readers.fill(size)
            super().fill()

    def add_observer(self, observer: Observer) -> None:
        """Notify an observer from now on, of what happens to readers too."""
        super().add_observer(observer)
        if self.readers is not None:
            self.readers.add_observer(observer)

    def remove_observer(self, observer: Observer) -> None:
        """Notify an observer no longer."""
        super().remove_observer(observer)
        if self.readers is not None:
            self.readers.remove_observer(observer)

    # -- life, of the readers as well -------------------------------------------------

    def open(self, timeout: float | None = None) -> None:
        """Warm up, see `Pool.open`."""
        began = time.monotonic()
        super().open(timeout)
        if self.readers is not None:
            limit = self.engine.settings.acquire_timeout if timeout is None else timeout
            self.readers.open(max(0.0, limit - (time.monotonic() - began)))

    def close(self, timeout: float | None = None, *, interrupt: bool = True) -> None:
        """Close the pool for good, see `Pool.close`."""
        began = time.monotonic()
        super().close(timeout, interrupt=interrupt)
        if self.readers is not None:
            limit = self.engine.settings.close_timeout if timeout is None else timeout
            self.readers.close(max(0.0, limit - (time.monotonic() - began)), interrupt=interrupt)
        memory = self._adapters[0].memory
        if memory is not None:
            memory.drop()

    def drain(self) -> None:
        """Replace every connection, see `Pool.drain`."""
        super().drain()
        if self.readers is not None:
            self.readers.drain()

    def check(self) -> None:
        """Look at the idle connections now, see `Pool.check`."""
        super().check()
        if self.readers is not None:
            self.readers.check()

    def pause(self) -> None:
        """Lend nothing until `resume`, see `Pool.pause`."""
        super().pause()
        if self.readers is not None:
            self.readers.pause()

    def resume(self) -> None:
        """Lend again after `pause`."""
        super().resume()
        if self.readers is not None:
            self.readers.resume()


def _name_of(path: str) -> str | None:
    name = Path(path.partition("?")[0]).name.strip(":")
    return readable(name) if name and ":" not in name and not suspicious(name) else None


def _resized(settings: PoolSettings, size: int) -> PoolSettings:
    idle = settings.max_idle
    return settings.replace(
        max_size=size,
        min_size=min(settings.min_size, size),
        max_idle=None if idle is None else max(idle, min(settings.min_size, size)),
    )


SQLitePool.__module__ = "pooling"  # where users import it from

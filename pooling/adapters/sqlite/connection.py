"""The connections that a `SQLitePool` lends: they record what a reset must undo, and time their statements."""

from __future__ import annotations

import functools
import sqlite3
import sys
import time
import weakref
from collections.abc import Callable
from typing import Any

from ... import errors
from ...core.report.histogram import SHORT
from .limit import Limit
from .paths import DatabaseFile
from .queries import QueryStats, without_values
from .traces import pragma_left

__all__ = [
    "LEGACY", "Connection", "Cursor", "Initial", "LimitedCursor", "TransactionRolledBack", "connection_class",
    "end_transaction",
]  # fmt: skip

LEGACY: Any = getattr(sqlite3, "LEGACY_TRANSACTION_CONTROL", None)
"""The default of ``autocommit``; ``None`` before CPython 3.12."""

# Statements that begin with one of these letters change rows at most. Others may change the
# connection: CREATE TEMP TABLE, ATTACH, PRAGMA, and anything after a comment.
_HARMLESS = frozenset("SsIiUuDdRrVvWwBb")
_PRUNE_AT = 64
_NO_HANDLER: tuple[Any, int] = None, 0
_now = time.perf_counter


class TransactionRolledBack(errors.TransactionRolledBack, sqlite3.OperationalError):
    """`pooling.TransactionRolledBack` for SQLite: it rolled back by itself, and the block continued."""


class Cursor(sqlite3.Cursor):
    """A cursor that times its statements and enforces their limit."""

    def execute(self, sql: str, parameters: Any = (), /) -> Cursor:
        conn: Connection = self.connection  # type: ignore[assignment]
        if sql[:1] not in _HARMLESS:
            conn.inspect(sql)
        began = conn.start_statement()
        try:
            _execute(self, sql, parameters)
        except sqlite3.Error as error:
            raise conn.failed(error, sql)  # noqa: B904
        finally:
            conn.running = sql
            conn.seconds = _now() - began
        return self

    def executemany(self, sql: str, parameters: Any, /) -> Cursor:
        self.connection.inspect(sql)  # type: ignore[attr-defined]
        return self._run(super().executemany, sql, parameters)

    def executescript(self, sql: str, /) -> Cursor:
        self.connection.mark_dirty(sql)  # type: ignore[attr-defined]  # its first letter says nothing about the rest
        return self._run(super().executescript, sql)

    def _run(self, method: Callable[..., Any], sql: str, *args: Any) -> Cursor:
        conn: Connection = self.connection  # type: ignore[assignment]
        began = conn.start_statement()
        try:
            method(sql, *args)
        except sqlite3.Error as error:
            raise conn.failed(error, sql)  # noqa: B904
        finally:
            conn.running = sql
            conn.seconds = _now() - began
        return self

    def fetchall(self) -> list[Any]:
        began = _now()
        try:
            return _fetchall(self)
        except sqlite3.Error as error:
            raise self.connection.failed(error)  # type: ignore[attr-defined]  # noqa: B904
        finally:  # a statement ends with its last row
            self.connection.seconds += _now() - began  # type: ignore[attr-defined]


class LimitedCursor(Cursor):
    """A cursor for connections with a limit: an interruption while rows are fetched is explained, too.

    A class of its own, because overriding ``__next__`` makes iteration slower.
    """

    def __next__(self) -> Any:
        try:  # not by `_explaining`, which would double the time of a row
            return _next(self)
        except sqlite3.Error as error:
            raise self.connection.failed(error)  # type: ignore[attr-defined]  # noqa: B904

    def fetchone(self) -> Any:
        return self._explaining(super().fetchone)

    def fetchmany(self, *size: Any, **named: Any) -> list[Any]:
        rows: list[Any] = self._explaining(super().fetchmany, *size, **named)
        return rows

    def _explaining(self, method: Callable[..., Any], *args: Any, **named: Any) -> Any:
        try:
            return method(*args, **named)
        except sqlite3.Error as error:
            raise self.connection.failed(error)  # type: ignore[attr-defined]  # noqa: B904


# Bound once, which makes the calls faster.
_execute, _fetchall, _next = sqlite3.Cursor.execute, sqlite3.Cursor.fetchall, sqlite3.Cursor.__next__
_cursor: Callable[..., Any] = sqlite3.Connection.cursor


class Initial:
    """The state of a connection that every borrower finds; a reset restores it.

    Attributes:
        file: The database file; ``None`` in memory.
        surroundings: The attached databases and temporary tables.
        restored: The names of the PRAGMAs that a reset sets.
        factories: The row and text factories.
        tracer: The trace callback.
        progress: The progress handler and its steps.
    """

    __slots__ = ("file", "surroundings", "restored", "factories", "tracer", "progress")

    def __init__(self) -> None:
        self.file: DatabaseFile | None = None
        self.surroundings: frozenset[str] = frozenset()
        self.restored: frozenset[str] = frozenset()
        self.factories: tuple[Any, Any] = None, str
        self.tracer: Any = None
        self.progress: tuple[Any, int] = _NO_HANDLER


class Connection(sqlite3.Connection):
    """A connection that records what a reset must undo, and counts its statements.

    Its attributes are written by its borrower, or by the pool while it has none.

    Attributes:
        initial: The state that every borrower finds.
        dirty: Whether a statement may have changed that state.
        irreversible: A change that no reset can undo; the connection is closed then.
        cursor_class: The class of its cursors.
        limit: The time limit of a statement, if there is one.
        stats: Where statements are counted that are not short.
        cursors: Weak references to its cursors and blobs.
        running, seconds: The last statement and its duration until now. It is
            not counted yet, because its rows may still be fetched.
        short, short_seconds: The number of statements that took less than
            `SHORT`, and their total duration.
        tracer, progress: The trace callback; the progress handler and its steps.
        began_in_transaction: Whether the last statement began in a transaction.
        rolled_back_by: The statement whose error made SQLite roll the transaction back.
    """

    dirty = True
    irreversible: str | None = None
    cursor_class: type[Cursor] = Cursor
    limit: Limit | None = None
    stats: QueryStats | None = None
    running: str | None = None
    seconds = 0.0
    short = 0
    short_seconds = 0.0
    tracer: Any = None
    progress: tuple[Any, int] = _NO_HANDLER
    began_in_transaction = False
    rolled_back_by: str | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.initial = Initial()
        self.cursors: list[weakref.ref[Any]] = []
        super().__init__(*args, **kwargs)

    def cursor(self, factory: Any = Cursor) -> Any:
        """Return a new cursor; it is closed when the connection is released."""
        made = super().cursor(self.cursor_class if factory is Cursor else factory)
        self._track(made)
        if not isinstance(made, Cursor):
            self.mark_irreversible("statements of a cursor of another class")  # which are not inspected
        return made

    if sys.version_info >= (3, 11):

        def blobopen(self, *args: Any, **named: Any) -> sqlite3.Blob:
            """Open a blob; it is closed when the connection is released, because it keeps a transaction open."""
            made = super().blobopen(*args, **named)
            self._track(made)
            return made

    def _track(self, cursor: Any) -> None:
        cursors = self.cursors
        if len(cursors) >= _PRUNE_AT:
            cursors[:] = [reference for reference in cursors if reference() is not None]
        cursors.append(weakref.ref(cursor))

    # SQLite cannot be asked which handlers are set.

    def set_trace_callback(self, *args: Any, **named: Any) -> None:
        super().set_trace_callback(*args, **named)
        (self.tracer,) = (*args, *named.values())

    def set_progress_handler(self, *args: Any, **named: Any) -> None:
        super().set_progress_handler(*args, **named)
        handler = args[0] if args else named["progress_handler"]
        self.progress = (handler, args[1] if len(args) > 1 else named["n"])

    def keep_handlers(self) -> None:
        """Make the current handlers part of the initial state."""
        self.initial.tracer, self.initial.progress = self.tracer, self.progress

    def restore_handlers(self) -> None:
        """Set the handlers of the initial state."""
        self.set_trace_callback(self.initial.tracer)
        self.set_progress_handler(*self.initial.progress)
        self.progress = self.initial.progress

    # sqlite3's own shortcuts do not call `cursor` (CPython 3.11+).

    def execute(self, sql: str, parameters: Any = (), /) -> sqlite3.Cursor:
        return self._cursor().execute(sql, parameters)

    def executemany(self, sql: str, parameters: Any, /) -> sqlite3.Cursor:
        return self._cursor().executemany(sql, parameters)

    def executescript(self, sql: str, /) -> sqlite3.Cursor:
        return self._cursor().executescript(sql)

    def query(self, sql: str, parameters: Any) -> list[Any]:
        """Do what ``execute(sql, parameters).fetchall()`` does, and close the cursor: it needs no record then."""
        if sql[:1] not in _HARMLESS:
            self.inspect(sql)
        began = self.start_statement()
        cursor: Cursor = _cursor(self, self.cursor_class)
        try:
            _execute(cursor, sql, parameters)
            return _fetchall(cursor)
        except sqlite3.Error as error:
            raise self.failed(error, sql)  # noqa: B904
        finally:
            self.running = sql
            self.seconds = _now() - began
            cursor.close()

    def _cursor(self) -> Cursor:
        made: Cursor = _cursor(self, self.cursor_class)  # not by calling the class, which ignores row_factory
        self._track(made)
        return made

    def start_statement(self) -> float:
        """Record that a statement starts; return the time."""
        if self.running is not None:
            self.count_last()
        self.began_in_transaction = self.in_transaction
        now = _now()
        if self.limit is not None:
            self.limit.start(now)
        return now

    def inspect(self, sql: str) -> None:
        """Record whether a statement may change the connection itself."""
        begin = sql.lstrip()[:6].upper()
        if begin[:1] not in _HARMLESS and begin != "COMMIT" and begin[:3] != "END":
            self.mark_dirty(sql)

    def mark_dirty(self, sql: str) -> None:
        """Record that statements may change the connection itself, and whether a reset can undo it."""
        self.dirty = True
        left = pragma_left(sql, self.initial.restored)
        if left is not None:
            self.mark_irreversible(left)

    def mark_irreversible(self, change: str) -> None:
        """Record a change that no reset can undo: the connection is closed when it is released."""
        self.dirty = True
        self.irreversible = change

    def count_last(self) -> None:
        """Count the last statement."""
        sql, seconds = self.running, self.seconds
        if sql is None:
            return
        self.running = None
        if seconds < SHORT:
            self.short += 1
            self.short_seconds += seconds
        elif self.stats is not None:
            self.stats.record(sql, seconds)

    def failed(self, error: sqlite3.Error, sql: str | None = None) -> sqlite3.Error:
        """Record whether an error rolled the transaction back; return the error for the user.

        SQLite only says "interrupted" if the time limit is exceeded. Some errors
        (``ON CONFLICT ROLLBACK``, an interrupted INSERT, a full disk) undo
        the whole transaction.
        """
        if self.began_in_transaction and not self.in_transaction:
            statement = without_values(sql or self.running or "a statement")
            self.rolled_back_by = f"{statement} ({type(error).__name__})"
        if self.limit is None or not isinstance(error, sqlite3.OperationalError):
            return error
        return self.limit.explain(error)

    def rollback(self) -> None:
        """Roll back; a rollback by SQLite itself no longer matters then."""
        self.rolled_back_by = None
        super().rollback()

    def close_cursors(self) -> None:
        """Close cursors and blobs: one that is only partly read keeps a snapshot of the database."""
        for reference in self.cursors:
            cursor = reference()
            if cursor is not None:
                cursor.close()
        self.cursors.clear()


def end_transaction(conn: Connection) -> None:
    """Roll back and set the classic transaction control."""
    # Before the rollback: with autocommit=False (CPython 3.12+) a rollback begins the next transaction.
    if LEGACY is not None and getattr(conn, "autocommit", LEGACY) != LEGACY:
        setattr(conn, "autocommit", LEGACY)  # noqa: B010  # typed from CPython 3.12 on
    if conn.in_transaction:
        conn.rollback()


@functools.lru_cache(maxsize=16)
def connection_class(factory: type[sqlite3.Connection]) -> type[Connection]:
    """Return a subclass of the user's class and of `Connection`; the user's methods call ours by ``super()``."""
    if issubclass(Connection, factory):
        return Connection
    return type(factory.__name__, (factory, Connection), {"__module__": factory.__module__})


def _irreversible(name: str) -> Callable[..., Any]:
    method = getattr(sqlite3.Connection, name)

    @functools.wraps(method)
    def call(self: Connection, *args: Any, **named: Any) -> Any:
        self.mark_irreversible(f"{name}()")
        return method(self, *args, **named)

    return call


# What they set cannot be read, and so not be restored. Some need CPython 3.11 or 3.12, or an
# SQLite that was compiled with them.
for _name in (
    "create_function", "create_aggregate", "create_window_function", "create_collation", "set_authorizer",
    "setlimit", "setconfig", "deserialize", "enable_load_extension", "load_extension",
):  # fmt: skip
    if hasattr(sqlite3.Connection, _name):
        setattr(Connection, _name, _irreversible(_name))

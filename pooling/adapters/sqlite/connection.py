"""Connections that know what has to be cleaned, how long a statement may take and how long it took."""

from __future__ import annotations

import functools
import itertools
import sqlite3
import sys
import time
import weakref
from collections.abc import Callable
from typing import Any

from ... import errors
from ...core.report.histogram import SHORT
from .queries import QueryStats, without_values
from .traces import pragma_left

__all__ = ["STEPS", "Connection", "Cursor", "Limit", "LimitedCursor", "TransactionRolledBack", "made_of"]

# Statements that change rows at most begin with one of these letters; CREATE (TEMP TABLE),
# ATTACH, PRAGMA, comments and all else may leave something behind in the connection.
_HARMLESS = frozenset("SsIiUuDdRrVvWwBb")
STEPS = 1000  # of SQLite's virtual machine between two looks at the clock: some 0.1 ms
_PRUNE_AT = 64
_now = time.perf_counter


class TransactionRolledBack(errors.TransactionRolledBack, sqlite3.OperationalError):
    """`pooling.TransactionRolledBack`, of SQLite: it rolled back by itself, and the block went on."""


class Limit:
    """When the running statement has to end; SQLite asks every `STEPS` steps."""

    __slots__ = ("seconds", "deadline", "struck")

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.deadline = float("inf")
        self.struck = False

    def begin(self, now: float) -> None:
        """A statement begins."""
        self.deadline = now + self.seconds
        self.struck = False

    def end(self) -> None:
        """None of a borrower's runs any more: what the pool does itself has no limit."""
        self.deadline = float("inf")

    def over(self) -> bool:
        """Whether SQLite is to end it."""
        self.struck = _now() > self.deadline
        return self.struck

    def beside(self, handler: Callable[[], object] | None, steps: int) -> tuple[Callable[[], object], int]:
        """Return a progress handler, and its steps, that does what this one does, too: there can be but one."""
        if handler is None:
            return self.over, STEPS
        every, calls = max(1, steps // STEPS), itertools.count(1)

        def both() -> object:
            return self.over() or (next(calls) % every == 0 and handler())

        return both, min(STEPS, steps)

    def explain(self, error: sqlite3.OperationalError) -> sqlite3.OperationalError:
        """The error for the user, if it is this limit that struck."""
        if not self.struck:
            return error
        told = sqlite3.OperationalError(
            f"interrupted: the statement took over {self.seconds:g} s (statement_timeout)"
        )
        told.__cause__ = error
        return told


class Cursor(sqlite3.Cursor):
    """A cursor that times its statements and keeps them to their limit."""

    def execute(self, sql: str, parameters: Any = (), /) -> Cursor:
        conn: Connection = self.connection  # type: ignore[assignment]
        if sql[:1] not in _HARMLESS:
            conn.look_at(sql)
        began = conn.begin()
        try:
            _execute(self, sql, parameters)
        except sqlite3.Error as error:
            raise conn.failed(error, sql)  # noqa: B904
        finally:
            conn.running = sql
            conn.seconds = _now() - began
        return self

    def executemany(self, sql: str, parameters: Any, /) -> Cursor:
        self.connection.look_at(sql)  # type: ignore[attr-defined]
        return self._run(super().executemany, sql, parameters)

    def executescript(self, sql: str, /) -> Cursor:
        self.connection.note(sql)  # type: ignore[attr-defined]  # its first letter tells nothing
        return self._run(super().executescript, sql)

    def _run(self, method: Callable[..., Any], sql: str, *args: Any) -> Cursor:
        conn: Connection = self.connection  # type: ignore[assignment]
        began = conn.begin()
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
    """A cursor whose rows may come too late: it says then why there are no more.

    Apart from `Cursor`, whose rows come without a call of ours for each.
    """

    def __next__(self) -> Any:
        try:  # not by _explaining: it would double the price of a row
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


# Bound once: the cheaper call.
_execute, _fetchall, _next = sqlite3.Cursor.execute, sqlite3.Cursor.fetchall, sqlite3.Cursor.__next__
_cursor: Callable[..., Any] = sqlite3.Connection.cursor


class Connection(sqlite3.Connection):
    """A connection that knows what has to be cleaned, and counts its statements.

    Whoever holds it alone writes its attributes, as those of an entry.

    Attributes:
        dirty: Whether a statement may have changed the connection itself.
        spoiled: What a borrower left that only a new connection is without.
        restored: The names of the PRAGMAs that the pool sets back.
        surroundings: The databases and temporary tables that a new borrower finds.
        kind: The cursors that it makes.
        running, seconds: The last statement, not counted yet because its rows
            may still be fetched, and how long it took until now.
        short, short_seconds: How many statements took less than `SHORT`, and
            what they add up to.
        factories: The row and text factories that a new borrower finds.
        tracer, progress: The trace callback, and the progress handler with its steps.
        kept_tracer, kept_progress: Those that a new borrower finds.
        within: Whether the last statement began within a transaction.
        undone: The statement with whose error SQLite rolled that back by itself.
        file: Its database file and that one's identity, or ``None`` in memory.
    """

    dirty = True
    spoiled: str | None = None
    restored: frozenset[str] = frozenset()
    surroundings: frozenset[str] = frozenset()
    kind: type[Cursor] = Cursor
    stats: QueryStats | None = None
    limit: Limit | None = None
    running: str | None = None
    seconds = 0.0
    short = 0
    short_seconds = 0.0
    factories: tuple[Any, Any] = (None, str)
    tracer: Any = None
    progress: tuple[Any, int] = (None, 0)
    kept_tracer: Any = tracer
    kept_progress: tuple[Any, int] = progress
    within = False
    undone: str | None = None
    file: tuple[str, tuple[int, int]] | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._cursors: list[weakref.ref[Any]] = []  # and blobs
        super().__init__(*args, **kwargs)

    def cursor(self, factory: Any = Cursor) -> Any:
        """Make a cursor; it is closed when the connection is released."""
        made = super().cursor(self.kind if factory is Cursor else factory)
        self._keep(made)
        if not isinstance(made, Cursor):
            self.spoil("what a cursor of its own kind did")  # nobody saw it
        return made

    if sys.version_info >= (3, 11):

        def blobopen(self, *args: Any, **named: Any) -> sqlite3.Blob:
            """Open a blob; it is closed when the connection is released: open, it holds a transaction."""
            made = super().blobopen(*args, **named)
            self._keep(made)
            return made

    def _keep(self, cursor: Any) -> None:
        cursors = self._cursors
        if len(cursors) >= _PRUNE_AT:
            cursors[:] = [one for one in cursors if one() is not None]
        cursors.append(weakref.ref(cursor))

    # SQLite does not tell which handlers it has.

    def set_trace_callback(self, *args: Any, **named: Any) -> None:
        super().set_trace_callback(*args, **named)
        (self.tracer,) = (*args, *named.values())

    def set_progress_handler(self, *args: Any, **named: Any) -> None:
        super().set_progress_handler(*args, **named)
        handler = args[0] if args else named["progress_handler"]
        self.progress = (handler, args[1] if len(args) > 1 else named["n"])

    def keep_handlers(self) -> None:
        """Note the handlers as those that every borrower is to find."""
        self.kept_tracer, self.kept_progress = self.tracer, self.progress

    def restore_handlers(self) -> None:
        """Put back the handlers that a borrower has changed."""
        self.set_trace_callback(self.kept_tracer)
        self.set_progress_handler(*self.kept_progress)
        self.progress = self.kept_progress

    # sqlite3's own shortcuts make cursors past `cursor` (CPython 3.11+).

    def execute(self, sql: str, parameters: Any = (), /) -> sqlite3.Cursor:
        return self._cursor().execute(sql, parameters)

    def executemany(self, sql: str, parameters: Any, /) -> sqlite3.Cursor:
        return self._cursor().executemany(sql, parameters)

    def executescript(self, sql: str, /) -> sqlite3.Cursor:
        return self._cursor().executescript(sql)

    def _cursor(self) -> Cursor:
        made: Cursor = _cursor(self, self.kind)  # not Cursor(self), which knows no row_factory
        self._keep(made)
        return made

    def begin(self) -> float:
        """Note that a statement begins; return when."""
        if self.running is not None:
            self.flush()
        self.within = self.in_transaction
        now = _now()
        if self.limit is not None:
            self.limit.begin(now)
        return now

    def look_at(self, sql: str) -> None:
        """Note whether a statement may change the connection itself."""
        begin = sql.lstrip()[:6].upper()
        if begin[:1] not in _HARMLESS and begin != "COMMIT" and begin[:3] != "END":
            self.note(sql)

    def note(self, sql: str) -> None:
        """Note that statements may change the connection itself, and whether that can be undone."""
        self.dirty = True
        left = pragma_left(sql, self.restored)
        if left is not None:
            self.spoil(left)

    def spoil(self, by: str) -> None:
        """Note what nobody can undo: the next borrower gets another connection."""
        self.dirty = True
        self.spoiled = by

    def flush(self) -> None:
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
        """Note what a statement's error did to the transaction; return the error for the user.

        SQLite only says "interrupted" where a time limit struck. And some errors (``ON CONFLICT
        ROLLBACK``, an interrupted INSERT, a full disk) undo all that was done before.
        """
        if self.within and not self.in_transaction:
            self.undone = f"{without_values(sql or self.running or 'a statement')} ({type(error).__name__})"
        if self.limit is None or not isinstance(error, sqlite3.OperationalError):
            return error
        return self.limit.explain(error)

    def rollback(self) -> None:
        """Roll back, which answers what SQLite has undone by itself."""
        self.undone = None
        super().rollback()

    def close_cursors(self) -> None:
        """End what a borrower left half read: it would hold a snapshot of the database."""
        for reference in self._cursors:
            cursor = reference()
            if cursor is not None:
                cursor.close()
        self._cursors.clear()


@functools.lru_cache(maxsize=16)
def made_of(factory: type[sqlite3.Connection]) -> type[Connection]:
    """Return a class of connections that are the user's and ours; the user's methods call ours by ``super()``."""
    if issubclass(Connection, factory):
        return Connection
    return type(factory.__name__, (factory, Connection), {"__module__": factory.__module__})


def _spoiling(name: str) -> Callable[..., Any]:
    method = getattr(sqlite3.Connection, name)

    @functools.wraps(method)
    def call(self: Connection, *args: Any, **named: Any) -> Any:
        self.spoil(f"{name}()")
        return method(self, *args, **named)

    return call


# What they set cannot be read, and so not be set back. Some came with CPython 3.11 or 3.12,
# or are left out of SQLite where it was built so.
for _name in (
    "create_function", "create_aggregate", "create_window_function", "create_collation", "set_authorizer",
    "setlimit", "setconfig", "deserialize", "enable_load_extension", "load_extension",
):  # fmt: skip
    if hasattr(sqlite3.Connection, _name):
        setattr(Connection, _name, _spoiling(_name))

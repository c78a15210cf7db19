"""The connections of a `SQLitePool`: how they are made, watched, cleaned and ended.

A connection notes what its borrower does with it. What only read and wrote
rows needs no cleaning but a rollback; a statement that may have changed the
connection itself (a PRAGMA, ATTACH, a temporary table) makes its release
dearer, by some microseconds.
"""

from __future__ import annotations

import ctypes
import itertools
import logging
import os
import sqlite3
import time
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..core.adapter import Adapter
from ..core.metrics import SHORT
from ._queries import QueryStats

__all__ = ["PRAGMAS", "SQLiteAdapter"]

logger = logging.getLogger("pooling")

PRAGMAS: dict[str, object] = {"foreign_keys": "ON"}
"""Set on every connection, and again when a borrower may have changed them."""

# Statements that change rows at most begin with one of these letters; CREATE (TEMP TABLE),
# ATTACH, PRAGMA, comments and all else may leave something behind in the connection.
_HARMLESS = frozenset("SsIiUuDdRrVvWwBb")
_STEPS = 1000  # of SQLite's virtual machine between two looks at the clock: some 0.1 ms
_PRUNE_AT = 64
_LEGACY: Any = getattr(sqlite3, "LEGACY_TRANSACTION_CONTROL", None)  # CPython 3.12+
_now = time.perf_counter
_numbers = itertools.count(1)


class Limit:
    """When the running statement has to end; SQLite asks every `_STEPS` steps."""

    __slots__ = ("seconds", "deadline", "struck")

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.deadline = float("inf")
        self.struck = False

    def begin(self, now: float) -> None:
        """A statement begins."""
        self.deadline = now + self.seconds
        self.struck = False

    def over(self) -> bool:
        """Whether SQLite is to end it."""
        self.struck = _now() > self.deadline
        return self.struck

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
        except sqlite3.OperationalError as error:
            raise conn.explained(error)  # noqa: B904
        finally:
            conn.running = sql
            conn.seconds = _now() - began
        return self

    def executemany(self, sql: str, parameters: Any, /) -> Cursor:
        return self._run(super().executemany, sql, parameters)

    def executescript(self, sql: str, /) -> Cursor:
        self.connection.dirty = True  # type: ignore[attr-defined]
        return self._run(super().executescript, sql)

    def _run(self, method: Callable[..., Any], sql: str, *args: Any) -> Cursor:
        conn: Connection = self.connection  # type: ignore[assignment]
        conn.look_at(sql)
        began = conn.begin()
        try:
            method(sql, *args)
        except sqlite3.OperationalError as error:
            raise conn.explained(error)  # noqa: B904
        finally:
            conn.running = sql
            conn.seconds = _now() - began
        return self

    def fetchall(self) -> list[Any]:
        began = _now()
        try:
            return _fetchall(self)
        except sqlite3.OperationalError as error:
            raise self.connection.explained(error)  # type: ignore[attr-defined]  # noqa: B904
        finally:  # a statement ends with its last row
            self.connection.seconds += _now() - began  # type: ignore[attr-defined]


_execute, _fetchall = sqlite3.Cursor.execute, sqlite3.Cursor.fetchall  # bound once: the cheaper call


class Connection(sqlite3.Connection):
    """A connection that knows what has to be cleaned, and counts its statements.

    Whoever holds it alone writes its attributes, as those of an entry.

    Attributes:
        dirty: Whether a statement may have changed the connection itself.
        running, seconds: The last statement, not counted yet because its rows
            may still be fetched, and how long it took until now.
        short, short_seconds: How many statements took less than `SHORT`, and
            what they add up to.
        file: Its database file and that one's identity, or ``None`` in memory.
    """

    dirty = True
    stats: QueryStats | None = None
    limit: Limit | None = None
    running: str | None = None
    seconds = 0.0
    short = 0
    short_seconds = 0.0
    file: tuple[str, tuple[int, int]] | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._cursors: list[weakref.ref[sqlite3.Cursor]] = []
        super().__init__(*args, **kwargs)

    def cursor(self, factory: Any = Cursor) -> Any:
        """Make a cursor; it is closed when the connection is released."""
        made = super().cursor(factory)
        self._note(made)
        if factory is not Cursor:
            self.dirty = True  # nobody notes what it does
        return made

    def _note(self, cursor: sqlite3.Cursor) -> None:
        cursors = self._cursors
        if len(cursors) >= _PRUNE_AT:
            cursors[:] = [one for one in cursors if one() is not None]
        cursors.append(weakref.ref(cursor))

    # sqlite3's own shortcuts make cursors past `cursor` (CPython 3.11+).

    def execute(self, sql: str, parameters: Any = (), /) -> sqlite3.Cursor:
        cursor = Cursor(self)
        self._note(cursor)
        return cursor.execute(sql, parameters)

    def executemany(self, sql: str, parameters: Any, /) -> sqlite3.Cursor:
        cursor = Cursor(self)
        self._note(cursor)
        return cursor.executemany(sql, parameters)

    def executescript(self, sql: str, /) -> sqlite3.Cursor:
        cursor = Cursor(self)
        self._note(cursor)
        return cursor.executescript(sql)

    def begin(self) -> float:
        """Note that a statement begins; return when."""
        if self.running is not None:
            self.flush()
        now = _now()
        if self.limit is not None:
            self.limit.begin(now)
        return now

    def look_at(self, sql: str) -> None:
        """Note whether a statement may change the connection itself."""
        if sql.lstrip()[:1] not in _HARMLESS:
            self.dirty = True

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

    def explained(self, error: sqlite3.OperationalError) -> sqlite3.OperationalError:
        """The error for the user: SQLite only says "interrupted"."""
        return error if self.limit is None else self.limit.explain(error)

    def close_cursors(self) -> None:
        """End what a borrower left half read: it would hold a snapshot of the database."""
        for reference in self._cursors:
            cursor = reference()
            if cursor is not None:
                cursor.close()
        self._cursors.clear()


class _Memory:
    """A database in memory that all connections of one pool and one process share.

    It lives as long as a connection to it is open: one is held here. A child
    gets an empty one of its own; the parent's is never touched there.
    """

    def __init__(self) -> None:
        if sqlite3.sqlite_version_info < (3, 36):
            raise ValueError(
                "path: a database in memory that connections share needs SQLite 3.36, "
                f"and this is {sqlite3.sqlite_version}"
            )
        self._number = next(_numbers)
        self._anchors: dict[int, sqlite3.Connection] = {}  # by process id
        weakref.finalize(self, _close_anchor, self._anchors).atexit = False

    def uri(self) -> str:
        pid = os.getpid()
        uri = f"file:/pooling-{pid}-{self._number}?vfs=memdb"
        if pid not in self._anchors:
            for inherited in self._anchors.values():
                _keep_for_ever(inherited)
            self._anchors.setdefault(pid, sqlite3.connect(uri, uri=True, check_same_thread=False))
        return uri

    def drop(self) -> None:
        """Let the database go with its last connection."""
        _close_anchor(self._anchors)


def _close_anchor(anchors: dict[int, sqlite3.Connection]) -> None:
    anchor = anchors.pop(os.getpid(), None)
    if anchor is not None:
        anchor.close()


def _keep_for_ever(conn: sqlite3.Connection) -> None:
    # "Do not open an SQLite database connection, then fork(2), then try to use that
    # connection in the child", nor close it: that would drop the locks of the
    # parent (sqlite.org/howtocorrupt.html, 2.6). A reference for ever, past the
    # interpreter's end, is what keeps it open.
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(conn))


class SQLiteAdapter(Adapter[sqlite3.Connection]):
    """How connections are made and kept; see `SQLitePool` for the arguments."""

    noun = "connection"
    bounded = True  # checks and rollbacks wait for nobody but the disk

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        timeout: float = 5.0,
        pragmas: Mapping[str, object] | None = None,
        validation_query: str | None = None,
        statement_timeout: float | None = None,
        optimize: bool = True,
        memory: _Memory | None = None,
    ) -> None:
        path = os.fspath(path)
        self.memory = (memory or _Memory()) if path == ":memory:" else None
        uri = path.startswith("file:") or self.memory
        self.path = path if uri else os.path.abspath(path)  # whatever the directory is later
        self.timeout = timeout
        self.statement_timeout = statement_timeout
        self.optimize = optimize
        self.query = validation_query or "SELECT 1"
        self.stats: QueryStats | None = None
        every = PRAGMAS | {"busy_timeout": int(timeout * 1000)} | dict(pragmas or {})
        self._journal = every.pop("journal_mode", None if self.memory else "WAL")
        self._cleaning = [f"PRAGMA {name}={value}" for name, value in every.items()]

    # -- life ---------------------------------------------------------------------

    def create(self) -> sqlite3.Connection:
        conn = sqlite3.connect(
            self.memory.uri() if self.memory else self.path,
            timeout=self.timeout,
            isolation_level="IMMEDIATE",
            check_same_thread=False,  # one thread at a time, says the pool (P1)
            factory=Connection,
            uri=self.memory is not None or self.path.startswith("file:"),
        )
        try:
            if self._journal is not None:
                self._set_journal(conn)
            self._clean(conn)
            conn.file = _file_of(conn)
        except BaseException:
            conn.close()
            raise
        conn.running, conn.short, conn.short_seconds = None, 0, 0.0  # our own statements do not count
        if self.statement_timeout is not None:
            conn.limit = Limit(self.statement_timeout)
            conn.set_progress_handler(conn.limit.over, _STEPS)
        if self.stats is not None:
            conn.stats = self.stats
            conn.stats.join(conn)
        return conn

    def _set_journal(self, conn: sqlite3.Connection) -> None:
        """Set the journal mode; who comes second to a new file may find it locked meanwhile."""
        deadline = _now() + self.timeout
        while True:
            try:
                (mode,) = conn.execute(f"PRAGMA journal_mode={self._journal}").fetchone()
                break
            except sqlite3.OperationalError as error:
                # SQLite does not wait here by itself, whatever the busy timeout is.
                if "locked" not in str(error) or _now() >= deadline:
                    raise
                time.sleep(0.005)
        if str(mode).lower() != str(self._journal).lower():
            logger.warning(
                "%s: the journal mode is %s, and %s cannot be had", self.path, mode, self._journal
            )

    def is_alive(self, resource: sqlite3.Connection) -> bool:
        assert isinstance(resource, Connection)
        try:
            resource.total_changes  # noqa: B018  # a closed one raises
        except sqlite3.ProgrammingError:
            return False
        if resource.file is None:
            return True
        path, identity = resource.file
        if _identity(path) == identity:
            return True
        logger.warning("%s: the database file was replaced or deleted; opening it anew", path)
        return False

    def validate(self, resource: sqlite3.Connection, timeout: float) -> None:
        sqlite3.Cursor(resource).execute(self.query).fetchall()

    def reset(self, resource: sqlite3.Connection) -> None:
        assert isinstance(resource, Connection)
        resource.flush()
        resource.close_cursors()
        if resource.in_transaction:
            resource.rollback()
        self._clean(resource)

    def close(self, resource: sqlite3.Connection) -> None:
        assert isinstance(resource, Connection)
        resource.flush()
        if resource.stats is not None:
            resource.stats.leave(resource)
        try:
            resource.close_cursors()
            if self.optimize:
                _optimize(resource)
        except sqlite3.Error:  # busy, read-only or closed by its borrower: the next one's turn
            pass
        resource.close()

    def interrupt(self, resource: sqlite3.Connection) -> None:
        resource.interrupt()

    def abandon(self, resource: sqlite3.Connection) -> None:
        _keep_for_ever(resource)

    # -- errors -------------------------------------------------------------------

    def is_broken(self, resource: sqlite3.Connection, error: BaseException) -> bool:
        return not self.is_alive(resource)

    def is_final(self, error: BaseException) -> bool:
        if getattr(error, "sqlite_errorname", None) == "SQLITE_NOTADB":  # CPython 3.11+
            return True
        return not self.path.startswith(("file:", ":")) and not Path(self.path).parent.is_dir()

    # -- cleaning -----------------------------------------------------------------

    def _look_around(self, conn: Connection) -> None:
        """Refuse a connection with attached databases or temporary tables: a new one is cheap."""
        cursor = sqlite3.Cursor(conn)
        left = [row[1] for row in cursor.execute("PRAGMA database_list")]
        left.remove("main")
        if "temp" in left and not cursor.execute("SELECT 1 FROM sqlite_temp_master").fetchall():
            left.remove("temp")  # SQLite itself opens it now and then
        if left:
            raise sqlite3.ProgrammingError(f"its borrower left these databases behind: {left}")

    def _clean(self, conn: Connection) -> None:
        """Set all that a borrower can set on the connection to the pool's values."""
        if conn.isolation_level != "IMMEDIATE":
            conn.isolation_level = "IMMEDIATE"
        if _LEGACY is not None and getattr(conn, "autocommit", _LEGACY) != _LEGACY:
            setattr(conn, "autocommit", _LEGACY)  # noqa: B010  # typed from CPython 3.12 on
        conn.row_factory = None
        conn.text_factory = str
        conn.set_trace_callback(None)
        if conn.limit is None:
            conn.set_progress_handler(None, 0)
        else:
            conn.set_progress_handler(conn.limit.over, _STEPS)
        if conn.dirty:
            self._look_around(conn)
            cursor = sqlite3.Cursor(conn)
            for pragma in self._cleaning:
                cursor.execute(pragma)
        conn.dirty = False


def _optimize(conn: Connection) -> None:
    """Do before closing what sqlite.org/lang_analyze.html advises; never wait for anybody."""
    conn.rollback()
    conn.set_progress_handler(None, 0)
    cursor = sqlite3.Cursor(conn)
    for pragma in ("busy_timeout=0", "analysis_limit=400", "optimize"):
        cursor.execute(f"PRAGMA {pragma}")


def _file_of(conn: sqlite3.Connection) -> tuple[str, tuple[int, int]] | None:
    path = conn.execute("PRAGMA database_list").fetchone()[2]
    identity = _identity(path) if path else None
    return (path, identity) if identity else None


def _identity(path: str) -> tuple[int, int] | None:
    """Which file it is; ``None`` if there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino

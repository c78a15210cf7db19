"""How a `SQLitePool` makes, looks at, cleans and ends connections.

What only read and wrote rows needs no cleaning but a rollback; a statement that
may have changed the connection itself (a PRAGMA, ATTACH, a temporary table)
makes its release dearer, by some microseconds, and what cannot be undone by a
new connection.
"""

from __future__ import annotations

import ctypes
import itertools
import logging
import os
import re
import sqlite3
import time
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ..._masking import is_address, masked, shown
from ...core.adapter import Adapter
from .connection import Connection, Limit, LimitedCursor, made_of
from .queries import QueryStats
from .traces import pragmas_in

__all__ = ["PRAGMAS", "SQLiteAdapter"]

logger = logging.getLogger("pooling")

PRAGMAS: dict[str, object] = {"foreign_keys": "ON"}
"""Set on every connection, and again when a borrower may have changed them."""

_LEGACY: Any = getattr(sqlite3, "LEGACY_TRANSACTION_CONTROL", None)  # CPython 3.12+
# What shapes a new file has to be said before WAL writes its first page; later it does nothing.
_SHAPES = ("page_size", "auto_vacuum", "encoding")
_numbers = itertools.count(1)


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
        weakref.finalize(self, _close_anchor, self._anchors)  # at the exit, too

    def uri(self) -> str:
        pid = os.getpid()
        uri = f"file:/pooling-{pid}-{self._number}?vfs=memdb"
        if pid not in self._anchors:
            for inherited in self._anchors.values():
                _keep_forever(inherited)
            anchor = sqlite3.connect(uri, uri=True, check_same_thread=False)
            if self._anchors.setdefault(pid, anchor) is not anchor:
                anchor.close()  # another thread was faster
        return uri

    def drop(self) -> None:
        """Let the database go with its last connection."""
        _close_anchor(self._anchors)


def _close_anchor(anchors: dict[int, sqlite3.Connection]) -> None:
    anchor = anchors.pop(os.getpid(), None)
    if anchor is not None:
        anchor.close()


def _keep_forever(conn: sqlite3.Connection) -> None:
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
        configure: Callable[[sqlite3.Connection], object] | None = None,
        memory: _Memory | None = None,
        uri: bool | None = None,
        isolation_level: str | None = "IMMEDIATE",
        autocommit: bool | int | None = None,
        factory: type[sqlite3.Connection] = sqlite3.Connection,
        **connect: Any,
    ) -> None:
        if getattr(sqlite3, "threadsafety", 1) == 0:  # CPython 3.11+ looks how it was compiled
            raise sqlite3.NotSupportedError("this SQLite was compiled for programs with one thread")
        path = path_of(path)
        self.memory = (memory or _Memory()) if path == ":memory:" else None
        self.uri = path.startswith("file:") and uri is not False
        if self.uri:
            path = _absolute(path)
        self.path = path if self.uri or self.memory else os.path.abspath(path)  # whatever the directory is later
        self.isolation_level: Any = isolation_level.upper() if isolation_level else isolation_level
        self.autocommit = _LEGACY if autocommit is None else autocommit
        self.kind = made_of(factory)  # type: ignore[arg-type]  # mypy: a class is not Hashable
        self.connect = connect
        self.timeout = timeout
        self.statement_timeout = statement_timeout
        self.optimize = optimize
        self.configure = configure
        self.query = validation_query or "SELECT 1"
        self.stats: QueryStats | None = None
        wait = timeout if statement_timeout is None else min(timeout, statement_timeout)
        given = {name.lower(): value for name, value in (pragmas or {}).items()}
        every: dict[str, object] = PRAGMAS | {"busy_timeout": int(wait * 1000)} | given
        self._journal = every.pop("journal_mode", None if self.memory else "WAL")
        self._shape = [f"PRAGMA {name}={every.pop(name)}" for name in _SHAPES if name in every]
        self._warned = False
        self._cleaning = [f"PRAGMA {name}={value}" for name, value in every.items()]

    # -- life ---------------------------------------------------------------------

    def after_fork(self) -> None:
        if self.stats is not None:
            self.stats.renew()

    def create(self) -> sqlite3.Connection:
        conn = sqlite3.connect(
            self.memory.uri() if self.memory else self.path,
            timeout=self.timeout,
            isolation_level=self.isolation_level,
            check_same_thread=False,  # one thread at a time, says the pool (P1)
            factory=self.kind,
            uri=self.memory is not None or self.uri,
            **self.connect,
        )
        try:
            for pragma in self._shape:
                conn.execute(pragma)
            if self._journal is not None:
                self._set_journal(conn)
            self._clean(conn)
            conn.file = file_of(conn)
            if self.configure is not None:
                self.configure(conn)
                conn.commit()
                conn.factories = conn.row_factory, conn.text_factory
                conn.keep_handlers()
            self._finish(conn)
        except BaseException:
            conn.close()
            raise
        if self.statement_timeout is not None:
            conn.limit, conn.kind = Limit(self.statement_timeout), LimitedCursor
            conn.set_progress_handler(*conn.limit.beside(*conn.progress))
            conn.keep_handlers()
        if self.stats is not None:
            conn.stats = self.stats
            conn.stats.join(conn)
        return conn

    def _finish(self, conn: Connection) -> None:
        """Note how a new borrower finds it: nothing that was done until now is a borrower's trace."""
        conn.close_cursors()
        end_transaction(conn)
        conn.surroundings = _surroundings(conn)
        conn.restored = pragmas_in(self._cleaning)
        self._clean(conn)
        self._begin(conn)
        conn.spoiled = None
        conn.running, conn.short, conn.short_seconds = None, 0, 0.0  # our own statements do not count

    def _set_journal(self, conn: sqlite3.Connection) -> None:
        """Set the journal mode; who comes second to a new file may find it locked meanwhile."""
        deadline = time.monotonic() + self.timeout
        while True:
            try:
                (mode,) = conn.execute(f"PRAGMA journal_mode={self._journal}").fetchone()
                break
            except sqlite3.OperationalError as error:
                if "locked" not in str(error):
                    mode = _mode_of(conn, error)
                    break
                # SQLite does not wait here by itself, whatever the busy timeout is.
                if time.monotonic() >= deadline:
                    raise
                time.sleep(0.005)
        if str(mode).lower() != str(self._journal).lower() and not self._warned:
            self._warned = True
            logger.warning(
                "%s: the journal mode is %s, and %s cannot be had", readable(self.path), mode, self._journal
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
        logger.warning("%s: the database file was replaced or deleted; opening it anew", readable(path))
        return False

    def validate(self, resource: sqlite3.Connection, timeout: float) -> None:
        assert isinstance(resource, Connection)
        if resource.limit is not None:
            resource.limit.end()  # the last statement's, which may have ended in an error
        sqlite3.Cursor(resource).execute(self.query).fetchall()

    def reset(self, resource: sqlite3.Connection) -> None:
        assert isinstance(resource, Connection)
        resource.flush()
        if resource.limit is not None:
            resource.limit.end()
        resource.close_cursors()
        end_transaction(resource)
        resource.undone = None
        if resource.dirty:
            _look_around(resource)
        self._clean(resource)
        if self.autocommit is not _LEGACY:
            self._begin(resource)

    def close(self, resource: sqlite3.Connection) -> None:
        assert isinstance(resource, Connection)
        resource.flush()
        if resource.stats is not None:
            resource.stats.leave(resource)
        try:
            resource.close_cursors()
            if self.optimize and resource.spoiled is None:
                _optimize(resource)
        except sqlite3.Error:  # busy, read-only or closed by its borrower: the next one's turn
            pass
        resource.close()

    def interrupt(self, resource: sqlite3.Connection) -> None:
        resource.interrupt()

    def abandon(self, resource: sqlite3.Connection) -> None:
        _keep_forever(resource)

    # -- errors -------------------------------------------------------------------

    def is_broken(self, resource: sqlite3.Connection, error: BaseException) -> bool:
        return not self.is_alive(resource)

    def is_final(self, error: BaseException) -> bool:
        if super().is_final(error) or getattr(error, "sqlite_errorname", None) == "SQLITE_NOTADB":  # CPython 3.11+
            return True
        path = Path(self.path)
        return not (self.uri or self.memory) and (path.is_dir() or not path.parent.is_dir())

    # -- cleaning -----------------------------------------------------------------

    def _clean(self, conn: Connection) -> None:
        """Set all that a borrower can set on the connection to the pool's values."""
        if conn.isolation_level != self.isolation_level:
            conn.isolation_level = self.isolation_level
        conn.row_factory, conn.text_factory = conn.factories
        if conn.tracer is not conn.kept_tracer or conn.progress is not conn.kept_progress:
            conn.restore_handlers()
        if conn.dirty:
            cursor = sqlite3.Cursor(conn)
            for pragma in self._cleaning:
                cursor.execute(pragma)
        conn.dirty = False

    def _begin(self, conn: Connection) -> None:
        """Let transactions be begun as the pool was told; the cleaning ran outside of any."""
        if self.autocommit is not _LEGACY and self.autocommit != _LEGACY:
            setattr(conn, "autocommit", self.autocommit)  # noqa: B010  # typed from CPython 3.12 on


def _mode_of(conn: sqlite3.Connection, error: sqlite3.OperationalError) -> str:
    """Return the journal mode of a database that cannot be written, if it can be read; else raise the error."""
    try:
        (mode,) = conn.execute("PRAGMA journal_mode").fetchone()
        conn.execute("SELECT count(*) FROM sqlite_master").fetchall()
    except sqlite3.Error:
        raise error from None
    return str(mode)


def end_transaction(conn: Connection) -> None:
    # Before the rollback: after it, autocommit=False (CPython 3.12+) begins another transaction.
    if _LEGACY is not None and getattr(conn, "autocommit", _LEGACY) != _LEGACY:
        setattr(conn, "autocommit", _LEGACY)  # noqa: B010  # typed from CPython 3.12 on
    if conn.in_transaction:
        conn.rollback()


def _look_around(conn: Connection) -> None:
    """Refuse a connection with what cannot be undone, other databases or temporary tables: a new one is cheap."""
    if conn.spoiled is not None:
        raise sqlite3.ProgrammingError(f"its borrower left behind: {conn.spoiled}")
    changed = _surroundings(conn) ^ conn.surroundings
    if changed:
        raise sqlite3.ProgrammingError(f"its borrower attached, made or dropped: {', '.join(sorted(changed))}")


def _surroundings(conn: Connection) -> frozenset[str]:
    """Return its databases and what is temporary; `_clean` has to follow."""
    conn.text_factory = os.fsdecode  # names of files need not be UTF-8
    cursor = sqlite3.Cursor(conn)
    files = {name: file for _, name, file in cursor.execute("PRAGMA database_list")}
    found = {f"{name} {file}".strip() for name, file in files.items() if name != "temp"}
    if "temp" in files:  # SQLite itself opens it now and then
        found |= {f"temp.{row[0]}" for row in cursor.execute("SELECT name FROM sqlite_temp_master")}
    return frozenset(found)


def _optimize(conn: Connection) -> None:
    """Do before closing what sqlite.org/lang_analyze.html advises; never wait for anybody."""
    end_transaction(conn)
    conn.set_trace_callback(None)
    conn.set_progress_handler(None, 0)
    cursor = sqlite3.Cursor(conn)
    for pragma in ("busy_timeout=0", "analysis_limit=400", "optimize"):
        cursor.execute(f"PRAGMA {pragma}")


def path_of(path: str | os.PathLike[str]) -> str:
    """Return the path as text.

    Raises:
        TypeError, ValueError: It is none, or names no database that connections can share.
    """
    text = os.fspath(path)
    if not isinstance(text, str):
        raise TypeError(f"path must be a text or a path, not {shown(text)}")
    if not text:  # to SQLite, a database of each connection's own
        raise ValueError("path must not be empty; ':memory:' is a database in memory")
    if isinstance(path, str) and is_address(path):  # with another kind of path somebody has said that it is one
        raise ValueError("path looks like an address; from_url takes sqlite:// URLs, pathlib.Path any name of a file")
    if "\0" in text:
        raise ValueError("path must not hold a null character")
    return text


def readable(path: str) -> str:
    """Return a path as it may stand in a log: any text can be written there."""
    return masked(path).encode("utf-8", "backslashreplace").decode()


def _absolute(uri: str) -> str:
    """Return a ``file:`` URI whose path no longer depends on the directory of the process."""
    path, mark, rest = re.match(r"file:([^?#]*)(.?)(.*)", uri, re.S).groups()  # type: ignore[union-attr]
    in_memory = path == ":memory:" or re.search(r"(?:^|&)(?:mode=memory|vfs=memdb)(?:&|#|$)", rest)
    if path.startswith("/") or not path or (mark != "#" and in_memory):
        return uri
    return f"file:{quote(os.fsencode(os.getcwd())).rstrip('/')}/{path}{mark}{rest}"


def file_of(conn: sqlite3.Connection) -> tuple[str, tuple[int, int]] | None:
    factory, conn.text_factory = conn.text_factory, os.fsdecode  # the name of a file need not be UTF-8
    try:
        path = sqlite3.Cursor(conn).execute("PRAGMA database_list").fetchone()[2]
    finally:
        conn.text_factory = factory
    identity = _identity(path) if path else None
    return (path, identity) if identity else None


def _identity(path: str) -> tuple[int, int] | None:
    """Which file it is; ``None`` if there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino

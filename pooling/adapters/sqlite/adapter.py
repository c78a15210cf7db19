"""How the connections of a `SQLitePool` are created, checked, reset and closed.

After statements that only read or changed rows, a reset is a rollback. After
one that may have changed the connection itself (a PRAGMA, ATTACH, a temporary
table) it takes some microseconds more, and closes the connection if the change
cannot be undone.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..._fields import fields
from ...core.adapter import Adapter
from ...core.runtime.immortal import keep_forever
from .connection import LEGACY, Connection, LimitedCursor, connection_class, end_transaction
from .limit import Limit
from .memory import SharedMemory
from .paths import absolute_uri, checked_path, file_of, identity_of, printable_path
from .queries import QueryStats
from .traces import pragmas_in
from .upkeep import optimize_before_close

__all__ = ["PRAGMAS", "Pragmas", "SQLiteAdapter"]

logger = logging.getLogger("pooling")

PRAGMAS: dict[str, object] = {"foreign_keys": "ON"}
"""Set on every connection, and again after a borrower may have changed them."""

# They only take effect in a new file, before WAL mode writes its first page.
_FILE_FORMAT = ("page_size", "auto_vacuum", "encoding")


class Pragmas:
    """The PRAGMAs of a pool's connections.

    Args:
        values: Their values, by name in lower case.
        journal_mode: The journal mode, unless ``values`` contains another.

    Attributes:
        journal_mode: The journal mode to set; ``None`` leaves that of the file.
        format: Statements for a new file.
        restored: Statements for each new connection, and for each reset after
            a borrower may have changed something.
    """

    __slots__ = ("journal_mode", "format", "restored")

    def __init__(self, values: Mapping[str, object], journal_mode: str | None) -> None:
        every = dict(values)
        self.journal_mode = every.pop("journal_mode", journal_mode)
        self.format = [f"PRAGMA {name}={every.pop(name)}" for name in _FILE_FORMAT if name in every]
        self.restored = [f"PRAGMA {name}={value}" for name, value in every.items()]


class SQLiteAdapter(Adapter[sqlite3.Connection]):
    """Creates and maintains connections; see `SQLitePool` for the arguments.

    Args:
        memory: The database in memory of another adapter, to share it.
        stats: Where statements are counted; ``None`` does not count them.
    """

    noun = "connection"
    enforces_timeouts = True  # checks and rollbacks wait only for the disk

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
        memory: SharedMemory | None = None,
        stats: QueryStats | None = None,
        uri: bool | None = None,
        isolation_level: str | None = "IMMEDIATE",
        autocommit: bool | int | None = None,
        factory: type[sqlite3.Connection] = sqlite3.Connection,
        **connect: Any,
    ) -> None:
        if getattr(sqlite3, "threadsafety", 1) == 0:  # CPython 3.11+ reports how SQLite was compiled
            raise sqlite3.NotSupportedError("this SQLite was compiled for programs with one thread")
        path = checked_path(path)
        self.memory = (memory or SharedMemory()) if path == ":memory:" else None
        self.uri = path.startswith("file:") and uri is not False
        if self.uri:
            path = absolute_uri(path)
        self.path = path if self.uri or self.memory else os.path.abspath(path)  # the current directory may change
        self.isolation_level: Any = isolation_level.upper() if isolation_level else isolation_level
        self.autocommit = LEGACY if autocommit is None else autocommit
        self.factory = connection_class(factory)  # type: ignore[arg-type]  # mypy: a class is not Hashable
        self.connect = connect
        self.timeout = timeout
        self.statement_timeout = statement_timeout
        self.optimize = optimize
        self.configure = configure
        self.query = validation_query or "SELECT 1"
        self.stats = stats
        wait = timeout if statement_timeout is None else min(timeout, statement_timeout)
        given = {name.lower(): value for name, value in (pragmas or {}).items()}
        self.pragmas = Pragmas(
            PRAGMAS | {"busy_timeout": int(wait * 1000)} | given, journal_mode=None if self.memory else "WAL"
        )
        self._warned = False

    # -- life ---------------------------------------------------------------------

    def after_fork(self) -> None:
        if self.stats is not None:
            self.stats.renew()

    def create(self) -> sqlite3.Connection:
        conn = sqlite3.connect(
            self.memory.uri() if self.memory else self.path,
            timeout=self.timeout,
            isolation_level=self.isolation_level,
            check_same_thread=False,  # the pool lets one thread use it at a time (P1)
            factory=self.factory,
            uri=self.memory is not None or self.uri,
            **self.connect,
        )
        try:
            for pragma in self.pragmas.format:
                conn.execute(pragma)
            if self.pragmas.journal_mode is not None:
                self._set_journal_mode(conn)
            self._restore(conn)
            if self.configure is not None:
                self.configure(conn)
                conn.commit()
                conn.initial.factories = conn.row_factory, conn.text_factory
                conn.keep_handlers()
            self.keep_initial(conn)
        except BaseException:
            conn.close()
            raise
        if self.statement_timeout is not None:
            conn.limit, conn.cursor_class = Limit(self.statement_timeout), LimitedCursor
            conn.set_progress_handler(*conn.limit.combined_with(*conn.progress))
            conn.keep_handlers()
        if self.stats is not None:
            conn.stats = self.stats
            conn.stats.join(conn)
        return conn

    def keep_initial(self, conn: Connection) -> None:
        """Make the present state of a new connection the initial state of every lease."""
        conn.close_cursors()
        end_transaction(conn)
        conn.initial.file = file_of(conn)
        conn.initial.surroundings = _surroundings(conn)
        conn.initial.restored = pragmas_in(self.pragmas.restored)
        self._restore(conn)
        self._set_autocommit(conn)
        conn.irreversible = None
        conn.running, conn.short, conn.short_seconds = None, 0, 0.0  # the pool's own statements do not count

    def _set_journal_mode(self, conn: sqlite3.Connection) -> None:
        """Set the journal mode, waiting for another connection that does the same with a new file."""
        wanted = self.pragmas.journal_mode
        deadline = time.monotonic() + self.timeout
        while True:
            try:
                (mode,) = conn.execute(f"PRAGMA journal_mode={wanted}").fetchone()
                break
            except sqlite3.OperationalError as error:
                if "locked" not in str(error):
                    mode = _readable_mode(conn, error)
                    break
                # The busy timeout has no effect on this statement.
                if time.monotonic() >= deadline:
                    raise
                time.sleep(0.005)
        if str(mode).lower() != str(wanted).lower() and not self._warned:
            self._warned = True
            path = printable_path(self.path)
            extra = fields("journal_mode", path=path, what=str(mode))
            logger.warning("%s: the journal mode is %s, because %s is not possible", path, mode, wanted, extra=extra)

    def is_alive(self, resource: sqlite3.Connection) -> bool:
        assert isinstance(resource, Connection)
        try:
            resource.total_changes  # noqa: B018  # raises if the connection is closed
        except sqlite3.ProgrammingError:
            return False
        file = resource.initial.file
        if file is None or identity_of(file[0]) == file[1]:
            return True
        path = printable_path(file[0])
        extra = fields("file_replaced", path=path)
        logger.warning("%s: the database file was replaced or deleted; opening it again", path, extra=extra)
        return False

    def validate(self, resource: sqlite3.Connection, timeout: float) -> None:
        assert isinstance(resource, Connection)
        if resource.limit is not None:
            resource.limit.stop()  # that of the last statement, which may have failed
        sqlite3.Cursor(resource).execute(self.query).fetchall()

    def reset(self, resource: sqlite3.Connection) -> None:
        assert isinstance(resource, Connection)
        if resource.running is not None:
            resource.count_last()
        if resource.limit is not None:
            resource.limit.stop()
        if resource.cursors:
            resource.close_cursors()
        if LEGACY is not None or resource.in_transaction:
            end_transaction(resource)
        resource.rolled_back_by = None
        if resource.dirty:
            _check_reversible(resource)
        self._restore(resource)
        if self.autocommit is not LEGACY:
            self._set_autocommit(resource)

    def close(self, resource: sqlite3.Connection) -> None:
        assert isinstance(resource, Connection)
        resource.count_last()
        if resource.stats is not None:
            resource.stats.leave(resource)
        try:
            resource.close_cursors()
            if self.optimize and resource.irreversible is None:
                optimize_before_close(resource)
        except sqlite3.Error:  # locked, read-only, or closed by its borrower: left to the next close
            pass
        resource.close()

    def interrupt(self, resource: sqlite3.Connection) -> None:
        resource.interrupt()

    def abandon(self, resource: sqlite3.Connection) -> None:
        # A child must neither use nor close an inherited connection: that would drop the
        # locks of the parent (sqlite.org/howtocorrupt.html, 2.6).
        keep_forever(resource)

    # -- errors -------------------------------------------------------------------

    def is_broken(self, resource: sqlite3.Connection, error: BaseException) -> bool:
        return not self.is_alive(resource)

    def is_final(self, error: BaseException) -> bool:
        if super().is_final(error) or getattr(error, "sqlite_errorname", None) == "SQLITE_NOTADB":  # CPython 3.11+
            return True
        path = Path(self.path)
        return not (self.uri or self.memory) and (path.is_dir() or not path.parent.is_dir())

    # -- reset --------------------------------------------------------------------

    def _restore(self, conn: Connection) -> None:
        """Set everything that a borrower can change to its initial value."""
        initial = conn.initial
        if conn.isolation_level != self.isolation_level:
            conn.isolation_level = self.isolation_level
        conn.row_factory, conn.text_factory = initial.factories
        if conn.tracer is not initial.tracer or conn.progress is not initial.progress:
            conn.restore_handlers()
        if conn.dirty:
            cursor = sqlite3.Cursor(conn)
            for pragma in self.pragmas.restored:
                cursor.execute(pragma)
        conn.dirty = False

    def _set_autocommit(self, conn: Connection) -> None:
        """Set the transaction control of the pool; the reset needs the classic one."""
        if self.autocommit is not LEGACY and self.autocommit != LEGACY:
            setattr(conn, "autocommit", self.autocommit)  # noqa: B010  # typed from CPython 3.12 on


def _readable_mode(conn: sqlite3.Connection, error: sqlite3.OperationalError) -> str:
    """Return the journal mode of a database that cannot be written; raise ``error`` if it cannot be read either."""
    try:
        (mode,) = conn.execute("PRAGMA journal_mode").fetchone()
        conn.execute("SELECT count(*) FROM sqlite_master").fetchall()
    except sqlite3.Error:
        raise error from None
    return str(mode)


def _check_reversible(conn: Connection) -> None:
    """Raise if a reset cannot undo what the borrower changed; replacing the connection is cheap."""
    if conn.irreversible is not None:
        raise sqlite3.ProgrammingError(f"a reset cannot undo: {conn.irreversible}")
    changed = _surroundings(conn) ^ conn.initial.surroundings
    if changed:
        raise sqlite3.ProgrammingError(f"the borrower attached, created or dropped: {', '.join(sorted(changed))}")


def _surroundings(conn: Connection) -> frozenset[str]:
    """Return the attached databases and temporary tables. `_restore` must follow: this sets the text factory."""
    conn.text_factory = os.fsdecode  # file names need not be UTF-8
    cursor = sqlite3.Cursor(conn)
    files = {name: file for _, name, file in cursor.execute("PRAGMA database_list")}
    found = {f"{name} {file}".strip() for name, file in files.items() if name != "temp"}
    if "temp" in files:  # SQLite also opens it by itself
        found |= {f"temp.{row[0]}" for row in cursor.execute("SELECT name FROM sqlite_temp_master")}
    return frozenset(found)

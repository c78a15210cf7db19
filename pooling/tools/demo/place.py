"""Where a phase stores its quotes: one table each, in SQLite or PostgreSQL."""

from __future__ import annotations

import secrets
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from ..._masking import without_secrets
from ...settings import PoolSettings
from .child import DemoError
from .quotes import Quote

if TYPE_CHECKING:
    from ...adapters.postgres import PostgresPool
    from ...adapters.sqlite import SQLitePool

__all__ = ["Place", "Database", "SQLiteDatabase", "PostgresDatabase", "PRAGMAS", "BUSY_TIMEOUT"]

#: For SQLite, in both phases. NORMAL is what its manual recommends together with WAL.
PRAGMAS = {"synchronous": "NORMAL"}
#: Seconds a writer waits for others, in both phases.
BUSY_TIMEOUT = 60.0

# No key, so that a row stored twice reaches the check.
_COLUMNS = ", ".join(
    f"{name} {'TEXT' if name == 'symbol' else 'BIGINT'} NOT NULL" for name in Quote._fields
)


class Place(NamedTuple):
    """The table of one phase, as passed to the worker process."""

    kind: str  #: ``"sqlite"`` or ``"postgres"``.
    target: str  #: The file, or the connection string.
    table: str

    def __repr__(self) -> str:  # the target may hold a password
        return f"<Place {self.kind} {self.table}>"

    @property
    def insert(self) -> str:
        """The statement that stores a :class:`Quote`."""
        marks = ", ".join(["?" if self.kind == "sqlite" else "%s"] * len(Quote._fields))
        return f"INSERT INTO {self.table} ({', '.join(Quote._fields)}) VALUES ({marks})"

    def pool(self, settings: PoolSettings) -> SQLitePool | PostgresPool:
        """Return a new pool of connections to the database."""
        if self.kind == "sqlite":
            from ...adapters.sqlite import SQLitePool

            return SQLitePool(
                self.target, settings, timeout=BUSY_TIMEOUT, pragmas=PRAGMAS, name="database"
            )
        from ...adapters.postgres import PostgresPool

        return PostgresPool(self.target, settings, name="database")

    def rows(self) -> list[Quote]:
        """Read the whole table back."""
        db = self.pool(_ONE)
        with db:
            found = db.execute_query(f"SELECT {', '.join(Quote._fields)} FROM {self.table}")
            return [Quote(*row) for row in found]


# The parent sometimes needs one connection, and should fail early if there is none.
_ONE = PoolSettings(min_size=0, max_size=1, acquire_timeout=5.0, create_timeout=5.0, max_attempts=3)


class Database(Protocol):
    """The tables of both phases, for the parent."""

    def make(self) -> str:
        """Create the tables, and return a description of the database for the user."""

    def drop(self) -> None:
        """Remove everything. Any thread may call it, also while ``make`` runs."""

    def place(self, phase: str) -> Place:
        """Return where a phase stores its rows."""


class SQLiteDatabase:
    """A file for each phase, so that both begin with an empty one.

    Args:
        folder: The folder of the files; its creator removes it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def make(self) -> str:
        """Create the files and their tables."""
        import sqlite3

        for phase in ("unpooled", "pooled"):
            place = self.place(phase)
            db = place.pool(_ONE)
            with db:
                db.execute_query(f"CREATE TABLE {place.table} ({_COLUMNS})")
        return f"SQLite {sqlite3.sqlite_version}, a temporary file, WAL, synchronous=NORMAL"

    def drop(self) -> None:
        """Do nothing: the files are removed with their folder."""

    def place(self, phase: str) -> Place:
        """Return where a phase stores its rows."""
        return Place("sqlite", str(self._folder / f"{phase}.db"), "quotes")


class PostgresDatabase:
    """A schema with a unique name.

    Args:
        dsn: The connection string. It may contain a password, so it is never shown.

    Raises:
        ValueError: ``dsn`` is not a connection string.
        DemoError: psycopg cannot be imported.
    """

    def __init__(self, dsn: str) -> None:
        if not dsn.strip():  # a pool would use DATABASE_URL, which the demo must not
            raise ValueError("must not be empty")
        self._dsn = dsn
        self._schema = f"pooling_demo_{secrets.token_hex(6)}"
        self._lock = threading.Lock()  # held from the first CREATE to its commit
        self._made = self._dropped = False  # guarded by _lock
        try:
            self._db = self.place("pooled").pool(_ONE)
        except ImportError as error:
            raise DemoError(f"--dsn needs psycopg and libpq: {error}") from error

    def make(self) -> str:
        """Create the schema and its tables.

        Raises:
            DemoError: The server cannot be reached, or refuses.
        """
        try:
            with self._db:
                version = self._db.execute_query("SHOW server_version")[0][0]
                with self._db.acquire() as conn:
                    self._create(conn)
        except Exception as error:
            raise DemoError(f"the database: {without_secrets(str(error))}") from error
        return f"PostgreSQL {version}, a temporary schema ({self._schema})"

    def _create(self, conn: Any) -> None:
        with self._lock:
            if self._dropped:
                raise DemoError("interrupted")
            self._made = True
            with conn.transaction():
                conn.execute(f"CREATE SCHEMA {self._schema}")
                for phase in ("unpooled", "pooled"):
                    conn.execute(f"CREATE TABLE {self.place(phase).table} ({_COLUMNS})")

    def drop(self) -> None:
        """Drop the schema, if it was created.

        Raises:
            DemoError: The server did not drop it within several seconds.
        """
        if not self._lock.acquire(timeout=10.0):
            raise DemoError(f"the database does not answer; schema {self._schema} was not dropped")
        try:
            self._dropped = True
            if self._made:
                self._drop_schema()
        except Exception as error:
            raise DemoError(f"schema {self._schema} was not dropped: {without_secrets(str(error))}") from error
        finally:
            self._lock.release()

    def _drop_schema(self) -> None:
        db = self.place("pooled").pool(_ONE)
        with db, db.connection() as conn:
            # The last workers' connections may hold locks until the server notices that they ended.
            conn.execute("SET LOCAL lock_timeout = '10s'")
            conn.execute(f"DROP SCHEMA IF EXISTS {self._schema} CASCADE")

    def place(self, phase: str) -> Place:
        """Return where a phase stores its rows."""
        return Place("postgres", self._dsn, f"{self._schema}.{phase}")

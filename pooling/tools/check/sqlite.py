"""The checks of SQLite."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from typing import Any

from ...adapters.sqlite import SQLitePool
from ...adapters.sqlite.urls import parse_url
from .general import general_checks
from .outcome import Failed, Skipped
from .resource import TIMEOUT, Check, Target

__all__ = ["SQLite"]


class SQLite(Target):
    """A database file, by its URL. Its journal mode is left as it is.

    Raises:
        ValueError: There is no such file.
    """

    kind = "SQLite"

    def __init__(self, address: str) -> None:
        super().__init__(address)
        path, _ = parse_url(address)
        self._path = path
        self._mode: str | None = None
        if path != ":memory:":
            if path.startswith("file:"):
                raise ValueError("file: URIs are not supported here; use the path")
            if not os.path.isfile(path):
                raise ValueError("there is no such file")

    def pool(self, *, configure: Any = None, **settings: Any) -> SQLitePool:
        if self._mode is None and self._path != ":memory:":
            self._mode = self._journal_mode()
        pragmas: dict[str, object] = {} if self._mode is None else {"journal_mode": self._mode}
        return SQLitePool(
            self._path, pragmas=pragmas, optimize=False, configure=configure, name="check",
            **{"min_size": 0, "acquire_timeout": TIMEOUT, **settings},
        )  # fmt: skip

    def _journal_mode(self) -> str:
        """Return the file's journal mode: the pool would set WAL, which stays with the file."""
        with contextlib.closing(sqlite3.connect(self._path)) as conn:
            return str(conn.execute("PRAGMA journal_mode").fetchone()[0]).upper()

    def ping(self, resource: Any) -> None:
        resource.execute("SELECT count(*) FROM sqlite_master").fetchone()

    def describe(self, resource: Any) -> str:
        sql = "SELECT page_count * page_size FROM pragma_page_count(), pragma_page_size()"
        (size,) = resource.execute(sql).fetchone()
        (mode,) = resource.execute("PRAGMA journal_mode").fetchone()
        return f"SQLite {sqlite3.sqlite_version}, {size / 1e6:,.2f} MB, journal mode {mode}"

    def checks(self) -> list[Check]:
        general = general_checks(self)
        return [
            general["connect"], general["acquire"], Check("clean", 0.1, self._clean), general["timeout"],
            general["fairness"], Check("transaction", 0.1, self._transaction), general["fork"], general["close"],
        ]  # fmt: skip

    def _clean(self) -> str:
        with self.pool(max_size=1) as pool:
            with pool.acquire() as conn:
                (before,) = conn.execute("PRAGMA foreign_keys").fetchone()
                conn.row_factory = sqlite3.Row
                conn.execute("PRAGMA foreign_keys = OFF")
                conn.execute("CREATE TEMPORARY TABLE pooling_check (n INTEGER)")
                try:
                    conn.execute("INSERT INTO pooling_check VALUES (1)")  # which begins a transaction
                except sqlite3.OperationalError as error:
                    _skip_if_read_only(error)
            with pool.acquire() as conn:
                if conn.in_transaction:
                    raise Failed("the next borrower is in the transaction of the one before")
                names = conn.execute("SELECT name FROM sqlite_temp_master WHERE name = 'pooling_check'").fetchall()
                if names or conn.row_factory is not None or conn.execute("PRAGMA foreign_keys").fetchone() != (before,):
                    raise Failed("the next borrower finds a temporary table or a setting of the one before")
        seen = "row factory, PRAGMA, temporary table, open transaction"
        return f"the next borrower sees nothing of these: {seen}"

    def _transaction(self) -> str:
        def configure(conn: sqlite3.Connection) -> None:
            conn.execute("CREATE TEMPORARY TABLE pooling_check (n INTEGER)")

        with self.pool(max_size=1, configure=configure) as pool:
            try:
                with pool.connection() as conn:
                    conn.execute("INSERT INTO pooling_check VALUES (1)")
            except sqlite3.OperationalError as error:
                _skip_if_read_only(error)
            with contextlib.suppress(_Intended), pool.connection() as conn:
                conn.execute("INSERT INTO pooling_check VALUES (2)")
                raise _Intended
            rows = pool.execute_query("SELECT n FROM pooling_check")
        if rows != [(1,)]:
            raise Failed(f"the temporary table has the rows {rows}, not the committed one alone")
        return "a block is committed at its end and rolled back on an error, in a temporary table"


class _Intended(Exception):
    pass


def _skip_if_read_only(error: sqlite3.OperationalError) -> None:
    if "readonly" not in str(error):
        raise error
    raise Skipped("not tried: the file can only be read") from None

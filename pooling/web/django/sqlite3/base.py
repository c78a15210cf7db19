"""The engine; Django requires the name ``base``."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.db.backends.sqlite3 import base

from ....adapters.sqlite.adapter import SQLiteAdapter
from ....adapters.sqlite.connection import Connection, Cursor
from ....core.pool import Pool
from .._engine import AliasPools, PooledWrapper

__all__ = ["DatabaseWrapper"]

ARGUMENTS = frozenset({"name", "observers"})
"""Arguments of `Pool` that ``OPTIONS["pool"]`` may contain in addition to the settings."""


class DatabaseWrapper(PooledWrapper, base.DatabaseWrapper):
    """Django's own wrapper, with connections from a pool: requests do not open the file.

    Django creates each connection (with its functions and ``init_command``),
    and the pool undoes what a request changes in it. A database in memory has
    no pool: it lives as long as its only connection.
    """

    pools = AliasPools()
    arguments = ARGUMENTS

    def is_pooled(self) -> bool:
        return super().is_pooled() and not self.is_in_memory_db()

    def pool_recipe(self, params: dict[str, Any]) -> dict[str, Any]:
        options = self.settings_dict["OPTIONS"]
        return {**params, "init_command": options.get("init_command"), "pool": options.get("pool")}

    def make_pool(self, params: dict[str, Any]) -> Pool[sqlite3.Connection]:
        options = self.pool_options()
        # Not with this wrapper, which belongs to a thread: the pool would keep its lease alive.
        wrapper = type(self)(self.settings_dict, self.alias)
        arguments = {"name": self.alias, **options.arguments}
        return Pool(adapter=DjangoAdapter(wrapper), settings=options.settings, **arguments)

    def get_connection_params(self) -> dict[str, Any]:
        params: dict[str, Any] = super().get_connection_params()
        params.pop("pool", None)
        return params

    def create_cursor(self, name: str | None = None) -> Any:
        if isinstance(self.connection, Connection):
            return self.connection.cursor(PooledCursor)
        return super().create_cursor(name)  # a database in memory, which has no pool

    def close_pool(self) -> None:
        if not self.is_in_memory_db():
            super().close_pool()


DatabaseWrapper.engine = DatabaseWrapper


class DjangoAdapter(SQLiteAdapter):
    """Connections that Django creates, and that the pool checks and resets.

    Args:
        wrapper: Creates the connections; used for nothing else.

    Raises:
        ImproperlyConfigured: The options contain a ``factory``.
    """

    def __init__(self, wrapper: Any) -> None:
        self._wrapper = wrapper
        params = wrapper.get_connection_params()
        if "factory" in params:
            raise ImproperlyConfigured("OPTIONS['factory'] cannot be combined with a pool, which has its own")
        database = params["database"]
        name = database if str(database).startswith("file:") else Path(database)
        super().__init__(name, timeout=params.get("timeout", 5.0), optimize=False)
        self.pragmas.journal_mode = None  # that of `init_command`, or of the file
        self.pragmas.restored.append("PRAGMA legacy_alter_table=OFF")
        commands = [command.strip() for command in wrapper.init_commands]
        self.pragmas.restored += [command for command in commands if command.upper().startswith("PRAGMA")]

    def create(self) -> sqlite3.Connection:
        params = {**self._wrapper.get_connection_params(), "factory": Connection}
        conn: Connection = base.DatabaseWrapper.get_new_connection(self._wrapper, params)
        conn.commit()  # what `init_command` wrote
        self.keep_initial(conn)
        return conn


class PooledCursor(base.SQLiteCursorWrapper, Cursor):
    """Django's cursor based on the pool's, which records what a reset must undo."""

"""The engine itself; ``base`` is where Django looks for it."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.db.backends.sqlite3 import base

from ....adapters.sqlite.adapter import SQLiteAdapter, file_of
from ....adapters.sqlite.connection import Connection, Cursor
from ....core.pool import Pool
from .._engine import AliasPools, PooledWrapper
from .._options import PoolOptions

__all__ = ["DatabaseWrapper"]

ARGUMENTS = frozenset({"name", "observers"})
"""Of `Pool`, that ``OPTIONS["pool"]`` may have, beside the settings."""


class DatabaseWrapper(PooledWrapper, base.DatabaseWrapper):
    """Django's, with connections out of a pool: a file is not opened for each request.

    Each connection is made by Django (its functions, ``init_command``), and
    what a request changes in it is undone. A database in memory has no pool:
    it lives as long as its one connection.
    """

    pools = AliasPools()

    def _is_pooled(self) -> bool:
        return super()._is_pooled() and not self.is_in_memory_db()

    def _recipe(self, params: dict[str, Any]) -> dict[str, Any]:
        options = self.settings_dict["OPTIONS"]
        return {**params, "init_command": options.get("init_command"), "pool": options.get("pool")}

    def _make_pool(self, params: dict[str, Any]) -> Pool[sqlite3.Connection]:
        wish = self.settings_dict["OPTIONS"].get("pool", True)
        options = PoolOptions(wish, ARGUMENTS, checks=self.settings_dict["CONN_HEALTH_CHECKS"])
        # Not of this wrapper, which is a thread's: the pool would keep its lease alive.
        other = type(self)(self.settings_dict, self.alias)
        arguments = {"name": self.alias, **options.arguments}
        return Pool(adapter=DjangoAdapter(other), settings=options.settings, **arguments)

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


class DjangoAdapter(SQLiteAdapter):
    """Connections made by Django, and kept as ours.

    Args:
        wrapper: One that is used by nobody else; it makes the connections.
    """

    def __init__(self, wrapper: Any) -> None:
        self._wrapper = wrapper
        params = wrapper.get_connection_params()
        if "factory" in params:
            raise ImproperlyConfigured("OPTIONS['factory'] does not go with a pool, which has its own")
        database = params["database"]
        name = database if str(database).startswith("file:") else Path(database)  # as Django's settings say
        super().__init__(name, timeout=params.get("timeout", 5.0), optimize=False)
        self._journal = None  # as `init_command` says, or as the file has it
        self._cleaning.append("PRAGMA legacy_alter_table=OFF")
        commands = [command.strip() for command in wrapper.init_commands]
        self._cleaning += [command for command in commands if command.upper().startswith("PRAGMA")]

    def create(self) -> sqlite3.Connection:
        params = {**self._wrapper.get_connection_params(), "factory": Connection}
        conn: Connection = base.DatabaseWrapper.get_new_connection(self._wrapper, params)
        conn.file = file_of(conn)
        conn.commit()  # what `init_command` wrote
        self._finish(conn)
        return conn


class PooledCursor(base.SQLiteCursorWrapper, Cursor):
    """Django's, on our own: what it does to the connection is seen, and undone."""

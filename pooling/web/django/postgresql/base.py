"""The engine itself; ``base`` is where Django looks for it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import psycopg
import psycopg_pool
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.db.backends.postgresql import base

from .... import errors
from ....adapters.postgres import PostgresPool
from ....adapters.postgres.session import IDLE
from ....core.pool import Pool
from .._engine import AliasPools, Known, PooledWrapper
from .._options import PoolOptions
from .._statements import leaves_traces

__all__ = ["DatabaseWrapper"]

READ_COMMITTED = psycopg.IsolationLevel.READ_COMMITTED
ARGUMENTS = frozenset({
    "check", "command_timeout", "idle_in_transaction_timeout", "kwargs", "name", "observers",
    "query_statistics", "reset", "session", "stall_timeout", "validation_query",
})  # fmt: skip
"""Of `PostgresPool`, that ``OPTIONS["pool"]`` may have, beside the settings."""


class DatabaseWrapper(PooledWrapper, base.DatabaseWrapper):
    """Django's, with connections out of a `PostgresPool`.

    ``OPTIONS["pool"]`` is ``True``, a `PoolSettings` or a mapping of its
    fields and of arguments of `PostgresPool`; ``False`` goes without a pool.
    ``"session": "watch"``, which is the default here, is ``"clean"`` at the
    price of ``"trust"`` for requests that only read and write rows: what a
    session keeps is reset after requests that executed anything else
    (``SET``, ``LISTEN``, ``set_config()``, temporary tables, advisory locks,
    named cursors, ``COPY``), or executed anything by a cursor that is not of
    the connection's own class. Not seen is what a function, a rule or a
    trigger of yours does within a statement that reads and writes rows, what
    is executed on the raw ``pgconn``, and what ``lastval()`` and ``currval()``
    are; ``manage.py check --database default`` looks for the first;
    ``"clean"`` resets after every request, the raw ``pgconn`` aside.
    """

    pools = AliasPools()
    _other_errors = {  # what Django's own pool raises
        errors.PoolTimeout: psycopg_pool.PoolTimeout, errors.TooManyWaiting: psycopg_pool.TooManyRequests,
        errors.PoolClosed: psycopg_pool.PoolClosed,
    }  # fmt: skip
    _grounds: tuple[Any, ...] | None = None
    _noted: dict[str, Any]
    _params: dict[str, Any]
    _suits: Known | None = None  # the pool that was made from these

    def _options(self) -> PoolOptions:
        wish = self.settings_dict["OPTIONS"].get("pool", True)
        return PoolOptions(wish, ARGUMENTS, checks=self.settings_dict["CONN_HEALTH_CHECKS"])

    def _recipe(self, params: dict[str, Any]) -> dict[str, Any]:
        told = self.settings_dict
        checks, options = told["CONN_HEALTH_CHECKS"], {**told["OPTIONS"]}
        recipe = {**params, "TIME_ZONE": self.timezone_name, "CONN_HEALTH_CHECKS": checks, "OPTIONS": options}
        if _asks(self):  # a new password does not make another pool
            recipe.pop("password", None)
        return recipe

    def _make_pool(self, params: dict[str, Any]) -> PostgresPool:
        options = self._options()
        arguments = {"name": self.alias, "session": "watch", **options.arguments}
        watched = arguments["session"] == "watch"
        if watched:
            arguments["session"] = "clean"
        make = functools.partial(type(self), self.settings_dict, self.alias)
        return PostgresPool(
            "client_encoding=UTF8",  # not the environment's DATABASE_URL
            options.settings,
            **{**arguments, "kwargs": _connect_kwargs(make, params, arguments.get("kwargs"))},
            configure=_configure(make, self._isolation_level(), watched),
        )

    def _isolation_level(self) -> psycopg.IsolationLevel | None:
        level = self.settings_dict["OPTIONS"].get("isolation_level")
        try:
            return None if level is None else psycopg.IsolationLevel(level)
        except ValueError:
            raise ImproperlyConfigured(
                f"Invalid transaction isolation level {level} specified. Use one of the psycopg.IsolationLevel values."
            ) from None

    def _pool_for(self, params: dict[str, Any]) -> Known:
        known = super()._pool_for(params)
        if not _asks(self):  # else they may be others the next time
            self._suits = known
        return known

    def _cached_pool(self) -> Pool[Any] | None:
        known = self._suits
        return known.pool if known is not None and self.pools.current(self.alias) is known else None

    def _death_of(self, connection: Any) -> BaseException | None:
        if connection.closed:
            return psycopg.OperationalError("the connection was lost while it was lent")
        return None

    def get_connection_params(self) -> dict[str, Any]:
        # Asked for each request: worked out anew only when something has changed that they are made from.
        told = self.settings_dict
        options = told["OPTIONS"]
        grounds = (*told.values(), settings.USE_TZ, self.timezone, self.timezone_name)
        if grounds != self._grounds or options != self._noted:  # which may be the same, with other content
            self._suits = None
            params = super().get_connection_params()
            if self._is_pooled():
                params["autocommit"] = True  # Django sets it as it likes; this is what it is reset to
            self._grounds, self._noted, self._params = grounds, {**options}, params
        return {**self._params}

    def ensure_timezone(self) -> bool:
        # Other than Django's, does not close the pool: one for the new time zone takes its place.
        return False if self.connection is None else self._configure_timezone(self.connection)

    def get_new_connection(self, conn_params: dict[str, Any]) -> Any:
        self.isolation_level = self._isolation_level() or READ_COMMITTED
        return super().get_new_connection(conn_params)

    def _set_autocommit(self, autocommit: bool) -> None:
        connection = self.connection
        if connection.autocommit == autocommit and connection.pgconn.transaction_status == IDLE:
            return  # as with each connection that is lent
        self._unnoted(super()._set_autocommit, autocommit)

    def _commit(self) -> None:
        self._unnoted(super()._commit)

    def _rollback(self) -> None:
        self._unnoted(super()._rollback)

    def _unnoted(self, do: Callable[..., object], *args: Any) -> None:
        """Do what leaves nothing behind by itself, and does not go through a cursor."""
        notes = getattr(self.connection, "_pooling", None)
        if notes is None:  # not out of a pool
            do(*args)
            return
        before = notes.dirty
        do(*args)
        notes.dirty = before


# Both ask a wrapper of their own: this one is a thread's, and the pool would keep its lease alive.


def _connect_kwargs(
    make: Callable[[], DatabaseWrapper], params: dict[str, Any], more: Any
) -> Mapping[str, Any] | Callable[[], Mapping[str, Any]]:
    """Return what to connect with: asked anew for each connection where anybody may say something new."""
    wrapper = make()
    if not _asks(wrapper) and not callable(more):
        return {**params, **(more or {})}
    return lambda: {**wrapper.get_connection_params(), **((more() if callable(more) else more) or {})}


def _asks(wrapper: DatabaseWrapper) -> bool:
    """Whether its class has a way of its own to say what to connect with: a token that is new each time."""
    return type(wrapper).get_connection_params is not DatabaseWrapper.get_connection_params


def _configure(
    make: Callable[[], DatabaseWrapper], level: psycopg.IsolationLevel | None, watched: bool
) -> Callable[[Any], None]:
    def configure(conn: Any) -> None:
        wrapper = make()
        wrapper.connection = conn  # Django looks at it to compose SQL
        wrapper._configure_connection(conn)
        if level is not None:
            conn.isolation_level = level
        if watched:
            conn.cursor_factory = _watching(conn.cursor_factory)

    return configure


@functools.lru_cache(maxsize=16)
def _watching(kind: type[psycopg.Cursor[Any]]) -> type[psycopg.Cursor[Any]]:
    """Return a cursor class whose harmless statements are not noted."""
    return type(kind.__name__, (Watching, kind), {"__module__": kind.__module__, "_execute": kind.execute})


class Watching:
    """Put before a cursor class: takes back that its connection is dirty, where a statement left no traces.

    A connection is dirty when anything waited for the server, and all else stays so: other
    cursors, ``copy()``, ``stream()``, server-side cursors. Assumes: one thread at a time
    uses a connection, which Django sees to.
    """

    _conn: Any
    _execute: Callable[..., Any]  # the class's own; by super() a call would cost twice

    def execute(self, query: Any, params: Any = None, **options: Any) -> Any:
        if options or type(query) is not str or leaves_traces(query):
            return self._execute(query, params, **options)
        notes = self._conn._pooling
        before = notes.dirty
        try:
            return self._execute(query, params)
        finally:
            notes.dirty = before

"""The engine, in the module where Django looks for it."""

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
from .._statements import leaves_traces
from ._cluster import cluster_of, make_cluster, replica_pool_of

__all__ = ["DatabaseWrapper"]

READ_COMMITTED = psycopg.IsolationLevel.READ_COMMITTED
ARGUMENTS = frozenset({
    "check", "cluster", "command_timeout", "idle_in_transaction_timeout", "kwargs", "name", "observers",
    "query_statistics", "replicas_of", "reset", "session", "stall_timeout", "validation_query",
})  # fmt: skip
"""What ``OPTIONS["pool"]`` may have besides the settings: arguments of `PostgresPool`, and those of a cluster."""


class DatabaseWrapper(PooledWrapper, base.DatabaseWrapper):
    """Django's engine, with connections from a `PostgresPool`.

    ``OPTIONS["pool"]`` is ``True``, a `PoolSettings`, or a mapping of its
    fields and of arguments of `PostgresPool`; ``False`` turns pooling off.

    ``"session": "watch"``, the default here, cleans like ``"clean"``, but costs
    no more than ``"trust"`` after requests that only read and wrote rows. The
    session is reset after requests that executed anything else (``SET``,
    ``LISTEN``, ``set_config()``, temporary tables, advisory locks, named
    cursors, ``COPY``), or used a cursor that is not of the connection's own
    class. It cannot detect what your functions, rules or triggers do within a
    statement that reads and writes rows (``manage.py check --database default``
    looks for these), statements on the raw ``pgconn``, or the state of
    ``lastval()`` and ``currval()``. ``"clean"`` resets after every request,
    except after use of the raw ``pgconn``.

    With ``"cluster": True``, or a mapping of ``max_lag``, ``primary_reads`` and
    ``replicas``, it is the primary of a `PostgresCluster` of all hosts in
    ``HOST``; an alias with ``"replicas_of": "default"`` has its replicas. See
    `pooling.web.django.routers`.
    """

    pools = AliasPools()
    arguments = ARGUMENTS
    other_errors = {  # the errors of Django's own pool
        errors.PoolTimeout: psycopg_pool.PoolTimeout, errors.TooManyWaiting: psycopg_pool.TooManyRequests,
        errors.PoolClosed: psycopg_pool.PoolClosed,
    }  # fmt: skip
    _params_inputs: tuple[Any, ...] | None = None
    _params_options: dict[str, Any]
    _params: dict[str, Any]
    _last_pool: Known | None = None  # the pool created from these

    @property
    def _replicas_of(self) -> Any:
        """The alias of whose cluster this one has the replicas; ``None`` if it has a pool of its own."""
        wish = self.settings_dict["OPTIONS"].get("pool", True)
        return wish.get("replicas_of") if isinstance(wish, Mapping) else None

    def pool_recipe(self, params: dict[str, Any]) -> dict[str, Any]:
        if self._replicas_of is not None:
            return {"cluster": cluster_of(self._replicas_of)}
        given = self.settings_dict
        checks, options = given["CONN_HEALTH_CHECKS"], {**given["OPTIONS"]}
        recipe = {**params, "TIME_ZONE": self.timezone_name, "CONN_HEALTH_CHECKS": checks, "OPTIONS": options}
        if self.overrides_params():  # a new password does not need a new pool
            recipe.pop("password", None)
        return recipe

    def make_pool(self, params: dict[str, Any]) -> Any:
        options = self.pool_options()
        if self._replicas_of is not None:
            return replica_pool_of(self._replicas_of)
        arguments = {"name": self.alias, "session": "watch", **options.arguments}
        cluster = arguments.pop("cluster", False)
        watched = arguments["session"] == "watch"
        if watched:
            arguments["session"] = "clean"
        make = functools.partial(type(self), self.settings_dict, self.alias)
        kwargs = self.connect_kwargs(params, arguments.pop("kwargs", None))
        arguments["configure"] = _configure(make, self._isolation_level(), watched)
        if cluster:
            return make_cluster(cluster, params, kwargs, options.settings, arguments)
        # with an encoding, so that DATABASE_URL in the environment is ignored
        return PostgresPool("client_encoding=UTF8", options.settings, kwargs=kwargs, **arguments)

    def _isolation_level(self) -> psycopg.IsolationLevel | None:
        level = self.settings_dict["OPTIONS"].get("isolation_level")
        try:
            return None if level is None else psycopg.IsolationLevel(level)
        except ValueError:
            raise ImproperlyConfigured(
                f"Invalid transaction isolation level {level} specified. Use one of the psycopg.IsolationLevel values."
            ) from None

    def pool_for(self, params: dict[str, Any]) -> Known:
        known = super().pool_for(params)
        if not self.overrides_params():  # otherwise they may differ next time
            self._last_pool = known
        return known

    def cached_pool(self) -> Pool[Any] | None:
        if self._replicas_of is not None:
            return None  # the other alias may have another pool now
        known = self._last_pool
        return known.pool if known is not None and self.pools.current(self.alias) is known else None

    def error_of_dead_connection(self, connection: Any) -> BaseException | None:
        if connection.closed:
            return psycopg.OperationalError("the connection was lost while it was in use")
        return None

    def get_connection_params(self) -> dict[str, Any]:
        # Called for each request, so computed again only when its inputs have changed.
        given = self.settings_dict
        options = given["OPTIONS"]
        inputs = (*given.values(), settings.USE_TZ, self.timezone, self.timezone_name)
        if inputs != self._params_inputs or options != self._params_options:  # the same mapping may have other contents
            self._last_pool = None
            params = super().get_connection_params()
            if self.is_pooled():
                params["autocommit"] = True  # Django changes it as needed; this is the value after a reset
            self._params_inputs, self._params_options, self._params = inputs, {**options}, params
        return {**self._params}

    def ensure_timezone(self) -> bool:
        # Unlike Django's, it does not close the pool: a pool for the new time zone replaces it.
        return False if self.connection is None else self._configure_timezone(self.connection)

    def get_new_connection(self, conn_params: dict[str, Any]) -> Any:
        self.isolation_level = self._isolation_level() or READ_COMMITTED
        return super().get_new_connection(conn_params)

    def _set_autocommit(self, autocommit: bool) -> None:
        connection = self.connection
        if connection.autocommit == autocommit and connection.pgconn.transaction_status == IDLE:
            return  # the usual state of a lent connection
        self._without_marking(super()._set_autocommit, autocommit)

    def _commit(self) -> None:
        self._without_marking(super()._commit)

    def _rollback(self) -> None:
        self._without_marking(super()._rollback)

    def _without_marking(self, do: Callable[..., object], *args: Any) -> None:
        """Run something that leaves no session state and uses no cursor, without marking the connection dirty."""
        notes = getattr(self.connection, "_pooling", None)
        if notes is None:  # not from a pool
            do(*args)
            return
        before = notes.dirty
        do(*args)
        notes.dirty = before


DatabaseWrapper.engine = DatabaseWrapper


def _configure(
    make: Callable[[], DatabaseWrapper], level: psycopg.IsolationLevel | None, watched: bool
) -> Callable[[Any], None]:
    def configure(conn: Any) -> None:
        wrapper = make()  # not a thread's wrapper: the pool would keep it alive, and with it its lease
        wrapper.connection = conn  # Django uses it to compose SQL
        wrapper._configure_connection(conn)
        if level is not None:
            conn.isolation_level = level
        if watched:
            conn.cursor_factory = _watching(conn.cursor_factory)

    return configure


@functools.lru_cache(maxsize=16)
def _watching(kind: type[psycopg.Cursor[Any]]) -> type[psycopg.Cursor[Any]]:
    """Return a cursor class whose harmless statements do not mark the connection dirty."""
    return type(kind.__name__, (Watching, kind), {"__module__": kind.__module__, "_execute": kind.execute})


class Watching:
    """Mixed in before a cursor class, it keeps statements without lasting effects from marking a connection dirty.

    Any wait for the server marks a connection dirty. Other cursors, ``copy()``,
    ``stream()`` and server-side cursors therefore still do. Assumes: one thread
    at a time uses a connection, which Django ensures.
    """

    _conn: Any
    _execute: Callable[..., Any]  # the class's own; a call through super() would cost twice as much

    def execute(self, query: Any, params: Any = None, **options: Any) -> Any:
        if options or type(query) is not str or leaves_traces(query):
            return self._execute(query, params, **options)
        notes = self._conn._pooling
        before = notes.dirty
        try:
            return self._execute(query, params)
        finally:
            notes.dirty = before

"""The common part of the engines: a pool for each alias, a lease for each open connection."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from typing import Any, NamedTuple

from django.core.exceptions import ImproperlyConfigured
from django.db import OperationalError
from django.db.backends.base.base import NO_DB_ALIAS

from ..._masking import shown
from ...core.lease import Lease
from ...core.pool import Pool
from ...core.report.holders import depth_of_borrower
from ...errors import PoolError
from ._errors import as_django
from ._options import PoolOptions

__all__ = ["AliasPools", "PooledWrapper", "bad_age"]

_FRAMEWORK = ("django.", "pooling.web.django.", "contextlib")  # modules that are never the holder


class Known(NamedTuple):
    """A pool, and what it was created from."""

    recipe: Mapping[str, Any]
    pool: Pool[Any]


class AliasPools:
    """The pools of an engine by alias, shared by all threads.

    A pool is for one database and one set of connection parameters. If these
    change under an alias (test databases, time zones), the old pool closes its
    idle connections, and those in use when they are released.
    """

    def __init__(self) -> None:
        self._known: dict[str, Known] = {}  # no lock, because a fork could copy it in the locked state

    def current(self, alias: str) -> Known | None:
        """Return the current pool of an alias."""
        return self._known.get(alias)

    def suiting(self, alias: str, recipe: Mapping[str, Any], make: Callable[[], Pool[Any]]) -> Known:
        """Return the pool of an alias that was created from this recipe; create it if there is none."""
        known = self._known.get(alias)
        if known is not None and known.recipe == recipe:
            return known
        made = Known(recipe, make())
        # Assumes: `dict.setdefault` is atomic. A second thread uses the first one's pool.
        if known is None:
            won = self._known.setdefault(alias, made)
            return won if won.recipe == recipe else self.suiting(alias, recipe, make)
        self._known[alias] = made
        known.pool.reconfigure(min_size=0)
        known.pool.drain()
        return made

    def close(self, alias: str) -> None:
        """Close the pool of an alias; the next connection creates another."""
        known = self._known.pop(alias, None)
        if known is not None:
            known.pool.close()


class PooledWrapper:
    """Mixed in before one of Django's ``DatabaseWrapper`` classes, it makes connections leases.

    Django "opens" a connection at a request's first query and, with
    ``CONN_MAX_AGE = 0``, "closes" it when the response is closed. Here this
    acquires and releases a lease.

    An engine overrides `make_pool` and `pool_recipe`, and where it has more to
    say `is_pooled`, `pool_for`, `cached_pool`, `error_of_dead_connection` and
    `other_errors`.
    """

    pools: AliasPools
    engine: type[PooledWrapper]  # the engine's own class, of which the project's may be a subclass
    arguments: Set[str]  # the arguments of the pool's class that `OPTIONS["pool"]` may have, besides the settings
    other_errors: Mapping[type[PoolError], type[Exception]] = {}  # further base classes of the pool's errors
    _lease: Lease[Any] | None = None
    _lender: Any = None  # the pool of the lease

    # Django's attributes.
    alias: str
    settings_dict: dict[str, Any]
    connection: Any
    in_atomic_block: bool
    close: Callable[[], None]
    get_connection_params: Callable[[], dict[str, Any]]

    def make_pool(self, params: dict[str, Any]) -> Pool[Any]:
        """Create the pool of this alias."""
        raise NotImplementedError

    def pool_recipe(self, params: dict[str, Any]) -> dict[str, Any]:
        """Return everything that connections depend on: if it changes, a new pool is needed."""
        raise NotImplementedError

    def pool_options(self) -> PoolOptions:
        """Return what ``OPTIONS["pool"]`` says.

        Raises:
            ValueError, TypeError: It is invalid.
        """
        wish = self.settings_dict["OPTIONS"].get("pool", True)
        return PoolOptions(wish, self.arguments, checks=self.settings_dict["CONN_HEALTH_CHECKS"])

    def overrides_params(self) -> bool:
        """Whether a subclass overrides the connection parameters, for example with a new token each time."""
        return type(self).get_connection_params is not self.engine.get_connection_params

    def connect_kwargs(self, params: dict[str, Any], more: Any) -> Mapping[str, Any] | Callable[[], Mapping[str, Any]]:
        """Return the arguments of the driver's ``connect()``; if they may change, a callable for each connection's.

        Args:
            params: The connection parameters.
            more: The argument ``kwargs`` of the pool's class, which takes precedence.
        """
        if not self.overrides_params() and not callable(more):
            return {**params, **(more or {})}
        # Not this wrapper, which belongs to a thread: the pool would keep it alive, and with it its lease.
        wrapper = type(self)(self.settings_dict, self.alias)  # type: ignore[call-arg]
        return lambda: {**wrapper.get_connection_params(), **((more() if callable(more) else more) or {})}

    def is_pooled(self) -> bool:
        """Whether this alias has a pool."""
        wish = self.settings_dict["OPTIONS"].get("pool", True)
        return not (wish is None or wish is False or self.alias == NO_DB_ALIAS)

    @property
    def pool(self) -> Any:
        """The pool of this alias; ``None`` if pooling is turned off."""
        if self._lease is not None:
            return self._lender
        return self.pool_for(self.get_connection_params()).pool if self.is_pooled() else None

    def pool_for(self, params: dict[str, Any]) -> Known:
        """Return the pool for these connection parameters, created if needed.

        Raises:
            ImproperlyConfigured: An option is wrong.
        """
        try:
            return self.pools.suiting(self.alias, self.pool_recipe(params), lambda: self._checked_pool(params))
        except (ValueError, TypeError) as error:
            raise ImproperlyConfigured(f"DATABASES[{self.alias!r}]['OPTIONS']['pool']: {error}") from error

    def _checked_pool(self, params: dict[str, Any]) -> Pool[Any]:
        age = self.settings_dict.get("CONN_MAX_AGE", 0)
        if age != 0:
            raise ImproperlyConfigured(f"DATABASES[{self.alias!r}]: {bad_age(age)}")
        return self.make_pool(params)

    def close_pool(self) -> None:
        """Close the pool; the next connection creates another."""
        self.pools.close(self.alias)

    def cached_pool(self) -> Pool[Any] | None:
        """Return the pool used last, if it is known to be still right."""
        return None

    # -- a connection's life ---------------------------------------------------------

    def get_new_connection(self, conn_params: dict[str, Any]) -> Any:
        pool = self.cached_pool()
        if pool is None:
            if not self.is_pooled():
                return super().get_new_connection(conn_params)  # type: ignore[misc]
            pool = self.pool_for(conn_params).pool
        try:
            self._lease = lease = pool.acquire(None, depth_of_borrower(_FRAMEWORK))
            self._lender = pool
        except PoolError as error:
            raise as_django(error, self.other_errors) from error.__cause__
        return lease.__enter__()

    def _close(self) -> Any:
        lease, self._lease = self._lease, None
        if lease is None:
            return None if self.connection is None else self.connection.close()
        connection, self.connection = self.connection, None
        # A lease of the parent process is dropped without sending anything to the server (P9).
        error = self.error_of_dead_connection(connection) if lease.active else None
        lease.__exit__(None if error is None else type(error), error, None)
        return None

    def error_of_dead_connection(self, connection: Any) -> BaseException | None:
        """Return the error if the connection died while it was in use."""
        return None

    def ensure_connection(self) -> None:
        lease = self._lease
        if lease is not None and not lease.active:
            self._close()
        if self.connection is None:
            refusal: PoolError | None = None
            try:
                super().ensure_connection()  # type: ignore[misc]
            except OperationalError as error:
                if not isinstance(error.__cause__, PoolError):
                    raise
                refusal = error.__cause__  # it is a driver's error, too, so Django has wrapped it in its own
            if refusal is not None:
                try:
                    raise refusal
                finally:
                    del refusal  # its traceback refers to this frame

    def close_if_health_check_failed(self) -> None:
        if self._lease is None and self.connection is not None:  # the pool checks its own connections
            super().close_if_health_check_failed()  # type: ignore[misc]

    def close_if_unusable_or_obsolete(self) -> None:
        """Release an open lease, at the end of a response and before a request."""
        if self._lease is not None and not self.in_atomic_block:
            self.close()  # the pool checks whether it is usable; Django would query the server, without a time limit
        elif self.connection is not None:
            super().close_if_unusable_or_obsolete()  # type: ignore[misc]


def bad_age(age: object) -> str:
    """Return what is wrong with a ``CONN_MAX_AGE`` that is not 0."""
    return (
        f"Pooling doesn't support persistent connections. CONN_MAX_AGE must be 0, not {shown(age)}: "
        "each thread would keep its own connection. Use max_lifetime to limit the age of connections."
    )

"""What the engines have in common: a pool for each alias, a lease for each open connection."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Mapping
from types import FrameType
from typing import Any, NamedTuple

import django
from django.core.exceptions import ImproperlyConfigured
from django.db import OperationalError
from django.db.backends.base.base import NO_DB_ALIAS

from ..._masking import shown
from ...core.lease import Lease
from ...core.pool import Pool
from ...core.runtime.fork import SAME_PROCESS
from ...errors import PoolError
from ._errors import as_django

__all__ = ["AliasPools", "PooledWrapper", "bad_age"]

# Whose frames do not count as the holder's.
_FRAMEWORK = (os.path.dirname(django.__file__) + os.sep, os.path.dirname(__file__) + os.sep, contextlib.__file__)


class Known(NamedTuple):
    """A pool, and what it was made from."""

    recipe: Mapping[str, Any]
    pool: Pool[Any]


class AliasPools:
    """The pools of an engine by alias, shared by all threads.

    A pool is for one database and one set of connection parameters. Where
    these change under an alias (test databases, time zones), the old pool
    closes what it has, and what is lent when it comes back.
    """

    def __init__(self) -> None:
        self._known: dict[str, Known] = {}  # no lock: a fork would copy it locked

    def current(self, alias: str) -> Known | None:
        """Return what is known of an alias now."""
        return self._known.get(alias)

    def suiting(self, alias: str, recipe: Mapping[str, Any], make: Callable[[], Pool[Any]]) -> Known:
        """Return the pool of an alias that was made from this recipe; make it if there is none."""
        known = self._known.get(alias)
        if known is not None and known.recipe == recipe:
            return known
        made = Known(recipe, make())
        # dict methods are atomic: whoever comes second takes what the first one made.
        if known is None:
            won = self._known.setdefault(alias, made)
            return won if won.recipe == recipe else self.suiting(alias, recipe, make)
        self._known[alias] = made
        known.pool.reconfigure(min_size=0)
        known.pool.drain()
        return made

    def close(self, alias: str) -> None:
        """Close the pool of an alias; the next connection makes another."""
        known = self._known.pop(alias, None)
        if known is not None:
            known.pool.close()


class PooledWrapper:
    """Put before a ``DatabaseWrapper`` of Django's: its connections are leases.

    Django "opens" a connection at a request's first query and, with
    ``CONN_MAX_AGE = 0``, "closes" it when the response is closed. Here the one
    takes a lease and the other gives it back.
    """

    pools: AliasPools
    _other_errors: Mapping[type[PoolError], type[Exception]] = {}  # that the pool's errors are of, too
    _lease: Lease[Any] | None = None

    # What is Django's.
    alias: str
    settings_dict: dict[str, Any]
    connection: Any
    in_atomic_block: bool
    close: Callable[[], None]
    get_connection_params: Callable[[], dict[str, Any]]

    def _make_pool(self, params: dict[str, Any]) -> Pool[Any]:
        """Make the pool of this alias."""
        raise NotImplementedError

    def _recipe(self, params: dict[str, Any]) -> dict[str, Any]:
        """Return what connections are made from: where it differs, it takes another pool."""
        raise NotImplementedError

    def _is_pooled(self) -> bool:
        wish = self.settings_dict["OPTIONS"].get("pool", True)
        return not (wish is None or wish is False or self.alias == NO_DB_ALIAS)

    @property
    def pool(self) -> Any:
        """The pool of this alias; ``None`` if it is told to have none."""
        if self._lease is not None:
            return self._lease._pool
        return self._pool_for(self.get_connection_params()).pool if self._is_pooled() else None

    def _pool_for(self, params: dict[str, Any]) -> Known:
        try:
            return self.pools.suiting(self.alias, self._recipe(params), lambda: self._checked_pool(params))
        except (ValueError, TypeError) as error:
            raise ImproperlyConfigured(f"DATABASES[{self.alias!r}]['OPTIONS']['pool']: {error}") from error

    def _checked_pool(self, params: dict[str, Any]) -> Pool[Any]:
        age = self.settings_dict.get("CONN_MAX_AGE", 0)
        if age != 0:
            raise ImproperlyConfigured(f"DATABASES[{self.alias!r}]: {bad_age(age)}")
        return self._make_pool(params)

    def close_pool(self) -> None:
        """Close the pool; the next connection makes another."""
        self.pools.close(self.alias)

    def _cached_pool(self) -> Pool[Any] | None:
        """Return the pool that suited the last time, if it is known that it does now."""
        return None

    # -- a connection's life ---------------------------------------------------------

    def get_new_connection(self, conn_params: dict[str, Any]) -> Any:
        pool = self._cached_pool()
        if pool is None:
            if not self._is_pooled():
                return super().get_new_connection(conn_params)  # type: ignore[misc]
            pool = self._pool_for(conn_params).pool
        try:
            self._lease = lease = pool.acquire(None, _depth_of_the_user())
        except PoolError as error:
            raise as_django(error, self._other_errors) from error.__cause__
        return lease.__enter__()

    def _close(self) -> Any:
        lease, self._lease = self._lease, None
        if lease is None:
            return None if self.connection is None else self.connection.close()
        connection, self.connection = self.connection, None
        # A lease that the parent process has taken is dropped quietly, without a word to the server (P9).
        error = self._death_of(connection) if _is_ours(lease) else None
        lease.__exit__(None if error is None else type(error), error, None)
        return None

    def _death_of(self, connection: Any) -> BaseException | None:
        """Return what the connection died of while it was lent, if it did."""
        return None

    def ensure_connection(self) -> None:
        lease = self._lease
        if lease is not None and not _is_ours(lease):
            self._close()
        if self.connection is None:
            refusal: PoolError | None = None
            try:
                super().ensure_connection()  # type: ignore[misc]
            except OperationalError as error:
                if not isinstance(error.__cause__, PoolError):
                    raise
                refusal = error.__cause__  # it is the driver's error as well, and Django has put its own around it
            if refusal is not None:
                try:
                    raise refusal
                finally:
                    del refusal  # which has this frame in its traceback

    def close_if_health_check_failed(self) -> None:
        if self._lease is None and self.connection is not None:  # else the pool looks
            super().close_if_health_check_failed()  # type: ignore[misc]

    def close_if_unusable_or_obsolete(self) -> None:
        """At the end of a response, and before a request: give back what is open."""
        if self._lease is not None and not self.in_atomic_block:
            self.close()  # whether it is usable the pool finds out: Django would ask the server, without a limit
        elif self.connection is not None:
            super().close_if_unusable_or_obsolete()  # type: ignore[misc]


def bad_age(age: object) -> str:
    """Say what is wrong with a ``CONN_MAX_AGE`` that is not 0."""
    return (
        f"Pooling doesn't support persistent connections. CONN_MAX_AGE must be 0, not {shown(age)}: "
        "each thread would keep a connection to itself. How old they may get says max_lifetime."
    )


def _is_ours(lease: Lease[Any]) -> bool:
    """Whether a lease is this process's: not given back, not inherited over a fork."""
    key = lease._token
    if key is None or key.entry.resource is None:
        return False
    return SAME_PROCESS[0] != 0 or lease._pool._checkin.engine.owns(key.entry)


def _depth_of_the_user() -> int:
    """How many frames above what our caller calls the code stands that wanted a connection."""
    global _usual
    try:
        last = sys._getframe(_usual - 1)
    except ValueError:  # so many there are not
        pass
    else:
        user = last.f_back
        known = _theirs.get
        if user is not None and known(last.f_code.co_filename) and known(user.f_code.co_filename) is False:
            return _usual  # as the last time
    frame, depth = sys._getframe(2), 2
    while _is_theirs(frame) and frame.f_back is not None:
        frame, depth = frame.f_back, depth + 1
    _usual = depth
    return depth


_usual = 2
_theirs: dict[str, bool] = {}  # by the name of a file: whether it is the framework's


def _is_theirs(frame: FrameType) -> bool:
    file = frame.f_code.co_filename
    known = _theirs.get(file)
    if known is None:
        known = _theirs[file] = file.startswith(_FRAMEWORK)
    return known

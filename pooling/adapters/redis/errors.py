"""The pool's errors, which are also redis-py's, so that ``except`` clauses written for its pools keep working."""

from __future__ import annotations

from typing import Any

import redis.exceptions as theirs

from ...errors import CircuitOpen, CreateFailed, PoolClosed, PoolError, PoolTimeout, PoolUnavailable, TooManyWaiting

__all__ = ["as_redis_error"]

# redis-py 5.2 and older have no class of its own for a pool that is exhausted.
_Exhausted: type[theirs.ConnectionError] = getattr(theirs, "MaxConnectionsError", theirs.ConnectionError)


class _InTime:
    """What redis-py's constructor sets; a `PoolTimeout` is constructed by the built-in `TimeoutError`."""

    error_type: Any = getattr(getattr(theirs, "ExceptionType", None), "NETWORK", None)  # redis-py 7 and newer
    status_code: str | None = None


class RedisPoolTimeout(_InTime, PoolTimeout, theirs.ConnectionError, theirs.TimeoutError):
    """No connection in time: the server is down."""


class RedisPoolExhausted(_InTime, PoolTimeout, _Exhausted, theirs.TimeoutError):  # type: ignore[misc, valid-type]
    """No connection in time: all are in use."""


class RedisTooManyWaiting(TooManyWaiting, _Exhausted):  # type: ignore[misc, valid-type]
    """The wait queue is full."""


class RedisPoolUnavailable(PoolUnavailable, theirs.ConnectionError):
    """The server is down, and the caller did not want to wait."""


class RedisCircuitOpen(CircuitOpen, theirs.ConnectionError):
    """The server keeps failing, so no connection was made."""


class RedisPoolClosed(PoolClosed, theirs.ConnectionError):
    """The pool was closed."""


class RedisCreateFailed(CreateFailed, theirs.ConnectionError):
    """Connecting cannot succeed."""


class RedisLoginFailed(CreateFailed, theirs.AuthenticationError):
    """The server refuses the credentials."""


_KINDS: dict[type[PoolError], type[PoolError]] = {
    TooManyWaiting: RedisTooManyWaiting, PoolUnavailable: RedisPoolUnavailable, PoolClosed: RedisPoolClosed,
    CircuitOpen: RedisCircuitOpen,
}  # fmt: skip


def as_redis_error(error: PoolError) -> PoolError:
    """Return an error of the pool as one that is also redis-py's."""
    kind = _KINDS.get(type(error), type(error))
    if type(error) is PoolTimeout:
        kind = RedisPoolExhausted if error.__cause__ is None else RedisPoolTimeout
    elif type(error) is CreateFailed:
        kind = RedisLoginFailed if isinstance(error.__cause__, theirs.AuthenticationError) else RedisCreateFailed
    if kind is type(error):
        return error
    translated = kind(*error.args)
    vars(translated).update(vars(error))  # `CircuitOpen.retry_after`
    return translated

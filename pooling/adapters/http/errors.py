"""What a request raises when the pool is the reason, each in both families.

Whoever uses the pool catches `PoolTimeout` and its kin; a library that only
knows requests catches ``requests.RequestException``, and its handlers for
timeouts and for failed connections work as before.
"""

from __future__ import annotations

from requests import exceptions

from ...errors import PoolClosed, PoolError, PoolTimeout, TooManyWaiting

__all__ = ["DeadlineExceeded", "WriteTimeout", "refusal"]


class HTTPPoolTimeout(exceptions.ConnectTimeout, PoolTimeout):
    """No connection became free in time; nothing was sent, so it is safe to try again."""


class HTTPTooManyWaiting(exceptions.ConnectionError, TooManyWaiting):
    """``max_waiting`` requests are in line for a connection already."""


class HTTPPoolClosed(exceptions.ConnectionError, PoolClosed):
    """The pool was closed before or during the request."""


class HTTPPoolError(exceptions.ConnectionError, PoolError):
    """Anything else that the pool refuses for."""


class WriteTimeout(exceptions.ConnectionError, exceptions.Timeout):
    """The server did not take the request within the time to write."""


class DeadlineExceeded(exceptions.ReadTimeout, exceptions.ConnectionError):
    """The request as a whole took longer than its ``total`` allows."""


_KINDS: tuple[tuple[type[PoolError], type[exceptions.ConnectionError]], ...] = (
    (PoolTimeout, HTTPPoolTimeout),
    (TooManyWaiting, HTTPTooManyWaiting),
    (PoolClosed, HTTPPoolClosed),
    (PoolError, HTTPPoolError),
)


def refusal(error: PoolError) -> exceptions.ConnectionError:
    """Return the pool's error as one that requests' users know as well."""
    both = next(both for ours, both in _KINDS if isinstance(error, ours))
    known = both(str(error))
    known.__cause__ = error.__cause__
    return known

"""Errors of requests that the pool causes; each is a `PoolError` and a ``requests.RequestException``.

Code that knows the pool catches `PoolTimeout` and the like. A library that
knows only requests handles them as timeouts and failed connections.
"""

from __future__ import annotations

from typing import Any

from requests import exceptions
from urllib3.exceptions import (
    ConnectTimeoutError,
    HTTPError,
    NameResolutionError,
    NewConnectionError,
    ProtocolError,
    ProxyError,
    ReadTimeoutError,
    SSLError,
)

from ...errors import CircuitOpen, PoolClosed, PoolError, PoolTimeout, TooManyWaiting

__all__ = ["DeadlineExceeded", "Superseded", "WriteTimeout", "kind_of", "refusal"]


class HTTPPoolTimeout(exceptions.ConnectTimeout, PoolTimeout):
    """No connection was free in time. Nothing was sent, so a retry is safe."""


class HTTPCircuitOpen(exceptions.ConnectionError, CircuitOpen):
    """The host keeps failing, so the request was not sent. Nothing was sent, so a retry is safe."""

    def __init__(self, text: str, retry_after: float = 0.0, **kwargs: Any) -> None:
        exceptions.ConnectionError.__init__(self, text, **kwargs)
        self.retry_after = retry_after


class HTTPTooManyWaiting(exceptions.ConnectionError, TooManyWaiting):
    """``max_waiting`` requests wait for a connection already."""


class HTTPPoolClosed(exceptions.ConnectionError, PoolClosed):
    """The pool was closed before or during the request."""


class HTTPPoolError(exceptions.ConnectionError, PoolError):
    """The pool refused the request for another reason."""


class WriteTimeout(exceptions.ConnectionError, exceptions.Timeout):
    """The server did not accept the request within the ``write`` timeout."""


class DeadlineExceeded(exceptions.ReadTimeout, exceptions.ConnectionError):
    """The request took longer than its ``total`` timeout."""


class Superseded(Exception):
    """Ends an attempt while another one of the same request has the answer; users never see it.

    Args:
        reason: Why the connection is closed, as the metrics count it.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


_KINDS: tuple[tuple[type[PoolError], type[exceptions.ConnectionError]], ...] = (
    (PoolTimeout, HTTPPoolTimeout),
    (TooManyWaiting, HTTPTooManyWaiting),
    (PoolClosed, HTTPPoolClosed),
    (PoolError, HTTPPoolError),
)


def refusal(error: PoolError) -> exceptions.ConnectionError:
    """Return an error of the pool as one that is also a ``requests.ConnectionError``."""
    if isinstance(error, CircuitOpen):
        return HTTPCircuitOpen(str(error), error.retry_after)
    both = next(both for ours, both in _KINDS if isinstance(error, ours))
    translated = both(str(error))
    translated.__cause__ = error.__cause__
    return translated


_FAILURES: tuple[tuple[type[Exception], str], ...] = (
    (ProxyError, "proxy"),
    (SSLError, "tls"),
    (NameResolutionError, "name"),
    (NewConnectionError, "connect"),
    (ConnectTimeoutError, "connect_timeout"),
    (ReadTimeoutError, "read_timeout"),
    (ProtocolError, "connection"),
)


def kind_of(error: HTTPError) -> str:
    """Return the kind of an error of urllib3, as the metrics count it."""
    return next((kind for error_class, kind in _FAILURES if isinstance(error, error_class)), "other")

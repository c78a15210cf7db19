"""One HTTP pool for the whole process, configured by environment variables.

It is created on first use and kept until it is shut down. A forked child opens
its own sockets under the same object.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from typing import Any

import requests

from ..._masking import shown
from ...settings import PoolSettings, truth, variable
from .limits import HTTPTimeout
from .pool import HTTPPool

__all__ = ["get_http_pool", "init_http_pool", "make_http_request", "pool_arguments", "shutdown_http_pool"]

#: The defaults for a service that calls other services: many requests at once, few idle sockets.
_SETTINGS = PoolSettings(min_size=0, max_size=100, max_idle=20, idle_timeout=300, acquire_timeout=5)
_TIMEOUT = HTTPTimeout(connect=10, read=30, write=10)

# Variables for what is not a field of `PoolSettings`: the name after the prefix, and what it sets.
_TIMES = {
    "CONNECT_TIMEOUT": "connect", "CONNECTION_TIMEOUT": "connect", "READ_TIMEOUT": "read",
    "WRITE_TIMEOUT": "write", "POOL_TIMEOUT": "pool", "TOTAL_TIMEOUT": "total",
}  # fmt: skip
_NUMBERS = {"MAX_CONNECTIONS_PER_HOST": "max_per_host", "RETRY_ATTEMPTS": "retry"}

_lock = threading.Lock()  # guards `_pool`
_pool: HTTPPool | None = None


def init_http_pool(**arguments: Any) -> HTTPPool:
    """Create the pool of the process and return it; an earlier one is closed.

    Without this call, the first request creates it. Environment variables configure it:
    ``HTTP_MAX_CONNECTIONS`` (100), ``HTTP_MAX_KEEPALIVE_CONNECTIONS`` (20),
    ``HTTP_KEEPALIVE_EXPIRY`` (300 s), ``HTTP_MAX_CONNECTIONS_PER_HOST`` (30),
    ``HTTP_CONNECT_TIMEOUT`` or ``HTTP_CONNECTION_TIMEOUT`` (10 s),
    ``HTTP_READ_TIMEOUT`` (30 s), ``HTTP_WRITE_TIMEOUT`` (10 s),
    ``HTTP_POOL_TIMEOUT`` (5 s), ``HTTP_TOTAL_TIMEOUT`` (none),
    ``HTTP_RETRY_ATTEMPTS`` (0), the other names of `PoolSettings`
    (``HTTP_MAX_LIFETIME``, ...), ``ENABLE_METRICS``, and ``HTTP_POOLING``:
    ``off`` makes a new session for each request.

    Args:
        arguments: As for `HTTPPool`; they override the environment.

    Raises:
        ValueError: A variable cannot be parsed or is out of bounds; the message names it.
    """
    global _pool
    made = HTTPPool(**pool_arguments("HTTP_", **arguments))
    with _lock:
        before, _pool = _pool, made
    if before is not None:
        before.close()
    return made


def get_http_pool() -> HTTPPool:
    """Return the pool of the process; it is created if there is none.

    Raises:
        ValueError: As for `init_http_pool`.
    """
    global _pool
    pool = _pool
    if pool is None:
        made = HTTPPool(**pool_arguments("HTTP_"))
        with _lock:
            pool = _pool = _pool or made
    return pool


def make_http_request(method: str, url: str, **kwargs: Any) -> requests.Response:
    """Make a request with the pool of the process.

    Args:
        method, url, kwargs: As for `HTTPPool.request`.

    Raises:
        ValueError: As for `init_http_pool`.
    """
    return get_http_pool().request(method, url, **kwargs)


def shutdown_http_pool(timeout: float | None = None) -> None:
    """Close the pool of the process, if there is one; the next request creates a new one.

    Args:
        timeout: Seconds to wait for requests in progress; ``None`` means ``close_timeout``.
    """
    global _pool
    with _lock:
        pool, _pool = _pool, None
    if pool is not None:
        pool.close(timeout)


def pool_arguments(prefix: str, environ: Mapping[str, str] | None = None, **arguments: Any) -> dict[str, Any]:
    """Return the arguments of an `HTTPPool` that the environment configures.

    Args:
        prefix: The prefix of the variables, with the underscore.
        environ: The variables; ``None`` means ``os.environ``.
        arguments: Further arguments; they override the environment.

    Raises:
        ValueError: A variable cannot be parsed or is out of bounds; the message names it.
    """
    environ = os.environ if environ is None else environ
    environ = without_headers(prefix, environ)
    found: dict[str, Any] = {"timeout": _timeout(prefix, environ), "name": "http"}
    for suffix, argument in _NUMBERS.items():
        if (text := variable(environ, prefix + suffix)) is not None:
            found[argument] = _whole(prefix + suffix, text, 0 if argument == "retry" else 1)
    if (text := variable(environ, prefix + "POOLING")) is not None:
        found["pooled"] = _truth(prefix + "POOLING", text)
    ours = {*_TIMES, *_NUMBERS, "POOLING", "PROXY", "TIMEOUT"}
    rest = {name: text for name, text in environ.items() if name.removeprefix(prefix) not in ours}
    base = _SETTINGS
    if (text := variable(environ, "ENABLE_METRICS")) is not None:
        base = base.replace(enable_metrics=_truth("ENABLE_METRICS", text))
    found["settings"] = PoolSettings.from_env(prefix, rest, base=base)
    return found | arguments


def without_headers(prefix: str, environ: Mapping[str, str]) -> Mapping[str, str]:
    """Return an environment without the ``HTTP_...`` variables of a CGI server, which are headers of the request.

    They are untrusted. Python ignores ``HTTP_PROXY`` there for the same reason (httpoxy.org).
    """
    if prefix != "HTTP_" or "REQUEST_METHOD" not in environ:
        return environ
    return {name: text for name, text in environ.items() if not name.startswith(prefix)}


def _timeout(prefix: str, environ: Mapping[str, str]) -> HTTPTimeout:
    times: dict[str, tuple[str, float | None]] = {}
    for suffix, part in _TIMES.items():
        name, text = prefix + suffix, variable(environ, prefix + suffix)
        if text is None:
            continue
        value = _seconds(name, text)
        if part in times and times[part][1] != value:
            raise ValueError(f"{times[part][0]} and {name} both set the time to {part}")
        times[part] = (name, value)
    given = {part: value for part, (_, value) in times.items()}
    return HTTPTimeout(**{"connect": _TIMEOUT.connect, "read": _TIMEOUT.read, "write": _TIMEOUT.write, **given})


def _seconds(name: str, text: str) -> float | None:
    if text.strip().lower() in ("none", "never"):
        return None
    try:
        value = float(text)
        HTTPTimeout(connect=value)  # checks the bounds
    except (TypeError, ValueError):
        raise ValueError(f"{name}={shown(text)}: must be a number of seconds above 0, or none") from None
    return value


def _whole(name: str, text: str, least: int) -> int:
    try:
        value = int(text)
    except ValueError:
        value = least - 1
    if value < least:
        raise ValueError(f"{name}={shown(text)}: must be a whole number, at least {least}")
    return value


def _truth(name: str, text: str) -> bool:
    try:
        return truth(text)
    except ValueError as rule:
        raise ValueError(f"{name}={shown(text)}: {rule}") from None


def _renew_lock() -> None:
    global _lock
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):  # uWSGI runs no hooks; it forks before there are requests
    os.register_at_fork(after_in_child=_renew_lock)
for _function in (get_http_pool, init_http_pool, make_http_request, shutdown_http_pool):
    _function.__module__ = "pooling"  # where users import them from

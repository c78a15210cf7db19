"""One client for the whole process, set up by the environment.

A pool like any other, made when it is asked for first, and kept until it is
shut down; a child that was forked has its own sockets under the same object.
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

#: The defaults of a service that talks to other services: many users, few kept sockets.
_SETTINGS = PoolSettings(min_size=0, max_size=100, max_idle=20, idle_timeout=300, acquire_timeout=5)
_TIMEOUT = HTTPTimeout(connect=10, read=30, write=10)

# What is said about requests, not about sockets: name after the prefix → what it sets.
_TIMES = {
    "CONNECT_TIMEOUT": "connect", "CONNECTION_TIMEOUT": "connect", "READ_TIMEOUT": "read",
    "WRITE_TIMEOUT": "write", "POOL_TIMEOUT": "pool", "TOTAL_TIMEOUT": "total",
}  # fmt: skip
_NUMBERS = {"MAX_CONNECTIONS_PER_HOST": "max_per_host", "RETRY_ATTEMPTS": "retry"}

_lock = threading.Lock()  # guards making and forgetting, and is held for an instant
_pool: HTTPPool | None = None


def init_http_pool(**arguments: Any) -> HTTPPool:
    """Make the process's client, and return it; one that was made before is closed.

    Without this the first request makes it. It is set up by the environment:
    ``HTTP_MAX_CONNECTIONS`` (100), ``HTTP_MAX_KEEPALIVE_CONNECTIONS`` (20),
    ``HTTP_KEEPALIVE_EXPIRY`` (300 s), ``HTTP_MAX_CONNECTIONS_PER_HOST`` (30),
    ``HTTP_CONNECT_TIMEOUT`` or ``HTTP_CONNECTION_TIMEOUT`` (10 s),
    ``HTTP_READ_TIMEOUT`` (30 s), ``HTTP_WRITE_TIMEOUT`` (10 s),
    ``HTTP_POOL_TIMEOUT`` (5 s), ``HTTP_TOTAL_TIMEOUT`` (none),
    ``HTTP_RETRY_ATTEMPTS`` (0), the other names of `PoolSettings`
    (``HTTP_MAX_LIFETIME``, ...), ``ENABLE_METRICS``, and ``HTTP_POOLING``:
    ``off`` makes a new session for each request.

    Args:
        arguments: As for `HTTPPool`; they beat the environment.

    Raises:
        ValueError: A variable does not parse or breaks a rule; it is named.
    """
    global _pool
    made = HTTPPool(**pool_arguments("HTTP_", **arguments))
    with _lock:
        before, _pool = _pool, made
    if before is not None:
        before.close()
    return made


def get_http_pool() -> HTTPPool:
    """Return the process's client; it is made if there is none.

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
    """Make a request with the process's client; see `HTTPPool.request`."""
    return get_http_pool().request(method, url, **kwargs)


def shutdown_http_pool(timeout: float | None = None) -> None:
    """Close the process's client, if there is one; the next request makes a new one.

    Args:
        timeout: Seconds for requests under way; ``None`` means ``close_timeout``.
    """
    global _pool
    with _lock:
        pool, _pool = _pool, None
    if pool is not None:
        pool.close(timeout)


def pool_arguments(prefix: str, environ: Mapping[str, str] | None = None, **arguments: Any) -> dict[str, Any]:
    """Return what to make an `HTTPPool` with: the environment's word, and the program's over it.

    Args:
        prefix: How the variables begin, with the underscore.
        environ: Where to look; ``None`` means ``os.environ``.
        arguments: What the program says.

    Raises:
        ValueError: A variable does not parse or breaks a rule; it is named.
    """
    environ = os.environ if environ is None else environ
    environ = without_headers(prefix, environ)
    found: dict[str, Any] = {"timeout": _timeout(prefix, environ), "name": "http"}
    for word, argument in _NUMBERS.items():
        if (text := variable(environ, prefix + word)) is not None:
            found[argument] = _whole(prefix + word, text, 0 if argument == "retry" else 1)
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
    """Return an environment without what a CGI server has put there: each header of a request as ``HTTP_...``.

    Strangers set these. Python leaves out ``HTTP_PROXY`` for that reason (httpoxy.org).
    """
    if prefix != "HTTP_" or "REQUEST_METHOD" not in environ:
        return environ
    return {name: text for name, text in environ.items() if not name.startswith(prefix)}


def _timeout(prefix: str, environ: Mapping[str, str]) -> HTTPTimeout:
    times: dict[str, tuple[str, float | None]] = {}
    for word, part in _TIMES.items():
        name, text = prefix + word, variable(environ, prefix + word)
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
        HTTPTimeout(connect=value)  # has the rule
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

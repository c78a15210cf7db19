"""The health of a manager's pools over HTTP.

Unauthenticated callers see only up or down. The pools are checked at most once
a second.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from .._reports import DOWN, PoolHealth
from ..manager import Health, PoolManager
from ._access import Access, Admit, Answer, pack

__all__ = ["HealthEndpoint"]

MAX_AGE = 1.0
"""Seconds for which a result is reused, so that requests cannot overload the servers."""

GRACE = 1.0
"""Seconds to wait for another thread's check after its limit: more than the manager's own. Internal."""


class HealthEndpoint:
    """Answers with 200 while the pools are up or degraded, 503 when a critical one is down.

    Args:
        manager: Returns the manager of the pools.
        token: Callers that send it as ``Authorization: Bearer ...`` see details.
        admit: Called with the WSGI environment; the caller sees details if it
            returns a true value.
        timeout: Seconds for a check.

    Raises:
        ValueError, TypeError: The token is empty or not a string, or ``admit``
            is not callable.
    """

    def __init__(
        self,
        manager: Callable[[], PoolManager],
        *,
        token: str | None = None,
        admit: Admit | None = None,
        timeout: float = 5.0,
    ) -> None:
        self._access = Access("health", token, admit)
        self._manager = manager
        self._timeout = timeout
        self._last: tuple[PoolManager | None, float, Health | None] = (None, 0.0, None)
        self._checks: dict[tuple[int, int], _Check] = {}  # in progress, by process and manager

    def answer(self, environ: Mapping[str, Any]) -> Answer:
        """Return status, headers and body for a request."""
        method = environ.get("REQUEST_METHOD", "GET")
        if method not in ("GET", "HEAD"):
            return pack("405 Method Not Allowed", b"", "text/plain", ("Allow", "GET, HEAD"))
        health = self._health()
        status = "200 OK" if health else "503 Service Unavailable"
        if self._access.admits(environ):
            body, kind = json.dumps(health.to_dict()).encode(), "application/json"
        else:
            body, kind = (b"up" if health else b"down"), "text/plain"
        answer = pack(status, body, kind)
        return (*answer[:2], b"") if method == "HEAD" else answer

    def _health(self) -> Health:
        """Return the last result if it is fresh, otherwise check; only one of several threads checks.

        Without a lock, which could be created before gevent patches, or held at a fork.
        """
        manager = self._manager()
        known = self._known(manager, MAX_AGE)
        if known is not None:
            return known
        mine, key = _Check(), (os.getpid(), id(manager))
        check = self._checks.setdefault(key, mine)
        if check is not mine:
            known = self._known(manager, MAX_AGE + self._timeout)
            return self._wait(check, key, manager) if known is None else known
        try:
            known = self._known(manager, MAX_AGE)  # another check may just have ended
            mine.health = self._ask(manager) if known is None else known
            return mine.health
        finally:
            self._checks.pop(key, None)
            mine.done.set()

    def _known(self, manager: PoolManager, age: float) -> Health | None:
        whose, when, health = self._last
        fresh = whose is manager and not manager.closing and time.monotonic() - when < age
        return health if fresh else None

    def _ask(self, manager: PoolManager) -> Health:
        health = manager.health_check(self._timeout)
        self._last = manager, time.monotonic(), health
        return health

    def _wait(self, check: _Check, key: tuple[int, int], manager: PoolManager) -> Health:
        """Wait for the other thread's result; check here if that thread failed."""
        if check.done.wait(self._timeout + GRACE):
            return self._ask(manager) if check.health is None else check.health
        self._checks.pop(key, None)  # it may never end, for instance if its thread was killed
        late = PoolHealth(DOWN, self._timeout, f"no answer within {self._timeout:g} s")
        return Health(dict.fromkeys(manager, late))


class _Check:
    """A check in progress, for other threads to wait for."""

    def __init__(self) -> None:
        self.done = threading.Event()  # created on use, after gevent has patched, if it ever does
        self.health: Health | None = None

"""Is the service well? A URL is asked at intervals; when it stays silent all sockets are replaced.

The asking is the core's health check, of a pool with one thing in it: so its
interval, its time limit, its place on a worker and its life over forks are
those of every pool.

What it proves is the service, not us: a probe that finds no free connection
says nothing. And sockets are not to blame for a URL that the service does not
know (a 404): that makes it unhealthy, and replaces nothing.
"""

from __future__ import annotations

import contextlib
import logging
import weakref
from typing import Any

import requests

from ...core.adapter import Adapter
from ...core.observer import Observer
from ...core.pool import Pool
from ...errors import PoolClosed, PoolTimeout, TooManyWaiting
from ...settings import PoolSettings
from .arguments import public, without_secrets
from .interfaces import Client
from .limits import HTTPTimeout

__all__ = ["Health"]

logger = logging.getLogger("pooling")


_NO_VERDICT = (PoolTimeout, TooManyWaiting, PoolClosed)  # about us; nothing was asked
_OURS = ("health_check_interval", "health_check_timeout", "max_validation_failures")


class Health(Observer):
    """Asks, remembers, and replaces the sockets after so many failures in a row."""

    def __init__(self, http: Client, url: str, settings: PoolSettings) -> None:
        self.url, self.public_url = url, public(url)
        self.status = "unknown"
        self.failures = self.generations = 0
        self.last_error: str | None = None
        self._http = weakref.ref(http)  # the core holds on to adapters and observers
        self._process: object = None
        self.pool: Pool[object] = Pool(
            adapter=_Probe(self._http),
            settings=PoolSettings(min_size=1, max_size=1, max_lifetime=None, idle_timeout=None, **_ours(settings)),
            name=f"{http.name} health", observers=[self],
        )  # fmt: skip
        self.pool.engine.owner = None  # a part of the HTTPPool

    def ensure(self) -> None:
        """Begin, if this process has not: ask now, and then at the interval."""
        if self._process is not self.pool.engine.state:
            self._process = self.pool.engine.state
            self.pool.fill()
            if self.pool.settings.health_check_interval is not None:
                self.pool.check()

    def configure(self, settings: PoolSettings) -> None:
        """Take over settings, at once."""
        self.pool.check_health_now()  # else the old interval has to pass first
        self.pool.reconfigure(**_ours(settings))

    def ask(self) -> None:
        """Ask now, and return when there is an answer, or none in time."""
        with contextlib.suppress(Exception):  # it was noted
            self.check(self.pool.settings.health_check_timeout)

    def check(self, timeout: float) -> None:
        """Ask, note the answer, and raise if new sockets might help."""
        http = self._http()
        if http is None:
            return
        limit = HTTPTimeout(connect=timeout, read=timeout, write=timeout, pool=timeout, total=timeout)
        try:
            with http.request_context("GET", self.url, timeout=limit, stream=True) as response:
                if not response.ok:
                    raise requests.HTTPError(f"{response.status_code} {response.reason}", response=response)
        except _NO_VERDICT as error:
            logger.info("pool %r: %s was not asked: %s", http.name, self.public_url, error)
        except Exception as error:
            self._note(http, error)
            if _may_be_the_sockets(error):
                raise
        else:
            self._note(http, None)

    def _note(self, http: Client, error: Exception | None) -> None:
        if error is None:
            if self.status == "unhealthy":
                logger.warning("pool %r: %s answers again", http.name, self.public_url)
            self.status, self.failures, self.last_error = "healthy", 0, None
        else:
            text = without_secrets(str(error), self.url)
            if self.status != "unhealthy":
                logger.warning("pool %r: %s does not answer well: %s", http.name, self.public_url, text)
            self.status, self.last_error = "unhealthy", f"{type(error).__name__}: {text}"
            self.failures += 1
        http._health_checked(error)

    def drained(self, pool: str) -> None:
        self.generations += 1
        http = self._http()
        if http is not None:
            logger.warning("pool %r: replacing all sockets", http.name)
            http.drain()

    def as_dict(self) -> dict[str, Any]:
        """Return what is known."""
        return {
            "url": self.public_url, "failures": self.failures, "generations": self.generations,
            "last_check": None if self._http() is None else self._http().metrics.last_health_check,  # type: ignore[union-attr]
            "last_error": self.last_error,
        }  # fmt: skip


def _may_be_the_sockets(error: Exception) -> bool:
    """Whether there was no answer, or one of trouble; below 500 the service is there, and dislikes the question."""
    response = getattr(error, "response", None)
    return response is None or response.status_code >= 500


def _ours(settings: PoolSettings) -> dict[str, Any]:
    return {name: getattr(settings, name) for name in _OURS}


class _Probe(Adapter[object]):
    """What stands for asking; its round trip is a request."""

    noun = "health probe"
    blocking = False

    def __init__(self, http: weakref.ref[Client]) -> None:
        self._http = http

    def create(self) -> object:
        return object()  # each asks with a session of its own

    def validate(self, resource: object, timeout: float) -> None:
        http = self._http()
        if http is not None and http._probes is not None:
            http._probes.check(timeout)

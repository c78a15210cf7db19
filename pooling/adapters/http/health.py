"""Is the service well? A URL is asked at intervals; when it stays silent all sockets are replaced.

The asking is the core's health check, of a pool with one thing in it: so its
interval, its time limit, its place on a worker and its life over forks are
those of every pool.
"""

from __future__ import annotations

import logging
import weakref
from typing import TYPE_CHECKING, Any

import requests

from ...core.adapter import Adapter
from ...core.observer import Observer
from ...core.pool import Pool
from ...settings import PoolSettings
from .limits import HTTPTimeout

if TYPE_CHECKING:
    from .pool import HTTPPool

__all__ = ["Health"]

logger = logging.getLogger("pooling")


class Health(Observer):
    """Asks, remembers, and replaces the sockets after so many failures in a row."""

    def __init__(self, http: HTTPPool, url: str, settings: PoolSettings) -> None:
        self.url = url
        self.status = "unknown"
        self.failures = self.generations = 0
        self.last_error: str | None = None
        self._http = weakref.ref(http)  # the core holds on to adapters and observers
        self._process: object = None
        self.pool: Pool[object] = Pool(
            adapter=_Probe(self._http, url),
            settings=PoolSettings(
                min_size=1, max_size=1, health_check_interval=settings.health_check_interval,
                health_check_timeout=settings.health_check_timeout, max_lifetime=None, idle_timeout=None,
                max_validation_failures=settings.max_validation_failures,
            ),
            name=f"{http.name} health", observers=[self],
        )  # fmt: skip

    def ensure(self) -> None:
        """Begin, if this process has not."""
        if self._process is not self.pool._state:
            self._process = self.pool._state
            self.pool.fill()

    def ask(self) -> None:
        """Ask now, and return when there is an answer, or none in time."""
        try:
            self.pool._adapter.validate(self.pool._adapter.create(), self.pool.settings.health_check_timeout)
        except Exception as error:
            self.health_checked(self.pool.name, error)
        else:
            self.health_checked(self.pool.name, None)

    def health_checked(self, pool: str, error: BaseException | None) -> None:
        if error is None:
            if self.status == "unhealthy":
                logger.warning("pool %r: %s answers again", self._name(), self.url)
            self.status, self.failures, self.last_error = "healthy", 0, None
        else:
            if self.status != "unhealthy":
                logger.warning("pool %r: %s does not answer: %s", self._name(), self.url, error)
            self.status, self.last_error = "unhealthy", f"{type(error).__name__}: {error}"
            self.failures += 1
        http = self._http()
        if http is not None:
            http._health_checked(error)

    def drained(self, pool: str) -> None:
        self.generations += 1
        http = self._http()
        if http is not None:
            logger.warning("pool %r: replacing all sockets", http.name)
            http.drain()

    def _name(self) -> str:
        http = self._http()
        return "?" if http is None else http.name

    def as_dict(self) -> dict[str, Any]:
        """Return what is known."""
        return {
            "url": self.url, "failures": self.failures, "generations": self.generations,
            "last_check": None if self._http() is None else self._http().metrics.last_health_check,  # type: ignore[union-attr]
            "last_error": self.last_error,
        }  # fmt: skip


class _Probe(Adapter[object]):
    """What stands for asking; its round trip is a request."""

    noun = "health probe"
    blocking = False

    def __init__(self, http: weakref.ref[HTTPPool], url: str) -> None:
        self._http, self._url = http, url

    def create(self) -> object:
        return object()  # each asks with a session of its own

    def validate(self, resource: object, timeout: float) -> None:
        http = self._http()
        if http is None:
            return
        limit = HTTPTimeout(connect=timeout, read=timeout, write=timeout, pool=timeout, total=timeout)
        with http.request_context("GET", self._url, timeout=limit, stream=True) as response:
            if response.status_code >= 500:
                raise requests.HTTPError(f"{response.status_code} {response.reason}", response=response)

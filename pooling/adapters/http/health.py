"""The health probe: requests a URL at intervals, and replaces all sockets when it fails repeatedly.

It uses the health check of a `Pool` with one resource, so the interval, the
time limit, the worker and forks are handled there.

A probe that finds no free connection has no result. An answer below 500, a 404
for example, makes the service unhealthy, but replaces no socket: it has just
used one that works.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from typing import Any

import requests

from ..._fields import fields
from ...core.adapter import Adapter
from ...core.observer import Observer
from ...core.pool import Pool
from ...errors import PoolClosed, PoolTimeout, TooManyWaiting
from ...settings import PoolSettings
from .arguments import public, without_secrets
from .limits import HTTPTimeout

__all__ = ["Health", "ask", "ping"]

logger = logging.getLogger("pooling")

_NOT_ASKED = (PoolTimeout, TooManyWaiting, PoolClosed)  # errors of the pool: the request was not sent
_SETTINGS = ("health_check_interval", "health_check_timeout", "max_validation_failures")


class Health:
    """Probes a URL in the background, from the first request on.

    Args:
        name: The pool's name.
        url: The URL to request.
        settings: Those of the pool.
        request: Requests the URL within these limits and returns the
            streamed response, or ``None`` if the pool no longer exists.
        drain: Replaces all sockets of the pool.
        record: Called with the error of each probe, ``None`` for success.
    """

    def __init__(
        self,
        name: str,
        url: str,
        settings: PoolSettings,
        *,
        request: Callable[[str, HTTPTimeout], requests.Response | None],
        drain: Callable[[], object],
        record: Callable[[Exception | None], object],
    ) -> None:
        self._probe = Probe(name, url, request, record)
        self._replacement = Replacement(name, drain)
        self._process: object = None
        self._pool: Pool[object] = Pool(
            adapter=_ProbeAdapter(self._probe),
            settings=PoolSettings(min_size=1, max_size=1, max_lifetime=None, idle_timeout=None, **_part_of(settings)),
            name=f"{name} health",
        )  # fmt: skip
        self._pool.engine.observe((self._replacement,))
        self._pool.engine.owner = None  # a part of the HTTPPool
        self._pool.metrics.inner = True

    @property
    def status(self) -> str:
        """``"unknown"``, ``"healthy"`` or ``"unhealthy"``, by the last probe."""
        return self._probe.status

    def ensure_started(self) -> None:
        """Start probing, if this process has not yet: one probe now, and then one at each interval."""
        pool = self._pool
        if self._process is not pool.engine.state and not pool.closed:
            self._process = pool.engine.state
            pool.fill()
            if pool.settings.health_check_interval is not None:
                pool.check()

    def configure(self, settings: PoolSettings) -> None:
        """Apply the settings of the pool at once, without waiting for the old interval."""
        self.make_due()
        self._pool.reconfigure(**_part_of(settings))

    def make_due(self) -> None:
        """Make the next probe due at once."""
        self._pool.check_health_now()

    def probe(self) -> None:
        """Probe now, within ``health_check_timeout`` seconds. The result is recorded."""
        with contextlib.suppress(Exception):
            self._probe.run(self._pool.settings.health_check_timeout)

    def close(self) -> None:
        """Stop probing."""
        self._pool.close(0.0)

    def as_dict(self, last_check: float | None) -> dict[str, Any]:
        """Return the results of the probes so far, of which the last one was at that time."""
        probe = self._probe
        return {
            "url": probe.public_url, "failures": probe.failures, "generations": self._replacement.generations,
            "last_check": last_check, "last_error": probe.last_error,
        }  # fmt: skip


class Probe:
    """One request to the URL, and the result of the last one."""

    def __init__(
        self,
        name: str,
        url: str,
        request: Callable[[str, HTTPTimeout], requests.Response | None],
        record: Callable[[Exception | None], object],
    ) -> None:
        self.public_url = public(url)
        self.status = "unknown"
        self.failures = 0  # in a row
        self.last_error: str | None = None
        self._name, self._url = name, url
        self._request, self._record = request, record

    def run(self, timeout: float) -> None:
        """Request the URL and record the result; raise if new sockets might help."""
        try:
            if not ask(self._request, self._url, timeout):
                return
        except _NOT_ASKED as error:
            extra = fields("not_probed", self._name, url=self.public_url, error=str(error))
            logger.info("pool %r: %s was not probed: %s", self._name, self.public_url, error, extra=extra)
        except Exception as error:
            self._failed(error)
            if _may_be_the_sockets(error):
                raise
        else:
            self._succeeded()

    def _succeeded(self) -> None:
        if self.status == "unhealthy":
            extra = fields("healthy", self._name, url=self.public_url)
            logger.warning("pool %r: %s is healthy again", self._name, self.public_url, extra=extra)
        self.status, self.failures, self.last_error = "healthy", 0, None
        self._record(None)

    def _failed(self, error: Exception) -> None:
        text = without_secrets(str(error), self._url)
        if self.status != "unhealthy":
            extra = fields("unhealthy", self._name, url=self.public_url, error=text)
            logger.warning("pool %r: %s is unhealthy: %s", self._name, self.public_url, text, extra=extra)
        self.status, self.last_error = "unhealthy", f"{type(error).__name__}: {text}"
        self.failures += 1
        self._record(error)


class Replacement(Observer):
    """Replaces all sockets when the pool of probes has begun a new generation, after too many failures in a row."""

    def __init__(self, name: str, drain: Callable[[], object]) -> None:
        self.generations = 0
        self._name, self._drain = name, drain

    def drained(self, pool: str) -> None:
        logger.warning(
            "pool %r: the health probe keeps failing; replacing all sockets", self._name,
            extra=fields("sockets_replaced", self._name),
        )  # fmt: skip
        self._drain()
        self.generations += 1  # when it is done: users of the count expect new sockets


class _ProbeAdapter(Adapter[object]):
    """Makes a probe the round trip of a resource that is nothing else."""

    noun = "health probe"
    blocking = False

    def __init__(self, probe: Probe) -> None:
        self._probe = probe

    def create(self) -> object:
        return object()  # each probe uses a session of its own

    def validate(self, resource: object, timeout: float) -> None:
        self._probe.run(timeout)


def ask(request: Callable[[str, HTTPTimeout], requests.Response | None], url: str, timeout: float) -> bool:
    """Request a URL within ``timeout`` seconds; return whether there was a request.

    Raises:
        requests.RequestException: There was no answer, or one with a status from 400 on.
    """
    response = request(url, HTTPTimeout(connect=timeout, read=timeout, write=timeout, pool=timeout, total=timeout))
    if response is None:
        return False
    with response:
        if not response.ok:
            raise requests.HTTPError(f"{response.status_code} {response.reason}", response=response)
    return True


def ping(request: Callable[[str, HTTPTimeout], requests.Response | None], url: str, timeout: float) -> None:
    """Request a URL as `ask` does; raise `ConnectionError`, without secrets of the URL, if that fails."""
    try:
        ask(request, url, timeout)
    except Exception as error:
        raise ConnectionError(f"{type(error).__name__}: {without_secrets(str(error), url)}") from None


def _may_be_the_sockets(error: Exception) -> bool:
    """Whether there was no answer, or one with a status from 500 on; below that, the sockets work."""
    response = getattr(error, "response", None)
    return response is None or response.status_code >= 500


def _part_of(settings: PoolSettings) -> dict[str, Any]:
    return {name: getattr(settings, name) for name in _SETTINGS}

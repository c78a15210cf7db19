"""Where alerts go: the log, a callable, a webhook.

Each target has a bounded queue of its own, which workers empty one alert after
the other. So a target that is slow or fails delays no other target, no sample
and no borrower, and no exit waits for it. What does not fit is dropped, the
newest first; that is counted, and logged once until a delivery succeeds again.
"""

from __future__ import annotations

import json
import logging
import queue
import random
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit

from .._fields import fields
from .._masking import shown
from ..core.clock import SYSTEM, Clock
from ..core.report.messages import format_error
from ..core.runtime import registry
from .alert import Alert

if TYPE_CHECKING:
    import requests

    from ..adapters.http import HTTPPool

__all__ = ["MOST_QUEUED", "Delivery", "Failed", "Target", "Webhook", "checked_targets"]

logger = logging.getLogger("pooling")

MOST_QUEUED = 100
"""Alerts that wait for one target; further ones are dropped."""

LOG = "log"


class Failed(Exception):
    """A delivery failed; the text may be shown."""

    def __init__(self, text: str, again: bool) -> None:
        super().__init__(text)
        self.again = again  # another attempt may succeed


class Target(Protocol):
    """Something that alerts are delivered to."""

    def __call__(self, alert: Alert) -> object:
        """Deliver one alert, or raise."""


class Webhook:
    """Sends each alert as a POST with a JSON body, see `Alert.to_dict`.

    It uses an `HTTPPool` of its own with one connection. An attempt fails on
    an error, after ``timeout``, and on a status that is not 2xx; redirects are
    not followed. After an error, a timeout, 408, 429 or 5xx it is repeated
    with exponential backoff and jitter; then the alert is dropped.

    Messages show the scheme and the host of the URL only: the rest may be a secret.

    Args:
        url: ``https://...``; may have a user and a password.
        headers: Further headers, such as ``{"Authorization": "Bearer ..."}``.
        body: Called with the `Alert`; returns what is sent as JSON instead.
        timeout: Seconds for one attempt, all together, above 0 and at most 300.
        retries: How often a failed attempt is repeated, 0 to 10.
        backoff: Seconds before the first repetition, doubled for each further one, 0 to 60.
        verify: As for `HTTPPool`.

    Raises:
        ValueError, TypeError: An argument breaks its rule.
    """

    def __init__(
        self,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: Callable[[Alert], Any] | None = None,
        timeout: float = 5.0,
        retries: int = 3,
        backoff: float = 1.0,
        verify: Any = True,
    ) -> None:
        if not isinstance(url, str):
            raise TypeError(f"Webhook.url must be a string, not of type {type(url).__name__}")
        try:
            parts = urlsplit(url)
            valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            valid = False
        if not valid:
            raise ValueError("Webhook.url must be an address such as https://hooks.example.com/...")  # never the value
        if headers is not None and not isinstance(headers, Mapping):
            raise TypeError(f"Webhook.headers must be a mapping, not of type {type(headers).__name__}")
        if body is not None and not callable(body):
            raise TypeError(f"Webhook.body must be callable, not {shown(body)}")
        self._url, self._headers, self._body = url, dict(headers or {}), body
        self._timeout = _number("Webhook.timeout", timeout, 0.01, 300.0)
        self.retries = int(_number("Webhook.retries", retries, 0, 10, whole=True))
        self.backoff = _number("Webhook.backoff", backoff, 0.0, 60.0)
        self._verify = verify
        self._made: dict[str, HTTPPool] = {}  # on first use; setting an item once is atomic

    @property
    def host(self) -> str:
        """What messages show of the URL."""
        parts = urlsplit(self._url)
        port = "" if parts.port is None else f":{parts.port}"
        return f"{parts.scheme}://{parts.hostname}{port}"

    def __call__(self, alert: Alert) -> None:
        """Make one attempt to deliver an alert.

        Raises:
            Failed: There was no answer, or not one with a status of 2xx.
        """
        import requests

        content = alert.to_dict() if self._body is None else self._body(alert)
        data = json.dumps(content, default=str).encode()
        headers = {"Content-Type": "application/json", **self._headers}
        try:
            response = self._pool().post(self._url, data=data, headers=headers, allow_redirects=False)
        except requests.RequestException as error:
            raise Failed(_cause_of(error), again=True) from None
        if not 200 <= response.status_code < 300:
            again = response.status_code in (408, 429) or response.status_code >= 500
            what = ", a redirect, which is not followed" if 300 <= response.status_code < 400 else ""
            raise Failed(f"status {response.status_code}{what}", again)

    def _pool(self) -> HTTPPool:
        found = self._made.get("pool")
        if found is None:
            from ..adapters.http import HTTPPool, HTTPTimeout

            limits = HTTPTimeout(
                connect=self._timeout, read=self._timeout, write=self._timeout, pool=self._timeout, total=self._timeout
            )
            made = HTTPPool(timeout=limits, retry=0, verify=self._verify, max_size=1, name=f"alerts to {self.host}")
            made.connections.slots.engine.owner = None  # not a pool of the application: it is not observed itself
            made.metrics.inner = True
            found = self._made.setdefault("pool", made)
        return found

    def close(self) -> None:
        """Close the connection."""
        pool = self._made.pop("pool", None)
        if pool is not None:
            pool.close(0.0)

    def __repr__(self) -> str:
        return f"<Webhook {self.host}>"


def _cause_of(error: requests.RequestException) -> str:
    """Return what failed, without the URL, which the texts of requests and urllib3 quote."""
    cause: BaseException | None = error
    seen: set[int] = set()
    last: BaseException = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        last = cause
        inner = [one for one in (getattr(cause, "reason", None), *cause.args) if isinstance(one, BaseException)]
        cause = inner[0] if inner else cause.__cause__ or cause.__context__
    text = last.strerror if isinstance(last, OSError) and last.strerror else ""
    return type(last).__name__ + (f": {text}" if text else "")


class Delivery:
    """The queue of one target in one process.

    Args:
        target: Called with each alert, on a worker.
        clock: The source of time.
    """

    def __init__(self, target: Any, clock: Clock = SYSTEM) -> None:
        self.target, self._clock = target, clock
        # Appending to a deque and popping from it are atomic, and so is setting an item of a dict once: no lock.
        self._queue: deque[Alert] = deque()
        self._busy: dict[str, object] = {}
        self.sent = 0
        self.dropped = 0
        self._complained = False

    @property
    def name(self) -> str:
        """How messages call the target."""
        if isinstance(self.target, Webhook):
            return f"webhook {self.target.host}"
        return str(getattr(self.target, "__qualname__", type(self.target).__name__))

    def put(self, alert: Alert) -> None:
        """Deliver an alert soon, on a worker; never blocks."""
        if len(self._queue) >= MOST_QUEUED:
            self._drop("too many are waiting")
            return
        self._queue.append(alert)
        self._start()

    def _start(self) -> None:
        mine = object()
        if self._queue and self._busy.setdefault("job", mine) is mine:
            registry.runtime_of(self._clock).workers.submit(self._run)

    def _run(self) -> None:
        try:
            while self._queue:
                alert = self._queue.popleft()
                self._deliver(alert)
        finally:
            self._busy.pop("job", None)
        self._start()  # one may have come in between

    def _deliver(self, alert: Alert) -> None:
        retries = self.target.retries if isinstance(self.target, Webhook) else 0
        for attempt in range(retries + 1):
            try:
                self.target(alert)
            except Failed as error:
                if not error.again or attempt == retries:
                    self._drop(str(error))
                    return
                self._pause(self.target.backoff * 2**attempt * (0.75 + random.random() / 2))  # noqa: S311
            except Exception as error:
                self._drop(format_error(error))
                return
            else:
                self.sent += 1
                self._complained = False
                return

    def _pause(self, seconds: float) -> None:
        try:
            self._clock.get(queue.SimpleQueue(), seconds)
        except queue.Empty:
            pass

    def _drop(self, why: str) -> None:
        if not self._complained:
            self._complained = True
            logger.warning(
                "alerts: delivering to %s failed, the alert is dropped: %s", self.name, why,
                extra=fields("alert_dropped", target=self.name, error=why, dropped=self.dropped + 1),
            )  # fmt: skip
        self.dropped += 1


def checked_targets(given: Any) -> list[Any]:
    """Return the targets of an `Alerts`; ``None`` stands for the log.

    Raises:
        TypeError, ValueError: One is neither ``"log"`` nor a callable.
    """
    if given is None:
        return [LOG]
    one = isinstance(given, str) or callable(given) or not isinstance(given, Iterable)
    found = [given] if one else list(given)
    for target in found:
        if isinstance(target, str) and target != LOG:
            raise ValueError('Alerts.to must be "log", a callable or a Webhook(...), not another string')  # a URL?
        if not isinstance(target, str) and not callable(target):
            raise TypeError(f'Alerts.to must be "log", a callable or a Webhook(...), not {shown(target)}')
    return found


def _number(name: str, value: Any, least: float, most: float, whole: bool = False) -> float:
    kinds = int if whole else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds):
        raise TypeError(f"{name} must be a {'whole ' * whole}number, not {shown(value)}")
    if not least <= value <= most:
        raise ValueError(f"{name} must be from {least:g} to {most:g}, not {shown(value)}")
    return value

"""Observer: one no-op method per event."""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Callable
from typing import Any

from .._fields import fields
from .runtime.gevent import Life

__all__ = ["EVERYWHERE", "Observer", "notify"]

logger = logging.getLogger("pooling")


class Observer:
    """Receives the events of a pool; override the methods you need.

    Methods are called outside the pool's lock, in the thread in which the
    event happened, so they should return quickly. An exception is logged and
    otherwise ignored. ``pool`` is the pool's name. Only `acquired` and
    `released` are on the hot path: with an observer that overrides one of
    them, every lease takes the slow path. All other events cost nothing until
    they happen. An observer that uses the pool itself is not notified of the
    events that it causes.
    """

    def acquired(self, pool: str, waited: float) -> None:
        """A lease was acquired after ``waited`` seconds."""

    def released(self, pool: str, held: float) -> None:
        """A lease was released; it was held for ``held`` seconds."""

    def created(self, pool: str, seconds: float) -> None:
        """A resource was created, which took ``seconds``."""

    def create_failed(self, pool: str, error: BaseException) -> None:
        """A creation failed."""

    def closed(self, pool: str, reason: str) -> None:
        """A resource was closed for this reason."""

    def exhausted(self, pool: str, waiting: int) -> None:
        """All resources are in use and a borrower has to wait; ``waiting`` borrowers wait now."""

    def waited(self, pool: str, seconds: float) -> None:
        """A borrower that had to wait got its lease after ``seconds``. Not called with ``enable_metrics=False``."""

    def timed_out(self, pool: str, waited: float) -> None:
        """An acquire timed out after ``waited`` seconds."""

    def refused(self, pool: str) -> None:
        """An acquire was refused because the wait queue was full (``max_waiting``)."""

    def validation_failed(self, pool: str, error: BaseException) -> None:
        """A resource proved dead."""

    def health_checked(self, pool: str, error: BaseException | None) -> None:
        """A health check ended; ``None`` means that it succeeded."""

    def leaked(self, pool: str, where: str, held: float) -> None:
        """A lease has been held for longer than ``leak_timeout``."""

    def orphaned(self, pool: str, where: str) -> None:
        """A lease was garbage collected without a release; its resource is being closed."""

    def outage_began(self, pool: str, error: BaseException) -> None:
        """A creation failed and the server is considered down."""

    def outage_ended(self, pool: str, seconds: float) -> None:
        """A creation succeeded again after ``seconds`` of outage."""

    def resets_failed(self, pool: str, error: BaseException) -> None:
        """Resets keep failing, so resources are closed at release; called once until resets work again."""

    def resets_recovered(self, pool: str) -> None:
        """Resets work again."""

    def drained(self, pool: str) -> None:
        """A new generation began: every resource will be replaced."""

    def circuit_opened(self, pool: str, host: str | None, reason: str) -> None:
        """A circuit breaker opened: no requests to ``host`` for now; no creations if that is ``None``."""

    def circuit_closed(self, pool: str, host: str | None) -> None:
        """A circuit breaker closed again: the host has answered, or a resource was created if it is ``None``."""

    def server_ejected(self, pool: str, server: str, reason: str, seconds: float) -> None:
        """One of several servers of an HTTP pool keeps failing, and is left out for ``seconds``."""

    def server_returned(self, pool: str, server: str) -> None:
        """One that was left out has answered, and gets requests again."""

    def adapted(self, pool: str, before: int, after: int, reason: str, applied: bool) -> None:
        """The adaptive size took a step from one size to another, for a reason in words and figures.

        ``applied`` is ``False`` for what it would do: with ``adaptive="observe"``, or where ``max_size`` or
        ``min_size`` does not allow ``after``.
        """

    def responded(self, pool: str, method: str, host: str, outcome: int | BaseException, seconds: float) -> None:
        """An HTTP request ended after ``seconds``: with the head of a response, or with an error.

        ``outcome`` is the status code or the error. ``host`` is named as in the metrics. A request that is
        repeated, or redirected, is several requests.
        """


EVERYWHERE: list[Observer] = []
"""Added to each pool that is made, by this package's own exporters: they cannot know when a pool is made."""


def notify(observers: tuple[Observer, ...], event: str, *args: Any) -> None:
    """Call one method of each observer; log what it raises."""
    for observer in observers:
        _unless_inside(observer, _tell, observer, event, args)


def _tell(observer: Observer, event: str, args: tuple[Any, ...]) -> None:
    try:
        getattr(observer, event)(*args)
    except Exception:
        extra = fields("observer_failed", str(args[0]) if args else None, method=event)
        logger.exception("observer %r failed in %s()", observer, event, extra=extra)


# -- listeners that use the pool -----------------------------------------------
# A logging handler may write to a database through the pool, and an observer may
# query the server. Reporting the events that this causes would recurse for ever.

_inside: dict[tuple[int, int], weakref.ref[Life]] = {}


def _unless_inside(listener: object, call: Callable[..., object], *args: Any) -> None:
    """Make a call, unless this thread is already inside a call to that listener."""
    key = (threading.get_ident(), id(listener))  # looked up at each call: gevent replaces it
    reference = _inside.get(key)
    if reference is not None and reference() is not None:
        return
    life = Life()  # ends with this frame, however that ends
    try:
        _inside[key] = weakref.ref(life)
        call(*args)
    finally:
        _inside.pop(key, None)


_log = logging.getLogger("pooling")


def _handle(record: logging.LogRecord) -> None:
    _unless_inside(_log, type(_log).handle, _log, record)


_log.handle = _handle  # type: ignore[method-assign]

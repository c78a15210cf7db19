"""Who wants to be told: one empty method for each event."""

from __future__ import annotations

import logging
from typing import Any

__all__ = ["Observer", "tell"]

logger = logging.getLogger("pooling")


class Observer:
    """Told what happens in a pool; override what interests you.

    Called outside the pool's lock, in whatever thread the event happened in,
    so be quick. An exception is logged and changes nothing. ``pool`` is the
    pool's name. `acquired` and `released` are the only events of the hot
    path: a pool with an observer that overrides one of them takes the slow
    path for every lease; all others cost nothing while nothing happens.
    """

    def acquired(self, pool: str, waited: float) -> None:
        """A lease was given, after so many seconds of waiting."""

    def released(self, pool: str, held: float) -> None:
        """A lease came back, after so many seconds."""

    def created(self, pool: str, seconds: float) -> None:
        """A resource was made, in so many seconds."""

    def create_failed(self, pool: str, error: BaseException) -> None:
        """A resource could not be made."""

    def closed(self, pool: str, reason: str) -> None:
        """A resource was closed, and why."""

    def exhausted(self, pool: str, waiting: int) -> None:
        """All resources are in use, and somebody began to wait; so many wait now."""

    def timed_out(self, pool: str, waited: float) -> None:
        """A borrower gave up after so many seconds."""

    def refused(self, pool: str) -> None:
        """A borrower was sent away because ``max_waiting`` were in line."""

    def validation_failed(self, pool: str, error: BaseException) -> None:
        """A resource was found dead."""

    def health_checked(self, pool: str, error: BaseException | None) -> None:
        """The server was asked how it is; ``None`` means well."""

    def leaked(self, pool: str, where: str, held: float) -> None:
        """A lease is out for longer than ``leak_timeout``."""

    def orphaned(self, pool: str, where: str) -> None:
        """A lease was dropped without release; its resource is being closed."""

    def outage_began(self, pool: str, error: BaseException) -> None:
        """Creating fails: the server seems to be down."""

    def outage_ended(self, pool: str, seconds: float) -> None:
        """Creating works again, after so many seconds."""

    def resets_failed(self, pool: str, error: BaseException) -> None:
        """Resets keep failing, so that resources are closed when they come back; told once until they work again."""

    def resets_recovered(self, pool: str) -> None:
        """Resets work again."""

    def drained(self, pool: str) -> None:
        """A new generation began."""


def tell(observers: tuple[Observer, ...], event: str, *args: Any) -> None:
    """Call one method of each observer; what it raises is logged and goes no further."""
    for observer in observers:
        try:
            getattr(observer, event)(*args)
        except Exception:
            logger.exception("observer %r failed in %s()", observer, event)

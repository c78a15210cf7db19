"""Is the server up? How many creations may be under way, and when again (P7).

Up: any number. Down, after a failed creation: none until the backoff has
passed, then a single probing attempt. Recovered: 1, 2, 4, ... so that a
server that has just come back is not stormed. Full (it is up, and takes no
more clients than it has): none for a while, then one, and so on.

Pure: values in, values out; guarded by the pool's lock.
"""

from __future__ import annotations

from collections.abc import Callable

from ..settings import Backoff
from .state import UNLIMITED

__all__ = ["Outage"]

FULL = 1.0
"""Seconds, on average, that a full server is left alone."""


class Outage:
    """What the last creations told about the server."""

    __slots__ = ("error", "final", "failures", "since", "retry_at", "full", "_ramp")

    def __init__(self) -> None:
        self.error: BaseException | None = None  # the last real cause; None: up
        self.final = False  # trying again would not help
        self.failures = 0  # in a row
        self.since = 0.0
        self.retry_at = 0.0
        self.full: BaseException | None = None  # it is up and has no room; those that are open serve on
        self._ramp = UNLIMITED

    def allowed(self, now: float) -> int:
        """How many creations may be under way at this moment."""
        if self.error is None and self.full is None:
            return self._ramp
        return 1 if now >= self.retry_at else 0

    def failed(
        self,
        error: BaseException,
        final: bool,
        now: float,
        backoff: Backoff,
        waiting: bool,
        uniform: Callable[[], float],
    ) -> bool:
        """Note a failed creation; say whether the outage begins with it.

        What was in flight when the first one failed ends by itself: its
        failures are of the same outage and do not lengthen the delay.
        """
        begins = self.error is None
        self.full = None
        if begins:
            self.since = now
        if begins or now >= self.retry_at:
            self.failures += 1
            self.retry_at = now + backoff.delay(self.failures, waiting=waiting, random=uniform)
        self.error = _bare(error)
        self.final = final
        self._ramp = 1
        return begins

    def refused(self, error: BaseException, now: float, uniform: Callable[[], float]) -> bool:
        """Note that a server that is up has no room for one more; say if that is news."""
        news = self.full is None
        self.full = _bare(error)
        self.retry_at = now + FULL * (0.5 + uniform())
        self._ramp = 1
        return news

    def hurry(self, now: float, backoff: Backoff) -> bool:
        """Somebody waits now: try again within ``probe_interval``. Say if that is sooner."""
        soon = now + backoff.probe_interval
        if self.error is None or self.final or self.retry_at <= soon:
            return False
        self.retry_at = soon
        return True

    def succeeded(self, enough: int) -> bool:
        """Note a creation that worked; say whether an outage ends with it.

        Args:
            enough: The number from which on there is no need to hold back.
        """
        ends = self.error is not None
        self.full = None
        if ends:
            self.error, self.final, self.failures = None, False, 0
        if self._ramp < UNLIMITED:
            self._ramp *= 2
            if self._ramp >= enough:
                self._ramp = UNLIMITED
        return ends


def _bare(error: BaseException) -> BaseException:
    """An error without tracebacks: stored, they would keep frames alive, and leases in them."""
    chain, seen = [error], {id(error)}
    while chain:
        one = chain.pop().with_traceback(None)
        for other in (one.__context__, one.__cause__):
            if other is not None and id(other) not in seen:
                seen.add(id(other))
                chain.append(other)
    return error

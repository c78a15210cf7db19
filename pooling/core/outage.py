"""Is the server up? How many creations may be under way, and when again (P7).

Up: any number. Down, after a failed creation: none until the backoff has
passed, then a single probing attempt, in the mean of the outage never more
often than every `PACE`. Recovered: 1, 2, 4, ... so that a server that has just
come back is not stormed. Full (it is up, and takes no more clients than it
has): none for a while, then one, and so on.

In doubt, after a proven death: 1, 2, 4, ... as well. When a server goes, all
that is in use breaks at once, and were each replaced at once a dead server
would see as many attempts as the pool is large before the first has failed.

Not every death is news. When hundreds have died they are found one by one,
long after the first was replaced; were each a new doubt, they would be
replaced one at a time. So a death counts only if its resource was proved
alive (made, or seen to answer) since creations were held up last: else it
may have died of the same. A doubt is over with the first creation that
works (was it under way before the death, two may go then instead of one), and
after a `PATIENCE` anyway, for one that hangs tells nothing. And within that
time there is no second one: where resources die all the time they are to be
replaced. Hence

- a doubt holds all but one up for one creation's time or a `PATIENCE`,
  whatever else is found dead meanwhile, or afterwards if it is as old;
- what was proved alive since and dies is news: the next outage begins with
  one attempt, too. If all that dies then was not (lent before and still out,
  or of a kind that does not answer when it comes back), it begins with a
  burst: fewer attempts would be nice, but a pool that fills slowly is worse.

Pure: values in, values out; guarded by the pool's lock.
"""

from __future__ import annotations

from collections.abc import Callable

from ..settings import Backoff
from .state import UNLIMITED

__all__ = ["Outage"]

_NEVER = float("inf")
FULL = 1.0
"""Seconds, on average, that a full server is left alone."""

PATIENCE = 1.0
"""Seconds that a death may hold creations up, at most: a server that is down mostly says so in milliseconds."""

PACE = 0.125
"""Seconds between attempts in the mean of an outage, at least: what full jitter over 0.25 s comes to."""


class Outage:
    """What the last creations told about the server."""

    __slots__ = ("error", "final", "failures", "since", "retry_at", "full", "lapses_at", "_ramp", "_settled")

    def __init__(self) -> None:
        self.error: BaseException | None = None  # the last real cause; None: up
        self.final = False  # trying again would not help
        self.failures = 0  # in a row
        self.since = 0.0
        self.retry_at = 0.0
        self.full: BaseException | None = None  # it is up and has no room; those that are open serve on
        self.lapses_at = _NEVER  # when the ramp ends by itself
        self._ramp = UNLIMITED
        self._settled = -_NEVER  # when creations were held up last, or will be at most

    def allowed(self, now: float) -> int:
        """How many creations may be under way at this moment."""
        if self.error is None and self.full is None:
            return self._ramp if now < self.lapses_at else UNLIMITED
        return 1 if now >= self.retry_at else 0

    def died(self, seen: float, now: float) -> bool:
        """Note a proven death; say whether a doubt begins with it, which lasts until ``lapses_at``.

        Args:
            seen: When that resource was proved alive last: made, or answering.
            now: The time.
        """
        known = self.error is not None or self.full is not None or now < self.lapses_at < _NEVER
        if known or seen < self._settled:
            return False
        self._ramp = 1
        self._settled = self.lapses_at = now + PATIENCE
        return True

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
            delay = backoff.delay(self.failures, waiting=waiting, random=uniform)
            pace = min(PACE, backoff.probe_interval / 2)  # jitter may give short delays, but not only such
            self.retry_at = max(now + delay, self.since + pace * (self.failures - 1))
        self.error = _bare(error)
        self.final = final
        self._hold_back()
        return begins

    def refused(self, error: BaseException, now: float, uniform: Callable[[], float]) -> bool:
        """Note that a server that is up has no room for one more; say if that is news."""
        news = self.full is None
        self.full = _bare(error)
        self.retry_at = now + FULL * (0.5 + uniform())
        self._hold_back()
        return news

    def _hold_back(self) -> None:
        """From here on until it works, and then not all at once."""
        self._ramp, self.lapses_at = 1, _NEVER

    def hurry(self, now: float, backoff: Backoff) -> bool:
        """Somebody waits now: try again within ``probe_interval``. Say if that is sooner."""
        soon = now + backoff.probe_interval
        if self.error is None or self.final or self.retry_at <= soon:
            return False
        self.retry_at = soon
        return True

    def succeeded(self, enough: int, now: float) -> bool:
        """Note a creation that worked; say whether an outage ends with it.

        Args:
            enough: The number from which on there is no need to hold back.
            now: The time.
        """
        ends = self.error is not None
        if ends or self.full is not None or now < self._settled:
            self._settled = now
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

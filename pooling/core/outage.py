"""Is the server up? How many creations may be under way, and when again (P7).

Up: any number. Down, after a failed creation: none until the backoff has
passed, then a single probing attempt, in the mean of the outage never more
often than every `PACE`. Recovered: 1, 2, 4, ... so that a server that has just
come back is not stormed. A final error: one attempt, ever more seldom, but after
`REMEMBERED` if somebody asks. Full (it is up, and takes no more clients than it
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

from ..errors import CreateFailed
from ..settings import Backoff
from .report.messages import format_error
from .state import UNLIMITED

__all__ = ["Incident", "Outage"]

_NEVER = float("inf")
FULL = 1.0
"""Seconds, on average, that a full server is left alone."""

PATIENCE = 1.0
"""Seconds that a death may hold creations up, at most: a server that is down mostly says so in milliseconds."""

REMEMBERED = 2.0
"""Seconds after which a final error is looked at again when somebody asks: soon enough for whoever has just mended
a password, and rare enough for a server that locks accounts. Not sooner than the answer took."""

SETTLE = 5.0
"""Seconds for which creations must have worked before an outage is over, for the log: one that begins again sooner
is the same."""

PACE = 0.125
"""Seconds between attempts in the mean of an outage, at least: what full jitter over 0.25 s comes to."""


class Outage:
    """What the last creations told about the server."""

    __slots__ = (
        "error", "final", "failures", "since", "retry_at", "full", "lapses_at", "again_at",
        "incident", "succeeded_at", "_most", "_ramp", "_settled", "_crowded",
    )

    def __init__(self, most: int | None = None) -> None:
        self._most = UNLIMITED if most is None else most  # creations at once, also while the server is up
        self.incident = Incident()
        self.succeeded_at = -_NEVER  # when a creation worked last
        self.error: BaseException | None = None  # the last real cause; None: up
        self.final = False  # trying again would not help
        self.failures = 0  # in a row
        self.since = 0.0
        self.retry_at = 0.0
        self.full: BaseException | None = None  # it is up and has no room; those that are open serve on
        self.lapses_at = _NEVER  # when the ramp ends by itself
        self.again_at = 0.0  # when a final error may be tried again for those who ask
        self._ramp = UNLIMITED
        self._settled = -_NEVER  # when creations were held up last, or will be at most
        self._crowded = -_NEVER  # when the server was full last

    @property
    def text(self) -> str | None:
        """The last real cause in one line, or ``None`` while the server is up."""
        return None if self.error is None else format_error(self.error)

    def cannot_create(self, pool: str, noun: str) -> CreateFailed:
        """Return the error for a creation that can never succeed."""
        return CreateFailed(f"pool {pool!r}: cannot create a {noun}: {self.text}")

    def allowed(self, now: float) -> int:
        """How many creations may be under way at this moment."""
        if self.error is None and self.full is None:
            return min(self._most, self._ramp) if now < self.lapses_at else self._most
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
        took: float = 0.0,
    ) -> bool:
        """Note a failed creation, and what it took; say whether the outage begins with it.

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
        self.again_at = now + max(REMEMBERED, took)
        self.error = _bare(error)
        self.final = final
        self._hold_back()
        return begins

    def refused(self, error: BaseException, now: float, uniform: Callable[[], float]) -> bool:
        """Note that a server that is up has no room for one more; say if that is news."""
        news = self.full is None and now > self._crowded + SETTLE
        self._crowded = now
        self.full = _bare(error)
        self.retry_at = now + FULL * (0.5 + uniform())
        self._hold_back()
        return news

    def _hold_back(self) -> None:
        """From here on until it works, and then not all at once."""
        self._ramp, self.lapses_at = 1, _NEVER

    def hurry(self, now: float, backoff: Backoff) -> bool:
        """Somebody asks now: try again within ``probe_interval``, or `REMEMBERED`. Say if that is sooner."""
        soon = self.again_at if self.final else now + backoff.probe_interval
        if self.error is None or self.retry_at <= soon:
            return False
        self.retry_at = soon
        return True

    def succeeded(self, enough: int, now: float) -> bool:
        """Note a creation that worked; say whether an outage ends with it.

        Args:
            enough: The number from which on there is no need to hold back.
            now: The time.
        """
        self.succeeded_at = now
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


class Incident:
    """What the log is told of outages: those that follow each other closely are one (P12).

    A link that loses a packet now and then makes creations fail and work again many times a second.
    """

    __slots__ = ("since", "ended", "flaps")

    def __init__(self) -> None:
        self.since: float | None = None  # None: there is none, or all was told
        self.ended = _NEVER  # when creations began to work again
        self.flaps = 0  # how often they failed once more after that

    @property
    def due(self) -> float:
        """When to ask whether it is over."""
        return _NEVER if self.since is None else self.ended + SETTLE

    def begins(self, now: float) -> bool:
        """Note that creations fail; say whether that is news."""
        news = self.since is None
        if news:
            self.since, self.flaps = now, 0
        else:
            self.flaps += 1
        self.ended = _NEVER
        return news

    def ends(self, now: float) -> None:
        """Note that creations work again."""
        self.ended = now

    def over(self, now: float, settle: float = SETTLE) -> tuple[float, int] | None:
        """Return its length and its `flaps`, once, when it has been over for so many seconds."""
        if self.since is None or now < self.ended + settle:
            return None
        took, self.since = self.ended - self.since, None
        return took, self.flaps


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

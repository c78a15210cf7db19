"""What is known of the resources' health: who is under suspicion, and since when (P6).

One proven death makes every resource that was seen alive before it suspect:
it is lent again only after a round trip has proved it alive. When as many
round trips have failed in a row as the settings allow, the rest is not asked
any more: a new generation replaces them, so that N dead ones do not cost N
round trips.

A jump between the wall clock and the monotonic clock means that the process
was frozen (a suspended laptop, a frozen function instance): its sockets may
be dead though hardly any time has passed, so everything idle is suspect.

Pure: values in, values out; guarded by the pool's lock.
"""

from __future__ import annotations

from .entry import Entry

__all__ = ["Health"]

_JUMP = 2.0  # seconds between the clocks: more than a clock is set in one step, usually


class Health:
    """Suspicion, and what feeds it."""

    __slots__ = ("suspect_until", "failures", "check_at", "_offset")

    def __init__(self, now: float, wall: float) -> None:
        self.suspect_until = float("-inf")  # who was not seen alive since then is suspect
        self.failures = 0  # round trips that failed, in a row
        self.check_at = float("-inf")  # when the next health check is due
        self._offset = wall - now

    def begin(self, check_at: float) -> None:
        """Put the first health check off: something was made just now, so all is well."""
        self.check_at = max(self.check_at, check_at)

    def trusts(self, entry: Entry, now: float, wall: float, patience: float) -> bool:
        """Whether this one may be lent again without a round trip.

        Args:
            entry: Which; seen alive when it was released or checked last.
            now, wall: What the clocks say.
            patience: Seconds for which having been seen alive is enough.
        """
        offset, before = wall - now, self._offset
        if not before - _JUMP < offset < before + _JUMP:
            self.jumped(now, wall)
            return False
        self._offset = offset
        seen = entry.checked
        if entry.idle_since > seen:
            seen = entry.idle_since
        return seen > self.suspect_until and now - seen <= patience

    def died(self, now: float, by_round_trip: bool, most: int) -> bool:
        """Note a proven death; say whether the whole generation is to be replaced."""
        self.suspect_until = now
        if not by_round_trip:
            return False
        self.failures += 1
        if self.failures < most:
            return False
        self.failures = 0
        return True

    def lives(self) -> None:
        """Note a round trip that worked."""
        self.failures = 0

    def jumped(self, now: float, wall: float) -> bool:
        """Note what the clocks say; ``True`` if this process was frozen since the last time."""
        offset, self._offset = self._offset, wall - now
        if abs(self._offset - offset) < _JUMP:
            return False
        self.suspect_until = now
        return True

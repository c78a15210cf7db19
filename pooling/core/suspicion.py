"""Tracks which resources are suspect, and since when (P6).

One proven death makes every resource suspect that was last seen alive before
it: a suspect resource is lent only after a round trip has proved it alive.
After ``max_validation_failures`` consecutive failed round trips, the remaining
ones are not validated but replaced by a new generation, so that N dead
resources do not cost N round trips.

A jump between the wall clock and the monotonic clock means that the process
was frozen (a suspended laptop, a frozen function instance). Sockets may have
died although hardly any monotonic time has passed, so all idle resources
become suspect.

Pure: values in, values out; guarded by the pool's lock.
"""

from __future__ import annotations

from .entry import Entry

__all__ = ["Suspicion"]

_JUMP = 2.0  # seconds; usually more than the wall clock is adjusted by in one step


class Suspicion:
    """The time since which resources are suspect, and the number of consecutive failed round trips."""

    __slots__ = ("since", "failures", "unreported", "_offset")

    def __init__(self, now: float, wall: float) -> None:
        self.since = float("-inf")  # resources not seen alive since then are suspect
        self.failures = 0  # consecutive failed round trips
        self.unreported = False  # whether the process was frozen, and nobody has been told
        self._offset = wall - now

    def trusts(self, entry: Entry, now: float, wall: float, patience: float) -> bool:
        """Whether an entry may be lent without a round trip.

        Args:
            entry: It was last seen alive when it was released or checked.
            now, wall: Monotonic and wall time.
            patience: Seconds since then during which no round trip is needed.
        """
        offset, before = wall - now, self._offset
        if not before - _JUMP < offset < before + _JUMP:
            self.compare(now, wall)
            return False
        self._offset = offset
        seen = entry.checked
        if entry.idle_since > seen:
            seen = entry.idle_since
        return seen > self.since and now - seen <= patience

    def died(self, now: float, by_round_trip: bool, most: int) -> bool:
        """Record a proven death; return whether the whole generation is to be replaced."""
        self.since = now
        if not by_round_trip:
            return False
        self.failures += 1
        if self.failures < most:
            return False
        self.failures = 0
        return True

    def survived(self) -> None:
        """Record a successful round trip."""
        self.failures = 0

    def compare(self, now: float, wall: float) -> None:
        """Compare the clocks: suspect everything if the process was frozen since the last call."""
        offset, self._offset = self._offset, wall - now
        if abs(self._offset - offset) >= _JUMP:
            self.since = now
            self.unreported = True

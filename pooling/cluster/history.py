"""How far behind a replica is, in seconds.

``pg_last_xact_replay_timestamp()`` alone does not tell: when nothing is written, it grows on a replica that has
everything; and it compares the clocks of two machines. So the positions of the primary are recorded with our own
time. A replica that has replayed the position of ten seconds ago, and not the next one, is at most that far behind.
"""

from __future__ import annotations

from collections import deque

__all__ = ["History"]

_MOST = 3600


class History:
    """The positions of the primary over time. Pure; not thread-safe: its user holds a lock.

    Args:
        span: Seconds that it covers at least.
    """

    def __init__(self, span: float) -> None:
        self._span = span
        self._samples: deque[tuple[float, int]] = deque(maxlen=_MOST)

    def __bool__(self) -> bool:
        return bool(self._samples)

    def note(self, now: float, lsn: int) -> None:
        """Note where the primary stood at this time."""
        samples = self._samples
        if len(samples) > 1 and samples[-1][1] == samples[-2][1] == lsn:
            samples.pop()  # of a time without changes only both ends matter
        samples.append((now, lsn))
        while len(samples) > 2 and samples[1][0] < now - self._span:
            samples.popleft()

    def clear(self) -> None:
        """Forget everything: another server has become the primary."""
        self._samples.clear()

    def lag(self, lsn: int, now: float, age: float | None) -> float:
        """Return how many seconds a replica is behind, at most.

        Args:
            lsn: What it has replayed at this time.
            now: The time.
            age: Seconds since the last transaction that it has replayed, by the servers' clocks; ``None`` if it has
                replayed none. Used only if the recorded positions do not go back far enough.

        Returns:
            0 if it has everything that the primary had when that was asked last, or if that was never asked.
        """
        samples = self._samples
        if not samples or lsn >= samples[-1][1]:
            return 0.0
        for at, position in reversed(samples):
            if position <= lsn:
                return max(0.0, now - at)
        oldest = now - samples[0][0]
        return float("inf") if age is None else max(oldest, age)

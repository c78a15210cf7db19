"""When an alert begins and ends. Pure: values in, values out."""

from __future__ import annotations

from enum import Enum

__all__ = ["AGAIN", "LONGEST_CLEAR", "Change", "Hysteresis"]

AGAIN = 600.0
"""Seconds after the end of an alert in which the next one counts as the same trouble: it takes twice as long to end."""

LONGEST_CLEAR = 3600.0
"""The most that doubling makes of ``clear``, in seconds."""


class Change(Enum):
    """What an update changed."""

    BEGAN = "began"
    ENDED = "ended"


class Hysteresis:
    """Decides for one rule and one pool.

    An alert begins when the condition has held for ``after`` seconds, and ends
    when it has not held for ``clear`` seconds. So a condition that comes and
    goes more often than that is one alert. If one begins soon after another
    (`AGAIN`), the time to end doubles each time, up to `LONGEST_CLEAR`: however
    a condition flaps, the number of alerts grows with the logarithm of the time
    at first, and is at most one in an hour later.

    Args:
        after: Seconds that the condition must hold.
        clear: Seconds that it must not hold.

    Attributes:
        firing: Whether there is an alert now.
        began: When the condition began to hold, before the alert began; ``None`` without one.
        ended: When the condition held last, of the last alert that ended.
        flaps: How often the condition has ceased to hold and held again during the alert.
        clear: Seconds after which this alert will end.
    """

    __slots__ = ("after", "clear", "firing", "began", "ended", "flaps", "_shortest", "_good")

    def __init__(self, after: float, clear: float) -> None:
        self.after, self.clear, self._shortest = after, clear, clear
        self.firing = False
        self.began: float | None = None
        self.ended: float | None = None
        self.flaps = 0
        self._good: float | None = None  # since when the condition does not hold, during an alert

    def update(self, holds: bool, now: float) -> Change | None:
        """Take note of whether the condition holds now; return what that changed."""
        if holds:
            return self._holds(now)
        if not self.firing:
            self.began = None
            return None
        if self._good is None:
            self._good = now
        if now - self._good < self.clear:
            return None
        return self.end(self._good)

    def _holds(self, now: float) -> Change | None:
        if self._good is not None:
            self._good = None
            self.flaps += 1
        if self.began is None:
            self.began = now
        if self.firing or now - self.began < self.after:
            return None
        again = self.ended is not None and now - self.ended < max(AGAIN, 2 * self.clear)
        self.clear = min(2 * self.clear, max(LONGEST_CLEAR, self._shortest)) if again else self._shortest
        self.firing, self.flaps = True, 0
        return Change.BEGAN

    def end(self, now: float) -> Change | None:
        """End the alert, if there is one, for example because the pool was closed."""
        change = Change.ENDED if self.firing else None
        if self.firing:
            self.ended = now
        self.firing, self.began, self._good = False, None, None
        return change

"""What happened in a pool while borrowers waited for a release, in windows of 10 s.

Only the time under pressure counts: intervals between two samples at which every resource was in use and a
borrower waited. Then the completed leases are what the server can do with this number of connections, however many
requests arrived. Over all of the time they would be what was asked for, and a larger pool could not raise them.

The server's time inside driver calls, per lease, is what the adapter counted; else the mean number of holders that
were blocked in a driver call, divided by the completions per second (Little's law). Neither touches acquire and
release.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["FEWEST", "LONGEST_GAP", "WINDOW", "Sample", "Window", "Windows"]

WINDOW = 10.0
"""Seconds from the first pressure to a decision."""

FEWEST = 100
"""Completed leases that a decision needs: by chance, their number varies by 10 %. A window goes on until then."""

LONGEST_GAP = 1.0
"""Seconds between two samples beyond which nothing is known about the time between them."""

_MOST_WINDOWS = 6  # after so many windows it is decided by what there is
_LEAST = 1.0  # seconds of pressure that a decision needs


class Sample(NamedTuple):
    """A pool at one moment; the counters only grow.

    Attributes:
        at: Monotonic time in seconds.
        size: The limit in force.
        live: Resources that exist.
        in_use: Lent resources.
        waiting: Borrowers that wait for a release.
        completed: Leases that ended, counted from any moment.
        failed: Acquires that timed out or were refused, likewise.
        blocked: Holders that are blocked in a driver call; ``None`` if the adapter cannot tell.
        driver: Seconds inside driver calls, in all; ``None`` if they are not counted.
        round_trips: Number and seconds of creations and validations, in all.
        full: Whether the server has refused a connection since the last sample, because it has too many.
        trouble: Why the figures say nothing about the size: an outage, a pause; ``None`` if they do.
    """

    at: float
    size: int
    live: int = 0
    in_use: int = 0
    waiting: int = 0
    completed: int = 0
    failed: int = 0
    blocked: int | None = None
    driver: float | None = None
    round_trips: tuple[int, float] = (0, 0.0)
    full: bool = False
    trouble: str | None = None

    @property
    def pressed(self) -> bool:
        """Whether every resource is in use and a borrower waits."""
        return self.waiting > 0 and 0 < self.in_use <= self.size and self.trouble is None


class Window(NamedTuple):
    """What happened in one window, under pressure only.

    Attributes:
        at: When it ended.
        size: The limit in force.
        live: Resources that exist.
        seconds: Under pressure.
        completed, failed: As of a `Sample`, in this time. ``failed`` is about the whole window.
        waiting, in_use: On average.
        driver: Seconds inside driver calls per lease; ``None`` if unknown.
        counted: Whether ``driver`` was counted, not sampled.
        round_trip: Mean seconds of a creation or validation; ``None`` if there were none.
        full, trouble: As of a `Sample`, at any moment of the window.
    """

    at: float
    size: int
    live: int = 0
    seconds: float = 0.0
    completed: int = 0
    failed: int = 0
    waiting: float = 0.0
    in_use: float = 0.0
    driver: float | None = None
    counted: bool = False
    round_trip: float | None = None
    full: bool = False
    trouble: str | None = None

    @property
    def rate(self) -> float:
        """Completed leases per second."""
        return self.completed / self.seconds if self.seconds else 0.0

    @property
    def held(self) -> float:
        """Seconds that a lease was held, by Little's law."""
        return self.in_use / self.rate if self.completed and self.seconds else 0.0


class Windows:
    """Adds up samples. A window begins with pressure, a full server or trouble; without them there is none.

    Attributes:
        ends: When the window ends; ``None`` if there is none.
    """

    def __init__(self, seconds: float = WINDOW, fewest: int = FEWEST) -> None:
        self.seconds, self.fewest = seconds, fewest
        self._last: Sample | None = None
        self.restart()

    def restart(self) -> None:
        """Forget the window that has begun."""
        self.ends: float | None = None
        self._number = self._completed = self._failed = self._trips = 0
        self._pressed = self._waiting = self._in_use = self._blocked = self._driver = self._trip_seconds = 0.0
        self._unknown = self._uncounted = self._full = False
        self._trouble: str | None = None

    def add(self, sample: Sample) -> Window | None:
        """Add a sample; return the window that ends with it."""
        last, self._last = self._last, sample
        if last is not None and last.size != sample.size:
            self.restart()
        if self.ends is None and (sample.pressed or sample.full or sample.trouble):
            self.ends, self._number = sample.at + self.seconds, 1
        if self.ends is None:
            return None
        self._full |= sample.full
        self._trouble = self._trouble or sample.trouble
        if last is not None and last.size == sample.size:
            self._add_interval(last, sample)
        if sample.at < self.ends:
            return None
        few = self._completed < self.fewest or self._pressed < min(_LEAST, self.seconds / 2)
        if self._pressed and few and not (self._full or self._trouble) and self._number < _MOST_WINDOWS:
            self.ends, self._number = sample.at + self.seconds, self._number + 1
            return None
        found = self._window(sample)
        self.restart()
        return found

    def _add_interval(self, before: Sample, after: Sample) -> None:
        self._failed += max(0, after.failed - before.failed)
        trips = after.round_trips[0] - before.round_trips[0]
        if trips > 0 and after.round_trips[1] >= before.round_trips[1]:
            self._trips += trips
            self._trip_seconds += after.round_trips[1] - before.round_trips[1]
        seconds, completed = after.at - before.at, after.completed - before.completed
        if not (before.pressed and after.pressed and 0 < seconds <= LONGEST_GAP and completed >= 0):
            return
        self._pressed += seconds
        self._completed += completed
        self._waiting += seconds * (before.waiting + after.waiting) / 2
        self._in_use += seconds * (before.in_use + after.in_use) / 2
        if before.blocked is None or after.blocked is None:
            self._unknown = True
        else:
            self._blocked += seconds * (before.blocked + after.blocked) / 2
        if before.driver is None or after.driver is None or after.driver < before.driver:
            self._uncounted = True
        else:
            self._driver += after.driver - before.driver

    def _window(self, last: Sample) -> Window:
        seconds, completed = self._pressed, self._completed
        driver, counted = None, False
        if completed and not self._uncounted and self._driver > 0:
            driver, counted = self._driver / completed, True
        elif completed and not self._unknown and self._blocked > 0:
            driver = self._blocked / completed
        return Window(
            at=last.at, size=last.size, live=last.live, seconds=seconds, completed=completed, failed=self._failed,
            waiting=self._waiting / seconds if seconds else 0.0, in_use=self._in_use / seconds if seconds else 0.0,
            driver=driver, counted=counted, round_trip=self._trip_seconds / self._trips if self._trips else None,
            full=self._full, trouble=self._trouble,
        )  # fmt: skip

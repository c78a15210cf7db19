"""Time as an argument: everything in the core reads the pool's clock.

No test of the core sleeps: `pooling.testing.VirtualClock` stands in for the
system's clock, and time passes when the test says so.
"""

from __future__ import annotations

import threading
import time
from typing import Any, Protocol

from .._masking import shown

__all__ = ["Box", "Clock", "SystemClock", "SYSTEM", "seconds"]


class Box(Protocol):
    """What a thread parks on: a queue whose ``put`` is re-entrant and never blocks."""

    def put(self, item: Any) -> None:
        """Put one item in and wake one thread."""

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        """Take one item out, or raise :class:`queue.Empty`."""


class Clock(Protocol):
    """What the core asks of time."""

    def now(self) -> float:
        """Return monotonic seconds: ages and deadlines are counted in these."""

    def wall(self) -> float:
        """Return seconds since the epoch: only to date things for people."""

    def get(self, box: Box, timeout: float | None) -> Any:
        """Wait at most ``timeout`` seconds for an item from ``box``.

        Raises:
            queue.Empty: Nothing came in time.
        """


class SystemClock:
    """The machine's own time."""

    now = staticmethod(time.monotonic)  # bound as it is: a hot path reads it twice a checkout
    wall = staticmethod(time.time)

    @staticmethod
    def get(box: Box, timeout: float | None) -> Any:
        """Wait on ``box`` itself; see :meth:`Clock.get`."""
        return box.get(True, timeout if timeout is None or timeout > 0 else 0)


SYSTEM = SystemClock()


def seconds(timeout: float) -> float:
    """Check a timeout given in a call."""
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)):
        raise TypeError(f"timeout must be a number of seconds, not {shown(timeout)}")
    if not timeout >= 0:
        raise ValueError(f"timeout must be at least 0 seconds, not {shown(timeout)}")
    return min(float(timeout), threading.TIMEOUT_MAX)

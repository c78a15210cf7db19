"""Time as an argument: the core reads time only from the pool's clock.

Tests of the core never sleep: `pooling.testing.VirtualClock` replaces the
system's clock, and time passes when the test says so.
"""

from __future__ import annotations

import threading
import time
from typing import Any, Protocol

from .._masking import shown

__all__ = ["Box", "Clock", "SystemClock", "SYSTEM", "seconds"]


class Box(Protocol):
    """A queue for a thread to block on; its ``put`` is re-entrant and never blocks."""

    def put(self, item: Any) -> None:
        """Add an item and wake one thread."""

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        """Remove and return an item, or raise :class:`queue.Empty`."""


class Clock(Protocol):
    """The time functions that the core needs."""

    def now(self) -> float:
        """Return monotonic seconds, for ages and deadlines."""

    def wall(self) -> float:
        """Return seconds since the epoch, for dates shown to people."""

    def get(self, box: Box, timeout: float | None) -> Any:
        """Wait at most ``timeout`` seconds for an item from ``box``.

        Raises:
            queue.Empty: No item arrived in time.
        """


class SystemClock:
    """The system's time."""

    now = staticmethod(time.monotonic)  # without a wrapper: the hot path reads it twice for each lease
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
    return float(min(timeout, threading.TIMEOUT_MAX))  # min first: an integer may be too large for a float

"""How long commands may take."""

from __future__ import annotations

import math
from time import monotonic
from typing import final

from ..._masking import shown

__all__ = ["LEAST", "Limit", "check_limit", "reserve"]

LEAST = 0.01  # seconds that a command gets at least: otherwise even a ROLLBACK would cost the connection


@final
class Limit:
    """How long commands may take.

    Args:
        each: Seconds for each command; ``None`` means no limit.
        total: Seconds for all together, as the user gave them; ``None`` means no limit.
        left: How many seconds of ``total`` are left; ``None`` means all.
    """

    __slots__ = ("_each", "_total", "_end")

    def __init__(self, each: float | None, total: float | None = None, left: float | None = None) -> None:
        self._each = math.inf if each is None else each
        self._total = math.inf if total is None else total
        self._end = monotonic() + (self._total if left is None else left)

    def left(self) -> float:
        """Return the seconds that the next command may take."""
        return max(LEAST, min(self._each, self._end - monotonic()))

    def __str__(self) -> str:
        if monotonic() >= self._end - LEAST:
            return f"not done within {self._total:g} s"
        return f"a command took over {self._each:g} s"


def reserve(limit: float) -> float:
    """Return how many seconds before the limit the server is to stop a command by itself."""
    return min(1.0, limit / 10)


def check_limit(name: str, value: float | None) -> float | None:
    """Check a time limit of the constructor."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number of seconds or None, not {shown(value)}")
    if not 0.01 <= value <= 2_000_000:  # servers count milliseconds in 32 bits
        raise ValueError(f"{name} must be from 0.01 to 2000000 seconds or None, not {shown(value)}")
    return float(value)

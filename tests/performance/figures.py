"""The arithmetic of the benchmark: pure functions over what was measured."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import TypeVar

__all__ = ["fairness", "median", "per_round", "ratio", "rotated", "spread", "starved"]

T = TypeVar("T")

STARVED_BELOW = 0.1
"""A thread that got less than this part of the average was starved."""


def rotated(items: Sequence[T], by: int) -> list[T]:
    """Return the items beginning with another one each round: none is always first."""
    first = by % len(items) if items else 0
    return [*items[first:], *items[:first]]


def median(values: Sequence[float]) -> float:
    """Return the median: one slow second of the machine does not move it."""
    return statistics.median(values)


def per_round(values: Sequence[float], base: Sequence[float]) -> list[float]:
    """Divide round by round; a base of nought gives infinity, not an error.

    Raises:
        ValueError: The two did not run in the same rounds.
    """
    if len(values) != len(base):
        raise ValueError(f"{len(values)} rounds against {len(base)}")
    return [value / unit if unit else math.inf for value, unit in zip(values, base)]


def ratio(values: Sequence[float], base: Sequence[float]) -> float:
    """Return the median over the rounds of each round's ratio."""
    return median(per_round(values, base))


def spread(values: Sequence[float]) -> float:
    """Return the distance between the quartiles, as a part of the median.

    Says how much to believe: 0.02 is a quiet machine, 0.3 is a noisy one.
    """
    if len(values) < 2:
        return 0.0
    first, middle, third = statistics.quantiles(values, n=4, method="inclusive")
    return (third - first) / middle if middle else math.inf


def starved(counts: Sequence[int]) -> int:
    """Return how many threads got next to nothing."""
    enough = STARVED_BELOW * sum(counts) / len(counts)
    return sum(count < enough or count == 0 for count in counts)


def fairness(counts: Sequence[int]) -> float:
    """Return what the luckiest thread got for each one of the unluckiest's: 1 is fair."""
    least = min(counts)
    return max(counts) / least if least else math.inf

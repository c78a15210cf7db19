"""Computes the size that would have kept waits short, from recorded arrival and hold times.

The model is M/M/c: borrowers arrive at random at an average rate, hold a
connection for a random time of an average length, and wait in one fair queue
for the first of c that is free. The fraction that waits longer than t is then
Erlang's C times exp(-(c - a) t / h), where h is the mean hold time and
a = rate x h is the load, the average number of connections in use.

Source: A. K. Erlang, "Solution of some Problems in the Theory of Probabilities
of Significance in Automatic Telephone Exchanges" (1917); L. Kleinrock,
"Queueing Systems, Volume 1" (1975), section 3.5.

Real arrivals come in bursts, which the record reflects: if it shows longer
waits than the model gives for the recorded load and size, the load that would
explain the waits is used instead.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["Load", "Sizing", "size_for"]

_PART = 0.01  # the fraction that may wait longer than the target: the 99th percentile
_MOST = 10_000


@dataclass(frozen=True)
class Load:
    """The recorded load of a pool; times are seconds.

    Attributes:
        rate: Leases per second.
        hold: Mean duration of a lease.
        size: ``max_size`` at the time.
        wait: The 99th percentile of waits for a connection in use.
        failed: Borrowers that timed out or were refused.
    """

    rate: float
    hold: float
    size: int
    wait: float
    failed: int = 0

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Load:
        """Read it from a record of `PoolMetrics.save`.

        Raises:
            ValueError: It is not such a record, or no lease was recorded.
        """
        try:
            duration, leases = float(record["duration"]), int(record["acquired"])
            failed = int(record["timeouts"]) + int(record["refusals"])
            # If the pool was never exhausted, all waits were for a new connection.
            hold, wait = float(record["use"]["mean"]), float(record["wait"]["p99"]) if record["exhausted"] else 0.0
            size = int(record["max_size"])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"not a record of PoolMetrics.save(): {error!r}") from None
        if not (duration > 0 and leases > 0 and hold > 0 and size > 0):
            raise ValueError("the record contains no leases")
        return cls((leases + failed) / duration, hold, size, wait, failed)

    @property
    def erlangs(self) -> float:
        """Connections in use on average."""
        return self.rate * self.hold


@dataclass(frozen=True)
class Sizing:
    """The smallest size that keeps the 99th percentile of waits below ``target`` seconds."""

    load: Load
    target: float
    size: int
    explained: float  # the load that explains the recorded waits, in connections

    def __str__(self) -> str:
        load = self.load
        lines = [
            f"recorded: {load.rate:.1f} leases/s of {load.hold * 1000:.1f} ms = {load.erlangs:.2f} connections in "
            f"use on average, of max_size {load.size}; 99 % waited less than {load.wait * 1000:.1f} ms",
        ]
        if self.explained > load.erlangs * 1.01:
            lines.append(
                f"  arrivals come in bursts: the waits match a random load of {self.explained:.2f} connections"
            )
        if load.failed:
            lines.append(f"  {load.failed} timed out or were refused, and might have waited longer")
        lines.append(
            f"  max_size {self.size} would keep 99 % of the waits below {self.target * 1000:g} ms "
            "(M/M/c, Erlang C; includes waits for new connections while the pool grew)"
        )
        return "\n".join(lines)


def size_for(load: Load, target: float) -> Sizing:
    """Return the smallest size for a load.

    Args:
        load: The load.
        target: The longest wait in seconds of 99 of 100 borrowers.

    Raises:
        ValueError: ``target`` is not above 0.
    """
    if not target > 0:
        raise ValueError(f"target must be above 0 seconds, not {target!r}")
    explained = _explain(load)
    size = math.floor(explained) + 1
    while size < _MOST and percentile(size, explained, load.hold) > target:
        size += 1
    return Sizing(load, target, size, explained)


def percentile(size: int, erlangs: float, hold: float) -> float:
    """Return the 99th percentile of waits in M/M/c; infinite if the queue grows without bound."""
    if erlangs >= size:
        return math.inf
    waits = _erlang_c(size, erlangs)
    return max(0.0, math.log(waits / _PART) * hold / (size - erlangs)) if waits > 0 else 0.0


def _erlang_c(size: int, erlangs: float) -> float:
    """The fraction of borrowers that wait at all, computed through Erlang's B, which does not overflow."""
    blocked = 1.0
    for number in range(1, size + 1):
        blocked = erlangs * blocked / (number + erlangs * blocked)
    return blocked / (1 - erlangs / size * (1 - blocked))


def _explain(load: Load) -> float:
    """The load for which the model gives the recorded waits at the recorded size; at least the real load."""
    low, high = load.erlangs, float(load.size)
    if percentile(load.size, low, load.hold) >= load.wait:
        return low
    for _ in range(50):
        middle = (low + high) / 2
        if percentile(load.size, middle, load.hold) < load.wait:
            low = middle
        else:
            high = middle
    return high

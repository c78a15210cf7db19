"""Measures the process, and turns the results into a verdict."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import psutil

from .load import TIMEOUT, Load

__all__ = ["Check", "Machine", "checks"]

_WARM_UP = 0.2  # fraction of the memory samples to ignore: caches fill, arenas are allocated
_FEWEST = 15  # samples needed for a trend
_MOST = 900  # samples kept, so that measuring does not itself use much memory
_MB = 1e6
_GROWTH, _GROWTH_PERCENT = 1.0, 2.0  # MB, and % of the memory: growth that is not a trend
_LINGER = 8.0  # seconds for idle threads to end and the system to catch up


class Check(NamedTuple):
    """One line of the verdict; `good` is ``None`` if there is no result."""

    name: str
    good: bool | None
    text: str

    def __str__(self) -> str:
        mark = {True: "ok", False: "BAD", None: "--"}[self.good]
        return f"{mark:4} {self.name:12} {self.text}"


class Machine:
    """Memory, descriptors and threads of this process since this object was created.

    Args:
        seconds: How long the memory will be sampled.

    Attributes:
        samples: The samples of the memory, in bytes; internal.
    """

    def __init__(self, seconds: float) -> None:
        self._process = psutil.Process()
        self._before = self._now()
        self._every = seconds / _MOST
        self._due = 0.0
        self.samples: list[int] = []

    def _now(self) -> tuple[int, int]:
        process: Any = self._process  # Windows has handles instead of descriptors
        descriptors = process.num_fds if hasattr(process, "num_fds") else process.num_handles
        return descriptors(), process.num_threads()

    def measure(self) -> float:
        """Sample the memory, if a sample is due; return the last one in MB."""
        now = time.monotonic()
        if now >= self._due or not self.samples:
            self._due = now + self._every
            self.samples.append(self._process.memory_info().rss)
        return self.samples[-1] / _MB

    def memory(self) -> Check:
        """Check that memory is flat. Medians of thirds are robust against peaks and late page reclaim."""
        samples = self.samples[int(len(self.samples) * _WARM_UP) :]
        third = len(samples) // 3
        if len(samples) < _FEWEST:
            return Check("memory", None, "no verdict: too few samples in such a short run")
        middle = statistics.median(samples[third : 2 * third]) / _MB
        last = statistics.median(samples[2 * third :]) / _MB
        allowed = _GROWTH + middle * _GROWTH_PERCENT / 100
        text = (
            f"{middle:.1f} MB, then {last:.1f} MB, {last - middle:+.1f}: medians of the middle and the last third "
            f"after {_WARM_UP:.0%} of warm-up; at most +{allowed:.1f} ({_GROWTH:g} MB and {_GROWTH_PERCENT:g} %)"
        )
        return Check("memory", last - middle <= allowed, text)

    def left(self) -> Iterator[Check]:
        """Check that descriptors and threads are back to their initial numbers, waiting a moment for it."""
        limit = time.monotonic() + _LINGER
        while any(now > before for now, before in zip(self._now(), self._before)) and time.monotonic() < limit:
            time.sleep(0.05)
        for name, now, before in zip(("descriptors", "threads"), self._now(), self._before):
            yield Check(name, now <= before, f"{before} before, {now} after the close")


def checks(load: Load, stuck: int, stats: dict[str, Any], at_server: int | None) -> Iterator[Check]:
    """Check the counts of the borrowers, the pool and the factory.

    Args:
        load: The load, stopped and closed.
        stuck: How many of its threads did not end.
        stats: The pool's last statistics.
        at_server: How many connections the server still has; ``None`` if unknown.
    """
    ledger, snapshot = load.target.ledger, load.metrics.snapshot()
    leases, wrong, shared = load.count("leases"), load.count("wrong"), load.count("shared")
    yield Check("borrowers", leases > 0 and not shared, f"{leases:,} leases, {shared} of a resource already in use")
    if load.target.asks or wrong:
        replies = load.count("replies")
        yield Check("replies", not wrong, f"{replies:,} correct, {wrong} wrong")
    unserved = load.count("unserved")
    yield Check(
        "waiters",
        not stuck and not unserved and not stats["waiting"],
        f"{stuck} stuck, {unserved} not served within {TIMEOUT:g} s; the longest wait was {load.slowest:.2f} s",
    )
    yield Check("bound", ledger.most <= load.max_size, f"at most {ledger.most} at once, max_size {load.max_size}")
    closed, detached = sum(snapshot.closed.values()), snapshot.closed.get("detached", 0)
    yield Check(
        "pool's count",
        snapshot.created == closed and not stats["size"],
        f"{snapshot.created:,} created, {closed - detached:,} closed, {detached:,} detached, {stats['size']} left",
    )
    yield Check(
        "own count",
        ledger.made == ledger.closed and not ledger.open,
        f"{ledger.made:,} created by the factory, {ledger.closed:,} closed, {ledger.open} left",
    )
    if at_server is not None:
        yield Check("server", not at_server, f"{at_server} connections left at the server")

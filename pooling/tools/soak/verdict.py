"""What the machine says, and what is made of it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import psutil

from .load import TIMEOUT, Load

__all__ = ["Check", "Machine", "checks"]

_WARM_UP = 0.2  # of the samples of the memory: caches fill, arenas are made
_FEWEST = 15  # samples that a trend needs
_MOST = 900  # samples that are kept: what measures the memory must not fill it
_MB = 1e6
_GROWTH, _GROWTH_PERCENT = 1.0, 2.0  # MB, and % of the memory: what is not called a trend
_LINGER = 8.0  # seconds that idle threads and what the system does late may take


class Check(NamedTuple):
    """One line of the verdict; `good` is ``None`` where nothing can be said."""

    name: str
    good: bool | None
    text: str

    def __str__(self) -> str:
        mark = {True: "ok", False: "BAD", None: "--"}[self.good]
        return f"{mark:4} {self.name:12} {self.text}"


class Machine:
    """Memory, descriptors and threads of this process, from the moment that it is made.

    Args:
        seconds: How long the memory will be watched.
    """

    def __init__(self, seconds: float) -> None:
        self._process = psutil.Process()
        self._before = self._now()
        self._every = seconds / _MOST
        self._due = 0.0
        self._samples: list[int] = []

    def _now(self) -> tuple[int, int]:
        process: Any = self._process  # Windows has handles instead of descriptors
        descriptors = process.num_fds if hasattr(process, "num_fds") else process.num_handles
        return descriptors(), process.num_threads()

    def look(self) -> float:
        """Take a sample of the memory, if it is time; return the last one in MB."""
        now = time.monotonic()
        if now >= self._due or not self._samples:
            self._due = now + self._every
            self._samples.append(self._process.memory_info().rss)
        return self._samples[-1] / _MB

    def memory(self) -> Check:
        """Is it flat? Medians of thirds do not mind a peak, nor when the system takes pages back."""
        samples = self._samples[int(len(self._samples) * _WARM_UP) :]
        third = len(samples) // 3
        if len(samples) < _FEWEST:
            return Check("memory", None, "not judged: too few samples in so short a time")
        middle = statistics.median(samples[third : 2 * third]) / _MB
        last = statistics.median(samples[2 * third :]) / _MB
        allowed = _GROWTH + middle * _GROWTH_PERCENT / 100
        text = (
            f"{middle:.1f} MB, then {last:.1f} MB, {last - middle:+.1f}: medians of the middle and the last third "
            f"after {_WARM_UP:.0%} of warm-up; at most +{allowed:.1f} ({_GROWTH:g} MB and {_GROWTH_PERCENT:g} %)"
        )
        return Check("memory", last - middle <= allowed, text)

    def left(self) -> Iterator[Check]:
        """Are descriptors and threads back to where they were? Waits a moment for that."""
        limit = time.monotonic() + _LINGER
        while any(now > before for now, before in zip(self._now(), self._before)) and time.monotonic() < limit:
            time.sleep(0.05)
        for name, now, before in zip(("descriptors", "threads"), self._now(), self._before):
            yield Check(name, now <= before, f"{before} before, {now} after the close")


def checks(load: Load, stuck: int, stats: dict[str, Any], at_server: int | None) -> Iterator[Check]:
    """Judge what the borrowers, the pool and the factory have to say.

    Args:
        load: After it was stopped and closed.
        stuck: How many of its threads did not end.
        stats: The pool's last ones.
        at_server: How many connections the server still has; ``None`` if nobody knows.
    """
    ledger, snapshot = load.target.ledger, load.metrics.snapshot()
    leases, wrong, shared = load.count("leases"), load.count("wrong"), load.count("shared")
    yield Check("borrowers", leases > 0 and not shared, f"{leases:,} leases, {shared} of them shared with somebody")
    if load.target.asks or wrong:
        replies = load.count("replies")
        yield Check("replies", not wrong, f"{replies:,} belong to their requests, {wrong} to others")
    unserved = load.count("unserved")
    yield Check(
        "waiters",
        not stuck and not unserved and not stats["waiting"],
        f"{stuck} stuck, {unserved} not served within {TIMEOUT:g} s; the longest wait was {load.slowest:.2f} s",
    )
    yield Check("bound", ledger.most <= load.max_size, f"{ledger.most} at once at most, max_size {load.max_size}")
    closed, detached = sum(snapshot.closed.values()), snapshot.closed.get("detached", 0)
    yield Check(
        "pool's count",
        snapshot.created == closed and not stats["size"],
        f"{snapshot.created:,} created, {closed - detached:,} closed, {detached:,} detached, {stats['size']} left",
    )
    yield Check(
        "own count",
        ledger.made == ledger.closed and not ledger.open,
        f"{ledger.made:,} made by the factory, {ledger.closed:,} closed, {ledger.open} left",
    )
    if at_server is not None:
        yield Check("server", not at_server, f"{at_server} connections left at the server")

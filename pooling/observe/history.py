"""What happened minute by minute: for each pool, and for the process.

A minute of a pool is a `Minute`: 0.2 KB when nothing happened, 1.3 KB when
everything did. Hosts of HTTP pools are kept for every ten minutes, at most
`MOST_HOSTS` each. So a day of a pool takes at most 2 MB, of an HTTP pool with
many hosts 3 MB, and of an idle pool 0.3 MB.
"""

from __future__ import annotations

import itertools
import struct
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from .spread import Spread

__all__ = ["COUNTERS", "MOST_HOSTS", "MOST_SLOW", "HostMinute", "Minute", "ProcessMinute", "Series", "start_of"]

MOST_HOSTS = 10
"""Hosts of an HTTP pool that are kept at a time; the others are added up."""

_HOSTS_EVERY = 600  # seconds

MOST_SLOW = 10
"""Slowest queries that are kept for each pool."""

OTHERS = "others"

COUNTERS = (
    "acquired", "timeouts", "refusals", "turned_away", "exhausted", "created", "validation_failures",
    "health_failures", "leaks", "orphans",
)  # fmt: skip
"""The counters of `PoolSnapshot` that are kept, under the same names."""


def start_of(wall: float) -> int:
    """Return when the minute of a time of day begins, in seconds since the epoch."""
    return int(wall) // 60 * 60


class _Tally:
    """Counts by name, in a tuple once the minute is over: a dict is six times as large."""

    __slots__ = ("_pairs",)

    def __init__(self) -> None:
        self._pairs: Counter[Any] | tuple[tuple[Any, int], ...] = ()

    def add(self, pairs: Mapping[Any, int]) -> None:
        own = self._pairs
        if pairs:
            if isinstance(own, tuple):
                own = self._pairs = Counter(dict(own))
            own.update(pairs)

    def freeze(self) -> None:
        self._pairs = tuple(self.items())

    def items(self) -> Iterable[tuple[Any, int]]:
        own = self._pairs
        return own if isinstance(own, tuple) else own.items()

    def to_dict(self) -> dict[str, int]:
        return {str(name): number for name, number in sorted(self.items(), key=lambda pair: -pair[1])}

    def total(self) -> int:
        return sum(number for _, number in self.items())


class HostMinute:
    """Requests to one host in one minute: answers by status, failures by kind, retries, and latency."""

    __slots__ = ("statuses", "failures", "retries", "latency")

    def __init__(self) -> None:
        self.statuses, self.failures, self.retries, self.latency = _Tally(), _Tally(), 0, Spread()

    @property
    def requests(self) -> int:
        """All requests: those with an answer and those without."""
        return self.statuses.total() + self.failures.total()

    def merge(self, other: HostMinute) -> None:
        """Add another minute."""
        self.statuses.add(dict(other.statuses.items()))
        self.failures.add(dict(other.failures.items()))
        self.retries += other.retries
        self.latency.merge(other.latency)

    def freeze(self) -> None:
        """Make it small; nothing is lost."""
        for part in (self.statuses, self.failures, self.latency):
            part.freeze()


class Minute:
    """One pool in one minute, or in several that were merged.

    Attributes:
        start: When it begins, in seconds since the epoch.
        seconds: How much of it was observed.
        in_use_seconds: The integral of "in use" over the observed time, from the samples.
        in_use_peak, waiting_peak: The most at once, of the samples and, for a new maximum, of the pool's own peak.
        size, max_size, min_size: As at the last sample.
        wait, use, create: Durations.
        closed, errors: Counts by reason and by kind.
        queries, query_errors: Durations of queries, and how many failed.
        hosts: By host, for HTTP pools.
    """

    __slots__ = (
        "start", "seconds", "_counts", "in_use_seconds", "in_use_peak", "waiting_peak", "size", "max_size", "min_size",
        "wait", "use", "create", "closed", "errors", "queries", "query_errors", "hosts",
    )  # fmt: skip

    def __init__(self, start: int) -> None:
        self.start = start
        self.seconds = self.in_use_seconds = 0.0
        self._counts: list[int] | bytes = _NO_COUNTS
        self.in_use_peak = self.waiting_peak = self.size = self.max_size = self.min_size = self.query_errors = 0
        self.wait, self.use, self.create, self.queries = Spread(), Spread(), Spread(), Spread()
        self.closed, self.errors = _Tally(), _Tally()
        self.hosts: dict[str, HostMinute] = {}

    def count(self, numbers: Iterable[int]) -> None:
        """Add to the counters, in the order of `COUNTERS`."""
        self._counts = [own + new for own, new in zip(self.counts, numbers)]

    @property
    def counts(self) -> Sequence[int]:
        """The counters, in the order of `COUNTERS`; each is also an attribute."""
        own = self._counts
        return _PACKED.unpack(own) if isinstance(own, bytes) else own

    def __getattr__(self, name: str) -> int:
        try:
            return self.counts[COUNTERS.index(name)]
        except ValueError:
            raise AttributeError(name) from None

    def merge(self, other: Minute) -> None:
        """Add a later minute."""
        self.seconds += other.seconds
        self.in_use_seconds += other.in_use_seconds
        self.query_errors += other.query_errors
        self.count(other.counts)
        self.in_use_peak = max(self.in_use_peak, other.in_use_peak)
        self.waiting_peak = max(self.waiting_peak, other.waiting_peak)
        self.size, self.max_size, self.min_size = other.size, other.max_size, other.min_size
        for name in ("wait", "use", "create", "queries"):
            getattr(self, name).merge(getattr(other, name))
        self.closed.add(dict(other.closed.items()))
        self.errors.add(dict(other.errors.items()))
        for host, figures in other.hosts.items():
            self.hosts.setdefault(host, HostMinute()).merge(figures)

    def freeze(self) -> None:
        """Make it small; all but the hosts with the fewest requests is kept."""
        self._counts = _PACKED.pack(*self.counts) if any(self.counts) else _NO_COUNTS
        for name in ("wait", "use", "create", "queries"):
            durations: Spread = getattr(self, name)
            durations.freeze()
            if not durations.count:
                setattr(self, name, _NO_DURATIONS)
        for name in ("closed", "errors"):
            tally: _Tally = getattr(self, name)
            tally.freeze()
            if not tally.total():
                setattr(self, name, _NO_TALLY)
        if not self.hosts:
            self.hosts = _NO_HOSTS
        if len(self.hosts) > MOST_HOSTS:
            least = sorted(self.hosts, key=lambda host: (host != OTHERS, self.hosts[host].requests))
            rest = self.hosts.pop(OTHERS, HostMinute())
            for host in [host for host in least if host != OTHERS][: len(least) - MOST_HOSTS]:
                rest.merge(self.hosts.pop(host))
            self.hosts[OTHERS] = rest
        for figures in self.hosts.values():
            figures.freeze()

    def take_hosts(self, other: Minute) -> None:
        """Take over the hosts of a later minute; both are frozen afterwards."""
        if other.hosts:
            self.hosts = dict(self.hosts)
            for host, figures in other.hosts.items():
                self.hosts.setdefault(host, HostMinute()).merge(figures)
            other.hosts = _NO_HOSTS
            self.freeze()

    # -- what follows from the above ----------------------------------------------

    @property
    def requests(self) -> int:
        """Number of acquires: served, timed out, refused, or failed with another error."""
        return self.acquired + self.timeouts + self.refusals + self.turned_away

    @property
    def failed(self) -> int:
        """Acquires that got nothing."""
        return self.timeouts + self.refusals + self.turned_away

    @property
    def rate(self) -> float:
        """Acquires per second."""
        return self.requests / self.seconds if self.seconds else 0.0

    @property
    def in_use(self) -> float:
        """In use on average, from the samples."""
        return self.in_use_seconds / self.seconds if self.seconds else 0.0

    @property
    def load(self) -> float:
        """In use on average: by Little's law, or by the samples where leases were long."""
        return max(self.in_use, self.use.total / self.seconds if self.seconds else 0.0)

    @property
    def saturation(self) -> float:
        """The most in use at once / ``max_size``; 0.0 without a limit."""
        return self.in_use_peak / self.max_size if self.max_size else 0.0


_PACKED = struct.Struct(f"<{len(COUNTERS)}Q")
_NO_COUNTS = _PACKED.pack(*(0 for _ in COUNTERS))
# Shared by all minutes in which there was nothing to count; never written to.
_NO_DURATIONS, _NO_TALLY = Spread(), _Tally()
_NO_HOSTS: dict[str, HostMinute] = {}


class ProcessMinute:
    """The process in one minute, or in several that were merged.

    Attributes:
        start, seconds: As of a `Minute`.
        cpu_seconds: Processor time used.
        cpu_peak: The most in one sample, as a fraction of one processor.
        rss, threads, descriptors: The most at once; memory in bytes.
    """

    __slots__ = ("start", "seconds", "cpu_seconds", "cpu_peak", "rss", "threads", "descriptors")

    def __init__(self, start: int) -> None:
        self.start = start
        self.seconds = self.cpu_seconds = self.cpu_peak = 0.0
        self.rss = self.threads = self.descriptors = 0

    def merge(self, other: ProcessMinute) -> None:
        """Add a later minute."""
        self.seconds += other.seconds
        self.cpu_seconds += other.cpu_seconds
        for name in ("cpu_peak", "rss", "threads", "descriptors"):
            setattr(self, name, max(getattr(self, name), getattr(other, name)))

    def freeze(self) -> None:
        """Nothing to do; as of a `Minute`."""

    @property
    def cpu(self) -> float:
        """Processor time used per second: 1.0 is one processor."""
        return self.cpu_seconds / self.seconds if self.seconds else 0.0


class Series:
    """The minutes of one pool, or of the process, for as long as the retention lasts.

    Attributes:
        label: The name under which it is reported.
        kind: The class of the pool.
        state: ``"open"``, ``"closed"``, or ``"dropped"``: garbage collected without `close`.
        settings: The pool's settings as far as they are known.
        slowest: The slowest queries, as ``(seconds, text, when)``, the slowest first.
    """

    def __init__(self, label: str, kind: str, minute: type[Any], retention: float) -> None:
        self.label = label
        self.kind = kind
        self.state = "open"
        self.settings: dict[str, Any] = {}
        self.slowest: list[tuple[float, str, float]] = []
        self._minute = minute
        self._minutes: deque[Any] = deque()
        self._most = int(retention // 60) + 2

    def at(self, wall: float) -> Any:
        """Return the minute of this time of day, a new one if need be; what is too old is forgotten."""
        start, minutes = start_of(wall), self._minutes
        if minutes and minutes[-1].start >= start:  # also where the wall clock was set back
            return minutes[-1]
        if minutes:
            minutes[-1].freeze()
            self._gather_hosts(minutes[-1])
        minutes.append(self._minute(start))
        while len(minutes) > self._most or minutes[0].start <= start - self._most * 60:
            minutes.popleft()
        return minutes[-1]

    def _gather_hosts(self, minute: Any) -> None:
        """Keep the hosts of ten minutes in the first of these."""
        if isinstance(minute, Minute):
            block = minute.start // _HOSTS_EVERY
            near = itertools.islice(reversed(self._minutes), 1, _HOSTS_EVERY // 60)
            for first in [one for one in near if one.start // _HOSTS_EVERY == block][-1:]:
                first.take_hosts(minute)

    def since(self, wall: float) -> Iterator[Any]:
        """Yield the minutes that end after a time of day, the oldest first."""
        return (minute for minute in list(self._minutes) if minute.start + 60 > wall)

    def total(self, wall: float) -> Any:
        """Return all of that in one."""
        found = self._minute(start_of(wall))
        for minute in self.since(wall):
            found.merge(minute)
        return found

    @property
    def last(self) -> int:
        """When the last minute began; 0 if there is none."""
        return self._minutes[-1].start if self._minutes else 0

    def note_slow(self, seconds: float, text: str, when: float) -> None:
        """Note a slow query; each text is kept once, with its longest time."""
        known = {other: (time, other, at) for time, other, at in self.slowest}
        if text not in known or known[text][0] < seconds:
            known[text] = (seconds, text, when)
            self.slowest = sorted(known.values(), reverse=True)[:MOST_SLOW]

    def forget(self, wall: float) -> None:
        """Forget the slow queries that are older than a time of day."""
        self.slowest = [slow for slow in self.slowest if slow[2] >= wall]

"""What happened in an HTTP pool: for each host, and for all of them as for any other pool."""

from __future__ import annotations

import _thread
from collections import Counter
from typing import Any, NamedTuple, Protocol

from ...core.report.histogram import SHORT, Buckets, Histogram, HistogramSnapshot
from ...core.report.metrics import PoolMetrics
from ...core.report.snapshot import PoolSnapshot
from ...core.state import PoolState

__all__ = ["HTTPMetrics", "HostMetrics", "HostSnapshot", "MOST_LABELS", "OTHERS"]

NOT_OPENED = "not_opened"
"""Why a connection is given up that never was one: no socket was closed."""

OF_LINES = ("timeouts", "refusals", "turned_away", "exhausted")
"""What is counted where somebody waits: at each host, and among all requests."""

MOST_LABELS = 100
"""Hosts that are counted one by one; all further ones are counted together (cardinality)."""

OTHERS = "others"


class HostSnapshot(NamedTuple):
    """What happened with one host; durations in seconds.

    ``statuses`` counts answers by code, ``failures`` requests without one by
    kind. ``latency`` is until the answer's head was there, ``connect`` with
    the TLS handshake. ``resent`` counts requests sent once more because a
    kept connection had died unseen; ``retries`` those of the ``retry`` policy.
    """

    host: str
    requests: int
    statuses: dict[int, int]
    failures: dict[str, int]
    retries: int
    resent: int
    bytes_sent: int
    bytes_received: int
    opened: int
    reused: int
    latency: HistogramSnapshot
    connect: HistogramSnapshot

    def to_dict(self) -> dict[str, Any]:
        """Return everything, ready for JSON."""
        own = self._asdict()
        own["statuses"] = {str(status): number for status, number in self.statuses.items()}
        return own | {"latency": self.latency._asdict(), "connect": self.connect._asdict()}


class HostMetrics:
    """Counts for one host (or for the ``others``).

    While it is not ``on`` only sockets are counted, which every pool does.
    """

    def __init__(self, host: str, on: bool = True) -> None:
        self.host, self.on = host, on
        # Native and re-entrant, as the pool's own (see `core.threads`): a destructor may count.
        self._lock: Any = _thread.RLock()
        self.clear()

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._count: Counter[str] = Counter()
            self._statuses: Counter[int] = Counter()
            self._failures: Counter[str] = Counter()
            self._latency = Histogram(self._lock)
            self._connect = Histogram(self._lock)

    def connected(self, seconds: float) -> None:
        """Count a socket that was opened."""
        with self._lock:
            self._count["opened"] += 1
        if self.on:
            self._connect.record(seconds)

    def answered(self, status: int, seconds: float, reused: bool) -> None:
        """Count an answer."""
        if not self.on:
            return
        with self._lock:
            self._statuses[status] += 1
            if reused:
                self._count["reused"] += 1
        self._latency.record(seconds)

    def failed(self, kind: str) -> None:
        """Count a request that got no answer, or only a part of one."""
        if not self.on:
            return
        with self._lock:
            self._failures[kind] += 1

    def moved(self, sent: int, received: int) -> None:
        """Count bytes as they went over the wire, without TLS."""
        if not self.on:
            return
        with self._lock:
            self._count["sent"] += sent
            self._count["received"] += received

    def count(self, what: str) -> None:
        """Count a retry (``"retries"``), or a request sent once more (``"resent"``)."""
        if not self.on:
            return
        with self._lock:
            self._count[what] += 1

    def count_dead_socket(self) -> None:
        """Count a socket that proved dead in the hands of a request, and is replaced there."""
        with self._lock:
            self._count["hung_up"] += 1

    @property
    def hung_up(self) -> int:
        """How many sockets proved dead in the hands of a request, and were replaced there."""
        return self._count["hung_up"]

    def buckets(self) -> tuple[Buckets, Buckets]:
        """Return the latencies of answers and the connect times, by bucket."""
        with self._lock:
            return self._latency.buckets(), self._connect.buckets()

    def snapshot(self) -> HostSnapshot:
        """Return an immutable, consistent picture."""
        with self._lock:
            count = self._count
            answers = sum(self._statuses.values())
            return HostSnapshot(
                host=self.host,
                requests=answers + sum(self._failures.values()),
                statuses=dict(self._statuses),
                failures=dict(self._failures),
                retries=count["retries"],
                resent=count["resent"],
                bytes_sent=count["sent"],
                bytes_received=count["received"],
                opened=count["opened"],
                reused=count["reused"],
                latency=self._latency.snapshot(),
                connect=self._connect.snapshot(),
            )


class Sockets(Protocol):
    """The hosts of a pool, as its metrics read them."""

    metrics: dict[str, HostMetrics]
    gone: Any

    def all(self) -> list[Any]:
        """Return the hosts known now."""


class HTTPMetrics(PoolMetrics):
    """The metrics of an HTTP pool.

    :meth:`snapshot` is that of any pool, over the sockets of all hosts:
    ``size`` and ``idle`` are open sockets, ``in_use`` and ``use`` requests
    under way until their body is read, ``created`` sockets opened. ``wait`` is
    all the time in line, at the host and among all; ``exhausted`` counts both
    lines. See :meth:`hosts` for each host's own figures.
    """

    of: Sockets

    def renew(self, lock: Any, state: PoolState) -> None:
        super().renew(lock, state)
        self._waited = Histogram(lock)  # `wait` has the second wait queue only

    def waited(self, seconds: float) -> None:
        """Count what a request has waited, in both lines together."""
        if seconds > SHORT:
            self._waited.record(seconds)

    def snapshot(self) -> PoolSnapshot:
        """Return an immutable picture of the pool now."""
        places = super().snapshot()
        with self.lock:
            wait = self._waited.snapshot(places.acquired - self._waited.timed[0])
        sockets = [host.pool.metrics.snapshot() for host in self.of.all()]
        gone = self.of.gone
        closed = Counter(gone.closed)
        for one in sockets:
            closed.update(one.closed)
        hosts = [metrics.snapshot() for metrics in self.of.metrics.values()]
        failures: Counter[str] = Counter()
        for host in hosts:
            failures.update(host.failures)
        del closed[NOT_OPENED]
        closed["dead"] += sum(metrics.hung_up for metrics in self.of.metrics.values())
        idle = sum(one.idle for one in sockets)
        closing = sum(one.closing for one in sockets)
        return places._replace(
            size=idle + closing + places.in_use,
            idle=idle,
            creating=0,
            checking=0,
            closing=closing,
            waiting=places.waiting + sum(one.waiting for one in sockets),
            created=sum(host.opened for host in hosts),
            closed=dict(+closed),
            errors=dict(failures),
            validation_failures=sum(one.validation_failures for one in sockets),
            wait=wait,
            create=self._slowest(hosts),
            **{
                name: getattr(places, name) + gone.count[name] + sum(getattr(one, name) for one in sockets)
                for name in OF_LINES
            },
        )

    @staticmethod
    def _slowest(hosts: list[HostSnapshot]) -> HistogramSnapshot:
        """Connect times over hosts: counts and means add up, of percentiles the worst is shown."""
        count = sum(host.connect.count for host in hosts)
        if not count:
            return HistogramSnapshot(0, 0.0, 0.0, 0.0, 0.0, 0.0)
        total = sum(host.connect.count * host.connect.mean for host in hosts)
        worst = [max(getattr(host.connect, part) for host in hosts) for part in ("max", "p50", "p95", "p99")]
        return HistogramSnapshot(count, total / count, *worst)

    def buckets(self) -> dict[str, Buckets]:
        """Return the recorded durations by bucket: ``wait``, ``use`` and ``create``, as in `snapshot`."""
        found = super().buckets()
        connects = [metrics.buckets()[1] for metrics in list(self.of.metrics.values())]
        counts: Counter[int] = Counter()
        for one in connects:
            counts.update(one.counts)
        total, most = sum(one.total for one in connects), max((one.max for one in connects), default=0.0)
        with self.lock:
            return {**found, "wait": self._waited.buckets(), "create": Buckets(counts, total, most)}

    def latencies(self) -> dict[str, Buckets]:
        """Return the latencies of answers by bucket, for each host."""
        return {host: metrics.buckets()[0] for host, metrics in list(self.of.metrics.items())}

    def hosts(self) -> list[HostSnapshot]:
        """Return each host's own figures, the most used first; at most 101 of them."""
        found = [metrics.snapshot() for metrics in list(self.of.metrics.values())]
        return sorted(found, key=lambda host: -host.requests)

    def reset(self) -> None:
        """Start counting anew; gauges stay what they are."""
        super().reset()
        self._waited.clear()
        self.of.gone.clear()
        for host in self.of.all():
            host.pool.metrics.reset()
        for metrics in list(self.of.metrics.values()):
            metrics.clear()

    def to_dict(self) -> dict[str, Any]:
        """Return `PoolSnapshot.to_dict` of this moment, and ``hosts``."""
        return super().to_dict() | {"hosts": [host.to_dict() for host in self.hosts()]}

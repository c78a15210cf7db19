"""Metrics of an HTTP pool: those of any pool, over all hosts, and separate ones for each host."""

from __future__ import annotations

import _thread
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from ...core.report.histogram import SHORT, Buckets, Histogram, HistogramSnapshot
from ...core.report.metrics import PoolMetrics
from ...core.report.snapshot import PoolSnapshot
from ...core.state import PoolState

__all__ = ["HTTPMetrics", "HostBuckets", "HostMetrics", "HostSnapshot", "MOST_LABELS", "OTHERS"]

NOT_OPENED = "not_opened"
"""The close reason of a connection that was never opened; it counts as no closed socket."""

WAIT_COUNTERS = ("timeouts", "refusals", "turned_away", "exhausted")
"""Counters of waiting, which every host's pool has and the pool of slots too."""

MOST_LABELS = 100
"""Maximum number of hosts with metrics of their own (cardinality); further ones share one."""

OTHERS = "others"


class HostSnapshot(NamedTuple):
    """The metrics of one host; durations in seconds.

    ``statuses`` counts answers by status code, ``failures`` requests without
    an answer by kind. ``latency`` is the time until the head of the answer
    arrived, ``connect`` includes the TLS handshake, ``lifetime`` is the time
    from there until the connection was closed. ``resent`` counts requests that
    were sent again because a kept connection proved dead, ``retries`` those
    repeated by the ``retry`` policy, ``ejections`` how often a server of
    several was left out (see `Balancing`). ``hedges`` counts requests that were
    sent to the host because another server had not begun to answer them, and
    ``hedges_won`` those of them that it answered first.
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
    lifetime: HistogramSnapshot
    ejections: int = 0
    hedges: int = 0
    hedges_won: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Return all figures, ready for JSON."""
        own = self._asdict()
        own["statuses"] = {str(status): number for status, number in self.statuses.items()}
        return own | {name: getattr(self, name)._asdict() for name in ("latency", "connect", "lifetime")}


class HostBuckets(NamedTuple):
    """The durations of one host by bucket, see `HostSnapshot`."""

    latency: Buckets
    connect: Buckets
    lifetime: Buckets


class HostMetrics:
    """Counts for one host, or for the ``others``.

    While it is not ``on``, only sockets are counted, as in every pool. ``lock``
    guards the counts; internal.
    """

    def __init__(self, host: str, on: bool = True) -> None:
        self.host, self.on = host, on
        # Native and re-entrant, as the pool's own (see `runtime.gevent`): a destructor may count.
        self.lock: Any = _thread.RLock()
        self.clear()

    def clear(self) -> None:
        """Reset all counters."""
        with self.lock:
            self._count: Counter[str] = Counter()
            self._statuses: Counter[int] = Counter()
            self._failures: Counter[str] = Counter()
            self._latency = Histogram(self.lock)
            self._connect = Histogram(self.lock)
            self._lifetime = Histogram(self.lock)

    def connected(self, seconds: float) -> None:
        """Count a socket that was opened."""
        with self.lock:
            self._count["opened"] += 1
        if self.on:
            self._connect.record(seconds)

    def closed(self, seconds: float) -> None:
        """Record how long a socket was open."""
        if self.on:
            self._lifetime.record(seconds)

    def answered(self, status: int, seconds: float, reused: bool) -> None:
        """Count an answer."""
        if not self.on:
            return
        with self.lock:
            self._statuses[status] += 1
            if reused:
                self._count["reused"] += 1
        self._latency.record(seconds)

    def failed(self, kind: str) -> None:
        """Count a request without an answer, or with a part of one."""
        if not self.on:
            return
        with self.lock:
            self._failures[kind] += 1

    def moved(self, sent: int, received: int) -> None:
        """Count transferred bytes, without those of TLS."""
        if not self.on:
            return
        with self.lock:
            self._count["sent"] += sent
            self._count["received"] += received

    def count(self, what: str) -> None:
        """Count one of what `HostSnapshot` has a number of: ``"retries"``, ``"resent"``, ``"ejections"`` or hedges."""
        if not self.on:
            return
        with self.lock:
            self._count[what] += 1

    def count_dead_socket(self) -> None:
        """Count a kept socket that proved dead during a request, which opens another one."""
        with self.lock:
            self._count["dead_sockets"] += 1

    @property
    def dead_sockets(self) -> int:
        """How many kept sockets proved dead during a request."""
        return self._count["dead_sockets"]

    def buckets(self) -> HostBuckets:
        """Return the durations by bucket."""
        with self.lock:
            return HostBuckets(self._latency.buckets(), self._connect.buckets(), self._lifetime.buckets())

    def snapshot(self) -> HostSnapshot:
        """Return an immutable, consistent snapshot."""
        with self.lock:
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
                lifetime=self._lifetime.snapshot(),
                ejections=count["ejections"],
                hedges=count["hedges"],
                hedges_won=count["hedges_won"],
            )


class Sockets(Protocol):
    """The hosts of a pool, as its metrics read them; `Hosts` implements it."""

    metrics: dict[str, HostMetrics]
    forgotten: Any

    def all(self) -> list[Any]:
        """Return the current hosts."""


class HTTPMetrics(PoolMetrics):
    """The metrics of an HTTP pool.

    :meth:`snapshot` has the fields of every pool, over the sockets of all
    hosts: ``size`` and ``idle`` count open sockets, ``in_use`` and ``use``
    requests in progress until their body is read, ``created`` opened sockets.
    ``wait`` is the time to get a connection of the host and a request slot;
    ``exhausted`` counts waits for either. See :meth:`hosts` for each host.
    """

    kept = None  # they refer to the pools of the hosts
    sockets: Sockets  # set by `Connections`
    backends: Callable[[], dict[str, dict[str, Any]] | None] | None = None  # set for a group of servers

    def renew(self, lock: Any, state: PoolState) -> None:
        super().renew(lock, state)
        self._waited = Histogram(lock)  # `self.wait` has the wait for a slot only

    def waited(self, seconds: float) -> None:
        """Record how long a request has waited, for its host and for a slot together."""
        if seconds > SHORT:
            self._waited.record(seconds)

    def snapshot(self) -> PoolSnapshot:
        """Return an immutable snapshot of the pool."""
        slots = super().snapshot()
        with self.lock:
            wait = self._waited.snapshot(slots.acquired - self._waited.timed[0])
        sockets = [host.pool.metrics.snapshot() for host in self.sockets.all()]
        forgotten = self.sockets.forgotten
        closed = Counter(forgotten.closed)
        for one in sockets:
            closed.update(one.closed)
        hosts = [metrics.snapshot() for metrics in self.sockets.metrics.values()]
        failures: Counter[str] = Counter()
        for host in hosts:
            failures.update(host.failures)
        del closed[NOT_OPENED]
        closed["dead"] += sum(metrics.dead_sockets for metrics in self.sockets.metrics.values())
        idle = sum(one.idle for one in sockets)
        closing = sum(one.closing for one in sockets)
        return slots._replace(
            size=idle + closing + slots.in_use,
            idle=idle,
            creating=0,
            checking=0,
            closing=closing,
            waiting=slots.waiting + sum(one.waiting for one in sockets),
            created=sum(host.opened for host in hosts),
            closed=dict(+closed),
            errors=dict(failures),
            validation_failures=sum(one.validation_failures for one in sockets),
            wait=wait,
            create=self._connect_times(hosts),
            **{
                name: getattr(slots, name) + forgotten.count[name] + sum(getattr(one, name) for one in sockets)
                for name in WAIT_COUNTERS
            },
        )

    @staticmethod
    def _connect_times(hosts: list[HostSnapshot]) -> HistogramSnapshot:
        """Return the connect times over all hosts: the mean of all, and of each percentile the slowest host's."""
        count = sum(host.connect.count for host in hosts)
        if not count:
            return HistogramSnapshot(0, 0.0, 0.0, 0.0, 0.0, 0.0)
        total = sum(host.connect.count * host.connect.mean for host in hosts)
        worst = [max(getattr(host.connect, part) for host in hosts) for part in ("max", "p50", "p95", "p99")]
        return HistogramSnapshot(count, total / count, *worst)

    def buckets(self) -> dict[str, Buckets]:
        """Return the recorded durations by bucket: ``wait``, ``use`` and ``create``, as in `snapshot`."""
        found = super().buckets()
        connects = [buckets.connect for buckets in self.host_buckets().values()]
        counts: Counter[int] = Counter()
        for one in connects:
            counts.update(one.counts)
        total, most = sum(one.total for one in connects), max((one.max for one in connects), default=0.0)
        with self.lock:
            return {**found, "wait": self._waited.buckets(), "create": Buckets(counts, total, most)}

    def connections(self) -> dict[str, tuple[int, int]]:
        """Return how many connections are idle and in use, for each host."""
        found: dict[str, tuple[int, int]] = {}
        for host in self.sockets.all():
            idle, in_use = found.get(host.metrics.host, (0, 0))
            state = host.pool.engine.state
            with host.pool.engine.lock:
                idle, in_use = idle + len(state.idle), in_use + state.in_use
            found[host.metrics.host] = idle, in_use
        return found

    def oldest_wait(self, now: float) -> float:
        """Return the seconds that the first request in a wait queue of a host has waited; 0.0 if none waits."""
        oldest = now
        for host in self.sockets.all():
            waiters = host.pool.engine.state.waiters
            with host.pool.engine.lock:
                oldest = min(oldest, waiters[0].arrived) if waiters else oldest
        return now - oldest

    def host_buckets(self) -> dict[str, HostBuckets]:
        """Return the durations by bucket, for each host."""
        return {host: metrics.buckets() for host, metrics in list(self.sockets.metrics.items())}

    def hosts(self) -> list[HostSnapshot]:
        """Return the metrics of each host, the one with most requests first; at most 101 of them."""
        found = [metrics.snapshot() for metrics in list(self.sockets.metrics.values())]
        return sorted(found, key=lambda host: -host.requests)

    def reset(self) -> None:
        """Reset all counters and durations; gauges are unaffected."""
        super().reset()
        self._waited.clear()
        self.sockets.forgotten.clear()
        for host in self.sockets.all():
            host.pool.metrics.reset()
        for metrics in list(self.sockets.metrics.values()):
            metrics.clear()

    def to_dict(self) -> dict[str, Any]:
        """Return `PoolSnapshot.to_dict` of a new snapshot, with ``hosts``."""
        return super().to_dict() | {"hosts": [host.to_dict() for host in self.hosts()]}

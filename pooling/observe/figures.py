"""The figures of this process's pools by name, with counters that never decrease.

A pool's own counters start again after `PoolMetrics.reset`, and end with the
pool. A `Recorder` adds up what was counted before, so that an exporter may call
its counters counters.

Counters are one flat mapping, which is easy to add and to store. Its keys:
``created``; ``closed/expired`` by reason; ``errors/OSError`` by kind;
``lane_acquired/web`` and so on, with the seconds waited, by lane;
``wait/17`` by the place of the bucket (see `histogram.bound_of`), ``wait.short``
for those that are shorter than `histogram.SHORT`, and ``wait.ns``, the sum of
all in nanoseconds. What was counted for one host has the host and a tab before
its key; so have the gauges ``idle`` and ``used`` of a host, and those of a
server of several (``backend_...``). All counters are whole numbers: a sum of
floats depends on the order of the addends, so it could decrease in the last
digit from one reader to the next.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from .._reports import DOWN, UP
from ..core.report.histogram import Buckets, HistogramSnapshot, bound_of
from ..core.report.holders import holders_of
from ..core.report.metrics import PoolMetrics
from ..core.report.snapshot import PoolSnapshot
from ..core.runtime import registry
from ..core.runtime.poolref import PoolRef

__all__ = [
    "HOST", "MOST_POOLS", "OTHERS", "Figures", "PoolsOf", "Recorder", "add", "add_up", "all_pools",
    "by_host", "kinds_of", "state_of",
]  # fmt: skip

Figures = dict[str, Any]
"""Of one pool name: ``counters``, ``gauges``, ``peaks`` (numbers by key), ``holders``, and ``kind``, the class of the
pool; ``error``, why nothing can be created now; and ``recent``, the peaks since the last sample."""

PoolsOf = Callable[[], list[tuple[PoolRef, PoolMetrics]]]

HOST = "\t"
"""Between a host and the key of one of its counters or gauges."""

MOST_POOLS = 100
"""Pool names that are counted one by one; all further ones are counted together (cardinality)."""

OTHERS = "others"

_COUNTERS = (
    "acquired", "released", "created", "timeouts", "refusals", "turned_away", "exhausted", "validation_failures",
    "health_failures", "orphans", "leaks",
)  # fmt: skip
_TIMES = ("wait", "use", "create")
_HOST_TIMES = ("latency", "lifetime")
_HOLDERS = 10
_NONE = Buckets({}, 0.0, 0.0)
# Of several the highest counts, not the sum.
_HIGHEST = {
    "acquire_timeout", "oldest_wait", "wait", "use", "create", "budget_total", "backend_latency", "backend_failing",
    "primary", "readable", "lag",
}  # fmt: skip


def all_pools() -> list[tuple[PoolRef, PoolMetrics]]:
    """Return the live pools of this process with their metrics, those inside of others left out."""
    found = []
    for runtime in registry.runtimes:
        for ref in list(runtime.pools.values()):
            owner = ref()
            if owner is not None and not owner.engine.metrics.inner:
                found.append((ref, owner.engine.metrics))
    return found


class Recorder:
    """Records the pools of one process. Not thread-safe: its user holds a lock.

    Args:
        pools: Returns those to record, as `all_pools` does; ``None`` for all.
    """

    def __init__(self, pools: PoolsOf | None = None) -> None:
        self._pools = pools
        self._sources: dict[int, _Source] = {}  # by the id of the metrics
        self._ended: dict[str, dict[str, float]] = {}  # counters of pools that are gone, by pool name
        self._names: set[str] = set()
        self._dropped: deque[tuple[PoolMetrics, _Count]] = deque()

    def sample(self, epoch: int = 0) -> dict[str, Figures]:
        """Return the figures of each pool name.

        Args:
            epoch: Peaks are those since this number changed.
        """
        self.count_dropped()
        for number, source in list(self._sources.items()):
            if source.metrics is None and source.ref() is None:
                self._end(self._sources.pop(number))
        for ref, metrics in (self._pools or all_pools)():
            source = self._sources.setdefault(id(metrics), _Source(metrics))
            source.ref = ref  # another one after gevent has patched the process
        found: dict[str, list[Figures]] = {}
        for source in self._sources.values():
            owner = source.ref()
            if owner is not None:
                figures = source.sample(owner.engine, epoch)
            else:  # it was dropped just now: `drop` will be called
                if source.metrics is not None:
                    source.count(source.metrics)
                figures = {"counters": source.counters}
            found.setdefault(self.public(source.name), []).append(figures)
        for name, counters in self._ended.items():
            found.setdefault(name, []).append({"counters": counters})
        return {name: add_up(figures) for name, figures in found.items()}

    def drop(self, metrics: PoolMetrics) -> None:
        """Read the counters of a pool that was garbage collected, before the reaper removes it; needs no lock."""
        self._dropped.append((metrics, _Count.of(metrics)))

    def count_dropped(self) -> None:
        """Count the dropped pools for the last time."""
        while self._dropped:
            metrics, count = self._dropped.popleft()
            known = self._sources.pop(id(metrics), None)
            if known is not None or self._pools is None:  # else not one of those
                source = known or _Source(metrics)
                source.note(count)
                self._end(source)

    def _end(self, source: _Source) -> None:
        add(self._ended.setdefault(self.public(source.name), {}), source.counters)

    def public(self, name: str) -> str:
        """Return the name that a pool's figures have: its own, or `OTHERS` if there are too many."""
        if name not in self._names:
            if len(self._names) >= MOST_POOLS:
                return OTHERS
            self._names.add(name)
        return name


class _Count(NamedTuple):
    """What a pool has counted since its last reset, whose time is ``since``."""

    since: float
    snapshot: PoolSnapshot
    counters: dict[str, float]

    @classmethod
    def of(cls, metrics: PoolMetrics) -> _Count:
        since, snapshot = metrics.since, metrics.snapshot()
        return cls(since, snapshot, _counters(metrics, snapshot))


class _Source:
    """One pool, as it was at the last sample."""

    def __init__(self, metrics: PoolMetrics) -> None:
        self.name = metrics.name
        self.metrics = metrics.kept  # never what keeps a pool alive
        self.ref: Callable[[], Any] = _nothing
        self._since = float("-inf")
        self._base: dict[str, float] = {}  # counted before the last reset
        self._last: dict[str, float] = {}
        self._uses: Mapping[int, int] = {}
        self._peak_ever = 0
        self._epoch: int | None = None
        self._peaks: dict[str, float] = {}
        self._mark: dict[str, float] = {}  # the counters when the epoch began

    @property
    def counters(self) -> dict[str, float]:
        """All that was counted."""
        found = dict(self._base)
        add(found, self._last)
        return found

    def count(self, metrics: PoolMetrics) -> PoolSnapshot:
        """Update the counters."""
        found = _Count.of(metrics)
        self.note(found)
        return found.snapshot

    def note(self, found: _Count) -> None:
        """Update the counters with what the pool has counted."""
        if found.since > self._since:
            add(self._base, self._last)
            self._last, self._since = {}, found.since
        last = self._last
        for key, value in found.counters.items():
            # A snapshot over several pools, of HTTP hosts for example, is not taken at one instant.
            if value > last.get(key, 0):
                last[key] = value

    def sample(self, engine: Any, epoch: int) -> Figures:
        """Return the pool's figures."""
        before, metrics = self.counters, engine.metrics
        if epoch != self._epoch:
            self._epoch, self._mark, self._peaks = epoch, before, {}
        snapshot = self.count(metrics)
        counters = self.counters
        owner = None if engine.owner is None else engine.owner()
        with engine.lock:
            now, error, circuit = engine.clock.now(), engine.outage.text, engine.outage.circuit
            if error is not None and circuit is not None and circuit.reason:
                error = f"circuit {circuit.at(now)}: {error}"
            holders = holders_of(engine.state.lent(), now)
        gauges = {**_gauges(engine, owner, snapshot, now), "down": int(error is not None)}
        recent = self._note_peaks(snapshot, metrics, counters, before, gauges["oldest_wait"])
        return {
            "kind": "Pool" if owner is None else type(owner).__name__,
            **({} if error is None else {"error": error}),
            "counters": counters,
            "gauges": gauges,
            "peaks": dict(self._peaks),
            "recent": recent,
            "holders": [
                {
                    "where": f"{one.file}:{one.line} {one.function}()", "thread": one.thread,
                    "since": round(time.time() - one.seconds, 2),  # to 10 ms: it must not change from time to time
                }
                for one in holders[:_HOLDERS]
            ],
        }

    def _note_peaks(
        self, snapshot: PoolSnapshot, metrics: PoolMetrics, counters: Mapping[str, float],
        before: Mapping[str, float], oldest: float,
    ) -> dict[str, float]:  # fmt: skip
        """Note the peaks since the epoch began; return those since the last sample."""
        in_use, uses, known = snapshot.in_use, metrics.uses(), self._uses
        if uses is not None:
            in_use = max(in_use, sum(1 for entry, number in uses.items() if number > known.get(entry, 0)))
            self._uses = uses
        if snapshot.peak_in_use > self._peak_ever:  # it was reached since the last sample
            in_use = max(in_use, snapshot.peak_in_use)
        self._peak_ever = snapshot.peak_in_use
        waited = counters.get("exhausted", 0) > self._mark.get("exhausted", 0)
        times = {name: _longest(name, counters, self._mark, getattr(snapshot, name)) for name in _TIMES}
        times["wait"] = max(times["wait"], oldest)
        for key, value in {"in_use": in_use, "waiting": max(snapshot.waiting, int(waited)), **times}.items():
            self._peaks[key] = max(self._peaks.get(key, 0), value)
        waited = counters.get("exhausted", 0) > before.get("exhausted", 0)
        return {"in_use": in_use, "waiting": max(snapshot.waiting, int(waited))}


def _nothing() -> None:
    """Stand in for the reference of a pool that is gone."""


def _gauges(engine: Any, owner: Any, snapshot: PoolSnapshot, now: float) -> dict[str, float]:
    """Return the gauges of a pool; ``owner`` is the public pool, ``None`` for a part of one."""
    settings, state, metrics = engine.settings, engine.state, engine.metrics
    with engine.lock:
        oldest = max(0.0, now - state.waiters[0].arrived) if state.waiters else 0.0
        is_open = not state.closed
    exhausted = is_open and (state.exhausted if owner is None else owner.exhaustion() is not None)
    limits = {
        "max": state.max_size, "idle_min": state.min_size,
        "idle_max": state.max_size if settings.max_idle is None else settings.max_idle,
        "acquire_timeout": settings.acquire_timeout,
    }  # fmt: skip
    budget = getattr(owner, "budget", None)
    if budget is not None:
        limits |= {"budget_share": state.limits.get("budget", 0), "budget_total": budget.stats()["total"]}
    circuits = _open_circuits(engine, owner)
    if circuits is not None:
        limits["circuits_open"] = circuits
    more = getattr(owner, "server_gauges", None)  # of a server of a cluster
    if more is not None:
        limits |= more()
    return {
        "idle": snapshot.idle, "used": snapshot.in_use, "size": snapshot.size, "pending": snapshot.waiting,
        "oldest_wait": max(oldest, _oldest_of_hosts(metrics, now)), "open": int(is_open), "exhausted": int(exhausted),
        **(limits if is_open or snapshot.size else {}), **_of_hosts(metrics), **_of_backends(metrics),
    }  # fmt: skip


def _open_circuits(engine: Any, owner: Any) -> int | None:
    """Return how many circuits are not closed: one of a pool, or those of an HTTP pool's hosts; `None` without any."""
    connections = getattr(owner, "connections", None)
    if connections is not None:
        circuits = connections.hosts.circuits.values()
        return sum(circuit.state != "closed" for circuit in list(circuits)) if owner.settings.breaker else None
    circuit = engine.outage.circuit
    return None if circuit is None else int(circuit.state != "closed")


def _longest(name: str, counters: Mapping[str, float], before: Mapping[str, float], all_of_them: Any) -> float:
    """Return the longest duration since ``before``, as exactly as the buckets say."""
    grown = [
        int(place) for place, number in kinds_of(counters, name).items() if number > before.get(f"{name}/{place}", 0)
    ]
    longest: float = all_of_them.max
    return min(longest, bound_of(max(grown))) if grown else 0.0


def _counters(metrics: PoolMetrics, snapshot: PoolSnapshot) -> dict[str, float]:
    """Return what a pool has counted since its last reset, without zeros."""
    found: dict[str, float] = {name: getattr(snapshot, name) for name in _COUNTERS}
    _by_kind(found, "closed", snapshot.closed)
    _by_kind(found, "errors", snapshot.errors)
    for name, lane in (snapshot.lanes or {}).items():
        waited = lane.wait.mean * lane.acquired
        numbers = {"acquired": lane.acquired, "waited": waited, "timeouts": lane.timeouts, "refusals": lane.refusals}
        found.update({f"lane_{key}/{name}": number for key, number in numbers.items()})
    buckets = metrics.buckets()
    for name in _TIMES:
        _durations(found, name, getattr(snapshot, name), buckets[name])
    hosts, host_buckets = getattr(metrics, "hosts", None), getattr(metrics, "host_buckets", None)
    if hosts is not None and host_buckets is not None:
        known = host_buckets()
        for host in hosts():
            own: dict[str, float] = {
                "retries": host.retries, "resent": host.resent, "bytes_sent": host.bytes_sent,
                "bytes_received": host.bytes_received, "opened": host.opened, "reused": host.reused,
                "ejections": host.ejections, "hedges": host.hedges, "hedges_won": host.hedges_won,
            }  # fmt: skip
            _by_kind(own, "statuses", host.statuses)
            _by_kind(own, "failures", host.failures)
            for name in _HOST_TIMES:
                _durations(own, name, getattr(host, name), getattr(known.get(host.host), name, _NONE))
            found.update({f"{host.host}{HOST}{key}": value for key, value in own.items()})
    return {key: value for key, value in found.items() if value > 0}


def _of_hosts(metrics: PoolMetrics) -> dict[str, int]:
    """Return the connections of an HTTP pool by host."""
    connections = getattr(metrics, "connections", None)
    if connections is None:
        return {}
    return {
        f"{host}{HOST}{state}": number
        for host, numbers in connections().items() for state, number in zip(("idle", "used"), numbers)
    }  # fmt: skip


def _of_backends(metrics: PoolMetrics) -> dict[str, float]:
    """Return the state of each server of an HTTP pool with several."""
    backends = getattr(metrics, "backends", None)
    found: dict[str, float] = {}
    for name, one in ((backends() if backends is not None else None) or {}).items():
        own = {
            "backend_used": one["in_use"], "backend_pending": one["waiting"], "backend_latency": one["latency"] or 0.0,
            "backend_failing": one["failing"], "backend_ejected": int(one["ejected_for"] is not None),
            "backend_circuit_open": int(one["circuit"] not in (None, "closed")),
            f"backend_zone/{one['zone'] or ''}": 1,
        }  # fmt: skip
        found.update({f"{name}{HOST}{key}": value for key, value in own.items()})
    return found


def _oldest_of_hosts(metrics: PoolMetrics, now: float) -> float:
    """Return how long the first request has waited that waits for a host of an HTTP pool."""
    oldest_wait = getattr(metrics, "oldest_wait", None)
    return 0.0 if oldest_wait is None else float(oldest_wait(now))


def _by_kind(into: dict[str, float], name: str, numbers: Mapping[Any, int]) -> None:
    into.update({f"{name}/{kind}": number for kind, number in numbers.items()})


def _durations(into: dict[str, float], name: str, snapshot: HistogramSnapshot, buckets: Buckets) -> None:
    # A use is counted a moment before it is timed. If a sample falls in between, it counts as a short one, too.
    into[f"{name}.short"] = snapshot.count - sum(buckets.counts.values())
    into[f"{name}.ns"] = round(snapshot.count * snapshot.mean * 1e9)
    _by_kind(into, name, buckets.counts)


def state_of(gauges: Mapping[str, float]) -> str:
    """Return the state of a pool: ``"closed"``, ``"down"``, ``"exhausted"`` or ``"up"``.

    It is down if its server is, as far as the last attempt to connect tells; and exhausted if every resource is in
    use, see `Pool.exhaustion`: the next request has to wait. Of several processes, if it is so in one of them.
    """
    if not gauges.get("open"):
        return "closed"
    return DOWN if gauges.get("down") else "exhausted" if gauges.get("exhausted") else UP


def add(into: dict[str, float], numbers: Mapping[str, float]) -> None:
    """Add numbers to those with the same keys."""
    for key, value in numbers.items():
        into[key] = into.get(key, 0) + value


def kinds_of(counters: Mapping[str, float], name: str) -> dict[str, float]:
    """Return the counters of one name by kind: by reason, status, or place of a bucket."""
    prefix = f"{name}/"
    return {key[len(prefix) :]: value for key, value in counters.items() if key.startswith(prefix)}


def by_host(numbers: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """Return the counters or gauges of each host, with their own keys."""
    found: dict[str, dict[str, float]] = {}
    for key, value in numbers.items():
        host, separator, own = key.partition(HOST)
        if separator:
            found.setdefault(host, {})[own] = value
    return found


def add_up(figures: Iterable[Figures]) -> Figures:
    """Return the figures of several pools as those of one: sums, and of times the longest."""
    found: Figures = {"counters": {}, "gauges": {}, "peaks": {}, "holders": []}
    for one in figures:
        add(found["counters"], one.get("counters", {}))
        for part in ("gauges", "peaks", "recent"):
            if part in one:
                into = found.setdefault(part, {})
                for key, value in one[part].items():
                    highest = key.rpartition(HOST)[2] in _HIGHEST
                    into[key] = max(into.get(key, 0), value) if highest else into.get(key, 0) + value
        found.update({part: one[part] for part in ("kind", "error") if part in one})
        found["holders"] += one.get("holders", [])
    found["holders"] = sorted(found["holders"], key=lambda holder: holder["since"])[:_HOLDERS]
    return found

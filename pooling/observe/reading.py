"""A reading of a pool, and what happened between two of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from ..core.managed import ManagedPool
from ..core.report.histogram import Buckets
from ..core.report.metrics import PoolMetrics
from ..core.report.snapshot import PoolSnapshot
from .history import COUNTERS, HostMinute, Minute, Series
from .spread import NO_TOTALS, Totals

__all__ = ["Reading", "note", "read", "read_foreign", "read_metrics"]

_NO_BUCKETS = Buckets({}, 0.0, 0.0)


class Host(NamedTuple):
    """One host of an HTTP pool, since the pool's first use or its last reset."""

    statuses: Mapping[Any, int]
    failures: Mapping[Any, int]
    retries: int
    latency: Totals


class Reading(NamedTuple):
    """A pool at one moment: gauges, and counters since its first use or its last reset, ``duration`` seconds ago."""

    duration: float
    in_use: int
    waiting: int
    peak: int
    size: int
    min_size: int
    max_size: int
    counts: tuple[int, ...]
    closed: Mapping[str, int]
    errors: Mapping[str, int]
    wait: Totals
    use: Totals
    create: Totals
    queries: Totals
    query_errors: int
    slowest: tuple[tuple[float, str], ...]
    hosts: Mapping[str, Host]


def read(pool: ManagedPool[Any]) -> Reading:
    """Read one of our pools."""
    queries, query_errors, slowest = _queries(pool)
    return read_metrics(pool.metrics)._replace(
        queries=queries, query_errors=query_errors, slowest=slowest, hosts=_hosts(pool)
    )


def read_metrics(metrics: PoolMetrics) -> Reading:
    """Read the metrics of a pool, without queries and hosts."""
    snapshot: PoolSnapshot = metrics.snapshot()
    buckets = metrics.buckets()

    def totals(name: str) -> Totals:
        found = getattr(snapshot, name)
        return Totals.of(found.count, found.mean, buckets[name])

    return Reading(
        duration=snapshot.duration,
        in_use=snapshot.in_use,
        waiting=snapshot.waiting,
        peak=snapshot.peak_in_use,
        size=snapshot.size,
        min_size=snapshot.min_size,
        max_size=snapshot.max_size,
        counts=tuple(getattr(snapshot, name) for name in COUNTERS),
        closed=snapshot.closed,
        errors=snapshot.errors,
        wait=totals("wait"),
        use=totals("use"),
        create=totals("create"),
        queries=NO_TOTALS,
        query_errors=0,
        slowest=(),
        hosts={},
    )


def _queries(pool: Any) -> tuple[Totals, int, tuple[tuple[float, str], ...]]:
    """Return the queries of a SQLite or PostgreSQL pool: their times, errors, and the slowest with their texts."""
    query = getattr(pool, "queries", None)
    if callable(query):
        found, statistics = query().to_dict(), pool._queries
    else:
        statistics = getattr(pool, "query_statistics", None)
        if statistics is None:
            return NO_TOTALS, 0, ()
        found = statistics.to_dict()
    slowest = tuple((one["seconds"], one.get("query") or one.get("sql") or "") for one in found["slowest"])
    return Totals.of(found["count"], found["mean"], statistics.buckets()), found.get("errors", 0), slowest


def _hosts(pool: Any) -> dict[str, Host]:
    hosts, host_buckets = (getattr(pool.metrics, name, None) for name in ("hosts", "host_buckets"))
    if hosts is None or host_buckets is None:
        return {}
    buckets = host_buckets()
    return {
        one.host: Host(
            one.statuses, one.failures, one.retries,
            Totals.of(one.latency.count, one.latency.mean, getattr(buckets.get(one.host), "latency", _NO_BUCKETS)),
        )
        for one in hosts()
    }  # fmt: skip


def read_foreign(figures: Mapping[str, Any], duration: float) -> Reading:
    """Make a reading from the figures of another library's pool, as far as it counts.

    Args:
        figures: As `PoolManager.metrics` has them.
        duration: Seconds since the first reading: such a pool does not say since when it counts.
    """
    counted = {
        "acquired": int(figures.get("connection_requests", 0)),
        "created": int(figures.get("total_connections_created", 0)),
    }
    failed = round(figures.get("error_rate", 0.0) * counted["acquired"])
    counted["timeouts"] = failed
    counted["acquired"] -= failed
    waits = figures.get("avg_acquisition_time_ms", 0.0) / 1e3
    return Reading(
        duration=duration,
        in_use=figures["in_use"],
        waiting=int(figures.get("waiting_requests", 0)),
        peak=0,
        size=figures["size"],
        min_size=0,
        max_size=figures["max_size"],
        counts=tuple(counted.get(name, 0) for name in COUNTERS),
        closed={},
        errors={"connect": int(figures.get("connection_errors", 0))} if figures.get("connection_errors") else {},
        wait=Totals(counted["acquired"], counted["acquired"] * waits, _NO_BUCKETS),
        use=NO_TOTALS,
        create=NO_TOTALS,
        queries=NO_TOTALS,
        query_errors=0,
        slowest=(),
        hosts={},
    )


def note(series: Series, before: Reading | None, after: Reading, seconds: float, wall: float) -> None:
    """Add to the minute of ``wall`` what happened in a pool between two readings.

    Args:
        series: The history of the pool.
        before: The reading before; ``None`` if all that is counted is new.
        after: The reading now.
        seconds: The time between them.
        wall: The time of day of ``after``.
    """
    minute: Minute = series.at(wall)
    reset = before is not None and after.duration < before.duration
    if reset:
        seconds = min(seconds, after.duration)
    old = None if reset else before
    minute.seconds += seconds
    was = after.in_use if before is None else before.in_use
    minute.in_use_seconds += seconds * (was + after.in_use) / 2
    new_peak = after.peak if old is None or after.peak > old.peak else 0
    if after.use.count > (old.use.count if old else 0):
        new_peak = max(new_peak, 1)
    minute.in_use_peak = max(minute.in_use_peak, was, after.in_use, new_peak)
    minute.waiting_peak = max(minute.waiting_peak, after.waiting)
    minute.size, minute.max_size, minute.min_size = after.size, after.max_size, after.min_size
    minute.count(max(0, now - then) for now, then in zip(after.counts, old.counts if old else (0,) * len(COUNTERS)))
    for name in ("wait", "use", "create", "queries"):
        getattr(minute, name).add(getattr(old, name) if old else NO_TOTALS, getattr(after, name))
    minute.closed.add(_more(old.closed if old else {}, after.closed))
    minute.errors.add(_more(old.errors if old else {}, after.errors))
    minute.query_errors += max(0, after.query_errors - (old.query_errors if old else 0))
    for host, figures in after.hosts.items():
        _note_host(minute, host, old.hosts.get(host) if old else None, figures)
    known = {text: time for time, text in before.slowest} if before else {}
    for time, text in after.slowest:
        if known.get(text, 0.0) < time:
            series.note_slow(time, text, wall)


def _note_host(minute: Minute, host: str, old: Host | None, new: Host) -> None:
    statuses = _more(old.statuses if old else {}, new.statuses)
    failures = _more(old.failures if old else {}, new.failures)
    retries = max(0, new.retries - (old.retries if old else 0))
    if statuses or failures or retries:
        found = minute.hosts.setdefault(host, HostMinute())
        found.statuses.add(statuses)
        found.failures.add(failures)
        found.retries += retries
        found.latency.add(old.latency if old else NO_TOTALS, new.latency)


def _more(old: Mapping[Any, int], new: Mapping[Any, int]) -> dict[Any, int]:
    return {name: number - old.get(name, 0) for name, number in new.items() if number > old.get(name, 0)}

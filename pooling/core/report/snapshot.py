"""The metrics of a pool at one moment."""

from __future__ import annotations

from typing import Any, NamedTuple

from ..._console import duration, times
from .histogram import HistogramSnapshot

__all__ = ["LaneSnapshot", "PoolSnapshot", "summary"]


class LaneSnapshot(NamedTuple):
    """The figures of one lane; durations are seconds.

    ``reserve`` is the number of reserved places in force: while a limit keeps the pool too small for all, it is lower
    than that of the settings.
    """

    in_use: int
    waiting: int
    reserve: int
    weight: float
    most: int | None
    acquired: int
    timeouts: int
    refusals: int
    wait: HistogramSnapshot

    def counts(self) -> dict[str, float | None]:
        """Return the current counts and the bounds."""
        return dict(zip(self._fields[:5], self[:5]))

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as plain values."""
        return {**self._asdict(), "wait": self.wait._asdict()}


class PoolSnapshot(NamedTuple):
    """A consistent snapshot of a pool.

    ``idle + in_use + creating + checking + closing == size``. Durations are
    seconds. Counters start at the pool's first use or the last `reset`.
    """

    name: str
    timestamp: float
    duration: float
    # gauges
    size: int
    idle: int
    in_use: int
    creating: int
    checking: int
    closing: int
    waiting: int
    min_size: int
    max_size: int
    peak_in_use: int
    # counters
    acquired: int
    released: int
    created: int
    closed: dict[str, int]
    timeouts: int
    refusals: int
    turned_away: int
    errors: dict[str, int]
    exhausted: int
    validation_failures: int
    health_failures: int
    last_health_check: float | None
    orphans: int
    leaks: int
    audit_repairs: int
    # durations
    wait: HistogramSnapshot
    use: HistogramSnapshot
    create: HistogramSnapshot
    validate: HistogramSnapshot
    release: HistogramSnapshot
    lanes: dict[str, LaneSnapshot] | None = None  # by name, in a pool with lanes

    @property
    def utilization(self) -> float:
        """In use / open: 1.0 means that every open resource is in use."""
        return self.in_use / self.size if self.size else 0.0

    @property
    def saturation(self) -> float:
        """In use / ``max_size``: 1.0 means that the next borrower has to wait."""
        return self.in_use / self.max_size if self.max_size else 0.0

    @property
    def requests(self) -> int:
        """Number of acquires: served, timed out, refused, or failed with another error."""
        return self.acquired + self.timeouts + self.refusals + self.turned_away

    @property
    def error_rate(self) -> float:
        """Failed requests and errors as a fraction of the requests, 0 to 1."""
        bad = self.timeouts + self.refusals + self.turned_away + sum(self.errors.values())
        return min(1.0, bad / max(1, self.requests))

    def to_dict(self) -> dict[str, Any]:
        """Return all metrics, under our own names and under older ones.

        The older names are those of the pools that this library replaces:
        ``avg_..._ms`` are milliseconds, ``avg_connection_...`` are seconds.
        """
        own = {
            name: value._asdict() if isinstance(value, HistogramSnapshot) else value
            for name, value in self._asdict().items()
        }
        if self.lanes is None:
            del own["lanes"]
        else:
            own["lanes"] = {name: lane.to_dict() for name, lane in self.lanes.items()}
        own.update(
            utilization=self.utilization, saturation=self.saturation, error_rate=self.error_rate
        )
        return {**own, **self._older_names()}

    def _older_names(self) -> dict[str, Any]:
        failed = sum(self.errors.values())
        return {
            "duration_seconds": self.duration,
            "total_connections": self.size,
            "active_connections": self.in_use,
            "idle_connections": self.idle,
            "max_connections": self.peak_in_use,
            "waiting_requests": self.waiting,
            "connection_requests": self.requests,
            "connection_timeouts": self.timeouts,
            "connection_errors": failed,
            "total_connections_created": self.created,
            "total_connections_closed": sum(self.closed.values()),
            "avg_acquisition_time_ms": self.wait.mean * 1e3,
            "avg_release_time_ms": self.release.mean * 1e3,
            "avg_connection_acquisition_time": self.wait.mean,
            "max_connection_acquisition_time": self.wait.max,
            "pool_utilization": self.utilization,
            "pool_exhausted_count": self.exhausted,
            "health_check_failures": self.health_failures,
        }


def summary(s: PoolSnapshot) -> str:
    """Return a snapshot as text."""
    closed = ", ".join(f"{number:,} {reason}" for reason, number in sorted(s.closed.items()))
    errors = ", ".join(f"{number:,} {kind}" for kind, number in sorted(s.errors.items()))
    lines = [
        f"pool {s.name!r} over {s.duration:.1f} s",
        f"  now       {s.in_use} in use, {s.idle} idle, {s.waiting} waiting, "
        f"{s.size} open of at most {s.max_size}; peak {s.peak_in_use} in use",
        f"  requests  {s.requests:,}: {s.acquired:,} served, {s.timeouts:,} timed out, "
        f"{s.refusals:,} refused, {s.turned_away:,} other errors; exhausted {times(s.exhausted)}",
        f"  resources {s.created:,} created, {sum(s.closed.values()):,} closed"
        + (f" ({closed})" if closed else ""),
        f"  errors    {sum(s.errors.values())}" + (f" ({errors})" if errors else ""),
    ]
    for name, lane in (s.lanes or {}).items():
        lines.append(
            f"  lane      {name}: {lane.in_use} in use, {lane.waiting} waiting, {lane.acquired} served, "
            f"{lane.timeouts} timed out, {lane.refusals} refused; p95 wait {duration(lane.wait.p95)}"
        )
    for label in ("wait", "use", "create", "validate", "release"):
        h: HistogramSnapshot = getattr(s, label)
        if h.count:
            lines.append(
                f"  {label:<9} mean {duration(h.mean)}, p50 {duration(h.p50)}, "
                f"p95 {duration(h.p95)}, p99 {duration(h.p99)}, max {duration(h.max)}"
            )
    return "\n".join(lines)

"""A manager's reports on its pools: health, readiness, and a table."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ._console import Paint, duration
from ._console import table as aligned
from ._members import Member, reason_of
from .core.report.messages import printable

__all__ = [
    "DEGRADED", "DOWN", "UP", "Health", "PoolHealth", "Readiness", "Startup", "health_lines", "judge", "overall",
    "status_of", "table",
]  # fmt: skip

UP, DEGRADED, DOWN = "up", "degraded", "down"
_ROLES = {UP: "good", DEGRADED: "warning", DOWN: "bad"}


@dataclass(frozen=True)
class PoolHealth:
    """The health of one pool; true unless the pool is down.

    Attributes:
        status: ``"up"``; ``"degraded"``: works, but needs attention;
            ``"down"``: does not work.
        seconds: Time to acquire a resource and make a round trip.
        reason: Why it is not up.
        critical: Whether the application counts as down without this pool.
    """

    status: str
    seconds: float
    reason: str | None = None
    critical: bool = True

    def __bool__(self) -> bool:
        return self.status != DOWN

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON data; the latency is in milliseconds."""
        found = {"status": self.status, "latency_ms": round(self.seconds * 1e3, 3), "critical": self.critical}
        return found if self.reason is None else {**found, "reason": self.reason}


def overall(statuses: Iterable[tuple[str, bool]]) -> str:
    """Return the status of several pools together.

    Args:
        statuses: Of each pool its status, and whether it is critical.

    Returns:
        ``"down"`` if a critical pool is down, ``"up"`` if all are up, else ``"degraded"``.
    """
    found = list(statuses)
    if (DOWN, True) in found:
        return DOWN
    return UP if all(status == UP for status, _ in found) else DEGRADED


def status_of(member: Member) -> str:
    """Return the status of one pool, as far as known without contacting its server.

    It is down if it is closed, or if the last attempt to connect failed.
    """
    if member.closed or member.is_down():
        return DOWN
    return DEGRADED if member.trouble() else UP


class _Report(Mapping[str, Any]):
    """A report on each pool, by name."""

    def __init__(self, found: Mapping[str, Any]) -> None:
        self._found = dict(found)

    def __getitem__(self, name: str) -> Any:
        return self._found[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._found}>"


class Health(_Report):
    """The health of every pool by name, each a `PoolHealth`."""

    def __bool__(self) -> bool:
        return self.status != DOWN

    @property
    def status(self) -> str:
        """Overall status: down if a critical pool is down, degraded if any other is not up."""
        return overall((one.status, one.critical) for one in self.values())

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON data."""
        return {"status": self.status, "pools": {name: one.to_dict() for name, one in self.items()}}


@dataclass(frozen=True)
class Readiness:
    """Whether a pool was ready in time, the seconds it took, and the error if not."""

    ready: bool
    seconds: float
    error: BaseException | None = None

    def __bool__(self) -> bool:
        return self.ready


class Startup(_Report):
    """The result of a warm-up: a `Readiness` for every pool by name."""

    def __bool__(self) -> bool:
        return all(self.values())

    def __str__(self) -> str:
        parts = [
            printable(name) + (f" ready after {one.seconds:.2f} s" if one else f" NOT ready: {reason_of(one.error)[1]}")
            for name, one in self.items()
        ]
        return "; ".join(parts) or "no pools"


def judge(member: Member, result: object, took: float) -> PoolHealth:
    """Turn the result of a probe, or its error, into a health."""
    if isinstance(result, BaseException):
        down, reason = reason_of(result)
        return PoolHealth(DOWN if down else DEGRADED, took, reason, member.critical)
    reason = result if isinstance(result, str) else member.trouble()  # type: ignore[assignment]
    return PoolHealth(DEGRADED if reason else UP, took, reason or None, member.critical)


def table(members: Mapping[str, Member], figures: Mapping[str, dict[str, Any]], paint: Paint) -> str:
    """Return a table of all pools as text."""
    head = ("pool", "kind", "in use", "idle", "waiting", "requests", "errors", "mean wait")
    rows = [head, *(_row(name, members[name], found) for name, found in figures.items())]
    heading, *others = aligned(rows, texts=2)
    return "\n".join([paint("title", heading), *others])


def health_lines(health: Health, paint: Paint) -> list[str]:
    """Return the health of every pool, and of all together, as text.

    Args:
        health: The result of a check.
        paint: The colours.
    """
    width = max((len(printable(name)) for name in health), default=0)
    lines = []
    for name, one in health.items():
        reason = f"  {one.reason}" if one.reason else ""
        status = paint(_ROLES[one.status], f"{one.status:8}")
        lines.append(f"{status}  {printable(name):{width}}  {duration(one.seconds):>7}{reason}")
    return [*lines, f"overall: {paint(_ROLES[health.status], health.status)}"]


def _row(name: str, member: Member, found: dict[str, Any]) -> tuple[str, ...]:
    state = f"{found['in_use']}/{found['max_size'] or 'any'}"  # 0: a foreign pool without a limit
    counts = (found.get(key, 0) for key in ("idle", "waiting_requests", "connection_requests", "connection_errors"))
    wait = duration(found.get("avg_acquisition_time_ms", 0.0) / 1e3)
    shown = "closed" if member.closed else state
    return (printable(name), member.kind, shown, *(f"{number:,}" for number in counts), wait)

"""The figures of both phases, side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["table"]

Figures = Mapping[str, Any]

_ROWS: tuple[tuple[str, str, Callable[[Figures], float]], ...] = (
    ("requests/s", ",.1f", lambda f: f["done"] / f["seconds"]),
    ("latency, mean, ms", ",.1f", lambda f: f["mean"] * 1e3),
    ("latency, p99, ms", ",.1f", lambda f: f["p99"] * 1e3),
    ("HTTP connections opened, counted by the service", ",.0f", lambda f: f["accepted"]),
    ("database connections opened", ",.0f", lambda f: f["database_connections"]),
    ("CPU seconds", ",.2f", lambda f: f["cpu"]),
    ("CPU seconds per 1,000 requests", ",.2f", lambda f: 1e3 * f["cpu"] / f["done"]),
    ("peak memory above the start, MB", ",.1f", lambda f: f["memory"] / 1e6),
)


def table(unpooled: Figures, pooled: Figures) -> str:
    """Return the table: the figures of both phases and their ratio.

    Args:
        unpooled: The figures of one phase, as reported by the worker process,
            with ``accepted`` from the service. Needs at least one request.
        pooled: The figures of the other phase.
    """
    width = max(len(label) for label, *_ in _ROWS)
    lines = [f"{'':{width}}  {'unpooled':>10}  {'pooled':>10}"]
    for label, form, figure in _ROWS:
        before, after = figure(unpooled), figure(pooled)
        lines.append(
            f"{label:{width}}  {before:>10{form}}  {after:>10{form}}  {_ratio(before, after):>13}"
        )
    return "\n".join(line.rstrip() for line in lines)


def _ratio(before: float, after: float) -> str:
    if before <= 0 or after <= 0:
        return ""
    return f"{after / before:,.1f} x more" if after > before else f"{before / after:,.1f} x less"

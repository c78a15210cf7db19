"""Limits of a pool's size below ``max_size``, set by parts that share a server or measure its load."""

from __future__ import annotations

import logging
from typing import Any, Protocol

from .._fields import fields
from .._masking import shown
from .engine import Engine

__all__ = ["Budget", "attach", "limit_first", "limit_size"]

logger = logging.getLogger("pooling")


class Budget(Protocol):
    """What several pools share; it limits the size of each."""

    def attach(self, engine: Engine[Any]) -> None:
        """Limit a new pool, by name ``"budget"``."""

    def stats(self) -> dict[str, Any]:
        """Return the figures, for `Pool.stats`."""


def attach(budget: Budget | None, engine: Engine[Any]) -> Budget | None:
    """Limit a new pool by its budget, if it has one; return that.

    Raises:
        TypeError: It is none.
    """
    if budget is None:
        return None
    if not callable(getattr(budget, "attach", None)):
        raise TypeError(f"budget must be a pooling.FleetBudget, not {shown(budget)}")
    budget.attach(engine)
    return budget


def limit_first(engine: Engine[Any], by: str, most: int) -> None:
    """Limit a new pool before its first use, and again in each forked child; starts no thread."""
    with engine.lock:
        engine.state.limits.first[by] = engine.state.limits[by] = most
        engine.configure(engine.settings)


def limit_size(engine: Engine[Any], by: str, most: int | None) -> None:
    """Keep the size at ``most`` or less; the lowest of all limits and ``max_size`` counts.

    Growing serves waiters at once. After shrinking, idle resources are closed now, and the rest of the surplus
    when it is released. ``min_size`` is filled up to the limit only. A forked child begins without limits, except
    those of `limit_first`. A limit below the sum of what lanes reserve is kept, too: the lanes declared last lose
    their reserved slots, and one slot is left for those that have none; the log says so.

    Args:
        engine: The pool's.
        by: Who sets the limit; it replaces the one set before under the same name.
        most: 0 or more; ``None`` ends this limit.
    """
    engine.ensure_usable()
    with engine.lock:
        before = _lost_reserves(engine)
        if most is None:
            engine.state.limits.pop(by, None)
        else:
            engine.state.limits[by] = most
        engine.configure(engine.settings)
        engine.schedule_sweep(engine.fast.now())
        lost, size = _lost_reserves(engine), engine.state.max_size
    engine.serve()
    if lost > before:
        logger.warning(
            "pool %r: its size is limited to %d, so %d reserved slots of its lanes are given up",
            engine.name, size, lost, extra=fields("reserves_lost", engine.name, size=size, lost=lost),
        )


def _lost_reserves(engine: Engine[Any]) -> int:
    lanes = engine.state.lanes
    return 0 if lanes is None else sum(lane.settings.reserve - lane.reserve for lane in lanes.by_name.values())

"""Limits of a pool's size below ``max_size``, set by parts that share a server or measure its load."""

from __future__ import annotations

from typing import Any, Protocol

from .engine import Engine

__all__ = ["Budget", "limit_first", "limit_size"]


class Budget(Protocol):
    """What several pools share; it limits the size of each."""

    def attach(self, engine: Engine[Any]) -> None:
        """Limit a new pool, by name ``"budget"``."""

    def stats(self) -> dict[str, Any]:
        """Return the figures, for `Pool.stats`."""


def limit_first(engine: Engine[Any], by: str, most: int) -> None:
    """Limit a new pool before its first use, and again in each forked child; starts no thread."""
    with engine.lock:
        engine.state.limits.first[by] = engine.state.limits[by] = most
        engine.configure(engine.settings)


def limit_size(engine: Engine[Any], by: str, most: int | None) -> None:
    """Keep the size at ``most`` or less; the lowest of all limits and ``max_size`` counts.

    Growing serves waiters at once. After shrinking, idle resources are closed now, and the rest of the surplus
    when it is released. ``min_size`` is filled up to the limit only. A forked child begins without limits, except
    those of `limit_first`.

    Args:
        engine: The pool's.
        by: Who sets the limit; it replaces the one set before under the same name.
        most: 0 or more; ``None`` ends this limit.
    """
    engine.ensure_usable()
    with engine.lock:
        if most is None:
            engine.state.limits.pop(by, None)
        else:
            engine.state.limits[by] = most
        engine.configure(engine.settings)
        engine.schedule_sweep(engine.fast.now())
    engine.serve()

"""An observer hears of requests from one inner pool, and of sockets from others."""

from __future__ import annotations

from collections.abc import Callable

from ...core.observer import Observer

__all__ = ["OF_REQUESTS", "OF_SOCKETS", "part_of"]

OF_REQUESTS = ("acquired", "released", "exhausted", "timed_out", "refused", "leaked", "orphaned", "drained")
OF_SOCKETS = ("created", "closed", "validation_failed", "exhausted", "timed_out", "refused")


def part_of(observer: Observer, events: tuple[str, ...], name: str | None = None) -> Observer:
    """Return an observer that hands some events on, with the pool's name instead of an inner one's."""
    part = Observer()
    for event in events:
        method = getattr(observer, event)
        setattr(part, event, method if name is None else _renamed(method, name))
    return part


def _renamed(method: Callable[..., None], name: str) -> Callable[..., None]:
    return lambda pool, *args: method(name, *args)

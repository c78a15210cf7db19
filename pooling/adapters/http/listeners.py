"""An observer hears of requests from one inner pool, and of sockets from others.

Of `acquired` the `HTTPPool` tells itself: whoever waits does so in two lines.
"""

from __future__ import annotations

from collections.abc import Callable

from ...core.observer import Observer

__all__ = ["OF_REQUESTS", "OF_SOCKETS", "hears_of_leases", "part_of"]

OF_REQUESTS = ("released", "exhausted", "timed_out", "refused", "leaked", "orphaned", "drained")
OF_SOCKETS = ("created", "closed", "validation_failed", "exhausted", "timed_out", "refused")


def part_of(observer: Observer, events: tuple[str, ...], name: str | None = None) -> Observer:
    """Return an observer that hands some events on, with the pool's name instead of an inner one's."""
    part = Observer()
    for event in events:
        method = getattr(observer, event)
        setattr(part, event, method if name is None else _renamed(method, name))
    return part


def hears_of_leases(observer: Observer) -> bool:
    """Whether an observer overrides `acquired`, in its class or for itself."""
    return getattr(observer.acquired, "__func__", None) is not Observer.acquired


def _renamed(method: Callable[..., None], name: str) -> Callable[..., None]:
    return lambda pool, *args: method(name, *args)

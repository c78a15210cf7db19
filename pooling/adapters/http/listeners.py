"""Which events an observer of an `HTTPPool` receives from which inner pool.

The pool of slots notifies of requests, and each host's pool of sockets.
`acquired` and `waited` are sent by `Connections`: only it knows the wait for both.
"""

from __future__ import annotations

from collections.abc import Callable

from ...core.observer import Observer

__all__ = ["OF_REQUESTS", "OF_SOCKETS", "observes_acquired", "part_of"]

OF_REQUESTS = ("released", "exhausted", "timed_out", "refused", "leaked", "orphaned", "drained")
OF_SOCKETS = ("created", "closed", "validation_failed", "exhausted", "timed_out", "refused", "responded",
              "circuit_opened", "circuit_closed")  # fmt: skip


def part_of(observer: Observer, events: tuple[str, ...], name: str | None = None) -> Observer:
    """Return an observer that forwards some events, with the pool's name in place of the inner pool's."""
    part = Observer()
    for event in events:
        method = getattr(observer, event)
        setattr(part, event, method if name is None else _renamed(method, name))
    return part


def observes_acquired(observer: Observer) -> bool:
    """Whether an observer overrides `acquired`, in its class or on the instance."""
    return getattr(observer.acquired, "__func__", None) is not Observer.acquired


def _renamed(method: Callable[..., None], name: str) -> Callable[..., None]:
    return lambda pool, *args: method(name, *args)

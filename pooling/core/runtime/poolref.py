"""Weak references to pools, and the protocol by which the reaper and the list of pools use them."""

from __future__ import annotations

import weakref
from typing import Any, Protocol

from ..adapter import Adapter
from ..entry import Entry
from ..state import PoolState

__all__ = ["PoolRef", "Sweepable"]


class Sweepable(Protocol):
    """The operations of the reaper, a fork and the exit on a pool; `Maintenance` implements it."""

    @property
    def engine(self) -> Any:
        """The pool's `Engine`."""

    def sweep(self, due: float, now: float) -> bool:
        """Do all work that is due; return whether the request was current."""

    def reclaim(self, entry: Entry) -> None:
        """Close the resource of an entry whose token is gone."""

    def after_fork(self) -> None:
        """In a child: start empty."""

    def threads_patched(self) -> None:
        """Follow gevent, which has replaced the threading primitives."""

    def close_idle(self) -> None:
        """At exit: close idle resources."""

    def go_on_as_last_thread(self) -> None:
        """During finalization: never wait for another thread."""


class PoolRef(weakref.ref):  # type: ignore[type-arg]
    """A weak reference to a pool, with everything needed to close its idle resources.

    Its callback puts it into the reaper's mailbox when the pool is garbage collected.
    """

    __slots__ = ("state", "adapter", "runtime")

    state: PoolState
    adapter: Adapter[Any]
    runtime: Any

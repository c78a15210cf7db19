"""`SplitPool`: a pool of writers and a pool of readers, with the interface of one pool."""

from __future__ import annotations

import functools
import time
import weakref
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, TypeVar

from ...core.clock import seconds
from ...core.lease import Lease
from ...core.managed import ManagedPool
from ...core.pool import Pool
from ...core.report.holders import Holder
from ...core.report.metrics import PoolMetrics
from ...settings import PoolSettings

__all__ = ["SplitPool", "resized"]

R = TypeVar("R")
P = ParamSpec("P")


def _on_each(method: Callable[Concatenate[Pool[Any], P], None]) -> Callable[Concatenate[SplitPool[Any], P], None]:
    """Return a method that calls one of `Pool` on the writers, then on the readers."""

    def call(self: SplitPool[Any], /, *args: P.args, **named: P.kwargs) -> None:
        for pool in self._pools:
            method(pool, *args, **named)

    functools.update_wrapper(call, method)  # with the docstring
    return call


class SplitPool(ManagedPool[R]):
    """A pool of writers and, optionally, a pool of readers, with the interface of one pool.

    The name, the settings and the metrics are those of the writers.

    Args:
        writer: The pool that `acquire` takes resources from.
        readers: A pool of read-only resources for the same server or file.
    """

    def __init__(self, writer: Pool[R], readers: Pool[R] | None) -> None:
        self.writer = writer
        """The pool of connections that may write; without ``readers``, all connections."""
        self.readers = readers
        """The pool of connections that only read; ``None`` if there are none."""
        self._pools = (writer,) if readers is None else (writer, readers)
        for pool in self._pools:
            pool.engine.owner = None  # a part of this pool
        writer.engine.owner = weakref.ref(self)

    # -- both pools -----------------------------------------------------------------

    drain = _on_each(Pool.drain)
    check = _on_each(Pool.check)
    pause = _on_each(Pool.pause)
    resume = _on_each(Pool.resume)
    check_health_now = _on_each(Pool.check_health_now)
    add_observer = _on_each(Pool.add_observer)
    remove_observer = _on_each(Pool.remove_observer)

    def open(self, timeout: float | None = None) -> None:
        """Warm up both pools, see `Pool.open`.

        Args:
            timeout: Seconds to wait for both together; ``None`` means ``acquire_timeout``.

        Raises:
            PoolTimeout, CreateFailed, PoolClosed: As for `Pool.open`.
        """
        limit = self.settings.acquire_timeout if timeout is None else seconds(timeout)
        began = time.monotonic()
        for pool in self._pools:
            pool.open(max(0.0, limit - (time.monotonic() - began)))

    def close(self, timeout: float | None = None, *, interrupt: bool = True) -> None:
        """Close both pools for good, see `Pool.close`.

        Args:
            timeout: Seconds to wait for both together; ``None`` means ``close_timeout``.
            interrupt: Whether to interrupt connections still in use after that.
        """
        limit = self.settings.close_timeout if timeout is None else seconds(timeout)
        began = time.monotonic()
        for pool in self._pools:
            pool.close(max(0.0, limit - (time.monotonic() - began)), interrupt=interrupt)

    def holders(self) -> list[Holder]:
        """Return who holds a connection of either pool, see `Pool.holders`; longest first."""
        found = [holder for pool in self._pools for holder in pool.holders()]
        return sorted(found, key=lambda holder: -holder.seconds)

    def exhaustion(self) -> str | None:
        """Return how many are in use and wait, as text, if every connection is in use; otherwise ``None``.

        With ``readers``, a writer at work is no exhaustion unless others wait for it.
        """
        text = self.writer.exhaustion()
        if self.readers is None:
            return text
        if text is not None and self.writer.engine.state.waiters:
            return f"writer {text}"
        text = self.readers.exhaustion()
        return None if text is None else f"readers {text}"

    def stats(self) -> dict[str, Any]:
        """Return the counts and bounds of the writers, see `Pool.stats`; under ``"readers"``, those of the readers."""
        found = self.writer.stats()
        return found if self.readers is None else {**found, "readers": self.readers.stats()}

    # -- sizes: of the readers, if there are any --------------------------------------

    def reconfigure(self, **changes: Any) -> None:
        """Change settings of a running pool, see `Pool.reconfigure`.

        With ``readers``, `resize` and sizes concern the readers; the number of
        writers stays the same.

        Raises:
            ValueError, TypeError: As for `PoolSettings`; nothing was changed.
        """
        if self.readers is not None:
            self.readers.reconfigure(**changes)  # first: it raises before anything is changed
            mine = resized(self.readers.settings, self.settings.max_size)
            changes |= {"max_size": mine.max_size, "min_size": mine.min_size, "max_idle": mine.max_idle}
        self.writer.reconfigure(**changes)

    def fill(self, size: int | None = None) -> None:
        """Create connections ahead of need without waiting for them, see `Pool.fill`.

        Args:
            size: How many there should be in all: readers, if there are any.
                ``None`` means ``min_size``.

        Raises:
            ValueError: More than ``max_size``, or less than 0.
        """
        if self.readers is None:
            self.writer.fill(size)
        else:
            self.readers.fill(size)
            self.writer.fill()

    # -- the writers ------------------------------------------------------------------

    def acquire(self, timeout: float | None = None, _depth: int = 1, lane: str | None = None) -> Lease[R]:
        """Take a connection, see `Pool.acquire`; with ``readers``, one that may write.

        Args:
            timeout: Seconds to wait; ``None`` means the pool's ``acquire_timeout``.
            lane: As for `Pool.acquire`.

        Raises:
            PoolTimeout: None came in time. The message states counts and holders.
            PoolUnavailable, TooManyWaiting, PoolClosed, CreateFailed, ValueError, TypeError: As for `Pool.acquire`.
        """
        return self.writer.acquire(timeout, _depth + 1, lane)

    @property
    def name(self) -> str:
        """The pool's name in messages and metrics."""
        return self.writer.name

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self.writer.closed

    @property
    def settings(self) -> PoolSettings:
        """The settings in force; sizes are those of the writers."""
        return self.writer.settings

    @property
    def metrics(self) -> PoolMetrics:
        """Counters and durations of the writers, see `PoolMetrics`; ``readers.metrics`` are those of the readers."""
        return self.writer.metrics

    def __repr__(self) -> str:
        counts = repr(self.writer).partition(" ")[2][:-1]
        readers = "" if self.readers is None else f"; readers {self.readers!r}"
        return f"<{type(self).__name__} {counts}{readers}>"


def resized(settings: PoolSettings, size: int) -> PoolSettings:
    """Return settings with another ``max_size``, and with other sizes that fit it."""
    idle = settings.max_idle
    return settings.replace(
        max_size=size,
        min_size=min(settings.min_size, size),
        max_idle=None if idle is None else max(idle, min(settings.min_size, size)),
    )

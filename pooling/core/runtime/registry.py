"""The live pools of this process, and their background threads."""

from __future__ import annotations

import queue
import weakref
from collections.abc import Callable

from ..clock import Clock
from .gevent import may_move
from .immortal import prepare
from .poolref import PoolRef, Sweepable
from .reaper import Reaper
from .workers import Workers

__all__ = ["Runtime", "all_runtimes", "pools", "runtime_of", "runtimes"]


class Runtime:
    """The background threads of all pools that share a clock; outside of tests, of all pools.

    Attributes:
        current_workers, current_reaper: As `workers` and `reaper`, without following gevent: for forks, the exit, and
            those that only ask whether they run.
    """

    def __init__(
        self,
        clock: Clock,
        workers: Callable[[], Workers] = Workers,
        reaper: Callable[[Clock, dict[int, PoolRef]], Reaper] = Reaper,
    ) -> None:
        self.clock = clock
        self.pools: dict[int, PoolRef] = {}
        self._make_workers = workers
        self._make_reaper = reaper
        self.renew()
        prepare()

    def renew(self) -> None:
        """Start with no thread, no job and no scheduled sweep."""
        self.queue_class = queue.SimpleQueue
        self.current_workers = self._make_workers()
        self.current_reaper = self._make_reaper(self.clock, self.pools)
        self.current_workers.run_at_exit = self.current_reaper.do

    @property
    def workers(self) -> Workers:
        """The threads for slow work: creating, validating, resetting, closing."""
        if queue.SimpleQueue is not self.queue_class:
            self.settle()
        return self.current_workers

    @property
    def reaper(self) -> Reaper:
        """The thread for scheduled work."""
        if queue.SimpleQueue is not self.queue_class:
            self.settle()
        return self.current_reaper

    def settle(self) -> None:
        """Follow gevent if it has replaced the threading primitives; every slow path calls this.

        Pools keep their resources. Native threads that are still working use
        the old primitives until a greenlet has called this.
        """
        if queue.SimpleQueue is self.queue_class or not may_move():
            return
        reaper = self.current_reaper
        self.renew()
        reaper.hand_off_to(self.current_reaper)
        for reference in list(self.pools.values()):
            pool = reference()
            if pool is not None:
                pool.threads_patched()


runtimes: list[Runtime] = []
"""The runtimes of the clocks in use; they live as long as the process."""

test_runtimes: weakref.WeakSet[Runtime] = weakref.WeakSet()
"""The runtimes of test clocks. Internal."""


def all_runtimes() -> list[Runtime]:
    """Return the runtimes of this process, including those of test clocks."""
    return [*runtimes, *test_runtimes]


def runtime_of(clock: Clock) -> Runtime:
    """Return the background threads of the pools that use this clock."""
    own = getattr(clock, "runtime", None)  # a test clock has its own
    if own is not None:
        test_runtimes.add(own)
        return own  # type: ignore[no-any-return]
    for runtime in runtimes:
        if runtime.clock is clock:
            return runtime
    runtimes.append(Runtime(clock))
    return runtimes[-1]


def pools() -> list[Sweepable]:
    """Return the live pools of this process, as `Sweepable` objects."""
    found = []
    for runtime in all_runtimes():
        for reference in list(runtime.pools.values()):
            pool = reference()
            if pool is not None:
                found.append(pool)
    return found

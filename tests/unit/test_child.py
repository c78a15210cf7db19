"""P9, state by state: what a child inherits of its parent's pools.

No process is forked here: the page is wiped by the test, as the kernel does it in a
child, and the next use has to notice. `tests/faults/test_fork.py` forks.
"""

from __future__ import annotations

import itertools
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import pytest

from pooling import Lease, LeaseError, Pool, PoolClosed, PoolError, PoolTimeout
from pooling.core.runtime import fork as fork_module
from pooling.core.runtime import registry
from pooling.core.runtime.fork import SAME_PROCESS
from pooling.testing import FakeAdapter, FakeResource, VirtualClock
from tests.unit.conftest import Make, Task, fill, run_jobs

Fork = Callable[[], None]


class Struck(BaseException):
    """Raised by a signal handler, anywhere."""


@pytest.fixture
def fork(monkeypatch: pytest.MonkeyPatch, clock: VirtualClock, manual: VirtualClock) -> Iterator[Fork]:
    """Continue as if in a child, with the pools of this test's clocks only."""
    monkeypatch.setattr(registry, "runtimes", [])
    monkeypatch.setattr(registry, "test_runtimes", {clock.runtime, manual.runtime})

    def fork() -> None:
        SAME_PROCESS[0] = 0

    yield fork
    SAME_PROCESS[0] = 1


def use_all(pool: Pool[Any]) -> None:
    """Acquire ``max_size`` resources, and check that the pool was empty before."""
    manual = isinstance(getattr(pool.engine.runtime.workers, "jobs", None), list)
    if manual:
        fill(pool, pool.settings.max_size)
    leases = [pool.acquire(timeout=0 if manual else 1) for _ in range(pool.settings.max_size)]
    with pytest.raises(PoolTimeout):
        pool.acquire(timeout=0)
    snapshot = pool.metrics.snapshot()
    assert (snapshot.created, snapshot.acquired, snapshot.orphans) == (len(leases), len(leases), 0)
    for lease in leases:
        lease.release()
    if manual:
        run_jobs(pool.engine.clock)  # type: ignore[arg-type]
    assert pool.stats()["idle"] == pool.stats()["size"] == len(leases)


def test_an_inherited_lease_is_not_active(make: Make, fork: Fork) -> None:
    inherited = make().acquire()
    fork()
    assert not inherited.active


def idle(pool: Pool[Any], clock: VirtualClock) -> None:
    pass


def lent(pool: Pool[Any], clock: VirtualClock) -> Lease[Any]:
    return pool.acquire()


def checking(pool: Pool[Any], clock: VirtualClock) -> None:
    pool.check()
    assert pool.stats()["checking"] == 1


def resetting(pool: Pool[Any], clock: VirtualClock) -> None:
    pool.acquire().release()
    assert pool.stats()["checking"] == 1


def closing(pool: Pool[Any], clock: VirtualClock) -> None:
    pool.acquire().discard()
    assert pool.stats()["closing"] == 1


def creating(pool: Pool[Any], clock: VirtualClock) -> None:
    pool.fill(2)
    assert pool.stats()["creating"] == 1


def forgotten(pool: Pool[Any], clock: VirtualClock) -> None:
    """The reaper has not handled it yet."""
    pool.acquire()


def drained(pool: Pool[Any], clock: VirtualClock) -> None:
    pool.drain()


def paused(pool: Pool[Any], clock: VirtualClock) -> None:
    pool.pause()


def shrunk(pool: Pool[Any], clock: VirtualClock) -> Lease[Any]:
    lease = pool.acquire()
    pool.resize(1)
    pool.resize(2)
    return lease


STATES = [idle, lent, checking, resetting, closing, creating, forgotten, drained, paused, shrunk]


@pytest.mark.parametrize("state", STATES)
def test_pools_are_empty_in_a_child(
    make: Make, manual: VirtualClock, fork: Fork, state: Callable[[Pool[Any], VirtualClock], Any]
) -> None:
    """The parent's resources are neither used nor closed, but abandoned, once."""
    adapter = FakeAdapter(enforces_timeouts=False)
    pool = make(clock=manual, adapter=adapter)
    (parents,) = fill(pool, 1)
    kept = state(pool, manual)
    fork()
    assert pool.stats() is not None and pool.engine.ensure_usable() is None
    assert pool.stats()["size"] == pool.stats()["waiting"] == 0
    use_all(pool)
    manual.settle()
    assert adapter.calls["abandon"] == 1
    assert not parents.closed and not parents.interrupted
    assert pool.stats()["size"] == 2 and adapter.made == 3
    del kept


def test_inherited_lease_is_refused(make: Make, fork: Fork) -> None:
    pool = make()
    lease, entered = pool.acquire(), pool.acquire()
    with entered:
        fork()
        for use in ("release", "discard", "detach", "__enter__"):
            with pytest.raises(LeaseError, match="fork"):
                getattr(lease, use)()
        with pytest.raises(LeaseError, match="fork"):
            assert lease.resource
        use_all(pool)
    del entered, lease
    assert pool.stats()["idle"] == pool.stats()["size"] == 2


def test_leaving_an_inherited_block_releases_nothing(make: Make, fork: Fork) -> None:
    """Whether or not the child has used the pool before."""
    pool = make()
    with pool.acquire() as parents:
        fork()
    with pool.acquire() as mine:
        assert mine is not parents
        fork()
        pool.acquire().release()
    assert pool.stats()["size"] == pool.stats()["idle"] == 1


def test_waiter_that_is_forked_queues_again_in_the_child(
    make: Make, adapter: FakeAdapter, clock: VirtualClock, fork: Fork
) -> None:
    """A signal handler forked: the waiting thread is the child's only one."""
    pool = make(max_size=1)
    lease = pool.acquire()
    waiting = Task(pool.acquire, 5)
    clock.until_parked(1)
    fork()
    mine = pool.acquire()
    resource = mine.resource
    mine.release()
    assert waiting.result().resource is resource
    assert not pool.engine.state.waiters
    assert lease is not None and adapter.calls["abandon"] == 1


def test_creation_that_continues_in_a_child_is_closed(
    make: Make, adapter: FakeAdapter, fork: Fork
) -> None:
    """A greenlet goes on in the child: its creation was begun by the parent."""
    pool = make()
    original = adapter.create

    def create() -> FakeResource:
        adapter.create = original  # type: ignore[method-assign]
        resource = original()
        fork()
        use_all(pool)
        return resource

    adapter.create = create  # type: ignore[method-assign]
    pool.fill(1)
    assert adapter.calls["abandon"] == 1 and adapter.closed == 0
    assert pool.stats()["size"] == 2


def test_lock_held_by_another_thread_at_fork_does_not_block_the_child(make: Make, fork: Fork) -> None:
    pool = make()
    held, release = threading.Event(), threading.Event()

    def hold() -> None:
        with pool.engine.lock:
            held.set()
            assert release.wait(30)

    holder = Task(hold)
    assert held.wait(30)
    fork()
    used = Task(use_all, pool)
    used.result()
    release.set()
    holder.result()


def test_destructor_that_acquires_during_the_fork_handler_is_refused(
    make: Make, adapter: FakeAdapter, fork: Fork
) -> None:
    pool = make()
    pool.acquire().release()
    refused: list[BaseException] = []

    def abandon(resource: FakeResource) -> None:  # called by the handler
        with pytest.raises(PoolError, match="destructor") as raised:
            pool.acquire()
        refused.append(raised.value)

    adapter.abandon = abandon  # type: ignore[method-assign]
    fork()
    use_all(pool)
    assert len(refused) == 1


class Interruption:
    """Raises at the nth line of the fork handler that this thread runs."""

    def __init__(self, line: int) -> None:
        self.left = line

    def __enter__(self) -> None:
        sys.settrace(self.trace)

    def __exit__(self, *exc_info: object) -> None:
        sys.settrace(None)

    def trace(self, frame: FrameType, event: str, argument: object) -> Any:
        if frame.f_code.co_filename != fork_module.__file__:
            return None
        if event == "line":
            self.left -= 1
            if self.left < 0:
                sys.settrace(None)
                raise Struck
        return self.trace


def test_interrupted_fork_handler_starts_again_at_the_next_use(make: Make, fork: Fork) -> None:
    """At whichever line the exception is raised."""
    for line in itertools.count():
        server, abandoned = FakeAdapter(), set[FakeResource]()
        server.abandon = abandoned.add  # type: ignore[method-assign]
        pool = make(adapter=server)
        fill(pool, 1)
        lease, before = pool.acquire(), pool.acquire()
        before.release()
        fork()
        try:
            with Interruption(line):
                pool.engine.ensure_usable()
        except Struck:
            struck = True
        else:
            struck = False
        use_all(pool)
        assert (len(abandoned), server.closed) == (2, 0), line
        with pytest.raises(LeaseError):
            lease.release()
        if not struck:
            break
    assert line > 20, "the handler's lines were not seen"


def test_failing_abandon_does_not_prevent_the_others(
    make: Make, adapter: FakeAdapter, fork: Fork
) -> None:
    pool = make()
    fill(pool, 2)
    adapter.fail("abandon", OSError("no"))
    fork()
    use_all(pool)
    assert adapter.calls["abandon"] == 2


def test_closed_pool_is_closed_in_a_child_too(make: Make, fork: Fork) -> None:
    pool = make()
    fill(pool, 1)
    pool.close()
    fork()
    with pytest.raises(PoolClosed):
        pool.acquire()


def test_child_does_not_inherit_an_outage(make: Make, adapter: FakeAdapter, fork: Fork) -> None:
    pool = make()
    adapter.fail("create", OSError("down"))
    with pytest.raises(PoolError):
        pool.acquire(timeout=0)
    assert pool.stats()["down"]
    fork()
    use_all(pool)
    assert pool.stats()["down"] is None


def test_metrics_object_kept_across_a_fork_shows_the_childs_figures(make: Make, fork: Fork) -> None:
    pool = make()
    metrics = pool.metrics
    pool.acquire().release()
    fork()
    use_all(pool)
    assert metrics.snapshot().acquired == pool.metrics.snapshot().acquired == 2


def test_parents_reaper_does_nothing_in_a_child(
    make: Make, adapter: FakeAdapter, clock: VirtualClock, fork: Fork
) -> None:
    """Its messages and scheduled sweeps belong to the parent."""
    pool = make(idle_timeout=5)
    fill(pool, 1)
    pool.acquire()  # and dropped: a message
    inherited = clock.runtime.reaper
    fork()
    pool.engine.ensure_usable()
    clock.advance(60)
    assert inherited.successor is clock.runtime.reaper
    assert adapter.closed == 0
    use_all(pool)
    clock.advance(60)
    assert pool.stats()["size"] == 0 and adapter.closed == 2


def test_pool_dropped_in_a_child_closes_only_the_childs_resources(
    make: Make, adapter: FakeAdapter, clock: VirtualClock, fork: Fork
) -> None:
    pool = make()
    (parents,) = fill(pool, 1)
    fork()
    use_all(pool)
    del pool
    clock.settle()
    assert adapter.closed == 2 and not parents.closed

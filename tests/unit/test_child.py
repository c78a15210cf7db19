"""P9, state by state: what a child finds of its parent's pools, and what it does not.

No process is forked here: the page is wiped by hand, as the kernel does it in a
child, and the next use has to notice. `tests/faults/test_fork.py` forks.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
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
    """What a signal handler raises anywhere."""


@pytest.fixture
def fork(monkeypatch: pytest.MonkeyPatch, clock: VirtualClock, manual: VirtualClock) -> Iterator[Fork]:
    """Go on as a child, with the pools of this test's clocks alone."""
    monkeypatch.setattr(registry, "runtimes", [])
    monkeypatch.setattr(registry, "_guests", {clock.runtime, manual.runtime})

    def fork() -> None:
        SAME_PROCESS[0] = 0

    yield fork
    SAME_PROCESS[0] = 1


def use_all(pool: Pool[Any]) -> None:
    """Borrow as many as there can be, and see that nothing was there before."""
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
    """The reaper has yet to hear of it."""
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
    """And what its parent has is neither used, nor closed, but abandoned, once."""
    adapter = FakeAdapter(bounded=False)
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


def test_an_inherited_lease_is_refused(make: Make, fork: Fork) -> None:
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


def test_leaving_the_block_of_ones_parent_puts_nothing_back(make: Make, fork: Fork) -> None:
    """Neither where the child has used the pool before, nor where it has not."""
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
    """A signal's handler forked: the thread that waits is the one that the child has."""
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
    """A greenlet lives on there: what it makes was begun by the parent."""
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
    make: Make, fork: Fork, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = make()
    refused: list[BaseException] = []
    original = fork_module._invalidate

    def disown(*args: Any) -> None:
        with pytest.raises(PoolError, match="destructor") as raised:
            pool.acquire()
        refused.append(raised.value)
        original(*args)

    monkeypatch.setattr(fork_module, "_invalidate", disown)
    fork()
    use_all(pool)
    assert len(refused) == 1


@pytest.mark.parametrize("step", ["_renew_in_child", "_invalidate", "_abandon_inherited", "_unowned_token"])
def test_interrupted_fork_handler_starts_again_at_the_next_use(
    make: Make, adapter: FakeAdapter, fork: Fork, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    pool = make()
    fill(pool, 1)
    lease, before = pool.acquire(), pool.acquire()
    before.release()
    original = getattr(fork_module, step)

    def strike(*args: Any) -> None:
        monkeypatch.setattr(fork_module, step, original)
        raise Struck

    monkeypatch.setattr(fork_module, step, strike)
    fork()
    with pytest.raises(Struck):
        pool.acquire(timeout=1)
    use_all(pool)
    assert adapter.calls["abandon"] == 2 and adapter.closed == 0
    with pytest.raises(LeaseError):
        lease.release()


def test_what_cannot_be_abandoned_keeps_nobody_from_the_rest(
    make: Make, adapter: FakeAdapter, fork: Fork
) -> None:
    pool = make()
    fill(pool, 2)
    adapter.fail("abandon", OSError("no"))
    fork()
    use_all(pool)
    assert adapter.calls["abandon"] == 2


def test_a_closed_pool_is_closed_in_a_child_too(make: Make, fork: Fork) -> None:
    pool = make()
    fill(pool, 1)
    pool.close()
    fork()
    with pytest.raises(PoolClosed):
        pool.acquire()


def test_an_outage_of_the_parents_is_not_the_childs(make: Make, adapter: FakeAdapter, fork: Fork) -> None:
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


def test_the_parents_reaper_does_nothing_in_a_child(
    make: Make, adapter: FakeAdapter, clock: VirtualClock, fork: Fork
) -> None:
    """What was in its mailbox, or due, is the parent's to do."""
    pool = make(idle_timeout=5)
    fill(pool, 1)
    pool.acquire()  # and forgotten: a message
    inherited = clock.runtime.reaper
    fork()
    pool.engine.ensure_usable()
    clock.advance(60)
    assert inherited._successor is clock.runtime.reaper
    assert adapter.closed == 0
    use_all(pool)
    clock.advance(60)
    assert pool.stats()["size"] == 0 and adapter.closed == 2


def test_a_pool_that_is_dropped_in_a_child_closes_what_the_child_made(
    make: Make, adapter: FakeAdapter, clock: VirtualClock, fork: Fork
) -> None:
    pool = make()
    (parents,) = fill(pool, 1)
    fork()
    use_all(pool)
    del pool
    clock.settle()
    assert adapter.closed == 2 and not parents.closed

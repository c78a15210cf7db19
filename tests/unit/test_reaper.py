"""Work that falls due by itself: ages, leaks, hung work, the audit."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from pooling import Pool, PoolSettings, PoolTimeout
from pooling.core.clock import SYSTEM, SystemClock
from pooling.core.runtime.reaper import Reaper
from pooling.core.runtime.registry import Runtime
from pooling.core.schedule import AUDIT
from pooling.testing import FakeAdapter, VirtualClock
from tests.unit.conftest import Make, Task, collect, fill, lent_elsewhere, run_jobs


def closed(pool: Pool[Any]) -> dict[str, int]:
    return pool.metrics.snapshot().closed


def size(pool: Pool[Any]) -> int:
    return int(pool.stats()["size"])


# -- idle_timeout -------------------------------------------------------------------------


def test_idle_resources_are_closed_after_idle_timeout(make: Make, clock: VirtualClock) -> None:
    pool = make(max_size=3, idle_timeout=60)
    fill(pool, 3)
    clock.advance(59.9)
    assert size(pool) == 3
    clock.advance(0.1)
    assert size(pool) == 0
    assert closed(pool) == {"idle_timeout": 3}


def test_idle_time_begins_when_the_creation_has_ended(make: Make, manual: VirtualClock) -> None:
    pool = make(max_size=3, idle_timeout=60, clock=manual)
    pool.fill(1)
    manual.advance(20)
    run_jobs(manual)
    manual.advance(59)
    assert size(pool) == 1
    manual.advance(1)
    run_jobs(manual)
    assert size(pool) == 0


def test_idle_timeout_keeps_min_size(make: Make, adapter: FakeAdapter, clock: VirtualClock) -> None:
    pool = make(min_size=2, max_size=5, idle_timeout=60, max_lifetime=None)
    fill(pool, 5)
    clock.advance(1000)
    assert (size(pool), adapter.made) == (2, 5)  # and not closed and made again


def test_surplus_reaches_its_idle_timeout_under_steady_use(make: Make, clock: VirtualClock) -> None:
    """The stack lends the same few resources, and the reaper does not change their order."""
    pool = make(max_size=10, idle_timeout=60, max_lifetime=None)
    resources = fill(pool, 10)
    for _ in range(29):
        with pool.acquire(), pool.acquire():
            clock.advance(1)
        clock.advance(1)
    assert size(pool) == 10
    clock.advance(2)
    with pool.acquire() as one, pool.acquire() as two:
        assert [one, two] == resources[:-3:-1]
    assert closed(pool) == {"idle_timeout": 8}


def test_use_restarts_the_idle_timeout(make: Make, clock: VirtualClock) -> None:
    pool = make(idle_timeout=60)
    for _ in range(5):
        pool.acquire().release()
        clock.advance(59)
    assert size(pool) == 1
    clock.advance(1)
    assert size(pool) == 0


def test_resource_in_use_is_not_closed_as_idle(make: Make, clock: VirtualClock) -> None:
    pool = make(idle_timeout=60)
    with pool.acquire():
        clock.advance(1000)
    clock.advance(59)
    assert size(pool) == 1
    clock.advance(1)
    assert size(pool) == 0


def test_without_idle_timeout_idle_resources_are_kept(make: Make, clock: VirtualClock) -> None:
    pool = make(idle_timeout=None, max_lifetime=None)
    fill(pool, 2)
    clock.advance(1e6)
    assert size(pool) == 2


def test_resources_in_use_count_for_min_size(make: Make, clock: VirtualClock) -> None:
    pool = make(min_size=1, max_size=2, idle_timeout=60, max_lifetime=None)
    fill(pool, 2)
    with pool.acquire():
        clock.advance(60)
        assert size(pool) == 1
    assert closed(pool) == {"idle_timeout": 1}


# -- lifetime -----------------------------------------------------------------------------


def test_idle_resource_is_closed_at_its_max_lifetime(make: Make, clock: VirtualClock) -> None:
    pool = make(max_lifetime=100, idle_timeout=None)
    fill(pool, 2)
    clock.advance(99.9)
    assert size(pool) == 2
    clock.advance(0.1)
    assert closed(pool) == {"lifetime": 2}


def test_expired_resource_is_replaced_below_min_size(
    make: Make, clock: VirtualClock
) -> None:
    pool = make(min_size=2, max_lifetime=100)
    pool.open()
    clock.advance(100)
    assert {pool.acquire().resource.number, pool.acquire().resource.number} == {3, 4}


def test_resources_needed_for_min_size_are_replaced_before_they_expire(make: Make, manual: VirtualClock) -> None:
    """So that no borrower waits for a creation because a resource has expired."""
    pool = make(min_size=2, max_size=4, max_lifetime=100, clock=manual)
    fill(pool, 2)
    manual.advance(98)
    assert (manual.jobs, pool.stats()["idle"]) == (2, 2)
    run_jobs(manual)
    manual.advance(2)
    run_jobs(manual)
    assert closed(pool) == {"lifetime": 2}
    assert {pool.acquire(0).resource.number, pool.acquire(0).resource.number} == {3, 4}


@pytest.mark.parametrize("lifetime", [0.5, 1, 3])
def test_short_lifetime_does_not_cause_endless_replacement(
    make: Make, adapter: FakeAdapter, clock: VirtualClock, lifetime: float
) -> None:
    pool = make(min_size=1, max_size=10, max_lifetime=lifetime)
    pool.open()
    clock.advance(5 * lifetime)
    assert adapter.made <= 11
    assert adapter.most_open <= 2


def test_use_does_not_extend_the_lifetime(make: Make, clock: VirtualClock) -> None:
    pool = make(max_lifetime=100)
    for _ in range(20):
        pool.acquire().release()
        clock.advance(9.9)
    assert closed(pool) == {"lifetime": 1}


@pytest.mark.parametrize(("drawn", "ends"), [(0.0, 100), (0.5, 90), (1.0, 80)])
def test_lifetime_jitter_is_subtracted(
    make: Make, clock: VirtualClock, monkeypatch: pytest.MonkeyPatch, drawn: float, ends: float
) -> None:
    monkeypatch.setattr(random, "random", lambda: drawn)
    pool = make(max_lifetime=100, lifetime_jitter=0.2, idle_timeout=None)
    fill(pool, 1)
    clock.advance(ends - 0.1)
    assert size(pool) == 1
    clock.advance(0.1)
    assert size(pool) == 0


def test_resources_created_together_expire_apart(make: Make, clock: VirtualClock) -> None:
    random.seed(7)
    pool = make(max_size=100, max_lifetime=100, lifetime_jitter=0.1, idle_timeout=None)
    fill(pool, 100)
    clock.advance(89.9)
    assert size(pool) == 100
    sizes = []
    for _ in range(10):
        clock.advance(1)
        sizes.append(size(pool))
    assert sizes == sorted(set(sizes), reverse=True)  # some in each second
    clock.advance(0.1)
    assert size(pool) == 0


def test_without_max_lifetime_resources_never_expire(make: Make, clock: VirtualClock) -> None:
    pool = make(max_lifetime=None, idle_timeout=None, lifetime_jitter=0.5)
    pool.acquire().release()
    clock.advance(1e9)
    assert pool.acquire().resource.number == 1


# -- leaks --------------------------------------------------------------------------------


def test_each_lease_is_a_leak_after_its_own_timeout(make: Make, clock: VirtualClock) -> None:
    pool = make(max_size=3, leak_timeout=30)
    leases = []
    counts = []
    for _ in range(3):
        leases.append(pool.acquire())
        clock.advance(10)
    for _ in range(4):
        counts.append(pool.metrics.snapshot().leaks)
        clock.advance(10)
    assert counts == [1, 2, 3, 3]
    for lease in leases:
        lease.release()


def test_leaked_resource_stays_with_its_holder(make: Make, clock: VirtualClock) -> None:
    pool = make(leak_timeout=30)
    with pool.acquire() as resource:
        clock.advance(1000)
        assert resource.alive
        assert not resource.interrupted
    assert pool.metrics.snapshot().leaks == 1
    assert pool.stats()["idle"] == 1


def test_new_leak_timeout_applies_to_current_leases(make: Make, clock: VirtualClock) -> None:
    pool = make()
    with pool.acquire():
        clock.advance(100)
        pool.reconfigure(leak_timeout=30)
        clock.settle()
        assert pool.metrics.snapshot().leaks == 1


# -- hung work ----------------------------------------------------------------------------


def test_hung_creation_frees_its_slot(
    make: Make, adapter: FakeAdapter, manual: VirtualClock
) -> None:
    pool = make(max_size=1, create_timeout=30, clock=manual)
    waiting = Task(pool.acquire, 60)
    manual.until_parked(1)
    manual.advance(29.9)
    assert pool.stats()["creating"] == 1
    manual.advance(0.1)
    assert pool.stats()["down"] == "TimeoutError: creating a thing took over 30 s"
    manual.advance(1)
    manual.run_job(1)  # the next attempt, while the first still hangs
    assert waiting.result().resource.number == 1
    assert pool.metrics.snapshot().errors == {"TimeoutError": 1}
    manual.run_job(0)
    run_jobs(manual)


def test_resource_created_after_its_time_limit_is_closed(make: Make, adapter: FakeAdapter) -> None:
    """The job hangs in the adapter, on a real worker, until its time is over."""
    clock = VirtualClock(workers="threads")
    pool = make(max_size=1, create_timeout=30, clock=clock)
    adapter.hold("create")
    adapter.hold("close")
    pool.fill(1)
    adapter.until_held("create")
    clock.advance(30)
    assert size(pool) == 0
    adapter.let_go("create")
    adapter.until_held("close")
    adapter.let_go("close")
    assert pool.metrics.snapshot().created == 0


def test_hung_close_frees_its_slot(make: Make, adapter: FakeAdapter) -> None:
    """It is abandoned; if it returns after all, that changes nothing."""
    clock = VirtualClock(workers="threads")
    pool = make(adapter=adapter, max_size=1, close_timeout=5, clock=clock)
    lease = pool.acquire()
    adapter.hold("close")
    lease.discard()
    adapter.until_held("close")
    clock.advance(4.9)
    assert pool.stats()["closing"] == 1
    with pytest.raises(PoolTimeout):
        pool.acquire(0)
    clock.advance(0.1)
    assert (size(pool), adapter.calls["abandon"]) == (0, 1)
    assert closed(pool) == {"close_timeout": 1}
    adapter.let_go("close")
    assert pool.acquire().resource.number == 2
    assert closed(pool) == {"close_timeout": 1}


def _reset(pool: Pool[Any], clock: VirtualClock) -> None:
    pool.acquire().release()


def _validate(pool: Pool[Any], clock: VirtualClock) -> None:
    pool.check()


def _fail(pool: Pool[Any], clock: VirtualClock) -> None:
    with pytest.raises(KeyError), pool.acquire():
        raise KeyError


@pytest.mark.parametrize(
    ("way", "reset_timeout", "health_check_timeout", "failures"),
    [(_reset, 5, 3, 0), (_validate, 9, 5, 1), (_fail, 2, 3, 1)],
    ids=["reset", "health check", "both"],
)
def test_hung_check_frees_its_slot(
    make: Make,
    manual: VirtualClock,
    monkeypatch: pytest.MonkeyPatch,
    way: Callable[[Pool[Any], VirtualClock], None],
    reset_timeout: float,
    health_check_timeout: float,
    failures: int,
) -> None:
    """The hung check is interrupted, and its resource is closed when it returns."""
    adapter = FakeAdapter(enforces_timeouts=False)
    if way is _fail:  # without is_broken, each error is followed by a validation
        monkeypatch.delattr(FakeAdapter, "is_broken")
    pool = make(
        adapter=adapter, max_size=1, clock=manual,
        reset_timeout=reset_timeout, health_check_timeout=health_check_timeout,
    )  # fmt: skip
    (resource,) = fill(pool, 1)
    way(pool, manual)
    manual.advance(4.9)
    assert pool.stats()["checking"] == 1
    manual.advance(0.1)
    assert size(pool) == 0
    assert resource.interrupted
    assert closed(pool) == {"check_timeout": 1}
    if way is _validate:
        adapter.fail("validate", ConnectionError("gone"))
    run_jobs(manual)
    assert resource.closed == 1
    assert size(pool) == 0
    assert pool.metrics.snapshot().validation_failures == failures


@pytest.mark.parametrize("hanging", ["create", "reset", "close"])
def test_slot_of_a_hung_resource_goes_to_the_next_waiter(make: Make, manual: VirtualClock, hanging: str) -> None:
    adapter = FakeAdapter(enforces_timeouts=False)
    pool = make(
        adapter=adapter, max_size=1, clock=manual,
        create_timeout=5, reset_timeout=5, health_check_timeout=5, close_timeout=5,
    )  # fmt: skip
    if hanging != "create":
        fill(pool, 1)
        lease = pool.acquire()
        lease.release() if hanging == "reset" else lease.discard()
    waiting = Task(pool.acquire, 60)
    manual.until_parked(1)
    assert manual.jobs == 1
    manual.advance(6)
    assert manual.jobs == 2
    manual.run_job(1)
    assert waiting.result().resource is not None


def test_failing_abandon_still_frees_the_slot(
    make: Make, adapter: FakeAdapter, manual: VirtualClock, caplog: pytest.LogCaptureFixture
) -> None:
    pool = make(max_size=1, close_timeout=5, clock=manual)
    fill(pool, 1)
    pool.acquire().discard()
    adapter.fail("abandon", OSError("bad descriptor"))
    manual.advance(5)
    assert size(pool) == 0
    assert "pool 'test': abandoning a thing failed" in caplog.text


# -- keepalive ----------------------------------------------------------------------------


def test_keepalive_validates_idle_resources(
    make: Make, adapter: FakeAdapter, clock: VirtualClock
) -> None:
    pool = make(keepalive_interval=30, idle_timeout=None, max_lifetime=None)
    fill(pool, 2)
    clock.advance(29.9)
    assert adapter.calls["validate"] == 0
    clock.advance(0.1)
    assert adapter.calls["validate"] == 2
    clock.advance(300)
    assert adapter.calls["validate"] == 22


def test_keepalive_replaces_dead_resources(make: Make, adapter: FakeAdapter, clock: VirtualClock) -> None:
    pool = make(min_size=1, keepalive_interval=30, idle_timeout=None, max_lifetime=None)
    pool.open()
    adapter.fail("validate", ConnectionError("gone"))
    clock.advance(30)
    assert pool.acquire(0).resource.number == 2


def test_keepalive_does_not_count_as_use(make: Make, clock: VirtualClock) -> None:
    pool = make(keepalive_interval=30, idle_timeout=100, max_lifetime=None)
    fill(pool, 2)
    clock.advance(100)
    assert closed(pool) == {"idle_timeout": 2}


# -- the health check ---------------------------------------------------------------------


def test_health_check_uses_one_resource(
    make: Make, adapter: FakeAdapter, clock: VirtualClock
) -> None:
    pool = make(max_size=3, health_check_interval=10, idle_timeout=None, max_lifetime=None)
    fill(pool, 3)
    clock.advance(9.9)
    assert pool.metrics.snapshot().last_health_check is None
    clock.advance(0.1)
    s = pool.metrics.snapshot()
    assert (s.last_health_check, s.health_failures) == (clock.wall(), 0)
    clock.advance(90)
    assert adapter.calls["validate"] == 10


def test_failed_health_check_is_counted_and_closes_the_resource(
    make: Make, adapter: FakeAdapter, clock: VirtualClock
) -> None:
    pool = make(max_size=2, health_check_interval=10, idle_timeout=None)
    resting, fresh = fill(pool, 2)
    adapter.fail("validate", ConnectionError("gone"))
    clock.advance(10)
    assert (resting.closed, fresh.closed) == (1, 0)  # it goes to the longest idle one
    d = pool.metrics.to_dict()
    assert d["health_check_failures"] == 1
    assert d["last_health_check"] == clock.wall()


@pytest.mark.parametrize(
    ("interval", "number", "lent"), [(None, 2, 0), (10, 0, 0), (10, 1, 1)], ids=["off", "none open", "none idle"]
)
def test_no_health_check_without_an_interval_or_an_idle_resource(
    make: Make, adapter: FakeAdapter, clock: VirtualClock, interval: float | None, number: int, lent: int
) -> None:
    pool = make(health_check_interval=interval, idle_timeout=None)
    fill(pool, number)
    leases = [pool.acquire() for _ in range(lent)]
    clock.advance(100)
    assert adapter.calls["validate"] == 0
    assert len(leases) == lent


def test_hung_health_check_is_interrupted(
    make: Make, manual: VirtualClock, adapter: FakeAdapter
) -> None:
    pool = make(
        clock=manual, health_check_interval=10, health_check_timeout=5, reset_timeout=9, idle_timeout=None
    )
    (resource,) = fill(pool, 1)
    manual.advance(10)
    assert manual.jobs == 1
    manual.advance(4.9)
    assert not resource.interrupted
    manual.advance(0.1)
    assert resource.interrupted
    assert closed(pool) == {"check_timeout": 1}
    shot = pool.metrics.snapshot()
    assert (shot.health_failures, shot.validation_failures) == (1, 1)
    assert shot.last_health_check is not None
    adapter.fail("validate", ConnectionError("gone"))
    run_jobs(manual)  # it returns after all, and is not reported twice
    shot = pool.metrics.snapshot()
    assert (shot.health_failures, shot.validation_failures) == (1, 1)


def test_shorter_interval_applies_at_once(make: Make, clock: VirtualClock, adapter: FakeAdapter) -> None:
    pool = make(health_check_interval=1000, idle_timeout=None, keepalive_interval=None)
    fill(pool, 1)
    clock.advance(5)
    pool.reconfigure(health_check_interval=10)
    clock.advance(10)
    assert adapter.calls["validate"] == 1


def test_hung_check_makes_the_other_resources_suspect(make: Make, manual: VirtualClock) -> None:
    adapter = FakeAdapter(enforces_timeouts=False)
    pool = make(adapter=adapter, clock=manual, max_size=2, health_check_interval=10, health_check_timeout=1,
                reset_timeout=5, idle_timeout=None, max_validation_failures=9)  # fmt: skip
    fill(pool, 2)
    manual.advance(10)
    manual.advance(1)
    asked = adapter.calls["validate"]
    waiting = Task(pool.acquire)
    manual.until_parked(1)
    run_jobs(manual)
    waiting.result().release()
    assert adapter.calls["validate"] > asked


def test_validation_does_not_count_as_use(make: Make, clock: VirtualClock) -> None:
    pool = make(max_size=3, health_check_interval=10, idle_timeout=100)
    for lease in [pool.acquire() for _ in range(3)]:
        lease.release()
        clock.advance(1)
    clock.advance(55)
    assert [pool.acquire().resource.number for _ in range(3)] == [3, 2, 1]


def test_validated_idle_resource_still_reaches_its_idle_timeout(make: Make, clock: VirtualClock) -> None:
    pool = make(max_size=3, health_check_interval=10, idle_timeout=100)
    fill(pool, 3)
    clock.advance(100)
    assert closed(pool) == {"idle_timeout": 3}


# -- the audit ----------------------------------------------------------------------------


def test_audit_serves_a_waiter_left_by_an_interruption(make: Make, clock: VirtualClock) -> None:
    """An idle resource beside a waiter should not happen; it is repaired and counted (P8)."""
    pool = make()
    fill(pool, 1)
    pool.pause()
    waiting = Task(pool.acquire, 60)
    clock.until_parked(1)
    clock.strike(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        pool.resume()  # raised between the decision and the service
    assert pool.stats()["waiting"] == pool.stats()["idle"] == 1
    clock.advance(AUDIT)
    waiting.result()
    assert pool.metrics.snapshot().audit_repairs == 1


def test_audit_finds_nothing_when_all_is_well(make: Make, clock: VirtualClock) -> None:
    pool = make(max_size=1)
    for _ in range(3):
        with lent_elsewhere(pool) as (lease,):
            waiting = Task(pool.acquire, 60)
            clock.until_parked(1)
            clock.advance(20 * AUDIT)
            lease.release()
        waiting.result().release()
    assert pool.metrics.snapshot().audit_repairs == 0


def test_pause_is_not_counted_as_an_audit_repair(make: Make, clock: VirtualClock) -> None:
    pool = make()
    fill(pool, 1)
    pool.pause()
    waiting = Task(pool.acquire, 60)
    clock.until_parked(1)
    clock.advance(10)
    pool.resume()
    waiting.result()
    assert pool.metrics.snapshot().audit_repairs == 0


def test_nothing_is_due_in_an_unused_pool(make: Make, clock: VirtualClock) -> None:
    """So that the reaper of an idle process sleeps on (P11)."""
    pool = make(idle_timeout=None, max_lifetime=None, keepalive_interval=None)
    pool.acquire().release()
    clock.advance(100)  # past what was due for its creation
    assert clock.upcoming() == []


def test_long_wait_triggers_garbage_collection(
    make: Make, clock: VirtualClock
) -> None:
    """Where every thread waits nothing is allocated, so the garbage collector does not run by itself."""
    pool = make(max_size=1)
    cycle: list[Any] = [pool.acquire()]
    cycle.append(cycle)
    del cycle
    waiting = Task(pool.acquire, 10)
    clock.until_parked(1)
    clock.advance(2)
    assert waiting.result().resource.number == 2
    assert closed(pool) == {"orphaned": 1}


# -- dropped leases and tokens ------------------------------------------------------------


def test_dropped_token_frees_its_slot(
    make: Make, adapter: FakeAdapter, manual: VirtualClock
) -> None:
    """Whichever job was lost: a creation, a check, a close."""
    pool = make(adapter=FakeAdapter(enforces_timeouts=False), max_size=3, clock=manual)
    fill(pool, 2)
    pool.acquire().release()
    pool.acquire().discard()
    pool.fill(3)
    assert manual.jobs == 3
    for _ in range(3):
        manual.drop_job()
    collect(manual)
    run_jobs(manual)
    manual.settle()
    assert pool.stats()["size"] == 0


def test_reaper_runs_from_the_first_work_to_the_last_pool(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    started: list[tuple[Callable[..., None], tuple[Any, ...]]] = []
    monkeypatch.setattr("_thread.start_new_thread", lambda run, args: started.append((run, args)))
    monkeypatch.setattr("pooling.core.runtime.workers.LINGER", 0)
    clock = SystemClock()
    clock.runtime = Runtime(clock)  # type: ignore[attr-defined]
    adapter = FakeAdapter(blocking=False)
    pool = Pool(adapter=adapter, settings=PoolSettings(min_size=0), clock=clock)
    assert started == []
    for _ in range(3):
        pool.acquire().release()
        assert len(started) == 1
    del pool
    while started:
        run, arguments = started.pop()
        Task(run, *arguments).result()
    assert adapter.open == set()


# -- the thread -----------------------------------------------------------------------------


def test_reaper_killed_while_starting_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception raised in a borrower can end the thread that it starts, before any of our code runs (P8)."""
    kept: list[Any] = []
    monkeypatch.setattr("pooling.core.runtime.reaper.start", lambda world, function, arguments: kept.append(arguments))
    reaper = Reaper(SYSTEM, {})
    reaper.ensure()
    reaper.ensure()
    assert len(kept) == 1 and not reaper.ended  # it runs, for all that is known
    kept.clear()
    assert reaper.ended
    reaper.ensure()
    assert len(kept) == 1 and not reaper.ended
    assert not reaper.started


def test_ending_reaper_allows_one_successor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise there would be two of them."""
    monkeypatch.setattr("pooling.core.runtime.reaper.start", lambda world, function, arguments: function(*arguments))
    reaper = Reaper(SYSTEM, {})
    for _ in range(3):
        reaper.ensure()
        assert reaper.ended and reaper.started


def test_timed_out_waiter_restarts_a_killed_reaper(
    make: Make, clock: VirtualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    called = []
    monkeypatch.setattr(clock.runtime.reaper, "ensure", lambda: called.append(None))
    pool = make(max_size=1)
    with pool.acquire():
        called.clear()
        with pytest.raises(PoolTimeout):
            pool.acquire(timeout=0)
    assert called

"""The life of a pool: open, fill, drain, resize, reconfigure, pause, check, close."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest

from pooling import CreateFailed, Lease, Pool, PoolClosed, PoolSettings, PoolTimeout
from pooling.core.sizing import limit_size
from pooling.core.state import MOST_AHEAD
from pooling.testing import FakeAdapter, VirtualClock
from tests.unit.conftest import Make, Task, collect, fill, lent_elsewhere, run_jobs


def counts(pool: Pool[Any], *names: str) -> tuple[int, ...]:
    return tuple(pool.stats()[name] for name in names)


def closed(pool: Pool[Any]) -> dict[str, int]:
    return pool.metrics.snapshot().closed


# -- before the first use -----------------------------------------------------------------


def test_unused_pool_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """No thread, no resource (P11): on the system's clock, where there would be threads."""

    def forbidden(*args: object) -> None:
        raise AssertionError("a thread was started")

    monkeypatch.setattr("_thread.start_new_thread", forbidden)
    adapter = FakeAdapter()
    pool = Pool(adapter=adapter, settings=PoolSettings(min_size=5))
    repr(pool), pool.stats(), pool.holders(), pool.metrics.snapshot()
    assert adapter.made == 0


def test_pool_without_a_name_gets_one_of_its_own(make: Make) -> None:
    one, two = make(name=None), make(name=None)
    assert one.name.startswith("pool-")
    assert one.name != two.name


# -- open ---------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [0, 1, 3])
def test_open_makes_min_size_ready(make: Make, number: int) -> None:
    pool = make(min_size=number, max_size=3)
    pool.open()
    assert counts(pool, "idle", "size") == (number, number)


def test_open_waits_until_all_are_ready(make: Make, manual: VirtualClock) -> None:
    pool = make(min_size=3, max_size=3, clock=manual)
    opening = Task(pool.open)
    manual.until_parked(1)
    assert manual.jobs == 3  # all at the same time
    manual.run_job()
    manual.run_job()
    manual.until_parked(1)
    manual.run_job()
    opening.result()
    assert counts(pool, "idle") == (3,)


def test_block_opens_and_closes_the_pool(make: Make, adapter: FakeAdapter) -> None:
    pool = make(min_size=2)
    with pool as same:
        assert same is pool
        assert counts(pool, "idle") == (2,)
    assert pool.closed
    assert adapter.open == set()


def test_block_closes_the_pool_after_an_error_and_reraises_it(make: Make) -> None:
    pool = make(min_size=2)
    with pytest.raises(KeyError, match="mine"), pool:
        raise KeyError("mine")
    assert pool.closed


def test_open_is_idempotent(make: Make, adapter: FakeAdapter) -> None:
    pool = make(min_size=2)
    pool.open()
    pool.open()
    assert adapter.made == 2


@pytest.mark.parametrize(("given", "seconds"), [(3, 3.0), (None, 7.0)])
def test_open_error_states_how_many_are_ready_and_why(
    make: Make, adapter: FakeAdapter, manual: VirtualClock, given: float | None, seconds: float
) -> None:
    pool = make(min_size=2, acquire_timeout=7, clock=manual)
    opening = Task(pool.open, given)
    manual.until_parked(1)
    manual.run_job()
    adapter.fail("create", ConnectionError("connection refused"))
    manual.run_job()
    manual.advance(seconds)
    with pytest.raises(PoolTimeout) as raised:
        opening.result()
    assert str(raised.value) == (
        f"pool 'test': 1 of 2 things ready within {seconds} s (0/2 in use, 1 idle, 1 creating, 0 waiting); "
        "last thing error: ConnectionError: connection refused"
    )
    assert isinstance(raised.value.__cause__, ConnectionError)


def test_open_error_states_how_many_are_ready_if_a_creation_hangs(make: Make, manual: VirtualClock) -> None:
    pool = make(min_size=2, clock=manual)
    opening = Task(pool.open, 3)
    manual.until_parked(1)
    manual.run_job()
    manual.advance(3)
    with pytest.raises(PoolTimeout, match=r"1 of 2 things ready within 3.0 s \(.*1 creating.*\)$") as raised:
        opening.result()
    assert raised.value.__cause__ is None


def test_open_fails_at_once_after_a_final_error(make: Make, adapter: FakeAdapter) -> None:
    pool = make(min_size=2)
    adapter.final = (PermissionError,)
    adapter.fail("create", PermissionError("wrong password"), times=9)
    with pytest.raises(CreateFailed, match="cannot create a thing: PermissionError: wrong password") as raised:
        pool.open()
    assert isinstance(raised.value.__cause__, PermissionError)


def test_open_waits_through_an_outage(make: Make, adapter: FakeAdapter, clock: VirtualClock) -> None:
    """It waits like a borrower, so the server is tried often while it does (P7)."""
    pool = make(min_size=2)
    adapter.fail("create", ConnectionError("starting up"), times=999)
    opening = Task(pool.open, 60)
    clock.until_parked(1)
    clock.advance(40)
    adapter.mend("create")
    clock.advance(0.5)
    assert counts(pool, "idle") == (2,)
    opening.result()


def test_open_shortens_a_long_delay(make: Make, adapter: FakeAdapter, clock: VirtualClock) -> None:
    pool = make(min_size=1, backoff_initial=30)
    adapter.fail("create", ConnectionError("starting up"))
    pool.fill()
    clock.advance(10)
    opening = Task(pool.open)
    clock.until_parked(1)
    clock.advance(0.25)
    opening.result()


def test_closed_pool_cannot_be_opened(make: Make) -> None:
    pool = make(min_size=2)
    pool.close()
    with pytest.raises(PoolClosed, match="pool 'test' is closed"):
        pool.open()


def test_close_ends_an_open_that_waits(make: Make, manual: VirtualClock) -> None:
    pool = make(min_size=1, clock=manual)
    opening = Task(pool.open)
    manual.until_parked(1)
    pool.close(0)
    with pytest.raises(PoolClosed, match="pool 'test' was closed while it opened"):
        opening.result()


# -- fill ---------------------------------------------------------------------------------


def test_fill_creates_without_waiting(make: Make, manual: VirtualClock) -> None:
    pool = make(max_size=5, clock=manual)
    pool.fill(3)
    assert counts(pool, "creating", "idle") == (3, 0)
    run_jobs(manual)
    assert counts(pool, "creating", "idle") == (0, 3)


@pytest.mark.parametrize(("size", "made"), [(None, 2), (0, 2), (2, 2), (4, 4), (5, 5)])
def test_fill_counts_existing_resources(make: Make, adapter: FakeAdapter, size: int | None, made: int) -> None:
    pool = make(min_size=2, max_size=5)
    with pool.acquire():
        pool.fill(size)
        assert adapter.made == made


def test_fill_does_not_storm_a_server_that_is_down(
    make: Make, adapter: FakeAdapter, manual: VirtualClock
) -> None:
    pool = make(max_size=5, clock=manual)
    adapter.fail("create", ConnectionError("no"))
    fill(pool, 1)
    pool.fill(5)
    assert manual.jobs == 0


def test_large_fill_creates_a_number_at_a_time(make: Make, adapter: FakeAdapter, manual: VirtualClock) -> None:
    """A thread for each of thousands would cost more than a cheap factory."""
    pool = make(max_size=3 * MOST_AHEAD, clock=manual)
    pool.fill(3 * MOST_AHEAD - 1)
    assert counts(pool, "creating") == (MOST_AHEAD,)
    while manual.jobs:
        manual.run_job()
        assert pool.stats()["creating"] <= MOST_AHEAD
    assert counts(pool, "creating", "idle") == (0, 3 * MOST_AHEAD - 1)


def test_lost_creations_do_not_end_a_fill(make: Make, manual: VirtualClock) -> None:
    """P8: each creation starts the next. 1. A number of them begin. 2. Their workers die. 3. The reaper goes on."""
    pool = make(max_size=MOST_AHEAD + 5, clock=manual)
    pool.fill(MOST_AHEAD + 5)
    while manual.jobs:
        manual.drop_job()
    collect(manual)
    run_jobs(manual)
    assert counts(pool, "creating", "idle") == (0, 5)


def test_fill_above_max_idle_ends(make: Make, adapter: FakeAdapter, manual: VirtualClock) -> None:
    """What is closed at once is not created again."""
    pool = make(max_size=3 * MOST_AHEAD, max_idle=2, clock=manual)
    pool.fill(3 * MOST_AHEAD)
    run_jobs(manual)
    assert pool.stats()["size"] == 2 and adapter.made == 3 * MOST_AHEAD


def test_large_fill_without_workers(make: Make) -> None:
    """A creation in the caller's thread does not start the next one within itself."""
    pool = make(adapter=FakeAdapter(blocking=False), max_size=2000)
    pool.fill(2000)
    assert pool.stats()["idle"] == 2000


def test_min_size_above_that_number_is_reached(make: Make, manual: VirtualClock) -> None:
    pool = make(min_size=MOST_AHEAD + 5, max_size=2 * MOST_AHEAD, clock=manual)
    pool.fill()
    run_jobs(manual)
    assert counts(pool, "creating", "idle") == (0, MOST_AHEAD + 5)


def test_waiters_come_before_a_large_fill(make: Make, manual: VirtualClock) -> None:
    """P3, P4: a creation for a waiter does not wait until others ahead of need have ended."""
    pool = make(max_size=2 * MOST_AHEAD, clock=manual)
    pool.fill(MOST_AHEAD)
    waiting = [Task(pool.acquire) for _ in range(MOST_AHEAD + 2)]
    manual.until_parked(len(waiting))
    assert counts(pool, "creating") == (MOST_AHEAD + 2,)
    run_jobs(manual)
    assert len({id(task.result().resource) for task in waiting}) == len(waiting)


def test_reached_fill_is_not_kept(make: Make, manual: VirtualClock) -> None:
    """Only ``min_size`` is."""
    pool = make(max_size=5, clock=manual)
    fill(pool, 5)
    pool.acquire().discard()
    run_jobs(manual)
    assert pool.stats()["size"] == 4


def test_server_that_is_down_ends_a_fill(make: Make, adapter: FakeAdapter, manual: VirtualClock) -> None:
    """P7: no borrower needs them, so the pool does not go on asking."""
    pool = make(max_size=2 * MOST_AHEAD, clock=manual)
    adapter.fail("create", ConnectionError("no"), times=10 * MOST_AHEAD)
    fill(pool, 2 * MOST_AHEAD)
    for _ in range(60):
        manual.advance(10)
        run_jobs(manual)
    adapter.mend("create")
    manual.advance(600)
    assert counts(pool, "size", "creating") == (0, 0) and manual.jobs == 0
    assert adapter.calls["create"] <= MOST_AHEAD + 10


def test_failed_creation_does_not_end_a_fill(make: Make, adapter: FakeAdapter, manual: VirtualClock) -> None:
    pool = make(max_size=2 * MOST_AHEAD, clock=manual)
    adapter.fail("create", ConnectionError("no"), times=2)
    fill(pool, 2 * MOST_AHEAD)
    for _ in range(60):
        manual.advance(1)
        run_jobs(manual)
    assert pool.stats()["idle"] == 2 * MOST_AHEAD - 2


def test_smaller_max_size_limits_a_fill_for_good(make: Make, manual: VirtualClock) -> None:
    pool = make(max_size=2 * MOST_AHEAD, clock=manual)
    pool.fill(2 * MOST_AHEAD)
    pool.reconfigure(max_size=MOST_AHEAD)
    pool.reconfigure(max_size=2 * MOST_AHEAD)
    run_jobs(manual)
    assert pool.stats()["size"] == MOST_AHEAD


def test_fill_serves_waiters(make: Make, manual: VirtualClock) -> None:
    pool = make(max_size=3, clock=manual)
    waiting = Task(pool.acquire)
    manual.until_parked(1)
    pool.fill(3)
    run_jobs(manual)
    waiting.result()
    assert counts(pool, "in_use", "idle") == (1, 2)


def test_closed_pool_cannot_be_filled(make: Make, adapter: FakeAdapter) -> None:
    pool = make()
    pool.close()
    with pytest.raises(PoolClosed):
        pool.fill(1)
    assert adapter.made == 0


def test_min_size_is_kept(make: Make, clock: VirtualClock) -> None:
    pool = make(min_size=2)
    pool.open()
    pool.acquire().discard()
    assert counts(pool, "idle") == (2,)


# -- drain --------------------------------------------------------------------------------


def test_drain_replaces_idle_resources_now_and_those_in_use_on_release(make: Make) -> None:
    pool = make(max_size=3)
    used, *idle = (pool.acquire() for _ in range(3))
    resources = [lease.resource for lease in (used, *idle)]
    for lease in idle:
        lease.release()
    pool.drain()
    assert [resource.closed for resource in resources] == [0, 1, 1]
    used.release()
    assert [resource.closed for resource in resources] == [1, 1, 1]
    assert closed(pool) == {"drained": 3}
    assert pool.acquire().resource.number == 4


def test_drain_keeps_min_size(make: Make) -> None:
    pool = make(min_size=2)
    pool.open()
    pool.drain()
    assert {pool.acquire().resource.number, pool.acquire().resource.number} == {3, 4}


def test_drain_replaces_resources_being_created(make: Make, manual: VirtualClock) -> None:
    """It may use the old credentials: its generation is that of the start of the creation."""
    pool = make(max_size=1, clock=manual)
    waiting = Task(pool.acquire)
    manual.until_parked(1)
    pool.drain()
    run_jobs(manual)
    assert waiting.result().resource.number == 2
    assert closed(pool) == {"drained": 1}


def test_drain_replaces_resources_being_checked(make: Make, manual: VirtualClock) -> None:
    pool = make(adapter=FakeAdapter(enforces_timeouts=False), max_size=1, clock=manual)
    fill(pool, 1)
    pool.acquire().release()
    pool.drain()
    run_jobs(manual)
    assert closed(pool) == {"drained": 1}


def test_fast_path_lends_nothing_of_an_old_generation(make: Make) -> None:
    pool = make(factory=object)
    with pool.acquire() as old:
        pool.drain()
    assert pool.acquire().resource is not old


# -- resize -------------------------------------------------------------------------------


def test_growing_serves_waiters(make: Make, clock: VirtualClock) -> None:
    pool = make(max_size=1)
    with pool.acquire():
        tasks = []
        for place in (1, 2):
            tasks.append(Task(pool.acquire))
            clock.until_parked(place)
        pool.resize(3)
        assert [task.result().resource.number for task in tasks] == [2, 3]


def test_limit_below_max_size(make: Make, clock: VirtualClock) -> None:
    """The lowest counts; it closes, lends and ends like a `resize`, which it outlasts."""
    pool = make(min_size=2, max_size=4)
    leases = [pool.acquire() for _ in range(4)]
    limit_size(pool.engine, "budget", 1)
    limit_size(pool.engine, "load", 3)
    assert counts(pool, "max_size", "min_size", "in_use") == (1, 1, 4)
    for lease in leases:
        lease.release()
    assert counts(pool, "size", "idle") == (1, 1) and closed(pool) == {"surplus": 3}
    with pool.acquire():
        task = Task(pool.acquire)
        clock.until_parked(1)
        pool.resize(9)
        assert counts(pool, "max_size", "waiting") == (1, 1)
        limit_size(pool.engine, "budget", None)
        lease = task.result()
        assert counts(pool, "max_size", "min_size") == (3, 2)
    lease.release()
    limit_size(pool.engine, "load", None)
    assert counts(pool, "max_size") == (9,)


def test_limit_of_none_at_all(make: Make, clock: VirtualClock) -> None:
    pool = make(min_size=1, max_size=2)
    limit_size(pool.engine, "budget", 0)
    task = Task(pool.acquire)
    clock.until_parked(1)
    assert counts(pool, "size", "waiting") == (0, 1)
    limit_size(pool.engine, "budget", 1)
    assert task.result().resource is not None


def test_growing_min_size_creates_missing_resources(make: Make) -> None:
    pool = make(min_size=1, max_size=2)
    pool.open()
    pool.resize(5, min_size=4)
    assert counts(pool, "idle", "min_size", "max_size") == (4, 4, 5)


def test_shrinking_closes_the_longest_idle_first(make: Make) -> None:
    pool = make(max_size=4)
    resources = fill(pool, 4)
    pool.resize(1)
    assert [resource.closed for resource in resources] == [1, 1, 1, 0]
    assert closed(pool) == {"surplus": 3}


@pytest.mark.parametrize("factory", [None, object], ids=["with a reset", "the hot path"])
def test_shrinking_closes_resources_in_use_on_release(
    make: Make, clock: VirtualClock, factory: Callable[[], object] | None
) -> None:
    pool = make(max_size=3, **({"factory": factory} if factory else {}))
    leases = [pool.acquire() for _ in range(3)]
    pool.resize(1)
    waiting = Task(pool.acquire)
    clock.until_parked(1)
    sizes = []
    for lease in leases:
        lease.release()
        sizes.append(pool.stats()["size"])
    assert sizes == [2, 1, 1]  # also beside a waiter, which the last release serves
    waiting.result().release()
    assert closed(pool) == {"surplus": 2}


def test_bounds_hold_while_resizing_under_load(
    make: Make, adapter: FakeAdapter, clock: VirtualClock
) -> None:
    pool = make(max_size=4, validate_on_acquire=False)
    leases: list[Lease[Any]] = []
    for size in (4, 1, 3, 2, 5, 1, 4):
        pool.resize(size)
        while len(leases) < size:
            leases.append(pool.acquire(0))
        while len(leases) > size:
            leases.pop(0).release()
        assert len(adapter.open) == pool.stats()["size"] == size


# -- reconfigure --------------------------------------------------------------------------


def test_reconfigure_changes_the_settings_in_force(make: Make) -> None:
    pool = make()
    pool.reconfigure(acquire_timeout=1, backoff_initial=2)
    assert pool.settings.acquire_timeout == 1
    assert pool.settings.backoff.initial == 2
    assert pool.settings.max_size == 2


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"max_size": 0}, ValueError),
        ({"max_sise": 3}, TypeError),
        ({"acquire_timeout": 1, "min_size": 9}, ValueError),
    ],
)
def test_refused_reconfigure_changes_nothing(
    make: Make, changes: dict[str, Any], error: type[Exception]
) -> None:
    pool = make()
    before = pool.settings, pool.stats()
    with pytest.raises(error):
        pool.reconfigure(**changes)
    assert (pool.settings, pool.stats()) == before


def test_shorter_idle_timeout_applies_at_once(make: Make, clock: VirtualClock) -> None:
    pool = make(max_size=3, idle_timeout=300)
    fill(pool, 3)
    clock.advance(10)
    pool.reconfigure(idle_timeout=5)
    clock.settle()
    assert closed(pool) == {"idle_timeout": 3}


def test_lower_max_idle_applies_at_once(make: Make, clock: VirtualClock) -> None:
    pool = make(max_size=3)
    fill(pool, 3)
    pool.reconfigure(max_idle=1)
    clock.settle()
    assert counts(pool, "idle") == (1,)
    pool.reconfigure(max_idle=None)
    fill(pool, 3)
    assert counts(pool, "idle") == (3,)


def test_new_lifetime_applies_to_resources_created_later(make: Make, clock: VirtualClock) -> None:
    pool = make(max_size=2, max_lifetime=100, idle_timeout=None)
    fill(pool, 1)
    pool.reconfigure(max_lifetime=10)
    fill(pool, 2)
    clock.advance(10)
    assert counts(pool, "idle") == (1,)
    clock.advance(90)
    assert counts(pool, "idle") == (0,)


@pytest.mark.parametrize(
    ("before", "after"),
    [({}, {"max_uses": 1}), ({"track_holders": False}, {"track_holders": True})],
    ids=["max_uses", "track_holders"],
)
def test_other_settings_apply_to_the_next_lease(
    make: Make, before: dict[str, Any], after: dict[str, Any]
) -> None:
    pool = make(factory=object, **before)
    pool.acquire().release()
    pool.reconfigure(**after)
    with pool.acquire():
        assert pool.holders()[0].function.startswith("test_other_settings")
    assert counts(pool, "idle") == ((0,) if "max_uses" in after else (1,))


# -- pause and resume ---------------------------------------------------------------------


@pytest.mark.parametrize("factory", [None, object], ids=["with a reset", "the hot path"])
def test_pause_lends_nothing_until_resume(
    make: Make, clock: VirtualClock, factory: Callable[[], object] | None
) -> None:
    pool = make(max_size=3, **({"factory": factory} if factory else {}))
    with pool.acquire():
        pool.pause()
    early, late = Task(pool.acquire), None
    clock.until_parked(1)
    late = Task(pool.acquire)
    clock.until_parked(2)
    assert counts(pool, "idle", "waiting", "size") == (1, 2, 1)
    pool.resume()
    early.result()
    late.result()
    assert counts(pool, "in_use", "waiting") == (2, 0)


def test_resume_serves_in_the_order_of_arrival(make: Make, clock: VirtualClock) -> None:
    pool = make(max_size=3, idle_timeout=None)
    resources = fill(pool, 3)
    pool.pause()
    tasks = []
    for place in (1, 2, 3):
        tasks.append(Task(pool.acquire))
        clock.until_parked(place)
    pool.resume()
    assert [task.result().resource for task in tasks] == resources[::-1]


def test_waiter_may_time_out_during_a_pause(make: Make, clock: VirtualClock) -> None:
    pool = make()
    fill(pool, 1)
    pool.pause()
    waiting = Task(pool.acquire, 2)
    clock.until_parked(1)
    clock.advance(2)
    with pytest.raises(PoolTimeout):
        waiting.result()
    pool.resume()
    assert counts(pool, "idle") == (1,)


def test_paused_pool_is_still_warmed_up(make: Make) -> None:
    pool = make(min_size=2)
    pool.pause()
    pool.open()
    assert counts(pool, "idle") == (2,)


# -- check --------------------------------------------------------------------------------


@pytest.mark.parametrize("enforces_timeouts", [True, False])
def test_check_validates_idle_resources(make: Make, clock: VirtualClock, enforces_timeouts: bool) -> None:
    adapter = FakeAdapter(enforces_timeouts=enforces_timeouts)
    pool = make(adapter=adapter, max_size=4)
    dead, socket, good, used = fill(pool, 4)
    with pool.acquire() as lent:
        assert lent is used
        adapter.fail("validate", ConnectionError("gone"))  # the oldest is checked first
        socket.alive = False
        pool.check()
    assert [resource.closed for resource in (dead, socket, good, used)] == [1, 1, 0, 0]
    assert closed(pool) == {"invalid": 1, "dead": 1}


def test_check_replaces_dead_resources_below_min_size(make: Make, adapter: FakeAdapter) -> None:
    pool = make(min_size=2)
    pool.open()
    adapter.fail("validate", ConnectionError("gone"))
    pool.check()
    assert counts(pool, "idle") == (2,)
    assert adapter.made == 3


def test_check_keeps_the_order_of_the_idle_stack(make: Make) -> None:
    pool = make(max_size=3)
    resources = fill(pool, 3)
    pool.check()
    assert [pool.acquire().resource for _ in range(3)] == resources[::-1]


def test_check_does_not_count_as_use(make: Make, clock: VirtualClock) -> None:
    """An unused resource ages, however often it is checked."""
    pool = make(idle_timeout=60)
    fill(pool, 1)
    for _ in range(6):
        clock.advance(10)
        pool.check()
    clock.settle()
    assert closed(pool) == {"idle_timeout": 1}


def test_check_serves_waiters_that_arrive_meanwhile(
    make: Make, adapter: FakeAdapter, clock: VirtualClock
) -> None:
    pool = make(max_size=1)
    fill(pool, 1)
    adapter.hold("validate")
    checking = Task(pool.check)
    adapter.until_held("validate")
    waiting = Task(pool.acquire)
    clock.until_parked(1)
    adapter.let_go("validate")
    checking.result()
    assert waiting.result().resource.number == 1


# -- close --------------------------------------------------------------------------------


def test_close_closes_idle_resources(make: Make, adapter: FakeAdapter) -> None:
    pool = make(max_size=3)
    fill(pool, 3)
    pool.close()
    assert pool.closed
    assert (adapter.open, closed(pool)) == (set(), {"closed": 3})


def test_close_is_idempotent(make: Make, adapter: FakeAdapter) -> None:
    pool = make()
    fill(pool, 2)
    pool.close()
    pool.close()
    assert adapter.closed == 2


def test_close_fails_all_waiters_at_once(make: Make, clock: VirtualClock) -> None:
    pool = make(max_size=1)
    lease = pool.acquire()
    tasks = []
    for place in (1, 2, 3):
        tasks.append(Task(pool.acquire))
        clock.until_parked(place)
    pool.close(0)
    for task in tasks:
        with pytest.raises(PoolClosed, match="pool 'test' was closed during the wait"):
            task.result()
    lease.release()


@pytest.mark.parametrize("factory", [None, object], ids=["with a reset", "the hot path"])
def test_resources_in_use_at_close_are_closed_on_release(
    make: Make, factory: Callable[[], object] | None
) -> None:
    pool = make(**({"factory": factory} if factory else {}))
    with pool.acquire():
        pool.close()  # which does not wait for its own caller's lease
        assert closed(pool) == {}
    assert closed(pool) == {"closed": 1}
    assert counts(pool, "size") == (0,)


def test_close_returns_after_the_last_release(
    make: Make, adapter: FakeAdapter, clock: VirtualClock
) -> None:
    pool = make()
    with lent_elsewhere(pool, 2) as leases:
        closing = Task(pool.close, 60)
        clock.until_parked(1)
        for lease in leases:
            assert closing.is_alive()
            lease.release()
        closing.result()
    assert adapter.calls["interrupt"] == 0


@pytest.mark.parametrize(("given", "seconds"), [(3, 3), (None, 7)])
def test_close_interrupts_late_holders_without_closing_their_resource(
    make: Make,
    clock: VirtualClock,
    caplog: pytest.LogCaptureFixture,
    given: float | None,
    seconds: float,
) -> None:
    pool = make(close_timeout=7)
    with lent_elsewhere(pool) as (lease,):
        resource = lease.resource
        closing = Task(pool.close, given)
        clock.until_parked(1)
        clock.advance(seconds - 0.5)
        assert not resource.interrupted
        clock.advance(0.5)
        closing.result()
        assert (resource.interrupted, resource.closed) == (True, 0)
        assert "pool 'test': closed with 1 still in use; held by: " in caplog.text
        lease.release()
        assert resource.closed == 1


def test_close_with_timeout_zero_interrupts_at_once(make: Make) -> None:
    pool = make()
    with lent_elsewhere(pool) as (lease,):
        pool.close(0)
        assert lease.resource.interrupted


def test_close_does_not_interrupt_its_own_caller(make: Make) -> None:
    pool = make()
    mine = pool.acquire()
    with lent_elsewhere(pool) as (other,):
        pool.close(0)
        assert (mine.resource.interrupted, other.resource.interrupted) == (False, True)



def test_failing_interrupt_does_not_prevent_the_others(
    make: Make, adapter: FakeAdapter, caplog: pytest.LogCaptureFixture
) -> None:
    pool = make()
    with lent_elsewhere(pool, 2) as leases:
        adapter.fail("interrupt", OSError("no"))
        pool.close(0)
        assert sorted(lease.resource.interrupted for lease in leases) == [False, True]
    assert "interrupt() failed" in caplog.text


def test_close_waits_for_creations_and_closes_their_resources(
    make: Make, adapter: FakeAdapter, manual: VirtualClock
) -> None:
    pool = make(clock=manual)
    pool.fill(2)
    closing = Task(pool.close, 60)
    manual.until_parked(1)
    run_jobs(manual)
    closing.result()
    assert (adapter.made, adapter.closed) == (2, 2)


def test_close_waits_for_closes_in_progress(make: Make, manual: VirtualClock) -> None:
    pool = make(clock=manual)
    fill(pool, 1)
    closing = Task(pool.close, 60)
    manual.until_parked(1)
    assert closing.is_alive()
    run_jobs(manual)
    closing.result()


def test_inline_close_needs_no_worker(
    make: Make, adapter: FakeAdapter, manual: VirtualClock
) -> None:
    """The slot is free when the call that caused the close returns."""
    adapter.close_inline, adapter.blocking = True, False
    pool = make(min_size=0, max_size=1, clock=manual)
    pool.acquire().discard()
    assert (manual.jobs, adapter.closed, counts(pool, "size")) == (0, 1, (0,))
    adapter.fail("close", OSError("broken"))
    pool.acquire().discard()
    assert (manual.jobs, adapter.closed, counts(pool, "size")) == (0, 2, (0,))
    assert pool.metrics.snapshot().errors == {"close": 1}


def test_hung_close_does_not_block_the_pools_close(
    make: Make, manual: VirtualClock
) -> None:
    pool = make(clock=manual)
    fill(pool, 1)
    closing = Task(pool.close, 3)
    manual.until_parked(1)
    manual.advance(3)
    closing.result()


def test_closed_pool_creates_nothing(make: Make, adapter: FakeAdapter, clock: VirtualClock) -> None:
    pool = make(min_size=2)
    pool.open()
    pool.close()
    clock.advance(1000)
    assert adapter.made == 2


def test_close_logs_nothing_when_all_is_well(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with make(min_size=2) as pool, pool.acquire():
        pass
    assert caplog.records == []


@pytest.mark.parametrize(
    "verb",
    [Pool.drain, Pool.check, Pool.pause, Pool.resume, lambda pool: pool.resize(5), Pool.close],
)
def test_other_verbs_are_harmless_on_a_closed_pool(
    make: Make, adapter: FakeAdapter, verb: Callable[[Pool[Any]], object]
) -> None:
    pool = make()
    fill(pool, 1)
    pool.close()
    verb(pool)
    with pytest.raises(PoolClosed):
        pool.acquire()
    assert (adapter.made, adapter.closed) == (1, 1)


def test_dropped_pool_closes_its_idle_resources(
    make: Make, adapter: FakeAdapter, clock: VirtualClock
) -> None:
    pool = make()
    fill(pool, 2)
    del pool
    clock.settle()
    assert adapter.open == set()

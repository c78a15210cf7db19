"""Acquire: the wait queue, the deadline, creation, and checks before a resource is lent."""

from __future__ import annotations

import _thread
import queue
import sys
import threading
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest

from pooling import CreateFailed, Lease, Pool, PoolClosed, PoolError, PoolTimeout, TooManyWaiting
from pooling.core.engine import EMPTY_PLAN
from pooling.core.liveness import ANSWER_TTL
from pooling.core.schedule import AUDIT
from pooling.core.waiting import wait_until
from pooling.testing import FakeAdapter, FakeResource, VirtualClock
from tests.unit.conftest import Make, Task, collect, fill, oversleep, run_jobs

# -- idle resources -----------------------------------------------------------------------


def test_nothing_is_created_before_the_first_acquire(make: Make, adapter: FakeAdapter) -> None:
    pool = make(min_size=2)
    assert adapter.made == 0
    with pool.acquire():
        assert adapter.made == 2


def test_acquire_returns_a_lease_and_its_block_gives_the_resource(make: Make) -> None:
    lease = make().acquire()
    assert isinstance(lease, Lease)
    with lease as resource:
        assert isinstance(resource, FakeResource)
        assert lease.resource is resource


def test_resource_is_created_once_and_reused(make: Make, adapter: FakeAdapter) -> None:
    pool = make()
    seen = set()
    for _ in range(5):
        with pool.acquire() as resource:
            seen.add(resource)
    assert len(seen) == adapter.made == 1


def test_idle_resources_are_taken_last_in_first_out(make: Make) -> None:
    pool = make(max_size=3)
    first, second, third = (pool.acquire() for _ in range(3))
    for lease in (second, third, first):
        lease.release()
    assert [pool.acquire().resource.number for _ in range(3)] == [1, 3, 2]


def test_a_resource_has_one_borrower(make: Make) -> None:
    pool = make(max_size=3)
    with pool.acquire() as one, pool.acquire() as two, pool.acquire() as three:
        assert len({one, two, three}) == 3


# -- the wait queue -----------------------------------------------------------------------


def test_waiters_are_served_in_order_of_arrival_by_releases(make: Make, clock: VirtualClock) -> None:
    pool, served = make(max_size=1), []
    lease = pool.acquire()

    def borrow(name: str) -> None:
        with pool.acquire():
            served.append(name)

    tasks = []
    for place, name in enumerate("abcde", 1):
        tasks.append(Task(borrow, name))
        clock.until_parked(place)
    lease.release()
    for task in tasks:
        task.result()
    assert served == list("abcde")


def test_waiters_are_served_in_order_of_arrival_by_creations(make: Make, manual: VirtualClock) -> None:
    pool = make(max_size=3, clock=manual)
    tasks = []
    for place in (1, 2, 3):
        tasks.append(Task(pool.acquire))
        manual.until_parked(place)
    for number in (2, 1, 0):  # the first creation to finish serves the first waiter
        manual.run_job(number)
    assert [task.result().resource.number for task in tasks] == [1, 2, 3]


def test_waiter_takes_the_first_created_or_released_resource(make: Make, manual: VirtualClock) -> None:
    pool = make(max_size=2, clock=manual)
    (held,) = fill(pool, 1)
    lease = pool.acquire()
    waiting = Task(pool.acquire)
    manual.until_parked(1)
    assert manual.jobs == 1
    lease.release()
    assert waiting.result().resource is held
    run_jobs(manual)
    assert pool.stats()["idle"] == 1


def test_newcomer_does_not_overtake_waiters(make: Make, clock: VirtualClock) -> None:
    """Not even where a resource is idle: while there are waiters, `acquire` queues (P3)."""
    pool = make(max_size=1)
    fill(pool, 1)
    pool.pause()
    early = Task(pool.acquire)
    clock.until_parked(1)
    with mock.patch.object(pool.engine, "serve", side_effect=KeyboardInterrupt), pytest.raises(KeyboardInterrupt):
        pool.resume()  # it is interrupted before the waiter is served
    assert (pool.stats()["idle"], pool.stats()["waiting"]) == (1, 1)
    with pytest.raises(PoolTimeout):
        pool.acquire(0)
    early.result().release()


@pytest.fixture
def left_over(make: Make, clock: VirtualClock) -> tuple[Pool[Any], Task]:
    """A pool with an idle resource beside a waiter, as an interruption may leave it, and that waiter."""
    pool = make(max_size=1)
    fill(pool, 1)
    pool.pause()
    waiting = Task(pool.acquire)
    clock.until_parked(1)
    with mock.patch.object(pool.engine, "serve", side_effect=KeyboardInterrupt), pytest.raises(KeyboardInterrupt):
        pool.resume()
    assert (pool.stats()["idle"], pool.stats()["waiting"]) == (1, 1)
    return pool, waiting


def test_interrupted_acquire_serves_the_waiters(left_over: tuple[Pool[Any], Task]) -> None:
    """At once, and not by the next audit (P8)."""
    pool, waiting = left_over
    with mock.patch.object(pool.engine, "plan_locked", side_effect=KeyboardInterrupt):
        pytest.raises(KeyboardInterrupt, pool.acquire)
    waiting.result().release()
    assert pool.metrics.snapshot().audit_repairs == 0


def test_acquire_that_times_out_serves_the_waiters(left_over: tuple[Pool[Any], Task]) -> None:
    pool, waiting = left_over
    with mock.patch.object(pool.engine, "plan_locked", return_value=EMPTY_PLAN):
        pytest.raises(PoolTimeout, pool.acquire, 0)
    waiting.result().release()
    assert pool.metrics.snapshot().audit_repairs == 0


def test_borrower_of_a_dead_resource_keeps_its_queue_position(
    make: Make, adapter: FakeAdapter, clock: VirtualClock
) -> None:
    pool, served = make(max_size=1), []
    fill(pool, 1)
    clock.advance(10)

    def borrow(name: str) -> None:
        with pool.acquire():
            served.append(name)

    adapter.hold("validate")
    adapter.fail("validate", ConnectionError("dead"))
    first = Task(borrow, "first")
    adapter.until_held("validate")
    second = Task(borrow, "second")
    clock.until_parked(1)
    adapter.let_go("validate")
    first.result()
    second.result()
    assert served == ["first", "second"]


def test_pool_whose_resource_proved_dead_is_not_exhausted(
    make: Make, adapter: FakeAdapter, clock: VirtualClock
) -> None:
    pool = make(max_size=1)
    fill(pool, 1)
    clock.advance(10)
    adapter.fail("validate", ConnectionError("dead"))
    pool.acquire().release()
    now = pool.metrics.snapshot()
    assert (now.created, now.closed, now.exhausted) == (2, {"invalid": 1}, 0)


def test_pool_that_was_shrunk_below_a_dead_resource_is_exhausted(
    make: Make, adapter: FakeAdapter, clock: VirtualClock
) -> None:
    pool = make(max_size=2)
    fill(pool, 2)
    lease = pool.acquire(0)
    clock.advance(10)
    adapter.hold("validate")
    adapter.fail("validate", ConnectionError("dead"))
    waiting = Task(pool.acquire)
    adapter.until_held("validate")
    pool.reconfigure(max_size=1)
    adapter.let_go("validate")
    clock.until_parked(1)
    assert pool.metrics.snapshot().exhausted == 1
    lease.release()
    waiting.result().release()


def test_timed_out_waiter_leaves_the_wait_queue(make: Make, clock: VirtualClock) -> None:
    pool = make(max_size=1)
    lease = pool.acquire()
    hasty = Task(pool.acquire, 1)
    clock.until_parked(1)
    patient = Task(pool.acquire, 5)
    clock.until_parked(2)
    clock.advance(1)
    with pytest.raises(PoolTimeout):
        hasty.result()
    lease.release()
    assert patient.result().resource is not None


@pytest.mark.parametrize("room", [1, 2])
def test_wait_queue_is_bounded(make: Make, clock: VirtualClock, room: int) -> None:
    pool = make(max_size=1, max_waiting=room)
    lease = pool.acquire()
    tasks = []
    for place in range(room):
        tasks.append(Task(lambda: pool.acquire().release()))
        clock.until_parked(place + 1)
    with pytest.raises(TooManyWaiting):
        pool.acquire()
    lease.release()
    for task in tasks:
        task.result()
    pool.acquire().release()


def test_max_waiting_zero_still_lends_available_resources(make: Make, adapter: FakeAdapter) -> None:
    """``max_waiting=0`` refuses borrowers that need a release, not those that a creation can serve."""
    pool = make(max_size=2, max_waiting=0)
    one, two = pool.acquire(), pool.acquire()
    with pytest.raises(TooManyWaiting):
        pool.acquire()
    one.release()
    assert pool.acquire().resource is not two.resource


def test_max_waiting_does_not_refuse_a_borrower_of_a_dead_resource(make: Make, manual: VirtualClock) -> None:
    """A resource that is being reset counts as available."""
    pool = make(adapter=FakeAdapter(enforces_timeouts=False), max_size=1, max_waiting=0, clock=manual)
    fill(pool, 1)
    pool.acquire().release()
    again = Task(pool.acquire)
    manual.until_parked(1)
    run_jobs(manual)
    assert again.result().resource.number == 1


# -- the deadline -------------------------------------------------------------------------


@pytest.mark.parametrize(("given", "seconds"), [(3, 3), (0.5, 0.5), (None, 7)])
def test_waiting_ends_at_the_deadline(
    make: Make, clock: VirtualClock, given: float | None, seconds: float
) -> None:
    pool = make(max_size=1, acquire_timeout=7)
    lease = pool.acquire()
    waiting = Task(pool.acquire, given)
    clock.until_parked(1)
    clock.advance(seconds - 0.01)
    clock.until_parked(1)
    clock.advance(0.01)
    with pytest.raises(PoolTimeout):
        waiting.result()
    lease.release()


def test_the_deadline_bounds_a_creation_that_hangs(make: Make, manual: VirtualClock) -> None:
    pool = make(clock=manual)
    waiting = Task(pool.acquire, 3)
    manual.until_parked(1)
    manual.advance(3)
    with pytest.raises(PoolTimeout, match=r"1 creating"):
        waiting.result()


def test_creation_continues_after_its_borrower_timed_out(
    make: Make, adapter: FakeAdapter, manual: VirtualClock
) -> None:
    pool = make(clock=manual)
    waiting = Task(pool.acquire, 3)
    manual.until_parked(1)
    manual.advance(3)
    with pytest.raises(PoolTimeout):
        waiting.result()
    run_jobs(manual)
    assert pool.acquire(0).resource.number == adapter.made == 1


def test_the_deadline_bounds_a_validation_on_a_worker(make: Make, manual: VirtualClock) -> None:
    pool = make(adapter=FakeAdapter(enforces_timeouts=False), max_size=1, clock=manual)
    fill(pool, 1)
    manual.advance(10)
    waiting = Task(pool.acquire, 3)
    manual.until_parked(1)
    manual.advance(3)
    with pytest.raises(PoolTimeout, match=r"1 checking"):
        waiting.result()


class Timed(FakeAdapter):
    """Records the time limits of its validations."""

    def __init__(self, enforces_timeouts: bool = True) -> None:
        super().__init__(enforces_timeouts=enforces_timeouts)
        self.limits: list[float] = []

    def validate(self, resource: FakeResource, timeout: float) -> None:
        self.limits.append(timeout)
        super().validate(resource, timeout)


@pytest.mark.parametrize(
    ("timeout", "waits", "limit"),
    [(2, 0, 2), (2, 1.5, 0.5), (60, 0, 5), (7, 1, 5), (None, 0, 5)],
    ids=["what the call has", "what the wait left", "health_check_timeout", "the less", "default"],
)
def test_validation_is_limited_by_the_remaining_deadline(
    make: Make, clock: VirtualClock, timeout: float | None, waits: float, limit: float
) -> None:
    timed = Timed()
    pool = make(adapter=timed, health_check_timeout=5)
    fill(pool, 1)
    pool.pause()
    clock.advance(10)
    waiting = Task(pool.acquire, timeout)
    clock.until_parked(1)
    clock.advance(waits)
    pool.resume()
    waiting.result()
    assert timed.limits == [limit]


# -- timeout zero -------------------------------------------------------------------------


def test_timeout_zero_takes_an_idle_resource(make: Make, clock: VirtualClock) -> None:
    pool = make()
    (idle,) = fill(pool, 1)
    assert pool.acquire(0).resource is idle


def test_timeout_zero_raises_if_nothing_is_idle(make: Make, manual: VirtualClock) -> None:
    pool = make(clock=manual)
    with pytest.raises(PoolTimeout, match="no thing at once"):
        pool.acquire(0)


def test_acquire_timeout_may_be_zero(make: Make) -> None:
    pool = make(max_size=1, acquire_timeout=0)
    with pool.acquire(), pytest.raises(PoolTimeout, match="no thing at once"):
        pool.acquire()


def test_timeout_zero_checks_the_socket_without_a_round_trip(
    make: Make, adapter: FakeAdapter, clock: VirtualClock
) -> None:
    pool = make()
    dead, good = fill(pool, 2)[::-1]
    clock.advance(10)
    dead.alive = False
    assert pool.acquire(0).resource is good
    assert adapter.calls["validate"] == 0


def test_timeout_zero_does_not_overtake_waiters(make: Make, clock: VirtualClock) -> None:
    pool = make()
    fill(pool, 1)
    pool.pause()
    waiting = Task(pool.acquire)
    clock.until_parked(1)
    with pytest.raises(PoolTimeout):
        pool.acquire(0)
    pool.resume()
    waiting.result()


# -- creation -----------------------------------------------------------------------------


class Located(FakeAdapter):
    """Records the threads in which it creates."""

    def create(self) -> FakeResource:
        self.threads = [*getattr(self, "threads", []), threading.get_ident()]
        return super().create()


@pytest.mark.parametrize(("blocking", "here"), [(True, False), (False, True)])
def test_blocking_creation_runs_on_a_worker(make: Make, blocking: bool, here: bool) -> None:
    located = Located(blocking=blocking)
    pool = make(adapter=located, clock=VirtualClock(workers="threads"))
    with pool.acquire():
        assert [ident == threading.get_ident() for ident in located.threads] == [here]


def test_workers_are_started_on_demand(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    started = []

    def start(function: Callable[..., object], args: tuple[Any, ...]) -> None:
        started.append(function)
        function(*args)

    monkeypatch.setattr("pooling.core.runtime.workers.LINGER", 0)
    monkeypatch.setattr("_thread.start_new_thread", start)
    pool = make(clock=VirtualClock(workers="threads"))
    assert started == []
    with pool.acquire():
        assert len(started) == 1


@pytest.mark.parametrize("borrowers", [1, 3, 20])
def test_never_more_than_max_size_are_created(
    make: Make, adapter: FakeAdapter, manual: VirtualClock, borrowers: int
) -> None:
    pool = make(max_size=3, clock=manual)
    tasks = [Task(lambda: pool.acquire().release()) for _ in range(borrowers)]
    manual.until_parked(borrowers)
    assert manual.jobs == min(borrowers, 3)
    run_jobs(manual)
    for task in tasks:
        task.result()
    assert adapter.most_open <= 3


def test_a_slot_is_taken_until_the_close_has_returned(
    make: Make, adapter: FakeAdapter, manual: VirtualClock
) -> None:
    pool = make(max_size=1, clock=manual)
    fill(pool, 1)
    pool.acquire().discard()
    waiting = Task(pool.acquire)
    manual.until_parked(1)
    assert (manual.jobs, pool.stats()["closing"]) == (1, 1)  # the close, and no creation beside it
    manual.run_job()
    assert (manual.jobs, pool.stats()["creating"]) == (1, 1)
    manual.run_job()
    assert waiting.result().resource.number == 2
    assert adapter.most_open == 1


def fault_in_the_program() -> FakeResource:
    return FakeResource(nonsense=1)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("factory", "says"),
    [(lambda: None, "the factory returned None instead of a resource"), (fault_in_the_program, "nonsense")],
)
def test_programming_error_in_the_factory_fails_at_once(
    make: Make, factory: Callable[[], Any], says: str
) -> None:
    """Not at the deadline: a retry cannot help."""
    with pytest.raises(CreateFailed, match=says) as raised:
        make(factory=factory).acquire()
    assert isinstance(raised.value.__cause__, TypeError)


def test_interrupted_inline_creation_raises_in_the_borrower(
    make: Make, clock: VirtualClock
) -> None:
    adapter = FakeAdapter(blocking=False)
    pool = make(adapter=adapter, max_size=1)
    adapter.fail("create", KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        pool.acquire()
    clock.advance(1)
    assert pool.acquire().resource.number == 1


def test_creation_interrupted_on_a_worker_counts_as_failed(
    make: Make, adapter: FakeAdapter, clock: VirtualClock
) -> None:
    pool = make(max_size=1)
    adapter.fail("create", SystemExit("the factory gave up"))
    waiting = Task(pool.acquire, 5)
    clock.until_parked(1)
    assert pool.stats()["down"] == "SystemExit: the factory gave up"
    clock.advance(1)
    assert waiting.result().resource.number == 1


WAYS_TO_FREE_A_SLOT: dict[str, tuple[str | None, Callable[[Lease[Any]], object]]] = {
    "released": (None, Lease.release),
    "discarded": (None, Lease.discard),
    "detached": (None, Lease.detach),
    "the reset fails": ("reset", Lease.release),
    "the close fails": ("close", Lease.discard),
    "the close of a reset that fails": ("reset close", Lease.release),
    "the next creation fails": ("create", Lease.discard),
}


@pytest.mark.parametrize(("failing", "way"), WAYS_TO_FREE_A_SLOT.values(), ids=WAYS_TO_FREE_A_SLOT)
def test_free_slot_goes_to_the_next_waiter(
    make: Make,
    adapter: FakeAdapter,
    clock: VirtualClock,
    failing: str | None,
    way: Callable[[Lease[Any]], object],
) -> None:
    pool = make(max_size=1)
    lease = pool.acquire()
    waiting = Task(pool.acquire, 5)
    clock.until_parked(1)
    for step in (failing or "").split():
        adapter.fail(step, OSError(step))
    way(lease)
    clock.advance(0.1)  # for what is tried again
    assert waiting.result().resource is not None


def test_slot_of_a_lost_creation_goes_to_the_waiter(make: Make, manual: VirtualClock) -> None:
    pool = make(max_size=1, clock=manual)
    waiting = Task(pool.acquire, 5)
    manual.until_parked(1)
    manual.drop_job()
    collect(manual)
    run_jobs(manual)
    assert waiting.result().resource is not None


# -- checks before lending ----------------------------------------------------------------


@pytest.mark.parametrize("given", [{}, {"factory": object}], ids=["with a reset", "the hot path"])
def test_lifetime_is_checked_before_lending(
    make: Make, clock: VirtualClock, given: dict[str, Any]
) -> None:
    pool = make(max_lifetime=60, **given)
    with pool.acquire() as old:
        pass
    oversleep(clock, 60)
    assert pool.acquire().resource is not old
    assert pool.metrics.snapshot().closed == {"lifetime": 1}


def test_socket_is_checked_before_lending(make: Make, clock: VirtualClock) -> None:
    """However many are dead, the borrower gets a live one (P6)."""
    pool = make(max_size=5)
    for resource in fill(pool, 5):
        resource.alive = False
    assert pool.acquire().resource.number == 6
    assert pool.metrics.snapshot().closed == {"dead": 5}


@pytest.mark.parametrize(
    ("settings", "idle", "pings"),
    [
        ({}, 0.5, 0),
        ({}, 0.51, 1),
        ({"validation_interval": 3}, 3, 0),
        ({"validation_interval": 3}, 3.01, 1),
        ({"validation_interval": 0}, 0.001, 1),
        ({"validate_on_acquire": False}, 100, 0),
    ],
)
@pytest.mark.parametrize("enforces_timeouts", [True, False])
def test_resource_idle_longer_than_the_interval_is_pinged(
    make: Make, clock: VirtualClock, settings: dict[str, Any], idle: float, pings: int, enforces_timeouts: bool
) -> None:
    adapter = FakeAdapter(enforces_timeouts=enforces_timeouts)
    pool = make(adapter=adapter, idle_timeout=None, **settings)
    pool.acquire().release()
    made = adapter.calls["validate"]
    clock.advance(idle)
    pool.acquire()
    assert adapter.calls["validate"] - made == pings


class Ticking(VirtualClock):
    """Advances by a microsecond with each reading, as a real clock does."""

    def now(self) -> float:
        self.skip(1e-6)
        return super().now()


def test_borrower_gets_the_resource_that_it_had_validated(make: Make) -> None:
    """However strict the settings: a resource validated since the acquire began is not validated again."""
    clock = Ticking(workers="manual")
    pool = make(adapter=FakeAdapter(enforces_timeouts=False), validation_interval=0, clock=clock)
    (resource,) = fill(pool, 1)
    clock.advance(10)
    waiting = Task(pool.acquire)
    clock.until_parked(1)
    clock.run_job()
    assert waiting.result().resource is resource


@pytest.mark.parametrize("enforces_timeouts", [True, False])
def test_resource_that_fails_its_ping_is_replaced(make: Make, clock: VirtualClock, enforces_timeouts: bool) -> None:
    adapter = FakeAdapter(enforces_timeouts=enforces_timeouts)
    pool = make(adapter=adapter)
    fill(pool, 1)
    clock.advance(10)
    adapter.fail("validate", ConnectionError("gone"))
    lease = Task(pool.acquire).result()
    assert lease.resource.number == 2
    assert pool.metrics.snapshot().closed == {"invalid": 1}


@pytest.mark.parametrize("death", ["dead", "broken"])
def test_death_makes_resources_of_the_same_age_suspect(
    make: Make, adapter: FakeAdapter, clock: VirtualClock, death: str
) -> None:
    """They are validated before the next lease, however recently used; newer resources are not (P6)."""
    pool = make(max_size=3)
    early, late = fill(pool, 2)
    clock.advance(0.1)
    if death == "dead":
        late.alive = False
        lease = pool.acquire()
        assert lease.resource is early
    else:
        with pytest.raises(ConnectionError), pool.acquire():
            raise ConnectionError("gone")
        lease = pool.acquire()
    assert adapter.calls["validate"] == 1
    clock.advance(0.1)
    lease.release()
    fill(pool, 2)
    clock.advance(0.1)
    pool.acquire(), pool.acquire()
    assert adapter.calls["validate"] == 1


def test_after_the_process_was_frozen_idle_resources_are_suspect(
    make: Make, adapter: FakeAdapter, clock: VirtualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The wall clock ran on, the monotonic one did not: a suspended machine (P6)."""
    wall = [0.0]
    monkeypatch.setattr(clock, "wall", lambda: clock.now() + wall[0])
    pool = make()
    fill(pool, 2)
    clock.advance(0.1)
    wall[0] = 3600
    with pool.acquire(), pool.acquire():
        assert adapter.calls["validate"] == 2
        clock.advance(0.1)
    pool.acquire(), pool.acquire()
    assert adapter.calls["validate"] == 2


@pytest.mark.parametrize("first", ["borrower", "borrower that does not wait", "sweep"])
@pytest.mark.parametrize("enforces", [True, False])
def test_that_the_process_was_frozen_is_reported_once(
    make: Make, clock: VirtualClock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, first: str,
    enforces: bool,
) -> None:
    """Whoever notices it first."""
    caplog.set_level("INFO", "pooling")
    wall = [0.0]
    monkeypatch.setattr(clock, "wall", lambda: clock.now() + wall[0])
    pool = make(adapter=FakeAdapter(enforces_timeouts=enforces))

    def reported() -> list[str]:
        return [record.getMessage() for record in caplog.records if vars(record)["pooling_event"] == "frozen"]

    for number in (1, 2):
        fill(pool, 2)
        clock.advance(0.1)
        wall[0] += 3600
        if first == "sweep":
            clock.advance(3600)
        else:
            pool.acquire(timeout=5 if first == "borrower" else 0).release()
            assert first != "borrower" or len(reported()) == number
        pool.acquire().release()
        clock.advance(3600)
        assert reported() == [f"pool {pool.name!r}: the process was frozen; idle resources are suspect"] * number


@pytest.mark.parametrize("most", [1, 3])
def test_max_validation_failures_replaces_the_rest_without_pings(
    make: Make, adapter: FakeAdapter, clock: VirtualClock, most: int
) -> None:
    """N dead resources of one age do not cost N round trips, each up to a timeout (P6)."""
    pool = make(max_size=8, max_validation_failures=most)
    fill(pool, 8)
    clock.advance(10)
    adapter.fail("validate", ConnectionError("the server was restarted"), times=8)
    assert pool.acquire().resource.number == 9
    assert adapter.calls["validate"] == most
    assert pool.metrics.snapshot().closed == {"invalid": most, "drained": 8 - most}


def test_one_borrower_causes_one_check(make: Make, manual: VirtualClock) -> None:
    """The check on a worker is not repeated with all others while the borrower waits for it."""
    pool = make(adapter=FakeAdapter(enforces_timeouts=False), max_size=5, clock=manual)
    fill(pool, 5)
    manual.advance(10)
    waiting = Task(pool.acquire)
    manual.until_parked(1)
    assert pool.stats()["checking"] == 1
    run_jobs(manual)
    waiting.result()


def test_watcher_of_a_state_is_notified_beside_waiters(make: Make, clock: VirtualClock) -> None:
    pool, wish = make(max_size=1), [False]
    lease = pool.acquire()
    waiting = Task(pool.acquire)
    clock.until_parked(1)
    watching = Task(wait_until, pool.engine, lambda: wish[0], 100.0)
    clock.until_parked(2)
    wish[0] = True
    lease.release()
    assert watching.result() is True
    waiting.result().release()


def test_waiter_for_a_check_on_a_worker_is_not_an_audit_repair(
    make: Make, manual: VirtualClock
) -> None:
    """The audit gives the waiter another idle resource, and counts no repair."""
    pool = make(clock=manual, adapter=FakeAdapter(enforces_timeouts=False), validation_interval=0)
    fill(pool, 2)
    manual.advance(1)
    task = Task(pool.acquire)
    manual.until_parked(1)
    assert (manual.jobs, pool.stats()["idle"]) == (1, 1)
    manual.advance(AUDIT)
    while manual.jobs < 2:
        pass
    assert pool.metrics.snapshot().audit_repairs == 0
    run_jobs(manual)
    task.result()


@pytest.mark.parametrize("answers", [True, None])
def test_resource_that_answered_during_the_wait_is_not_checked_again(
    make: Make, adapter: FakeAdapter, clock: VirtualClock, answers: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapter, "reset", lambda resource: answers)
    pool = make(max_size=1)
    lease = pool.acquire()
    waiting = Task(pool.acquire)
    clock.until_parked(1)
    clock.advance(0.001)
    adapter.calls["is_alive"] = 0
    lease.release()
    waiting.result().release()
    assert adapter.calls["is_alive"] == (0 if answers else 1)
    clock.advance(ANSWER_TTL)
    pool.acquire().release()  # it has been idle since
    assert adapter.calls["is_alive"] == (1 if answers else 2)


@pytest.mark.parametrize("answers", [True, None])
def test_recently_answered_resource_is_not_checked_again(
    make: Make, adapter: FakeAdapter, clock: VirtualClock, answers: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapter, "reset", lambda resource: answers)
    pool = make(max_size=1)
    pool.acquire().release()
    adapter.calls["is_alive"] = 0
    clock.advance(ANSWER_TTL / 2)
    lease = pool.acquire()
    assert adapter.calls["is_alive"] == (0 if answers else 1)
    clock.advance(2 * ANSWER_TTL)
    lease.release()  # it answers again
    clock.advance(ANSWER_TTL / 2)
    pool.acquire().release()
    assert adapter.calls["is_alive"] == (0 if answers else 2)


def test_answer_counts_for_the_release_in_which_it_came(
    make: Make, adapter: FakeAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not for the next one, whose resource is checked before it is lent."""
    answers = iter([True, None])
    monkeypatch.setattr(adapter, "reset", lambda resource: next(answers))
    pool = make(max_size=1)
    for answered in (True, False):
        pool.acquire().release()
        assert pool.engine.state.idle[-1].entry.answered is answered


def test_validation_interval_zero_validates_every_acquire(
    make: Make, adapter: FakeAdapter, clock: VirtualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapter, "reset", lambda resource: True)
    pool = make(max_size=1, validation_interval=0)
    for _ in range(3):
        clock.advance(ANSWER_TTL / 2)
        pool.acquire().release()
    assert adapter.calls["validate"] == 2  # the first was made for this


def test_recently_answered_resource_is_checked_after_a_death(
    make: Make, adapter: FakeAdapter, clock: VirtualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapter, "reset", lambda resource: True)
    pool = make(max_size=2)
    first, second = pool.acquire(), pool.acquire()
    second.release()
    with pytest.raises(ConnectionError), first:  # which says so
        raise ConnectionError
    clock.advance(ANSWER_TTL / 2)
    pool.acquire().release()
    assert adapter.calls["validate"] == 1


def test_resource_released_during_the_wait_is_checked(
    make: Make, adapter: FakeAdapter, clock: VirtualClock
) -> None:
    """It was created after the borrower arrived, which proves it alive, but another borrower has used it since."""
    adapter.fail("create", ConnectionError("down"))
    pool = make(max_size=1)
    first = Task(pool.acquire)
    clock.until_parked(1)
    second = Task(pool.acquire)
    clock.until_parked(2)
    clock.advance(1)
    lease = first.result()
    lease.resource.alive = False
    lease.release()
    assert second.result().resource.alive


def test_return_value_of_a_reset_function_is_ignored(clock: VirtualClock) -> None:
    looks: list[object] = []
    pool = Pool(object, reset=lambda resource: True, validate=looks.append, clock=clock)
    lease = pool.acquire()
    clock.advance(100)
    lease.release()
    entry = pool.engine.state.idle[0].entry
    assert entry.checked < entry.idle_since


@pytest.mark.parametrize("step", ["is_alive", "validate"])
def test_failing_is_alive_means_dead(
    make: Make, adapter: FakeAdapter, clock: VirtualClock, step: str
) -> None:
    pool = make()
    fill(pool, 1)
    clock.advance(10)
    adapter.fail(step, RuntimeError("a bug in the adapter"))
    assert pool.acquire().resource.number == 2


@pytest.mark.parametrize("step", ["is_alive", "validate"])
def test_interrupted_is_alive_closes_the_resource_and_is_reraised(
    make: Make, adapter: FakeAdapter, clock: VirtualClock, step: str
) -> None:
    pool = make(max_size=1)
    (resource,) = fill(pool, 1)
    clock.advance(10)
    adapter.fail(step, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt) as raised:
        pool.acquire()
    del raised  # its traceback keeps alive what the frames held
    collect(clock)
    assert resource.closed == 1
    assert pool.acquire().resource.number == 2


def test_validate_fails_by_raising_or_by_returning_false(clock: VirtualClock, make: Make) -> None:
    answers: list[object] = [False, None, True, ConnectionError("gone")]

    def validate(resource: object) -> object:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    pool = make(factory=object, validate=validate)
    seen = []
    for _ in range(5):
        with pool.acquire() as resource:
            seen.append(resource)
        clock.advance(10)
    first, second, third, fourth, fifth = seen
    assert first is not second is third is fourth is not fifth


# -- threads that hold a lease already ----------------------------------------------------


def test_timeout_mentions_the_leases_of_the_same_thread(make: Make, clock: VirtualClock) -> None:
    pool = make(max_size=1)

    def nest() -> None:
        with pool.acquire(), pool.acquire(5):
            pass

    nested = Task(nest)
    clock.until_parked(1)
    clock.advance(5)
    with pytest.raises(PoolTimeout, match=r"this thread holds 1 itself: test_acquire.py:\d+ nest\(\)"):
        nested.result()


def test_timeout_of_a_thread_without_a_lease_does_not_mention_one(make: Make, clock: VirtualClock) -> None:
    pool = make(max_size=1)
    with pool.acquire():
        other = Task(pool.acquire, 5)
        clock.until_parked(1)
        clock.advance(5)
        with pytest.raises(PoolTimeout) as raised:
            other.result()
    assert "itself" not in str(raised.value)


# -- closed, and re-entered ---------------------------------------------------------------


def test_closed_pool_lends_nothing(make: Make) -> None:
    pool = make()
    pool.acquire().release()
    pool.close()
    with pytest.raises(PoolClosed, match="pool 'test' is closed"):
        pool.acquire()


def test_acquire_inside_the_pools_own_lock_is_refused(make: Make) -> None:
    """A destructor or a signal handler may run there; it must not deadlock."""
    pool = make()
    with pool.engine.lock, pytest.raises(PoolError, match="only a release works there"):
        pool.acquire()


def test_release_inside_the_pools_own_lock_is_deferred(make: Make, clock: VirtualClock) -> None:
    pool = make()
    lease = pool.acquire()
    with pool.engine.lock:
        lease.release()
    clock.settle()
    assert pool.stats()["idle"] == 1


# -- checks and resets without the lock --------------------------------------------------


class NoLock:
    """Fails the test when it is acquired."""

    def __enter__(self) -> None:
        raise AssertionError("the lock was taken")

    def __exit__(self, *_: object) -> None: ...

    def _is_owned(self) -> bool:
        return False


def test_recently_used_resource_is_checked_and_reset_without_the_lock(
    make: Make, adapter: FakeAdapter, clock: VirtualClock
) -> None:
    pool = make(adapter=adapter, clock=clock, validation_interval=1)
    pool.acquire().release()
    lock, looks, resets = pool.engine.lock, adapter.calls["is_alive"], adapter.calls["reset"]
    pool.engine.lock = NoLock()
    for _ in range(3):
        pool.acquire().release()
    pool.engine.lock = lock
    assert (adapter.calls["is_alive"] - looks, adapter.calls["reset"] - resets) == (3, 3)
    assert adapter.calls["validate"] == 0
    clock.advance(2)  # longer ago than "just now"
    pool.acquire().release()
    assert adapter.calls["validate"] == 1
    assert pool.metrics.snapshot().acquired == 5


def test_drain_during_a_reset_closes_the_resource(make: Make, clock: VirtualClock) -> None:
    class Draining(FakeAdapter):
        def reset(self, resource: FakeResource) -> None:
            pool.drain()

    adapter = Draining()
    pool = make(adapter=adapter, clock=clock)
    with pool.acquire() as first:
        pass
    with pool.acquire() as second:
        assert second is not first
    assert first not in adapter.open


@pytest.mark.parametrize("arguments", [(), (None, 2)])
def test_acquire_without_a_python_caller_works(
    adapter: FakeAdapter, monkeypatch: pytest.MonkeyPatch, arguments: tuple[object, ...]
) -> None:
    failed: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", failed.append)
    pool = Pool(adapter=adapter)
    done: queue.SimpleQueue[bool] = queue.SimpleQueue()
    monkeypatch.setattr(adapter, "close", lambda resource: done.put(True))
    _thread.start_new_thread(pool.acquire, arguments)  # it has no Python caller
    assert done.get(timeout=30)  # the lease was given, dropped, and its resource closed
    assert failed == []
    pool.close()

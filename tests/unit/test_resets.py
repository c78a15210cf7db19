"""Repeated reset failures: one incident, logged once, which ends when resets work again."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Literal

import pytest

from pooling import Lease, Observer, Pool, PoolManager, PoolSettings, PoolTimeout
from pooling.core.adapter import Adapter
from pooling.core.checkout import GRACE
from pooling.core.liveness import LATE
from pooling.testing import FakeAdapter, FakeResource, VirtualClock
from tests.unit.conftest import Task


class Ears(Observer):
    def __init__(self) -> None:
        self.heard: list[str] = []

    def resets_failed(self, pool: str, error: BaseException) -> None:
        self.heard.append(f"{pool}: {error}")

    def resets_recovered(self, pool: str) -> None:
        self.heard.append(f"{pool}: recovered")


class Resetting(FakeAdapter):
    """Resets in the releasing thread; fails on demand."""

    enforces_timeouts = True
    failing = False

    def reset(self, resource: object) -> None:
        if self.failing:
            raise RuntimeError("cannot clean")


def test_repeated_reset_failures_are_one_incident(caplog: pytest.LogCaptureFixture) -> None:
    ears, adapter, clock = Ears(), Resetting(), VirtualClock()
    pool: Pool[object] = Pool(
        adapter=adapter, settings=PoolSettings(min_size=0, max_size=2), name="p", observers=[ears], clock=clock
    )

    def lease(times: int, failing: bool) -> None:
        adapter.failing = failing
        for _ in range(times):
            pool.acquire().release()

    caplog.set_level(logging.WARNING, "pooling")
    lease(2, failing=True)
    lease(20, failing=False)
    assert ears.heard == []  # two failures are not an incident
    for _ in range(5):
        lease(1, failing=True)
        lease(2, failing=False)  # of leases that ran nothing, for example
    assert ears.heard == ["p: cannot clean"]
    lease(50, failing=True)
    lease(48, failing=False)
    assert ears.heard == ["p: cannot clean", "p: recovered"]
    lease(10, failing=True)  # again, so soon: the same incident
    lease(48, failing=False)
    assert ears.heard == ["p: cannot clean", "p: recovered"]
    clock.advance(61)
    lease(3, failing=True)
    assert ears.heard == ["p: cannot clean", "p: recovered", "p: cannot clean"]
    texts = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert texts == [
        "pool 'p': resets keep failing, so things are closed at release instead of kept: RuntimeError: cannot clean"
    ] * 2
    pool.close()


def test_health_reports_repeated_reset_failures() -> None:
    adapter = Resetting()
    with PoolManager() as manager:
        pool: Pool[object] = Pool(adapter=adapter, settings=PoolSettings(min_size=0), name="p")
        manager.add_pool(pool, name="p")
        assert manager.health_check()["p"].status == "up"
        adapter.failing = True
        for _ in range(3):
            pool.acquire().release()
        assert manager.health_check()["p"].reason == "resets keep failing: RuntimeError: cannot clean"


def test_hung_resets_count_as_failures() -> None:
    ears, adapter, clock = Ears(), FakeAdapter(enforces_timeouts=False), VirtualClock()
    pool: Pool[object] = Pool(
        adapter=adapter, settings=PoolSettings(min_size=0, max_size=3, reset_timeout=5), name="p",
        observers=[ears], clock=clock,
    )  # fmt: skip
    adapter.hold("reset")
    leases = [pool.acquire() for _ in range(3)]
    hanging = []
    for lease in leases:
        hanging.append(Task(lease.release))  # the virtual clock's workers work in the caller's thread
        adapter.until_held("reset")
    clock.advance(5.1)
    assert ears.heard == ["p: a reset took over 5 s"]
    adapter.let_go("reset")
    for one in hanging:
        one.result()
    pool.close()


# -- resets that are only sent ---------------------------------------------------------


class Sending(FakeAdapter):
    """Its resets are sent; the test gives the answer, or ends the wait for it with an error."""

    def __init__(self) -> None:
        super().__init__(enforces_timeouts=True)
        self.answer: BaseException | bool = True
        self.late: set[FakeResource] = set()
        self.waits: list[float] = []
        self.meanwhile: Callable[[], object] = int

    def reset(self, resource: FakeResource) -> str:
        return "sent"

    def finish_reset(self, resource: FakeResource, timeout: float) -> bool:
        self.waits.append(timeout)
        if timeout:
            self.meanwhile()
        if isinstance(self.answer, BaseException):
            raise self.answer
        if resource in self.late:
            return False
        if self.answer:
            super().reset(resource)
        return self.answer


class Interrupted(BaseException):
    pass


@pytest.fixture
def sending() -> Sending:
    return Sending()


def lent(adapter: Sending, clock: VirtualClock, size: int = 1, **settings: object) -> Pool[FakeResource]:
    """Make a pool whose idle resources wait for the answers to their resets."""
    given = PoolSettings(min_size=0, max_size=size, health_check_interval=None).replace(**settings)  # type: ignore[arg-type]
    pool: Pool[FakeResource] = Pool(adapter=adapter, settings=given, clock=clock)
    for lease in [pool.acquire() for _ in range(size)]:
        lease.resource.dirty = True
        lease.release()
    adapter.waits.clear()
    return pool


def test_a_release_does_not_wait_and_the_next_borrower_does(sending: Sending, clock: VirtualClock) -> None:
    pool = lent(sending, clock)
    sending.answer = False
    sending.meanwhile = lambda: setattr(sending, "answer", True)
    with pool.acquire(timeout=0) as resource:
        assert not resource.dirty
    assert sending.waits[-1] == GRACE and set(sending.waits[:-1]) == {0.0}


def test_an_answer_that_is_there_is_not_waited_for(sending: Sending, clock: VirtualClock) -> None:
    pool = lent(sending, clock)
    with pool.acquire() as resource:
        assert not resource.dirty
    assert sending.waits == [0.0]
    assert sending.calls["validate"] == 0


def test_a_worker_waits_for_a_late_answer_and_the_borrower_takes_what_comes_first(sending: Sending) -> None:
    """P4, P8: two resources, one of which is lent and released while the other's answer is late."""
    clock = VirtualClock(workers="manual")
    given = PoolSettings(min_size=0, max_size=2, health_check_interval=None)
    pool: Pool[FakeResource] = Pool(adapter=sending, settings=given, clock=clock)
    first, second = [acquired(pool, clock) for _ in range(2)]
    late = second.resource
    second.release()
    sending.answer = False
    borrower = Task(pool.acquire, timeout=5)
    clock.until_parked(1)
    assert pool.stats()["checking"] == clock.jobs == 1
    sending.answer = True  # but the worker does not know it yet
    first.release()
    clock.settle()
    lease = borrower.result()
    assert lease.resource is not late
    clock.run_job()
    assert (pool.stats()["idle"], pool.stats()["checking"]) == (1, 0)
    with pool.acquire() as resource:
        assert resource is late


def acquired(pool: Pool[FakeResource], clock: VirtualClock) -> Lease[FakeResource]:
    task = Task(pool.acquire)
    clock.until_parked(1)
    clock.run_job()
    clock.settle()
    lease: Lease[FakeResource] = task.result()
    return lease


def test_a_borrower_whose_time_is_up_before_the_answer(sending: Sending) -> None:
    """P4: it fails in time, and the resource is lent again when the answer is there."""
    clock = VirtualClock(workers="manual")
    pool: Pool[FakeResource] = Pool(
        adapter=sending, settings=PoolSettings(min_size=0, max_size=1, health_check_interval=None), clock=clock
    )
    acquired(pool, clock).release()
    sending.answer = False
    for timeout in (0, 3):
        borrower = Task(pool.acquire, timeout=timeout)
        if timeout:
            clock.until_parked(1)
            clock.advance(timeout)
        with pytest.raises(PoolTimeout):
            borrower.result()
    sending.answer = True
    clock.run_job()
    assert pool.acquire(timeout=0).resource.number == 1


@pytest.mark.parametrize("lost", [False, True])
def test_a_reset_that_has_failed_costs_no_borrower(
    sending: Sending, clock: VirtualClock, caplog: pytest.LogCaptureFixture, lost: bool
) -> None:
    """P5, P6: the resource is replaced; a lost connection counts as a death, which makes older ones suspect."""
    pool = lent(sending, clock, size=2)
    sending.answer = ConnectionError("lost") if lost else RuntimeError("cannot clean")
    sending.meanwhile = lambda: None
    with pool.acquire() as resource:
        assert not resource.dirty
    snapshot = pool.metrics.snapshot()
    assert snapshot.closed == ({"dead": 2} if lost else {"reset": 2})
    assert snapshot.errors.get("reset", 0) == (0 if lost else 2)


def test_resets_that_keep_failing_later_are_one_incident(sending: Sending, clock: VirtualClock) -> None:
    ears = Ears()
    pool = lent(sending, clock)
    pool.add_observer(ears)
    for answer in [RuntimeError("cannot clean")] * 4 + [True] * 50:
        sending.answer = answer
        pool.acquire().release()
    assert [text.partition(": ")[2] for text in ears.heard] == ["cannot clean", "recovered"]


def test_interrupted_while_it_waits_for_an_answer(sending: Sending, clock: VirtualClock) -> None:
    """P8: the slot is free, and the resource, whose state nobody knows, is closed."""
    pool = lent(sending, clock)
    sending.answer = False

    def interrupt() -> None:
        raise Interrupted

    sending.meanwhile = interrupt
    with pytest.raises(Interrupted):
        pool.acquire()
    clock.settle()
    assert (pool.stats()["size"], pool.metrics.snapshot().closed) == (0, {"interrupted": 1})
    sending.answer, sending.meanwhile = True, int
    assert pool.acquire().resource.number == 2


@pytest.mark.parametrize("what", ["keepalive", "health", "probe", "check"])
def test_who_else_uses_idle_resources_waits_for_the_answer(sending: Sending, clock: VirtualClock, what: str) -> None:
    """P5: no round trip is made before the answer to the reset, and a failed reset is found."""
    pool = lent(sending, clock, keepalive_interval=30)

    def act() -> None:
        if what == "keepalive":
            clock.advance(31)
        elif what == "health":
            pool.check_health_now()
            pool.reconfigure(health_check_interval=1)
            clock.advance(1)
        else:
            getattr(pool, what)()

    act()
    assert len(sending.waits) >= 1 and sending.calls["validate"] >= 1
    (entry,) = pool.engine.state.entries
    assert not entry.resource.dirty
    pool.acquire().release()
    sending.answer = RuntimeError("cannot clean")
    act()
    assert pool.metrics.snapshot().closed == {"reset": 1}


def test_check_leaves_a_resource_whose_answer_is_still_to_come(sending: Sending, clock: VirtualClock) -> None:
    pool = lent(sending, clock)
    sending.answer = False
    pool.check()
    assert pool.stats()["idle"] == 1 and sending.calls["validate"] == 0


def test_only_an_adapter_that_enforces_its_limits_sends_resets(sending: Sending, clock: VirtualClock) -> None:
    sending.enforces_timeouts = False
    pool = lent(sending, clock)
    pool.acquire().release()
    assert sending.waits == []


def test_a_sweep_reads_an_answer_that_nobody_has_needed(sending: Sending, clock: VirtualClock) -> None:
    """A failed reset may have left a lock at the server, which ends with its connection."""
    pool = lent(sending, clock)
    clock.advance(LATE / 2)
    assert sending.waits == []
    clock.advance(LATE)
    assert sending.waits == [0.0] and pool.stats()["idle"] == 1
    pool.acquire().release()
    sending.answer = RuntimeError("cannot clean")
    clock.advance(2 * LATE)
    assert pool.metrics.snapshot().closed == {"reset": 1}


def test_a_borrower_is_served_at_once_by_another_idle_resource(sending: Sending) -> None:
    """P8: the one on top of the stack is late, the one below is not."""
    clock = VirtualClock(workers="manual")
    given = PoolSettings(min_size=0, max_size=2, health_check_interval=None)
    pool: Pool[FakeResource] = Pool(adapter=sending, settings=given, clock=clock)
    below, top = [acquired(pool, clock) for _ in range(2)]
    late, good = top.resource, below.resource
    below.release()
    top.release()
    sending.late = {late}
    lease = pool.acquire(timeout=0)
    assert lease.resource is good


def test_one_acquire_waits_for_one_answer_only(sending: Sending) -> None:
    """P4: three late ones do not add up."""
    clock = VirtualClock(workers="manual")
    given = PoolSettings(min_size=0, max_size=3, health_check_interval=None)
    pool: Pool[FakeResource] = Pool(adapter=sending, settings=given, clock=clock)
    for lease in [acquired(pool, clock) for _ in range(3)]:
        lease.release()
    sending.answer = False
    with pytest.raises(PoolTimeout):
        pool.acquire(timeout=0)
    assert sending.waits.count(GRACE) == 1 and pool.stats()["checking"] == 3


def test_a_late_answer_does_not_take_the_place_of_a_creation(sending: Sending) -> None:
    clock = VirtualClock(workers="manual")
    given = PoolSettings(min_size=0, max_size=2, health_check_interval=None)
    pool: Pool[FakeResource] = Pool(adapter=sending, settings=given, clock=clock)
    acquired(pool, clock).release()
    sending.answer = False
    borrower = Task(pool.acquire, timeout=5)
    clock.until_parked(1)
    assert (pool.stats()["checking"], pool.stats()["creating"]) == (1, 1)
    clock.run_job(1)
    clock.settle()
    assert borrower.result().resource.number == 2


def test_an_adapter_without_checks_may_send_resets(clock: VirtualClock) -> None:
    class Bare(Adapter[FakeResource]):
        enforces_timeouts = True
        finished = 0

        def create(self) -> FakeResource:
            return FakeResource(1)

        def reset(self, resource: FakeResource) -> Literal["sent"]:
            return "sent"

        def finish_reset(self, resource: FakeResource, timeout: float) -> bool:
            self.finished += 1
            return True

    adapter = Bare()
    pool: Pool[FakeResource] = Pool(adapter=adapter, settings=PoolSettings(min_size=0), clock=clock)
    for _ in range(4):
        pool.acquire().release()
    assert adapter.finished == 3


def test_a_failed_reset_is_no_failed_health_check(sending: Sending, clock: VirtualClock) -> None:
    pool = lent(sending, clock)
    heard: list[object] = []

    class Checked(Observer):
        def health_checked(self, pool: str, error: BaseException | None) -> None:
            heard.append(error)

    pool.add_observer(Checked())
    sending.answer = RuntimeError("cannot clean")
    pool.reconfigure(health_check_interval=0.5)
    pool.check_health_now()
    clock.advance(0.1)
    assert pool.metrics.snapshot().closed == {"reset": 1}
    assert heard == []


def test_a_wait_for_an_answer_is_not_part_of_the_lease(sending: Sending, clock: VirtualClock) -> None:
    pool = lent(sending, clock)
    sending.answer = False

    def arrives() -> None:
        clock.skip(0.03)
        sending.answer = True

    sending.meanwhile = arrives
    pool.acquire().release()
    snapshot = pool.metrics.snapshot()
    assert snapshot.wait.max == pytest.approx(0.03) and snapshot.use.max < 0.03


def test_a_close_does_not_wait_for_a_late_answer(sending: Sending) -> None:
    clock = VirtualClock(workers="manual")
    given = PoolSettings(min_size=0, max_size=1, health_check_interval=None)
    pool: Pool[FakeResource] = Pool(adapter=sending, settings=given, clock=clock)
    acquired(pool, clock).release()
    sending.answer = False
    with pytest.raises(PoolTimeout):
        pool.acquire(timeout=0)
    sending.meanwhile = lambda: pool.close(timeout=0)
    while clock.jobs:
        clock.run_job()
    assert pool.stats()["size"] == 0

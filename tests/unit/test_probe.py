"""Health checks of a pool: they never wait behind borrowers, and tell a full pool from a dead server."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from typing import Any

import pytest

from pooling import CreateFailed, Observer, Pool, PoolClosed, PoolManager, PoolTimeout, PoolUnavailable
from pooling.testing import FakeAdapter, VirtualClock
from tests.unit.conftest import Make, Task, lent_elsewhere, run_jobs

FULL_AND_DOWN = "exhausted: 1 of 1 in use, 0 waiting; the server does not answer: .*nobody there"


class Pinged(FakeAdapter):
    """A server that can be asked outside of the pool."""

    def __init__(self) -> None:
        super().__init__()
        self.pings, self.errors = 0, list[Exception]()

    def ping(self, timeout: float) -> None:
        self.pings += 1
        if self.errors:
            raise self.errors.pop(0)


class Leases(Observer):
    def __init__(self) -> None:
        self.seen: list[str] = []

    def acquired(self, pool: str, waited: float) -> None:
        self.seen.append("acquired")

    def released(self, pool: str, held: float) -> None:
        self.seen.append("released")


def down() -> ConnectionError:
    return ConnectionRefusedError("nobody there")


def soon(condition: Callable[[], object]) -> None:
    """Give other threads real time until a condition holds."""
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def waiters(pool: Pool[Any], clock: VirtualClock, number: int) -> list[Task]:
    tasks = []
    for count in range(1, number + 1):
        tasks.append(Task(pool.acquire, 100.0))
        clock.until_parked(count)
    return tasks


# -- a full pool -----------------------------------------------------------------------------


def test_full_pool_is_exhausted_at_once(make: Make, clock: VirtualClock) -> None:
    pool = make(max_size=2)
    with lent_elsewhere(pool, 2) as leases:
        assert pool.probe() == "exhausted: 2 of 2 in use, 0 waiting"
        tasks = waiters(pool, clock, 3)
        clock.advance(2.1)
        assert pool.probe() == pool.exhaustion() == "exhausted: 2 of 2 in use, 3 waiting, the oldest for 2.1 s"
        assert pool.stats()["waiting"] == 3
        for lease in list(leases):
            lease.release()
        first = [tasks[0].result(), tasks[1].result()]
        first[0].release()
        tasks[2].result().release()
        first[1].release()
    snapshot = pool.metrics.snapshot()
    assert (snapshot.timeouts, snapshot.refusals, snapshot.requests, snapshot.exhausted) == (0, 0, 5, 1)


def test_full_wait_queue_refuses_no_health_check(make: Make) -> None:
    pool = make(max_size=1, max_waiting=0)
    with pool.acquire():
        assert pool.probe() == "exhausted: 1 of 1 in use, 0 waiting"
    assert pool.metrics.snapshot().refusals == 0


def test_full_pool_degrades_the_manager_and_its_summary(make: Make) -> None:
    manager = PoolManager()
    pool = make(max_size=1)
    manager.add_pool(pool, "db")
    assert manager.health_check().status == manager.get_performance_summary()["status"] == "up"
    with pool.acquire():
        health = manager.health_check()
        assert (health.status, health["db"].reason) == ("degraded", "exhausted: 1 of 1 in use, 0 waiting")
        assert manager.get_performance_summary()["status"] == "degraded"
    assert manager.health_check().status == "up"


def test_paused_and_closed(make: Make) -> None:
    pool = make()
    pool.pause()
    assert pool.probe() == "paused"
    pool.close()
    with pytest.raises(PoolClosed):
        pool.probe()


def test_holder_is_the_health_check(make: Make, adapter: FakeAdapter) -> None:
    pool = make()
    adapter.hold("validate")
    probe = Task(pool.probe)
    adapter.until_held("validate")
    (holder,) = pool.holders()
    adapter.let_go("validate")
    assert probe.result() is None
    assert str(holder).startswith("probe.py:")


# -- a pool with room ------------------------------------------------------------------------


def test_idle_resource_makes_the_round_trip(make: Make, adapter: FakeAdapter) -> None:
    leases = Leases()
    pool = make(observers=[leases])
    assert (pool.probe(), pool.probe()) == (None, None)
    assert (adapter.made, adapter.calls["validate"]) == (1, 2)
    assert leases.seen == ["acquired", "released"] * 2
    assert (pool.stats()["idle"], pool.stats()["in_use"]) == (1, 0)


def test_new_resource_goes_to_the_waiter_first(make: Make, manual: VirtualClock, adapter: FakeAdapter) -> None:
    pool = make(clock=manual, max_size=2)
    waiter = Task(pool.acquire, 100.0)
    manual.until_parked(1)
    probe = Task(pool.probe, 50.0)
    manual.until_parked(2)
    assert pool.stats()["waiting"] == 1  # the health check is not in the queue
    run_jobs(manual)
    lease = waiter.result()
    soon(lambda: manual.jobs)  # another one is created for the health check
    run_jobs(manual)
    assert probe.result() is None
    lease.release()


def test_creation_that_takes_too_long_is_down(make: Make, manual: VirtualClock) -> None:
    pool = make(clock=manual)
    probe = Task(pool.probe, 3.0)
    manual.until_parked(1)
    manual.advance(3.0)
    with pytest.raises(PoolUnavailable, match=r"no thing for a health check within 3\.0 s \(0/2 in use"):
        probe.result()


def test_creation_that_takes_too_long_beside_resources_in_use_is_only_slow(make: Make, manual: VirtualClock) -> None:
    pool = make(clock=manual)
    holder = Task(pool.acquire, 100.0)
    manual.until_parked(1)
    run_jobs(manual)
    lease = holder.result()
    probe = Task(pool.probe, 3.0)
    manual.until_parked(1)
    manual.advance(3.0)
    with pytest.raises(PoolTimeout) as caught:
        probe.result()
    assert caught.value.__cause__ is None
    lease.release()


def test_server_down_is_reported_after_two_attempts(make: Make, clock: VirtualClock, adapter: FakeAdapter) -> None:
    adapter.fail("create", down(), times=100)
    pool = make()
    probe = Task(pool.probe, 1e6)
    clock.until_parked(1)
    soon(lambda: clock.advance(0.1) or not probe.is_alive())  # type: ignore[func-returns-value]
    with pytest.raises(PoolUnavailable, match="nobody there"):
        probe.result()
    assert adapter.calls["create"] == 2
    assert pool.stats()["waiting"] == 0


def test_final_error_is_reported_at_once(make: Make, adapter: FakeAdapter) -> None:
    adapter.final = (ConnectionRefusedError,)
    adapter.fail("create", down(), times=100)
    with pytest.raises(CreateFailed, match="cannot create a thing: .*nobody there"):
        make().probe(60.0)


def test_waiters_in_an_outage_are_not_joined(make: Make, clock: VirtualClock, adapter: FakeAdapter) -> None:
    adapter.fail("create", down(), times=100)
    pool = make()
    tasks = waiters(pool, clock, 3)
    with pytest.raises(PoolUnavailable, match="3 waiting.*nobody there"):
        pool.probe(60.0)
    assert pool.stats()["waiting"] == 3
    adapter.mend("create")
    clock.advance(5.0)
    for task in tasks[:2]:
        task.result().release()
    tasks[2].result().release()


# -- is the server down as well? ---------------------------------------------------------------


def full(make: Make, clock: VirtualClock, adapter: FakeAdapter) -> Pool[Any]:
    pool = make(adapter=adapter, clock=clock, max_size=1)
    lease = pool.acquire()
    pool.held = lease  # type: ignore[attr-defined]
    return pool


def test_server_that_answers_outside_is_not_down(make: Make, clock: VirtualClock) -> None:
    adapter = Pinged()
    pool = full(make, clock, adapter)
    assert pool.probe() == "exhausted: 1 of 1 in use, 0 waiting"
    assert adapter.pings == 0  # it has just answered: the connection is new
    clock.advance(1.5)
    assert pool.probe() == pool.probe() == "exhausted: 1 of 1 in use, 0 waiting"
    assert adapter.pings == 1  # once a second
    clock.advance(1.5)
    pool.probe()
    assert adapter.pings == 2


def test_server_that_does_not_answer_outside_is_down(make: Make, clock: VirtualClock) -> None:
    adapter = Pinged()
    pool = full(make, clock, adapter)
    clock.advance(1.5)
    adapter.errors.append(down())
    for _ in range(2):  # the second from memory
        with pytest.raises(PoolUnavailable, match=FULL_AND_DOWN):
            pool.probe()
    clock.advance(1.5)
    assert pool.probe() == "exhausted: 1 of 1 in use, 0 waiting"


def test_late_answer_counts_for_the_next_check(make: Make, manual: VirtualClock) -> None:
    adapter = Pinged()
    pool = make(adapter=adapter, clock=manual, max_size=1)
    holder = Task(pool.acquire, 100.0)
    manual.until_parked(1)
    run_jobs(manual)
    lease = holder.result()
    manual.advance(1.5)
    probe = Task(pool.probe)
    manual.until_parked(1)
    others = [Task(pool.probe) for _ in range(9)]
    manual.until_parked(10)
    manual.advance(0.25)
    assert {one.result() for one in (probe, *others)} == {"exhausted: 1 of 1 in use, 0 waiting"}
    adapter.errors.append(TimeoutError("no answer"))
    assert manual.jobs == 1  # one question for all
    run_jobs(manual)
    with pytest.raises(PoolUnavailable, match="no answer"):
        pool.probe()
    manual.advance(31.0)  # there was no acquire since then: what was known is too old
    last = Task(pool.probe)
    manual.until_parked(1)
    manual.advance(0.25)
    assert last.result() == "exhausted: 1 of 1 in use, 0 waiting"
    run_jobs(manual)
    lease.release()


def test_outage_of_a_full_pool_is_down(make: Make, clock: VirtualClock, adapter: FakeAdapter) -> None:
    pool = make(max_size=2, acquire_timeout=0.0)
    first, second = pool.acquire(), pool.acquire()
    first.discard()
    adapter.fail("create", down(), times=3)
    with pytest.raises(PoolUnavailable):
        pool.acquire()  # and its thread has given up
    pool.resize(1)  # full, and the last creation failed
    with pytest.raises(PoolUnavailable, match=FULL_AND_DOWN):
        pool.probe()
    second.release()


def test_sockets_that_the_server_has_closed_mean_that_it_is_down() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        pool = Pool(lambda: socket.create_connection(server.getsockname()), close=socket.socket.close, max_size=2)
        with pool.acquire(), pool.acquire():
            peers = [server.accept()[0] for _ in range(2)]
            assert (pool.probe() or "").startswith("exhausted: 2 of 2")
            peers[0].close()
            assert (pool.probe() or "").startswith("exhausted: 2 of 2")  # one is still good
            peers[1].close()
            with pytest.raises(PoolUnavailable, match="the server has closed every resource in use"):
                pool.probe()
        pool.close()


# -- many threads ------------------------------------------------------------------------------


def test_health_checks_share_one_idle_resource() -> None:
    pool = Pool(adapter=FakeAdapter(), max_size=1)
    results = [task.result() for task in [Task(pool.probe, 30.0) for _ in range(30)]]
    assert set(results) == {None}  # one of them holds it, but no borrower does
    pool.close()

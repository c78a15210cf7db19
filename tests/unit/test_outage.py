"""Outages: one probe at a time, its pace, what borrowers are told, and recovery."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest

from pooling import CreateFailed, Lease, Observer, Pool, PoolTimeout, PoolUnavailable
from pooling.testing import FakeAdapter, FakeResource, VirtualClock
from tests.unit.conftest import Make, Task, fill, run_jobs

DOWN = ConnectionRefusedError("down")
WRONG = PermissionError("wrong password")


class Server(FakeAdapter):
    """A server that can be down; records the times of attempts."""

    def __init__(self, clock: VirtualClock) -> None:
        super().__init__()
        self.clock = clock
        self.start = clock.now()
        self.error: BaseException | None = DOWN
        self.final = (PermissionError,)
        self.attempts: list[float] = []

    def create(self) -> FakeResource:
        self.attempts.append(round(self.clock.now() - self.start, 6))
        if self.error is not None:
            raise self.error
        return super().create()


@pytest.fixture
def server(clock: VirtualClock) -> Server:
    return Server(clock)


def in_line(pool: Pool[Any], clock: VirtualClock, number: int, timeout: float = 60) -> list[Task]:
    """Have so many borrowers wait, one after the other."""
    tasks = []
    for place in range(number):
        tasks.append(Task(pool.acquire, timeout))
        clock.until_parked(place + 1)
    return tasks


def in_flight(clock: VirtualClock) -> Iterator[int]:
    """Let one creation after the other succeed; return how many are in progress each time."""
    while clock.jobs:
        yield clock.jobs
        clock.run_job()


# -- probes -------------------------------------------------------------------------------


def test_creations_in_flight_end_before_one_probe_starts(make: Make, manual: VirtualClock) -> None:
    server = Server(manual)
    pool = make(adapter=server, max_size=5, clock=manual)
    tasks = in_line(pool, manual, 5)
    assert manual.jobs == 5
    for left in (4, 3, 2, 1, 0):
        manual.run_job()
        assert manual.jobs == left  # none is replaced
    for _ in range(10):
        manual.advance(1)
        assert manual.jobs == 1  # however long that takes
        manual.run_job()
    server.error = None
    manual.advance(1)
    run_jobs(manual)
    for task in tasks:
        task.result()


def test_concurrent_failures_count_as_one(make: Make, manual: VirtualClock) -> None:
    """Five failures of creations in flight do not double the delay five times."""
    server = Server(manual)
    pool = make(adapter=server, max_size=5, clock=manual, min_size=5)
    pool.fill()
    run_jobs(manual)
    manual.advance(0.05)
    assert manual.jobs == 1


def test_delay_doubles_to_its_maximum(make: Make, clock: VirtualClock, server: Server) -> None:
    pool = make(adapter=server, min_size=1, backoff_initial=1, backoff_maximum=10)
    pool.fill()
    clock.advance(60)
    assert server.attempts == [0, 1, 3, 7, 15, 25, 35, 45, 55]


def test_delay_has_full_jitter(make: Make, clock: VirtualClock, server: Server) -> None:
    """Full jitter: clients that failed together do not return together."""
    random.seed(7)
    pool = make(adapter=server, min_size=1, backoff_initial=8, backoff_maximum=8, backoff_jitter=True)
    pool.fill()
    clock.advance(2000)
    delays = [late - early for early, late in zip(server.attempts, server.attempts[1:])]
    assert 0 < min(delays) < 1
    assert 7 < max(delays) < 8
    assert sum(delays) / len(delays) == pytest.approx(4, rel=0.1)


@pytest.mark.parametrize(
    ("backoff", "attempts"),
    [
        ({}, [0, 0.05, 0.15, 0.35, 0.6, 0.85, 1.1]),
        ({"backoff_probe_interval": 0.3, "backoff_initial": 0.1}, [0, 0.1, 0.3, 0.6, 0.9, 1.2]),
        ({"backoff_initial": 5}, [0, 0.25, 0.5, 0.75, 1.0, 1.25]),
    ],
)
def test_delay_is_short_while_borrowers_wait(
    make: Make, clock: VirtualClock, server: Server, backoff: dict[str, float], attempts: list[float]
) -> None:
    pool = make(adapter=server, **backoff)
    in_line(pool, clock, 1, timeout=60)
    clock.advance(1.3)
    assert server.attempts == attempts
    clock.advance(60)


@pytest.mark.parametrize("other", [{}, {"create_timeout": 7}, {"leak_timeout": 5}])
def test_probe_is_not_lost_to_an_earlier_sweep(
    make: Make, clock: VirtualClock, server: Server, other: dict[str, float]
) -> None:
    pool = make(adapter=server, min_size=1, backoff_initial=60, backoff_maximum=60, **other)
    pool.fill()
    clock.advance(200)
    assert server.attempts == [0, 60, 120, 180]


def test_acquire_during_a_long_delay_shortens_it(
    make: Make, clock: VirtualClock, server: Server
) -> None:
    pool = make(adapter=server, backoff_initial=30, backoff_probe_interval=0.25)
    pool.fill(1)
    clock.advance(10)
    (task,) = in_line(pool, clock, 1)
    server.error = None
    clock.advance(0.25)
    assert task.result().resource is not None
    assert server.attempts == [0, 10.25]


def test_attempts_do_not_grow_with_the_number_of_borrowers(
    make: Make, clock: VirtualClock, server: Server
) -> None:
    pool = make(adapter=server, max_size=10)
    for second in range(5):
        Task(pool.acquire, 60)
        clock.until_parked(second + 1)
        clock.advance(1)
    assert len(server.attempts) <= 5 / 0.25 + 4
    clock.advance(60)


def test_server_is_not_probed_without_demand(make: Make, clock: VirtualClock, server: Server) -> None:
    pool = make(adapter=server)
    with pytest.raises(PoolUnavailable):
        pool.acquire(0)
    clock.advance(1000)
    assert server.attempts == [0]


# -- recovery -----------------------------------------------------------------------------


def test_waiters_are_served_in_order_after_recovery(
    make: Make, clock: VirtualClock, server: Server
) -> None:
    pool = make(adapter=server, max_size=3)
    tasks = in_line(pool, clock, 3)
    clock.advance(20)
    server.error = None
    clock.advance(0.25)
    assert [task.result().resource.number for task in tasks] == [1, 2, 3]
    assert pool.stats()["down"] is None


def test_after_recovery_creation_ramps_up(make: Make, manual: VirtualClock) -> None:
    server = Server(manual)
    pool = make(adapter=server, min_size=20, max_size=20, clock=manual)
    pool.fill()
    run_jobs(manual)
    server.error = None
    manual.advance(1)
    flights = list(in_flight(manual))
    assert flights[:4] == [1, 2, 4, 8]
    assert len(flights) == 20


def test_failure_during_the_ramp_starts_it_again(make: Make, manual: VirtualClock) -> None:
    server = Server(manual)
    pool = make(adapter=server, min_size=20, max_size=20, clock=manual)
    pool.fill()
    run_jobs(manual)
    server.error = None
    manual.advance(1)
    manual.run_job()
    manual.run_job()
    server.error = DOWN
    run_jobs(manual)
    server.error = None
    manual.advance(1)
    assert list(in_flight(manual))[:3] == [1, 2, 4]


def test_a_new_pool_needs_no_ramp(make: Make, manual: VirtualClock) -> None:
    pool = make(min_size=20, max_size=20, clock=manual)
    pool.fill()
    assert manual.jobs == 20


def test_outage_after_a_recovery_is_a_new_one(
    make: Make, clock: VirtualClock, server: Server
) -> None:
    pool = make(adapter=server, min_size=1, backoff_initial=1)
    pool.fill()
    clock.advance(20)
    server.error = None
    clock.advance(20)
    assert pool.stats()["idle"] == 1
    server.error, server.attempts = DOWN, []
    server.start = clock.now()
    pool.acquire().discard()
    clock.advance(3)
    assert server.attempts == [0, 1, 3]


def test_pool_never_stops_trying(make: Make, clock: VirtualClock, server: Server) -> None:
    pool = make(adapter=server, min_size=1, max_attempts=3)
    pool.fill()
    clock.advance(24 * 3600)
    server.error = None
    clock.advance(30)
    assert pool.stats()["idle"] == 1


def test_open_resources_are_lent_during_an_outage(
    make: Make, clock: VirtualClock, server: Server
) -> None:
    server.error = None
    pool = make(adapter=server, max_size=2)
    pool.acquire().release()
    server.error = DOWN
    pool.fill(2)
    assert pool.acquire(0).resource.number == 1


def test_release_serves_a_waiter_during_an_outage(
    make: Make, clock: VirtualClock, server: Server
) -> None:
    server.error = None
    pool = make(adapter=server, max_size=2)
    lease = pool.acquire()
    server.error = DOWN
    (task,) = in_line(pool, clock, 1)
    lease.release()
    assert task.result().resource.number == 1


# -- limits after a death -------------------------------------------------------------------


def in_use(pool: Pool[Any], number: int) -> list[Lease[Any]]:
    return [pool.acquire(0) for _ in range(number)]


def break_all(leases: list[Lease[Any]]) -> None:
    """Each borrower notices at its own time, by an error."""
    while leases:
        with pytest.raises(ConnectionError), leases.pop():
            raise ConnectionError("gone")


def test_dead_server_sees_one_attempt_when_all_resources_break(make: Make, manual: VirtualClock) -> None:
    server = Server(manual)
    server.error = None
    pool = make(adapter=server, max_size=8, clock=manual)
    fill(pool, 8)
    leases = in_use(pool, 8)
    tasks = in_line(pool, manual, 8)
    server.error, server.attempts = DOWN, []
    break_all(leases)
    run_jobs(manual)  # all are closed, and the permitted creations were tried
    assert len(server.attempts) == 1
    server.error = None
    manual.advance(0.05)
    run_jobs(manual)
    for task in tasks:
        task.result().release()


def test_free_slot_does_not_bypass_max_waiting(make: Make, manual: VirtualClock) -> None:
    """The death is recorded before a replacement is planned."""
    server = Server(manual)
    server.error = None
    pool = make(adapter=server, max_size=20, clock=manual)
    fill(pool, 4)
    leases = in_use(pool, 4)
    server.error, server.attempts = DOWN, []
    pool.reconfigure(min_size=4)
    break_all(leases)
    run_jobs(manual)
    assert len(server.attempts) == 1


def test_deaths_on_a_server_that_is_up_are_replaced_quickly(make: Make, manual: VirtualClock) -> None:
    server = Server(manual)
    server.error = None
    pool = make(adapter=server, max_size=16, min_size=16, clock=manual)
    for resource in fill(pool, 16):
        resource.alive = False
    pool.check()
    run_closes(manual)
    assert list(in_flight(manual))[:5] == [1, 2, 4, 8, 12]


def test_hundreds_of_old_deaths_do_not_serialise_replacement(make: Make, manual: VirtualClock) -> None:
    """They died with the first one, which was replaced since: the server is up."""
    server = Server(manual)
    server.error = None
    pool = make(adapter=server, max_size=100, clock=manual)
    fill(pool, 100)
    leases = in_use(pool, 100)
    manual.advance(10)
    tasks = in_line(pool, manual, 10)
    break_all([leases.pop()])
    run_jobs(manual)
    kept = [tasks.pop(0).result()]
    for _ in range(3):
        manual.advance(3)
        break_all([leases.pop(), leases.pop(), leases.pop()])
        run_closes(manual)
        assert manual.jobs == 3  # creations
        run_jobs(manual)
        kept += [tasks.pop(0).result() for _ in range(3)]


def run_closes(clock: VirtualClock) -> None:
    """Run the waiting closes, and leave the creations."""
    jobs = clock.runtime.workers.jobs  # type: ignore[attr-defined]
    while closes := [place for place, (job, _) in enumerate(jobs) if job.__name__ == "close_entry"]:
        clock.run_job(closes[0])


def test_one_death_delays_no_borrower(make: Make, clock: VirtualClock) -> None:
    pool = make(max_size=8)
    resource = fill(pool, 8)[-1]
    resource.alive = False
    before = clock.now()
    leases = [pool.acquire() for _ in range(8)]
    assert resource not in [lease.resource for lease in leases]
    assert clock.now() == before


def test_hung_creation_does_not_delay_others(make: Make, manual: VirtualClock) -> None:
    pool = make(max_size=4, clock=manual)
    fill(pool, 4)
    leases = in_use(pool, 4)
    tasks = in_line(pool, manual, 4)
    break_all(leases)
    run_closes(manual)
    assert manual.jobs == 1  # it hangs: it is never run
    manual.advance(0.9)
    assert manual.jobs == 1
    manual.advance(0.1)
    assert manual.jobs == 4
    run_jobs(manual)
    for task in tasks:
        task.result()


def test_death_does_not_delay_filling_to_min_size(make: Make, manual: VirtualClock) -> None:
    """There is no waiter, so only the end of the limit itself schedules a sweep."""
    pool = make(max_size=4, min_size=4, clock=manual, idle_timeout=None, max_lifetime=None, create_timeout=600)
    for resource in fill(pool, 4):
        resource.alive = False
    pool.check()
    run_closes(manual)
    assert manual.jobs == 1
    manual.advance(1)
    assert manual.jobs == 4


def test_check_without_an_answer_counts_as_a_death(make: Make, manual: VirtualClock) -> None:
    adapter = FakeAdapter(enforces_timeouts=False)
    pool = make(adapter=adapter, max_size=4, min_size=4, clock=manual, health_check_timeout=2)
    fill(pool, 4)
    pool.check()  # on workers, which hang
    assert manual.jobs == 4
    manual.advance(2)
    assert pool.stats()["creating"] == 1


def test_resource_without_a_server_is_never_suspect(make: Make, manual: VirtualClock) -> None:
    """An inline creation does no I/O, so it proves nothing about a server."""
    pool = make(adapter=FakeAdapter(blocking=False), max_size=4, clock=manual)
    fill(pool, 4)
    break_all(in_use(pool, 4))
    assert pool.engine.outage.allowed(manual.now()) > 100


def test_discard_does_not_limit_creations(make: Make, clock: VirtualClock) -> None:
    pool = make(max_size=4)
    fill(pool, 4)
    for lease in in_use(pool, 4):
        lease.discard()
    assert pool.engine.outage.allowed(clock.now()) > 100


# -- what borrowers are told --------------------------------------------------------------


def test_timeout_chains_the_cause(make: Make, clock: VirtualClock, server: Server) -> None:
    (task,) = in_line(make(adapter=server), clock, 1, timeout=5)
    clock.advance(5)
    with pytest.raises(PoolTimeout) as raised:
        task.result()
    assert raised.value.__cause__ is DOWN


def test_timeout_chains_the_last_error(make: Make, clock: VirtualClock, server: Server) -> None:
    (task,) = in_line(make(adapter=server), clock, 1, timeout=5)
    server.error = last = ConnectionResetError("worse")
    clock.advance(5)
    with pytest.raises(PoolTimeout) as raised:
        task.result()
    assert raised.value.__cause__ is last


def test_cause_of_a_timeout_keeps_no_frames_alive(make: Make, server: Server) -> None:
    pool = make(adapter=server)
    with pytest.raises(PoolUnavailable):
        pool.acquire(0)
    error = pool.engine.outage.error
    assert error is not None
    assert error.__traceback__ is None


def test_timeout_zero_during_an_outage_raises_without_an_attempt(
    make: Make, clock: VirtualClock, server: Server
) -> None:
    pool = make(adapter=server)
    for _ in range(5):
        with pytest.raises(PoolUnavailable, match="last thing error: ConnectionRefusedError: down") as raised:
            pool.acquire(0)
        assert raised.value.__cause__ is DOWN
    assert server.attempts == [0]


def test_timeout_zero_distinguishes_busy_from_down(make: Make) -> None:
    pool = make(max_size=1)
    with pool.acquire(), pytest.raises(PoolTimeout):
        pool.acquire(0)


@pytest.mark.parametrize("most", [1, 3])
def test_max_attempts_are_counted_for_each_borrower(
    make: Make, clock: VirtualClock, server: Server, most: int
) -> None:
    pool = make(adapter=server, max_size=1, max_attempts=most, backoff_initial=0.1)
    if most == 1:
        with pytest.raises(PoolUnavailable):
            pool.acquire()
        return
    (early,) = in_line(pool, clock, 1)  # its first attempt has failed
    clock.advance(0.1)  # its second too
    late = Task(pool.acquire, 60)
    clock.until_parked(2)
    clock.advance(0.2)  # its third: enough for one of them
    with pytest.raises(PoolUnavailable, match="3 attempts to create a thing failed: .*down") as raised:
        early.result()
    assert raised.value.__cause__ is DOWN
    assert late.is_alive()
    clock.advance(0.5)
    with pytest.raises(PoolUnavailable):
        late.result()


# -- final errors -------------------------------------------------------------------------


def test_final_error_fails_acquire_at_once(make: Make, server: Server) -> None:
    server.error = WRONG
    with pytest.raises(CreateFailed) as raised:
        make(adapter=server).acquire()
    assert raised.value.__cause__ is WRONG


def test_final_error_fails_all_waiters_that_no_resource_can_serve(
    make: Make, clock: VirtualClock, server: Server
) -> None:
    pool = make(adapter=server)
    tasks = in_line(pool, clock, 3)
    server.error = WRONG
    clock.advance(0.05)
    for task in tasks:
        with pytest.raises(CreateFailed):
            task.result()


def test_waiter_that_an_open_resource_can_serve_waits_for_it(
    make: Make, clock: VirtualClock, server: Server
) -> None:
    server.error = None
    pool = make(adapter=server, max_size=2)
    lease = pool.acquire()
    server.error = WRONG
    (task,) = in_line(pool, clock, 1)
    clock.advance(10)
    lease.release()
    assert task.result().resource.number == 1


def test_final_error_is_not_retried_for_each_acquire(make: Make, server: Server) -> None:
    """Retries could lock the account."""
    server.error = WRONG
    pool = make(adapter=server)
    for _ in range(100):
        with pytest.raises(CreateFailed):
            pool.acquire()
    assert server.attempts == [0]


@pytest.mark.parametrize("min_size", [0, 1])
def test_final_error_is_retried_every_two_seconds_at_most(
    make: Make, clock: VirtualClock, server: Server, min_size: int
) -> None:
    """The password may have been fixed, but frequent retries could lock the account."""
    server.error = WRONG
    pool = make(adapter=server, backoff_initial=1, backoff_maximum=30, min_size=min_size)
    for _ in range(600):
        with pytest.raises(CreateFailed):
            pool.acquire()
        clock.advance(0.1)
    gaps = [late - early for early, late in zip(server.attempts, server.attempts[1:])]
    assert 28 <= len(gaps) <= 32
    assert min(gaps[1:]) >= 2 - 1e-6 and max(gaps) <= 2.1 + 1e-6


def test_final_error_is_retried_less_often_without_demand(
    make: Make, clock: VirtualClock, server: Server
) -> None:
    server.error = WRONG
    pool = make(adapter=server, backoff_initial=1, backoff_maximum=30, min_size=1)
    with pytest.raises(CreateFailed):
        pool.acquire()
    clock.advance(60)
    assert server.attempts == [0, 1, 3, 7, 15, 31]
    server.error = None
    assert pool.acquire().resource.number == 1  # the next acquire causes an attempt at once


def test_final_error_is_retried_while_a_waiter_needs_a_release(
    make: Make, clock: VirtualClock, server: Server
) -> None:
    server.error = None
    pool = make(adapter=server, max_size=2, backoff_initial=1)
    lease = pool.acquire()
    clock.advance(0.5)
    server.error, server.attempts, server.start = WRONG, [], clock.now()
    (task,) = in_line(pool, clock, 1)
    clock.advance(9)
    assert server.attempts == [0, 1, 3, 5, 7, 9]
    server.error = None
    clock.advance(2)
    task.result().release()
    lease.release()


def test_slow_final_error_is_not_retried_continuously(make: Make, manual: VirtualClock) -> None:
    """Borrowers that arrive during an attempt wait for its result, so there must be pauses between attempts."""
    server = Server(manual)
    server.error = WRONG
    pool = make(adapter=server, clock=manual, backoff_initial=30, max_size=1)
    (task,) = in_line(pool, manual, 1)
    manual.advance(10)
    run_jobs(manual)
    with pytest.raises(CreateFailed):
        task.result()
    manual.advance(9.9)
    with pytest.raises(CreateFailed):
        pool.acquire()
    manual.advance(0.1)
    (task,) = in_line(pool, manual, 1)
    server.error = None
    run_jobs(manual)
    task.result()


def test_creation_succeeds_once_a_final_error_is_fixed(make: Make, clock: VirtualClock, server: Server) -> None:
    server.error = WRONG
    pool = make(adapter=server)
    with pytest.raises(CreateFailed):
        pool.acquire()
    server.error = None  # the password is fixed
    clock.advance(1)
    assert pool.acquire().resource.number == 1
    assert pool.stats()["down"] is None


def test_failing_is_final_counts_as_not_final(
    make: Make, clock: VirtualClock, monkeypatch: pytest.MonkeyPatch, server: Server,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    def fail(error: BaseException) -> bool:
        raise RuntimeError("a bug in the adapter")

    monkeypatch.setattr(server, "is_final", fail)
    pool = make(adapter=server)
    (task,) = in_line(pool, clock, 1)
    server.error = None
    clock.advance(1)
    task.result()
    assert "pool 'test': is_final() failed" in caplog.text


# -- observers, log and stats -------------------------------------------------------------


class Incidents(Observer):
    """Records beginnings and ends of outages."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, object]] = []

    def outage_began(self, pool: str, error: BaseException) -> None:
        self.seen.append(("began", error))

    def outage_ended(self, pool: str, seconds: float) -> None:
        self.seen.append(("ended", seconds))


def test_outage_begins_and_ends_once(make: Make, clock: VirtualClock, server: Server) -> None:
    incidents = Incidents()
    pool = make(adapter=server, min_size=1, observers=[incidents], backoff_initial=1)
    for _ in range(2):
        server.error = DOWN
        pool.fill()
        clock.advance(6)
        server.error = None
        clock.advance(1)
        pool.acquire().discard()
    assert incidents.seen == [("began", DOWN), ("ended", 7.0)]


def test_process_without_its_server_rarely_wakes_up(
    make: Make, clock: VirtualClock, server: Server
) -> None:
    pool = make(adapter=server, min_size=1)
    pool.fill()
    clock.advance(3600)
    assert len(server.attempts) < 3600 / 30 + 12


def test_stats_name_the_cause(make: Make, server: Server) -> None:
    pool = make(adapter=server)
    assert pool.stats()["down"] is None
    fill(pool, 1)
    assert pool.stats()["down"] == "ConnectionRefusedError: down"


# -- a server that is up, and full --------------------------------------------------------


class FullServer(Server):
    """A server that can be at its connection limit."""

    def is_full(self, error: BaseException) -> bool:
        return isinstance(error, BlockingIOError)


@pytest.fixture
def full(make: Make, clock: VirtualClock) -> tuple[Pool[Any], FullServer, Incidents]:
    """A pool with one resource of ten, whose server is at its connection limit."""
    server, incidents = FullServer(clock), Incidents()
    server.error = None
    pool = make(adapter=server, max_size=10, clock=clock, observers=[incidents], max_attempts=2)
    pool.acquire().release()
    server.error = BlockingIOError("too many clients")
    server.attempts.clear()
    return pool, server, incidents


def test_full_server_is_not_an_outage(
    full: tuple[Pool[Any], FullServer, Incidents], clock: VirtualClock
) -> None:
    pool, server, incidents = full
    lease = pool.acquire()
    tasks = in_line(pool, clock, 3)
    for _ in range(40):
        clock.advance(0.25)
    assert 5 <= len(server.attempts) <= 21  # every 0.5 to 1.5 s, whatever waiters there are
    assert pool.stats()["down"] is None and incidents.seen == []
    lease.release()  # open resources serve all of them, whatever max_attempts is
    for task in tasks:
        task.result().release()


def test_pool_grows_once_the_server_has_free_connections(
    full: tuple[Pool[Any], FullServer, Incidents], clock: VirtualClock
) -> None:
    pool, server, _ = full
    lease = pool.acquire()
    (task,) = in_line(pool, clock, 1)
    server.error = None
    clock.advance(1.5)
    task.result().release()
    lease.release()
    assert pool.stats()["size"] == 2


def test_timeout_with_a_full_server_says_so(
    full: tuple[Pool[Any], FullServer, Incidents], clock: VirtualClock
) -> None:
    pool, server, _ = full
    with pool.acquire():
        task = Task(pool.acquire, 5)
        clock.until_parked(1)
        clock.advance(5)
        with pytest.raises(PoolTimeout, match="too many clients") as caught:
            task.result()
        assert caught.value.__cause__ is server.error


def test_full_server_is_an_outage_for_an_empty_pool(
    make: Make, clock: VirtualClock
) -> None:
    server, incidents = FullServer(clock), Incidents()
    server.error = BlockingIOError("too many clients")
    pool = make(adapter=server, clock=clock, observers=[incidents])
    with pytest.raises(PoolUnavailable):
        pool.acquire(0)
    task = Task(pool.acquire, 1)
    clock.until_parked(1)
    clock.advance(1)
    with pytest.raises(PoolTimeout, match="too many clients"):
        task.result()
    assert incidents.seen and pool.stats()["down"] is not None


def test_server_that_is_full_again_and_again_is_logged_once(
    full: tuple[Pool[Any], FullServer, Incidents], clock: VirtualClock, caplog: pytest.LogCaptureFixture
) -> None:
    pool, server, _ = full
    refusal = server.error
    lease = pool.acquire()
    for _ in range(20):
        (task,) = in_line(pool, clock, 1)  # it is refused,
        server.error = None
        clock.advance(2)
        task.result().discard()  # and let in
        server.error = refusal
    assert len(server.attempts) >= 40
    assert sum("limit reached" in record.message for record in caplog.records) == 1
    lease.release()

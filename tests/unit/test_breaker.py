"""The circuit breaker of a pool: it is opened and closed by creations, and refuses borrowers that would need one."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from pooling import (
    CircuitBreaker,
    CircuitOpen,
    CreateFailed,
    Observer,
    Pool,
    PoolSettings,
    PoolTimeout,
    PoolUnavailable,
)
from pooling.observe.figures import Recorder
from pooling.testing import VirtualClock
from tests.unit.conftest import Make, Task, fill, lent_elsewhere, run_jobs
from tests.unit.test_outage import WRONG, Server, in_line

BREAKER = CircuitBreaker(failures=3, rate=None, open_for=10, open_for_max=40)


@pytest.fixture
def server(clock: VirtualClock) -> Server:
    return Server(clock)


def fail_waiting(pool: Pool[Any], clock: VirtualClock, **how: Any) -> CircuitOpen:
    """Have a borrower wait until the circuit opens, or opens again; return the error it gets."""
    task = Task(pool.acquire, 60, **how)
    clock.until_parked(1)
    clock.advance(1)
    with pytest.raises(CircuitOpen) as caught:
        task.result()
    return caught.value


def opened(make: Make, clock: VirtualClock, server: Server, **given: Any) -> Pool[Any]:
    """Return a pool whose circuit has just been opened by three failed creations."""
    pool = make(adapter=server, breaker=BREAKER, **given)
    fail_waiting(pool, clock)
    assert len(server.attempts) == 3
    return pool


def test_a_waiter_is_refused_when_the_circuit_opens(make: Make, clock: VirtualClock, server: Server) -> None:
    pool = make(adapter=server, breaker=BREAKER)
    error = fail_waiting(pool, clock)  # after a second, and not after 60
    assert str(error) == (
        "pool 'test': circuit open (3 failures in a row, the last: ConnectionRefusedError: down; again in 10.0 s)"
    )
    assert error.retry_after == pytest.approx(10)
    assert error.__cause__ is server.error
    assert isinstance(error, PoolUnavailable)


def test_borrowers_are_refused_at_once_without_an_attempt(make: Make, clock: VirtualClock, server: Server) -> None:
    pool = opened(make, clock, server)
    began = clock.now()
    for _ in range(50):
        with pytest.raises(CircuitOpen):
            pool.acquire(60)
    assert clock.now() == began
    clock.advance(8.9)
    assert len(server.attempts) == 3  # a borrower that asks does not hurry the next attempt
    assert pool.stats()["circuit"] == "open"
    assert pool.metrics.snapshot().turned_away == 51


def test_exactly_one_borrower_waits_for_the_half_open_circuit(make: Make, manual: VirtualClock) -> None:
    server = Server(manual)
    pool = make(adapter=server, breaker=BREAKER, clock=manual, max_size=100)
    first = in_line(pool, manual, 1)[0]
    for _ in range(3):
        run_jobs(manual)
        manual.advance(1)
    with pytest.raises(CircuitOpen):
        first.result()
    manual.advance(10)
    assert pool.stats()["circuit"] == "half-open"
    trial = in_line(pool, manual, 1)[0]
    for _ in range(100):
        with pytest.raises(CircuitOpen, match="being tried now"):
            pool.acquire(60)
    assert manual.jobs == 1
    server.error = None
    run_jobs(manual)
    trial.result()
    assert len(server.attempts) == 4
    assert pool.stats()["circuit"] == "closed"


def test_each_failed_trial_doubles_the_time(make: Make, clock: VirtualClock, server: Server) -> None:
    pool = opened(make, clock, server)
    for seconds in (20, 40, 40):
        with pytest.raises(CircuitOpen) as refused:
            pool.acquire(60)
        clock.advance(refused.value.retry_after - 0.1)
        before = len(server.attempts)
        with pytest.raises(CircuitOpen):
            pool.acquire(60)
        assert len(server.attempts) == before
        clock.advance(0.2)
        with pytest.raises(CircuitOpen) as failed:
            pool.acquire(60)
        assert len(server.attempts) == before + 1
        assert failed.value.retry_after == pytest.approx(seconds)


def test_a_pool_with_a_minimum_tries_by_itself(make: Make, clock: VirtualClock, server: Server) -> None:
    pool = opened(make, clock, server, min_size=1)
    server.error = None
    clock.advance(10.1)
    assert pool.stats()["circuit"] == "closed"
    assert pool.stats()["idle"] == 1


def test_idle_resources_are_lent_while_the_circuit_is_open(make: Make, clock: VirtualClock) -> None:
    server = Server(clock)
    server.error = None
    pool = make(adapter=server, breaker=BREAKER, max_size=4)
    fill(pool, 1)
    server.error = ConnectionRefusedError("down")
    with lent_elsewhere(pool) as leases:
        fail_waiting(pool, clock)
        leases.pop().release()
    assert pool.stats()["circuit"] == "open"
    with pool.acquire(0) as resource:
        assert resource.alive
        with pytest.raises(CircuitOpen):  # it would need a creation
            pool.acquire(60)


def test_a_borrower_of_a_full_pool_waits_for_a_release(make: Make, manual: VirtualClock) -> None:
    server = Server(manual)
    server.error = None
    pool = make(adapter=server, breaker=BREAKER, max_size=2, clock=manual)
    fill(pool, 2)
    held = [pool.acquire(), pool.acquire()]
    server.error = ConnectionRefusedError("down")
    held.pop().discard()
    run_jobs(manual)  # it is closed
    waiter = Task(pool.acquire, 60)
    manual.until_parked(1)
    for _ in range(3):
        run_jobs(manual)
        manual.advance(1)
    with pytest.raises(CircuitOpen):
        waiter.result()
    pool.reconfigure(max_size=1)  # now there is no room for a creation
    waiter = Task(pool.acquire, 60)
    manual.until_parked(1)
    held.pop().release()
    while waiter.is_alive():
        run_jobs(manual)  # the reset, a validation
    waiter.result()


def test_a_rate_opens_it(make: Make, clock: VirtualClock, server: Server) -> None:
    pool = make(adapter=server, breaker=CircuitBreaker(failures=99, rate=0.5, calls=4, window=100), backoff_initial=1)
    server.error = None
    for _ in range(2):
        pool.acquire(1).discard()
    server.error = ConnectionRefusedError("down")
    assert "2 of 4 calls failed within 100 s" in str(fail_waiting(pool, clock))


def test_the_limit_of_connections_does_not_count(make: Make, clock: VirtualClock, server: Server) -> None:
    server.error = None
    pool = make(adapter=server, breaker=BREAKER, max_size=4)
    fill(pool, 1)
    server.error = ConnectionRefusedError("full")
    server.full = (ConnectionRefusedError,)  # type: ignore[attr-defined]
    server.is_full = lambda error: True  # type: ignore[method-assign]
    with lent_elsewhere(pool):
        waiter = Task(pool.acquire, 30)
        clock.until_parked(1)
        clock.advance(31)
        with pytest.raises(PoolTimeout):
            waiter.result()
    assert len(server.attempts) > 4
    assert pool.stats()["circuit"] == "closed"


def test_a_final_error_is_raised_as_such(make: Make, clock: VirtualClock, server: Server) -> None:
    server.error = WRONG
    pool = make(adapter=server, breaker=BREAKER)
    for _ in range(5):
        with pytest.raises(CreateFailed):
            pool.acquire(60)
        clock.advance(2.1)


def test_an_interrupted_trial_leaves_it_half_open(make: Make, clock: VirtualClock) -> None:
    def factory() -> object:
        raise errors.pop() if len(errors) > 1 else errors[0]

    errors: list[BaseException] = [KeyboardInterrupt(), *[ConnectionRefusedError("down")] * 3, KeyboardInterrupt()]
    pool = make(factory=factory, breaker=BREAKER)
    pool.engine.adapter.blocking = False  # created in the borrower's thread
    with pytest.raises(KeyboardInterrupt):
        pool.acquire(60)
    fail_waiting(pool, clock)
    clock.advance(10.1)
    with pytest.raises(KeyboardInterrupt):
        pool.acquire(60)
    assert pool.stats()["circuit"] == "half-open"
    errors[:] = [ConnectionRefusedError("again")]
    with pytest.raises(CircuitOpen, match="again in 20.0 s"):
        pool.acquire(60)


def test_fallback_gives_what_acquire_returns(make: Make, clock: VirtualClock, server: Server) -> None:
    other = make(factory=lambda: "from the other pool")
    seen: list[Any] = []

    def fallback(pool: Pool[Any], error: CircuitOpen) -> Any:
        seen.append((pool, error))
        return other.acquire()

    breaker = CircuitBreaker(failures=1, fallback=fallback)
    pool = make(adapter=server, breaker=breaker)
    with pool.acquire() as resource:
        assert resource == "from the other pool"
    assert seen[0][0] is pool
    assert isinstance(seen[0][1], CircuitOpen)
    assert other.stats()["in_use"] == 0


def test_observers_and_log_tell_of_it(
    make: Make, clock: VirtualClock, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    class Recorder(Observer):
        def circuit_opened(self, pool: str, host: str | None, reason: str) -> None:
            seen.append((pool, host, reason))

        def circuit_closed(self, pool: str, host: str | None) -> None:
            seen.append((pool, host))

    seen: list[Any] = []
    with caplog.at_level(logging.WARNING, "pooling"):
        pool = opened(make, clock, server, observers=[Recorder()])
        server.error = None
        clock.advance(10.1)
        pool.acquire().release()
    assert seen == [("test", None, "3 failures in a row, the last: ConnectionRefusedError: down"), ("test", None)]
    events = [vars(record)["pooling_event"] for record in caplog.records]
    assert [event for event in events if event.startswith("circuit")] == ["circuit_opened", "circuit_closed"]


def test_each_lane_is_refused(make: Make, clock: VirtualClock, server: Server) -> None:
    pool = make(adapter=server, breaker=BREAKER, max_size=4, lanes="web:weight=2,batch")
    fail_waiting(pool, clock, lane="batch")
    for lane in ("web", "batch", None):
        with pytest.raises(CircuitOpen):
            pool.acquire(60, lane=lane)
    assert len(server.attempts) == 3


def test_health_check_fails_at_once(make: Make, clock: VirtualClock, server: Server) -> None:
    pool = opened(make, clock, server)
    began = clock.now()
    with pytest.raises(CircuitOpen):
        pool.probe(5)
    assert clock.now() == began


def test_reconfigure_removes_it(make: Make, clock: VirtualClock, server: Server) -> None:
    pool = opened(make, clock, server)
    server.error = None
    pool.reconfigure(breaker=None)
    assert "circuit" not in pool.stats()
    pool.acquire(60).release()


def test_metrics_tell_of_it(make: Make, clock: VirtualClock, server: Server) -> None:
    pool = opened(make, clock, server, name="breaker")
    recorder = Recorder(lambda: [(pool.engine.ref, pool.metrics)])
    figures = recorder.sample()["breaker"]
    assert figures["gauges"]["circuits_open"] == 1
    assert figures["error"] == "circuit open: ConnectionRefusedError: down"
    server.error = None
    clock.advance(10.1)
    pool.acquire().release()
    figures = recorder.sample()["breaker"]
    assert figures["gauges"]["circuits_open"] == 0
    assert "error" not in figures


@pytest.mark.parametrize(
    ("text", "breaker"),
    [
        ("on", CircuitBreaker()),
        ("off", None),
        ("failures=3, open_for=10", CircuitBreaker(failures=3, open_for=10)),
        ("rate=none,failures=1", CircuitBreaker(rate=None, failures=1)),
    ],
)
def test_environment_and_urls_give_it_as_text(text: str, breaker: CircuitBreaker | None) -> None:
    assert PoolSettings.from_env("DB_", {"DB_BREAKER": text}).breaker == breaker
    assert PoolSettings.from_mapping({"breaker": text}).breaker == breaker


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        ("failures", ValueError, "PoolSettings.breaker must have a number after failures=, not 'failures'"),
        ("failures=0", ValueError, "PoolSettings.breaker failures must be at least 1, not 0, not 'failures=0'"),
        ("fail=3", ValueError, "must be on, off, or different ones of failures, rate, calls, window, open_for"),
        ("failures=1,failures=2", ValueError, "must be on, off, or different ones of"),
        (3, TypeError, "PoolSettings.breaker must be a CircuitBreaker or None, not 3"),
    ],
)
def test_wrong_values_are_refused(value: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        PoolSettings(breaker=value)
    assert message in str(caught.value)

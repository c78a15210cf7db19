"""The circuit breaker: when it opens, and that exactly one call is made while it is half-open."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule

from pooling import CircuitBreaker, CircuitOpen
from pooling.core.circuit import Circuit


class Clock:
    time = 100.0

    def __call__(self) -> float:
        return self.time


@pytest.fixture
def clock() -> Clock:
    return Clock()


def fail(circuit: Circuit, times: int) -> None:
    for _ in range(times):
        circuit.failed(circuit.enter(), "status 502")


def succeed(circuit: Circuit, times: int = 1) -> None:
    for _ in range(times):
        circuit.succeeded(circuit.enter())


def test_opens_after_failures_in_a_row(clock: Clock) -> None:
    told: list[str | None] = []
    circuit = Circuit(CircuitBreaker(failures=3), "https://api", told.append, clock)
    fail(circuit, 2)
    succeed(circuit)
    fail(circuit, 2)
    assert (circuit.state, told) == ("closed", [])
    fail(circuit, 1)
    reason = "3 failures in a row, the last: status 502"
    assert (circuit.state, circuit.reason, told) == ("open", reason, [reason])
    with pytest.raises(CircuitOpen) as caught:
        circuit.enter()
    assert str(caught.value) == f"https://api: circuit open ({reason}; again in 5.0 s)"
    assert caught.value.retry_after == 5


def test_opens_at_a_rate_of_failures(clock: Clock) -> None:
    circuit = Circuit(CircuitBreaker(failures=100, rate=0.5, calls=4, window=10), "x", now=clock)
    fail(circuit, 3)  # too few calls to tell
    assert circuit.state == "closed"
    clock.time += 11  # those are forgotten
    succeed(circuit, 2)
    fail(circuit, 1)
    assert circuit.state == "closed"
    fail(circuit, 1)
    assert circuit.reason == "2 of 4 calls failed within 10 s, the last: status 502"


def test_rate_may_be_off(clock: Clock) -> None:
    circuit = Circuit(CircuitBreaker(failures=100, rate=None, calls=1), "x", now=clock)
    fail(circuit, 99)
    assert circuit.state == "closed"


def test_one_call_is_made_when_it_is_time(clock: Clock) -> None:
    told: list[str | None] = []
    circuit = Circuit(CircuitBreaker(failures=1, open_for=5, open_for_max=15), "x", told.append, clock)
    fail(circuit, 1)
    for seconds in (5, 10, 15, 15):
        clock.time += seconds - 0.1
        with pytest.raises(CircuitOpen, match=r"again in 0\.1 s"):
            circuit.enter()
        clock.time += 0.2
        call = circuit.enter()
        assert circuit.state == "half-open"
        with pytest.raises(CircuitOpen, match="being tried now"):
            circuit.enter()
        circuit.failed(call, "connect")
        assert (circuit.state, circuit.reason) == ("open", "connect")
    clock.time += 15
    succeed(circuit)
    assert circuit.state == "closed" and told == ["1 failure, the last: status 502", None]
    fail(circuit, 1)
    clock.time += 5  # as short as at first
    assert circuit.enter()


def test_call_that_says_nothing_gives_its_place_back(clock: Clock) -> None:
    circuit = Circuit(CircuitBreaker(failures=1), "x", now=clock)
    fail(circuit, 1)
    clock.time += 5
    for _ in range(3):
        circuit.left(circuit.enter())
    succeed(circuit)
    assert circuit.state == "closed"


def test_calls_from_before_it_opened_change_nothing(clock: Clock) -> None:
    circuit = Circuit(CircuitBreaker(failures=1), "x", now=clock)
    early, late = circuit.enter(), circuit.enter()
    fail(circuit, 1)
    circuit.succeeded(early)
    circuit.failed(late, "connect")
    assert circuit.state == "open"
    clock.time += 5
    assert circuit.enter()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"failures": 0}, ValueError, "failures must be at least 1, not 0"),
        ({"calls": 1.5}, TypeError, "calls must be a whole number, not 1.5"),
        ({"rate": 1.5}, ValueError, "rate must be at most 1, not 1.5"),
        ({"window": 0}, ValueError, "window must be above 0 and finite, not 0"),
        ({"open_for": "5"}, TypeError, "open_for must be a number, not '5'"),
        ({"open_for": 70}, ValueError, "open_for_max must be at least open_for=70, not 60.0"),
        ({"fallback": 3}, TypeError, "fallback must be callable, not 3"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        CircuitBreaker(**arguments)


class Machine(RuleBasedStateMachine):
    """Any calls that end in any order, at any time."""

    calls: Bundle[Any] = Bundle("calls")

    @initialize(failures=st.integers(1, 4), rate=st.sampled_from([None, 0.5]))
    def begin(self, failures: int, rate: float | None) -> None:
        self.clock = Clock()
        policy = CircuitBreaker(failures=failures, rate=rate, calls=3, open_for=1, open_for_max=4)
        self.circuit = Circuit(policy, "x", now=self.clock)
        self.trials: set[int] = set()

    @rule(target=calls)
    def enter(self) -> Any:
        before = self.circuit.state
        try:
            call = self.circuit.enter()
        except CircuitOpen:
            assert before != "closed"
            return multiple()
        if self.circuit.state == "half-open":
            self.trials.add(id(call))
        return call

    @rule(call=consumes(calls), end=st.sampled_from(["succeeded", "failed", "left"]))
    def leave(self, call: Any, end: str) -> None:
        trial = id(call) in self.trials
        self.trials.discard(id(call))
        getattr(self.circuit, end)(call, *(["reason"] if end == "failed" else []))
        if trial:
            assert self.circuit.state == {"succeeded": "closed", "failed": "open", "left": "half-open"}[end]
        self.circuit.left(call)  # harmless

    @rule(seconds=st.sampled_from([0.5, 1, 5, 20]))
    def wait(self, seconds: float) -> None:
        self.clock.time += seconds

    @invariant()
    def at_most_one_trial(self) -> None:
        if hasattr(self, "circuit"):
            assert len(self.trials) <= 1
            assert not self.trials or self.circuit.state == "half-open"

    def teardown(self) -> None:
        if hasattr(self, "circuit") and not self.trials:  # it is never stuck
            self.clock.time += 10
            self.circuit.succeeded(self.circuit.enter())
            assert self.circuit.state == "closed"


TestMachine = Machine.TestCase

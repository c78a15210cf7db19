"""Adaptive size against a simulated server, whose throughput is highest with 12 connections. Deterministic.

The controller and the sums over samples are those of the pool. Only time, borrowers and the server are simulated:
each connection is served at full speed up to 12 of them; beyond, all of them share less and less. For each load the
best fixed size is found by trying: each from 6 to 18, and larger ones.
"""

from __future__ import annotations

import functools
import heapq
import math
import random
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as some

from pooling.adaptive.controller import COOL_DOWN, Controller, Decision
from pooling.adaptive.window import Sample, Windows

KNEE = 12  # connections
WORK = 0.1  # seconds of the server's time per lease, without load
CAPACITY = KNEE / WORK
LOW, HIGH = 1, 40
LENGTH = 600.0  # seconds
EARLY = 120.0  # seconds that the controller may take
THREADS = 60  # that serve requests; further requests are refused by the web server

Speed = Callable[[int], float]


def slows_down(knee: int = KNEE, by: float = 0.05) -> Speed:
    """Return the speed of one connection when so many are used: 1.0 up to the knee."""
    return lambda used: 1.0 if used <= knee else knee / used / (1 + by * (used - knee))


KNEE_OF_12 = slows_down()


def arrivals(rate: Callable[[float], float], most: float, seed: int, length: float = LENGTH) -> tuple[float, ...]:
    """Return the times of requests: a Poisson process whose rate varies."""
    chance, at, found = random.Random(seed), 0.0, []
    while True:
        at += chance.expovariate(most)
        if at >= length:
            return tuple(found)
        if chance.random() < rate(at) / most:
            found.append(at)


def of_a_day(at: float) -> float:
    """10 % to 130 % of the capacity, and back; a day in 10 minutes."""
    return CAPACITY * (0.7 - 0.6 * math.cos(2 * math.pi * at / 600))


def in_bursts(at: float) -> float:
    """6 s in 20 s at three times the capacity; a quarter of it in between."""
    return CAPACITY * (3.0 if at % 20 < 6 else 0.25)


@functools.cache
def recorded(name: str) -> tuple[float, ...]:
    """Return the arrivals of a load."""
    if name == "steady":
        return arrivals(lambda at: 1.6 * CAPACITY, 1.6 * CAPACITY, 1)
    if name == "calm":
        return arrivals(lambda at: 0.6 * CAPACITY, 0.6 * CAPACITY, 2)
    return arrivals(of_a_day, 1.3 * CAPACITY, 3) if name == "wave" else arrivals(in_bursts, 3 * CAPACITY, 4)


class Result(NamedTuple):
    completed: int  # after `EARLY`
    waits: list[float]  # for a connection, likewise, in order of size
    responses: list[float]  # from the arrival to the end of the server's work, likewise
    decisions: list[Decision]
    refused: int

    @property
    def p99(self) -> float:
        return self.responses[int(0.99 * len(self.responses))]

    @property
    def steps(self) -> list[Decision]:
        return [one for one in self.decisions if one.after != one.before]

    def reversals(self) -> list[float]:
        """Return when the direction changed."""
        steps = [(one.at, one.after > one.before) for one in self.steps]
        return [at for (_, up), (at, other) in zip(steps, steps[1:]) if up != other]

    def text(self) -> str:
        return "\n".join(f"{one.at:6.1f} {one.before} -> {one.after} {one.reason}" for one in self.decisions)


def simulate(
    load: tuple[float, ...],
    size: int | Controller,
    *,
    speed: Speed = KNEE_OF_12,
    timed: bool = True,
    own: float = 0.0,
    length: float = LENGTH,
    trouble: Callable[[float], str | None] = lambda at: None,
    seed: int = 7,
) -> Result:
    """Run a load against a pool of a fixed size, or one that a controller steers.

    Args:
        timed: Whether the adapter can tell how many holders are blocked in the driver.
        own: Seconds that each borrower works on its own while it holds a connection.
        trouble: What a sample says about outages.
    """
    chance = random.Random(seed)
    controller = size if isinstance(size, Controller) else None
    limit = controller.size if controller else size
    windows, decisions = Windows(), []
    now = progress = 0.0
    served: list[tuple[float, float]] = []  # the progress at which each ends that is in the server, and its arrival
    working: list[float] = []  # when each ends that works on its own
    waiting: deque[float] = deque()
    waits: list[float] = []
    responses: list[float] = []
    done = early = refused = 0
    upcoming, sample_at = iter((*load, math.inf)), 0.0
    arrival = next(upcoming)
    while True:
        rate = speed(len(served)) if served else 1.0
        ends = now + (served[0][0] - progress) / rate if served else math.inf
        event = min(arrival, ends, working[0] if working else math.inf, sample_at)
        if event >= length:
            break
        progress += (event - now) * rate
        now = event
        ended = 0
        if event == sample_at:
            sample_at += 0.25
            in_use = len(served) + len(working)
            sample = Sample(
                at=now, size=limit, live=in_use, in_use=in_use, waiting=len(waiting), completed=done,
                blocked=len(served) if timed else None, trouble=trouble(now),
            )  # fmt: skip
            window = windows.add(sample) if controller else None
            if controller and window is not None:
                decisions.append(controller.decide(window))
                limit = controller.size
        elif event == arrival:
            if len(waiting) + len(served) + len(working) < THREADS:
                waiting.append(now)
            else:
                refused += 1
            arrival = next(upcoming)
        elif event == ends:
            _, arrived = heapq.heappop(served)
            if now >= EARLY:
                responses.append(now - arrived)
            if own:
                heapq.heappush(working, now + own * chance.gammavariate(4, 0.25))
            ended = int(not own)
        else:
            heapq.heappop(working)
            ended = 1
        done += ended
        early += ended * (now < EARLY)
        while waiting and len(served) + len(working) < limit:
            arrived = waiting.popleft()
            if now >= EARLY:
                waits.append(now - arrived)
            heapq.heappush(served, (progress + WORK * chance.gammavariate(4, 0.25), arrived))
    return Result(done - early, sorted(waits), sorted(responses), decisions, refused)


# -- the recorded loads ------------------------------------------------------------------------


@functools.cache
def best_of(name: str) -> Result:
    """Return what the best fixed size gives: the one with the most completions, then with the shortest responses."""
    load = recorded(name)
    tried = [simulate(load, size) for size in (*range(6, 19), 20, 24, 30, 40)]
    return max(tried, key=lambda one: (round(one.completed, -2), -one.p99))


def within(times: list[float], seconds: float) -> int:
    """Return how many times are within so many seconds of each other, at most."""
    return max((sum(1 for other in times if at <= other < at + seconds) for at in times), default=0)


@pytest.mark.parametrize("timed", [True, False], ids=["timed", "by completions"])
@pytest.mark.parametrize("load", ["steady", "wave", "bursts"])
def test_completions_of_the_best_fixed_size_within_two_minutes(load: str, timed: bool) -> None:
    """At least 95 %, and at most one reversal in 5 minutes."""
    found, best = simulate(recorded(load), Controller(LOW, HIGH), timed=timed), best_of(load)
    assert found.completed >= 0.95 * best.completed, found.text()
    assert within(found.reversals(), COOL_DOWN) <= 1, found.text()


@pytest.mark.parametrize("timed", [True, False], ids=["timed", "by completions"])
def test_a_load_below_saturation_is_served_as_fast(timed: bool) -> None:
    """Every size from 8 to 26 completes all; of 30 and more the server does not recover."""
    found, best = simulate(recorded("calm"), Controller(LOW, HIGH), timed=timed), best_of("calm")
    assert found.completed == best.completed and found.p99 <= best.p99 / 0.9, found.text()
    assert found.waits[int(0.99 * len(found.waits))] < 0.05  # half the server's time
    assert within(found.reversals(), COOL_DOWN) <= 1, found.text()


def test_the_simulation_shows_what_a_wrong_size_costs() -> None:
    """Otherwise the tests above could not fail."""
    best = best_of("steady").completed
    assert best == pytest.approx(CAPACITY * (LENGTH - EARLY), rel=0.01)
    assert simulate(recorded("steady"), 10).completed < 0.85 * best
    assert simulate(recorded("steady"), 14).completed < 0.92 * best
    assert simulate(recorded("steady"), 40).completed < 0.5 * best


@pytest.mark.parametrize(
    ("knee", "by", "own", "least"),
    [
        (4, 0.05, 0.0, 0.95),  # below the size that it begins with
        (30, 0.05, 0.0, 0.95),
        (10, 0.0, 0.0, 0.95),  # more connections do no harm
        (12, 0.3, 0.0, 0.95),  # or much harm
        (12, 0.05, 0.1, 0.95),  # borrowers work on their own for as long: 24 places keep 12 busy
    ],
)
def test_other_servers(knee: int, by: float, own: float, least: float) -> None:
    speed, load = slows_down(knee, by), recorded("steady")
    tried = [simulate(load, size, speed=speed, own=own, length=400) for size in (knee - 1, knee, 2 * knee, 30, 40)]
    found = simulate(load, Controller(LOW, HIGH), speed=speed, own=own, length=400)
    assert found.completed >= least * max(one.completed for one in tried), found.text()


def test_frozen_in_an_outage() -> None:
    """Figures of the time around it are not used, and nothing is tried."""

    def trouble(at: float) -> str | None:
        return "the server cannot be reached" if 5 <= at < 100 else None

    found = simulate(recorded("steady"), Controller(LOW, HIGH), trouble=trouble, length=200)
    frozen = [one for one in found.decisions if one.at <= 100]
    assert len(frozen) >= 8 and all(one.reason.startswith("frozen: ") for one in frozen)
    assert found.steps and found.steps[0].at > 100


# -- any load ----------------------------------------------------------------------------------


# The same examples each time, because a few of any number would be unlucky; and no search for smaller ones, which
# would take minutes.
_COMMON: dict[str, Any] = {
    "deadline": None, "derandomize": True, "database": None, "suppress_health_check": list(HealthCheck),
    "phases": [Phase.explicit, Phase.generate],
}  # fmt: skip
ANY, REST = settings(max_examples=20, **_COMMON), settings(max_examples=5, **_COMMON)


@some.composite
def loads(draw: some.DrawFn) -> tuple[float, ...]:
    """Draw arrivals whose rate changes at random every so often."""
    length = draw(some.sampled_from([20.0, 60.0, 150.0]))
    rates = draw(some.lists(some.sampled_from([0.1, 0.5, 0.8, 1.0, 1.3, 2.0]), min_size=int(600 / length)))
    seed = draw(some.integers())
    return arrivals(lambda at: CAPACITY * rates[int(at / length) % len(rates)], 2 * CAPACITY, seed, 600)


@ANY
@given(
    load=loads(), knee=some.integers(1, 30), by=some.sampled_from([0.0, 0.02, 0.1, 0.5]), timed=some.booleans(),
    bounds=some.tuples(some.integers(1, 15), some.integers(15, 60)), own=some.sampled_from([0.0, 0.05]),
)  # fmt: skip
def test_any_load(
    load: tuple[float, ...], knee: int, by: float, timed: bool, bounds: tuple[int, int], own: float
) -> None:
    """Within its bounds, and without oscillating: a reversal is rare, unless it undoes a step that clearly did harm."""
    controller = Controller(*bounds)
    found = simulate(load, controller, speed=slows_down(knee, by), timed=timed, own=own, length=600)
    assert all(bounds[0] <= one.after <= bounds[1] for one in found.decisions)
    undone = {one.at for one in found.steps if "undone" in one.reason or "half of the last step back" in one.reason}
    assert within([at for at in found.reversals() if at not in undone], COOL_DOWN) <= 1, found.text()
    assert len(found.reversals()) <= 6, found.text()


@REST
@given(knee=some.integers(5, 30), by=some.sampled_from([0.0, 0.05, 0.3]), seed=some.integers())
def test_a_steady_load_comes_to_rest(knee: int, by: float, seed: int) -> None:
    """The size changes less and less: in the second 20 minutes at most for a trial, which is undone."""
    load = arrivals(lambda at: 1.2 * CAPACITY, 1.2 * CAPACITY, seed, 2400)
    found = simulate(load, Controller(LOW, HIGH), speed=slows_down(knee, by), length=2400)
    late = [one for one in found.steps if one.at > 1200]
    assert len(late) <= 4, found.text()

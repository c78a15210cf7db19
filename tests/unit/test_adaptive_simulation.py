"""Adaptive size against a simulated server, whose throughput is highest with 12 connections. Deterministic.

The controller and the sums over samples are those of the pool. Only time, borrowers and the server are simulated:
each connection is served at full speed up to 12 of them; beyond, all of them share less and less. For each load the
best fixed size is found by trying all.
"""

from __future__ import annotations

import functools
import heapq
import math
import random
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

import pytest

from pooling.adaptive.controller import COOL_DOWN, Controller, Decision
from pooling.adaptive.window import Sample, Windows

KNEE = 12  # connections
WORK = 0.1  # seconds of the server's time per lease, without load
CAPACITY = KNEE / WORK
LOW, HIGH = 1, 40
LENGTH = 900.0  # seconds
EARLY = 120.0  # seconds that the controller may take
THREADS = 60  # that serve requests; further requests are refused by the web server

Speed = Callable[[int], float]


def slows_down(knee: int = KNEE, by: float = 0.05) -> Speed:
    """Return the speed of one connection when so many are used: 1.0 up to the knee."""
    return lambda used: 1.0 if used <= knee else knee / used / (1 + by * (used - knee))


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
    completed: int  # after EARLY
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
    speed: Speed = slows_down(),
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

"""A busy web application: are the slots always at work, and is each thread served?"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from time import perf_counter, sleep

from . import contenders, figures
from .harness import LEAD, Plan, crowd, interleave, opened
from .table import Column, Table, Target

__all__ = ["HOLD", "MAKERS", "NAME", "SLOTS", "THREADS", "Ideal", "Shift", "run", "shift"]

NAME = "held"
THREADS = 32
SLOTS = 4
HOLD = 200e-6

MAKERS: Sequence[type[contenders.Contender]] = (
    contenders.Pooling,
    contenders.HandOff,
    contenders.PsycopgPool,
    contenders.SQLAlchemy,
    contenders.LifoQueue,
)


class Ideal(contenders.Contender):
    """No pool at all: as many threads as there are slots, each with one of its own."""

    name = "ideal: no pool"

    def checkout(self) -> AbstractContextManager[object]:
        return contextlib.nullcontext()


@dataclass(frozen=True)
class Shift:
    """What came of one slice: turns of each thread, its length, the longest wait."""

    counts: list[int]
    seconds: float
    longest: float

    @property
    def rate(self) -> float:
        """Turns in a second, all threads together."""
        return sum(self.counts) / self.seconds


def shift(pool: contenders.Contender, threads: int, seconds: float) -> Shift:
    """Count the turns between two moments; who waits beyond the end has waited until then."""
    start = perf_counter() + LEAD
    over = start + seconds

    def work() -> tuple[int, float]:
        turns = 0
        longest = 0.0
        while True:
            asked = perf_counter()
            with pool.checkout():
                entered = perf_counter()
                longest = max(longest, min(entered, over) - max(asked, start))
                if entered >= over:
                    return turns, longest
                sleep(HOLD)
                if entered >= start:
                    turns += 1

    results = crowd(work, threads)
    return Shift(
        counts=[turns for turns, _ in results],
        seconds=seconds,
        longest=max(longest for _, longest in results),
    )


def run(plan: Plan) -> Table:
    """Let 32 threads take turns on 4 slots, holding each for 200 µs."""
    seconds = plan.choose(full=1.0, quick=0.5)
    count = plan.count(full=15, quick=5)

    def measure(pool: contenders.Contender) -> Shift:
        return shift(pool, SLOTS if isinstance(pool, Ideal) else THREADS, seconds)

    with opened(MAKERS, SLOTS) as (pools, failures):
        rounds = interleave([Ideal(SLOTS), *pools], count, measure)
    samples = rounds.samples
    rates = {name: [one.rate for one in shifts] for name, shifts in samples.items()}
    ideal = rates.get(Ideal.name)
    return Table(
        name=NAME,
        title=(
            f"{THREADS} threads on {SLOTS} slots, held for {HOLD * 1e6:.0f} µs, "
            f"{count} rounds of {seconds} s"
        ),
        columns=(
            Column("name", "pool"),
            Column("rate", "ops/s", ",.0f"),
            Column("ideal", "of ideal", ".1%"),
            Column("spread", "spread", ".0%"),
            Column("starved", "starved", ".0f"),
            Column("fairness", "max/min", ",.2f"),
            Column("longest_ms", "longest wait, ms", ",.1f"),
        ),
        rows=[
            {
                "name": name,
                "rate": figures.median(rates[name]),
                "ideal": figures.ratio(rates[name], ideal) if ideal else None,
                "spread": figures.spread(rates[name]),
                "starved": figures.median([figures.starved(one.counts) for one in shifts]),
                "fairness": figures.median([figures.fairness(one.counts) for one in shifts]),
                "longest_ms": figures.median([one.longest * 1e3 for one in shifts]),
            }
            for name, shifts in samples.items()
        ],
        targets=_targets(samples.get(contenders.Pooling.name), ideal),
        notes=(
            f"ideal: {SLOTS} threads that hold without any pool, measured in each round",
            f"starved: less than {figures.STARVED_BELOW:.0%} of the average of all threads",
            "max/min and longest wait: the median of what each round gave",
        ),
        failures=failures + rounds.failures,
    )


def _targets(ours: list[Shift] | None, ideal: list[float] | None) -> list[Target]:
    if not ours or not ideal:
        return []
    part = figures.ratio([one.rate for one in ours], ideal)
    starved = max(figures.starved(one.counts) for one in ours)
    fairness = figures.median([figures.fairness(one.counts) for one in ours])
    longest = figures.median([one.longest for one in ours])
    return [
        Target("pooling: part of the ideal", part * 100, ">=", 92, " %", ".1f"),
        Target("pooling: threads starved, worst round", starved, "<=", 0, spec=".0f"),
        Target("pooling: max/min of the threads", fairness, "<=", 1.05),
        Target("pooling: longest wait", longest * 1e3, "<=", 5, " ms", ".1f"),
    ]

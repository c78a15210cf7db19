"""Throughput, and its fairness, when almost all threads wait."""

from __future__ import annotations

from collections.abc import Sequence

from . import contenders, figures
from .harness import Plan, Traffic, interleave, opened, traffic
from .table import Column, Table, Target

__all__ = ["NAME", "run"]

NAME = "scarce"
THREADS = 64
SLOTS = 2

MAKERS: Sequence[type[contenders.Contender]] = (
    contenders.Pooling,
    contenders.HandOff,
    contenders.LifoQueue,
    contenders.Urllib3,
    contenders.DBUtils,
    contenders.PsycopgPool,
    contenders.SQLAlchemy,
    contenders.Redis,
    contenders.GenericConnectionPool,
)


def run(plan: Plan) -> Table:
    """Count the checkouts of each of 64 threads on 2 slots that hold nothing."""
    seconds = plan.choose(full=0.7, quick=0.4)
    count = plan.count(full=9, quick=3)

    def measure(pool: contenders.Contender) -> Traffic:
        return traffic(pool, THREADS, seconds, chunk=1)

    with opened(MAKERS, SLOTS) as (pools, failures):
        rounds = interleave(pools, count, measure)
    rates = {name: [one.rate for one in slices] for name, slices in rounds.samples.items()}
    ours = rates.get(contenders.Pooling.name)
    psycopg = rates.get(contenders.PsycopgPool.name)
    starved = rounds.of(contenders.Pooling.name, lambda one: figures.starved(one.counts))
    return Table(
        name=NAME,
        title=f"{THREADS} threads on {SLOTS} slots, nothing held, {count} rounds",
        columns=(
            Column("name", "pool"),
            Column("rate", "ops/s", ",.0f"),
            Column("ratio", "x psycopg_pool", ".2f"),
            Column("spread", "spread", ".0%"),
            Column("least", "min a thread", ",.0f"),
            Column("most", "max a thread", ",.0f"),
            Column("starved", "starved", ".0f"),
        ),
        rows=[
            {
                "name": name,
                "rate": figures.median(rates[name]),
                "ratio": figures.ratio(rates[name], psycopg) if psycopg else None,
                "spread": figures.spread(rates[name]),
                "least": figures.median([min(one.counts) for one in slices]),
                "most": figures.median([max(one.counts) for one in slices]),
                "starved": figures.median([figures.starved(one.counts) for one in slices]),
            }
            for name, slices in rounds.samples.items()
        ],
        targets=[
            Target(
                "pooling / psycopg_pool",
                figures.ratio(ours, psycopg) if ours and psycopg else None,
                ">=",
                1.0,
                " x",
            ),
            Target(
                "pooling: threads starved, worst round",
                max(starved) if starved else None,
                "<=",
                0,
                spec=".0f",
            ),
        ],
        notes=(
            f"starved: less than {figures.STARVED_BELOW:.0%} of the average of all threads",
            f"min and max: checkouts of one thread in a round of {seconds} s",
        ),
        failures=failures + rounds.failures,
    )

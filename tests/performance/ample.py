"""Do threads get in each other's way where there is enough for all?"""

from __future__ import annotations

from collections.abc import Sequence

from . import contenders, figures
from .harness import Plan, Traffic, interleave, opened, traffic
from .table import Column, Table, Target

__all__ = ["NAME", "run"]

NAME = "ample"
THREADS = 8
SLOTS = 16

MAKERS: Sequence[type[contenders.Contender]] = (
    contenders.Pooling,
    contenders.SimpleQueue,
    contenders.LockAndDeque,
    contenders.Urllib3,
    contenders.DBUtils,
    contenders.PsycopgPool,
    contenders.SQLAlchemy,
    contenders.Redis,
    contenders.GenericConnectionPool,
)


def run(plan: Plan) -> Table:
    """Count the checkouts of 8 threads on 16 slots that hold nothing."""
    seconds = plan.choose(full=0.4, quick=0.2)
    count = plan.count(full=11, quick=5)

    def measure(pool: contenders.Contender) -> Traffic:
        return traffic(pool, THREADS, seconds, chunk=20)

    with opened(MAKERS, SLOTS) as (pools, failures):
        rounds = interleave(pools, count, measure)
    rates = {name: [one.rate for one in slices] for name, slices in rounds.samples.items()}
    ours = rates.get(contenders.Pooling.name)
    psycopg = rates.get(contenders.PsycopgPool.name)
    return Table(
        name=NAME,
        title=f"{THREADS} threads on {SLOTS} slots, nothing held, {count} rounds",
        columns=(
            Column("name", "pool"),
            Column("rate", "ops/s", ",.0f"),
            Column("ratio", "x psycopg_pool", ".2f"),
            Column("spread", "spread", ".0%"),
        ),
        rows=[
            {
                "name": name,
                "rate": figures.median(values),
                "ratio": figures.ratio(values, psycopg) if psycopg else None,
                "spread": figures.spread(values),
            }
            for name, values in rates.items()
        ],
        targets=[
            Target(
                "pooling / psycopg_pool",
                figures.ratio(ours, psycopg) if ours and psycopg else None,
                ">=",
                5.0,
                " x",
            )
        ],
        failures=failures + rounds.failures,
    )

"""The cost of a checkout without contention."""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter

from . import contenders, figures
from .harness import Plan, calibrate, interleave, opened
from .table import Column, Table, Target

__all__ = ["NAME", "run"]

NAME = "uncontended"
SLOTS = 10

BASE = contenders.LockAndDeque
MAKERS: Sequence[type[contenders.Contender]] = (
    contenders.Pooling,
    contenders.PoolingWithoutHolders,
    contenders.PoolingPolled,
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
    """Time an acquire and its release of an idle resource, in one thread."""
    seconds = plan.choose(full=0.03, quick=0.015)
    count = plan.count(full=101, quick=31)
    with opened(MAKERS, SLOTS) as (pools, failures):
        times = {pool.name: calibrate(pool.loop, seconds) for pool in pools}

        def measure(pool: contenders.Contender) -> float:
            began = perf_counter()
            pool.loop(times[pool.name])
            return (perf_counter() - began) / times[pool.name] * 1e9

        rounds = interleave(pools, count, measure)
    samples = rounds.samples
    base = samples.get(BASE.name)
    ours = samples.get(contenders.Pooling.name)
    psycopg = samples.get(contenders.PsycopgPool.name)
    return Table(
        name=NAME,
        title=f"acquire + release of an idle resource, one thread, {count} rounds",
        columns=(
            Column("name", "pool"),
            Column("ns", "ns", ",.0f"),
            Column("ratio", "x base", ".2f"),
            Column("spread", "spread", ".0%"),
        ),
        rows=[
            {
                "name": name,
                "ns": figures.median(values),
                "ratio": figures.ratio(values, base) if base else None,
                "spread": figures.spread(values),
            }
            for name, values in samples.items()
        ],
        targets=_targets(ours, base, psycopg),
        notes=(
            f"base: {BASE.name}, which cannot wait and checks nothing",
            "SQLAlchemy and DBUtils roll back on return (their default); it costs nothing here",
        ),
        failures=failures + rounds.failures,
    )


def _targets(
    ours: Sequence[float] | None,
    base: Sequence[float] | None,
    psycopg: Sequence[float] | None,
) -> list[Target]:
    dearer = figures.ratio(ours, base) if ours and base else None
    cheaper = figures.ratio(psycopg, ours) if ours and psycopg else None
    return [
        Target("pooling / base", dearer, "<=", 1.3, " x"),
        Target("pooling / base, stretch", dearer, "<=", 1.1, " x"),
        Target("psycopg_pool / pooling", cheaper, ">=", 5.0, " x"),
    ]

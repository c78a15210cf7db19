"""Is a big pool as fast as a small one, and what does an idle resource weigh?"""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from time import perf_counter

from pooling import Pool, PoolSettings

from . import figures
from .contenders import Pooling, Resource, fill
from .harness import Plan, calibrate, interleave
from .table import Column, Table, Target

__all__ = ["NAME", "run"]

NAME = "flat"
SIZES = (10, 100, 1_000, 10_000)


@dataclass(frozen=True)
class Filled:
    """A pool with that many idle resources."""

    size: int
    pool: Pooling

    @property
    def name(self) -> str:
        """What the table calls it."""
        return f"{self.size:,} idle"


def run(plan: Plan) -> Table:
    """Time a checkout with 10 to 10,000 idle resources; weigh an idle entry."""
    seconds = plan.choose(full=0.03, quick=0.015)
    count = plan.count(full=61, quick=21)
    with ExitStack() as stack:
        pools = []
        for size in SIZES:
            pool = Pooling(size)
            stack.callback(pool.close)
            fill(pool)
            pools.append(Filled(size, pool))
        times = calibrate(pools[0].pool.loop, seconds)

        def measure(filled: Filled) -> float:
            began = perf_counter()
            filled.pool.loop(times)
            return (perf_counter() - began) / times * 1e9

        rounds = interleave(pools, count, measure)
    samples = rounds.samples
    base = samples.get(pools[0].name)
    ratios = {name: figures.ratio(values, base) for name, values in samples.items() if base}
    entries = plan.choose(full=10_000, quick=2_000)
    weight = entry_weight(entries)
    return Table(
        name=NAME,
        title=f"acquire + release with many idle, one thread, {count} rounds",
        columns=(
            Column("name", "pooling with"),
            Column("ns", "ns", ",.0f"),
            Column("ratio", f"x {SIZES[0]} idle", ".2f"),
            Column("spread", "spread", ".0%"),
        ),
        rows=[
            {
                "name": name,
                "ns": figures.median(values),
                "ratio": ratios.get(name),
                "spread": figures.spread(values),
            }
            for name, values in samples.items()
        ],
        targets=[
            Target(
                f"largest ratio to {SIZES[0]} idle",
                max(ratios.values(), default=None),
                "<=",
                1.1,
                " x",
            ),
            Target("an idle entry beyond its resource", weight, "<=", 500, " bytes", ",.0f"),
        ],
        notes=(f"the weight: what tracemalloc saw for {entries:,} idle entries, for each",),
        failures=rounds.failures,
    )


def entry_weight(entries: int, few: int = 10) -> float:
    """Return the bytes an idle entry adds to the pool, its resource not counted.

    The first few entries bring the pool's threads and tables into being, so
    what counts is the growth from then on. The resources are made before.
    """
    resources: Iterator[Resource] = iter([Resource() for _ in range(entries)])
    settings = PoolSettings(min_size=0, max_size=entries)
    with closing(Pool(lambda: next(resources), settings=settings, name="weighed")) as pool:
        tracemalloc.start()
        try:
            at_first = _weigh(pool, few)
            at_last = _weigh(pool, entries)
        finally:
            tracemalloc.stop()
    return (at_last - at_first) / (entries - few)


def _weigh(pool: Pool[Resource], idle: int) -> int:
    leases = [pool.acquire() for _ in range(idle)]
    for lease in leases:
        lease.release()
    del leases, lease
    gc.collect()
    return tracemalloc.get_traced_memory()[0]

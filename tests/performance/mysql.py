"""What does a pool of MySQL connections take of the server's answers?

PyMySQL under each pool, against a MariaDB on the same machine, which takes its
part of it, so these are ratios. Each turn is a transaction of its own: lend a
connection, one statement, commit, give it back.
"""

from __future__ import annotations

import contextlib
import importlib
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from time import perf_counter, process_time, sleep
from typing import Any, ClassVar

import pymysql

from pooling import MySQLPool, PoolSettings
from tests.mariadb import MariaDBServer

from . import figures
from .harness import LEAD, Plan, Rounds, Wrong, crowd, interleave
from .table import Column, Table, Target

__all__ = ["run_insert", "run_select"]

CASES = ((1, 1), (20, 10), (64, 8))  # threads, max_size
LEAST = {1: 0.95}  # of the best peer, with one thread; otherwise 1
PATIENCE = 60.0

COLUMNS = (
    Column("name", "pool"),
    Column("case", "threads/size"),
    Column("rate", "/s", ",.0f"),
    Column("ratio", "x best peer", ".2f"),
    Column("spread", "spread", ".0%"),
    Column("p50", "p50 ms", ".2f"),
    Column("p99", "p99 ms", ".2f"),
    Column("cpu", "CPU us", ".0f"),
)

Act = Callable[[Any], object]


@dataclass
class Slice:
    """What all threads did in one slice of time."""

    rate: float
    p50: float
    p99: float
    cpu: float  # microseconds of this process for each turn


class Contender:
    """A pool of ``size`` connections.

    Attributes:
        name: What the table calls it.
        module: What to import for it.
    """

    name: ClassVar[str]
    module: ClassVar[str] = "pymysql"

    def __init__(self, server: MariaDBServer, size: int) -> None:
        self.arguments = {"host": "127.0.0.1", "port": server.port, "user": "root", "database": "test"}
        self.size = size
        self.open()

    @classmethod
    def installed(cls) -> bool:
        """Say whether it can be measured here."""
        try:
            importlib.import_module(cls.module)
        except ImportError:
            return False
        return True

    def open(self) -> None:
        """Make the pool."""

    def connection(self) -> contextlib.AbstractContextManager[Any]:
        """Lend a connection for one transaction."""
        raise NotImplementedError

    def execute(self, sql: str) -> None:
        """Execute a statement in a transaction."""
        with self.connection() as conn:
            cursor = conn.cursor()
            cursor.execute(sql)
            cursor.fetchall()
            cursor.close()

    def close(self) -> None:
        """End it."""


class Ours(Contender):
    """``db.connection()``, all defaults: each connection looked at, each session cleaned."""

    name = "pooling"
    options: ClassVar[dict[str, Any]] = {}

    def open(self) -> None:
        settings = PoolSettings(min_size=0, max_size=self.size, acquire_timeout=PATIENCE)
        self.pool = MySQLPool(settings=settings, kwargs=self.arguments, driver="pymysql", **self.options)
        self.connection = self.pool.connection  # type: ignore[method-assign]

    def close(self) -> None:
        self.pool.close()


class OursTrusting(Ours):
    """The same without cleaning the server's side but for the transaction, as the peers do it."""

    name = "pooling, session='trust'"
    options = {"session": "trust"}


class OursQuery(Ours):
    """``db.execute_query()``."""

    name = "pooling, execute_query"

    def execute(self, sql: str) -> None:
        self.pool.execute_query(sql)


class QueuePool(Contender):
    """SQLAlchemy's QueuePool without an engine: it rolls back when a connection comes back."""

    name = "SQLAlchemy QueuePool"
    module = "sqlalchemy"

    def open(self) -> None:
        pools = importlib.import_module("sqlalchemy.pool")
        self.pool = pools.QueuePool(
            lambda: pymysql.connect(**self.arguments), pool_size=self.size, max_overflow=0, timeout=PATIENCE,
            dialect=importlib.import_module("sqlalchemy.dialects.mysql.pymysql").dialect(),
        )  # fmt: skip

    @contextlib.contextmanager
    def connection(self) -> Iterator[Any]:
        conn = self.pool.connect()
        try:
            yield conn
            conn.commit()
        finally:
            conn.close()

    def close(self) -> None:
        self.pool.dispose()


class DBUtils(Contender):
    """DBUtils' PooledDB: it pings what it lends, and rolls back what comes back."""

    name = "DBUtils"
    module = "dbutils.pooled_db"

    def open(self) -> None:
        make = importlib.import_module(self.module).PooledDB
        self.pool = make(pymysql, maxconnections=self.size, maxcached=self.size, blocking=True, **self.arguments)

    @contextlib.contextmanager
    def connection(self) -> Iterator[Any]:
        conn = self.pool.connection()
        try:
            yield conn
            conn.commit()
        finally:
            conn.close()

    def close(self) -> None:
        self.pool.close()


MAKERS: tuple[type[Contender], ...] = (Ours, OursTrusting, OursQuery, QueuePool, DBUtils)
PEERS = (QueuePool, DBUtils)


def run_select(plan: Plan) -> Table:
    """``SELECT 1`` in a transaction."""
    return _run(plan, "mysql", "SELECT 1", "SELECT 1")


def run_insert(plan: Plan) -> Table:
    """Insert a small row."""
    return _run(plan, "mysql-insert", "a small insert", "INSERT INTO orders (symbol, quantity) VALUES ('ACME', 100)")


def _run(plan: Plan, name: str, what: str, sql: str) -> Table:
    count = plan.count(full=11, quick=3)
    seconds = plan.choose(full=1.0, quick=0.5)
    table = Table(name, f"{what} on MariaDB over PyMySQL, {count} rounds", COLUMNS, [])
    rows, targets, failures = [], [], []
    with MariaDBServer("--max-connections=200") as server:
        server.ask(
            "CREATE TABLE orders (id BIGINT AUTO_INCREMENT PRIMARY KEY, symbol VARCHAR(9), quantity INT) ENGINE=InnoDB"
        )
        for threads, size in CASES:
            with contextlib.ExitStack() as stack:
                pools = [make(server, size) for make in MAKERS if make.installed()]
                for pool in pools:
                    stack.callback(pool.close)
                rounds = interleave(pools, count, lambda pool: _slice(pool, threads, seconds, sql))  # noqa: B023
            failures += rounds.failures
            rows += [_row(name, f"{threads}/{size}", rounds) for name in rounds.samples]
            targets += _targets(what, threads, size, rounds)
    table.rows, table.targets, table.failures = rows, targets, failures
    table.notes = (
        "pooling resets each session in the round trip of its COMMIT; the peers roll back only",
        "pooling looks at each connection it lends, DBUtils pings it, QueuePool does neither",
    )
    return table


def _slice(pool: Contender, threads: int, seconds: float, sql: str) -> Slice:
    running, counting, elapsed, used = True, False, 0.0, 0.0

    def work() -> list[float]:
        times = []
        while running:
            began = perf_counter()
            pool.execute(sql)
            ended = perf_counter()
            if counting:
                times.append(ended - began)
        return times

    def watch() -> None:
        nonlocal running, counting, elapsed, used
        sleep(LEAD)
        counting, began, before = True, perf_counter(), process_time()
        sleep(seconds)
        counting, elapsed, used = False, perf_counter() - began, process_time() - before
        running = False

    times = sorted(itertools.chain.from_iterable(crowd(work, threads, watch)))
    if not times:
        raise Wrong("not one turn in a slice: others use the machine")
    number = len(times)
    return Slice(
        number / elapsed, times[number // 2] * 1e3, times[int(number * 0.99)] * 1e3, used / number * 1e6
    )  # fmt: skip


def _best(rounds: Rounds[Slice]) -> list[float] | None:
    """Return the rates of the peer that is fastest."""
    found = [rates for peer in PEERS if (rates := rounds.of(peer.name, lambda one: one.rate))]
    return max(found, key=figures.median, default=None)


def _row(name: str, case: str, rounds: Rounds[Slice]) -> dict[str, object]:
    slices, best = rounds.samples[name], _best(rounds)
    rates = [one.rate for one in slices]
    return {
        "name": name, "case": case, "rate": figures.median(rates),
        "ratio": figures.ratio(rates, best) if best else None, "spread": figures.spread(rates),
        "p50": figures.median([one.p50 for one in slices]), "p99": figures.median([one.p99 for one in slices]),
        "cpu": figures.median([one.cpu for one in slices]),
    }  # fmt: skip


def _targets(what: str, threads: int, size: int, rounds: Rounds[Slice]) -> list[Target]:
    rates, best = rounds.of(Ours.name, lambda one: one.rate), _best(rounds)
    both = figures.ratio(rates, best) if rates and best else None
    name = f"{Ours.name} / the best peer, {what}, {threads} threads on {size}"
    return [Target(name, both, ">=", LEAST.get(threads, 1.0), " x")]

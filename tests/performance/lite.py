"""SQLite under 16 threads that read and write: what is done in a second, and how long does one wait?"""

from __future__ import annotations

import random
import sqlite3
import statistics
import tempfile
import threading
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from time import perf_counter, sleep
from typing import Any, ClassVar, NamedTuple

from pooling import PoolSettings, SQLitePool

from . import figures
from .harness import Plan, crowd, interleave
from .table import Column, Table, Target

__all__ = ["NAME", "READS", "THREADS", "Pooling", "Shared", "SQLAlchemy", "Way", "opened_in", "round_of", "run"]

NAME = "sqlite"
THREADS = 16
ROWS = 20_000
WRITES = 0.2  # of the operations
BUSY = 5.0  # seconds that all connections wait for a lock

SUM = "SELECT count(*), sum(n), max(word) FROM t WHERE id <> ?"  # some 2 ms, without the GIL
ROW = "SELECT n, word FROM t WHERE id = ?"  # some 5 µs, most of them with it
READS = {"both": (SUM, ROW), "sum of all": (SUM,), "one row": (ROW,)}  # one as often as the other
WRITE = "UPDATE t SET n = n + 1 WHERE id = ?"


class Sample(NamedTuple):
    """One round of one way.

    Attributes:
        rate: Operations in a second.
        p99, worst: Seconds of the slowest of a hundred, and of all.
        least: What the thread that did least has done, as a part of the mean.
        locked: How many failed because the database was locked.
    """

    rate: float
    p99: float
    worst: float
    least: float
    locked: int


class Way:
    """One way to use a database from many threads: all of them set the same."""

    name: ClassVar[str]

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self, query: str, key: int) -> Any:
        """Return the rows of `SUM` or `ROW`."""
        raise NotImplementedError

    def write(self, key: int) -> None:
        """Change a row, and commit."""
        raise NotImplementedError

    def close(self) -> None:
        """End it."""


class Pooling(Way):
    """Ours: one writes, others read."""

    name = "pooling, readers=7"
    arguments: ClassVar[dict[str, Any]] = {"readers": 7}

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        settings = PoolSettings(max_size=8, acquire_timeout=60)
        self.pool = SQLitePool(path, settings, timeout=BUSY, optimize=False, **self.arguments)

    def read(self, query: str, key: int) -> Any:
        return self.pool.execute_query(query, (key,))

    def write(self, key: int) -> None:
        with self.pool.connection() as conn:
            conn.execute(WRITE, (key,))

    def close(self) -> None:
        self.pool.close()


class PoolingPlain(Pooling):
    """Ours, where every connection may write."""

    name = "pooling, max_size=8"
    arguments: ClassVar[dict[str, Any]] = {}


def connect(path: Path, **arguments: Any) -> sqlite3.Connection:
    """A connection as all ways have it: WAL, foreign keys, a busy timeout, SQLite's own durability."""
    conn = sqlite3.connect(path, timeout=BUSY, isolation_level="IMMEDIATE", **arguments)
    conn.execute("PRAGMA journal_mode=WAL")
    conn.execute("PRAGMA foreign_keys=ON")
    return conn


class ForEachCall(Way):
    """A new connection each time."""

    name = "connection per call"

    def read(self, query: str, key: int) -> Any:
        with closing(connect(self.path)) as conn:
            return conn.execute(query, (key,)).fetchall()

    def write(self, key: int) -> None:
        with closing(connect(self.path)) as conn, conn:
            conn.execute(WRITE, (key,))


class Shared(Way):
    """One connection for all, one at a time."""

    name = "one connection, one lock"

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.lock = threading.Lock()
        self.conn = connect(path, check_same_thread=False)

    def read(self, query: str, key: int) -> Any:
        with self.lock:
            return self.conn.execute(query, (key,)).fetchall()

    def write(self, key: int) -> None:
        with self.lock, self.conn:
            self.conn.execute(WRITE, (key,))

    def close(self) -> None:
        self.conn.close()


class SQLAlchemy(Way):
    """SQLAlchemy's pool of bare connections, without its SQL layer."""

    name = "SQLAlchemy QueuePool"

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        from sqlalchemy.pool import QueuePool

        self.pool: Any = QueuePool(
            lambda: connect(path, check_same_thread=False), pool_size=8, max_overflow=0, timeout=60
        )

    def read(self, query: str, key: int) -> Any:
        with closing(self.pool.connect()) as conn:
            cursor = conn.cursor()
            cursor.execute(query, (key,))
            return cursor.fetchall()

    def write(self, key: int) -> None:
        with closing(self.pool.connect()) as conn:
            conn.cursor().execute(WRITE, (key,))
            conn.commit()

    def close(self) -> None:
        self.pool.dispose()


WAYS: tuple[type[Way], ...] = (Pooling, PoolingPlain, ForEachCall, Shared, SQLAlchemy)


def run(plan: Plan) -> Table:
    """Let 16 threads read and write in each way, in turns."""
    seconds = plan.choose(full=2.0, quick=0.5)
    count = plan.count(full=9, quick=3)
    failures: list[str] = []
    rows: list[dict[str, object]] = []
    targets: list[Target] = []
    with tempfile.TemporaryDirectory() as folder:
        ways = opened_in(Path(folder), failures)
        done = {way.name: 0 for way in ways}
        for reads, queries in READS.items():

            def measure(way: Way, queries: Sequence[str] = queries) -> Sample:
                sample, writes = round_of(way, queries, seconds)
                done[way.name] += writes
                return sample

            rounds = interleave(ways, count, measure)
            failures += rounds.failures
            rows += [_row(reads, name, samples) for name, samples in rounds.samples.items()]
            targets += _targets(reads, rounds.samples)
        for way in ways:
            way.close()
            if (found := _sum(way.path)) != done[way.name]:
                failures.append(f"{way.name}: {found} writes are stored, and {done[way.name]} were made")
    return Table(
        name=NAME,
        title=f"{THREADS} threads, {WRITES:.0%} writes, WAL, full durability, {count} rounds of {seconds:g} s",
        columns=(
            Column("reads", "reads"),
            Column("name", "way"),
            Column("rate", "operations/s", ",.0f"),
            Column("p99", "p99 ms", ",.2f"),
            Column("worst", "worst ms", ",.0f"),
            Column("least", "least", ".0%"),
            Column("locked", "locked", ",.0f"),
            Column("spread", "spread", ".0%"),
        ),
        rows=rows,
        targets=targets,
        notes=(
            f"{ROWS:,} rows; a write is one UPDATE and its commit; all wait {BUSY:g} s for SQLite's lock",
            "one lock: a thread that comes back at once overtakes those that wait for it, see the worst",
            "least: what the thread that did least has done, of the mean; who waits for SQLite's lock by its busy "
            "handler may do nothing for a whole round, of which a percentile of operations tells nothing",
        ),
        failures=failures,
    )


def _row(reads: str, name: str, samples: list[Sample]) -> dict[str, object]:
    rates = [one.rate for one in samples]
    return {
        "reads": reads,
        "name": name,
        "rate": statistics.median(rates),
        "p99": statistics.median(one.p99 for one in samples) * 1e3,
        "worst": max(one.worst for one in samples) * 1e3,
        "least": statistics.median(one.least for one in samples),
        "locked": sum(one.locked for one in samples),
        "spread": figures.spread(rates),
    }


def opened_in(folder: Path, failures: list[str], makers: Sequence[type[Way]] = WAYS) -> list[Way]:
    """Return the ways that are installed, each with a database of its own, and note what failed."""
    ways: list[Way] = []
    for make in makers:
        path = folder / f"{make.__name__}.db"
        with closing(connect(path)) as conn, conn:
            conn.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, n INTEGER, word TEXT)")
            conn.executemany("INSERT INTO t VALUES (?, 0, 'some word')", [(key,) for key in range(ROWS)])
        try:
            ways.append(make(path))
        except ImportError:
            continue
        except Exception as error:
            failures.append(f"{make.name}: {error!r}")
    return ways


def round_of(way: Way, queries: Sequence[str], seconds: float) -> tuple[Sample, int]:
    """Let all threads read and write for so long; return what came of it, and how many writes were made."""
    running, began = True, 0.0

    def work() -> tuple[list[float], int, int]:
        dice, times, writes, locked = random.Random(threading.get_ident()), [], 0, 0
        while running:
            key, writing = dice.randrange(ROWS), dice.random() < WRITES
            start = perf_counter()
            try:
                if writing:
                    way.write(key)
                    writes += 1
                elif not way.read(dice.choice(queries), key):
                    raise LookupError(f"row {key} is missing")
            except sqlite3.OperationalError as error:
                if "locked" not in str(error):
                    raise
                locked += 1
            times.append(perf_counter() - start)
        return times, writes, locked

    def watch() -> None:
        nonlocal running, began
        began = perf_counter()
        sleep(seconds)
        running = False

    results = crowd(work, THREADS, watch)
    elapsed = perf_counter() - began
    times = sorted(time for found, _, _ in results for time in found)
    sample = Sample(
        rate=len(times) / elapsed,
        p99=times[int(0.99 * (len(times) - 1))],
        worst=times[-1],
        least=min(len(found) for found, _, _ in results) * THREADS / len(times),
        locked=sum(found[2] for found in results),
    )
    return sample, sum(found[1] for found in results)


def _sum(path: Path) -> int:
    with closing(sqlite3.connect(path)) as conn:
        return int(conn.execute("SELECT sum(n) FROM t").fetchone()[0])


def _targets(reads: str, samples: dict[str, list[Sample]]) -> list[Target]:
    ours = samples.get(Pooling.name)
    if ours is None:
        return []
    targets = [Target(f"{reads}: locked errors", float(sum(one.locked for one in ours)), "<=", 0, spec=",.0f")]
    for name, theirs in samples.items():
        if not name.startswith("pooling"):
            faster = figures.ratio([one.rate for one in ours], [one.rate for one in theirs])
            shorter = figures.ratio([one.p99 for one in theirs], [one.p99 for one in ours])
            targets.append(Target(f"{reads}: operations/s, pooling / {name}", faster, ">=", 1.0, " x"))
            targets.append(Target(f"{reads}: p99, {name} / pooling", shorter, ">=", 1.0, " x"))
    return targets

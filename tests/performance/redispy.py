"""redis-py over a loopback server: GET and pipelines of 10, with our pool, its own pools, and a client per thread."""

from __future__ import annotations

import statistics
import threading
from collections.abc import Callable
from time import perf_counter, process_time, sleep
from typing import Any, ClassVar, NamedTuple

from tests.redisserver import RedisServer, programs

from . import figures
from .harness import LEAD, Plan, crowd, interleave
from .table import Column, Table, Target

__all__ = ["NAME", "run"]

NAME = "redis"
LOADS = ((1, 1), (20, 10), (64, 8))  # threads, connections
PIPELINE = 10


class Sample(NamedTuple):
    """One round of one way.

    Attributes:
        rate: Operations in a second.
        p99: Seconds of the slowest of a hundred.
        cpu: Seconds of this process's processor time for an operation.
        least: What the thread that did least has done, as a part of the mean.
        starved: How many threads got next to nothing.
    """

    rate: float
    p99: float
    cpu: float
    least: float
    starved: int


class Way:
    """One way to use redis-py from many threads."""

    name: ClassVar[str]

    def __init__(self, port: int, threads: int, slots: int) -> None:
        import redis

        self.client = redis.Redis(connection_pool=self.pool(threads, slots, host="127.0.0.1", port=port))
        self.client.set("a", "some value")

    def pool(self, threads: int, slots: int, **where: Any) -> Any:
        """Return the pool."""
        raise NotImplementedError

    def get_client(self) -> Any:
        """Return the client that a thread uses."""
        return self.client

    def close(self) -> None:
        """End it."""
        self.client.connection_pool.close()


class Pooling(Way):
    """Ours."""

    name = "pooling"

    def pool(self, threads: int, slots: int, **where: Any) -> Any:
        from pooling import RedisPool

        return RedisPool(max_size=slots, acquire_timeout=60, **where)


class TheirBlocking(Way):
    """redis-py's, with the same bound."""

    name = "BlockingConnectionPool"

    def pool(self, threads: int, slots: int, **where: Any) -> Any:
        import redis

        return redis.BlockingConnectionPool(max_connections=slots, timeout=60, **where)


class Theirs(Way):
    """redis-py's, which does not wait: it has a connection for each thread that asks at the same time."""

    name = "ConnectionPool, unbounded"

    def pool(self, threads: int, slots: int, **where: Any) -> Any:
        import redis

        return redis.ConnectionPool(max_connections=threads, **where)


class ForEachThread(Theirs):
    """A client with a connection of its own in each thread: no pool at all."""

    name = "client per thread"

    def get_client(self) -> Any:
        import redis

        where = self.client.connection_pool.connection_kwargs
        return redis.Redis(host=where["host"], port=where["port"], single_connection_client=True)


WAYS = (Pooling, TheirBlocking, Theirs, ForEachThread)


def get(client: Any) -> None:
    if client.get("a") != b"some value":
        raise LookupError("a wrong answer")


def pipeline(client: Any) -> None:
    with client.pipeline(transaction=False) as pipe:
        for _ in range(PIPELINE):
            pipe.get("a")
        if pipe.execute() != [b"some value"] * PIPELINE:
            raise LookupError("a wrong answer")


OPERATIONS: dict[str, Callable[[Any], None]] = {"GET": get, f"pipeline of {PIPELINE}": pipeline}


def run(plan: Plan) -> Table:
    """Measure all ways under all loads."""
    seconds = plan.choose(full=1.0, quick=0.3)
    count = plan.count(full=9, quick=2)
    failures: list[str] = []
    rows: list[dict[str, object]] = []
    targets: list[Target] = []
    if not programs():
        return Table(NAME, "not measured: no Redis; apt-get install redis-server", (), ())
    with RedisServer() as server:
        for threads, slots in LOADS:
            ways = [make(server.port, threads, slots) for make in WAYS]
            for name, operation in OPERATIONS.items():

                def measure(way: Way, operation: Callable[[Any], None] = operation, threads: int = threads) -> Sample:
                    return _round(way, operation, threads, seconds)

                rounds = interleave(ways, count, measure)
                failures += rounds.failures
                load = f"{name}, {threads} on {slots}"
                rows += [_row(load, way, samples) for way, samples in rounds.samples.items()]
                targets += _targets(load, threads, rounds.samples)
            for way in ways:
                way.close()
    return Table(
        name=NAME,
        title=f"redis-py on loopback, {count} rounds of {seconds:g} s",
        columns=(
            Column("load", "operation, threads"),
            Column("name", "way"),
            Column("rate", "operations/s", ",.0f"),
            Column("p99", "p99 ms", ",.2f"),
            Column("cpu", "CPU µs", ",.0f"),
            Column("least", "least", ".0%"),
            Column("starved", "starved", ",.0f"),
            Column("spread", "spread", ".0%"),
        ),
        rows=rows,
        targets=targets,
        notes=(
            "redis-py's ConnectionPool raises an error where others wait, so here it has a connection for each thread",
            "least: what the thread that did least has done, of the mean; starved: below a tenth of the mean",
        ),
        failures=failures,
    )


def _row(load: str, name: str, samples: list[Sample]) -> dict[str, object]:
    rates = [one.rate for one in samples]
    return {
        "load": load,
        "name": name,
        "rate": statistics.median(rates),
        "p99": statistics.median(one.p99 for one in samples) * 1e3,
        "cpu": statistics.median(one.cpu for one in samples) * 1e6,
        "least": statistics.median(one.least for one in samples),
        "starved": statistics.median(one.starved for one in samples),
        "spread": figures.spread(rates),
    }


def _round(way: Way, operation: Callable[[Any], None], threads: int, seconds: float) -> Sample:
    counting, running = False, True
    elapsed = used = 0.0
    kept: list[Any] = []
    lock = threading.Lock()

    def work() -> list[float]:
        client, times = way.get_client(), []
        if client is not way.client:
            with lock:
                kept.append(client)
        while running:
            start = perf_counter()
            operation(client)
            if counting:
                times.append(perf_counter() - start)
        return times

    def watch() -> None:
        nonlocal counting, running, elapsed, used
        sleep(LEAD)
        counting, start, cpu = True, perf_counter(), process_time()
        sleep(seconds)
        counting = False
        elapsed, used = perf_counter() - start, process_time() - cpu
        running = False

    results = crowd(work, threads, watch)
    for client in kept:
        client.close()
        client.connection_pool.disconnect()
    times = sorted(time for found in results for time in found)
    counts = [len(found) for found in results]
    return Sample(
        rate=len(times) / elapsed,
        p99=times[int(0.99 * (len(times) - 1))],
        cpu=used / len(times),
        least=min(counts) * threads / len(times),
        starved=figures.starved(counts),
    )


def _targets(load: str, threads: int, samples: dict[str, list[Sample]]) -> list[Target]:
    ours = samples.get(Pooling.name)
    if ours is None:
        return []
    least = 0.95 if threads == 1 else 1.0
    targets = [Target(f"{load}: threads starved", float(max(one.starved for one in ours)), "<=", 0, spec=",.0f")]
    for name, theirs in samples.items():
        if name != Pooling.name:
            faster = figures.ratio([one.rate for one in ours], [one.rate for one in theirs])
            targets.append(Target(f"{load}: operations/s, pooling / {name}", faster, ">=", least, " x"))
    return targets

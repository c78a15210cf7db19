"""redis-py over a loopback server: GET and pipelines of 10, with our pool, its own pools, and a client per thread.

`run` counts what many threads do in a second. `run_alone` compares the processor
time of one thread, in short turns, which a busy machine disturbs less.
"""

from __future__ import annotations

import queue
import statistics
import threading
from collections.abc import Callable
from functools import partial
from time import perf_counter, process_time, sleep, thread_time
from typing import Any, ClassVar, NamedTuple

from tests.redisserver import RedisServer, programs

from . import figures
from .harness import LEAD, Plan, crowd, interleave
from .table import Column, Table, Target

__all__ = ["ALONE", "NAME", "run", "run_alone"]

NAME = "redis"
ALONE = "redis-alone"
LOADS = ((20, 10), (64, 8))  # threads, connections
PIPELINE = 10
TURN = 100  # operations of one thread, before the next way has its turn
LEAST_ALONE = 0.95  # of the best

Operation = Callable[[Any], None]


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
    """One way to use redis-py from many threads.

    Attributes:
        name: What the table calls it.
        bounded: Whether it keeps to the number of connections.
    """

    name: ClassVar[str]
    bounded: ClassVar[bool] = True

    def __init__(self, port: int, threads: int, slots: int) -> None:
        import redis

        self.pool = self.make_pool(threads, slots, host="127.0.0.1", port=port)
        self.client = redis.Redis(connection_pool=self.pool)
        self.client.set("a", "some value")
        self.kept: list[Any] = [self.client]

    def make_pool(self, threads: int, slots: int, **where: Any) -> Any:
        """Return the pool."""
        raise NotImplementedError

    def own_client(self) -> Any:
        """Return a client with a connection of its own."""
        import redis

        where = {key: self.pool.connection_kwargs[key] for key in ("host", "port")}
        client = redis.Redis(**where, single_connection_client=True)
        self.kept.append(client)
        return client

    def prepared(self, operation: Operation) -> Callable[[], object]:
        """Return what a thread calls again and again."""
        return partial(operation, self.client)

    def close(self) -> None:
        """End it."""
        for client in self.kept:
            client.close()
            client.connection_pool.close()


class Pooling(Way):
    """``redis.Redis(connection_pool=RedisPool(...))``."""

    name = "pooling"

    def make_pool(self, threads: int, slots: int, **where: Any) -> Any:
        from pooling import RedisPool

        return RedisPool(max_size=slots, acquire_timeout=60, **where)


class PoolingAcquire(Pooling):
    """``with pool.acquire() as client``, for each operation."""

    name = "pooling, acquire()"

    def prepared(self, operation: Operation) -> Callable[[], object]:
        def perform() -> None:
            with self.pool.acquire() as client:
                operation(client)

        return perform


class TheirBlocking(Way):
    """redis-py's, with the same bound."""

    name = "BlockingConnectionPool"

    def make_pool(self, threads: int, slots: int, **where: Any) -> Any:
        import redis

        return redis.BlockingConnectionPool(max_connections=slots, timeout=60, **where)


class Theirs(Way):
    """redis-py's, which does not wait: it has a connection for each thread that asks at the same time."""

    name = "ConnectionPool, unbounded"
    bounded = False

    def make_pool(self, threads: int, slots: int, **where: Any) -> Any:
        import redis

        return redis.ConnectionPool(max_connections=threads, **where)


class TheirsBounded(Theirs):
    """The same with a semaphore, which lets in as many threads as there are connections."""

    name = "ConnectionPool, semaphore"
    bounded = True

    def __init__(self, port: int, threads: int, slots: int) -> None:
        super().__init__(port, threads, slots)
        self.gate = threading.BoundedSemaphore(slots)

    def prepared(self, operation: Operation) -> Callable[[], object]:
        def perform() -> None:
            with self.gate:
                operation(self.client)

        return perform


class ForEachThread(Theirs):
    """A client with a connection of its own in each thread: no pool at all."""

    name = "client per thread"

    def prepared(self, operation: Operation) -> Callable[[], object]:
        return partial(operation, self.own_client())


class InQueue(Theirs):
    """The same with as many clients as connections: a thread takes one from a queue."""

    name = "clients in a SimpleQueue"
    bounded = True

    def __init__(self, port: int, threads: int, slots: int) -> None:
        super().__init__(port, threads, slots)
        self.clients: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for _ in range(slots):
            self.clients.put(self.own_client())

    def prepared(self, operation: Operation) -> Callable[[], object]:
        def perform() -> None:
            client = self.clients.get()
            try:
                operation(client)
            finally:
                self.clients.put(client)

        return perform


OURS = (Pooling, PoolingAcquire)
WAYS: tuple[type[Way], ...] = (*OURS, TheirBlocking, TheirsBounded, InQueue, Theirs, ForEachThread)
WAYS_ALONE: tuple[type[Way], ...] = (*OURS, TheirBlocking, Theirs, ForEachThread)


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


NOTE = "redis-py's ConnectionPool raises an error where others wait, so here it has a connection for each thread"


def run(plan: Plan) -> Table:
    """Measure all ways under all loads."""
    seconds = 0.3  # short turns: a busy machine is as busy for the next way
    count = plan.count(full=25, quick=3)
    failures: list[str] = []
    rows: list[dict[str, object]] = []
    targets: list[Target] = []
    if not programs():
        return _not_measured(NAME)
    with RedisServer() as server:
        for threads, slots in LOADS:
            ways = [make(server.port, threads, slots) for make in WAYS]
            for name, operation in OPERATIONS.items():

                def measure(way: Way, operation: Operation = operation, threads: int = threads) -> Sample:
                    return _round(way, operation, threads, seconds)

                rounds = interleave(ways, count, measure)
                failures += rounds.failures
                load = f"{name}, {threads} on {slots}"
                rows += [_row(load, way, samples) for way, samples in rounds.samples.items()]
                targets += _targets(load, rounds.samples)
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
            NOTE + "; neither it nor a client per thread keeps to the number of connections, so there is no target",
            "least: what the thread that did least has done, of the mean; starved: below a tenth of the mean",
            "where threads starve, the others have a connection each, and never wait",
        ),
        failures=failures,
    )


def run_alone(plan: Plan) -> Table:
    """Compare the processor time of one thread; each round has new connections."""
    count = plan.count(full=300, quick=60)
    failures: list[str] = []
    rows: list[dict[str, object]] = []
    targets: list[Target] = []
    if not programs():
        return _not_measured(ALONE)
    with RedisServer() as server:
        for name, operation in OPERATIONS.items():

            def measure(make: type[Way], operation: Operation = operation) -> Sample:
                return _turn(make, server.port, operation)

            rounds = interleave(WAYS_ALONE, count, measure)
            failures += rounds.failures
            for mine in OURS:
                theirs = {way: found for way, found in rounds.samples.items() if way not in {one.name for one in OURS}}
                targets += _targets_alone(name, mine.name, rounds.samples.get(mine.name, []), theirs)
            rows += [_row(name, way, samples) for way, samples in rounds.samples.items()]
    return Table(
        name=ALONE,
        title=f"redis-py on loopback, one thread, {count} rounds of {TURN} operations on a new connection",
        columns=(
            Column("load", "operation"),
            Column("name", "way"),
            Column("cpu", "CPU µs", ",.1f"),
            Column("rate", "operations/s", ",.0f"),
            Column("spread", "spread", ".0%"),
        ),
        rows=rows,
        targets=targets,
        notes=(NOTE, "BlockingConnectionPool has the bound of ours, and both have one connection"),
        failures=failures,
    )


def _not_measured(name: str) -> Table:
    return Table(name, "not measured: no Redis; apt-get install redis-server", (), ())


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


def _turn(make: type[Way], port: int, operation: Operation) -> Sample:
    way = make(port, 1, 1)
    try:
        perform = way.prepared(operation)
        for _ in range(TURN // 2):
            perform()
        start, cpu = perf_counter(), thread_time()
        for _ in range(TURN):
            perform()
        used, elapsed = thread_time() - cpu, perf_counter() - start
    finally:
        way.close()
    return Sample(rate=TURN / elapsed, p99=0.0, cpu=used / TURN, least=1.0, starved=0)


def _round(way: Way, operation: Operation, threads: int, seconds: float) -> Sample:
    counting, running = False, True
    elapsed = used = 0.0

    def work() -> list[float]:
        perform, times = way.prepared(operation), []
        while running:
            start = perf_counter()
            perform()
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
    times = sorted(time for found in results for time in found)
    counts = [len(found) for found in results]
    return Sample(
        rate=len(times) / elapsed,
        p99=times[int(0.99 * (len(times) - 1))],
        cpu=used / len(times),
        least=min(counts) * threads / len(times),
        starved=figures.starved(counts),
    )


_SPEEDS: dict[str, Callable[[Sample], float]] = {
    "operations for CPU time": lambda one: 1 / one.cpu,
    "operations/s": lambda one: one.rate,
}


def _targets(load: str, samples: dict[str, list[Sample]]) -> list[Target]:
    targets = []
    for mine in OURS:
        if mine.name in samples:
            starved = max(one.starved for one in samples[mine.name])
            targets.append(Target(f"{load}, {mine.name}: threads starved, worst round", starved, "<=", 0, spec=",.0f"))
    ours = samples.get(Pooling.name, [])
    for way in WAYS:
        if ours and way.bounded and way not in OURS and way.name in samples:
            for what, take in _SPEEDS.items():
                faster = figures.ratio([take(one) for one in ours], [take(one) for one in samples[way.name]])
                targets.append(Target(f"{load}: {what}, {Pooling.name} / {way.name}", faster, ">=", 1, " x"))
    return targets


def _targets_alone(load: str, name: str, ours: list[Sample], peers: dict[str, list[Sample]]) -> list[Target]:
    if not ours or not peers:
        return []
    targets = []
    for what, take in _SPEEDS.items():
        mine = [take(one) for one in ours]
        ratios = {peer: figures.ratio(mine, [take(one) for one in samples]) for peer, samples in peers.items()}
        best = min(ratios, key=lambda peer: ratios[peer])
        text = f"{load}, one thread: {what}, {name} / {best}, the best"
        targets.append(Target(text, ratios[best], ">=", LEAST_ALONE, " x"))
    return targets

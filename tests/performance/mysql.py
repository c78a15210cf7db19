"""What does a pool of MySQL connections take of the server's answers?

The same driver under each pool of a family, against a MariaDB on the same
machine, which takes its part of it, so these are ratios. Each turn is a
transaction of its own: lend a connection, one statement, commit, give it back.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter, process_time, sleep

import psutil

from tests.mariadb import MariaDBServer

from . import figures
from .harness import LEAD, Plan, Rounds, Wrong, crowd, interleave
from .machine import one_processor
from .mysql_pools import MAKERS, Contender
from .table import Column, Table, Target

__all__ = ["run_insert", "run_select"]

CASES = ((1, 1, False), (20, 10, False), (64, 8, False), (64, 8, True))  # threads, max_size, bound to one processor
LEAST = {1: 0.95}  # of the best peer, with one thread; otherwise 1

COLUMNS = (
    Column("name", "pool"),
    Column("case", "threads/size"),
    Column("rate", "/s", ",.0f"),
    Column("ratio", "x best peer", ".2f"),
    Column("cpu", "CPU us", ".0f"),
    Column("cpu_ratio", "best peer's CPU x", ".2f"),
    Column("server", "server us", ".0f"),
    Column("trips", "trips", ".1f"),
    Column("p50", "p50 ms", ".2f"),
    Column("p99", "p99 ms", ".2f"),
    Column("fairness", "max/min thread", ".1f"),
    Column("spread", "spread", ".0%"),
)


@dataclass
class Slice:
    """What all threads did in one slice of time.

    Attributes:
        rate: Turns a second.
        cpu: Microseconds of this process's processor time for each turn.
        server: The same of the server.
        fairness: See `figures.fairness`; infinite if a thread had no turn at all.
    """

    rate: float
    p50: float
    p99: float
    cpu: float
    server: float
    fairness: float


def run_select(plan: Plan) -> Table:
    """``SELECT 1`` in a transaction."""
    return _run(plan, "mysql", "SELECT 1", "SELECT 1")


def run_insert(plan: Plan) -> Table:
    """Insert a small row."""
    return _run(plan, "mysql-insert", "a small insert", "INSERT INTO orders (symbol, quantity) VALUES ('ACME', 100)")


def _run(plan: Plan, name: str, what: str, sql: str) -> Table:
    count = plan.count(full=21, quick=5)
    seconds = 0.25  # short slices: what else the machine does hits neighbouring slices alike
    table = Table(name, f"{what} on MariaDB, {count} rounds", COLUMNS, [])
    rows, targets, failures = [], [], []
    with MariaDBServer("--max-connections=400") as server:
        server.ask(
            "CREATE TABLE orders (id BIGINT AUTO_INCREMENT PRIMARY KEY, symbol VARCHAR(9), quantity INT) ENGINE=InnoDB"
        )
        process = psutil.Process(server.pid)
        for threads, size, bound in CASES:
            case, title = f"{threads}/{size}", f"{what}, {threads} threads on {size}"
            if bound:
                case, title = f"{case} bound", f"{title}, one processor"
            with contextlib.ExitStack() as stack:
                pools, trips = [], {}
                for make in MAKERS:
                    if make.installed():
                        pool = make(server, size)
                        pools.append(pool)
                        stack.callback(pool.close)
                        crowd(lambda: [pool.execute(sql) for _ in range(10)], threads)  # noqa: B023
                        sleep(0.2)  # for connections that are still being made
                        trips[pool.name] = _trips(pool, sql, server.port)
                if bound:
                    stack.enter_context(one_processor())
                rounds = interleave(pools, count, lambda pool: _slice(pool, threads, seconds, sql, process))  # noqa: B023
            failures += rounds.failures
            kept = [pool for pool in pools if pool.name in rounds.samples]
            rows += [_row(pool, kept, case, trips[pool.name], rounds) for pool in kept]
            targets += [
                Target(
                    f"{pool.name} / the best peer, {title}{unit}", found, ">=", LEAST.get(threads, 1.0), " x",
                )
                for pool in pools if pool.ours and type(pool).__name__ in ("Ours", "OursConnector", "OursDjango")
                for unit, found in _against(pool, kept, rounds).items()
            ]  # fmt: skip
    table.rows, table.targets, table.failures = rows, targets, failures
    table.notes = (
        "compared with the peers over the same driver: PyMySQL, mysql-connector (pure), Django over PyMySQL",
        "pooling resets each session in the round trip of its COMMIT, and mysql-connector's pool in one of its own; the"
        " others roll back only",
        "bound: this process has one processor, the server all of them",
        "pooling looks at each connection it lends; DBUtils, mysql-connector's and Django's pool ping it; QueuePool"
        " does neither",
    )
    return table


def _slice(pool: Contender, threads: int, seconds: float, sql: str, server: psutil.Process) -> Slice:
    running, counting, elapsed, used, answered = True, False, 0.0, 0.0, 0.0

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
        nonlocal running, counting, elapsed, used, answered
        sleep(LEAD)
        counting, began, before, at_first = True, perf_counter(), process_time(), _time_of(server)
        sleep(seconds)
        counting, elapsed, used = False, perf_counter() - began, process_time() - before
        answered = _time_of(server) - at_first
        running = False

    each = crowd(work, threads, watch)
    times = sorted(time for thread in each for time in thread)
    if not times:
        raise Wrong("not one turn in a slice: others use the machine")
    number = len(times)
    return Slice(
        number / elapsed, times[number // 2] * 1e3, times[int(number * 0.99)] * 1e3, used / number * 1e6,
        answered / number * 1e6, figures.fairness([len(thread) for thread in each]),
    )  # fmt: skip


def _time_of(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _trips(pool: Contender, sql: str, port: int, turns: int = 20) -> float | None:
    """Return how often something is sent to the server for each turn; ``None`` where the system does not tell."""
    before = _sent(port)
    for _ in range(turns):
        pool.execute(sql)
    after = _sent(port)
    return None if before is None or after is None else (after - before) / turns


def _sent(port: int) -> int | None:
    """Return how many segments with data this process's connections to a port have sent."""
    if not hasattr(socket, "TCP_INFO") or not os.path.isdir("/proc/self/fd"):
        return None
    total = 0
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            sock = socket.socket(fileno=int(name))
            try:
                if sock.family == socket.AF_INET and sock.getpeername()[1] == port:
                    total += struct.unpack_from("I", sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256), 156)[0]
            finally:
                sock.detach()
    return total


def _best(
    pool: Contender, pools: list[Contender], rounds: Rounds[Slice], take: Callable[[Slice], float]
) -> list[float]:
    """Return the figures of the best peer, by the median of what is taken, of which more is better."""
    found = [
        [take(one) for one in rounds.samples[peer.name]]
        for peer in pools if peer.family == pool.family and not peer.ours
    ]  # fmt: skip
    return max(found, key=figures.median, default=[])


def _against(pool: Contender, pools: list[Contender], rounds: Rounds[Slice]) -> dict[str, float | None]:
    """Return how much better than the best peer a pool is: throughput, and processor time."""
    found: dict[str, float | None] = {}
    takes: dict[str, Callable[[Slice], float]] = {"": lambda one: one.rate, ", CPU": lambda one: 1 / one.cpu}
    for unit, take in takes.items():
        best = _best(pool, pools, rounds, take)
        mine = [take(one) for one in rounds.samples.get(pool.name, ())]
        found[unit] = figures.ratio(mine, best) if mine and best else None
    return found


def _row(
    pool: Contender, pools: list[Contender], case: str, trips: float | None, rounds: Rounds[Slice]
) -> dict[str, object]:
    slices, against = rounds.samples[pool.name], _against(pool, pools, rounds)

    def middle(name: str) -> float:
        return figures.median([getattr(one, name) for one in slices])

    names = ("rate", "cpu", "server", "p50", "p99", "fairness")
    return {
        "name": pool.name, "case": case, "trips": trips, "ratio": against[""], "cpu_ratio": against[", CPU"],
        "spread": figures.spread([one.rate for one in slices]), **{name: middle(name) for name in names},
    }  # fmt: skip

"""One pool of PostgreSQL connections, measured in a process of its own.

``python -m tests.performance.postgres_client '{"way": "pooling", ...}'`` prints
what it measured as JSON; the fields are those of `Task`. A process of its
own, because threads fall into one of two gaits, which can last as long as the
process: each runs until the server answers, or all compete for the interpreter.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from . import databases
from .harness import LEAD, crowd

__all__ = ["WAYS", "Task", "run"]

CHECKOUT = Path(__file__).resolve().parents[2]
WAYS: Sequence[type[databases.Database]] = (
    databases.Ours,
    databases.OursTrusting,
    databases.PsycopgPool,
    databases.SQLAlchemy,
    databases.DBUtilsPinged,
)


@dataclass(frozen=True)
class Task:
    """What is done, and by which pool.

    Attributes:
        way: The name of one of `WAYS`.
        dsn: The server.
        threads, size: The number of borrowers, and of connections.
        autocommit: Whether connections are in autocommit; otherwise each lease is one transaction.
        order: Insert an order; otherwise ``SELECT 1``.
        pause: Seconds between two leases.
        seconds: How long to count.
    """

    way: str
    dsn: str
    threads: int
    size: int
    autocommit: bool
    order: bool
    pause: float
    seconds: float


def run(task: Task) -> dict[str, float]:
    """Do that in a new process; return what it measured.

    Returns:
        ``rate``: leases a second. ``lease_us``, ``p99_ms``: the median and the
        99th percentile of a lease, its wait included. ``cpu_us``: processor time
        of the client for a lease. ``done``: how many orders were inserted in all.

    Raises:
        RuntimeError: It failed; the message is its last line.
    """
    done = subprocess.run(
        [sys.executable, "-m", "tests.performance.postgres_client", json.dumps(asdict(task))],
        cwd=CHECKOUT, capture_output=True, text=True, timeout=task.seconds + 60,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(done.stderr.strip().rpartition("\n")[2])
    found: dict[str, float] = json.loads(done.stdout)
    return found


def _measure(task: Task) -> dict[str, float]:
    make = next(way for way in WAYS if way.name == task.way)
    with contextlib.closing(make(task.dsn, task.size, task.autocommit)) as pool:
        pool.fill()
        return _leases(pool, task)


def _leases(pool: databases.Database, task: Task) -> dict[str, float]:
    counting, running, cpu, elapsed = False, True, 0.0, 0.0
    order, pause, clock = task.order, task.pause, time.perf_counter

    def work() -> tuple[int, list[float]]:
        done, times = 0, []
        while running:
            began = clock()
            if order:
                pool.order(done)
            else:
                pool.ask()
            ended = clock()
            done += 1
            if counting:
                times.append(ended - began)
            if pause:
                time.sleep(pause)
        return done, times

    def watch() -> None:
        nonlocal counting, running, cpu, elapsed
        time.sleep(LEAD)
        counting, cpu, began = True, time.process_time(), clock()
        time.sleep(task.seconds)
        counting, cpu, elapsed = False, time.process_time() - cpu, clock() - began
        running = False

    results = crowd(work, task.threads, watch)
    times = sorted(one for _, found in results for one in found)
    return {
        "rate": len(times) / elapsed,
        "lease_us": times[len(times) // 2] * 1e6,
        "p99_ms": times[int(len(times) * 0.99)] * 1e3,
        "cpu_us": cpu / len(times) * 1e6,
        "done": sum(done for done, _ in results),
    }


if __name__ == "__main__":
    print(json.dumps(_measure(Task(**json.loads(sys.argv[1])))))

"""Renewals of a budget's share: what one costs at 1, 100 and 1,000 processes, on a real PostgreSQL, Redis and file.

A thousand processes would measure this machine, so one process makes the requests of all of them, over a few
connections, as fast as the store answers. A fleet of 1,000 needs 200 renewals a second.
"""

from __future__ import annotations

import os
import random
import statistics
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import Any

import psutil

from pooling import PostgresPool
from pooling.fleet.local import LocalStore
from pooling.fleet.model import RENEWAL, Request, Terms
from pooling.fleet.postgres import PostgresStore
from pooling.fleet.redis import RedisStore
from tests.redisserver import RedisServer, programs
from tests.servers import PostgresServer

from .harness import Plan
from .table import Column, Table, Target

__all__ = ["NAME", "run"]

NAME = "fleet"
MEMBERS = (1, 100, 1000)
CLIENTS = 4
Renew = Callable[[Request, Terms], object]


@contextmanager
def _postgres(name: str) -> Iterator[tuple[Renew, int]]:
    with PostgresServer() as server, PostgresPool(server.dsn, min_size=CLIENTS, max_size=CLIENTS) as pool:
        store = PostgresStore(name)
        assert server.pid is not None
        yield lambda request, terms: store.renew(request, terms, [pool]), server.pid


@contextmanager
def _redis(name: str) -> Iterator[tuple[Renew, int]]:
    with RedisServer() as server:
        store = RedisStore(server.url, name)
        assert server.pid is not None
        yield lambda request, terms: store.renew(request, terms, []), server.pid
        store.close()


@contextmanager
def _local(name: str) -> Iterator[tuple[Renew, int]]:
    with tempfile.TemporaryDirectory() as folder:
        store, lock = LocalStore(f"{folder}/{name}", name), threading.Lock()

        def renew(request: Request, terms: Terms) -> object:
            with lock:
                return store.renew(request, terms._replace(ttl=float("inf")), [])

        yield renew, os.getpid()
        store.close()


def _processor_time(pid: int) -> float:
    server = psutil.Process(pid)
    found = 0.0
    for process in [server, *server.children(recursive=True)]:
        times = process.cpu_times()
        found += times.user + times.system
    return found


def measure(renew: Renew, pid: int, members: int, seconds: float, clients: int) -> dict[str, Any]:
    """Renew for so many members; the first round makes them known."""
    terms = Terms(members * 5, max_members=members)
    held = [1] * members
    took: list[float] = []

    def turn(client: int, until: float | None, number: int, chance: random.Random) -> int:
        for member in range(client, members, clients):
            number += 1
            request = Request(f"{member:016x}", number, chance.randint(0, 10), held[member], held[member])
            began = perf_counter()
            answer: Any = renew(request, terms)
            ended = perf_counter()
            held[member] = answer.share
            if until is not None:
                took.append(ended - began)
                if ended > until:
                    break
        return number

    numbers = [turn(client, None, 0, random.Random(client)) for client in range(clients)]
    before, began = _processor_time(pid), perf_counter()

    def work(client: int) -> None:
        chance, number = random.Random(-client), numbers[client]
        while perf_counter() < began + seconds:
            number = turn(client, began + seconds, number, chance)

    threads = [threading.Thread(target=work, args=(client,)) for client in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    elapsed = perf_counter() - began
    cost = (_processor_time(pid) - before) / len(took)
    took.sort()
    return {
        "rate": len(took) / elapsed, "median": statistics.median(took) * 1e3, "p99": took[int(len(took) * 0.99)] * 1e3,
        "cost": cost * 1e3, "load": cost * members / RENEWAL * 100,
    }  # fmt: skip


def run(plan: Plan) -> Table:
    """Measure the stores."""
    stores = {"PostgreSQL": _postgres, "file": _local, **({"Redis": _redis} if programs() else {})}
    rows = []
    for name, make in stores.items():
        for members in MEMBERS:
            with make(f"fleet-{members}") as (renew, pid):
                clients = 1 if members == 1 or name == "file" else CLIENTS
                found = measure(renew, pid, members, plan.choose(full=10.0, quick=1.0), clients)
            rows.append({"store": f"{name}, {members:,} processes", "members": members, **found})
    worst = max(row["load"] for row in rows if row["members"] == 1000 and not row["store"].startswith("file"))
    return Table(
        NAME, "renewals of a budget's share, as fast as the store answers (the file's includes the client's own work)",
        [
            Column("store", "store"), Column("rate", "renewals/s", ",.0f"), Column("median", "median ms", ".2f"),
            Column("p99", "p99 ms", ".2f"), Column("cost", "server's CPU ms", ".3f"),
            Column("load", "CPU of the fleet, %", ".2f"),
        ],
        rows,
        [Target("the server's processor time for the renewals of 1,000 processes", worst, "<=", 100.0, " %")],
    )  # fmt: skip

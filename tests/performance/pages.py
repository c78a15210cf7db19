"""How many pages a second does Django serve, by how its connections are kept?"""

from __future__ import annotations

import contextlib
import http.client
import importlib.util
import json
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from tests.servers import PostgresServer, find_postgres

from . import figures
from .harness import Plan, Wrong, crowd, interleave
from .table import Column, Table, Target

__all__ = ["NAME", "run"]

NAME = "django"
ROOT = Path(__file__).parents[2]
WORKERS, THREADS = 2, 8
CLIENTS = WORKERS * THREADS
ITEMS = 1000
OURS, DJANGO = "pooling.web.django.postgresql", "django.db.backends.postgresql"
SIZE = {"min_size": THREADS, "max_size": THREADS}

DATABASES: dict[str, dict[str, Any]] = {
    "pooling": {"ENGINE": OURS, "OPTIONS": {"pool": SIZE}},
    "pooling, 4": {"ENGINE": OURS, "OPTIONS": {"pool": {"min_size": 4, "max_size": 4}}},
    "pooling, True": {"ENGINE": OURS, "OPTIONS": {"pool": True}},
    "pooling, clean": {"ENGINE": OURS, "OPTIONS": {"pool": {**SIZE, "session": "clean"}}},
    "Django's pool": {"ENGINE": DJANGO, "OPTIONS": {"pool": SIZE}},
    "Django's pool, True": {"ENGINE": DJANGO, "OPTIONS": {"pool": True}},
    "CONN_MAX_AGE=60": {"ENGINE": DJANGO, "CONN_MAX_AGE": 60},
    "CONN_MAX_AGE=0": {"ENGINE": DJANGO, "CONN_MAX_AGE": 0},
}


@dataclass(frozen=True)
class Served:
    """What one round saw: pages a second, the workers' CPU time for a page in microseconds, milliseconds."""

    rate: float
    cpu: float
    p50: float
    p99: float


class Site:
    """gunicorn with the project, one way to keep connections."""

    def __init__(self, name: str, postgres: PostgresServer) -> None:
        self.name = name
        self._postgres = postgres

    def measure(self, seconds: float) -> Served:
        """Start it, let it warm up, and see what it serves in so many seconds.

        Anew each time: two processes that do the same differ by 4 %, for as long as they live.
        """
        self.port = _free_port()
        database = {"NAME": "postgres", "USER": "postgres", "HOST": "127.0.0.1", "PORT": self._postgres.port}
        self._process = subprocess.Popen(
            [
                sys.executable, "-m", "gunicorn", "tests.performance.django_app:application", "--log-level", "critical",
                "--bind", f"127.0.0.1:{self.port}", "--workers", str(WORKERS), "--threads", str(THREADS),
                "--keep-alive", "60",
            ],
            cwd=ROOT, env={**os.environ, "BENCH_DATABASE": json.dumps({**database, **DATABASES[self.name]})},
        )  # fmt: skip
        try:
            self._wait_until_up()
            self._serve(0.5)  # imports, first connections
            return self._serve(seconds)
        finally:
            self._close()

    def _wait_until_up(self) -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and self._process.poll() is None:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return
            time.sleep(0.05)
        raise RuntimeError(f"{self.name} did not start")

    def _serve(self, seconds: float) -> Served:
        """Let as many clients as there are threads ask for pages, each one after the other."""
        end = time.perf_counter() + seconds

        def ask() -> list[float]:
            times = []
            client = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
            chance = random.Random()
            while (began := time.perf_counter()) < end:
                number = chance.randint(1, ITEMS)
                client.request("GET", f"/{number}")
                told = client.getresponse().read().decode()
                if told != f"{number} item {number} 10":
                    raise Wrong(f"{self.name}: asked for {number}: {told[:200]!r}")
                times.append(time.perf_counter() - began)
            client.close()
            return times

        before = self._cpu()
        times = sorted(time for one in crowd(ask, CLIENTS) for time in one)
        cpu = (self._cpu() - before) / len(times)
        percentiles = statistics.quantiles(times, n=100)
        return Served(len(times) / seconds, cpu * 1e6, percentiles[49] * 1e3, percentiles[98] * 1e3)

    def _cpu(self) -> float:
        """Seconds of CPU time that the workers have had; who else is at work does not change it much."""
        times = [worker.cpu_times() for worker in psutil.Process(self._process.pid).children()]
        return sum(one.user + one.system for one in times)

    def _close(self) -> None:
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


@contextlib.contextmanager
def _sites() -> Iterator[list[Site]]:
    with PostgresServer(max_connections=200) as postgres:
        with postgres.connect() as conn:
            conn.execute('CREATE TABLE bench_item (id int PRIMARY KEY, name text, "group" int)')
            numbers = "generate_series(1, %s) n"
            conn.execute(f"INSERT INTO bench_item SELECT n, 'item ' || n, n %% 10 FROM {numbers}", [ITEMS])
            conn.execute('CREATE INDEX ON bench_item ("group", id)')
        with postgres.connect(autocommit=True) as conn:
            conn.execute("VACUUM ANALYZE bench_item")
        yield [Site(name, postgres) for name in DATABASES]


def run(plan: Plan) -> Table:
    """Ask for pages of two queries."""
    seconds = plan.choose(full=1.5, quick=1.0)
    count = plan.count(full=9, quick=2)
    missing = [name for name in ("django", "gunicorn") if importlib.util.find_spec(name) is None]
    if missing or find_postgres() is None:
        return Table(NAME, "not measured: " + (", ".join(missing) or "PostgreSQL") + " is not installed", (), ())
    with _sites() as sites:
        rounds = interleave(sites, count, lambda site: site.measure(seconds))
    rates = {name: [one.rate for one in served] for name, served in rounds.samples.items()}
    p99 = {name: [one.p99 for one in served] for name, served in rounds.samples.items()}
    ours, theirs = rates.get("pooling"), rates.get("Django's pool")
    cpu = rounds.of("Django's pool", lambda one: one.cpu)
    both = bool(ours and theirs)
    four = "pooling, 4" in rates and "Django's pool, True" in rates
    return Table(
        name=NAME,
        title=f"pages of two queries, gunicorn gthread {WORKERS} x {THREADS}, {CLIENTS} clients, {count} starts each",
        columns=(
            Column("name", "connections"),
            Column("rate", "pages/s", ",.0f"),
            Column("ratio", "x Django's pool", ".2f"),
            Column("spread", "spread", ".0%"),
            Column("cpu", "CPU us", ",.0f"),
            Column("cpu_ratio", "x", ".2f"),
            Column("p50", "p50 ms", ".1f"),
            Column("p99", "p99 ms", ".1f"),
        ),
        rows=[
            {
                "name": name,
                "rate": figures.median(rates[name]),
                "ratio": figures.ratio(rates[name], theirs) if theirs else None,
                "spread": figures.spread(rates[name]),
                "cpu": figures.median([one.cpu for one in served]),
                "cpu_ratio": figures.ratio([one.cpu for one in served], cpu) if cpu else None,
                "p50": figures.median([one.p50 for one in served]),
                "p99": figures.median(p99[name]),
            }
            for name, served in rounds.samples.items()
        ],
        targets=[
            Target("pooling / Django's pool", figures.ratio(ours, theirs) if both else None, ">=", 1.0, " x"),  # type: ignore[arg-type]
            Target("pooling, 4 / Django's pool, True (which is 4)",
                   figures.ratio(rates["pooling, 4"], rates["Django's pool, True"]) if four else None, ">=", 1.0, " x"),
            Target("p99: pooling / Django's pool",
                   figures.ratio(p99["pooling"], p99["Django's pool"]) if both else None, "<=", 1.0, " x"),
        ],
        notes=(
            "CPU us: the workers' CPU time for a page",
            f"pools of {THREADS} connections in each process, as many as threads; True: what each has by default",
            "clean: what a session keeps is reset after every request, not only after those that set something",
        ),
        failures=rounds.failures,
    )  # fmt: skip


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])

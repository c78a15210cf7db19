"""What it costs to share metrics: a scrape of 16 processes, and a checkout while they are written."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

from prometheus_client import CollectorRegistry, generate_latest

from pooling.observe.prometheus import PoolCollector
from pooling.observe.shared import SharedDirectory

from . import figures
from .harness import Plan, Wrong, interleave
from .table import Column, Table, Target

__all__ = ["NAME", "run"]

NAME = "metrics"
PROCESSES, POOLS = 16, 4
PAIRS, STATES = 5, ("off", "on")
ROOT = Path(__file__).resolve().parents[2]

WORKER = f"""
import sys, time, pooling
pools = [pooling.Pool(object, name=f"pool-{{number}}", max_size=8) for number in range({POOLS})]
def use(times):
    for _ in range(times):
        for pool in pools:
            with pool.acquire(): pass
use(500)
for pool in pools:
    for step in range(40):  # durations in many buckets, as after days
        for name in ("wait", "use", "create"):
            getattr(pool.metrics.durations, name).record(2e-4 * 1.4 ** (step % 30))
time.sleep(2.5)
print("ready", flush=True)
for line in sys.stdin:
    use(100)
"""

CHECKOUTS = """
import sys, time, pooling
pool = pooling.Pool(object, name="db", max_size=8)
def loop(times):
    for _ in range(times):
        with pool.acquire(): pass
loop(1000)
print("ready", flush=True)
for line in sys.stdin:
    times = int(line)
    began = time.perf_counter()
    loop(times)
    print((time.perf_counter() - began) / times * 1e9, flush=True)
"""


@dataclass(frozen=True)
class Child:
    """A process that is told what to do by lines."""

    name: str
    process: subprocess.Popen[str]

    def tell(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def hear(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()


@contextlib.contextmanager
def children(code: str, directories: dict[str, str]) -> Iterator[list[Child]]:
    """Start a process for each name, with the directory of its metrics."""
    made = [
        Child(name, subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT), "POOLING_METRICS_DIR": directory},
        ))
        for name, directory in directories.items()
    ]  # fmt: skip
    try:
        if any(child.hear() != "ready" for child in made):
            raise Wrong("a process did not start")
        yield made
    finally:
        for child in made:
            child.process.kill()
            child.process.communicate()


def run(plan: Plan) -> Table:
    """Time scrapes of 16 processes with 4 pools each, and checkouts with and without shared metrics."""
    with tempfile.TemporaryDirectory() as home:
        rows, failures = _scrapes(plan, home)
        off_and_on = _checkouts(plan, home)
    scrape = rows[-1]["ms"]
    ratio = figures.ratio(off_and_on["on"], off_and_on["off"])
    rows += [
        {"name": f"acquire + release, metrics {name}", "ns": figures.median(values), "spread": figures.spread(values)}
        for name, values in off_and_on.items()
    ]
    return Table(
        name=NAME,
        title=f"metrics of {PROCESSES} processes with {POOLS} pools each",
        columns=(
            Column("name", "what"),
            Column("ms", "ms", ",.2f"),
            Column("worst", "longest", ",.2f"),
            Column("ns", "ns", ",.0f"),
            Column("spread", "spread", ".0%"),
        ),
        rows=rows,
        targets=[
            Target("a scrape, as text", float(str(scrape)), "<=", 20, " ms"),
            Target("acquire + release, on / off", ratio, "<=", 1.03, " x"),
        ],
        notes=(f"{rows[-3]['size']:,} bytes a page",),
        failures=failures,
    )


def _scrapes(plan: Plan, home: str) -> tuple[list[dict[str, object]], list[str]]:
    path = os.path.join(home, "scrapes")
    registry = CollectorRegistry()
    os.mkdir(path, 0o700)
    directory = SharedDirectory(path)
    registry.register(PoolCollector(source=directory))
    reading, pages = [], []
    size = 0
    with children(WORKER, {str(number): path for number in range(PROCESSES)}) as workers:
        for number in range(plan.count(full=200, quick=50)):
            workers[number % PROCESSES].tell("use")
            began = perf_counter()
            totals = directory.read()
            between = perf_counter()
            size = len(generate_latest(registry))
            pages.append((perf_counter() - between) * 1e3)
            reading.append((between - began) * 1e3)
    failures = [] if totals.processes == PROCESSES else [f"{totals.processes} processes were seen, not {PROCESSES}"]
    if len(totals.pools) != POOLS:
        failures.append(f"{json.dumps(sorted(totals.pools))} were seen")
    return [
        {"name": name, "ms": figures.median(times), "worst": max(times), "spread": figures.spread(times), "size": size}
        for name, times in (("reading all files", reading), ("a scrape, as text", pages))
    ], failures


def _checkouts(plan: Plan, home: str) -> dict[str, list[float]]:
    times = plan.choose(full=200_000, quick=100_000)
    path = os.path.join(home, "checkouts")
    # Several of each: two processes that do the same differ by up to 10 %, for as long as they live.
    processes = {f"{state} {number}": {"off": "", "on": path}[state] for number in range(PAIRS) for state in STATES}
    with children(CHECKOUTS, processes) as both:

        def measure(child: Child) -> float:
            child.tell(str(times))
            return float(child.hear())

        samples = interleave(both, plan.count(full=21, quick=9), measure).samples
    return {
        state: [figures.median(row) for row in zip(*(samples[f"{state} {number}"] for number in range(PAIRS)))]
        for state in STATES
    }

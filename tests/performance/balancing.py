"""What does balancing over several servers cost, and what does it gain beside round robin?"""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pooling import HTTPPool

from . import figures
from .harness import LEAD, Plan, Rounds, calibrate, interleave
from .http_server import serving
from .table import Column, Table, Target

__all__ = ["NAME", "run"]

NAME = "balancing"
THREADS = 8
EQUAL, SLOW = (0.02, 0.02, 0.02), (0.02, 0.02, 0.2)  # seconds before the servers answer

Get = Callable[[], int]


@dataclass(frozen=True)
class Way:
    """One way to send requests to these servers."""

    name: str
    get: Get

    def loop(self, times: int) -> None:
        """Make so many requests."""
        for _ in range(times):
            self.get()


def run(plan: Plan) -> Table:
    """Measure a request alone, then threads at three equal servers, and at three of which one is slow."""
    rounds = plan.count(full=15, quick=5)
    seconds = plan.choose(2.0, 1.0)
    # Many short slices: a difference of microseconds is below the noise of each.
    cost = _cost(lambda base: [f"{base}/{path}" for path in "abc"], rounds * 20, 0.02)
    names = _cost(lambda base: [base, base.replace("127.0.0.1", "localhost")], rounds * 20, 0.02)
    equal = _traffic(EQUAL, rounds, seconds)
    slow = _traffic(SLOW, rounds, seconds)
    rows = [
        *_cost_rows("at once", cost), *_cost_rows("two names", names),
        *_traffic_rows("equal", equal), *_traffic_rows("one 10 x slower", slow),
    ]  # fmt: skip
    return Table(
        name=NAME,
        title=f"three servers, {THREADS} threads, {rounds} rounds",
        columns=(
            Column("name", "way"),
            Column("servers", "servers"),
            Column("us", "µs CPU", ",.1f"),
            Column("more", "more", ",.1f"),
            Column("rate", "requests/s", ",.0f"),
            Column("p50_ms", "p50 ms", ",.1f"),
            Column("p99_ms", "p99 ms", ",.1f"),
            Column("spread", "spread", ".0%"),
        ),
        rows=rows,
        targets=[
            Target("CPU of a request, more than with one base_url", _more(cost), "<=", 5.0, " µs", ".1f"),
            Target("CPU of a request, more, by name", _more(names), "<=", 5.0, " µs", ".1f"),
            Target("throughput, 3 equal, x round robin", _ratio(equal, "rate"), ">=", 0.97, " x"),
            Target("p99, one slow, round robin's x ours", _ratio(slow, "p99_ms", inverse=True), ">=", 3, " x"),
        ],
        notes=(
            "at once: one server, with three paths as base_urls; two names: one server, by address and as localhost",
            "µs CPU: of one thread that makes requests alone, the system's part included",
        ),
        failures=[*cost.failures, *names.failures, *equal.failures, *slow.failures],
    )


ONE, SEVERAL, ROBIN = "base_url", "base_urls", "three pools, round robin"


def _cost(bases: Callable[[str], list[str]], rounds: int, seconds: float) -> Rounds[float]:
    with contextlib.ExitStack() as stack:
        (base,) = _start(stack, (0.0,))  # one for all: the work of the network is the same
        one = stack.enter_context(HTTPPool(base_url=base))
        several = stack.enter_context(HTTPPool(base_urls=bases(base)))
        ways = [Way(ONE, _getter(one)), Way(SEVERAL, _getter(several))]
        times = [calibrate(way.loop, seconds) for way in ways][0]

        def measure(way: Way) -> float:
            began = time.thread_time()
            way.loop(times)
            return (time.thread_time() - began) / times * 1e6

        return interleave(ways, rounds, measure)


def _traffic(delays: Sequence[float], rounds: int, seconds: float) -> Rounds[dict[str, float]]:
    with contextlib.ExitStack() as stack:
        bases = _start(stack, delays)
        several = stack.enter_context(HTTPPool(base_urls=bases))
        pools = [stack.enter_context(HTTPPool(base_url=base)) for base in bases]
        turns = itertools.cycle([_getter(pool) for pool in pools])
        ways = [Way(SEVERAL, _getter(several)), Way(ROBIN, lambda: next(turns)())]
        for way in ways:
            _measure(way, 0.5)  # all have connected by then
        return interleave(ways, rounds, lambda way: _measure(way, seconds))


def _start(stack: contextlib.ExitStack, delays: Sequence[float]) -> list[str]:
    return [stack.enter_context(serving(delay)).url.rpartition("/")[0] for delay in delays]


def _getter(pool: HTTPPool) -> Get:
    return lambda: pool.get("/quote").status_code


def _measure(way: Way, seconds: float) -> dict[str, float]:
    end = time.perf_counter() + LEAD + seconds
    start = end - seconds
    found: list[list[float]] = []

    def work() -> None:
        times: list[float] = []
        while (began := time.perf_counter()) < end:
            way.get()
            if began >= start:
                times.append(time.perf_counter() - began)
        found.append(times)

    crew = [threading.Thread(target=work, daemon=True) for _ in range(THREADS)]
    for thread in crew:
        thread.start()
    for thread in crew:
        thread.join(seconds + 30)
    times = sorted(itertools.chain.from_iterable(found))
    return {
        "rate": len(times) / seconds, "p50_ms": times[len(times) // 2] * 1e3,
        "p99_ms": times[int(len(times) * 0.99)] * 1e3,
    }  # fmt: skip


def _more(cost: Rounds[float]) -> float | None:
    if len(cost.samples) < 2:
        return None
    return figures.median([several - one for one, several in zip(cost.samples[ONE], cost.samples[SEVERAL])])


def _ratio(found: Rounds[dict[str, float]], key: str, inverse: bool = False) -> float | None:
    ours, theirs = (found.of(name, lambda sample: sample[key]) for name in (SEVERAL, ROBIN))
    if ours is None or theirs is None:
        return None
    return figures.ratio(theirs, ours) if inverse else figures.ratio(ours, theirs)


def _cost_rows(servers: str, cost: Rounds[float]) -> list[dict[str, Any]]:
    rows = []
    for name, samples in cost.samples.items():
        row = {"name": name, "servers": servers, "us": figures.median(samples), "spread": figures.spread(samples)}
        rows.append(row | ({"more": _more(cost)} if name == SEVERAL else {}))
    return rows


def _traffic_rows(servers: str, found: Rounds[dict[str, float]]) -> list[dict[str, Any]]:
    rows = []
    for name, samples in found.samples.items():
        row: dict[str, Any] = {key: figures.median([sample[key] for sample in samples]) for key in samples[0]}
        spread = figures.spread([sample["rate"] for sample in samples])
        rows.append(row | {"name": name, "servers": servers, "spread": spread})
    return rows

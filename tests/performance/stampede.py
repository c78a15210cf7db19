"""The first second after a deployment: all borrowers come at once, and nothing is open yet."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter, sleep

from . import contenders, figures
from .harness import Plan, Wrong, crowd, interleave
from .table import Column, Table, Target

__all__ = ["NAME", "run"]

NAME = "stampede"
THREADS = 100
SLOTS = 10
CONNECT = 0.02
HOLD = 0.001

MAKERS: Sequence[type[contenders.Contender]] = (
    contenders.Pooling,
    contenders.DBUtils,
    contenders.PsycopgPool,
    contenders.SQLAlchemy,
    contenders.Redis,
    contenders.GenericConnectionPool,
)


class Server:
    """Takes 20 ms to accept a connection, and counts."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._connecting = 0
        self.made = 0
        self.at_once = 0

    def connect(self) -> None:
        """Accept one."""
        with self._lock:
            self.made += 1
            self._connecting += 1
            self.at_once = max(self.at_once, self._connecting)
        sleep(CONNECT)
        with self._lock:
            self._connecting -= 1


@dataclass(frozen=True)
class Rush:
    """How long it took to serve each borrower once, and what was made for it."""

    seconds: float
    made: int
    at_once: int


def _rush(make: type[contenders.Contender], hold: float) -> Rush:
    server = Server()
    pool = make(SLOTS, server.connect)

    def borrow() -> tuple[float, float]:
        asked = perf_counter()
        with pool.checkout():
            served = perf_counter()
            if hold:
                sleep(hold)
        return asked, served

    try:
        times = crowd(borrow, THREADS)
    finally:
        pool.close()
    if server.made > SLOTS:
        raise Wrong(f"{server.made} made where {SLOTS} are allowed")
    first = min(asked for asked, _ in times)
    last = max(served for _, served in times)
    return Rush(last - first, server.made, server.at_once)


def run(plan: Plan) -> Table:
    """Send 100 threads to an empty pool of at most 10, where connecting takes 20 ms."""
    count = plan.count(full=21, quick=7)
    makers = [make for make in MAKERS if make.installed()]

    def measure(make: type[contenders.Contender]) -> tuple[Rush, Rush]:
        return _rush(make, 0.0), _rush(make, HOLD)

    rounds = interleave(makers, count, measure)
    samples = {name: [rush for rush, _ in pairs] for name, pairs in rounds.samples.items()}
    holding = {name: [rush for _, rush in pairs] for name, pairs in rounds.samples.items()}
    ours = samples.get(contenders.Pooling.name)
    return Table(
        name=NAME,
        title=(
            f"{THREADS} threads, empty pool, at most {SLOTS}, "
            f"{CONNECT * 1e3:.0f} ms to connect, {count} rounds"
        ),
        columns=(
            Column("name", "pool"),
            Column("ms", "ms until all were served", ",.1f"),
            Column("spread", "spread", ".0%"),
            Column("made", "made", ".0f"),
            Column("at_once", "at once", ".0f"),
            Column("held_ms", f"ms if held for {HOLD * 1e3:.0f} ms", ",.1f"),
            Column("held_made", "made", ".0f"),
        ),
        rows=[
            {
                "name": name,
                "ms": figures.median([rush.seconds * 1e3 for rush in rushes]),
                "spread": figures.spread([rush.seconds for rush in rushes]),
                "made": figures.median([rush.made for rush in rushes]),
                "at_once": figures.median([rush.at_once for rush in rushes]),
                "held_ms": figures.median([rush.seconds * 1e3 for rush in holding[name]]),
                "held_made": figures.median([rush.made for rush in holding[name]]),
            }
            for name, rushes in samples.items()
        ],
        targets=_targets(ours, holding[contenders.Pooling.name]) if ours else (),
        notes=("made, at once: connections, and how many were being made in parallel",),
        failures=rounds.failures,
    )


def _targets(passing: list[Rush], holding: list[Rush]) -> list[Target]:
    made = max(rush.made for rush in passing + holding)
    parallel = figures.median([rush.at_once / rush.made for rush in passing + holding])
    return [
        Target("pooling: made, worst round", made, "<=", SLOTS, spec=".0f"),
        Target("pooling: made in parallel", parallel * 100, ">=", 100, " %", ".0f"),
        _in_time("pooling: until all were served", passing),
        _in_time("pooling: until all were served, each held", holding),
    ]


def _in_time(what: str, rushes: list[Rush]) -> Target:
    milliseconds = figures.median([rush.seconds * 1e3 for rush in rushes])
    return Target(what, milliseconds, "<=", 33, " ms", ".1f")

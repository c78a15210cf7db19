"""How fast are requests over HTTPS, and what do they cost? Each way in a process of its own."""

from __future__ import annotations

import contextlib
import functools
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pooling.tools.demo.certificates import Certificates, make_certificates

from . import figures
from .harness import Plan, Rounds, interleave
from .http_client import WAYS, installed
from .http_server import CHECKOUT, Service, serving
from .table import Column, Table, Target

__all__ = ["BENCHMARKS", "FURTHER", "Load", "Way", "bundle_of", "measure"]

OURS = "pooling, get()"
NAIVE = "a new Session each"
REQUESTS = ("one Session", "one Session, pool_maxsize", "one Session, one context", "a Session per thread")


@dataclass(frozen=True)
class Way:
    """One of `WAYS`."""

    name: str


@dataclass(frozen=True)
class Load:
    """What is asked for."""

    threads: int
    delay: float
    full: bool

    @property
    def title(self) -> str:
        """What the table calls it."""
        store = "full trust store" if self.full else "one certificate trusted"
        return f"{self.threads} threads, {self.delay * 1e3:.0f} ms of delay, {store}"


    @property
    def name(self) -> str:
        """How it is asked for on the command line."""
        return f"http-{self.threads}-{self.delay * 1e3:.0f}ms-{'full' if self.full else 'one'}"


_MAIN = [Load(20, 0.02, True), Load(100, 0.02, True)]
_FURTHER = [
    Load(threads, delay, full)
    for threads in (1, 20, 100) for delay in (0.02, 0.0) for full in (True, False)
    if Load(threads, delay, full) not in _MAIN
]  # fmt: skip


def _run(load: Load, plan: Plan) -> Table:
    main = load in _MAIN
    rounds = plan.count(full=3 if main else 1, quick=1)
    with tempfile.TemporaryDirectory() as folder:
        made = make_certificates(Path(folder))
        if made is None:
            note = "not measured: nothing here makes certificates; pip install cryptography"
            return Table(load.name, load.title, [Column("name", "way")], [], notes=[note])
        return _table(load, made, rounds, plan.choose(3.0, 1.0), main)


BENCHMARKS: dict[str, Callable[[Plan], Table]] = {
    load.name: functools.partial(_run, load) for load in _MAIN
}
"""The loads that have targets."""

FURTHER: dict[str, Callable[[Plan], Table]] = {
    load.name: functools.partial(_run, load) for load in _FURTHER
}
"""The others, which are run if asked for."""


def bundle_of(made: Certificates, full: bool) -> Path:
    """Return a list of trusted certificates: the usual ones and ours, or ours alone."""
    import certifi

    if not full:
        return made.authority
    whole = made.authority.with_name("bundle.pem")
    whole.write_bytes(Path(certifi.where()).read_bytes() + made.authority.read_bytes())
    return whole


def _table(load: Load, made: Certificates, rounds: int, seconds: float, main: bool) -> Table:
    ways = [Way(name) for name in WAYS if installed(name)]
    bundle = bundle_of(made, load.full)
    with contextlib.ExitStack() as stack:
        service = stack.enter_context(serving(load.delay, made.certificate, made.key))
        found = interleave(ways, rounds, lambda way: measure(way, service, bundle, load, seconds))
    return Table(
        name=load.name,
        title=f"{load.title}, TLS, {rounds} rounds",
        columns=(
            Column("name", "way"),
            Column("rate", "requests/s", ",.0f"),
            Column("spread", "spread", ".0%"),
            Column("mean_ms", "mean ms", ",.1f"),
            Column("p99_ms", "p99 ms", ",.1f"),
            Column("cpu_us", "µs CPU", ",.0f"),
            Column("memory_mb", "MB", ",.1f"),
            Column("sockets", "sockets", ",.0f"),
            Column("against", "x a new Session", ",.2f"),
        ),
        rows=[_row(name, found) for name in found.samples],
        targets=_targets(found, load) if main else (),
        notes=("µs CPU: of the client, for a request; MB: over its imports",),
        failures=found.failures,
    )


def measure(way: Way, service: Service, bundle: Path, load: Load, seconds: float) -> dict[str, float]:
    """Return what `http_client` measures in a process of its own, and how many sockets it opened."""
    service.accepted()
    done = subprocess.run(
        [sys.executable, "-m", "tests.performance.http_client", way.name, service.url, str(bundle),
         str(load.threads), str(seconds)],
        cwd=CHECKOUT, capture_output=True, text=True, timeout=seconds + 60,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(done.stderr.strip().rpartition("\n")[2])
    return {**json.loads(done.stdout), "sockets": service.accepted()}


def _row(name: str, found: Rounds[dict[str, float]]) -> dict[str, Any]:
    samples = found.samples[name]
    row: dict[str, Any] = {key: figures.median([sample[key] for sample in samples]) for key in samples[0]}
    row |= {"name": name, "spread": figures.spread([sample["rate"] for sample in samples])}
    naive = found.of(NAIVE, lambda sample: sample["rate"])
    if naive is not None:
        row["against"] = figures.ratio([sample["rate"] for sample in samples], naive)
    return row


def _targets(found: Rounds[dict[str, float]], load: Load) -> Sequence[Target]:
    def ratio(key: str, names: Sequence[str], best: Callable[..., float]) -> float | None:
        """Ours against the best of these in the same round."""
        ours = found.of(OURS, lambda sample: sample[key])
        theirs = [values for name in names if (values := found.of(name, lambda sample: sample[key])) is not None]
        return None if ours is None or not theirs else figures.ratio(ours, [best(row) for row in zip(*theirs)])

    def less(share: float | None) -> float | None:
        return None if share is None else (1 - share) * 100

    sockets = found.of(OURS, lambda sample: sample["sockets"])
    return [
        Target("throughput, x the best way on requests", ratio("rate", REQUESTS, max), ">=", 0.98, " x"),
        Target("CPU, x the best way on requests", ratio("cpu_us", REQUESTS, min), "<=", 1.05, " x"),
        Target("throughput, x a new Session each", ratio("rate", [NAIVE], max), ">=", 8, " x"),
        Target("mean, less than a new Session each", less(ratio("mean_ms", [NAIVE], min)), ">=", 85, " %", ".0f"),
        Target("memory, less than a new Session each", less(ratio("memory_mb", [NAIVE], min)), ">=", 75, " %", ".0f"),
        Target("sockets opened", None if sockets is None else max(sockets), "<=", load.threads, spec=".0f"),
    ]

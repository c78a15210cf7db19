"""How many users does the example's reverse proxy bear, with the pool and without?"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pooling.tools.demo.certificates import make_certificates

from . import figures
from .harness import Plan, interleave
from .http_server import CHECKOUT, Service, serving
from .table import Column, Table, Target

__all__ = ["NAME", "run"]

NAME = "proxy"
CLIENTS = 500
DELAY = 0.02
MODULE = [sys.executable, "-m", "tests.performance.proxy_parts"]


@dataclass(frozen=True)
class Kind:
    """The proxy with its pool, or without."""

    name: str
    pooled: bool


POOLED, UNPOOLED = Kind("pooled", True), Kind("a new Session each", False)


def run(plan: Plan) -> Table:
    """Send 500 clients to the proxy in front of a service with TLS."""
    rounds = plan.count(full=2, quick=1)
    seconds = plan.choose(5.0, 1.0)
    with tempfile.TemporaryDirectory() as folder:
        made = make_certificates(Path(folder))
        if made is None:
            note = "not measured: nothing here makes certificates; pip install cryptography"
            return Table(NAME, "reverse proxy", [Column("name", "proxy")], [], notes=[note])
        with serving(DELAY, made.certificate, made.key) as service:
            authority = str(made.authority)
            found = interleave([POOLED, UNPOOLED], rounds, lambda kind: _measure(kind, service, authority, seconds))
    columns = ("rate", "mean_ms", "p99_ms", "errors", "cpu_ms", "memory_mb", "sockets")
    rows = [
        {"name": name, **{key: figures.median([sample[key] for sample in samples]) for key in columns}}
        for name, samples in found.samples.items()
    ]
    return Table(
        name=NAME,
        title=f"{CLIENTS} clients at once, {DELAY * 1e3:.0f} ms of delay, TLS upstream, {rounds} rounds",
        columns=(
            Column("name", "proxy"),
            Column("rate", "answers/s", ",.0f"),
            Column("mean_ms", "mean ms", ",.0f"),
            Column("p99_ms", "p99 ms", ",.0f"),
            Column("errors", "errors", ",.0f"),
            Column("cpu_ms", "ms CPU", ",.1f"),
            Column("memory_mb", "MB", ",.1f"),
            Column("sockets", "sockets", ",.0f"),
        ),
        rows=rows,
        targets=_targets(found.samples),
        notes=("ms CPU: of the proxy, for an answer; sockets: opened to the upstream",),
        failures=found.failures,
    )


def _targets(samples: dict[str, list[dict[str, Any]]]) -> list[Target]:
    if POOLED.name not in samples:
        return []
    ours, theirs = samples[POOLED.name], samples.get(UNPOOLED.name)
    errors = sum(sample["errors"] for sample in ours)
    gain = None if theirs is None else figures.ratio([s["rate"] for s in ours], [s["rate"] for s in theirs])
    return [
        Target("pooled: errors, all rounds", errors, "<=", 0, spec=".0f"),
        Target("pooled: answers/s, x a new Session each", gain, ">=", 1, " x"),
    ]


def _measure(kind: Kind, service: Service, authority: str, seconds: float) -> dict[str, float]:
    service.accepted()
    command = [*MODULE, "proxy", service.url.removesuffix("/quote"), authority, "yes" if kind.pooled else "no"]
    with subprocess.Popen(command, cwd=CHECKOUT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as proxy:
        try:
            assert proxy.stdin is not None and proxy.stdout is not None
            port = proxy.stdout.readline().strip()
            done = subprocess.run(
                [*MODULE, "clients", port, str(CLIENTS), str(seconds)],
                cwd=CHECKOUT, capture_output=True, text=True, timeout=seconds + 180, check=True,
            )  # fmt: skip
            found: dict[str, float] = json.loads(done.stdout)
            proxy.stdin.write("\n")
            proxy.stdin.flush()
            used = json.loads(proxy.stdout.readline())
        finally:
            proxy.kill()
    return {
        **found,
        "cpu_ms": used["cpu"] / max(1, found["answers"]) * 1e3,
        "memory_mb": used["memory"] / 1e6,
        "sockets": service.accepted(),
    }

"""What does ``import pooling`` add to the start of a script?"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from . import figures
from .harness import Plan, interleave
from .table import Column, Table, Target

__all__ = ["NAME", "run"]

NAME = "imports"
CHECKOUT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Script:
    """A script that does nothing but import."""

    modules: str

    @property
    def name(self) -> str:
        """What the table calls it."""
        return f"import {self.modules}"


OURS = Script("pooling")
BASE = Script("dataclasses, logging, threading")


def _import_time(script: Script, bytecode: str) -> float:
    """Return the milliseconds of the import in a fresh interpreter, without its start.

    Args:
        script: What to import.
        bytecode: The directory of the compiled modules. One of our own, so that
            they are compiled once, as in an installed package, wherever this runs.
    """
    code = (
        "from time import perf_counter\n"
        "began = perf_counter()\n"
        f"{script.name}\n"
        "print(perf_counter() - began)"
    )
    environment = {**os.environ, "PYTHONPYCACHEPREFIX": bytecode, "PYTHONDONTWRITEBYTECODE": ""}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=CHECKOUT,
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    )
    return float(done.stdout) * 1e3


def run(plan: Plan) -> Table:
    """Time both imports in fresh interpreters, in turns."""
    count = plan.count(full=41, quick=15)
    with tempfile.TemporaryDirectory() as bytecode:

        def measure(script: Script) -> float:
            return _import_time(script, bytecode)

        for script in (OURS, BASE):
            measure(script)  # compiles
        rounds = interleave([OURS, BASE], count, measure)
    samples = rounds.samples
    over = None
    if OURS.name in samples and BASE.name in samples:
        pairs = zip(samples[OURS.name], samples[BASE.name])
        over = figures.median([ours - base for ours, base in pairs])
    return Table(
        name=NAME,
        title=f"in a fresh interpreter, its own start not counted, {count} rounds",
        columns=(
            Column("name", "script"),
            Column("ms", "ms", ".1f"),
            Column("spread", "spread", ".0%"),
        ),
        rows=[
            {"name": name, "ms": figures.median(values), "spread": figures.spread(values)}
            for name, values in samples.items()
        ],
        targets=[Target("import pooling, over the other", over, "<=", 10, " ms", ".1f")],
        failures=rounds.failures,
    )

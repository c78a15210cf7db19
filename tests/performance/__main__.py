"""``python -m tests.performance``: run the benchmark and print its tables."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from . import (
    ample,
    balancing,
    dropin,
    flat,
    fleet,
    goals,
    held,
    http,
    http2,
    imports,
    lite,
    mysql,
    opentelemetry,
    pages,
    postgres,
    processor,
    proxy,
    redispy,
    requests,
    scarce,
    shared_metrics,
    stampede,
    uncontended,
)
from .harness import Plan
from .machine import Neighbours, environment, heading, versions
from .plot import draw
from .table import Table, to_json

BENCHMARKS: dict[str, Callable[[Plan], Table]] = {
    uncontended.NAME: uncontended.run,
    ample.NAME: ample.run,
    scarce.NAME: scarce.run,
    held.NAME: held.run,
    stampede.NAME: stampede.run,
    flat.NAME: flat.run,
    imports.NAME: imports.run,
    dropin.NAME: dropin.run,
    pages.NAME: pages.run,
    lite.NAME: lite.run,
    requests.NAME: requests.run,
    **http.BENCHMARKS,
    http2.NAME: http2.run,
    balancing.NAME: balancing.run,
    "postgres": postgres.run_select,
    "orders": postgres.run_orders,
    "mysql": mysql.run_select,
    "mysql-insert": mysql.run_insert,
    processor.NAME: processor.run,
    proxy.NAME: proxy.run,
    redispy.NAME: redispy.run,
    redispy.ALONE: redispy.run_alone,
    fleet.NAME: fleet.run,
    shared_metrics.NAME: shared_metrics.run,
    opentelemetry.NAME: opentelemetry.run,
    goals.NAME: goals.run,
}

SLOW = {goals.NAME, "http-100-20ms-full", "mysql-insert"}
"""Left out by ``--quick``: others do the same."""


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.performance", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a few minutes, not twenty")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write all of it there too")
    parser.add_argument("--plot", metavar="FILE.svg", type=Path, help="draw the figures of 'goals' as bars")
    parser.add_argument(
        "--only", metavar="NAME", nargs="+", choices=[*BENCHMARKS, *http.FURTHER],
        help=", ".join([*BENCHMARKS, *http.FURTHER]),
    )
    parser.add_argument("--rounds", metavar="N", type=_positive, help="rounds of each benchmark")
    return parser.parse_args(arguments)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return number


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what was asked for; return 1 if a contender gave wrong results, never for time."""
    options = _arguments(arguments)
    plan = Plan(quick=options.quick, rounds=options.rounds)
    print(heading(), flush=True)
    began = time.perf_counter()
    tables = []
    names = [name for name in BENCHMARKS if not (options.quick and name in SLOW)]
    for name in options.only or names:
        neighbours, start = Neighbours(), time.perf_counter()
        table = (BENCHMARKS | http.FURTHER)[name](plan)
        table.notes = [*table.notes, *neighbours.note()]
        print(f"\n{table.render()}\n  took    {time.perf_counter() - start:.0f} s", flush=True)
        tables.append(table)
    print(f"\n{time.perf_counter() - began:.0f} s in all", flush=True)
    if options.json:
        options.json.write_text(to_json(environment(), tables), encoding="utf-8")
    if options.plot:
        picture = draw([one for table in tables for one in table.bars], "pooling and its peers", versions())
        options.plot.write_text(picture, encoding="utf-8")
    return 1 if any(table.failures for table in tables) else 0


if __name__ == "__main__":
    sys.exit(main())

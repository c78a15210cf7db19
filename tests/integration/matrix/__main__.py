"""Run the matrix and print its table."""

from __future__ import annotations

import argparse
import signal
import sys

from . import __doc__ as what
from .cell import PHASES, Report, database, prepare, run, run_prefork
from .modes import APPS, MODES, PAIRWISE, PREFORK, cells


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.integration.matrix", description=what)
    parser.add_argument("--only", metavar="TEXT", default="", help="modes whose name contains this")
    parser.add_argument("--app", choices=APPS, help="one application")
    parser.add_argument("--pairwise", action="store_true", help="what pytest runs")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # end started processes, too
    chosen = [
        (name, app) for name, app in (PAIRWISE if options.pairwise else cells())
        if options.only in name and options.app in (None, app)
    ]  # fmt: skip
    heading = f"{'server and mode':30}{'app':8}{'answers':>8}{'cut':>5}{'conns':>6}{'s':>6}  "
    print(heading + "  ".join(PHASES), flush=True)
    reports: list[Report] = []
    with database() as postgres:
        for name, app in chosen:
            if not MODES[name].installed:
                print(f"{name:30}{app:8} not installed")
                continue
            prepare(postgres)
            reports.append(run(MODES[name], app, postgres))
            print(_line(reports[-1]), flush=True)
        for kind in PREFORK if options.app is None else ():
            if options.only in kind:
                prepare(postgres)
                reports.append(run_prefork(kind, postgres))
                print(_line(reports[-1]), flush=True)
    bad = [report for report in reports if not report.good]
    for report in bad:
        print(f"\n{report}")
    return 1 if bad else 0


def _line(report: Report) -> str:
    marks = [_mark(report, phase).ljust(len(phase)) for phase in PHASES]
    numbers = f"{report.answers:8}{report.cut:5}{report.most:6}{report.seconds:6.0f}"
    return f"{report.name:30}{report.app:8}{numbers}  " + "  ".join(marks)


def _mark(report: Report, phase: str) -> str:
    if phase not in report.found:
        return "-"
    return "NO" if report.found[phase] else "ok"


if __name__ == "__main__":
    sys.exit(main())

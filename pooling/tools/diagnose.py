"""``python -m pooling doctor``: the command; `doctor` knows what to look for."""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

from .._masking import slip, without_secrets
from ..settings import PoolSettings
from .doctor.calculator import calculate
from .doctor.plan import Plan
from .doctor.report import Report
from .doctor.rules import examine
from .doctor.sizing import Load, size_for

__all__ = ["DESCRIPTION", "HELP", "add_arguments", "run"]

HELP = "check a PostgreSQL, MySQL or MariaDB server, or recorded metrics, and recommend settings"
DESCRIPTION = """
Connects to the server a few times, reads its limits, settings and connected clients, detects a
pooler in between, and reports problems for the given number of workers with a pool each. With
--metrics, computes the max_size that would have kept the recorded waits short. Without --dsn, counts
the connections of --hosts and --workers, and says what to set. The exit code is 1
if something will fail whatever else is connected ("BREAKS") or the server cannot be reached, 2 for
an invalid option, otherwise 0. A "warning" costs performance or fails sometimes: for example, too
few free connections beside the current clients, which may be this application's own old workers.
With --strict, warnings count too.
"""

_PATIENCE = 10  # seconds to connect
_MYSQL = re.compile(r"(?i)(mysql|mariadb)(\+\w+)?://")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the doctor's options."""
    parser.add_argument("--dsn", metavar="URL", help="the server to check: postgresql://... or mysql://...")
    parser.add_argument("--workers", type=_count, metavar="N", help="processes with a pool each, on each host")
    parser.add_argument("--hosts", type=_count, default=1, metavar="N", help="number of hosts (default: 1)")
    parser.add_argument("--rollout", action="store_true", help="old and new processes run side by side for a while")
    parser.add_argument("--budget", type=_count, metavar="N", help="total of the workers' FleetBudget (default: none)")
    parser.add_argument("--max-size", type=_count, metavar="N", help="max_size of each pool (default: 10)")
    parser.add_argument(
        "--session", choices=("clean", "trust"), default="clean", help="session= of each pool (default: %(default)s)"
    )
    parser.add_argument(
        "--leak-timeout", type=_seconds, metavar="S", help="leak_timeout of each pool, in seconds (default: none)"
    )
    parser.add_argument(
        "--keepalive-interval", type=_seconds, metavar="S",
        help="keepalive_interval of each pool, in seconds (default: none)",
    )  # fmt: skip
    parser.add_argument(
        "--command-timeout", type=_seconds, metavar="S", help="command_timeout of each pool, in seconds (default: none)"
    )
    parser.add_argument("--strict", action="store_true", help="exit with code 1 for warnings, too")
    parser.add_argument("--metrics", type=Path, metavar="FILE", help="a file written by PoolMetrics.save()")
    parser.add_argument(
        "--wait-target", type=_milliseconds, default=0.01, metavar="MS",
        help="for --metrics: the longest wait in milliseconds of 99 of 100 borrowers (default: 10)",
    )  # fmt: skip


def run(options: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    """Print the report and return the exit code.

    Args:
        options: As parsed.
        parser: Reports an invalid option, with exit code 2.
    """
    if options.dsn is None and options.metrics is None and options.workers is None:
        parser.error("one of --dsn, --metrics and --workers is required")
    advised = _advise_size(options, parser) if options.metrics is not None else None
    if options.dsn is None and options.workers is None:
        return 0
    size = options.max_size or advised or PoolSettings().max_size
    settings = PoolSettings(
        min_size=min(1, size), max_size=size,
        leak_timeout=options.leak_timeout, keepalive_interval=options.keepalive_interval,
    )  # fmt: skip
    plan = Plan(
        settings=settings, workers=options.workers, hosts=options.hosts, rollout=options.rollout,
        budget=options.budget, cleans=options.session == "clean",
        command_timeout=options.command_timeout, unlimited=options.command_timeout is None,
    )  # fmt: skip
    if options.dsn is None:
        print(calculate(plan))
        return 0
    inspect = _inspect_mysql if _MYSQL.match(options.dsn) else _inspect
    report = inspect(options.dsn, plan, parser)
    if report is None:
        return 1
    print(report)
    return int(report.breaks or (options.strict and report.warns))


def _advise_size(options: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    try:
        load = Load.from_record(json.loads(options.metrics.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        parser.error(f"--metrics {options.metrics}: {error}")
    sizing = size_for(load, options.wait_target)
    print(sizing)
    return sizing.size


def _inspect(dsn: str, plan: Plan, parser: argparse.ArgumentParser) -> Report | None:
    try:
        import psycopg  # here: the other commands work without libpq
    except ImportError as error:
        parser.error(f"cannot import psycopg, perhaps for lack of libpq (pip install 'pooling[binary]'): {error}")
    from .doctor.facts import read

    try:
        parameters = psycopg.conninfo.conninfo_to_dict(dsn)
    except psycopg.ProgrammingError:
        parser.error("--dsn is neither a postgresql:// URL nor key=value pairs")  # not shown: it may have a password
    wrong = slip(parameters, url="://" in dsn)
    if wrong is not None:
        parser.error(f"--dsn: {wrong}")

    def connect(**options: Any) -> psycopg.Connection[Any]:
        return psycopg.connect(**{"connect_timeout": _PATIENCE, **parameters, **options})

    try:
        return examine(read(connect), plan)
    except psycopg.Error as error:
        print(f"cannot connect to the server: {_without_secret(str(error), parameters)}", file=sys.stderr)
        return None


def _inspect_mysql(dsn: str, plan: Plan, parser: argparse.ArgumentParser) -> Report | None:
    from .._urls import from_url  # here: the other commands work without a driver

    try:
        pool = from_url(
            dsn, settings=plan.settings, session="clean" if plan.cleans else "trust",
            command_timeout=plan.command_timeout, kwargs={"connect_timeout": _PATIENCE},
        )  # fmt: skip
    except (ValueError, TypeError, ImportError) as error:
        parser.error(f"--dsn: {error}")
    try:
        report: Report = pool.advise(plan.processes if plan.workers else None)
    except Exception as error:
        print(f"cannot connect to the server: {without_secrets(str(error))}", file=sys.stderr)
        return None
    return report


def _without_secret(text: str, parameters: dict[str, Any]) -> str:
    secret = str(parameters.get("password") or "")
    return without_secrets(text.replace(secret, "***") if secret else text)


def _count(text: str) -> int:
    number = int(text) if text.isascii() and text.isdigit() else 0
    if not 1 <= number <= 100_000:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 to 100000, not {text!r}")
    return number


def _milliseconds(text: str) -> float:
    return _time(text, "milliseconds") / 1000


def _seconds(text: str) -> float:
    return _time(text, "seconds")


def _time(text: str, unit: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 3_600_000:
        raise argparse.ArgumentTypeError(f"must be a number of {unit} above 0, not {text!r}")
    return value

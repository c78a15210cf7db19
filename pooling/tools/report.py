"""The command ``python -m pooling report``."""

from __future__ import annotations

import argparse
import sys

from .._console import Paint
from .metrics_dir import VARIABLE, existing

__all__ = ["DESCRIPTION", "HELP", "add_arguments", "run"]

HELP = "report what the pools of all processes of an application did, and what to change"
DESCRIPTION = """
Reads the figures that the processes of an application share in a directory (POOLING_METRICS_DIR), and reports what
happened in the last hours: load, waits, errors, incidents, also those of processes that have ended since; and what to
change. The exit code is 1 if the directory cannot be read or has no figures, 2 for an invalid option, otherwise 0.
"""

def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--dir", metavar="PATH", help=f"the directory (default: what {VARIABLE} says)")
    parser.add_argument(
        "--hours", type=_hours, default=24.0, metavar="N", help="how far to look back, at most 24 (default: 24)"
    )
    parser.add_argument(
        "--format", choices=("text", "json", "html"), default="text", help="the form of the report (default: text)"
    )


def _hours(text: str) -> float:
    try:
        hours = float(text)
    except ValueError:
        hours = 0.0
    if not 0 < hours <= 24:
        raise argparse.ArgumentTypeError(f"must be a number above 0, at most 24, not {text!r}")
    return hours


def _painted(text: str) -> str:
    """Return the report with its headings, and what has to be done, in colour."""
    paint = Paint()
    lines = (paint("title", line) if line[:1].strip() else line for line in text.split("\n"))
    return paint.words("\n".join(lines), {"!": "bad"})


def run(options: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    """Print the report and return the exit code.

    Args:
        options: As parsed.
        parser: Reports an invalid option, with exit code 2.
    """
    from ..observe.overall import render
    from ..observe.shared import SharedDirectory, has_figures

    try:
        path = existing(options.dir)
        if path is None:
            parser.error(f"--dir is required where {VARIABLE} is not set")
        if not has_figures(path):  # before it is opened, which leaves a file in a directory that was mistyped
            raise FileNotFoundError(f"no process has shared figures in {path!r}: is it the {VARIABLE}?")
        text = render(SharedDirectory(path), options.hours, options.format)
        if options.format == "text":
            text = _painted(text)
    except (OSError, ValueError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 1
    sys.stdout.write(text if text.endswith("\n") else text + "\n")
    return 0

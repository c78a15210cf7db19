"""The command: options, one picture, JSON, or the loop of the live screen."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ..demo.run import number
from ..metrics_dir import existing
from .shown import Shown, only

if TYPE_CHECKING:
    from rich.console import Console

    from ...observe.view import Viewer

__all__ = ["DESCRIPTION", "HELP", "add_arguments", "run"]

HELP = "show the pools of running applications, live in the terminal"
DESCRIPTION = """
Shows the pools of a running application, of all its processes together: connections in use, waits,
workers, holders and events. The application needs no change. Press ? for the keys. Prints one
picture and exits if the output is not a terminal. NO_COLOR is respected. The exit code is 0, 1 if
no application was found or its figures cannot be read, 2 for an invalid option, 130 after Ctrl-C.
"""

PATIENCE = 3.5
"""Seconds after which a process that is attached to has recorded its first figures."""

_KEEP = 2.0  # seconds: processes that are attached to write only while they are watched
_WIDE = 120  # characters a line, in a file or pipe


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of top."""
    parser.add_argument("--once", action="store_true", help="print one picture and exit")
    parser.add_argument("--json", action="store_true", help="print JSON, one line per interval")
    parser.add_argument(
        "--dir", metavar="PATH", help="the metrics directory of the application (default: POOLING_METRICS_DIR, else "
        "all applications of this user)",
    )  # fmt: skip
    parser.add_argument(
        "--interval", type=number(float, 0.25, 3600), default=1.0, metavar="S",
        help="seconds between two pictures (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--pid", type=number(int, 1, 2**31 - 1), action="append", default=[], metavar="N",
        help="show this process only; can be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--pool", action="append", default=[], metavar="NAME",
        help="show this pool only, or those of a pattern such as 'orders*'; can be repeated",
    )  # fmt: skip


def run(options: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    """Show the pools and return the exit code.

    The live screen takes over the process's signals, so it is for the command line alone.

    Args:
        options: As parsed.
        parser: Reports an invalid option, with exit code 2.
    """
    source = _Source(options, parser)
    if options.json:
        return _print_json(source, options)
    try:
        from rich.console import Console
    except ImportError:
        parser.error("top needs the package rich: pip install 'pooling[top]'; --json works without it")
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")
    is_live = sys.stdout.isatty() and os.environ.get("TERM") not in ("dumb", "unknown") and not options.once
    if is_live:
        for name in ("COLUMNS", "LINES"):
            os.environ.pop(name, None)  # exported by some shells, and wrong after a resize
    console = Console(
        file=sys.stdout, highlight=False, force_terminal=True if is_live else None, force_interactive=is_live,
        width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else _WIDE,
    )  # fmt: skip
    return _watch(source, options, console) if is_live else _print_once(source, options, console)


class _Source:
    """Where views come from.

    Attributes:
        found: Whether there has been anything to show.
        problem: Why there is no view, or an empty string.
    """

    def __init__(self, options: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
        from ...observe.view import Viewer

        self._options = options
        try:
            self._path = existing(options.dir)
        except NotADirectoryError as error:
            parser.error(str(error))
        self._viewer: Viewer = Viewer.of_directory(self._path)
        self.found, self.problem = False, ""

    def view(self) -> dict[str, Any]:
        """Return what the filters leave of a new view; an empty one if the figures cannot be read."""
        self.problem = ""
        try:
            view = self._viewer.view(self._options.pid)
        except OSError as error:  # TimeoutError, too
            self.problem = f"cannot read the figures: {error}"
            view = {"time": time.time(), "processes": [], "pools": [], "events": []}
        view = only(view, self._options.pool)
        self.found = self.found or bool(view["pools"])
        return view

    def views(self) -> Iterator[dict[str, Any]]:
        """Yield views at intervals; the first when all processes have been found and their rates are known."""
        due = time.monotonic()
        view = self.view()
        while not self.problem and time.monotonic() < due + PATIENCE and not self._is_complete(view):
            time.sleep(0.25)
            view = self.view()
        while True:
            due = max(due + self._options.interval, time.monotonic())
            while (left := due - time.monotonic()) > 0:
                time.sleep(min(left, _KEEP))
                if left > _KEEP:
                    self.view()
            yield self.view()

    def _is_complete(self, view: dict[str, Any]) -> bool:
        """Whether no process is missing, and all have recorded their figures twice."""
        return self._path is not None and self.found and all(one["cpu"] is not None for one in view["processes"])

    def hint(self) -> str:
        """Return what to check, since nothing was found."""
        if self.problem:
            return self.problem
        where = f"in {self._path}" if self._path else "that can be attached to"
        lines = [f"No pool was found {where}. Check that", "- the application runs, and has used a pool;"]
        if self._path:
            lines.append("- it was started with the same POOLING_METRICS_DIR.")
        else:
            lines.append("- it runs as the same user, in the same container; for another user: sudo -u USER ...;")
            lines.append("- it shares the directory for temporary files (systemd: PrivateTmp=no);")
            lines.append("- it was not started with POOLING_ATTACH=0.")
            lines.append("Or start it with POOLING_METRICS_DIR=PATH, and use --dir PATH here.")
        if self._options.pid or self._options.pool:
            lines.append("Perhaps --pid and --pool exclude what there is: try without them.")
        return "\n".join(lines)


def _print_json(source: _Source, options: argparse.Namespace) -> int:
    for view in source.views():
        print(json.dumps(view, separators=(",", ":")), flush=True)
        if options.once:
            break
        if source.problem:
            print(source.problem, file=sys.stderr, flush=True)
    if not source.found:
        print(source.hint(), file=sys.stderr)
    return int(not source.found)


def _print_once(source: _Source, options: argparse.Namespace, console: Console) -> int:
    from .screen import picture

    view = next(source.views())
    if not source.found:
        print(source.hint(), file=sys.stderr)
        return 1
    console.print(picture(view, Shown(options.interval), console, full=True))
    return 0


def _watch(source: _Source, options: argparse.Namespace, console: Console) -> int:
    from .screen import picture
    from .terminal import Terminal

    shown = Shown(options.interval)
    view = source.view()
    seen = began = time.monotonic()
    due = seen + min(options.interval, 1.0)
    with Terminal(console) as terminal:
        while not (shown.quit or terminal.ended):
            try:
                terminal.draw(picture(view, shown, console, hint=source.hint()))
                keys = terminal.wait(max(min(due, seen + _KEEP) - time.monotonic(), 0.0))
            except (EOFError, OSError):  # the terminal is gone
                break
            for key in keys:
                shown.press(key)
            now = time.monotonic()
            is_complete = source.found and now > began + PATIENCE
            interval = shown.interval if is_complete else min(shown.interval, 1.0)
            due = min(due, now + interval)
            if now >= min(due, seen + _KEEP):
                latest, seen = source.view(), time.monotonic()
                if now >= due:
                    due = now + interval
                    shown.problem = source.problem
                    if not (shown.paused or shown.problem):
                        view = latest
    return 128 + terminal.ended if terminal.ended else int(not source.found)

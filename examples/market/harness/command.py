"""The command: options, signals, and the sequence of steps."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import threading
import time
import webbrowser

from pooling import application_lifespan

from ..app import Market
from ..config import Config
from ..model import SYMBOLS
from ..progress import Progress
from .bench import measure
from .check import complaints
from .faults import FAULTS, Fault, fault_of
from .load import Load
from .stage import HarnessError, Stage
from .story import Story

__all__ = ["main"]

_NORMAL = 3.0  # seconds of load before something breaks
_CALM = 2.0  # seconds without a failure or an alert, after which a fault counts as over
_PATIENCE = 60.0  # seconds for that


def main() -> int:
    """Run, and return the exit code: 0 if all is right, 1 if not, 2 for an invalid option, 130 after Ctrl-C."""
    options = _options()
    stop, number = threading.Event(), [0]

    def note(signum: int, frame: object) -> None:
        number[0] = 128 + signum  # as shells number them
        stop.set()

    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        if signal.getsignal(getattr(signal, name)) is not signal.SIG_IGN or name == "SIGINT":
            signal.signal(getattr(signal, name), note)
    try:
        code = _Run(options, stop).run()
    except HarnessError as error:
        print(f"python -m examples.market: error: {error}", file=sys.stderr)
        code = 1
    except BrokenPipeError:  # the reader of our output has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    return number[0] or code


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m examples.market",
        description="Starts a market-data service: a provider with several backends, a Flask application under "
        "gunicorn that stores orders, and clients. Serves until Ctrl-C, unless told otherwise. Everything is removed "
        "in the end. The exit code is 0 if every stored row is right and no lease is out, 1 if not, 130 after Ctrl-C.",
    )
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--check", action="store_true", help="run for 20 seconds, check every row and lease, and end")
    mode.add_argument(
        "--break", dest="fault", choices=FAULTS,
        help="show what happens, and what tells you, when the database cannot be used, a backend of the provider dies, "
        "connections leak, or a worker is killed",
    )  # fmt: skip
    mode.add_argument("--bench", action="store_true", help="measure how many orders a second the storage takes")
    parser.add_argument(
        "--dsn", metavar="postgresql://...",
        help="store orders there, in a temporary schema (default: SQLite in a temporary file)",
    )  # fmt: skip
    parser.add_argument(
        "--legacy-cache", action="store_true", help="open a connection to the cache for each call, instead of a pool"
    )
    parser.add_argument(
        "--seconds", type=_seconds, metavar="N",
        help="length of the load (default: 20 for --check, 5 for --bench), or how long something is broken "
        "(default: 8)",
    )  # fmt: skip
    for name, number, what in (
        ("--workers", 4, "of gunicorn"), ("--backends", 3, "of the provider"), ("--clients", 8, "that send requests"),
    ):  # fmt: skip
        parser.add_argument(name, type=_count, default=number, metavar="N", help=f"{what} (default: {number})")
    parser.add_argument(
        "--port", type=int, default=8000, metavar="N",
        help="of the application; any free one if it is in use (default: 8000)",
    )  # fmt: skip
    parser.add_argument("--open", action="store_true", help="open the dashboard in a browser")
    return parser.parse_args()


def _seconds(text: str) -> float:
    value = float(text)
    if not 1 <= value <= 86_400:
        raise argparse.ArgumentTypeError(f"must be from 1 to 86400 seconds, not {text}")
    return value


def _count(text: str) -> int:
    value = int(text)
    if not 1 <= value <= 64:
        raise argparse.ArgumentTypeError(f"must be from 1 to 64, not {text}")
    return value


class _Run:
    """One run of the example."""

    def __init__(self, options: argparse.Namespace, stop: threading.Event) -> None:
        self._options, self._stop = options, stop

    def run(self) -> int:
        """Start everything, do what the options say, and return the exit code."""
        options = self._options
        with contextlib.ExitStack() as end:
            end.callback(_say, "everything is stopped and removed")
            stage = end.enter_context(Stage(
                workers=options.workers, backends=options.backends, dsn=options.dsn,
                pooled_cache=not options.legacy_cache, port=options.port, interrupted=self._stop.is_set,
            ))  # fmt: skip
            fault = fault_of(options.fault, stage) if options.fault else None
            self._start_provider(stage)
            if options.bench:
                _say(f"orders    {measure(stage, options.seconds or 5.0)}")
                return 0
            self._start_application(stage, fault)
            if self._stop.is_set():
                return 1
            # Someone who watches the dashboard wants to see it move, not the machine at its limit.
            load = Load(stage.url, threads=options.clients, pause=0.0 if options.check else 0.05)
            load.start()
            try:
                recovered = self._serve(load) if fault is None else self._break(stage, load, fault)
            finally:
                load.stop()
            return self._judge(stage, load) or int(not recovered)

    def _start_provider(self, stage: Stage) -> None:
        stage.start_provider()
        _say(f"provider  {len(stage.backends)} backends: {', '.join(stage.backends)}")
        if stage.dsn is None:
            _say(f"orders    SQLite: {stage.orders}")
        else:
            _say(f"orders    PostgreSQL {stage.make_schema()}, in the temporary schema {stage.schema}")

    def _start_application(self, stage: Stage, fault: Fault | None) -> None:
        options = self._options
        _say(f"cache     {'SQLite, a connection for each call' if options.legacy_cache else 'SQLite, pooled'}")
        self._fill(stage)
        orders = None if fault is None else fault.prepare()
        if self._stop.is_set():
            return
        stage.start_application(orders, faults=fault is not None)
        _say(f"service   {stage.url}, gunicorn with {options.workers} workers")
        _say(f"page      {stage.url}/pools is the dashboard; also /health and /report")
        if options.open:
            webbrowser.open(f"{stage.url}/pools")

    def _fill(self, stage: Stage) -> None:
        """Fill the cache before the application starts, as a script of its own would."""
        market = Market(Config.from_env(stage.environment(stage.orders)))
        with application_lifespan(manager=market.manager):
            market.create_tables()
            began = time.monotonic()
            with Progress("fetcher", len(SYMBOLS)) as progress:
                failed = market.fetcher.fetch(SYMBOLS, progress)
        if failed:
            raise HarnessError(f"{len(failed)} quotes could not be fetched: {next(iter(failed.values()))}")
        _say(f"fetcher   {len(SYMBOLS)} quotes in {time.monotonic() - began:.1f} s, {market.fetcher.threads} threads")

    def _serve(self, load: Load) -> bool:
        """Show the load until its time is over, or until Ctrl-C; return true."""
        options = self._options
        seconds = options.seconds or (20.0 if options.check else None)
        _say("load      " + (f"{seconds:g} seconds" if seconds else "until Ctrl-C"))
        began = time.monotonic()
        with Progress("load", seconds or 1e9) as progress:
            while not self._stop.is_set():
                passed = time.monotonic() - began
                if seconds is not None and passed >= seconds:
                    break
                progress.update(passed if seconds else 0.0, str(load))
                self._stop.wait(0.25)
        _say(f"load      {load}")
        return True

    def _break(self, stage: Stage, load: Load, fault: Fault) -> bool:
        """Break something, mend it, and tell what is to be seen meanwhile; return whether all recovered."""
        seconds = self._options.seconds or 8.0
        _say("")
        story = Story(stage, load, _say)
        story.begin_phase()
        self._watch(story, _NORMAL)
        story.end_phase("before")
        story.begin_phase()
        story.tell("BREAK", fault.begin())
        self._watch(story, seconds)
        story.end_phase("meanwhile")
        story.tell("MEND", fault.end())
        story.begin_phase()
        recovered = self._wait_until_calm(stage, story)
        story.end_phase("afterwards")
        _say("")
        if not recovered and not self._stop.is_set():
            _say(f"it did not recover within {_PATIENCE:g} s")
        return recovered

    def _watch(self, story: Story, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and not self._stop.is_set():
            story.look()
            self._stop.wait(0.25)

    def _wait_until_calm(self, stage: Stage, story: Story) -> bool:
        began = calm_since = time.monotonic()
        while not self._stop.is_set():
            story.look()
            story.forget(stage.workers())
            now = time.monotonic()
            if not story.calm:
                calm_since = now
            if now - calm_since >= _CALM:
                return True
            if now - began > _PATIENCE:
                return False
            self._stop.wait(0.25)
        return False

    def _judge(self, stage: Stage, load: Load) -> int:
        bad = list(complaints(stage, load))
        for one in bad:
            _say(f"WRONG     {one}")
        for error, number in load.errors.most_common(3) if self._options.fault is None else ():
            _say(f"failed    {number} times: {error}")
        if not bad:
            _say(f"check     {len(load.stored):,} orders confirmed, every stored row is right, no lease is out")
        return int(bool(bad))


def _say(text: str) -> None:
    print(text, flush=True)

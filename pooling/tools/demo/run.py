"""The demo's parent process: it starts the others, shows their progress, and checks the results.

The work is done on a thread; the main thread waits for its end or for a
signal. Signals are turned into messages, so that none raises between two lines
and nothing is half done when the cleanup begins.
"""

from __future__ import annotations

import argparse
import logging
import math
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ... import __version__
from ..dashboard import DashboardServer
from .child import Child, DemoError, Message
from .place import Database, PostgresDatabase, SQLiteDatabase
from .quotes import SYMBOLS, Quote, compare
from .screen import Screen
from .stage import Stage
from .table import table

__all__ = ["DESCRIPTION", "HELP", "add_arguments", "number", "run"]

HELP = "fetch and store market data with and without pools, check every row, compare"
DESCRIPTION = """
Starts a local HTTP service for market data. Threads fetch quotes from it and store them in a
database: first without pools, with a new session and a new connection each time, then through
an HTTPPool and a database pool. Then it compares the figures, and checks every row in the
database against the service's records. The exit code is 0 if all rows are right, 1 if not, 2
for an invalid option, 130 after Ctrl-C.
"""

PHASES = ("unpooled", "pooled")
_SECONDS, _QUICK_SECONDS = 5.0, 1.5

# The signals of Ctrl-C, Ctrl-Break, kill, and a closed terminal.
_SIGNALS = ("SIGINT", "SIGBREAK", "SIGTERM", "SIGHUP")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the demo's options."""
    parser.add_argument(
        "--dsn",
        metavar="postgresql://...",
        help="store in this PostgreSQL database, in a temporary schema (default: SQLite in a "
        "temporary file)",
    )
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--quick", action="store_true", help="finish within 10 seconds")
    length.add_argument(
        "--seconds",
        type=number(float, 0.1, 3600),
        default=_SECONDS,
        metavar="N",
        help="length of each of the two phases (default: %(default)s)",
    )
    parser.add_argument(
        "--threads",
        type=number(int, 1, 512),
        default=32,
        metavar="N",
        help="number of threads (default: %(default)s)",
    )
    parser.add_argument(
        "--delay-ms",
        type=number(float, 0, 10_000),
        default=5.0,
        metavar="N",
        help="average response time of the service (default: %(default)s)",
    )
    parser.add_argument(
        "--seed",
        type=number(int, 0, 10**9),
        default=1,
        metavar="N",
        help="seed for symbols and prices (default: %(default)s)",
    )
    parser.add_argument(
        "--dashboard",
        action="store_true",
        help="serve a page that shows the pools live, and print its address; in a terminal, it stays open until "
        "Ctrl-C, otherwise until the demo ends",
    )


def number(kind: Callable[[str], Any], low: float, high: float) -> Callable[[str], Any]:
    """Return an option type for a number within bounds."""

    def parse(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high:
            noun = "a whole number" if kind is int else "a number"
            raise argparse.ArgumentTypeError(f"must be {noun} from {low} to {high}, not {text!r}")
        return value

    return parse


def run(options: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    """Run the demo and return the exit code: 0 if every row was right.

    It takes over the process's signals, so it is for the command line alone.

    Args:
        options: As parsed.
        parser: Reports an invalid option, with exit code 2.
    """
    outcome: queue.SimpleQueue[int | Exception] = queue.SimpleQueue()
    _on_signals(outcome)
    logging.getLogger("pooling").setLevel(logging.ERROR)  # failures are reported here
    screen, stage = Screen(sys.stdout), Stage()
    try:
        demo = _Demo(options, screen, stage)
    except ValueError as error:
        parser.error(f"argument --dsn: {error}")
    except DemoError as error:
        return _complain(error)
    thread = threading.Thread(target=demo.report_to, args=(outcome,), daemon=True)
    thread.start()
    result = _first(outcome)
    if isinstance(result, int) and result > 128:
        screen.close("interrupted, cleaning up")
    elif isinstance(result, int) and demo.stays:
        screen.say("the page stays open: Ctrl-C ends the demo")
        _first(outcome)
    stage.stop()
    thread.join(1.0)  # it may only still wait for an unreachable database
    try:
        stage.clear()
    except DemoError as error:
        code = _complain(error)
        result = code if result == 0 else result
    _on_signals(None)
    return _exit_code(result)


def _on_signals(outcome: queue.SimpleQueue[int | Exception] | None) -> None:
    """Turn signals into outcomes; with ``None``, ignore them from now on."""

    def note(number: int, frame: object) -> None:
        if outcome is not None:
            outcome.put(128 + number)  # as shells number them; put() may interrupt get()

    for name in _SIGNALS:
        number = getattr(signal, name, None)
        # Respect a SIGHUP ignored by nohup, but handle a SIGINT ignored by a shell's `&`.
        if number is None or (name == "SIGHUP" and signal.getsignal(number) is signal.SIG_IGN):
            continue
        signal.signal(number, note if outcome is not None else signal.SIG_IGN)


def _first(outcome: queue.SimpleQueue[int | Exception]) -> int | Exception:
    while True:
        try:
            return outcome.get(timeout=0.1)  # on Windows no signal interrupts a longer wait
        except queue.Empty:
            pass


def _exit_code(result: int | Exception) -> int:
    if isinstance(result, int):
        return result
    if isinstance(result, DemoError):
        return _complain(result)
    if isinstance(result, BrokenPipeError):  # the reader of our output has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    raise result


def _complain(error: DemoError) -> int:
    print(f"python -m pooling demo: error: {error}", file=sys.stderr)
    return 1


class _Demo:
    """One run, on its own thread."""

    def __init__(self, options: argparse.Namespace, screen: Screen, stage: Stage) -> None:
        self._options, self._screen, self._stage = options, screen, stage
        self._seconds = _QUICK_SECONDS if options.quick else options.seconds
        self._postgres = None if options.dsn is None else PostgresDatabase(options.dsn)
        self.stays = options.dashboard and sys.stdout.isatty()
        """Whether the page stays open after the last phase."""

    def report_to(self, outcome: queue.SimpleQueue[int | Exception]) -> None:
        """Run, and put the exit code or the error into ``outcome``."""
        try:
            outcome.put(self.run())
        except Exception as error:
            outcome.put(error)

    def run(self) -> int:
        """Run all steps and return the exit code."""
        began = time.perf_counter()
        options, say = self._options, self._screen.say
        say(
            f"pooling {__version__}: {options.threads} threads, {self._seconds:g} s each phase, "
            f"{options.delay_ms:g} ms delay, seed {options.seed}"
        )
        folder = self._stage.folder()
        if options.dashboard:
            say(f"{'page':9} {self._open_page(folder / 'metrics')}")
        service = self._stage.start("pooling.tools.demo.service")
        workers = {phase: self._stage.start("pooling.tools.demo.work") for phase in PHASES}
        database = self._postgres or SQLiteDatabase(folder)
        self._stage.at_end(database.drop)
        say(f"{'database':9} {database.make()}")
        market = service.ask(folder=str(folder), delay=options.delay_ms / 1000, seed=options.seed)
        say(f"{'service':9} {_describe(market)}")
        results = {
            phase: self._phase(phase, worker, service, market, database)
            for phase, worker in workers.items()
        }
        self._show(results, time.perf_counter() - began)
        return 0 if all(result["right"] for result in results.values()) else 1

    def _open_page(self, folder: Path) -> str:
        """Let the phases, which are processes of their own, share their figures, and serve them; return the address."""
        folder.mkdir(0o700)
        os.environ["POOLING_METRICS_DIR"] = str(folder)
        server = DashboardServer("127.0.0.1", 0, folder, None)
        threading.Thread(target=server.serve_forever, name="page", daemon=True).start()
        self._stage.at_end(server.shutdown)
        return server.url

    def _phase(
        self, phase: str, worker: Child, service: Child, market: Message, database: Database
    ) -> Message:
        """Run and check one phase, and return its figures."""
        place = database.place(phase)
        worker.send(
            pooled=phase == "pooled",
            url=market["url"],
            trusted=market["trusted"],
            place=place,
            threads=self._options.threads,
            seconds=self._seconds,
            seed=self._options.seed,
            stays=self.stays and phase == "pooled",
        )
        result = self._follow(phase, worker)
        book = service.ask()
        verdict = compare(place.rows(), map(Quote._make, book["served"]), self._options.seed)
        self._screen.say(f"{'':9} {verdict}")
        if result["failure"]:
            self._screen.say(f"{'':9} failed: {result['failure']}")
        right = verdict.perfect and not result["failure"]
        return {**result, "accepted": book["accepted"], "right": right}

    def _follow(self, phase: str, worker: Child) -> Message:
        """Show the progress of a phase until its end, and return its result."""
        while True:
            message = worker.hear()
            result: Message = message.get("result", message)
            done, seconds = result["done"], result["seconds"]
            text = f"{phase:9} {seconds:4.1f} s  {done:7,} quotes  {done / seconds:8,.1f}/s"
            if "result" in message:
                self._screen.say(text)
                return result
            self._screen.progress(text)

    def _show(self, results: Mapping[str, Message], seconds: float) -> None:
        say = self._screen.say
        if all(result["done"] for result in results.values()):
            say("\n" + table(results["unpooled"], results["pooled"]))
        say("\n" + results["pooled"]["summary"])
        right = "" if all(result["right"] for result in results.values()) else "NOT "
        say(f"{right}every row is right; {seconds:.1f} s in total")


def _describe(market: Message) -> str:
    text = f"{market['url']}, {len(SYMBOLS)} symbols, "
    if market["maker"] is None:
        return text + "plain HTTP: neither cryptography nor openssl is available to create a certificate"
    return (
        f"{text}TLS with a certificate created by {market['maker']}\n{'':9} "
        "clients trust its authority and those of certifi, as many as in production"
    )

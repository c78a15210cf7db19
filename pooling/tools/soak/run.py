"""The soak's command: options, signals, and what happens in which order."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import queue
import signal
import sys
import time
from collections.abc import Iterator

from ... import __version__
from ..demo.child import Child, DemoError
from ..demo.run import number
from ..demo.screen import Screen
from .echo import Connection
from .load import Load
from .target import BadOption, Target, echo_target, user_target
from .verdict import Machine, checks

__all__ = ["DESCRIPTION", "HELP", "add_arguments", "run"]

HELP = "borrow for minutes or days under faults; say whether memory is flat and nothing is lost"
DESCRIPTION = """
Puts a pool under load and faults, and judges it in the end: every reply belongs to its request,
nobody is stuck, never more than max_size at once, all that was made is closed, memory is flat,
no descriptor and no thread is left. By default the pool lends TCP connections to a server of the
soak's own that refuses, hangs up, stalls and breaks down; --factory puts your own to the test.
The exit code is 0 if the verdict is good, 1 if not, 2 for a bad option, 130 after Ctrl-C, which
ends with the verdict so far.
"""

_QUICK_SECONDS = 10.0
_TICK = 0.1  # seconds
_PATIENCE = 5.0  # seconds for the server to notice that its clients have gone
_SIGNALS = ("SIGINT", "SIGBREAK", "SIGTERM", "SIGHUP")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the soak's options."""
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--quick", action="store_true", help=f"{_QUICK_SECONDS:g} seconds")
    length.add_argument(
        "--minutes", type=number(float, 0.01, 100_000), default=1.0, metavar="N", help="how long (default: %(default)s)"
    )
    parser.add_argument(
        "--threads", type=number(int, 1, 512), default=32, metavar="N", help="how many borrow (default: %(default)s)"
    )
    parser.add_argument(
        "--max-size", type=number(int, 1, 512), default=8, metavar="N", help="of the pool (default: %(default)s)"
    )
    parser.add_argument(
        "--seed", type=number(int, 0, 10**9), default=1, metavar="N", help="decides faults and moves (default: 1)"
    )
    parser.add_argument("--factory", metavar="package.module:callable", help="makes what the pool lends")
    parser.add_argument("--close", metavar="CALL", help="ends one: package.module:callable, or the name of a method of "
                        "what the factory makes (default: its close(), if it has one)")  # fmt: skip
    parser.add_argument("--validate", metavar="CALL", help="proves one alive: raises, or returns False, if it is dead")
    parser.add_argument("--use", metavar="CALL", help="does something with one in each lease; False means it was wrong")


def run(options: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    """Run the soak and return the exit code: 0 if the verdict is good.

    It takes over the process's signals, so it is for the command line alone.

    Args:
        options: As parsed.
        parser: Complains about a bad one, with exit code 2.
    """
    if options.factory is None:
        for name in ("close", "validate", "use"):
            if getattr(options, name) is not None:
                parser.error(f"argument --{name}: only with --factory")
    logging.getLogger("pooling").setLevel(logging.ERROR)  # faults are what we came for
    try:
        return _Soak(options, Screen(sys.stdout, seconds_a_line=1.0 if options.quick else 10.0)).run()
    except BadOption as error:
        parser.error("argument {}: {}".format(*error.args))
    except DemoError as error:
        print(f"python -m pooling soak: error: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # the reader of our output has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _signals() -> queue.SimpleQueue[int]:
    """Turn signals into messages: no exception strikes between two lines. The second one ends it at once."""
    came: queue.SimpleQueue[int] = queue.SimpleQueue()
    first = [True]

    def note(number: int, frame: object) -> None:
        if not first:
            os._exit(128 + number)
        first.clear()
        came.put(number)  # put() may interrupt get()

    for name in _SIGNALS:
        number = getattr(signal, name, None)
        # nohup ignores SIGHUP. SIGINT counts even where a shell's `&` had it ignored.
        if number is not None and not (name == "SIGHUP" and signal.getsignal(number) is signal.SIG_IGN):
            signal.signal(number, note)
    return came


class _Soak:
    """One run."""

    def __init__(self, options: argparse.Namespace, screen: Screen) -> None:
        self._options, self._screen = options, screen
        self._seconds = _QUICK_SECONDS if options.quick else options.minutes * 60
        self._server: Child | None = None

    def run(self) -> int:
        """Do everything in order; return the exit code."""
        options, say = self._options, self._screen.say
        with self._target() as target:
            say(
                f"pooling {__version__}: soaking for {_length(self._seconds)}, {options.threads} threads, "
                f"max_size {options.max_size}, seed {options.seed}\nlending {target.text}"
            )
            self._signals = _signals()  # until now one ends us at once
            machine = Machine(self._seconds)
            load = Load(target, self._seconds, options.threads, options.max_size, options.seed)
            self._endure(load, machine)
            return self._judge(load, machine)

    @contextlib.contextmanager
    def _target(self) -> Iterator[Target]:
        """Make what is lent, and one resource beforehand: what it needs once is no leak."""
        options = self._options
        if options.factory is not None:
            yield self._user_target()
            return
        self._server = Child("pooling.tools.soak.echo")
        try:
            port = self._server.ask(seed=options.seed)["port"]
            Connection(port).close()
            self._server.ask(faults=True)
            yield echo_target(port)
        finally:
            self._server.kill()

    def _user_target(self) -> Target:
        options = self._options
        try:
            return user_target(options.factory, close=options.close, validate=options.validate, use=options.use)
        except BadOption:
            raise
        except Exception as error:
            raise DemoError(f"the first call of {options.factory} failed: {type(error).__name__}: {error}") from error

    def _endure(self, load: Load, machine: Machine) -> None:
        """Keep the load up until its time is over or a signal comes."""
        load.start()
        began = time.monotonic()
        while (passed := time.monotonic() - began) < self._seconds:
            with contextlib.suppress(queue.Empty):
                self._signals.put(self._signals.get(timeout=min(_TICK, self._seconds - passed)))
                self._screen.say("interrupted")
                return
            load.steer()
            self._screen.progress(self._progress(load, machine.look(), time.monotonic() - began))

    @staticmethod
    def _progress(load: Load, memory: float, passed: float) -> str:
        stats, leases = load.pool.stats(), load.count("leases")
        failures = sum(load.failures().values())
        return (
            f"{passed:7.1f} s  {leases:9,} leases  {leases / max(passed, 0.1):7,.0f}/s  "
            f"{stats['in_use']:3} in use {stats['idle']:3} idle {stats['waiting']:3} waiting  "
            f"{load.target.ledger.made:6,} made  {failures:5,} failed  {memory:7.1f} MB"
        )

    def _faults(self) -> dict[str, int]:
        """Ask the server what it did, and how many connections it has when it has noticed their ends."""
        if self._server is None:
            return {}
        limit = time.monotonic() + _PATIENCE
        while True:
            report = self._server.ask(faults=False)
            if not report["open"] or time.monotonic() > limit:
                return report
            time.sleep(_TICK)

    def _judge(self, load: Load, machine: Machine) -> int:
        say = self._screen.say
        say("closing")
        stuck = load.stop()
        stats = load.close()
        faults = self._faults()
        verdict = [*checks(load, stuck, stats, faults.pop("open", None)), machine.memory(), *machine.left()]
        say("")
        load.metrics.print_summary()
        say(f"\n{'server':12} {_list(faults)}" if faults else "")
        say(f"{'borrowers':12} met {_list(load.failures()) or 'no error'}")
        for mistake in load.mistakes:
            say(f"{'':12} {mistake}")
        say("\n" + "\n".join(map(str, verdict)))
        bad = [check.name for check in verdict if check.good is False]
        say(f"\nBAD: {', '.join(bad)}" if bad else "\ngood: memory and descriptors are flat, nothing was lost")
        with contextlib.suppress(queue.Empty):
            return 128 + self._signals.get(False)  # as shells number them
        return 1 if bad else 0


def _length(seconds: float) -> str:
    return f"{seconds:g} seconds" if seconds < 120 else f"{seconds / 60:g} minutes"


def _list(counts: dict[str, int]) -> str:
    return ", ".join(f"{number:,} {what}" for what, number in sorted(counts.items()))

"""The soak's command: options, signals, and the sequence of steps."""

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

HELP = "run a pool under load and faults for minutes or days; check for leaks and lost resources"
DESCRIPTION = """
Runs a pool under load and faults, and gives a verdict: every reply belongs to its request, no
borrower is stuck, there are never more than max_size resources, everything created was closed,
memory is flat, no descriptor or thread is left. By default the pool lends TCP connections to its
own server, which refuses, hangs up, stalls and breaks down; --factory tests your own resources.
The exit code is 0 if the verdict is good, 1 if not, 2 for an invalid option, 130 after Ctrl-C,
which prints the verdict so far.
"""

_QUICK_SECONDS = 10.0
_TICK = 0.1  # seconds
_PATIENCE = 5.0  # seconds for the server to notice that its clients have disconnected
_SIGNALS = ("SIGINT", "SIGBREAK", "SIGTERM", "SIGHUP")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the soak's options."""
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--quick", action="store_true", help=f"run for {_QUICK_SECONDS:g} seconds")
    length.add_argument(
        "--minutes", type=number(float, 0.01, 100_000), default=1.0, metavar="N", help="duration (default: %(default)s)"
    )
    parser.add_argument(
        "--threads", type=number(int, 1, 512), default=32, metavar="N", help="borrowing threads (default: %(default)s)"
    )
    parser.add_argument(
        "--max-size", type=number(int, 1, 512), default=8, metavar="N", help="size of the pool (default: %(default)s)"
    )
    parser.add_argument(
        "--seed", type=number(int, 0, 10**9), default=1, metavar="N", help="seed for faults and actions (default: 1)"
    )
    parser.add_argument("--factory", metavar="package.module:callable", help="creates a resource")
    parser.add_argument("--close", metavar="CALL", help="closes a resource: package.module:callable, or the name of a "
                        "method of the resource (default: its close(), if it has one)")  # fmt: skip
    parser.add_argument("--validate", metavar="CALL", help="checks a resource; raises or returns False if it is dead")
    parser.add_argument("--use", metavar="CALL", help="uses a resource in each lease; returns False on a wrong result")


def run(options: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    """Run the soak and return the exit code: 0 if the verdict is good.

    It takes over the process's signals, so it is for the command line alone.

    Args:
        options: As parsed.
        parser: Reports an invalid option, with exit code 2.
    """
    if options.factory is None:
        for name in ("close", "validate", "use"):
            if getattr(options, name) is not None:
                parser.error(f"argument --{name}: only with --factory")
    logging.getLogger("pooling").setLevel(logging.ERROR)  # faults are intended here
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
    """Turn signals into messages, so that none raises between two lines. The second one ends the process at once."""
    came: queue.SimpleQueue[int] = queue.SimpleQueue()
    first = [True]

    def note(number: int, frame: object) -> None:
        if not first:
            os._exit(128 + number)
        first.clear()
        came.put(number)  # put() may interrupt get()

    for name in _SIGNALS:
        number = getattr(signal, name, None)
        # Respect a SIGHUP ignored by nohup, but handle a SIGINT ignored by a shell's `&`.
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
        """Run all steps and return the exit code."""
        options, say = self._options, self._screen.say
        with self._target() as target:
            say(
                f"pooling {__version__}: soaking for {_length(self._seconds)}, {options.threads} threads, "
                f"max_size {options.max_size}, seed {options.seed}\nlending {target.text}"
            )
            self._signals = _signals()  # until here a signal ends the process at once
            machine = Machine(self._seconds)
            load = Load(target, self._seconds, options.threads, options.max_size, options.seed)
            self._endure(load, machine)
            return self._judge(load, machine)

    @contextlib.contextmanager
    def _target(self) -> Iterator[Target]:
        """Make the target, and one resource in advance, so that one-time allocations do not count as leaks."""
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
        """Run the load until its time is over or a signal arrives."""
        load.start()
        began = time.monotonic()
        while (passed := time.monotonic() - began) < self._seconds:
            with contextlib.suppress(queue.Empty):
                self._signals.put(self._signals.get(timeout=min(_TICK, self._seconds - passed)))
                self._screen.say("interrupted")
                return
            load.steer()
            self._screen.progress(self._progress(load, machine.measure(), time.monotonic() - began))

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
        """Return the server's faults and, after it has noticed the disconnects, its open connections."""
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

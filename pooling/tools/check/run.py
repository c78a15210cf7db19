"""The command: targets, progress, signals, exit code."""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import NoReturn, TextIO

from ... import __version__
from ..._console import Screen, duration
from ..._masking import masked, without_secrets
from ...errors import PoolError
from .outcome import Failed, Outcome, Results, Skipped, verdict
from .resource import Check, Target
from .targets import VARIABLES, from_environment, target_of

__all__ = ["DESCRIPTION", "HELP", "add_arguments", "run", "run_all"]

HELP = "run the essential checks of a pool against your own databases and services, in a minute"
DESCRIPTION = """
Connects to each target, and checks there what a pool must get right: acquire and release, clean state
between borrowers, the timeout when all are in use, the order of waiters, a connection that the server
ends, transactions, a fork, and that nothing is left in the end; for HTTP, keep-alive, timeouts and the
verification of certificates. It opens at most 5 connections at once, and ends none but its own. It
writes nothing but temporary tables and, in Redis, a key with a random name that expires. The exit code
is 0 if nothing failed, 1 if something did, 2 for an invalid option, 130 after Ctrl-C.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "targets", nargs="*", metavar="TARGET",
        help="postgresql://..., mysql://..., redis://..., sqlite:///..., https://...; other users of this machine can "
        f"see it in the list of processes (default: what {' and '.join(VARIABLES)} say)",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print the results as JSON, and progress to standard error")


def run(options: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    """Run all checks and return the exit code.

    It takes over the process's signals, so it is for the command line alone.

    Args:
        options: As parsed.
        parser: Reports an invalid option, with exit code 2.
    """
    addresses = options.targets or from_environment(os.environ)
    if not addresses:
        parser.error(f"a target is required where {' and '.join(VARIABLES)} are not set")
    targets = [_target(address, parser) for address in addresses]
    logging.getLogger("pooling").setLevel(logging.CRITICAL)  # what goes wrong is reported here
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and not (name == "SIGHUP" and signal.getsignal(number) is signal.SIG_IGN):
            signal.signal(number, _interrupt)
    began = time.monotonic()
    results: list[Results] = []
    screen = Screen(sys.stderr if options.json else sys.stdout)
    code = 0
    try:
        run_all(targets, results, screen, quiet=options.json)
    except _Interrupted as signalled:
        code = 128 + signalled.number  # as shells number them
        screen.say("interrupted")
    seconds = time.monotonic() - began
    bad = any(result.bad for result in results)
    if options.json:
        _print_json(results, seconds, not (bad or code), sys.stdout)
    elif results:
        screen.say("\n" + verdict(results, seconds, screen.paint))
    return code or int(bad)


class _Interrupted(BaseException):
    def __init__(self, number: int) -> None:
        self.number = number


def _interrupt(number: int, frame: object) -> NoReturn:
    raise _Interrupted(number)


def _target(address: str, parser: argparse.ArgumentParser) -> Target:
    try:
        return target_of(address)
    except (ValueError, TypeError, ImportError) as error:
        parser.error(f"{masked(address)}: {without_secrets(str(error))}")


def run_all(targets: list[Target], results: list[Results], screen: Screen, *, quiet: bool) -> None:
    """Run all checks of all targets. Internal.

    Args:
        targets: The targets.
        results: Where the results go; they are complete as far as it got, whatever ends it.
        screen: Where progress is shown.
        quiet: Whether nothing but progress is shown.
    """
    plan = [(target, target.checks()) for target in targets]
    remaining = sum(check.seconds for _, checks in plan for check in checks)
    number, count = 0, sum(len(checks) for _, checks in plan)
    say: Callable[[str], object] = (lambda text: None) if quiet else screen.say
    say(f"pooling {__version__}: {count} checks, about {duration(max(1.0, remaining))}")
    for target, checks in plan:
        result = Results(target.text, target.kind)
        results.append(result)
        say(f"\n{screen.paint('title', target.text)}")
        for check in checks:
            if result.outcomes and result.outcomes[0].good is False:
                rest = checks[len(result.outcomes) :]
                outcome = Outcome("others", None, f"{len(rest)} checks were not run, because the first failed", 0.0)
                result.outcomes.append(outcome)
                say(outcome.line(screen.paint))
                number, remaining = number + len(rest), remaining - sum(one.seconds for one in rest)
                break
            number += 1
            screen.progress(f"  {number} of {count}: {check.name}, about {max(1.0, remaining):.0f} s left")
            outcome = _run_one(target, check)
            result.outcomes.append(outcome)
            result.kind = target.kind
            say(outcome.line(screen.paint))
            remaining -= check.seconds


def _run_one(target: Target, check: Check) -> Outcome:
    began = time.perf_counter()
    try:
        good, text = True, check.run()
    except Skipped as reason:
        good, text = None, str(reason)
    except Failed as reason:
        good, text = False, str(reason)
    except Exception as error:
        while isinstance(error, PoolError) and isinstance(error.__cause__, Exception):  # the driver's says more
            error = error.__cause__
        good, text = False, f"{type(error).__name__}: {error}"
    return Outcome(check.name, good, target.clean(text), time.perf_counter() - began)


def _print_json(results: list[Results], seconds: float, good: bool, stream: TextIO) -> None:
    report = {
        "version": __version__, "good": good, "seconds": round(seconds, 3),
        "targets": [result.to_dict() for result in results],
    }  # fmt: skip
    with contextlib.suppress(BrokenPipeError):
        print(json.dumps(report, indent=2), file=stream)

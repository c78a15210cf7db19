"""The command line: ``python -m pooling``."""

from __future__ import annotations

import os
import signal
import sys

if __name__ == "__main__":  # before the slow imports, so that Ctrl-C ends them without a traceback
    signal.signal(signal.SIGINT, lambda number, frame: os._exit(128 + number))

import argparse
import importlib
from collections.abc import Sequence
from typing import NoReturn

from . import __version__
from ._masking import masked, without_secrets

__all__ = ["main"]

# Each has HELP, DESCRIPTION, add_arguments(parser) and run(options, parser) -> exit code.
_COMMANDS = {
    "check": ".tools.check.run", "config": ".config", "dashboard": ".tools.dashboard", "demo": ".tools.demo.run",
    "doctor": ".tools.diagnose", "report": ".tools.report", "soak": ".tools.soak.run", "top": ".tools.top.run",
}  # fmt: skip

_PIPE = 128 + 13  # a shell's exit code for a program ended by SIGPIPE


class _Parser(argparse.ArgumentParser):
    """Masks the passwords of misplaced addresses in error messages."""

    given: Sequence[str] = ()

    def error(self, message: str) -> NoReturn:
        for argument in self.given:
            for text in (argument, argument.partition("=")[2]):
                hidden = masked(text)
                if text and hidden != text:
                    message = message.replace(repr(text), repr(hidden)).replace(text, hidden)
        super().error(without_secrets(message))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return the exit code.

    Args:
        arguments: The command line; ``None`` means ``sys.argv``.

    Raises:
        SystemExit: After printing help or the version (0), or for an invalid option (2).
    """
    _Parser.given = sys.argv[1:] if arguments is None else arguments
    parser = _Parser(
        prog="python -m pooling", description="Fair, bounded, self-healing pools for threads."
    )
    parser.add_argument("--version", action="version", version=f"pooling {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="command")
    for name, module in _COMMANDS.items():
        command = importlib.import_module(module, __package__)
        subparser = commands.add_parser(name, help=command.HELP, description=command.DESCRIPTION)
        command.add_arguments(subparser)
        subparser.set_defaults(run=command.run, parser=subparser)
    options = parser.parse_args(arguments)
    if "run" not in options:
        parser.print_help()
        return 0
    code: int = options.run(options, options.parser)
    return code


def _run() -> int:
    """Run the command of this process, without a traceback if the output is cut off (``| head``)."""
    try:
        code = main()
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at exit
        return _PIPE


if __name__ == "__main__":
    sys.exit(_run())

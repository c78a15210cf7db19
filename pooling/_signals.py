"""Signals that end a ``with`` block, on request."""

from __future__ import annotations

import logging
import signal
import sys
import threading
from collections.abc import Iterable
from types import FrameType
from typing import Any

from ._fields import fields

__all__ = ["SignalWatch", "server_around"]

logger = logging.getLogger("pooling")

_SERVERS = {"uwsgi": "uWSGI", "gunicorn.arbiter": "gunicorn"}


def server_around() -> str | None:
    """Return the server that runs this process and handles its signals, or ``None``."""
    if hasattr(sys.modules.get("mod_wsgi"), "process_group"):  # only inside Apache; the package of this name has none
        return "mod_wsgi"
    return next((name for module, name in _SERVERS.items() if module in sys.modules), None)


class SignalWatch:
    """Turns signals into an exception in the main thread.

    A handler that was installed before is called instead and decides. Where
    the default would end the process, ``SystemExit`` is raised (with the code
    128 + number, as in shells), so that ``finally`` and ``with`` blocks run.
    Ignored signals stay ignored.

    Args:
        numbers: The signals.
    """

    def __init__(self, numbers: Iterable[signal.Signals]) -> None:
        self._numbers = tuple(numbers)
        self._before: dict[signal.Signals, Any] = {}
        self.seen: signal.Signals | None = None

    def install(self) -> bool:
        """Install the handlers; ``False``, with a line in the log, where that is not possible."""
        server = server_around()
        if server is not None:
            logger.info(
                "signal handlers not installed: %s runs this process and handles its signals", server,
                extra=fields("no_signal_handlers", what=server),
            )  # fmt: skip
            return False
        if threading.current_thread() is not threading.main_thread():
            extra = fields("no_signal_handlers", what="not the main thread")
            logger.warning("signal handlers not installed: this is not the main thread", extra=extra)
            return False
        for number in self._numbers:
            before = signal.getsignal(number)
            if before is not signal.SIG_IGN and before is not None:  # None: installed outside Python
                self._before[number] = before
                signal.signal(number, self._handle)
        return True

    def restore(self) -> None:
        """Restore the previous handlers, except where another one was installed since."""
        for number, before in self._before.items():
            if signal.getsignal(number) == self._handle:
                signal.signal(number, before)
        self._before.clear()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.seen = signal.Signals(number)
        before = self._before.get(self.seen, signal.SIG_DFL)
        if callable(before):
            before(number, frame)
        else:
            raise SystemExit(128 + number)

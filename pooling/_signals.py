"""Signals as the end of a ``with`` block, for those who ask for it."""

from __future__ import annotations

import logging
import signal
import sys
import threading
from collections.abc import Iterable
from types import FrameType
from typing import Any

__all__ = ["SignalWatch", "server_around"]

logger = logging.getLogger("pooling")

_SERVERS = {"uwsgi": "uWSGI", "gunicorn.arbiter": "gunicorn"}


def server_around() -> str | None:
    """Return which server runs this process and handles its signals, or ``None``."""
    return next((name for module, name in _SERVERS.items() if module in sys.modules), None)


class SignalWatch:
    """Turns signals into an exception in the main thread, after whoever handled them before.

    A handler that was installed before is called, and decides. Where the
    default is to end the process, ``SystemExit`` is raised instead (with the
    code 128 + number, as shells say), so that ``finally`` and ``with`` blocks
    do their work. What is ignored stays ignored.

    Args:
        numbers: Which signals.
    """

    def __init__(self, numbers: Iterable[signal.Signals]) -> None:
        self._numbers = tuple(numbers)
        self._before: dict[signal.Signals, Any] = {}
        self.seen: signal.Signals | None = None

    def install(self) -> bool:
        """Begin to watch; ``False`` if that is not ours to do, and the log says why."""
        server = server_around()
        if server is not None:
            logger.info("signals stay with %s, which runs this process", server)
            return False
        if threading.current_thread() is not threading.main_thread():
            logger.warning("signals are not handled: that takes the main thread")
            return False
        for number in self._numbers:
            before = signal.getsignal(number)
            if before is not signal.SIG_IGN and before is not None:  # None: not Python's
                self._before[number] = before
                signal.signal(number, self._handle)
        return True

    def restore(self) -> None:
        """Put back what was there, unless somebody else has come after us."""
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

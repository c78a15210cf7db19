"""The terminal from start to restore: the screen, signals, suspend and resume."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
from types import TracebackType
from typing import Any

from rich.console import Console, RenderableType
from rich.live import Live

from .keys import Keys

__all__ = ["Terminal"]

_ENDING = ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGBREAK")
_OTHERS = ("SIGWINCH", "SIGTSTP", "SIGCONT")
_RESTORE_SCREEN = b"\x1b[?1049l\x1b[?25h"


class Terminal:
    """The whole screen, and the keys. As it was before when the ``with`` block ends, however it ends.

    Signals are noted, and end `wait`; so none interrupts a line that is being
    written. A second one ends the process at once, with the terminal restored.
    For the main thread.

    Attributes:
        ended: The signal that ends the program, 0 if none came.
    """

    def __init__(self, console: Console) -> None:
        self.ended = 0
        self._console = console
        self._keys = Keys()
        self._live: Live | None = None
        self._before: dict[int, Any] = {}
        self._stop = self._resumed = False
        self._alarm, self._bell = -1, -1  # a pipe: each signal writes a byte, which ends select()
        self._silent = logging.NullHandler()  # a warning of the library's would be written over the screen

    def __enter__(self) -> Terminal:
        logging.getLogger("pooling").addHandler(self._silent)
        try:
            if sys.platform != "win32":
                self._alarm, self._bell = os.pipe()
                os.set_blocking(self._alarm, False)
                os.set_blocking(self._bell, False)
                signal.set_wakeup_fd(self._bell, warn_on_full_buffer=False)
            for name in (*_ENDING, *_OTHERS):
                number = getattr(signal, name, None)
                # Respect a SIGHUP ignored by nohup.
                if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._note)
            self._open()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            with contextlib.suppress(OSError):  # the terminal is gone
                self._close()
        finally:
            for number, before in self._before.items():
                signal.signal(number, signal.SIG_DFL if before is None else before)
            if self._bell >= 0:
                signal.set_wakeup_fd(-1)
                os.close(self._alarm)
                os.close(self._bell)
            logging.getLogger("pooling").removeHandler(self._silent)

    def draw(self, picture: RenderableType) -> None:
        """Replace what the screen shows."""
        assert self._live is not None
        self._live.update(picture, refresh=True)

    def wait(self, seconds: float) -> list[str]:
        """Return keys as soon as some are pressed; an empty list after the time, a signal or a resize.

        Raises:
            EOFError: The terminal is gone.
        """
        keys = self._keys.wait(seconds, self._alarm)
        if self._alarm >= 0:
            with contextlib.suppress(BlockingIOError):
                os.read(self._alarm, 4096)
        if self._stop:
            self._suspend()
        elif self._resumed:  # after a SIGSTOP, meanwhile the shell has used the terminal
            self._close()
            self._open()
        self._stop = self._resumed = False
        return keys

    def _open(self) -> None:
        self._keys.open()
        self._live = Live(
            console=self._console, screen=True, auto_refresh=False, redirect_stdout=False, redirect_stderr=False
        )
        self._live.start()

    def _close(self) -> None:
        try:
            if self._live is not None:
                self._live.stop()
        finally:
            self._keys.close()

    def _suspend(self) -> None:
        """Stop like any other program after Ctrl-Z; returns when the shell continues it."""
        if sys.platform != "win32":
            self._close()
            signal.signal(signal.SIGTSTP, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGTSTP)
            signal.signal(signal.SIGTSTP, self._note)
            self._open()

    def _note(self, number: int, frame: object) -> None:
        if number == getattr(signal, "SIGTSTP", None):
            self._stop = True
        elif number == getattr(signal, "SIGCONT", None):
            self._resumed = True
        elif number != getattr(signal, "SIGWINCH", None):
            if self.ended:
                self._keys.close()
                os.write(sys.stdout.fileno(), _RESTORE_SCREEN)
                os._exit(128 + number)
            self.ended = number

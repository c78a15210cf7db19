"""Keys as they are pressed, from POSIX and Windows terminals."""

from __future__ import annotations

import re
import sys
import time

__all__ = ["Keys", "decode"]

_NAMED = {
    "\t": "tab", "\x1b": "escape", "\x1b[Z": "backtab",
    "\x1b[A": "up", "\x1b[B": "down", "\x1b[C": "right", "\x1b[D": "left",
    "\x1bOA": "up", "\x1bOB": "down", "\x1bOC": "right", "\x1bOD": "left",
    "\x1b[5~": "page up", "\x1b[6~": "page down",
    "\x1b[H": "home", "\x1b[F": "end", "\x1bOH": "home", "\x1bOF": "end",
    "\x1b[1~": "home", "\x1b[4~": "end", "\x1b[7~": "home", "\x1b[8~": "end",
    "\x1bOP": "?", "\x1b[11~": "?", "g": "home", "G": "end", "\x03": "interrupt",
}  # fmt: skip
_ONE = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1bO.|\x1b.|.", re.DOTALL)

# The second character of a key that msvcrt reports with two.
_WINDOWS = {
    "H": "up", "P": "down", "M": "right", "K": "left", "I": "page up", "Q": "page down", "G": "home", "O": "end",
    ";": "?", "\x0f": "backtab",
}  # fmt: skip
_POLL, _MOMENT = 0.05, 0.2  # seconds


def decode(typed: str) -> list[str]:
    """Return the keys that a terminal sent: ``a``, or a name such as ``page up``; unknown sequences as they are."""
    return [_NAMED.get(one, one) for one in _ONE.findall(typed)]


if sys.platform == "win32":
    import msvcrt

    class Keys:
        """Reads keys without a line ending and without echo."""

        def open(self) -> None: ...

        def close(self) -> None: ...

        def wait(self, seconds: float, alarm: int) -> list[str]:
            """Return the keys pressed; an empty list after a moment, because no signal or resize ends a sleep."""
            deadline = time.monotonic() + min(seconds, _MOMENT)
            while not msvcrt.kbhit():
                if time.monotonic() >= deadline:
                    return []
                time.sleep(_POLL)
            key = msvcrt.getwch()
            return [_WINDOWS.get(msvcrt.getwch(), "")] if key in ("\0", "\xe0") else decode(key)

else:
    import errno
    import os
    import select
    import termios
    import tty
    from collections.abc import Callable
    from typing import Any

    class Keys:
        """Reads keys without a line ending and without echo, if the standard input is a terminal."""

        def __init__(self) -> None:
            self._descriptor = sys.stdin.fileno() if sys.stdin is not None and sys.stdin.isatty() else -1
            self._before: list[Any] | None = None

        def open(self) -> None:
            """Change the terminal's settings. A process in the background stops here, until it is in the foreground.

            Raises:
                OSError: The terminal is gone.
            """
            if self._descriptor >= 0:
                self._before = _insist(lambda: termios.tcgetattr(self._descriptor))
                _insist(lambda: tty.setcbreak(self._descriptor, termios.TCSANOW))

        def close(self) -> None:
            """Restore the terminal's settings. Idempotent.

            Raises:
                OSError: The terminal is gone.
            """
            before, self._before = self._before, None
            if before is not None:
                # At once: after a Ctrl-S, waiting for the output to be written would take for ever.
                _insist(lambda: termios.tcsetattr(self._descriptor, termios.TCSANOW, before))

        def wait(self, seconds: float, alarm: int) -> list[str]:
            """Return the keys pressed; an empty list after the time, or when something can be read from ``alarm``.

            Raises:
                EOFError: The terminal is gone.
            """
            sources = [alarm] if self._descriptor < 0 else [self._descriptor, alarm]
            ready, _, _ = select.select(sources, [], [], seconds)
            if self._descriptor not in ready:
                return []
            try:
                typed = os.read(self._descriptor, 4096)
            except OSError as error:
                raise EOFError from error
            if not typed:
                raise EOFError
            return decode(typed.decode(errors="replace"))

    def _insist(call: Callable[[], Any]) -> Any:
        """Repeat a call that a signal interrupted, as Python does elsewhere."""
        while True:
            try:
                return call()
            except termios.error as error:
                if error.args[0] != errno.EINTR:
                    raise OSError(*error.args) from error

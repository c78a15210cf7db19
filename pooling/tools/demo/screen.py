"""The demo's output: lines, and a progress line that is updated in place."""

from __future__ import annotations

import threading
import time
from typing import TextIO

__all__ = ["Screen"]

class Screen:
    """Writes to a terminal, where progress stays on one line, or to any other stream.

    Args:
        stream: Usually the standard output.
        seconds_a_line: Seconds between two progress lines, if the stream is not a terminal.
    """

    def __init__(self, stream: TextIO, seconds_a_line: float = 1.0) -> None:
        self._stream = stream
        self._seconds_a_line = seconds_a_line
        self._terminal = stream.isatty()
        self._lock = threading.Lock()
        self._closed = False  # guarded by _lock, like the rest
        self._shown = 0  # characters of progress on the current line
        self._due = 0.0
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal without the letter µ

    def say(self, text: str) -> None:
        """Write whole lines."""
        with self._lock:
            if not self._closed:
                self._write(text + "\n")

    def progress(self, text: str) -> None:
        """Show progress: at once on a terminal, occasionally elsewhere."""
        with self._lock:
            if self._closed:
                return
            if self._terminal:
                self._write(text)
                self._shown = len(text)
            elif time.monotonic() >= self._due:
                self._write(text + "\n")
                self._due = time.monotonic() + self._seconds_a_line

    def close(self, text: str) -> None:
        """Write a last line; later output of other threads is dropped."""
        self.say(text)
        with self._lock:
            self._closed = True

    def _write(self, text: str) -> None:
        if self._shown:
            self._stream.write("\r" + " " * self._shown + "\r")
            self._shown = 0
        self._stream.write(text)
        self._stream.flush()

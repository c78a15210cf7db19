"""How all commands write: durations, tables, colours, marks, and progress that is updated in place.

Colours need a terminal. ``NO_COLOR`` switches them off (https://no-color.org), and so does ``TERM=dumb``.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from typing import Any, TextIO

__all__ = ["MARKS", "Paint", "Screen", "duration", "left", "marked", "table", "times", "verdict_line"]

_CODES = {"good": "32", "warning": "33", "bad": "1;31", "faint": "2", "title": "1"}

MARKS = {True: ("ok", "good"), False: ("BAD", "bad"), None: ("--", "faint")}
"""How a line of a verdict begins: the word and its colour, by whether it is good; ``None`` if there is no result."""


def duration(seconds: float) -> str:
    """Return a duration in a suitable unit, with three digits."""
    if seconds < 0.000_999_5:
        return f"{seconds * 1e6:.0f} µs"
    if seconds < 0.9995:
        return f"{seconds * 1e3:.3g} ms"
    if seconds < 119.95:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.3g} min" if seconds < 59_970 else f"{seconds / 3600:,.0f} h"


def times(number: int) -> str:
    """Return how often, in words: ``once``, ``1,234 times``."""
    return "once" if number == 1 else f"{number:,} times"


def left(done: float, total: float, passed: float) -> str:
    """Return the estimate of a progress line: ``12 s left``; an empty string while nothing is known.

    Args:
        done: How much is done.
        total: How much there is.
        passed: Seconds that it took so far.
    """
    if done <= 0:
        return ""
    seconds = max(0.0, passed * (total - done) / done)
    if seconds < 90:
        return f"{seconds:.0f} s left"
    return f"{seconds / 60:.0f} min left" if seconds < 5400 else f"{seconds / 3600:.1f} h left"


def table(rows: Iterable[Sequence[str]], texts: int = 1) -> list[str]:
    """Return aligned lines.

    Args:
        rows: The cells; all rows have the same number.
        texts: How many columns, from the left, are texts; the others are numbers, which are aligned on the right.
    """
    found = list(rows)
    widths = [max(map(len, column)) for column in zip(*found)]
    lines = []
    for row in found:
        cells = [cell.ljust(width) for cell, width in zip(row[:texts], widths)]
        cells += [cell.rjust(width) for cell, width in zip(row[texts:], widths[texts:])]
        lines.append("  ".join(cells).rstrip())
    return lines


def marked(mark: str, text: str, indent: int = 0, width: int = 100) -> str:
    """Return a line that begins with a mark; a long text goes on below its beginning.

    Args:
        mark: Already padded, without colour.
        text: What follows.
        indent: Spaces before the mark.
        width: Of a line, in characters.
    """
    import textwrap  # here: `pooling` itself does without it

    begin = " " * indent + mark
    return textwrap.fill(
        text, width, initial_indent=begin, subsequent_indent=" " * len(begin), break_long_words=False,
        break_on_hyphens=False,
    )  # fmt: skip


def verdict_line(good: bool | None, name: str, text: str, width: int, paint: Paint, indent: int = 0) -> str:
    """Return one line of a verdict: the mark in its colour, the name, and what was seen.

    Args:
        good: Whether it is; ``None`` if there is no result.
        name: What was judged.
        text: What was seen.
        width: Of the column of names.
        paint: The colours.
        indent: Spaces at the beginning.
    """
    word, role = MARKS[good]
    return marked(f"{word:4} {name:{width}} ", text, indent).replace(word, paint(role, word), 1)


class Paint:
    """Colours for one stream; without a terminal, or with ``NO_COLOR``, it changes nothing.

    Args:
        stream: Where the text goes; ``None`` means the standard output.
    """

    def __init__(self, stream: Any = None) -> None:
        stream = sys.stdout if stream is None else stream
        self.on = (
            bool(getattr(stream, "isatty", bool)())
            and not os.environ.get("NO_COLOR")
            and os.environ.get("TERM") not in ("dumb", "unknown")
            and (sys.platform != "win32" or "WT_SESSION" in os.environ)  # other consoles there show the codes
        )
        """Whether there are colours."""

    def __call__(self, role: str, text: str) -> str:
        """Return a text in the colour of a role: ``good``, ``warning``, ``bad``, ``faint`` or ``title``."""
        return f"\x1b[{_CODES[role]}m{text}\x1b[0m" if self.on and role in _CODES else text

    def words(self, text: str, roles: dict[str, str]) -> str:
        """Return a text in which some words, each followed by a space, begin a line in a colour."""
        lines = []
        for line in text.split("\n"):
            for word, role in roles.items():
                if line.lstrip().startswith(f"{word} "):
                    line = line.replace(word, self(role, word), 1)
                    break
            lines.append(line)
        return "\n".join(lines)


class Screen:
    """Writes to a terminal, where progress stays on one line, or to any other stream.

    Args:
        stream: Usually the standard output.
        seconds_a_line: Seconds between two progress lines, if the stream is not a terminal.

    Attributes:
        paint: The colours of the stream.
    """

    def __init__(self, stream: TextIO, seconds_a_line: float = 1.0) -> None:
        self.paint = Paint(stream)
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
                text = text[: self._width() - 1]  # a second line would stay
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

    def _width(self) -> int:
        try:
            return os.get_terminal_size(self._stream.fileno()).columns or 80
        except (OSError, ValueError):
            return 80

    def _write(self, text: str) -> None:
        if self._shown:
            self._stream.write("\r" + " " * self._shown + "\r")
            self._shown = 0
        self._stream.write(text)
        self._stream.flush()

"""Progress on a terminal: a bar with rich, where it is installed, otherwise text."""

from __future__ import annotations

import importlib.util
import sys
import time
from types import TracebackType
from typing import Any, TextIO

__all__ = ["Progress"]


class Progress:
    """Shows how far something is, and how long it will still take.

    Args:
        label: What is done.
        total: When it is complete.
        stream: Where to; ``None`` means the standard output.
    """

    def __init__(self, label: str, total: float, stream: TextIO | None = None) -> None:
        self._label, self._total = label, total
        self._stream = sys.stdout if stream is None else stream
        self._terminal = self._stream.isatty()
        self._began = self._due = time.monotonic()
        self._shown = 0  # characters on the current line of a terminal
        self._bar: Any = None
        if self._terminal and importlib.util.find_spec("rich") is not None:
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

            self._bar = Progress(
                TextColumn(f"{label:9}"), BarColumn(), TextColumn("{task.fields[text]}"), TimeRemainingColumn(),
                console=Console(file=self._stream), transient=True,
            )  # fmt: skip
            self._task = self._bar.add_task(label, total=total, text="")

    def __enter__(self) -> Progress:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        self._clear()

    def update(self, done: float, text: str) -> None:
        """Show the state: at once on a terminal, once a second elsewhere."""
        if self._bar is not None:
            self._bar.update(self._task, completed=done, text=text)
            return
        now = time.monotonic()
        if not self._terminal and now < self._due:
            return
        self._due = now + 1.0
        left = (now - self._began) * (self._total - done) / done if done else None
        line = f"{self._label:9} {text}" + ("" if left is None else f"  {left:.0f} s left")
        self._clear()
        self._stream.write(line if self._terminal else line + "\n")
        self._stream.flush()
        self._shown = len(line) if self._terminal else 0

    def say(self, text: str) -> None:
        """Write a line above the progress."""
        if self._bar is not None:
            self._bar.console.print(text, highlight=False, markup=False, soft_wrap=True)
            return
        self._clear()
        self._stream.write(text + "\n")
        self._stream.flush()

    def _clear(self) -> None:
        if self._shown:
            self._stream.write("\r" + " " * self._shown + "\r")
            self._shown = 0

"""Who holds what since when, in words (P12).

A lease stores the caller's code object and instruction offset, which costs
nanoseconds; the line number is worked out here, when somebody asks.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable
from types import CodeType

from .entry import Entry
from .threads import patched
from .words import printable

__all__ = ["Holder", "holders_of", "describe", "place_of"]


class Holder:
    """One lease that is out.

    Attributes:
        file, line, function: Where it was acquired.
        thread: The name of the thread that acquired it.
        seconds: For how long.
    """

    __slots__ = ("file", "line", "function", "thread", "seconds")

    def __init__(self, file: str, line: int, function: str, thread: str, seconds: float) -> None:
        self.file = file
        self.line = line
        self.function = function
        self.thread = thread
        self.seconds = seconds

    def __repr__(self) -> str:
        return f"<Holder {self}>"

    def __str__(self) -> str:
        place = f"{os.path.basename(self.file)}:{self.line} {self.function}()"
        return printable(f"{place} in {self.thread} for {self.seconds:.1f} s")


def holders_of(entries: Iterable[Entry], now: float) -> list[Holder]:
    """Return the holders of these entries, the longest first."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    found = [_holder(entry, now, names) for entry in entries]
    return sorted(found, key=lambda holder: -holder.seconds)


def describe(holders: list[Holder], most: int = 5) -> str:
    """Return one line for all holders, those of the same place together.

    ``views.py:88 checkout() in Thread-4 for 41.2 s ×7; tasks.py:12 ...``
    """
    groups: dict[tuple[str, int, str], list[Holder]] = {}
    for holder in holders:
        groups.setdefault((holder.file, holder.line, holder.function), []).append(holder)
    parts = [
        str(group[0]) + (f" ×{len(group)}" if len(group) > 1 else "")
        for group in list(groups.values())[:most]
    ]
    if len(groups) > most:
        parts.append(f"and {len(groups) - most} more places")
    return "; ".join(parts)


def place_of(entry: Entry) -> str:
    """Return where an entry was acquired last."""
    if entry.code is None:
        return "an unknown place (track_holders is off)"
    line = _line(entry.code, entry.lasti)
    return f"{entry.code.co_filename}:{line} {entry.code.co_name}()"


def _holder(entry: Entry, now: float, names: dict[int | None, str]) -> Holder:
    code, seconds = entry.code, max(0.0, now - entry.since)
    nameless = f"greenlet {entry.thread}" if patched() else f"thread {entry.thread} (ended)"
    thread = names.get(entry.thread, nameless)
    if code is None:
        return Holder("?", 0, "?", "an untracked thread", seconds)
    return Holder(code.co_filename, _line(code, entry.lasti), code.co_name, thread, seconds)


def _line(code: CodeType, offset: int) -> int:
    for start, end, line in code.co_lines():
        if start <= offset < end and line is not None:
            return line
    return code.co_firstlineno

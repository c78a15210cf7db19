"""Holders of resources, for messages: where each was acquired, by which thread, for how long (P12).

A lease stores the caller's code object and instruction offset, which costs
nanoseconds; the line number is computed here, on demand.

Of its thread a lease stores the identifier. That is enough while the thread
lives. After it has ended, its name is gone from `threading`, and another thread
may have the identifier. So the slow paths also store the thread's `Borrower`,
which outlives the thread and records when it ended.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterable
from types import CodeType, FrameType
from typing import Any

from ..entry import Entry
from ..runtime.gevent import patched
from .messages import printable

__all__ = ["Borrower", "Holder", "borrower", "depth_of_borrower", "describe", "has_ended", "holders_of", "place_of"]


class Borrower:
    """A thread, or greenlet, as a holder of leases.

    Attributes:
        name: The name of the thread; ``None`` if `threading` does not know it.
        ended: When it ended, by ``time.monotonic``; ``None`` while it lives.
    """

    __slots__ = ("name", "ended")

    def __init__(self, name: str | None) -> None:
        self.name = name
        self.ended: float | None = None


class _Life:
    """Held in a thread-local variable only: destroyed when its thread ends."""

    __slots__ = ("borrower", "_now")

    def __init__(self, borrower: Borrower) -> None:
        self._now = time.monotonic  # bound here: at exit the module may be gone
        self.borrower = borrower

    def __del__(self) -> None:
        borrower: Borrower | None = getattr(self, "borrower", None)  # None: `__init__` was interrupted
        if borrower is not None:
            borrower.ended = self._now()


_local: Any = threading.local()


def borrower() -> Borrower:
    """Return the record of the calling thread, created at its first call."""
    global _local
    life: _Life | None = getattr(_local, "life", None)
    if life is None:
        if type(_local) is not threading.local:  # gevent has replaced it
            _local = threading.local()
        # Not `current_thread`, which creates a dummy thread object for a foreign thread.
        thread = getattr(threading, "_active", {}).get(threading.get_ident())
        _local.life = life = _Life(Borrower(None if thread is None else thread.name))
    return life.borrower


def depth_of_borrower(between: tuple[str, ...]) -> int:
    """Return the depth for `Pool.acquire` that makes the application's code the holder, for the caller to pass on.

    The holder is the innermost frame above the caller that is not in one of
    the modules between the pool and the application.

    Args:
        between: Prefixes of these modules' names.
    """
    frame: FrameType = sys._getframe(2)  # the frame above the caller, seen from `Pool.acquire` as from here
    depth = 2
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith(between):
        frame, depth = frame.f_back, depth + 1
    return depth


class Holder:
    """A lease in use.

    Attributes:
        file, line, function: Where it was acquired.
        thread: The name of the thread that acquired it.
        seconds: How long it has been held.
        ended: How many seconds ago that thread ended; ``None`` if it lives, or
            if that is not known.
        lane: The lane of the lease; ``None`` in a pool without lanes.
    """

    __slots__ = ("file", "line", "function", "thread", "seconds", "ended", "lane")

    def __init__(
        self, file: str, line: int, function: str, thread: str, seconds: float, ended: float | None = None,
        lane: str | None = None,
    ) -> None:  # fmt: skip
        self.file = file
        self.line = line
        self.function = function
        self.thread = thread
        self.seconds = seconds
        self.ended = ended
        self.lane = lane

    def __repr__(self) -> str:
        return f"<Holder {self}>"

    def __str__(self) -> str:
        place = f"{os.path.basename(self.file)}:{self.line} {self.function}()"
        ended = "" if self.ended is None else f", ended {self.ended:.0f} s ago,"
        lane = "" if self.lane is None else f", lane {self.lane}"
        return printable(f"{place} in {self.thread}{ended} for {self.seconds:.1f} s{lane}")


def holders_of(entries: Iterable[Entry], now: float) -> list[Holder]:
    """Return the holders of these entries, the longest first."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    found = [_holder(entry, now, names) for entry in entries]
    return sorted(found, key=lambda holder: -holder.seconds)


def describe(holders: list[Holder], most: int = 5) -> str:
    """Return one line for all holders, grouped by place, and by lane.

    ``views.py:88 checkout() in Thread-4 for 41.2 s ×7; tasks.py:12 ...``
    """
    groups: dict[tuple[str, int, str, str | None], list[Holder]] = {}
    for holder in holders:
        groups.setdefault((holder.file, holder.line, holder.function, holder.lane), []).append(holder)
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


def has_ended(entry: Entry) -> bool:
    """Whether the thread that acquired an entry is known to have ended: its identifier may be used again."""
    who = _borrower_of(entry)
    return who is not None and who.ended is not None


def _borrower_of(entry: Entry) -> Borrower | None:
    """Return the borrower of the current lease, if it was recorded when the lease began."""
    noted: tuple[Borrower, float] | None = entry.borrower
    return noted[0] if noted is not None and noted[1] == entry.since else None


def _holder(entry: Entry, now: float, names: dict[int | None, str]) -> Holder:
    code, seconds, lane = entry.code, max(0.0, now - entry.since), getattr(getattr(entry, "lane", None), "name", None)
    number = f"{'greenlet' if patched() else 'thread'} {entry.thread}"
    thread, ended = names.get(entry.thread) or (number if patched() else f"{number} (ended)"), None
    who = _borrower_of(entry)
    if who is not None and who.ended is not None:
        thread, ended = who.name or number, max(0.0, time.monotonic() - who.ended)
    if code is None:
        return Holder("?", 0, "?", "an untracked thread", seconds, lane=lane)
    return Holder(code.co_filename, _line(code, entry.lasti), code.co_name, thread, seconds, ended, lane)


def _line(code: CodeType, offset: int) -> int:
    for start, end, line in code.co_lines():
        if start <= offset < end and line is not None:
            return line
    return code.co_firstlineno

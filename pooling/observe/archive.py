"""The minutes and incidents of an application that its processes do not record themselves any more.

They are the second record of the file ``retired``: those of processes that have
ended, and what live ones have moved there a few minutes after it happened. The
record says what it includes of which file. So nothing is counted twice if a
process is killed before it has removed it from its own.
"""

from __future__ import annotations

import json
from collections.abc import Container
from typing import Any

from .minutes import Book, by_start, compact, sum_of
from .slotfile import SlotFile

__all__ = ["MOST_BYTES", "Archive"]

MOST_BYTES = 4 << 20
"""With more, the history is shorter."""

_RETENTION = 86400.0  # seconds
_MOST_EVENTS = 200
_ALL = 1 << 62


class Archive:
    """The second record of ``retired``. Its user has the directory for itself.

    Args:
        retired: The open file.
        known: What was read before; what is known already is not read again.
    """

    def __init__(self, retired: SlotFile, known: Archive | None = None) -> None:
        self._file = SlotFile(retired.descriptor, part=1)
        record = self._file.read()
        self.number = 0 if record is None else record.number
        if known is None or known.number != self.number:
            known = None
        found: dict[str, Any] = json.loads(record.data) if known is None and record is not None else {}
        self.book: Book = known.book if known else by_start(found.get("minutes", {}))
        self.events: list[dict[str, Any]] = known.events if known else found.get("events", [])
        # By file: when the last minute begins that is included.
        self.taken: dict[str, int] = known.taken if known else found.get("taken", {})

    def after(self, name: str) -> int:
        """Return until which minute this includes those of a file."""
        return self.taken.get(name, 0)

    def take(self, name: str, minutes: Book, last: int) -> None:
        """Add the minutes of a file, which end with the one that begins at ``last``."""
        after = self.after(name)
        own = {pool: dict(several) for pool, several in self.book.items()}  # copied where it changes: others read it
        for pool, several in minutes.items():
            known = own.setdefault(pool, {})
            for start, minute in several.items():
                if start > after:
                    known[start] = sum_of(known[start], minute) if start in known else minute
        self.book, self.taken = own, {**self.taken, name: last}

    def add_ended(self, name: str, record: dict[str, Any]) -> None:
        """Add the last record of a process that has ended. What lasted ended with it."""
        self.take(name, by_start(record.get("minutes", {})), _ALL)
        self.events = [*self.events, *(
            {**one, "pid": record.get("pid", 0), "end": record["time"] if one["end"] is None else one["end"]}
            for one in record.get("events", ())
        )]  # fmt: skip

    def store(self, wall: float, names: Container[str]) -> None:
        """Write it.

        Args:
            wall: The time of day.
            names: The files that exist; the others need not be remembered.

        Raises:
            OSError, ValueError: As from `SlotFile.write`.
        """
        self.taken = {name: last for name, last in self.taken.items() if name in names}
        self.events = sorted(self.events, key=lambda one: float(one["start"]))[-_MOST_EVENTS:]
        retention = _RETENTION
        while True:
            book = compact(self.book, wall, retention)
            minutes = {name: list(several.values()) for name, several in book.items()}
            whole = {"minutes": minutes, "events": self.events, "taken": self.taken}
            data = json.dumps(whole, separators=(",", ":")).encode()
            if len(data) <= MOST_BYTES or retention < 3600:
                break
            retention /= 2
        self._file.write(data)
        self.number += 1
        self.book = book

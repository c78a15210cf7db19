"""Databases in memory that all connections of a pool share."""

from __future__ import annotations

import itertools
import os
import sqlite3
import weakref

from ...core.runtime.immortal import keep_forever

__all__ = ["SharedMemory"]

_numbers = itertools.count(1)


class SharedMemory:
    """A database in memory that all connections of one pool and one process share.

    SQLite deletes it with its last connection. One connection, the anchor, is
    therefore kept open until `drop`. A forked child gets an empty database of
    its own; the parent's is not touched there.

    Raises:
        ValueError: SQLite is older than 3.36.
    """

    def __init__(self) -> None:
        if sqlite3.sqlite_version_info < (3, 36):
            raise ValueError(
                "path: sharing a database in memory between connections needs SQLite 3.36, "
                f"and this is {sqlite3.sqlite_version}"
            )
        self._number = next(_numbers)
        self._anchors: dict[int, sqlite3.Connection] = {}  # by process id
        weakref.finalize(self, _close_anchor, self._anchors)  # also at interpreter exit

    def uri(self) -> str:
        """Return the URI of this process's database, which exists from now on."""
        pid = os.getpid()
        uri = f"file:/pooling-{pid}-{self._number}?vfs=memdb"
        if pid not in self._anchors:
            for inherited in self._anchors.values():
                keep_forever(inherited)
            anchor = sqlite3.connect(uri, uri=True, check_same_thread=False)
            if self._anchors.setdefault(pid, anchor) is not anchor:
                anchor.close()  # another thread was faster
        return uri

    def drop(self) -> None:
        """Delete the database as soon as no other connection to it is open."""
        _close_anchor(self._anchors)


def _close_anchor(anchors: dict[int, sqlite3.Connection]) -> None:
    anchor = anchors.pop(os.getpid(), None)
    if anchor is not None:
        anchor.close()

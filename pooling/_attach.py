"""Where watchers look for processes, and processes for watchers; see `pooling.observe.attach`.

`python -m pooling top` shows the pools of a running application without a change
in its code. For that a process with pools looks for a watcher about every
`EVERY` seconds: its reaper, if that runs anyway, asks for the time of one file.
Nothing else is done, imported or written while there is no watcher.
``POOLING_ATTACH=0`` switches it off.
"""

from __future__ import annotations

import os
import stat
import time

__all__ = ["EVERY", "VARIABLE", "WATCH", "WATCHED", "directories", "is_watched"]

VARIABLE = "POOLING_ATTACH"
"""The environment variable that switches it off, with ``0``."""

EVERY = 2.0
"""Seconds between two looks for a watcher."""

WATCH = "watch"
"""The file that a watcher touches."""

WATCHED = 5.0
"""Seconds after which a watcher that has not touched it again is gone."""


def directories() -> list[str]:
    """Return the private directories of this user: a process uses the first, a watcher looks in all.

    The environments of a service and of a shell may differ.
    """
    user = os.geteuid()
    temporary = [os.environ.get("TMPDIR") or "/tmp", "/tmp"]
    found = [
        os.path.join(path, "pooling") for path in (os.environ.get("XDG_RUNTIME_DIR"), f"/run/user/{user}")
        if path and _is_own(path, user)
    ]  # fmt: skip
    return list(dict.fromkeys([*found, *(os.path.join(path, f"pooling-{user}") for path in temporary)]))


def _is_own(path: str, user: int) -> bool:
    try:
        found = os.stat(path)
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == user


def is_watched(path: str, directory: int | None = None) -> bool:
    """Whether there is a watcher, according to the file that it touches.

    Args:
        path: Of that file.
        directory: A descriptor that the path is relative to.
    """
    try:
        return abs(time.time() - os.stat(path, dir_fd=directory).st_mtime) < WATCHED
    except OSError:
        return False

"""Where watchers look for processes, and processes for watchers; see `pooling.observe.attach`.

`python -m pooling top` shows the pools of a running application without a change
in its code. For that a process with pools looks for a watcher about every
`EVERY` seconds: its reaper, if that runs anyway, asks for the time of one file.
Nothing else is done, imported or written while there is no watcher.
``POOLING_ATTACH=0`` switches it off.
"""

from __future__ import annotations

import _thread
import importlib
import os
import queue
import stat
import sys
import threading
import time
from typing import Any

from ._masking import shown
from .core.clock import SYSTEM
from .core.runtime import registry
from .core.runtime.poolref import PoolRef
from .core.runtime.reaper import LISTENERS, OptionalRef, Reaper, SweepRequest

__all__ = ["EVERY", "CHECKS", "VARIABLE", "WATCH", "WATCHED", "directories", "is_watched", "offer", "WatcherCheck"]

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


_MODULE = "pooling.observe.attach"


class WatcherCheck:
    """Looks for a watcher, in the reaper."""

    def __init__(self) -> None:
        self._reference = OptionalRef(self)
        self._due = 0.0
        self._user: int | None = None
        self._path = ""

    def listen(self, reaper: Reaper, dropped: PoolRef | None) -> None:
        """Begin to look. Called by the reaper when its thread begins."""
        if dropped is None and not _is_uwsgi_master() and reaper in (one.current_reaper for one in registry.runtimes):
            self._due = SYSTEM.now()
            reaper.inbox.put(SweepRequest(self._reference, self._due))

    def sweep(self, due: float, now: float) -> bool:
        """Look, and have a worker attach this process if there is a watcher. Called by the reaper."""
        if due != self._due:
            return False  # requested by a thread that ended since
        runtime = registry.runtime_of(SYSTEM)
        self._due = now + EVERY
        runtime.reaper.post(SweepRequest(self._reference, self._due))
        user = os.geteuid()
        if user != self._user:  # servers change it after a fork
            self._user, self._path = user, directories()[0]
        if is_watched(f"{self._path}/{WATCH}"):
            runtime.workers.submit(_attach, self._path)
        return True


def _is_uwsgi_master() -> bool:
    """Whether this process forks workers in C: none of its threads should wake up without need meanwhile."""
    uwsgi = sys.modules.get("uwsgi")
    return uwsgi is not None and not uwsgi.worker_id()


class _Imports:
    """Keeps forks and the import apart: a child that is forked in the middle of it could never import these modules."""

    PATIENCE = 5.0  # seconds that a fork waits at most: its thread may hold what the import waits for

    def __init__(self) -> None:
        self.lock = _thread.allocate_lock()
        self.forking = 0  # the thread that forks and has the lock

    def before_fork(self) -> None:
        if self.lock.acquire(timeout=self.PATIENCE):
            self.forking = _thread.get_ident()

    def after_fork(self) -> None:
        if self.forking == _thread.get_ident():
            self.forking = 0
            self.lock.release()


_imports = _Imports()


def _import(done: Any) -> None:
    try:
        with _imports.lock:
            importlib.import_module(_MODULE)
    finally:
        done.put(None)


def _attach(path: str) -> None:
    if _MODULE not in sys.modules:
        # psutil registers the thread that imports it with `threading`, for good: so in one that ends.
        done: Any = queue.SimpleQueue()  # not `join`, which would register this thread
        threading.Thread(target=_import, args=(done,), daemon=True).start()
        done.get()
    importlib.import_module(_MODULE).attach(path)


CHECKS: list[WatcherCheck] = []
"""That of this process, once it is offered."""


def offer() -> None:
    """Look for watchers in this process and its children, wherever a pool is used. Called at import.

    Raises:
        ValueError: The environment variable is neither true nor false.
    """
    text = os.environ.get(VARIABLE, "").strip()
    wanted = {"": True, "1": True, "0": False}.get(text)
    if wanted is None:
        raise ValueError(f"{VARIABLE} must be 0 or 1, not {shown(text)}")
    if wanted and not CHECKS and sys.platform != "win32":  # which has no record locks
        CHECKS.append(WatcherCheck())
        LISTENERS.append(CHECKS[0].listen)
        os.register_at_fork(
            before=_imports.before_fork, after_in_parent=_imports.after_fork, after_in_child=_imports.after_fork
        )

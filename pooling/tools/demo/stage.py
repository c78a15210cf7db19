"""Cleans up when the demo ends, however it ends."""

from __future__ import annotations

import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from .child import Child, DemoError

__all__ = ["Stage", "Stopped"]


class Stopped(DemoError):
    """The demo was interrupted."""


class Stage:
    """Creates processes and files, and ends and removes all of them at the end.

    Another thread may stop it at any moment: this includes what is just being
    created, and nothing is created afterwards.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._stopped = False  # guarded by _lock, like the rest
        self._children: list[Child] = []
        self._undo: list[Callable[[], None]] = []

    def start(self, module: str) -> Child:
        """Start a process.

        Raises:
            Stopped: The stage was stopped.
        """
        with self._lock:
            self._check()
            child = Child(module)
            self._children.append(child)
            return child

    def folder(self) -> Path:
        """Create a temporary folder that only this user can read.

        Raises:
            Stopped: The stage was stopped.
        """
        with self._lock:
            self._check()
            folder = Path(tempfile.mkdtemp(prefix="pooling-demo-"))
            self._undo.append(lambda: _remove(folder))
            return folder

    def at_end(self, undo: Callable[[], None]) -> None:
        """Register ``undo`` to be called at the end, after the processes have ended.

        Raises:
            Stopped: The stage was stopped.
        """
        with self._lock:
            self._check()
            self._undo.append(undo)

    def _check(self) -> None:
        if self._stopped:
            raise Stopped("interrupted")

    def stop(self) -> None:
        """Kill the processes; threads that wait for one of them get an error."""
        with self._lock:
            self._stopped = True
            for child in self._children:
                child.kill()

    def clear(self) -> None:
        """Run the registered functions in reverse order.

        Raises:
            DemoError: One of them failed; all the others were run.
        """
        error: DemoError | None = None
        while self._undo:
            try:
                self._undo.pop()()
            except DemoError as first:
                error = error or first
        if error is not None:
            raise error


def _remove(folder: Path) -> None:
    """Remove a folder, retrying because Windows keeps the files of a killed process open for a moment."""
    for _ in range(50):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        time.sleep(0.1)
    raise DemoError(f"cannot remove {folder}")

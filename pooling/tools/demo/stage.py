"""What must be gone when the demo ends, however it ends."""

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
    """The demo is being ended from outside."""


class Stage:
    """Makes processes and files, and ends all of them when it closes.

    Another thread may stop it at any moment: what is being made then is ended
    too, and after that nothing more is made.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._stopped = False  # guarded by _lock, as the rest
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
        """Make a temporary folder that only this user can read.

        Raises:
            Stopped: The stage was stopped.
        """
        with self._lock:
            self._check()
            folder = Path(tempfile.mkdtemp(prefix="pooling-demo-"))
            self._undo.append(lambda: _remove(folder))
            return folder

    def at_end(self, undo: Callable[[], None]) -> None:
        """Have ``undo`` called at the end, when the processes have ended.

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
        """End the processes; whoever waits for one of them notices."""
        with self._lock:
            self._stopped = True
            for child in self._children:
                child.kill()

    def clear(self) -> None:
        """Undo the rest, the latest first.

        Raises:
            DemoError: Something could not be undone; all the rest was.
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
    """Remove a folder. Windows keeps the files of a killed process open for a moment."""
    for _ in range(50):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        time.sleep(0.1)
    raise DemoError(f"cannot remove {folder}")

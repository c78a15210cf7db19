"""What must be gone when the demo ends, however it ends."""

from __future__ import annotations

import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from .child import Child, DemoError

__all__ = ["Stage", "Stopped"]


class Stopped(DemoError):
    """The demo is being ended from outside."""


class Stage:
    """Makes processes and files, and ends all of them when it closes.

    Another thread may close it at any moment: what is being made then is ended
    too, and after that nothing more is made.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._closed = False  # guarded by _lock, as the rest
        self._children: list[Child] = []
        self._undo: list[Callable[[], None]] = []

    def start(self, module: str) -> Child:
        """Start a process.

        Raises:
            Stopped: The stage was closed.
        """
        with self._lock:
            self._check()
            child = Child(module)
            self._children.append(child)
            return child

    def folder(self) -> Path:
        """Make a temporary folder that only this user can read.

        Raises:
            Stopped: The stage was closed.
        """
        with self._lock:
            self._check()
            folder = Path(tempfile.mkdtemp(prefix="pooling-demo-"))
            self._undo.append(lambda: _remove(folder))
            return folder

    def at_end(self, undo: Callable[[], None]) -> None:
        """Have ``undo`` called at the end, after the processes ended and before what came earlier.

        Raises:
            Stopped: The stage was closed.
        """
        with self._lock:
            self._check()
            self._undo.append(undo)

    def _check(self) -> None:
        if self._closed:
            raise Stopped("interrupted")

    def close(self) -> None:
        """End everything, the latest first.

        Raises:
            DemoError: Something could not be ended; all the rest was.
        """
        with self._lock:
            self._closed = True
            for child in self._children:
                child.kill()
        error: DemoError | None = None
        while self._undo:
            try:
                self._undo.pop()()
            except DemoError as first:
                error = error or first
        if error is not None:
            raise error

    def __enter__(self) -> Stage:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _remove(folder: Path) -> None:
    """Remove a folder. Windows keeps the files of a killed process open for a moment."""
    for _ in range(50):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        time.sleep(0.1)
    raise DemoError(f"cannot remove {folder}")

"""Attaching to a running application without a change in its code.

A watcher touches the file `WATCH` in a private directory of the user, and a
process that finds it there (see `pooling._attach`) writes its figures to the
same directory, as with ``POOLING_METRICS_DIR``. When no watcher has touched the
file for `WATCHED` seconds, it stops, and removes its file; the last process
removes the others, too.

The directory is ``$XDG_RUNTIME_DIR/pooling`` or ``/run/user/UID/pooling``, where
there is one of these, else ``pooling-UID`` in the directory for temporary files.
It must belong to the user, and others must not be able to write to it. What does
not share it with the watcher cannot be attached to: other containers, services
with a private ``/tmp``, other users. These set ``POOLING_METRICS_DIR``.
"""

from __future__ import annotations

import atexit
import logging
import os

from .._attach import WATCH, directories, is_watched
from .._fields import fields
from ..core.runtime import registry
from ..core.runtime.poolref import PoolRef
from ..core.runtime.reaper import LISTENERS, OptionalRef, Reaper
from .shared import SharedDirectory
from .slotfile import open_private

__all__ = ["DefaultDirectory", "attach", "watchable"]

logger = logging.getLogger("pooling")



class DefaultDirectory(SharedDirectory):
    """A private directory of this user, for watchers and for processes that are watched."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.title = f"attaching to processes through {self.path}"
        self.reference = OptionalRef(self)  # a watcher does not keep the reaper running

    def open_directory(self) -> int:
        """Return a descriptor of the directory; never through a symbolic link, which another user may have made.

        Raises:
            OSError: As from `open_private`.
        """
        return open_private(self.path, follow=False)

    @property
    def has_watcher(self) -> bool:
        """Whether there is a watcher."""
        return is_watched(os.path.join(self.path, WATCH))

    def attach(self) -> None:
        """Write the figures of this process from now on, until the watcher is gone. Idempotent."""
        process = self.process()
        if not process.attached:
            process.attached = process.skips = self.writes = True
            for runtime in registry.runtimes:
                self.begin(runtime.reaper)

    def listen(self, reaper: Reaper, dropped: PoolRef | None) -> None:
        """Go on in a reaper that has begun again, or count a pool that was dropped. Called by the reaper."""
        if self.process().attached:
            super().listen(reaper, dropped)

    def step(self) -> None:
        """Write, or stop if the watcher is gone or nothing can be written."""
        if not (self.process().attached and self.has_watcher and self.write()):
            self.detach()

    def detach(self) -> None:
        """Write no more, and remove the file of this process."""
        process = self.process()
        if process.attached:
            process.attached = False
            self.observe_no_more()
            try:
                self.leave()
            except (OSError, ValueError):
                extra = fields("file_left", path=str(self.path))
                logger.debug("%s: its file could not be removed", self.title, exc_info=True, extra=extra)

    def finish(self) -> None:
        """Write for the last time for a watcher that is still there. Called at exit."""
        if self.process().attached:
            if self.has_watcher:
                self.write()
            else:
                self.detach()


_directories: dict[str, DefaultDirectory] = {}  # one for each path: a process opens each file only once


def _directory(path: str) -> DefaultDirectory:
    return _directories.setdefault(path, DefaultDirectory(path))


def attach(path: str) -> None:
    """Attach this process to the watchers of a directory."""
    directory = _directory(path)
    if directory.listen not in LISTENERS:
        LISTENERS.append(directory.listen)
        atexit.register(directory.finish)
    directory.attach()


def watchable() -> list[DefaultDirectory]:
    """Return the directories in which processes of this user may be found."""
    return [_directory(path) for path in directories()]

"""Attaching to a running application without a change in its code.

A watcher touches the file `WATCH` in a private directory of the user, and a
process that finds it there writes its figures to the same directory, as with
``POOLING_METRICS_DIR``, until the watcher is gone.
"""

from __future__ import annotations

from .._attach import directories
from .shared import SharedDirectory
from .slotfile import open_private

__all__ = ["DefaultDirectory", "watchable"]


class DefaultDirectory(SharedDirectory):
    """A private directory of this user, for watchers and for processes that are watched."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.title = f"attaching to processes through {self.path}"

    def open_directory(self) -> int:
        """Return a descriptor of the directory; never through a symbolic link, which another user may have made.

        Raises:
            OSError: As from `open_private`.
        """
        return open_private(self.path, follow=False)


def watchable() -> list[DefaultDirectory]:
    """Return the directories in which processes of this user may be found."""
    return [DefaultDirectory(path) for path in directories()]

"""Writes a summary at intervals: to a file, which is replaced atomically and rotated, or to a callable."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable, Mapping
from typing import Any

from .._fields import fields
from .._masking import shown
from ..core.report.messages import format_error

__all__ = ["Exporter", "Target"]

logger = logging.getLogger("pooling")

Target = str | os.PathLike[str] | Callable[[dict[str, Any]], object]


class Exporter:
    """One target of automatic exports.

    A failure is logged once, until an export succeeds again. While one export
    is under way no other begins, so a callable that hangs delays nothing else.

    Args:
        target: A file's path, in which ``{pid}`` stands for the process id, or
            a callable that gets the summary.
        every: Seconds between two exports.
        keep: Previous files that are kept, as ``path.1`` (the youngest), ``path.2``, ...

    Raises:
        TypeError, ValueError: The target is neither a path nor a callable, or ``keep`` is not a whole number from
            0 to 1000.
    """

    def __init__(self, target: Target, every: float, keep: int) -> None:
        if not callable(target) and not isinstance(target, (str, os.PathLike)):
            raise TypeError(f"export must be a path or a callable, not {shown(target)}")
        if isinstance(target, str) and not target.strip():
            raise ValueError("export must be a path or a callable, not an empty string")
        if isinstance(keep, bool) or not isinstance(keep, int):
            raise TypeError(f"keep must be a whole number, not {shown(keep)}")
        if not 0 <= keep <= 1000:
            raise ValueError(f"keep must be from 0 to 1000, not {keep}")
        self.target, self.every, self._keep = target, every, keep
        self.due = float("-inf")
        self._busy = 0  # the process in which an export is under way
        self._failed = False

    @property
    def to_file(self) -> bool:
        """Whether the target is a file."""
        return not callable(self.target)

    def run(self, summary: Callable[[], Mapping[str, Any]]) -> None:
        """Export now, unless an export is under way; a failure is logged, and raises nothing."""
        if self._busy == os.getpid():
            return
        self._busy = os.getpid()
        try:
            self._write(dict(summary()))
            self._failed = False
        except Exception as error:
            if not self._failed:
                self._failed = True
                target, why = self._shown(), format_error(error)
                extra = fields("export_failed", target=target, error=why)
                logger.warning("exporting metrics to %s failed: %s", target, why, extra=extra)
        finally:
            self._busy = 0

    def _shown(self) -> str:
        return shown(os.fspath(self.target)) if not callable(self.target) else getattr(
            self.target, "__qualname__", type(self.target).__name__
        )  # fmt: skip

    def _write(self, summary: dict[str, Any]) -> None:
        if callable(self.target):
            self.target(summary)
            return
        path = os.fsdecode(self.target).replace("{pid}", str(os.getpid()))
        write_atomically(path, json.dumps(summary, indent=2, default=str) + "\n", self._keep)


def write_atomically(path: str, text: str, keep: int = 0) -> None:
    """Write a file such that a reader finds the old or the new one, whole, at any time.

    Args:
        path: The file.
        text: Its content.
        keep: Previous files that are kept, as ``path.1`` (the youngest), ``path.2``, ...

    Raises:
        OSError: It cannot be written; the old one is still there.
    """
    beside = f"{path}.{os.getpid()}.tmp"
    try:
        with open(beside, "w", encoding="utf-8") as file:
            file.write(text)
        if keep:
            _rotate(path, keep)
        os.replace(beside, path)
    except BaseException:
        if os.path.exists(beside):
            os.unlink(beside)
        raise


def _rotate(path: str, keep: int) -> None:
    if not os.path.exists(path):
        return
    for number in range(keep - 1, 0, -1):
        try:
            os.replace(f"{path}.{number}", f"{path}.{number + 1}")
        except FileNotFoundError:
            continue
    copy = f"{path}.{os.getpid()}.old.tmp"
    try:
        os.link(path, copy)  # the file stays under its name until the new one replaces it
    except OSError:
        shutil.copyfile(path, copy)  # no hard links here
    os.replace(copy, f"{path}.1")

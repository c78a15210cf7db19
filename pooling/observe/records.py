"""Records as they are stored in the files of processes, see `local`."""

from __future__ import annotations

import json
import os
from typing import Any

from .figures import Figures, add_up
from .local import Record
from .slotfile import SlotFile

__all__ = ["counters_only", "encode", "read_record", "merge", "unlink"]


def encode(values: Record) -> bytes:
    """Return values as they are stored."""
    return json.dumps(values, separators=(",", ":")).encode()


def read_record(name: str, directory: int, whole: bool) -> tuple[Record, bool]:
    """Return what another process has written, all of it if it is dead, and whether that is so."""
    try:
        file = SlotFile.open(name, directory)
    except FileNotFoundError:
        return {}, False
    try:
        is_dead = file.lock()  # first: a dead process writes no more
        record = file.read()
    finally:
        file.close()
    if record is None:
        return {}, is_dead
    figures, _, details = record.data.partition(b"\n")
    found: Record = json.loads(figures)
    if details and (whole or is_dead):
        found.update(json.loads(details))
    return found, is_dead


def counters_only(snapshot: dict[str, Any]) -> dict[str, Figures]:
    """Return the figures of the pools of a record without those of the moment."""
    return {name: {"counters": one["counters"]} for name, one in snapshot.get("pools", {}).items()}


def merge(snapshots: list[dict[str, Any]]) -> dict[str, Figures]:
    """Return the figures of the pools of several records, added up."""
    by_name: dict[str, list[Figures]] = {}
    for snapshot in snapshots:
        for name, figures in snapshot.get("pools", {}).items():
            by_name.setdefault(name, []).append(figures)
    return {name: add_up(figures) for name, figures in by_name.items()}


def unlink(name: str, directory: int) -> None:
    """Remove a file; one that cannot be removed stays."""
    try:
        os.unlink(name, dir_fd=directory)
    except OSError:
        pass  # of a dead process: `retired` names it, so it is not counted again

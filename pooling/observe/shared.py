"""The figures of all processes of one application, through files in one directory.

::

    POOLING_METRICS_DIR=/run/shop/pooling gunicorn -w 4 shop:app

That is all: each process begins to write at its first use of a pool, however it
was forked, about once a second and only if something has changed. Any of them
can read the figures of all (`SharedDirectory.read`), as the collector of
`pooling.observe.prometheus` does.

- A process has one file, see `slotfile`. It is locked while the process lives.
- A reader that finds the file of a dead process adds its counters to the file
  ``retired``, and deletes it. So there are at most as many files as processes,
  and two.
- Readers take turns, by the lock of ``retired``. Each writes the figures of its
  own process first. So a counter never decreases, whichever process is asked.
- The record of ``retired`` names the files whose counters it includes. So
  nothing is counted twice if a reader is killed before it has deleted them.

A process that is killed takes along what it has counted since its last write:
at most that of the last `INTERVAL`. One that exits writes before it does.

The directory is created with mode 0700. It must belong to the user of the
process, and others must not be able to write to it.
"""

from __future__ import annotations

import atexit
import json
import logging
import os
import re
import secrets
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from .._fields import fields
from .._masking import shown
from ..core.clock import SYSTEM
from ..core.runtime import registry
from ..core.runtime.poolref import PoolRef
from ..core.runtime.reaper import LISTENERS, Reaper, SweepRequest
from .figures import Figures, add_up
from .local import PATIENCE, Local, Process, Source, Totals, pause
from .slotfile import SlotFile

__all__ = ["INTERVAL", "VARIABLE", "Local", "SharedDirectory", "Totals", "current", "share", "share_from_env"]

logger = logging.getLogger("pooling")

VARIABLE = "POOLING_METRICS_DIR"
"""The environment variable that names the directory."""

INTERVAL = 1.0
"""Seconds between two writes of a process."""

_EXIT_PATIENCE = 0.5  # seconds that a process which exits waits for a thread that writes
_RETIRED = "retired.v1"
_NAME = re.compile(r"\d+-[0-9a-f]{16}\.v1")


class SharedDirectory(Source):
    """A directory with the figures of all processes that share it.

    One made by hand only reads it; `share` and the environment variable make
    this process write, too.

    Args:
        path: The directory; it is created at the first use.

    Raises:
        TypeError, ValueError: ``path`` is not a path.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__()
        if not isinstance(path, (str, os.PathLike)):
            raise TypeError(f"path must be the path of a directory, not {shown(path)}")
        text = os.fspath(path)
        if not isinstance(text, str):
            raise TypeError(f"path must be the path of a directory as str, not {shown(text)}")
        if not text or "\0" in text:
            raise ValueError(f"path must be a non-empty path without null characters, not {shown(text)}")
        self.path = os.path.abspath(text)
        self._complained: set[tuple[int, str]] = set()
        self._hooked = False
        self.writes = False

    def __repr__(self) -> str:
        return f"<SharedDirectory {self.path!r}>"

    # -- write ----------------------------------------------------------------

    def listen(self, reaper: Reaper, dropped: PoolRef | None) -> None:
        """Begin to write, or count a pool that was dropped. Called by the reaper, at the first use of a pool."""
        super().listen(reaper, dropped)
        if dropped is None and reaper in (runtime._reaper for runtime in registry.runtimes):
            process = self.process()
            process.active = True
            process.due = SYSTEM.now()
            reaper.inbox.put(SweepRequest(self._itself, process.due))  # type: ignore[arg-type]  # like a pool's

    def _itself(self) -> SharedDirectory:
        return self

    def sweep(self, due: float, now: float) -> bool:
        """Write on a worker thread, and schedule the next time. Called by the reaper."""
        process = self.process()
        if due != process.due:
            return False  # requested by a reaper that ended since
        runtime = registry.runtime_of(SYSTEM)
        process.due = now + INTERVAL
        runtime.reaper.post(SweepRequest(self._itself, process.due))  # type: ignore[arg-type]
        if not process.writing:  # else the disk hangs
            process.writing = True
            runtime.workers.submit(self._write_on_worker, process)
        return True

    def _write_on_worker(self, process: Process) -> None:
        try:
            self.write()
        finally:
            process.writing = False

    def write_at_exit(self) -> None:
        """Write for the last time, unless a disk hangs."""
        self.write(_EXIT_PATIENCE)

    def write(self, patience: float = PATIENCE) -> bool:
        """Write the figures of this process now, if a pool was used in it; log a failure, but each kind only once.

        Args:
            patience: Seconds to wait for another thread that writes or reads.

        Returns:
            Whether they are stored.
        """
        process = self.process()
        if not (self.writes and process.used):
            return True
        try:
            with self.exclusive(process, patience):
                self._open(process)
                if not process.joined:
                    with self._turn(process) as retired:
                        self._join(process, retired)
                self._write(process)
            return True
        except (OSError, ValueError) as error:
            self._complain(error)
            return False

    def _write(self, process: Process) -> None:
        assert process.file is not None and process.retired is not None
        record = process.retired.read()
        pools = process.recorder.sample(0 if record is None else record.tag)
        if pools != process.written.get("pools"):
            wanted = {"pid": os.getpid(), "time": time.time(), "pools": pools}
            process.file.write(json.dumps(wanted, separators=(",", ":")).encode())
            process.written = wanted  # after it: readers count what is stored

    def _join(self, process: Process, retired: SlotFile) -> None:
        """Create this process's file. Needs the turn: nothing may find it before it is locked."""
        self._fold(process, retired, scrape=False)  # first, so that the number of files is bounded
        if process.file is not None:
            process.file.close()
        process.name = f"{os.getpid()}-{secrets.token_hex(8)}.v1"
        process.file = SlotFile.open(process.name, process.directory, fresh=True)
        process.written = {}
        process.file.lock()

    def _complain(self, error: Exception) -> None:
        key = (os.getpid(), f"{type(error).__name__} {getattr(error, 'errno', '')}")
        if key not in self._complained:
            self._complained.add(key)
            extra = fields("metrics_not_shared", path=str(self.path), error=str(error))
            text = "%s=%s: metrics of this process are not shared: %s"
            logger.warning(text, VARIABLE, self.path, error, extra=extra)

    def write_before_quick_exits(self) -> None:
        """Let children of ``multiprocessing`` and ``billiard`` write at their end, which runs no exit handlers.

        Called in each child as soon as it is forked. Both forget the handlers
        of the parent a moment later, and then call what is registered here.
        """
        if not self._hooked and ("multiprocessing" in sys.modules or "billiard" in sys.modules):
            from multiprocessing.util import register_after_fork  # billiard has it from there

            self._hooked = True
            register_after_fork(self, _finalize)

    # -- read -----------------------------------------------------------------

    def read(self) -> Totals:
        """Return the figures of all processes; peaks since the last call by any of them.

        Raises:
            OSError: The directory cannot be used.
            TimeoutError: Another process has been reading for seconds.
        """
        process = self.process()
        with self.exclusive(process):
            self._open(process)
            with self._turn(process) as retired:
                if self.writes and process.used:
                    try:
                        if not process.joined:
                            self._join(process, retired)
                        self._write(process)
                    except (OSError, ValueError) as error:
                        self._complain(error)  # the last figures that are stored count
                return self._fold(process, retired, scrape=True)

    def _open(self, process: Process) -> None:
        """Open the directory and ``retired``, again if they were deleted."""
        if process.directory >= 0 and process.retired is not None and process.retired.linked:
            return
        process.close()
        process.directory = _open_private(self.path)
        process.retired = SlotFile.open(_RETIRED, process.directory, create=True)

    @contextmanager
    def _turn(self, process: Process) -> Iterator[SlotFile]:
        """Have the directory for this process alone."""
        retired = process.retired
        assert retired is not None
        deadline = time.monotonic() + PATIENCE
        while not retired.lock():
            pause(deadline, f"another process has locked {self.path}")
        try:
            yield retired
        finally:
            retired.unlock()

    def _fold(self, process: Process, retired: SlotFile, *, scrape: bool) -> Totals:
        """Add up all files, and move those of dead processes into ``retired``. Needs the turn.

        Args:
            process: This one.
            retired: The open file.
            scrape: Whether peaks begin again.
        """
        record = retired.read()
        past = {"pools": {}, "folded": []} if record is None else json.loads(record.data)
        names = set(filter(_NAME.fullmatch, os.listdir(process.directory)))
        folded = {name for name in past["folded"] if name in names}
        live: list[dict[str, Any]] = []
        dead: dict[str, dict[str, Any]] = {}
        for name in names - folded:
            if name == process.name:
                live.append(process.written)
            else:
                found, is_dead = _look(name, process.directory)
                if is_dead:
                    dead[name] = found
                else:
                    live.append(found)
        counted = [past, *({"pools": _counters_only(one)} for one in dead.values())]
        if dead or scrape:
            pools = {name: {"counters": one["counters"]} for name, one in _merge(counted).items()}
            commit = {"pools": pools, "folded": sorted({*folded, *dead})}
            epoch = (0 if record is None else record.tag) + scrape
            try:
                retired.write(json.dumps(commit, separators=(",", ":")).encode(), epoch)
            except (OSError, ValueError) as error:
                self._complain(error)  # nothing is lost: the files of the dead stay
            else:
                folded |= dead.keys()
        for name in folded:
            _unlink(name, process.directory)
        return Totals(_merge([*counted, *live]), sum(1 for one in live if one))


def _look(name: str, directory: int) -> tuple[dict[str, Any], bool]:
    """Return what another process has written, and whether that process is dead."""
    try:
        file = SlotFile.open(name, directory)
    except FileNotFoundError:
        return {}, False
    try:
        is_dead = file.lock()  # first: a dead process writes no more
        record = file.read()
        return ({} if record is None else json.loads(record.data)), is_dead
    finally:
        file.close()


def _counters_only(snapshot: dict[str, Any]) -> dict[str, Figures]:
    return {name: {"counters": one["counters"]} for name, one in snapshot.get("pools", {}).items()}


def _merge(snapshots: list[dict[str, Any]]) -> dict[str, Figures]:
    by_name: dict[str, list[Figures]] = {}
    for snapshot in snapshots:
        for name, figures in snapshot.get("pools", {}).items():
            by_name.setdefault(name, []).append(figures)
    return {name: add_up(figures) for name, figures in by_name.items()}


def _unlink(name: str, directory: int) -> None:
    try:
        os.unlink(name, dir_fd=directory)
    except OSError:
        pass  # `retired` names it, so it is not counted again


def _open_private(path: str) -> int:
    """Open a directory, and create it if need be.

    Raises:
        PermissionError: It belongs to another user, or others can write to it.
        OSError: It cannot be opened or created.
    """
    try:
        os.makedirs(path, 0o700)
    except FileExistsError:
        pass
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        found = os.fstat(descriptor)
        if found.st_uid != os.geteuid():
            raise PermissionError(
                f"{path!r} must belong to the user of the process ({os.geteuid()}), not to user {found.st_uid}"
            )
        if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            mode = stat.S_IMODE(found.st_mode)
            raise PermissionError(f"{path!r} must not be writable for others, but has mode {mode:o}: use chmod 700")
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


# -- of the process ------------------------------------------------------------

_shared: SharedDirectory | None = None
_local = Local()


def share(path: str | os.PathLike[str]) -> SharedDirectory:
    """Share the figures of this process and of its future children in a directory.

    Nothing is written before the first use of a pool. The environment variable
    `VARIABLE` does the same without a change in the code.

    Args:
        path: The directory; all processes of the application, and no others, use it.

    Raises:
        TypeError, ValueError: ``path`` is not a path, or another directory is in use already.
    """
    global _shared
    directory = SharedDirectory(path)
    if _shared is not None:
        if _shared.path != directory.path:
            raise ValueError(f"path must be {_shared.path!r}, which this process uses already, not {directory.path!r}")
        return _shared
    directory.writes = True
    _shared = directory
    LISTENERS.append(directory.listen)
    atexit.register(directory.write_at_exit)
    directory.write_before_quick_exits()
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=directory.write_before_quick_exits)
    for runtime in registry.runtimes:
        if not runtime._reaper.asleep:  # a pool was used before
            directory.listen(runtime._reaper, None)
    return directory


def share_from_env() -> None:
    """Share in the directory that `VARIABLE` names, if it does. Called at import."""
    path = os.environ.get(VARIABLE)
    if path:
        share(path)


def current() -> SharedDirectory | Local:
    """Return where the figures of this application are: the shared directory, or this process alone."""
    return _local if _shared is None else _shared


def _finalize(directory: SharedDirectory) -> None:
    from multiprocessing.util import Finalize

    Finalize(None, directory.write_at_exit, exitpriority=0)

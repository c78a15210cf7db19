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
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from .._attach import WATCH, is_watched
from .._fields import fields
from .._masking import shown
from ..core.runtime import registry
from ..core.runtime.poolref import PoolRef
from ..core.runtime.reaper import LISTENERS, Reaper
from .archive import Archive
from .local import INTERVAL, PATIENCE, Local, Past, Process, Record, Source, Totals, pause
from .records import counters_only, encode, merge, read_record, unlink
from .slotfile import SlotFile, open_private

__all__ = [
    "INTERVAL", "VARIABLE", "Local", "SharedDirectory", "Totals", "current", "has_figures", "share", "share_from_env",
]  # fmt: skip

logger = logging.getLogger("pooling")

VARIABLE = "POOLING_METRICS_DIR"
"""The environment variable that names the directory."""

_MOST_MINUTES = 5  # that are over and still in the file of a process
_RETIRED = "retired.v1"
_NAME = re.compile(r"\d+-[0-9a-f]{16}\.v1")


class SharedDirectory(Source):
    """A directory with the figures of all processes that share it.

    One made by hand only reads it; `share` and the environment variable make
    this process write, too.

    Args:
        path: The directory. It is created at the first use by a process that writes.

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
        self.title = f"{VARIABLE}={self.path}"
        """How messages call it."""

    def __repr__(self) -> str:
        return f"<SharedDirectory {self.path!r}>"

    # -- write ----------------------------------------------------------------

    def listen(self, reaper: Reaper, dropped: PoolRef | None) -> None:
        """Begin to write, or count a pool that was dropped. Called by the reaper, at the first use of a pool."""
        super().listen(reaper, dropped)
        if dropped is None and reaper in (runtime.current_reaper for runtime in registry.runtimes):
            self.begin(reaper)

    def step(self) -> None:
        """Write."""
        self.write()

    def write(self) -> bool:
        """Write the figures of this process now, if a pool was used in it; log a failure, but each kind only once.

        Another thread that writes is waited for, `PATIENCE` seconds: at exit, what it writes may not be the last.

        Returns:
            Whether they are stored.
        """
        process = self.process()
        if not (self.writes and process.used):
            return True
        try:
            with self.exclusive(process):
                self._open(process)
                if not process.joined or process.log.over > _MOST_MINUTES:
                    with self._turn(process) as retired:
                        self._prepare(process, retired)
                self._write(process)
            return True
        except (OSError, ValueError) as error:
            self._complain(error)
            return False

    def _write(self, process: Process) -> None:
        assert process.file is not None and process.retired is not None
        self.observe()
        record, now = process.retired.read(), time.time()
        pools, ended = process.sample(0 if record is None else record.tag)
        if ended or pools != process.written.get("pools") or self.watched(process):
            figures, details = {"pid": os.getpid(), "time": round(now, 3), "pools": pools}, process.details()
            # In two lines: a scrape needs only the first.
            process.file.write(encode(figures) + b"\n" + encode(details))
            process.written = {**figures, **details}  # after it: readers count what is stored

    def _prepare(self, process: Process, retired: SlotFile) -> None:
        """Create this process's file if need be, and move old minutes out of it. Needs the turn."""
        if not process.joined:
            self._join(process, retired)
        if process.log.over > _MOST_MINUTES:
            minutes, last = process.log.take()
            archive = Archive(retired, process.archive)
            archive.take(process.name, minutes, last)
            archive.store(time.time(), self._names(process))
            process.archive = archive
            process.log.forget(last)

    def _names(self, process: Process) -> set[str]:
        return set(filter(_NAME.fullmatch, os.listdir(process.directory)))

    # -- watchers ---------------------------------------------------------------

    def watch(self) -> None:
        """Have all processes write about once a second for the next few seconds, even if nothing changes.

        Raises:
            OSError: The directory cannot be used.
        """
        process = self.process()
        with self.exclusive(process):
            self._open(process)
            flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            descriptor = os.open(WATCH, flags, 0o600, dir_fd=process.directory)
            try:
                os.utime(descriptor)
            finally:
                os.close(descriptor)

    def watched(self, process: Process) -> bool:
        """Whether there is a watcher."""
        return is_watched(WATCH, process.directory)

    def _join(self, process: Process, retired: SlotFile) -> None:
        """Create this process's file. Needs the turn: nothing may find it before it is locked."""
        self._fold(process, retired, scrape=False)  # first, so that the number of files is bounded
        if process.file is not None:
            process.file.close()
        _own.pop(process.name, None)
        process.name = f"{os.getpid()}-{secrets.token_hex(8)}.v1"
        _own[process.name] = process
        process.file = SlotFile.open(process.name, process.directory, fresh=True)
        process.written = {}
        process.file.lock()

    def _complain(self, error: Exception) -> None:
        self.complain("metrics of this process are not shared", error)

    def complain(self, what: str, error: Exception) -> None:
        """Log an error of this kind, once in each process."""
        key = (os.getpid(), f"{type(error).__name__} {getattr(error, 'errno', '')}")
        if key not in self._complained:
            self._complained.add(key)
            extra = fields("metrics_not_shared", path=str(self.path), error=str(error))
            logger.warning("%s: %s: %s", self.title, what, error, extra=extra)

    def write_before_quick_exits(self) -> None:
        """Let children of ``multiprocessing`` and ``billiard`` write at their end, which runs no exit handlers.

        Called in each child as soon as it is forked. Both forget the handlers
        of the parent a moment later, and then call what is registered here.
        """
        if not self._hooked and ("multiprocessing" in sys.modules or "billiard" in sys.modules):
            from multiprocessing.util import register_after_fork  # billiard has it from there

            self._hooked = True
            register_after_fork(self, _finalize)

    def leave(self) -> None:
        """Remove the file of this process, and the others if it was the last one. Begin anew later.

        Raises:
            OSError, TimeoutError: As from `read`.
        """
        process = self.process()
        with self.exclusive(process):
            with self._turn(process) as retired:
                self._fold(process, retired, scrape=False)
                names = self._names(process) - {process.name}
                for name in {process.name} if names else {process.name, WATCH, _RETIRED}:
                    unlink(name, process.directory)
            self.processes.pop(os.getpid(), None)
            _own.pop(process.name, None)
            process.close()

    # -- read -----------------------------------------------------------------

    def read(self) -> Totals:
        """Return the figures of all processes; peaks since the last call by any of them.

        Raises:
            OSError: The directory cannot be used.
            TimeoutError: Another process has been reading for seconds.
        """
        return self._read(scrape=True)[0]

    def all_records(self) -> tuple[dict[str, Record], Past]:
        """Return the records of all processes, by their files, and the past. Peaks do not begin again.

        Raises:
            OSError, TimeoutError: As from `read`.
        """
        _, live, past = self._read(scrape=False)
        return live, past

    def _read(self, *, scrape: bool) -> tuple[Totals, dict[str, Record], Past]:
        process = self.process()
        with self.exclusive(process):
            self._open(process)
            with self._turn(process) as retired:
                if self.writes and process.used:
                    try:
                        self._prepare(process, retired)
                        self._write(process)
                    except (OSError, ValueError) as error:
                        self._complain(error)  # the last figures that are stored count
                totals, live = self._fold(process, retired, scrape=scrape, whole=not scrape)
                if scrape:
                    return totals, live, Past({}, [])
                process.archive = archive = Archive(retired, process.archive)
        for name, record in live.items():
            after = archive.after(name)
            record["minutes"] = {
                pool: [one for one in several if one["start"] > after]
                for pool, several in record.get("minutes", {}).items()
            }  # fmt: skip
        return totals, live, Past(archive.book, archive.events)

    def open_directory(self) -> int:
        """Return a descriptor of the directory.

        Raises:
            OSError: As from `open_private`.
        """
        return open_private(self.path, create=self.writes)  # a reader would hide a mistyped name

    def _open(self, process: Process) -> None:
        """Open the directory and ``retired``, again if they were deleted."""
        if process.directory >= 0 and process.retired is not None and process.retired.linked:
            return
        process.close()
        process.directory = self.open_directory()
        process.retired = SlotFile.open(_RETIRED, process.directory, create=True)

    @contextmanager
    def _turn(self, process: Process) -> Iterator[SlotFile]:
        """Have the directory for this process alone."""
        deadline = time.monotonic() + PATIENCE
        while True:
            self._open(process)
            retired = process.retired
            assert retired is not None
            if not retired.lock():
                pause(deadline, f"another process has locked {self.path}")
            elif retired.linked:
                break  # else the last process has left meanwhile, and removed it
        try:
            yield retired
        finally:
            retired.unlock()

    def _fold(
        self, process: Process, retired: SlotFile, *, scrape: bool, whole: bool = False
    ) -> tuple[Totals, dict[str, Record]]:
        """Add up all files, and move those of dead processes into ``retired``. Needs the turn.

        Args:
            process: This one.
            retired: The open file.
            scrape: Whether peaks begin again.
            whole: Read whole records; else only the figures of the pools.
        """
        record = retired.read()
        past = {"pools": {}, "folded": []} if record is None else json.loads(record.data)
        names = self._names(process)
        folded = {name for name in past["folded"] if name in names}
        live: dict[str, Record] = {}
        dead: dict[str, Record] = {}
        for name in names - folded:
            own = _own.get(name)
            if own is not None and own.pid == os.getpid() and own.joined:
                live[name] = dict(own.written)  # to open and close the file would release its lock
            else:
                found, is_dead = read_record(name, process.directory, whole)
                (dead if is_dead else live)[name] = found
        counted = [past, *({"pools": counters_only(one)} for one in dead.values())]
        if dead or scrape:
            pools = {name: {"counters": one["counters"]} for name, one in merge(counted).items()}
            commit = {"pools": pools, "folded": sorted({*folded, *dead})}
            epoch = (0 if record is None else record.tag) + scrape
            try:
                if dead:
                    self._archive(process, retired, dead, names)  # first: what is in ``retired`` is not read again
                retired.write(encode(commit), epoch)
            except (OSError, ValueError) as error:
                self._complain(error)  # nothing is lost: the files of the dead stay
            else:
                folded |= dead.keys()
        for name in folded:
            unlink(name, process.directory)
        live = {name: one for name, one in live.items() if one}
        return Totals(merge([*counted, *live.values()]), len(live)), live

    def _archive(self, process: Process, retired: SlotFile, dead: dict[str, Record], names: set[str]) -> None:
        """Keep the minutes and incidents of dead processes."""
        archive = Archive(retired, process.archive)
        process.archive = None
        for name, record in dead.items():
            archive.add_ended(name, record)
        archive.store(time.time(), names)
        process.archive = archive


# -- of the process ------------------------------------------------------------

_own: dict[str, Process] = {}  # by the name of the file
_shared: SharedDirectory | None = None
_local = Local()


def has_figures(path: str | os.PathLike[str]) -> bool:
    """Return whether a directory holds figures of processes, also of those that have ended; opens no file.

    Raises:
        OSError: It cannot be listed.
    """
    with os.scandir(path) as entries:
        return any((_NAME.fullmatch(one.name) or one.name == _RETIRED) and one.stat().st_size for one in entries)


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
    atexit.register(directory.write)
    directory.write_before_quick_exits()
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=directory.write_before_quick_exits)
    for runtime in registry.runtimes:
        if not runtime.current_reaper.ended:  # a pool was used before
            directory.listen(runtime.current_reaper, None)
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

    Finalize(None, directory.write, exitpriority=0)

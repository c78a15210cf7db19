"""The process itself: processor time, memory, threads and descriptors, by psutil."""

from __future__ import annotations

import os
import re
from typing import Any, NamedTuple

import psutil

from .._masking import without_secrets
from ..core.report.messages import printable
from .history import ProcessMinute

__all__ = ["ProcessReading", "command", "note", "read"]

_INTERPRETER = re.compile(r"(python|pypy)[\d.]*w?(\.exe)?")
_LONGEST_COMMAND = 100


class ProcessReading(NamedTuple):
    """The process at one moment.

    Attributes:
        pid: Its id.
        cpu_seconds: Processor time used since it began, in user and system mode.
        rss: Resident memory in bytes.
        threads: Native threads.
        descriptors: Open file descriptors; handles on Windows.
        started: The time of day of its beginning.
    """

    pid: int
    cpu_seconds: float
    rss: int
    threads: int
    descriptors: int
    started: float

    def to_dict(self) -> dict[str, Any]:
        """Return it for JSON, with the percentage of the machine's memory."""
        return {
            "pid": self.pid, "cpu_seconds": self.cpu_seconds, "memory_bytes": self.rss,
            "memory_percent": 100.0 * self.rss / max(1, psutil.virtual_memory().total),
            "threads": self.threads, "descriptors": self.descriptors, "started": self.started,
        }  # fmt: skip


def read() -> ProcessReading:
    """Return the figures of this process now; what the system does not report is 0."""
    process = psutil.Process(os.getpid())
    with process.oneshot():
        times = process.cpu_times()
        rss, threads, started = process.memory_info().rss, process.num_threads(), process.create_time()
    return ProcessReading(os.getpid(), times.user + times.system, rss, threads, _descriptors(process), started)


def command() -> str:
    """Return what this process runs: its title if it has set one, else the program without its arguments.

    Arguments may be secrets, so that of them only the name of a script or module is returned.
    """
    try:
        words = [word for word in psutil.Process(os.getpid()).cmdline() if word]
    except (psutil.Error, OSError):
        words = []
    if not words:
        return ""
    if len(words) == 1 and " " in words[0]:  # a title, as gunicorn sets it
        return printable(without_secrets(words[0].strip()))[:_LONGEST_COMMAND]
    first, *rest = words
    name = os.path.basename(first)
    if _INTERPRETER.fullmatch(name):
        for number, word in enumerate(rest):
            if word == "-m":
                return printable(f"{name} -m {' '.join(rest[number + 1 : number + 2])}")[:_LONGEST_COMMAND]
            if word == "-c":
                return f"{name} -c"
            if not word.startswith("-") and rest[number - 1 : number] not in (["-W"], ["-X"]):
                return printable(f"{name} {os.path.basename(word)}")[:_LONGEST_COMMAND]
    return printable(name)[:_LONGEST_COMMAND]


def _descriptors(process: psutil.Process) -> int:
    count = getattr(process, "num_fds", None) or process.num_handles  # type: ignore[attr-defined]
    try:
        return int(count())
    except (psutil.Error, OSError):
        return 0


def note(minute: ProcessMinute, before: ProcessReading | None, after: ProcessReading, seconds: float) -> None:
    """Add to a minute what was between two readings, ``seconds`` apart."""
    if before is not None and seconds > 0:
        used = max(0.0, after.cpu_seconds - before.cpu_seconds)
        minute.seconds += seconds
        minute.cpu_seconds += used
        minute.cpu_peak = max(minute.cpu_peak, used / seconds)
    minute.rss = max(minute.rss, after.rss)
    minute.threads = max(minute.threads, after.threads)
    minute.descriptors = max(minute.descriptors, after.descriptors)

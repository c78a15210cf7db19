"""The machine under the benchmark: what the figures depend on, and who else is at work."""

from __future__ import annotations

import contextlib
import gc
import os
import platform
import sys
from collections.abc import Iterator, Sequence
from importlib import util
from importlib.metadata import version

import psutil

from . import contenders

__all__ = ["Neighbours", "environment", "heading", "one_processor", "versions"]

PEERS: Sequence[type[contenders.Contender]] = (
    contenders.Urllib3,
    contenders.DBUtils,
    contenders.PsycopgPool,
    contenders.SQLAlchemy,
    contenders.Redis,
    contenders.GenericConnectionPool,
)


def environment() -> dict[str, object]:
    """Return what the figures depend on: interpreter, cores, versions of the peers."""
    return {
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "cores": _cores(),
        "gc_enabled": gc.isenabled(),
        "switch_interval": sys.getswitchinterval(),
        "peers": {peer.package: peer.version() for peer in PEERS},
    }


def heading() -> str:
    """Return the lines above the tables."""
    lines = [
        f"{platform.python_implementation()} {platform.python_version()}, {_cores()} cores, "
        f"garbage collector {'on' if gc.isenabled() else 'off'}, "
        f"switch interval {sys.getswitchinterval() * 1e3:g} ms",
        "Medians over interleaved rounds; a ratio is taken in each round. "
        "spread: between the quartiles.",
    ]
    here = [f"{peer.package} {peer.version()}" for peer in PEERS if peer.installed()]
    gone = [str(peer.package) for peer in PEERS if not peer.installed()]
    if here:
        lines.append(f"Peers: {', '.join(here)}.")
    if gone:
        lines.append(f'Not installed: {", ".join(gone)}; get them: pip install -e ".[bench]"')
    return "\n".join(lines)


def versions() -> list[str]:
    """Return the lines below the title of a picture."""
    found = [
        f"{package} {version(package)}"
        for package in ("psycopg-pool", "SQLAlchemy", "DBUtils", "requests", "urllib3", "httpx")
        if util.find_spec(package.replace("-", "_").lower())
    ]
    return [
        f"{platform.python_implementation()} {platform.python_version()}, {_cores()} cores, servers on the same "
        "machine; medians of interleaved rounds.",
        "pooling checks each connection and cleans its session on the server; session='trust' does not clean it, and "
        "the others do neither.",
        f"{', '.join(found)}.",
    ]


@contextlib.contextmanager
def one_processor() -> Iterator[None]:
    """Keep this thread, and what it starts, on one processor, where the system can do that."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Neighbours:
    """How much of the machine others used meanwhile: shared machines lie quietly."""

    TOLERABLE = 0.1

    def __init__(self) -> None:
        self._machine, self._own = _machine_times(), _own_time()

    def share(self) -> float:
        """Return their part of all processor time since this was made, 0 to 1."""
        busy, total = (now - then for now, then in zip(_machine_times(), self._machine))
        own = _own_time() - self._own
        return min(1.0, max(0.0, busy - own) / total) if total > 0 else 0.0

    def note(self) -> list[str]:
        """Return a note for the table if it was too much to trust the figures."""
        share = self.share()
        if share <= self.TOLERABLE:
            return []
        return [f"others used {share:.0%} of the machine meanwhile: run it again"]


def _machine_times() -> tuple[float, float]:
    """Return the seconds that all cores were busy, and all their seconds."""
    times = psutil.cpu_times()._asdict()
    for part in ("guest", "guest_nice"):  # counted as user time already
        times.pop(part, None)
    total = sum(times.values())
    return total - times.get("idle", 0.0) - times.get("iowait", 0.0), total


def _own_time() -> float:
    """Return the processor seconds of this process and the children it waited for."""
    own = os.times()
    return own.user + own.system + own.children_user + own.children_system

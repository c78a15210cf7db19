"""Readers that let a waiting writer have the interpreter lock (GIL)."""

from __future__ import annotations

import operator
import os
import sys
import time
from collections.abc import Callable
from typing import Any

from ...core.pool import Pool

__all__ = ["let_writers_run"]

HAS_GIL = getattr(sys, "_is_gil_enabled", lambda: True)()
"""Whether this interpreter has a GIL, without which writers need no help. Internal."""

_SLEEP = 1e-4  # seconds; the scheduler makes it about 150 µs
_LONG_WRITE = 3e-4  # seconds: twice the duration of a short durable write on a fast disk
_since = operator.attrgetter("since")  # of a lease


def _sleep() -> None:
    time.sleep(0)


yield_gil: Callable[[], object] = getattr(os, "sched_yield", _sleep)
"""Let a thread run that waits for the GIL or this processor. Internal."""


def let_writers_run(writers: Pool[Any]) -> None:
    """Release the GIL for a writer that needs it: just woken, or behind a writer that takes long.

    A writer needs the GIL again after each call of SQLite, and the next writer
    needs it when it is woken. Threads that only read release it for
    microseconds, so a writer would wait for the switch interval, 5 ms, each
    time: with four reading and two writing threads the 99th percentile of a
    write was 24 ms instead of 2.

    Where a writer was handed the connection and has not woken up, a yield is
    enough. With 16 threads and 20 % writes, most of them short, that made 10 to
    40 % more operations in a second, while a sleep after each read only added
    thread switches (17,000 operations a second instead of 25,000).
    """
    engine = writers.engine
    state = engine.state
    if state.idle or not HAS_GIL:
        return
    entries = list(state.entries)
    for entry in entries:
        if not entry.held:  # handed over to a waiter that has not run since
            yield_gil()
            return
    if entries and state.waiters and engine.clock.now() - max(map(_since, entries)) > _LONG_WRITE:
        time.sleep(_SLEEP)

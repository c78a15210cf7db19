"""Idle resources are closed when the process exits (P10).

Background threads are daemons, so the exit does not wait for them. The reaper
closes idle resources while the exit waits for it, for at most a second; no
thread can be started at that time. Resources that are lent, and closes that
hang, are left to the operating system. During interpreter finalization other
threads have vanished together with the locks they held. As in a forked child,
the page then makes the last thread, which runs destructors, check before it
takes a lock.
"""

from __future__ import annotations

import _thread
import atexit
import logging
import os
import queue
import sys
import time
from collections.abc import Callable
from typing import Any

from ..._fields import fields
from ..clock import Box, SystemClock
from . import registry
from .fork import EXIT, SAME_PROCESS, ensure_process
from .gevent import put
from .immortal import keep_forever
from .registry import Runtime

__all__ = ["ALONE", "LAST"]

logger = logging.getLogger("pooling")

LAST: list[Callable[[], object]] = []
"""Called at exit after the idle resources were closed, within the same time."""

_GOODBYES = 1.0  # seconds the exit waits for idle resources to be closed


class _Alone(SystemClock):
    """The clock of the last thread: no other thread can put an item into a box."""

    @staticmethod
    def get(box: Box, timeout: float | None) -> Any:
        return box.get(False)


ALONE = _Alone()


def _at_exit() -> None:
    """Close idle resources; lent ones stay open and are not destroyed."""
    try:
        if not SAME_PROCESS[0]:
            ensure_process()  # a child that has used no pool
        EXIT.thread = _thread.get_ident()
        EXIT.process = os.getpid()
        SAME_PROCESS[0] = 0
        logger.addFilter(_may_log)
        for pool in registry.pools():
            keep_forever(pool.engine.state)  # some resources warn when they are destroyed unclosed
        deadline = time.monotonic() + _GOODBYES
        for runtime in list(registry.runtimes):
            _close_idle(runtime, deadline)
    except BaseException:  # a second Ctrl-C or SIGTERM ends the exit handler
        pass


def _close_idle(runtime: Runtime, deadline: float) -> None:
    """Close idle resources on the reaper, because a close may hang, and wait. No thread can be started any more."""
    threads = (runtime.current_workers, runtime.current_reaper)
    for each in threads:
        each.stop()
    done: Any = queue.SimpleQueue()
    if runtime.current_reaper.do((_close_all, (runtime, done))):
        try:
            done.get(True, max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            pass
    else:
        _close_all(runtime, done)
    # CPython < 3.13 crashes if it ends while a started thread has not yet begun to run.
    while not all(each.started for each in threads) and time.monotonic() < deadline:
        time.sleep(1e-4)


def _close_all(runtime: Runtime, done: Box) -> None:
    for reference in list(runtime.pools.values()):
        pool = reference()
        if pool is not None:
            pool.close_idle()
    for call in LAST:
        try:
            call()
        except Exception:
            logger.debug("a call at exit failed", exc_info=True, extra=fields("hook_failed", hook="exit"))
    put(done, None)


def _may_log(record: logging.LogRecord) -> bool:
    """During exit, allow log records of the exiting thread only.

    CPython aborts if a daemon thread is stopped while it writes to standard error.
    """
    if EXIT.process != os.getpid():
        return True  # a child
    return record.thread == EXIT.thread and not sys.is_finalizing()


atexit.register(_at_exit)

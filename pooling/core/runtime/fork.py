"""A forked child finds its pools empty (P9).

A child process must not use inherited resources: before its
first use of a pool, the pool is emptied and gets new locks and queues. This
must work however the process forked. uWSGI forks in C and runs no Python hook,
so a fork is detected by a private memory page that the kernel wipes in the
child. Reading it takes 15 ns; `os.getpid` takes ten times as long. Inherited
resources are

- *invalidated* first: their tokens are pointed at an entry that no pool owns. The
  ordinary checks then refuse a lease of the parent, or drop it silently;
- *abandoned* next: the adapter closes the child's copy of the descriptor;
- and never destroyed, not even at interpreter exit: destructors of drivers
  send a goodbye message to the server, on the parent's connection.

After a fork by Python, a fork hook does this at once. Otherwise a child that
never uses a pool would keep the parent's connections open, and a child that
continues to use a resource it holds would talk to the parent's server. After a
fork in C, the first use of a pool does it, or the child's exit. gevent may
patch the process in between; the new objects can follow it (see `gevent`).

A child that C code forked while another thread held the interpreter lock, or
waited for it, finds that lock broken, and hangs. So our threads are suspended while
uWSGI's master forks. Not covered: other threads, and other programs in C.

Assumes: Linux 4.14 for the page; process ids are compared elsewhere.
"""

from __future__ import annotations

import _thread
import logging
import mmap
import os
import sys
import threading
import time
from typing import Any

from ..._fields import fields
from ..adapter import Adapter
from ..entry import Entry, Token
from . import registry
from .gevent import patched
from .immortal import keep_forever
from .parking import register_in_c
from .poolref import PoolRef
from .registry import Runtime

__all__ = ["EXIT", "SAME_PROCESS", "ensure_process"]

logger = logging.getLogger("pooling")

_MADV_WIPEONFORK = 18  # Linux's number; Python has no name for it
_SUSPEND_LIMIT = 0.1  # seconds a fork waits for the background threads to end

_kept_forever: list[object] = []  # inherited objects: never used and never destroyed
_inherited: dict[int, tuple[Adapter[Any], Any]] = {}  # inherited resources that are not yet abandoned
_child_locks: dict[int, Any] = {}  # process id: lock for the first thread that notices the fork


class _Exit:
    """The exit of this process: ids of the process and of its last thread, 0 before."""

    process = 0
    thread = 0


EXIT = _Exit()
"""Set by `shutdown` when the process begins to exit."""


class _ProcessId:
    """Replaces the page by a comparison of process ids: as reliable, but ten times slower."""

    def __init__(self) -> None:
        self[0] = 1

    def __getitem__(self, place: int) -> int:
        return self._value if os.getpid() == self._pid else 0

    def __setitem__(self, place: int, value: int) -> None:
        self._value, self._pid = value, os.getpid()


def _page() -> Any:
    """Return a byte that is 1 in this process and 0 in any forked child."""
    if not hasattr(os, "fork"):
        return bytearray(b"\1")
    try:
        page = mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        page.madvise(_MADV_WIPEONFORK)
    except (AttributeError, OSError, ValueError):
        return _ProcessId()
    page[0] = 1
    return page


SAME_PROCESS = _page()
"""1 in the process that set it; 0 in a forked child and during exit, where `ensure_process` must be called."""


def ensure_process() -> bool:
    """Handle a fork or the exit after `SAME_PROCESS` has read 0; every slow path calls this.

    Returns:
        Whether pools can be used. They cannot in a destructor or signal
        handler that interrupts this function in the same thread.
    """
    if EXIT.process == os.getpid():
        if sys.is_finalizing():
            _go_on_as_last_thread()
        return True
    # A lock created in this process, never one that a thread of the parent held.
    lock = _child_locks.setdefault(os.getpid(), _thread.RLock())
    if lock._is_owned():
        return False
    with lock:
        if not SAME_PROCESS[0]:
            for runtime in registry.all_runtimes():
                _renew_in_child(runtime)
            _abandon_inherited()
            SAME_PROCESS[0] = 1
            _child_locks.clear()  # process ids are reused
    return True


def _go_on_as_last_thread() -> None:
    for pool in registry.pools():
        pool.go_on_as_last_thread()
    SAME_PROCESS[0] = 1


# After an exception at any point, the next use starts again from the beginning.
# Every step is idempotent.


def _renew_in_child(runtime: Runtime) -> None:
    references, reaper = list(runtime.pools.values()), runtime.current_reaper
    _kept_forever.append((runtime.current_workers, reaper, references))
    keep_forever(_kept_forever)
    runtime.renew()
    reaper.retire(runtime.current_reaper)  # greenlets go on in a child
    unowned = _unowned_token(runtime.clock.now())
    for reference in references:
        _invalidate(reference, unowned)
        pool = reference()
        if pool is None:
            runtime.pools.pop(id(reference), None)
        else:
            pool.after_fork()


def _unowned_token(now: float) -> Token:
    """Return a token whose entry no pool owns, and whose entry refers to another token."""
    gone, token = Token(), Token()
    token.entry = entry = Entry(gone)
    entry.begin(object(), float("-inf"), now)
    return token


def _invalidate(reference: PoolRef, unowned: Token) -> None:
    state = reference.state
    for entry in list(state.entries):
        token = entry()
        if token is not None:
            token.entry = unowned.entry
        if entry.resource is not None:
            _inherited[id(entry)] = (reference.adapter, entry.resource)
    for waiter in list(state.waiters):
        waiter.give(unowned)  # if the waiter is this thread, it queues again in the child


def _abandon_inherited() -> None:
    for number, (adapter, resource) in list(_inherited.items()):
        try:
            adapter.abandon(resource)
        except Exception:
            logger.debug("abandon() failed", exc_info=True, extra=fields("hook_failed", hook="abandon"))
        _inherited.pop(number, None)


def _before_fork() -> None:
    """End the background threads: CPython 3.12+ warns about a fork in a process with threads.

    If the process has other threads it warns anyway, and ours keep running. A
    busy thread is not waited for: a fork must not hang because a server hangs.
    """
    alone = threading.active_count() == 1 and threading.main_thread().ident == _thread.get_ident()
    if not alone or EXIT.process == os.getpid() or patched():
        return
    threads = [kind for each in registry.runtimes for kind in (each.current_workers, each.current_reaper)]
    running = [each for each in threads if not each.ended]
    for each in running:
        each.suspend()
    deadline = time.monotonic() + _SUSPEND_LIMIT
    while not all(each.ended for each in running) and time.monotonic() < deadline:
        time.sleep(1e-4)
    if running:
        _wait_for_kernel()


def _wait_for_kernel() -> None:
    """Wait until the kernel has removed our threads too; a few milliseconds at most."""
    for _ in range(50):
        try:
            if len(os.listdir("/proc/self/task")) == 1:
                return
        except OSError:  # no such file on this platform; wait the full time
            pass
        time.sleep(1e-4)


def _after_fork_in_parent() -> None:
    for runtime in registry.runtimes:
        runtime.current_workers.resume()
        runtime.current_reaper.resume()


def _suspend_while_uwsgi_forks() -> None:
    """Do the same for the forks of uWSGI's master, which respawns workers at any time and runs no hooks of Python."""
    import ctypes

    before, after = (ctypes.CFUNCTYPE(None)(hook) for hook in (_before_fork, _after_fork_in_parent))
    if register_in_c(before, after, None):
        _kept_forever.append((before, after))


def _after_fork() -> None:
    SAME_PROCESS[0] = 0  # already 0 where the kernel has wiped the page
    ensure_process()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
    if sys.version_info >= (3, 12):
        os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent)
    if "uwsgi" in sys.modules:
        _suspend_while_uwsgi_forks()

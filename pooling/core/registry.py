"""The live pools of this process, their background threads, fork and exit.

**Fork (P9).** A child process must not use inherited resources: before its
first use of a pool, the pool is emptied and gets new locks and queues. This
must work however the process forked. uWSGI forks in C and runs no Python hook,
so a fork is detected by a private memory page that the kernel wipes in the
child. Reading it takes 15 ns; `os.getpid` takes ten times as long. Inherited
resources are

- *disowned* first: their tokens are pointed at an entry that no pool owns. The
  ordinary checks then refuse a lease of the parent, or drop it silently;
- *abandoned* next: the adapter closes the child's copy of the descriptor;
- and never destroyed, not even at interpreter exit: destructors of drivers
  send a goodbye message to the server, on the parent's connection.

Where Python forks, its hook does this at once. Otherwise a child that never
uses a pool would keep the parent's connections open, and a child that goes on
using a resource it already holds would talk to the parent's server. After a
fork in C, the first use of a pool does it, or the child's exit. gevent may
patch the process in between; the new objects can follow it (see `threads`).

Not covered: a child that C code forked while another thread held the
interpreter lock, or waited for it. CPython's own lock is broken there.

**Exit (P10).** Background threads are daemons, so the exit does not wait for
them. The reaper closes idle resources while the exit waits for it, for at most
a second; threads cannot be started any more at that time. Resources that are
lent, and closes that hang, are left to the operating system. During
interpreter finalization other threads have vanished together with the locks
they held. As in a forked child, the page then makes the last thread, which runs
destructors, check before it takes a lock.

Assumes: Linux 4.14 for the page; process ids are compared elsewhere.
"""

from __future__ import annotations

import _thread
import atexit
import logging
import mmap
import os
import queue
import sys
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

from .adapter import Adapter
from .clock import Box, Clock, SystemClock
from .entry import Entry, Token
from .poolref import PoolRef, Sweepable
from .reaper import Reaper
from .threads import hand, may_move, patched
from .workers import Workers

__all__ = ["ALONE", "SAME_PROCESS", "Runtime", "runtime_of", "pools", "ensure_process"]

logger = logging.getLogger("pooling")

_MADV_WIPEONFORK = 18  # Linux's number; Python has no name for it
_REST = 0.1  # seconds that a fork waits for the background threads to end
_GOODBYES = 1.0  # seconds that the exit waits for idle resources to be closed


class Runtime:
    """The background threads of all pools that share a clock; outside of tests, of all pools."""

    def __init__(
        self,
        clock: Clock,
        workers: Callable[[], Workers] = Workers,
        reaper: Callable[[Clock, dict[int, PoolRef]], Reaper] = Reaper,
    ) -> None:
        self.clock = clock
        self.pools: dict[int, PoolRef] = {}
        self._make_workers = workers
        self._make_reaper = reaper
        self.renew()
        _prepare_keep_forever()

    def renew(self) -> None:
        """Begin with no thread, no job and no scheduled sweep."""
        self.queue_class = queue.SimpleQueue
        self._workers = self._make_workers()
        self._reaper = self._make_reaper(self.clock, self.pools)
        self._workers.run_at_exit = self._reaper.do

    @property
    def workers(self) -> Workers:
        """The threads for slow work: creating, validating, resetting, closing."""
        self.settle()
        return self._workers

    @property
    def reaper(self) -> Reaper:
        """The thread for work that is due at a certain time."""
        self.settle()
        return self._reaper

    def settle(self) -> None:
        """Follow gevent if it has replaced the threading primitives; every slow path calls this.

        Pools keep their resources. Native threads that are still at work go on
        with the old primitives until a greenlet has called this.
        """
        if queue.SimpleQueue is self.queue_class or not may_move():
            return
        reaper = self._reaper
        self.renew()
        reaper.hand_off_to(self._reaper)
        for reference in list(self.pools.values()):
            pool = reference()
            if pool is not None:
                pool.threads_patched()


_runtimes: list[Runtime] = []
_guests: weakref.WeakSet[Runtime] = weakref.WeakSet()  # brought by the clocks of tests
_kept_forever: list[object] = []  # inherited objects: never used and never destroyed
_inherited: dict[int, tuple[Adapter[Any], Any]] = {}  # inherited resources that are not yet abandoned
_child_locks: dict[int, Any] = {}  # process id: lock for the first thread that notices the fork
_leaving = 0  # id of the process that is exiting,
_last_thread = 0  # and of the thread in which the exit began
_incref: Callable[[object], object] | None = None
_clears_parked_threads: list[bool] = []  # not empty: the fork handler for parked threads is registered


def runtime_of(clock: Clock) -> Runtime:
    """Return the background threads of the pools that use this clock."""
    own = getattr(clock, "runtime", None)  # the clock of a test brings its own
    if own is not None:
        _guests.add(own)
        return own  # type: ignore[no-any-return]
    for runtime in _runtimes:
        if runtime.clock is clock:
            return runtime
    _runtimes.append(Runtime(clock))
    return _runtimes[-1]


def pools() -> list[Sweepable]:
    """Return the live pools of this process, as the reaper knows them."""
    found = []
    for runtime in [*_runtimes, *_guests]:
        for reference in list(runtime.pools.values()):
            pool = reference()
            if pool is not None:
                found.append(pool)
    return found


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
"""1 in the process that set it; 0 in a forked child and during exit, where `renew` must be called."""


def ensure_process() -> bool:
    """Handle a fork or the exit after `SAME_PROCESS` has read 0; every slow path calls this.

    Returns:
        Whether pools can be used. They cannot in a destructor or signal
        handler that interrupts this function in the same thread.
    """
    if _leaving == os.getpid():
        if sys.is_finalizing():
            _go_on_as_last_thread()
        return True
    # A lock created in this process, never one that a thread of the parent held.
    lock = _child_locks.setdefault(os.getpid(), _thread.RLock())
    if lock._is_owned():
        return False
    with lock:
        if not SAME_PROCESS[0]:
            for runtime in [*_runtimes, *_guests]:
                _renew_in_child(runtime)
            _abandon_inherited()
            SAME_PROCESS[0] = 1
            _child_locks.clear()  # process ids are reused
    return True


# -- fork ------------------------------------------------------------------------
# After an exception at any point, the next use starts again from the beginning.
# Every step is idempotent.


def _renew_in_child(runtime: Runtime) -> None:
    references, reaper = list(runtime.pools.values()), runtime._reaper
    _kept_forever.append((runtime._workers, reaper, references))
    _keep_forever(_kept_forever)
    runtime.renew()
    reaper.retire(runtime._reaper)  # greenlets go on in a child
    nobodys = _unowned_token(runtime.clock.now())
    for reference in references:
        _invalidate(reference, nobodys)
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


def _invalidate(reference: PoolRef, nobodys: Token) -> None:
    state = reference.state
    for entry in list(state.entries):
        token = entry()
        if token is not None:
            token.entry = nobodys.entry
        if entry.resource is not None:
            _inherited[id(entry)] = (reference.adapter, entry.resource)
    for waiter in list(state.waiters):
        waiter.give(nobodys)  # if the waiter is this thread, it queues again in the child


def _abandon_inherited() -> None:
    for number, (adapter, resource) in list(_inherited.items()):
        try:
            adapter.abandon(resource)
        except Exception:
            logger.debug("abandon() failed", exc_info=True)
        _inherited.pop(number, None)


def _keep_forever(thing: object) -> None:
    """Prevent the destruction of an object, also at interpreter exit."""
    if _incref is not None:
        _incref(thing)


def _prepare_keep_forever() -> None:
    global _incref
    try:
        # Imported here, not in a child: a thread of the parent may hold the import lock at the fork.
        from _ctypes import Py_INCREF as _incref
    except ImportError:
        return  # such objects are then destroyed at interpreter exit
    if sys.version_info >= (3, 13) and hasattr(os, "fork") and not _clears_parked_threads:
        _clears_parked_threads.append(True)
        _clear_parked_threads()


def _clear_parked_threads() -> None:
    """Make a fork in C clear CPython's list of parked threads, as a fork in Python does.

    CPython 3.13+ keeps a list of waiting threads whose nodes are on the
    threads' stacks; a `SimpleQueue` waits there. When the stack of a new thread
    reuses that memory, the list is corrupt and the child crashes. So the list
    must be cleared before the child starts a thread. Without the function the
    child works as CPython leaves it.
    """
    import ctypes

    try:
        process = ctypes.CDLL(None)
        forget = ctypes.cast(ctypes.pythonapi._PyParkingLot_AfterFork, ctypes.c_void_p)
        # glibc's `pthread_atfork` is linked statically and calls this function.
        register = getattr(process, "__register_atfork", None) or process.pthread_atfork
        register(None, None, forget, None)
    except (AttributeError, OSError):
        pass  # an interpreter, or a C library, without these


def _before_fork() -> None:
    """End the background threads: CPython 3.12+ warns about a fork in a process with threads.

    If the process has other threads it warns anyway, and ours keep running. A
    busy thread is not waited for: a fork must not hang because a server hangs.
    """
    alone = threading.active_count() == 1 and threading.main_thread().ident == _thread.get_ident()
    if not alone or _leaving == os.getpid() or patched():
        return
    threads = [kind for each in _runtimes for kind in (each._workers, each._reaper)]
    awake = [each for each in threads if not each.asleep]
    for each in awake:
        each.suspend()
    deadline = time.monotonic() + _REST
    while not all(each.asleep for each in awake) and time.monotonic() < deadline:
        time.sleep(1e-4)
    if awake:
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
    for runtime in _runtimes:
        runtime._workers.resume()
        runtime._reaper.resume()


def _after_fork() -> None:
    SAME_PROCESS[0] = 0  # already 0 where the kernel has wiped the page
    ensure_process()


# -- exit ------------------------------------------------------------------------


class _Alone(SystemClock):
    """The clock of the last thread: no other thread can put anything into a box any more."""

    @staticmethod
    def get(box: Box, timeout: float | None) -> Any:
        return box.get(False)


ALONE = _Alone()


def _go_on_as_last_thread() -> None:
    for pool in pools():
        pool.go_on_as_last_thread()
    SAME_PROCESS[0] = 1


def _at_exit() -> None:
    """Close idle resources; lent ones stay open and are not destroyed."""
    global _leaving, _last_thread
    try:
        if not SAME_PROCESS[0]:
            ensure_process()  # a child that has used no pool
        _last_thread = _thread.get_ident()
        _leaving = os.getpid()
        SAME_PROCESS[0] = 0
        logger.addFilter(_may_log)
        for pool in pools():
            _keep_forever(pool.engine.state)  # some resources warn when they are destroyed unclosed
        deadline = time.monotonic() + _GOODBYES
        for runtime in list(_runtimes):
            _close_idle(runtime, deadline)
    except BaseException:  # a second Ctrl-C or SIGTERM ends the exit handler
        pass


def _close_idle(runtime: Runtime, deadline: float) -> None:
    """Close idle resources on the reaper, because a close may hang, and wait. No thread can be started any more."""
    threads = (runtime._workers, runtime._reaper)
    for each in threads:
        each.stop()
    done: Any = queue.SimpleQueue()
    if runtime._reaper.do((_close_all, (runtime, done))):
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
    hand(done, None)


def _may_log(record: logging.LogRecord) -> bool:
    """During exit, allow log records of the exiting thread only.

    CPython aborts if a daemon thread is stopped while it writes to standard error.
    """
    if _leaving != os.getpid():
        return True  # a child
    return record.thread == _last_thread and not sys.is_finalizing()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
    if sys.version_info >= (3, 12):
        os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent)
atexit.register(_at_exit)

"""The live pools of this process, their background threads, and what fork and exit do to them.

**Fork (P9).** A child must not touch what it inherited: its pools are emptied,
with new locks and queues, before it uses one. However the process forked:
uWSGI forks in C and runs no hook of Python's, so the truth is a private page
that the kernel wipes in the child. A look at it costs 15 ns, `os.getpid` ten
times that. What a pool has inherited is

- *disowned* first: its keys are made to name an entry that nobody owns. By the
  tests that are made anyway a lease of the parent is then refused, or dropped
  without a word.
- *abandoned* next, by its adapter, which takes the descriptor from the child;
- and never destroyed, not even when the interpreter ends: drivers' destructors
  say goodbye to the server, on the parent's connection.

Where Python forks, its hook does this at once, or a child that never uses a
pool would hold the parent's connections open, and one that goes on using a
resource that it has in its hands would talk to the parent's peer. Elsewhere the
first use does it, or the child's exit. gevent may patch the process in between;
what is made anew here can move with it then (see `threads`).

Beyond us is a child that C forked while another thread had the interpreter, or
waited for it: CPython's own lock is never right again there.

**Exit (P10).** Our threads are daemons: nothing waits for them. What is idle is
closed by the reaper while the exit waits for it, but not for longer than a
second; a thread cannot be started any more by then. What is lent or hangs is
left to the operating system. When the interpreter finalizes, other threads have
vanished, with whatever lock they held: as in a child, it is the page that makes
the last one, running destructors, look before it takes a lock.

Assumes: Linux 4.14 for the page; elsewhere process ids are compared.
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
from typing import TYPE_CHECKING, Any

from .adapter import Adapter
from .clock import Box, Clock, SystemClock
from .entry import Entry, Key
from .reaper import Reaper
from .state import PoolState
from .threads import hand, may_move, patched
from .workers import Workers

if TYPE_CHECKING:
    from .pool import Pool

__all__ = ["ALONE", "PAGE", "Background", "PoolRef", "background_of", "pools", "renew"]

logger = logging.getLogger("pooling")

_MADV_WIPEONFORK = 18  # Linux's number; Python has no name for it
_REST = 0.1  # seconds that a fork waits for our threads to end
_GOODBYES = 1.0  # seconds that the exit waits for the closing of what is idle


class PoolRef(weakref.ref):  # type: ignore[type-arg]
    """A weak reference to a pool, and what is needed to close its idle resources without it.

    Its callback puts it into the reaper's mailbox when the pool is collected.
    """

    __slots__ = ("state", "adapter", "background")

    state: PoolState
    adapter: Adapter[Any]
    background: Background


class Background:
    """The threads that serve all pools of one clock: in a process without tests, all pools."""

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
        _learn_to_keep()

    def renew(self) -> None:
        """Start with nothing: no thread, no job, nothing due."""
        self.world = queue.SimpleQueue
        self._workers = self._make_workers()
        self._reaper = self._make_reaper(self.clock, self.pools)
        self._workers.reaper = self._reaper

    @property
    def workers(self) -> Workers:
        """The threads for slow work."""
        self.settle()
        return self._workers

    @property
    def reaper(self) -> Reaper:
        """The thread for what falls due."""
        self.settle()
        return self._reaper

    def settle(self) -> None:
        """Move, if gevent has replaced the threads since we began; all slow ways look here.

        The pools keep what they have. Native threads that are still at work
        stay in the old world until somebody in the hub's has moved.
        """
        if queue.SimpleQueue is self.world or not may_move():
            return
        reaper = self._reaper
        self.renew()
        reaper.bequeath(self._reaper)
        for reference in list(self.pools.values()):
            pool = reference()
            if pool is not None:
                pool._move()


_backgrounds: list[Background] = []
_guests: weakref.WeakSet[Background] = weakref.WeakSet()  # those that a test's clock brought
_graveyard: list[object] = []  # what a child inherited: never used, and never destroyed either
_estate: dict[int, tuple[Adapter[Any], Any]] = {}  # of that, the resources not yet abandoned
_births: dict[int, Any] = {}  # process id: the lock that its first thread to notice takes
_leaving = 0  # the id of the process whose exit has begun,
_last_thread = 0  # and of the thread that it began in
_incref: Callable[[object], object] | None = None
_forgetful: list[bool] = []  # C's fork was told what to forget


def background_of(clock: Clock) -> Background:
    """Return the threads that serve this clock's pools."""
    own = getattr(clock, "background", None)  # a test's clock brings its own
    if own is not None:
        _guests.add(own)
        return own  # type: ignore[no-any-return]
    for background in _backgrounds:
        if background.clock is clock:
            return background
    _backgrounds.append(Background(clock))
    return _backgrounds[-1]


def pools() -> list[Pool[Any]]:
    """Return the live pools of this process."""
    found = []
    for background in [*_backgrounds, *_guests]:
        for reference in list(background.pools.values()):
            pool = reference()
            if pool is not None:
                found.append(pool)
    return found


class _ProcessId:
    """Tells what the page tells, by a look at the process id: as true, but ten times as dear."""

    def __init__(self) -> None:
        self[0] = 1

    def __getitem__(self, place: int) -> int:
        return self._value if os.getpid() == self._pid else 0

    def __setitem__(self, place: int, value: int) -> None:
        self._value, self._pid = value, os.getpid()


def _page() -> Any:
    """A byte that is 1 here and 0 in a child, however it is forked."""
    if not hasattr(os, "fork"):
        return bytearray(b"\1")
    try:
        page = mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        page.madvise(_MADV_WIPEONFORK)
    except (AttributeError, OSError, ValueError):
        return _ProcessId()
    page[0] = 1
    return page


PAGE = _page()
"""1 while all is as it was; 0 in a child, and when the process exits: then `renew` knows more."""


def renew() -> bool:
    """Do what has to be done when the page shows 0; every slow way in asks.

    Returns:
        Whether the pools can be used. They cannot while this very thread is
        about to renew them, and a destructor or signal handler interrupts it.
    """
    if _leaving == os.getpid():
        if sys.is_finalizing():
            _go_on_alone()
        return True
    # A lock of this process's own, never one that a thread of the parent held.
    lock = _births.setdefault(os.getpid(), _thread.RLock())
    if lock._is_owned():
        return False
    with lock:
        if not PAGE[0]:
            for background in [*_backgrounds, *_guests]:
                _begin_anew(background)
            _abandon_estate()
            PAGE[0] = 1
            _births.clear()  # process ids are used again
    return True


# -- fork ------------------------------------------------------------------------
# An exception may strike anywhere, and the next use begins again: what is stored
# or done twice does no harm.


def _begin_anew(background: Background) -> None:
    references, reaper = list(background.pools.values()), background._reaper
    _graveyard.append((background._workers, reaper, references))
    _keep_for_ever(_graveyard)
    background.renew()
    reaper.retire(background._reaper)  # greenlets live on in a child
    nobodys = _nobodys_key(background.clock.now())
    for reference in references:
        _disown(reference, nobodys)
        pool = reference()
        if pool is None:
            background.pools.pop(id(reference), None)
        else:
            pool._reborn()


def _nobodys_key(now: float) -> Key:
    """A key whose entry no pool owns; and the entry's own key is another one."""
    gone, key = Key(), Key()
    key.entry = entry = Entry(gone)
    entry.begin(object(), float("-inf"), now)
    return key


def _disown(reference: PoolRef, nobodys: Key) -> None:
    state = reference.state
    for entry in list(state.entries):
        key = entry()
        if key is not None:
            key.entry = nobodys.entry
        if entry.resource is not None:
            _estate[id(entry)] = (reference.adapter, entry.resource)
    for waiter in list(state.waiters):
        waiter.give(nobodys)  # if it is this very thread, it stands in the child's line next


def _abandon_estate() -> None:
    for number, (adapter, resource) in list(_estate.items()):
        try:
            adapter.abandon(resource)
        except Exception:
            logger.debug("abandon() failed", exc_info=True)
        _estate.pop(number, None)


def _keep_for_ever(thing: object) -> None:
    """See to it that something is never destroyed, not even when the interpreter ends."""
    if _incref is not None:
        _incref(thing)


def _learn_to_keep() -> None:
    global _incref
    try:
        # Now, not in a child: another thread may be amid an import when the process forks.
        from _ctypes import Py_INCREF as _incref
    except ImportError:
        return  # then what is kept is destroyed at the very end
    if sys.version_info >= (3, 13) and hasattr(os, "fork") and not _forgetful:
        _forgetful.append(True)
        _forget_parents_threads()


def _forget_parents_threads() -> None:
    """Have C's fork do what Python's does about threads that wait in the parent.

    CPython 3.13+ lists them, on their own stacks, and a `SimpleQueue` waits
    there: when a new thread's stack takes that place the list leads anywhere,
    and the child crashes. It must be done before there is a new thread.
    """
    import ctypes

    try:
        process = ctypes.CDLL(None)
        forget = ctypes.cast(ctypes.pythonapi._PyParkingLot_AfterFork, ctypes.c_void_p)
        # glibc's `pthread_atfork` is static, and calls this one.
        register = getattr(process, "__register_atfork", None) or process.pthread_atfork
        register(None, None, forget, None)
    except (AttributeError, OSError):
        pass  # an interpreter, or a C library, without these


def _before_fork() -> None:
    """Let our threads end: CPython 3.12+ warns of a fork beside any, and so it should.

    Where there are others it warns anyway, and ours stay. A busy one is not
    waited for: a fork must not hang because a server does.
    """
    alone = threading.active_count() == 1 and threading.main_thread().ident == _thread.get_ident()
    if not alone or _leaving == os.getpid() or patched():
        return
    threads = [kind for each in _backgrounds for kind in (each._workers, each._reaper)]
    awake = [each for each in threads if not each.asleep]
    for each in awake:
        each.rest()
    deadline = time.monotonic() + _REST
    while not all(each.asleep for each in awake) and time.monotonic() < deadline:
        time.sleep(1e-4)
    if awake:
        _let_the_kernel_see()


def _let_the_kernel_see() -> None:
    """Wait until the kernel, too, has seen the last of our threads; some milliseconds at most."""
    for _ in range(50):
        try:
            if len(os.listdir("/proc/self/task")) == 1:
                return
        except OSError:  # no such place here: hope
            pass
        time.sleep(1e-4)


def _after_fork_in_parent() -> None:
    for background in _backgrounds:
        background._workers.wake()
        background._reaper.wake()


def _after_fork() -> None:
    PAGE[0] = 0  # so already, where the page is a page
    renew()


# -- exit ------------------------------------------------------------------------


class _Alone(SystemClock):
    """The clock of the last thread: what is not there now will never come."""

    @staticmethod
    def get(box: Box, timeout: float | None) -> Any:
        return box.get(False)


ALONE = _Alone()


def _go_on_alone() -> None:
    for pool in pools():
        pool._go_on_alone()
    PAGE[0] = 1


def _at_exit() -> None:
    """Close what is idle; what is lent stays as it is, and is not destroyed."""
    global _leaving, _last_thread
    try:
        if not PAGE[0]:
            renew()  # a child that used no pool
        _last_thread = _thread.get_ident()
        _leaving = os.getpid()
        PAGE[0] = 0
        logger.addFilter(_may_log)
        for pool in pools():
            _keep_for_ever(pool._state)  # some resources complain when they are not closed
        deadline = time.monotonic() + _GOODBYES
        for background in list(_backgrounds):
            _close_idle(background, deadline)
    except BaseException:  # a second Ctrl-C or SIGTERM: so be it
        pass


def _close_idle(background: Background, deadline: float) -> None:
    """Have the reaper do it, and wait: it may hang. No thread can be started any more."""
    threads = (background._workers, background._reaper)
    for each in threads:
        each.stop()
    done: Any = queue.SimpleQueue()
    if background._reaper.do((_close_all, (background, done))):
        try:
            done.get(True, max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            pass
    else:
        _close_all(background, done)
    # CPython < 3.13 crashes when it ends while a thread that was started has yet to begin.
    while not all(each.born for each in threads) and time.monotonic() < deadline:
        time.sleep(1e-4)


def _close_all(background: Background, done: Box) -> None:
    for reference in list(background.pools.values()):
        pool = reference()
        if pool is not None:
            pool._at_exit()
    hand(done, None)


def _may_log(record: logging.LogRecord) -> bool:
    """While the process exits, only the thread that exits may log.

    One that is stopped amid a write to standard error would make CPython abort.
    """
    if _leaving != os.getpid():
        return True  # a child
    return record.thread == _last_thread and not sys.is_finalizing()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
    if sys.version_info >= (3, 12):
        os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent)
atexit.register(_at_exit)

"""The live pools of this process, their background threads, and what a fork does to them.

A child must not touch what it inherited (P9): every pool of the process is
emptied, with new locks and queues, before the child uses one. However the
process forked: hooks of ``os.register_at_fork`` do not run in workers that
uWSGI forks in C, so the truth is a private page that the kernel wipes in the
child. A look at it costs 15 ns, ``os.getpid()`` ten times that.

Assumes: Linux 4.14 for the page. Elsewhere hooks alone tell, which is enough
where only Python forks.
"""

from __future__ import annotations

import _thread
import atexit
import mmap
import os
import queue
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .adapter import Adapter
from .clock import Clock
from .reaper import Reaper
from .state import PoolState
from .threads import native
from .workers import Workers

if TYPE_CHECKING:
    from .pool import Pool

__all__ = ["PAGE", "Background", "PoolRef", "background_of", "pools", "renew"]

_MADV_WIPEONFORK = 18  # Linux's number; Python has no name for it


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

    def renew(self) -> None:
        """Start with nothing: no thread, no job, nothing due."""
        self._world = queue.SimpleQueue
        self._workers = self._make_workers()
        self._reaper = self._make_reaper(self.clock, self.pools)

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

        The pools keep what they have. Native threads of ours that are still
        at work stay where they are until somebody else has moved.
        """
        if queue.SimpleQueue is self._world or native():
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
_births: dict[int, Any] = {}  # process id: the lock that its first thread to notice takes


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


def _page() -> Any:
    """A byte that is 1 here and 0 in a child, however it is forked."""
    try:
        page = mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        page.madvise(_MADV_WIPEONFORK)
    except (AttributeError, OSError, ValueError):
        return bytearray(b"\1")  # no such page here: `renew` is told by hooks alone
    page[0] = 1
    return page


PAGE = _page()


def renew() -> None:
    """In a child: empty every pool. Done once, by the first who notices."""
    lock = _births.setdefault(os.getpid(), _thread.allocate_lock())  # never one held by a parent
    with lock:
        if PAGE[0]:
            return
        for background in [*_backgrounds, *_guests]:
            _graveyard.append((background._workers, background._reaper))
            background.renew()
            for reference in list(background.pools.values()):
                pool = reference()
                if pool is not None:
                    _graveyard.append(pool._reborn())
        PAGE[0] = 1


def _after_fork() -> None:
    PAGE[0] = 0  # so already, where the page is a page
    renew()


def _at_exit() -> None:
    """Close what is idle, here and now: no thread can be started any more (P10)."""
    for pool in pools():
        pool._at_exit()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
atexit.register(_at_exit)

"""The wait queue, and one borrower in it."""

from __future__ import annotations

import queue
from collections import deque
from collections.abc import Callable
from contextvars import Context, copy_context
from typing import Any

from .clock import Box
from .entry import Entry, Token
from .runtime.gevent import NATIVE, put, wake

__all__ = ["WaitQueue", "Waiter"]


class Waiter:
    """A borrower in the wait queue, blocked on its own one-slot box.

    Not a condition variable, which acquires its inner lock in Python code: an
    asynchronous exception there would leave the lock held for ever.
    """

    __slots__ = ("box", "given", "arrived", "again", "thread", "attempts", "context", "lane")

    def __init__(self, arrived: float, thread: int, again: bool = False, lane: Any = None) -> None:
        # Looked up at each call: gevent replaces it when it patches the process.
        self.box: Box = queue.SimpleQueue()
        self.given = False  # guarded by the pool's lock
        self.arrived = arrived  # when its acquire began; orders the wait queue
        self.again = again  # its idle resource proved dead, and it keeps its position in the queue
        self.thread = thread
        self.lane = lane  # a `lanes.LaneRecord`; None in a pool without lanes
        # Creations for this waiter run in a copy of it. Dropped when the waiter leaves the queue. Guarded by the lock.
        self.context: Context | None = copy_context()
        self.attempts = 0  # failed creations it has waited through; guarded by the lock

    def give(self, item: Token | BaseException) -> bool:
        """Give the waiter a token, or the error to raise. Needs the pool's lock.

        Returns:
            Whether it was accepted; a waiter that has left the queue accepts nothing.
        """
        if self.given:
            return False
        box = self.box
        if type(box) is NATIVE:
            box.put(item)  # stores the item and wakes the waiter in one C call
        else:
            put(box, item)
        self.given = True  # set last: otherwise an exception in between would leave the waiter waiting for ever
        self.context = None
        return True


class WaitQueue(deque[Waiter]):
    """The waiters of a pool in order of arrival, oldest first (P3). Guarded by the pool's lock.

    A deque, because the fast path tests whether it is empty, and that must not cost a call.
    """

    def __init__(self) -> None:
        super().__init__()
        self.threads: set[int] = set()  # of the waiters
        self.exhaustion_reported = False  # since the queue was empty

    # What `lanes.LaneQueue` does otherwise.

    def use(self, lanes: object) -> None:
        """Refuse lanes: a pool has them from the beginning or not at all.

        Raises:
            ValueError: There are lanes.
        """
        if lanes is not None:
            raise ValueError("lanes must be given when the pool is made; this one has none")

    @property
    def demand(self) -> int:
        """Number of waiters that may be served, if there are resources for them."""
        return len(self)

    def needing_release(self, waiter: Waiter, of_all: int, closing: int) -> int:
        """Number of waiters that need a release, as ``max_waiting`` counts them for a new one.

        Args:
            waiter: The new one.
            of_all: That number without lanes.
            closing: Number of resources that are being closed.
        """
        return of_all

    def take_back(self, entry: Entry) -> None:
        """Note that an entry is not lent any more."""

    def join(self, waiter: Waiter) -> None:
        """Insert a waiter at its time of arrival."""
        self.threads.add(waiter.thread)
        if not self or self[-1].arrived < waiter.arrived:
            self.append(waiter)
            return
        position = len(self)
        while position and _before(waiter, self[position - 1]):
            position -= 1
        self.insert(position, waiter)

    def leave(self, waiter: Waiter) -> Token | BaseException | None:
        """Remove a waiter.

        Returns:
            The item that it was given meanwhile. A token must be passed on by the caller.
        """
        self.threads.discard(waiter.thread)
        waiter.given = True
        try:
            self.remove(waiter)
        except ValueError:
            pass
        waiter.context = None
        try:
            item: Token | BaseException = waiter.box.get(False)
        except queue.Empty:
            return None
        return item

    def hand_over(self, token: Token) -> bool:
        """Hand a token to the oldest waiter that accepts it; return ``False`` if there is none."""
        while self:
            waiter = self[0]
            accepts = not waiter.given  # one that has left accepts nothing
            if accepts:  # as `Waiter.give`, without the call
                waiter.box.put(token)
                if type(waiter.box) is not NATIVE:
                    wake(waiter.box)
                waiter.given = True  # after it: an exception between the two leaves it waiting, passed over
                waiter.context = None
            self.threads.discard(waiter.thread)
            if self and self[0] is waiter:
                self.popleft()
            if accepts:
                return True
        return False

    def fail(
        self, error: Callable[[str], BaseException], text: str, cause: BaseException | None = None, attempts: int = 0
    ) -> None:
        """Fail the waiters that waited through at least ``attempts`` failed creations, each with its own error."""
        for waiter in list(self):
            if waiter.attempts >= attempts and not waiter.given:
                reason = error(text)
                reason.__cause__ = cause
                waiter.give(reason)
                self.threads.discard(waiter.thread)
                self.remove(waiter)


def _before(one: Waiter, other: Waiter) -> bool:
    """Whether one waiter goes before the other; at the same time, one that re-enters the queue goes first."""
    if one.arrived == other.arrived:
        return one.again and not other.again
    return one.arrived < other.arrived

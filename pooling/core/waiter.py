"""One place in the wait queue."""

from __future__ import annotations

import queue
from contextvars import Context, copy_context

from .clock import Box
from .entry import Token
from .runtime.gevent import NATIVE, hand

__all__ = ["Waiter"]


class Waiter:
    """A borrower in the wait queue, blocked on a one-slot box of its own.

    Not a condition variable: that acquires its inner lock in Python code, and
    an asynchronous exception there would leave the lock held for ever.
    """

    __slots__ = ("box", "given", "arrived", "again", "thread", "attempts", "context")

    def __init__(self, arrived: float, thread: int, again: bool = False) -> None:
        # Looked up at each call: gevent replaces it when it patches the process.
        self.box: Box = queue.SimpleQueue()
        self.given = False  # guarded by the pool's lock
        self.arrived = arrived  # when its acquire began; orders the wait queue
        self.again = again  # it took an idle resource that proved dead, and keeps its place
        self.thread = thread
        # What is made for it is made in a copy; dropped as soon as it has left the line. Guarded by the lock.
        self.context: Context | None = copy_context()
        self.attempts = 0  # failed creations it has waited through; guarded by the lock

    def give(self, item: Token | BaseException) -> bool:
        """Give the waiter a token, or the error to raise. Needs the pool's lock.

        Returns:
            Whether it was accepted; a waiter that has left accepts nothing.
        """
        if self.given:
            return False
        box = self.box
        if type(box) is NATIVE:
            box.put(item)  # stores the item and wakes the waiter in one C call
        else:
            hand(box, item)
        self.given = True  # after it: or an exception between the two leaves it waiting, passed over
        self.context = None
        return True

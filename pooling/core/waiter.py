"""An element of the wait queue."""

from __future__ import annotations

import queue
from contextvars import Context, copy_context

from .clock import Box
from .entry import Token
from .runtime.gevent import NATIVE, hand

__all__ = ["Waiter"]


class Waiter:
    """A borrower in the wait queue, blocked on its own one-slot box.

    Not a condition variable, which acquires its inner lock in Python code: an
    asynchronous exception there would leave the lock held for ever.
    """

    __slots__ = ("box", "given", "arrived", "again", "thread", "attempts", "context")

    def __init__(self, arrived: float, thread: int, again: bool = False) -> None:
        # Looked up at each call: gevent replaces it when it patches the process.
        self.box: Box = queue.SimpleQueue()
        self.given = False  # guarded by the pool's lock
        self.arrived = arrived  # when its acquire began; orders the wait queue
        self.again = again  # its idle resource proved dead, and it keeps its position in the queue
        self.thread = thread
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
            hand(box, item)
        self.given = True  # set last: otherwise an exception in between would leave the waiter waiting for ever
        self.context = None
        return True

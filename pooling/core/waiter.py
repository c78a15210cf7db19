"""One place in the line."""

from __future__ import annotations

import queue
from contextvars import Context, copy_context

from .clock import Box
from .entry import Key
from .threads import NATIVE, hand

__all__ = ["Waiter"]


class Waiter:
    """A borrower in line, parked on a one-slot box of its own.

    A condition variable would not do: it takes its inner lock in Python code,
    and an exception that strikes there leaks the lock for ever.
    """

    __slots__ = ("box", "given", "arrived", "again", "thread", "attempts", "context")

    def __init__(self, arrived: float, thread: int, again: bool = False) -> None:
        # Looked up late: gevent replaces it when it patches the process.
        self.box: Box = queue.SimpleQueue()
        self.given = False  # guarded by the pool's lock
        self.arrived = arrived  # when its acquire began: its number in the line
        self.again = again  # it held an idle resource that proved dead: it keeps its place
        self.thread = thread
        # What is made for it is made in a copy; dropped as soon as it has left the line. Guarded by the lock.
        self.context: Context | None = copy_context()
        self.attempts = 0  # failed creations it has waited through; guarded by the lock

    def give(self, item: Key | BaseException) -> bool:
        """Hand over a key, or the reason why there is none. Needs the pool's lock.

        Returns:
            Whether it was accepted; one that has left accepts nothing.
        """
        if self.given:
            return False
        box = self.box
        if type(box) is NATIVE:
            box.put(item)  # gives and wakes in one C call
        else:
            hand(box, item)
        self.given = True  # after it: or an exception between the two leaves it waiting, passed over
        self.context = None
        return True

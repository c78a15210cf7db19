"""Two objects for one slot: the durable entry and its travelling key.

The *entry* is the record: resource, counters, holder, generation, ages. The
pool holds it from the moment the slot is reserved until the close has
returned, so the number of entries *is* the number of slots taken (P2).

The *key* is what travels: idle stack, lease, waiter's box, worker's job.
Whoever holds the key owns the entry (P1). The entry is a weak reference to
its key, and its callback drops the entry into the reaper's mailbox as soon
as nobody holds the key any more, for whatever reason: a forgotten lease, an
exception that struck between two bytecodes, a worker that died (P8).

Assumes: a C function as the callback (``SimpleQueue.put``), so that no
exception can strike before it has run. A Python ``__del__`` would take a
pending asynchronous exception in its first bytecode and swallow it.
"""

from __future__ import annotations

import weakref
from types import CodeType
from typing import TYPE_CHECKING, Any

__all__ = ["DEAD", "Key", "Entry"]

DEAD = object()
"""The generation of a resource that was found dead."""


class Key:
    """Ownership of one entry, passed from hand to hand."""

    __slots__ = ("entry", "__weakref__")

    entry: Entry


class Entry(weakref.ref):  # type: ignore[type-arg]
    """The record of one slot.

    The holder of the key alone writes it, so the hot path needs no lock.
    """

    __slots__ = (
        "pool",
        "resource",
        "generation",
        "expires",
        "idle_since",
        "checked",
        "answered",
        "since",
        "uses",
        "busy",
        "thread",
        "code",
        "lasti",
        "leaked",
        "watched",
        "borrower",
    )

    pool: Any  # weak reference to the pool, for the reaper that finds an orphan
    resource: Any  # None while it is being made
    generation: object  # stamped when the making starts; None: retired, close it when it returns
    expires: float  # end of its lifetime
    idle_since: float  # when it was released last
    checked: float  # when a round trip proved it alive last
    answered: bool  # its peer did when it came back last: that was no later than `checked`
    since: float  # when its present state began: lent, or creating, checking, closing
    uses: int  # finished leases
    busy: float  # seconds lent in all finished leases
    thread: int  # who borrowed it last
    code: CodeType | None  # and where: never the frame, which would keep the lease alive
    lasti: int
    leaked: bool  # this lease was reported as a leak
    watched: bool  # has a socket, of which alone is known whether it is alive (see `hangup`)

    # A weak reference hashes what it refers to, and cannot once that has gone.
    __hash__ = object.__hash__
    borrower: Any  # a `holders.Borrower` and the `since` of the lease that it was noted for, or None

    if TYPE_CHECKING:  # what a weak reference does when called; in Python it would cost

        def __call__(self) -> Key | None: ...

    def begin(self, generation: object, expires: float, now: float) -> None:
        """Make it the record of a slot that is taken, and has no resource yet."""
        self.resource = self.code = self.borrower = None
        self.generation = generation
        self.expires = expires
        self.idle_since = self.checked = self.since = now
        self.uses = self.thread = self.lasti = 0
        self.busy = 0.0
        self.leaked = self.answered = self.watched = False

    @property
    def held(self) -> bool:
        """Whether the last thing that happened to it was an acquire.

        Between taking a key and stamping it an entry still looks released, so
        nobody is blamed for the time that it lay idle.
        """
        return self.since >= self.idle_since

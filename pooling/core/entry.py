"""Two objects for one slot: the durable entry and its travelling token.

The *entry* is the record: resource, counters, holder, generation, ages. The
pool holds it from the moment the slot is reserved until the close has
returned, so the number of entries *is* the number of slots taken (P2).

The *token* moves between the idle stack, a lease, a waiter's box and a worker's
job. The place that holds the token owns the entry (P1). The entry is a weak
reference to its token. When the last reference to the token is gone, for whatever
reason (a forgotten lease, an exception between two bytecodes, a worker that
died), the callback of the weak reference puts the entry into the reaper's
mailbox, and the slot is recovered (P8).

Assumes: the callback is a C function (``SimpleQueue.put``), so that no
exception can be raised before it has run. A Python ``__del__`` would receive a
pending asynchronous exception in its first bytecode and swallow it.
"""

from __future__ import annotations

import weakref
from types import CodeType
from typing import TYPE_CHECKING, Any

__all__ = ["DEAD", "Token", "Entry", "LaneEntry"]

DEAD = object()
"""The generation of a resource that was found dead."""


class Token:
    """Ownership of one entry; there is one token for each entry."""

    __slots__ = ("entry", "__weakref__")

    entry: Entry


class Entry(weakref.ref):  # type: ignore[type-arg]
    """The record of one slot.

    Only the holder of the token writes to it, so the hot path needs no lock.
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

    pool: Any  # weak reference to the pool, for the reaper that reclaims an orphan
    resource: Any  # None while it is being created
    generation: object  # set when the creation starts; None: close the resource when it returns
    expires: float  # end of its lifetime
    idle_since: float  # time of the last release
    checked: float  # time of the last round trip that proved it alive
    #: Whether the peer answered during the last release, at `checked`. ``None``: the answer to the reset is still to
    #: come. An error: the reset has failed, and the generation is `DEAD`.
    answered: bool | Exception | None
    since: float  # when its present state began: lent, creating, checking or closing
    uses: int  # finished leases
    busy: float  # total seconds of all finished leases
    thread: int  # identifier of the thread that acquired it last
    code: CodeType | None  # caller's code; never its frame, which would keep the lease alive
    lasti: int
    leaked: bool  # this lease was reported as a leak
    watched: bool  # has a socket, which is checked for a hangup (see `hangup`)

    # A weak reference hashes its referent, and cannot do so once that is gone.
    __hash__ = object.__hash__
    borrower: Any  # a `holders.Borrower` and the `since` of its lease, or None

    if TYPE_CHECKING:  # calling a weak reference; implemented in Python it would be slow

        def __call__(self) -> Token | None: ...

    def begin(self, generation: object, expires: float, now: float) -> None:
        """Initialise the record of a reserved slot that has no resource yet."""
        self.resource = self.code = self.borrower = None
        self.generation = generation
        self.expires = expires
        self.idle_since = self.checked = self.since = now
        self.uses = self.thread = self.lasti = 0
        self.busy = 0.0
        self.leaked = self.answered = self.watched = False

    @property
    def held(self) -> bool:
        """Whether it is lent: it was acquired after it was last released.

        Until `acquire` has set the start time, the entry still counts as
        released, so idle time is never attributed to a holder.
        """
        return self.since >= self.idle_since


class LaneEntry(Entry):
    """The record of one slot in a pool with lanes."""

    __slots__ = ("lane",)

    lane: Any  # a `lanes.LaneRecord` while it is lent, or on its way to a borrower

    def begin(self, generation: object, expires: float, now: float) -> None:
        super().begin(generation, expires, now)
        self.lane = None

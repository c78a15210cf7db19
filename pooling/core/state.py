"""The pool's state and the decisions about it: values in, a plan out.

No threads, no clock, no I/O. The pool calls these methods under its one lock
and carries out the plan after it has released the lock. Invariants:

- P1: a token is in one place: the idle stack, a waiter's box, or its holder.
- P2: ``len(entries) <= max_size``, except while a shrink is in progress. An
  entry counts from its reservation until its close has returned.
- P3: ``waiters`` is in order of arrival, and its head is served first.
- P8: after `serve`, no waiter waits while a resource is idle or a slot is free
  that may be filled. `serve` is level-triggered: it is correct from any state
  that an interruption may have left, and idempotent.

Counts are the sizes of containers. In a critical section a thing is stored
in its new place before it is removed from the old one, so an asynchronous
exception between the two loses nothing. Removing twice is harmless.

Assumes: ``append``, ``pop`` and ``popleft`` of a deque are atomic, because
the hot path uses them on ``idle`` without the lock.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from .entry import Entry, Token
from .idle import IdleStack
from .waiter import WaitQueue

__all__ = ["FILL_ATTEMPTS", "MOST_AHEAD", "NOT_BEGUN", "WorkerTask", "PoolState", "UNLIMITED"]

UNLIMITED = 1 << 60
_NOT_LENT = float("-inf")
NOT_BEGUN = float("inf")

MOST_AHEAD = 64
"""How many resources are created at once on workers ahead of need; each that is ready starts the next. More would
start a thread for each of them, and for a cheap factory that is most of the work."""

FILL_ATTEMPTS = 3
"""After more failures in a row a fill is given up; ``min_size`` and waiters are not."""


class WorkerTask(NamedTuple):
    """A check or reset that runs on a worker, and its time limit in seconds."""

    limit: float
    round_trip: bool  # makes a round trip: one that hangs counts as a death
    health: bool = False  # part of the health check
    late: bool = False  # the end of a reset: nobody knows when, and a waiter may have another resource before


class Limits(dict[str, int]):
    """Limits of the size, by the name of the part that has set each.

    Attributes:
        first: Those that a forked child begins with.
        notes: What messages say about them.
    """

    __slots__ = ("first", "notes")

    def __init__(self) -> None:
        super().__init__()
        self.first: dict[str, int] = {}
        self.notes: dict[str, str] = {}

    def follow(self, parent: Limits) -> None:
        """Begin with the first limits of the parent process."""
        self.first = dict(parent.first)
        self.update(self.first)


class PoolState:
    """Idle stack, wait queue, entries; guarded by the pool's lock, except for the ends of ``idle``.

    A pool with lanes has a `lanestate.LaneState` instead.
    """

    lanes: Any = None  # its `LaneQueue`
    entry_class = Entry

    def __init__(self, min_size: int, max_size: int, max_idle: int | None = None) -> None:
        self.limits = Limits()  # of the size, below the settings': see `sizing`
        self.entries: set[Entry] = set()  # all taken slots
        self.filling = 0  # creations that a fill has requested and that have not begun
        self.resize(min_size, max_size, max_idle)
        self.creating: set[Entry] = set()
        self.checking: dict[Entry, WorkerTask] = {}  # being validated or reset on a worker
        self.closing: set[Entry] = set()
        self.idle = IdleStack()
        self.waiters = WaitQueue()
        self.generation: object = object()
        self.started = False  # a resource or a fill has been requested
        self.paused = False
        self.closed = False

    def resize(self, min_size: int, max_size: int, max_idle: int | None) -> None:
        """Set the bounds; the size stays below the `limits`, too."""
        self.max_size = max_size = min([max_size, *self.limits.values()])
        self.min_size = min(min_size, max_size)
        self.max_idle = UNLIMITED if max_idle is None else max_idle
        self.filling = max(0, min(self.filling, max_size - len(self.entries)))

    # -- counts -------------------------------------------------------------

    @property
    def in_use(self) -> int:
        """Number of lent resources, those on their way to or from a borrower included."""
        elsewhere = len(self.idle) + len(self.creating) + len(self.checking) + len(self.closing)
        return max(0, len(self.entries) - elsewhere)

    @property
    def live(self) -> int:
        """Number of resources that exist and are not being closed."""
        return len(self.entries) - len(self.creating) - len(self.closing)

    @property
    def ready(self) -> int:
        """Number of resources that exist and are neither being checked nor closed."""
        return self.live - len(self.checking)

    @property
    def surplus(self) -> int:
        """Number of resources above ``max_size`` after a shrink, without those being closed."""
        return len(self.entries) - len(self.closing) - self.max_size

    @property
    def exhausted(self) -> bool:
        """Whether nothing is idle and no slot is free."""
        return not self.idle and len(self.entries) >= self.max_size

    @property
    def waiting_for_release(self) -> int:
        """Number of waiters that need a release: no idle resource, creation or free slot is left for them."""
        free = max(0, self.max_size - len(self.entries))
        return len(self.waiters) - len(self.idle) - len(self.creating) - len(self.checking) - free

    @property
    def fast_path_closed(self) -> bool:
        """Whether the fast path must not lend idle resources."""
        return self.closed or self.paused or self.surplus > 0

    def stats(self) -> dict[str, Any]:
        """Return all counts and bounds."""
        return {
            "size": len(self.entries),
            "idle": len(self.idle),
            "in_use": self.in_use,
            "creating": len(self.creating),
            "checking": len(self.checking),
            "closing": len(self.closing),
            "waiting": len(self.waiters),
            "min_size": self.min_size,
            "max_size": self.max_size,
            "paused": self.paused,
            "closed": self.closed,
        }

    def owns(self, entry: Entry) -> bool:
        """Whether the entry belongs to this state: not retired, and not the parent process's."""
        return entry in self.entries

    def lent(self) -> list[Entry]:
        """Entries held by borrowers."""
        resting = {token.entry for token in self.idle.tokens()}
        resting.update(self.creating, self.checking, self.closing)
        return [entry for entry in self.entries - resting if entry.held]

    # -- decisions ----------------------------------------------------------

    def reserve(self, entry: Entry) -> None:
        """Take a slot for an entry that is about to be created."""
        self.entries.add(entry)  # first: `retire` looks there for what an exception has left
        self.creating.add(entry)
        if self.filling:
            self.filling -= 1

    def retire(self, entry: Entry) -> bool:
        """Free the slot of an entry; return ``False`` if it was free already."""
        found = self.owns(entry)
        self.settle(entry)
        self.closing.discard(entry)
        self.entries.discard(entry)  # last: until then it can be retired again
        return found

    def settle(self, entry: Entry) -> None:
        """Note that a creation, check or reset has ended."""
        self.creating.discard(entry)
        self.checking.pop(entry, None)

    def accept(self, token: Token, now: float) -> str | None:
        """Give a resource to the oldest waiter, or put it on the idle stack.

        Returns:
            ``None``, or the reason why it must be closed instead.
        """
        entry = token.entry
        reason = self.unfit(entry, now)
        if reason is None and self.surplus > 0:
            reason = "surplus"
        if reason is None and not self.waiters and len(self.idle) >= self.max_idle:
            reason = "max_idle"
        if reason is None:
            if entry in self.creating:  # measured under the lock, the times are in the order of the idle stack
                entry.idle_since = now
            self.settle(entry)
            entry.since = _NOT_LENT
            if self.paused or not self.waiters or not self.waiters.hand_over(token):
                self.idle.put_back(token)
        return reason

    def unfit(self, entry: Entry, now: float) -> str | None:
        """Return the reason why an entry must not be lent any more, or ``None``."""
        if self.closed:
            return "closed"
        if now >= entry.expires:
            return "lifetime"
        if entry.generation is not self.generation:
            return "drained"
        return None

    def hand_over_one(self) -> bool:
        """Hand the only idle resource to the oldest waiter: the common case of `serve`, at less cost.

        The waiter checks its age itself.

        Returns:
            Whether `serve` would have nothing more to do.
        """
        idle, waiters = self.idle, self.waiters
        if not waiters or len(idle) != 1 or len(self.entries) != self.max_size or self.paused:
            return False
        try:
            token = idle.pop()
        except IndexError:  # lent meanwhile, without the lock
            return False
        token.entry.since = _NOT_LENT  # until the waiter has it, whatever the clock says
        if not waiters.hand_over(token):
            idle.append(token)
        return True

    def match_waiters(self, now: float) -> list[tuple[Token, str]]:
        """Hand idle resources to waiters, oldest waiter first.

        Returns:
            Resources to close, with the reason: too old, or released during a
            drain or a close.
        """
        closes: list[tuple[Token, str]] = []
        idle, waiters = self.idle, self.waiters
        while idle:
            try:
                token = idle.pop()
            except IndexError:  # lent meanwhile, without the lock
                break
            entry = token.entry
            if entry.generation is not self.generation or now >= entry.expires:
                self.close(entry)
                closes.append((token, self.unfit(entry, now) or "drained"))
                continue
            entry.since = _NOT_LENT
            if self.paused or not waiters or not waiters.hand_over(token):
                idle.append(token)
                break
        return closes

    def serve(self, allowed: int, now: float, ahead: int = MOST_AHEAD) -> tuple[int, list[tuple[Token, str]]]:
        """Match idle resources with waiters and plan creations and closes, from any state.

        Args:
            allowed: How many creations may be in progress at once; few or none
                while the server is down.
            now: The time, for the ages of resources.
            ahead: How many creations may be in progress at once ahead of need.

        Returns:
            The number of creations to start, and the resources to close with their reasons.
        """
        free = self.max_size - len(self.entries)
        closes = self._excess() if self.closed or (free < 0 and self.surplus > 0) else []
        if self.idle:
            closes += self.match_waiters(now)
            if len(self.idle) > self.max_idle:
                closes += self._excess()
        if free <= 0:
            return 0, closes
        return max(0, min(self._missing(ahead), self.creatable(allowed))), closes

    def creatable(self, allowed: int) -> int:
        """Number of creations that may begin: there must be a free slot for each, and ``allowed`` bounds those at once.

        It may be negative.
        """
        return min(self.max_size - len(self.entries), allowed - len(self.creating))

    def _missing(self, most_ahead: int) -> int:
        """Number of creations needed to serve every waiter and to fill up to ``min_size`` and as a fill requested."""
        if self.closed or not self.started:
            return 0
        creating = len(self.creating)
        short = self.min_size - (len(self.entries) - len(self.closing))
        ahead = min(max(short, self.filling), most_ahead - creating)
        coming = creating + sum(not task.late for task in self.checking.values())
        return ahead if self.paused else max(self.waiters.demand - coming, ahead)

    def _excess(self) -> list[tuple[Token, str]]:
        """Remove surplus resources from the idle stack, longest unused first."""
        closes: list[tuple[Token, str]] = []
        while True:
            if self.closed:
                reason = "closed"
            elif self.surplus > 0:
                reason = "surplus"
            elif len(self.idle) > self.max_idle:
                reason = "max_idle"
            else:
                return closes
            try:
                token = self.idle.popleft()
            except IndexError:
                return closes
            self.close(token.entry)
            closes.append((token, reason))

    def close(self, entry: Entry) -> None:
        """Mark an entry as closing; its slot stays taken (P2)."""
        entry.since = NOT_BEGUN  # set first: it must not look overdue in `closing`
        self.closing.add(entry)
        self.settle(entry)

    def drain(self) -> list[tuple[Token, str]]:
        """Begin a new generation; return the idle resources of the old one."""
        self.generation = object()
        closes: list[tuple[Token, str]] = []
        while True:
            try:
                token = self.idle.popleft()
            except IndexError:
                return closes
            self.close(token.entry)
            closes.append((token, "drained"))

"""The pool's state and the decisions about it: values in, a plan out.

No thread, no clock, no I/O. `Pool` calls these methods under its one lock
and carries out what they decide after unlocking. What they keep true:

- P1: a key is in one place: the idle stack, a waiter's box, or its holder.
- P2: ``len(entries) <= max_size`` but for a shrink in progress; an entry
  counts from its reservation until its close has returned.
- P3: ``waiters`` is in order of arrival, and its head is served first.
- P8: after `serve` no waiter is left beside an idle resource, nor beside a
  free slot that may be filled. It is level-triggered: right from whatever
  state an interruption left, and harmless when called twice.

Counts are the sizes of containers. Inside a critical section things are
stored first and removed after, so that an asynchronous exception between
the two loses nothing; removing twice is harmless.

Assumes: ``append``, ``pop`` and ``popleft`` of a deque are atomic, because
the hot path uses them on ``idle`` without the lock.
"""

from __future__ import annotations

import queue
from collections import deque
from typing import NamedTuple

from .entry import Entry, Key
from .waiter import Waiter

__all__ = ["Errand", "PoolState", "UNLIMITED"]

UNLIMITED = 1 << 60
_NOT_LENT = float("-inf")
_NOT_BEGUN = float("inf")


class Errand(NamedTuple):
    """What a worker does with a resource, and for how many seconds it may."""

    limit: float
    asks: bool  # makes a round trip: if that hangs, the resource is as good as dead
    health: bool = False  # on behalf of the health check


class PoolState:
    """Idle, waiters, entries: all guarded by the pool's lock but for the ends of ``idle``."""

    def __init__(self, min_size: int, max_size: int, max_idle: int | None = None) -> None:
        self.min_size = min_size
        self.max_size = max_size
        self.max_idle = max_idle
        self.entries: set[Entry] = set()  # all slots taken
        self.creating: set[Entry] = set()
        self.checking: dict[Entry, Errand] = {}  # validated or reset on a worker
        self.closing: set[Entry] = set()
        self.idle: deque[Key] = deque()  # right end: the one used last
        self.waiters: deque[Waiter] = deque()  # left end: the oldest
        self.queued: set[int] = set()  # the threads of these
        self.generation: object = object()
        self.started = False  # somebody asked for a resource or for a fill
        self.paused = False
        self.closed = False

    # -- what is where ------------------------------------------------------

    @property
    def in_use(self) -> int:
        """How many are with borrowers (a key on its way there or back counts)."""
        elsewhere = len(self.idle) + len(self.creating) + len(self.checking) + len(self.closing)
        return max(0, len(self.entries) - elsewhere)

    @property
    def live(self) -> int:
        """How many can still come to a waiter without a creation."""
        return len(self.entries) - len(self.creating) - len(self.closing)

    @property
    def surplus(self) -> int:
        """How many too many there are after a shrink, those being closed left out."""
        return len(self.entries) - len(self.closing) - self.max_size

    @property
    def spent(self) -> bool:
        """Whether nothing is idle and no slot is free: there is nothing to serve with."""
        return not self.idle and len(self.entries) >= self.max_size

    @property
    def queueing(self) -> int:
        """How many wait for what others hold: not for what is being made, or may be."""
        room = max(0, self.max_size - len(self.entries))
        return len(self.waiters) - len(self.idle) - len(self.creating) - len(self.checking) - room

    @property
    def barred(self) -> bool:
        """Whether nothing may be lent off the idle stack without a look at the state."""
        return self.closed or self.paused or self.surplus > 0

    def owns(self, entry: Entry) -> bool:
        """Whether the entry is one of this state (not the parent's, not retired)."""
        return entry in self.entries

    def lent(self) -> list[Entry]:
        """The entries that borrowers hold."""
        resting = {key.entry for key in _copy(self.idle)}
        resting.update(self.creating, self.checking, self.closing)
        return [entry for entry in self.entries - resting if entry.held]

    # -- the line -----------------------------------------------------------

    def join(self, waiter: Waiter) -> None:
        """Put a waiter where its time of arrival belongs."""
        line = self.waiters
        self.queued.add(waiter.thread)
        if not line or line[-1].arrived < waiter.arrived:
            line.append(waiter)
            return
        place = len(line)
        while place and _before(waiter, line[place - 1]):
            place -= 1
        line.insert(place, waiter)

    def leave(self, waiter: Waiter) -> Key | BaseException | None:
        """Take a waiter out of the line, for whatever reason it leaves.

        Returns:
            What it was given in the meantime: the caller must pass a key on.
        """
        self.queued.discard(waiter.thread)
        waiter.given = True
        try:
            self.waiters.remove(waiter)
        except ValueError:
            pass
        waiter.context = None
        try:
            item: Key | BaseException = waiter.box.get(False)
        except queue.Empty:
            return None
        return item

    def fail_waiters(self, error: type[BaseException], text: str, cause: BaseException | None = None,
                     attempts: int = 0) -> None:
        """Send waiters away, those who have seen at least so many failed attempts."""
        for waiter in list(self.waiters):
            if waiter.attempts >= attempts and not waiter.given:
                reason = error(text)
                reason.__cause__ = cause
                waiter.give(reason)
                self.queued.discard(waiter.thread)
                self.waiters.remove(waiter)

    # -- decisions ----------------------------------------------------------

    def reserve(self, entry: Entry) -> None:
        """Take a slot for an entry that is about to be made."""
        self.entries.add(entry)  # first: `retire` looks there for what an exception has left
        self.creating.add(entry)

    def retire(self, entry: Entry) -> bool:
        """Give an entry's slot back; ``False`` if that was done before."""
        found = self.owns(entry)
        self.settle(entry)
        self.closing.discard(entry)
        self.entries.discard(entry)  # last: until then it can be retired again
        return found

    def settle(self, entry: Entry) -> None:
        """End its time on a worker: it is made, checked or reset now."""
        self.creating.discard(entry)
        self.checking.pop(entry, None)

    def accept(self, key: Key, now: float) -> str | None:
        """Let a resource in, for the oldest waiter or onto the idle stack.

        Returns:
            ``None``, or the reason why it must be closed instead.
        """
        entry = key.entry
        reason = self.unfit(entry, now)
        if reason is None and self.surplus > 0:
            reason = "surplus"
        if reason is None and not self.waiters and self._full(len(self.idle) + 1):
            reason = "max_idle"
        if reason is None:
            self.settle(entry)
            entry.since = _NOT_LENT
            if self.waiters and not self.paused:
                self._hand(key)
            else:
                self._lay_down(key)
        return reason

    def _full(self, resting: int) -> bool:
        """Whether so many are too many to lie idle."""
        return self.max_idle is not None and resting > self.max_idle

    def _lay_down(self, key: Key) -> None:
        """Put a key on the idle stack by its rest: what was only checked goes back where it was.

        On top it would look like the one used last, the stack would rotate,
        and nothing would ever age out.
        """
        idle, entry = self.idle, key.entry
        since = entry.idle_since
        if entry.checked <= since and (not idle or idle[-1].entry.idle_since <= since):
            idle.append(key)  # released or made just now
            return
        for place, other in enumerate(_copy(idle)):
            if other.entry.idle_since >= since:
                idle.insert(place, key)  # near enough, if somebody took or gave one meanwhile
                return
        idle.append(key)

    def unfit(self, entry: Entry, now: float) -> str | None:
        """The reason why an entry may not be lent any more, or ``None``."""
        if self.closed:
            return "closed"
        if now >= entry.expires:
            return "lifetime"
        if entry.generation is not self.generation:
            return "drained"
        return None

    def relay(self) -> bool:
        """Give the one idle resource to the oldest waiter: what `serve` mostly comes to, for less.

        Its age is left to the waiter, who looks at that anyway.

        Returns:
            Whether there is nothing left to serve with, nor anything to close.
        """
        idle, waiters = self.idle, self.waiters
        if not waiters or len(idle) != 1 or len(self.entries) != self.max_size or self.paused:
            return False
        try:
            key = idle.pop()
        except IndexError:  # lent meanwhile, without the lock
            return False
        self._hand(key)
        return True

    def pair(self, now: float) -> list[tuple[Key, str]]:
        """Give idle resources to waiters, oldest first.

        Returns:
            What lay on top and must be closed, and why: what was released
            while a drain or a close took place.
        """
        closes: list[tuple[Key, str]] = []
        idle, waiters = self.idle, self.waiters
        while idle:
            try:
                key = idle.pop()
            except IndexError:  # lent meanwhile, without the lock
                break
            entry = key.entry
            if entry.generation is not self.generation or now >= entry.expires:
                self.close(entry)
                closes.append((key, self.unfit(entry, now) or "drained"))
            elif not waiters or self.paused:
                idle.append(key)
                break
            else:
                self._hand(key)
        return closes

    def _hand(self, key: Key) -> None:
        """Give a key to the first who still wants one: put and mark first, remove after."""
        waiters = self.waiters
        while waiters:
            waiter = waiters[0]
            accepted = waiter.give(key)
            self.queued.discard(waiter.thread)
            if waiters and waiters[0] is waiter:
                waiters.popleft()
            if accepted:
                return
        self.idle.append(key)

    def serve(self, allowed: int, now: float) -> tuple[int, list[tuple[Key, str]]]:
        """Make it right from whatever state: pair, and plan the rest.

        Args:
            allowed: How many creations may be under way at once; few or none
                while the server is down.
            now: The time, for what has grown too old.

        Returns:
            How many are to be made, and what is to be closed and why.
        """
        room = self.max_size - len(self.entries)
        closes = self._excess() if self.closed or (room < 0 and self.surplus > 0) else []
        if self.idle:
            closes += self.pair(now)
            if self.max_idle is not None and self._full(len(self.idle)):
                closes += self._excess()
        if room <= 0:
            return 0, closes
        room = min(room, allowed - len(self.creating))
        return max(0, min(self._missing(), room)), closes

    def _missing(self) -> int:
        """How many creations would serve every waiter and fill up to ``min_size``."""
        if self.closed or not self.started:
            return 0
        coming = len(self.creating) + len(self.checking)
        short = self.min_size - (len(self.entries) - len(self.closing))
        return max(len(self.waiters) - coming, short) if not self.paused else short

    def _excess(self) -> list[tuple[Key, str]]:
        """Take off the idle stack what is too many, the longest unused first."""
        closes: list[tuple[Key, str]] = []
        while True:
            if self.closed:
                reason = "closed"
            elif self.surplus > 0:
                reason = "surplus"
            elif self._full(len(self.idle)):
                reason = "max_idle"
            else:
                return closes
            try:
                key = self.idle.popleft()
            except IndexError:
                return closes
            self.close(key.entry)
            closes.append((key, reason))

    def close(self, entry: Entry) -> None:
        """Note that an entry is to be closed; its slot stays taken (P2)."""
        entry.since = _NOT_BEGUN  # before it is seen there: it must not look overdue
        self.closing.add(entry)
        self.settle(entry)

    def check(self, entry: Entry, errand: Errand) -> None:
        """Note that an entry is validated or reset on a worker."""
        self.checking[entry] = errand

    def drain(self) -> list[tuple[Key, str]]:
        """Start a new generation; returns the idle ones of the old."""
        self.generation = object()
        closes: list[tuple[Key, str]] = []
        while True:
            try:
                key = self.idle.popleft()
            except IndexError:
                return closes
            self.close(key.entry)
            closes.append((key, "drained"))


def _before(one: Waiter, other: Waiter) -> bool:
    """Whether one arrived before the other; at the same instant who was there before wins."""
    if one.arrived == other.arrived:
        return one.again and not other.again
    return one.arrived < other.arrived


def _copy(stack: deque[Key]) -> list[Key]:
    """A copy of a deque that others change meanwhile.

    Assumes nothing of ``list(deque)``: it raises when the deque changes under
    it, which only happens without the GIL, or when the collector runs a
    destructor in between.
    """
    while True:
        try:
            return list(stack)
        except RuntimeError:
            continue

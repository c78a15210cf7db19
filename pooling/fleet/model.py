"""Who may have how many connections: values in, decisions out. No clock, no threads, no I/O.

`Ledger` is what a store knows, and `Ledger.renew` is its only decision. The
local store runs it as it is; those of PostgreSQL and Redis say the same in SQL
and in Lua, and the tests compare them with it. `Holding` is what a member
knows. `split` and `raised` divide the share of a process between its pools.

Invariants:

- F1: the sum of what all rows hold, and of the floors of absent members, grows
  only while it is within the total.
- F2: a member's limit is at most what its row holds; once its row may be gone,
  at most its floor.
- F3: shares are max-min fair: a process that gets less than it needs gets as much as
  anyone else, or 1 less.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import NamedTuple

__all__ = [
    "AT_ONCE", "MARGIN", "RENEWAL", "RETRY", "TTL", "Answer", "Holding", "Ledger", "PoolNeed", "Request", "Row",
    "Terms", "fair", "level", "raised", "split",
]  # fmt: skip

TTL = 15.0
"""Seconds that a share is valid without a renewal. Doorman's leases last 5 minutes; connections are dearer."""

RENEWAL = 5.0
"""Seconds between two renewals."""

RETRY = 1.0
"""Seconds after which a member asks again that got no answer, or less than its fair share."""

AT_ONCE = 0.1
"""The least seconds between two requests of a member."""

MARGIN = 5.0
"""Seconds before the end of its lease at which a member that gets no answer begins to shrink."""


class Terms(NamedTuple):
    """What all members of a budget agree on.

    Attributes:
        total: Connections of all members together.
        floor: Connections that each member keeps.
        max_members: Number of processes at most; ``None`` if not known.
        reserve: Connections of ``total`` that are not handed out, because the store itself may need them.
        ttl: Seconds that a share is valid; infinite for a store that sees when a process ends.
    """

    total: int
    floor: int = 1
    max_members: int | None = None
    reserve: int = 0
    ttl: float = TTL


class Request(NamedTuple):
    """What a member asks for."""

    member: str
    number: int
    need: int  # connections in use, and borrowers waiting
    like: int  # what it has open, or `min_size`: it keeps them if no process lacks them
    held: int  # the most it may have from now on


class Answer(NamedTuple):
    """What a store answers."""

    share: int
    fair: int  # what the member will get once the others have closed their surplus
    others: int  # held by the other members
    members: int
    learning: float = 0.0  # seconds until the store grants more than floors


@dataclass
class Row:
    """What a store knows of a member."""

    need: int
    held: int
    share: int
    until: float
    number: int


@dataclass
class Ledger:
    """What a store knows. A store that begins without memory learns for one TTL, unless there can be no member.

    Attributes:
        rows: The members.
        epoch: Which incarnation of the store wrote it last; another one means a restart.
        learning: Until when only floors are granted.
    """

    rows: dict[str, Row] = field(default_factory=dict)
    epoch: str | None = None
    learning: float = -inf

    def renew(self, request: Request, terms: Terms, now: float, epoch: str, fresh: bool = False) -> Answer:
        """Decide on a request.

        Args:
            request: Of a member.
            terms: Of the budget.
            now: The store's time, in seconds.
            epoch: The incarnation of the store.
            fresh: Whether a store without memory is a new one, which no member has used before.
        """
        rows, member = self.rows, request.member
        restarted = epoch != self.epoch and not (fresh and self.epoch is None and not rows)
        # With ``max_members`` a member that is not known holds no more than its floor, which is kept for it.
        away = bool(rows) and terms.max_members is None and all(row.until <= now for row in rows.values())
        if restarted or away:
            self.learning = now + terms.ttl if terms.ttl < inf else now
        self.epoch = epoch
        for name in [name for name, row in rows.items() if row.until <= now and name != member]:
            del rows[name]
        own = rows.get(member)
        late = own is not None and request.number <= own.number
        if own is None or not late:
            rows[member] = own = Row(request.need, request.held, request.held, now + terms.ttl, request.number)
        size = terms.total - terms.reserve
        least = 0
        if terms.max_members is not None:
            size -= terms.floor * max(0, terms.max_members - len(rows))
            least = terms.floor  # each member may use it unasked
        wants = Counter(max(row.need, terms.floor) for row in rows.values())
        top, over = level(size, wants)
        held, coming, short = 0, 0, 0.0
        for row in rows.values():
            holds = max(row.held, least)
            held += holds
            short += max(0, min(max(row.need, terms.floor), top) - holds)
            if row is not own:
                coming += max(0, holds - max(row.share, least))
        want, holds, free = max(own.need, terms.floor), max(own.held, least), max(0, size - held)
        mine = min(want, top)
        share: float
        if not late:
            if now < self.learning:
                share = max(holds, min(terms.floor, holds + free))
            else:
                share = min(mine, holds + free)
                # No process takes more than it needs, or than others have, while one of them has less.
                short -= max(0, mine - holds)
                most = holds + max(0, free - short)
                more = min(request.like, most) if top == inf else min(want, top + (over > 0), most)
                lack = short - (size - held) - coming
                share = max(share, more if lack <= 0 else min(more, holds - lack))
            own.share = max(int(share), least)
            own.held = max(own.held, own.share)
        return Answer(own.share, int(mine), held - holds, len(rows), max(0.0, self.learning - now))

    def release(self, member: str, number: int) -> None:
        """Forget a member that holds nothing any more."""
        own = self.rows.get(member)
        if own is not None and number > own.number:
            del self.rows[member]


def level(size: int, wants: Mapping[int, int]) -> tuple[float, int]:
    """Return the level of max-min fair shares: everyone gets what it wants, but no more than that.

    Args:
        size: What there is.
        wants: How many want each number.

    Returns:
        The level, infinite if there is enough for all; and what is left over, less than one for each that gets less
        than it wants.
    """
    left, size = sum(wants.values()), max(0, size)
    for want in sorted(wants):
        if want * left > size:
            return size // left, size % left
        size -= want * wants[want]
        left -= wants[want]
    return inf, size


def fair(size: int, wants: Sequence[int]) -> list[int]:
    """Return max-min fair shares; what is left over goes to the first."""
    top, over = level(size, Counter(wants))
    shares = [int(min(want, top)) for want in wants]
    if top < inf:
        for place, want in enumerate(wants):
            if over and want > top:
                shares[place] += 1
                over -= 1
    return shares


class Holding:
    """What a member knows of its share. The caller keeps its connections within `limit`.

    Args:
        terms: Of the budget.
        member: Its name in the store.
    """

    def __init__(self, terms: Terms, member: str) -> None:
        self.terms = terms
        self.member = member
        self.number = 0
        self.leave()

    def leave(self) -> None:
        """Begin anew: it holds nothing, and the store knows it."""
        self.share = 0 if self.terms.max_members is None else self.terms.floor
        self.until = -inf  # when its lease ends, by its own clock
        self.sent = -inf  # when the last request was sent
        self.asked = Request(self.member, self.number, 0, 0, 0)
        self.answer: Answer | None = None  # the last one
        self.failures = 0  # requests without an answer, in a row

    def limit(self, now: float) -> int:
        """Return how many connections it may have now."""
        return self.share if now < self.until - MARGIN else min(self.share, self.terms.floor)

    def due(self, need: int, size: int) -> float:
        """Return when the next request is due.

        Args:
            need: Connections in use, and borrowers waiting.
            size: Connections that are open, being opened or being closed.
        """
        answer, asked, share = self.answer, self.asked, self.share
        if self.failures or answer is None:
            return self.sent + RETRY
        if need > max(share, asked.need) or max(size, share) < asked.held:  # it lacks more, or has closed its surplus
            return self.sent + AT_ONCE
        if answer.learning:
            return self.sent + min(RENEWAL, max(AT_ONCE, answer.learning))
        return self.sent + (RETRY if answer.fair > share else RENEWAL)

    def ask(self, now: float, need: int, like: int, size: int) -> Request:
        """Return a request; nothing above its ``held`` may be opened from now on, until an answer says so.

        Args:
            now: The time before it is sent.
            need: Connections in use, and borrowers waiting.
            like: What it would like to keep open.
            size: Connections that are open, being opened or being closed, after `limit` was applied.
        """
        self.share = self.limit(now)
        self.number += 1
        self.sent = now
        self.asked = Request(self.member, self.number, need, like, max(self.share, size))
        return self.asked

    def accept(self, answer: Answer) -> None:
        """Take in the answer to the last request."""
        self.answer, self.share, self.failures = answer, answer.share, 0
        self.until = self.sent + self.terms.ttl

    def miss(self) -> None:
        """Note that the last request has got no answer."""
        self.failures += 1


class PoolNeed(NamedTuple):
    """What one pool of a process needs."""

    need: int
    like: int
    most: int
    size: int  # open, being opened or being closed
    limit: int  # in force now


def split(share: int, pools: Sequence[PoolNeed]) -> list[int]:
    """Split a share between the pools of a process: what they need, then what they like, then evenly.

    Returns:
        A limit for each. Those that are lower than the one in force apply at once; for the others see `raised`.
    """
    goals = [0] * len(pools)
    for wanted in ([one.need for one in pools], [one.like for one in pools], [one.most for one in pools]):
        more = [max(0, want - goal) for want, goal in zip(wanted, goals)]
        goals = [goal + part for goal, part in zip(goals, fair(share - sum(goals), more))]
    return goals


def raised(share: int, goals: Sequence[int], pools: Sequence[PoolNeed]) -> list[int]:
    """Return the limits that can be raised now: by what is free, as in the store.

    Args:
        share: Of the process.
        goals: From `split`, where those below the limits in force have been applied.
        pools: Measured after that.
    """
    free = share - sum(max(one.limit, one.size) for one in pools)
    limits = []
    for goal, one in zip(goals, pools):
        held = max(one.limit, one.size)
        limit = max(one.limit, min(goal, held + max(0, free)))
        free -= max(0, limit - held)
        limits.append(limit)
    return limits

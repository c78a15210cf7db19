"""This process's part in a budget: measure what its pools need, renew the share, set their limits.

It begins with the reaper, at the first use of a pool in a process. The reaper
decides when, and a worker talks to the store. A forked child gets a new
membership: its pools are at 0 until that one has a share.
"""

from __future__ import annotations

import _thread
import logging
import os
import secrets
import time
from math import inf
from typing import Any

from .._fields import fields
from ..core.clock import SYSTEM
from ..core.engine import Engine
from ..core.outage import Incident
from ..core.report.messages import format_error
from ..core.runtime import registry
from ..core.sizing import limit_size
from .kinds import open_store
from .model import MARGIN, Holding, PoolNeed, Terms, raised, split
from .stores import PATIENCE, Store

__all__ = ["BY", "HANGS", "SETTLED", "Membership"]

logger = logging.getLogger("pooling")

BY = "budget"
"""The name of the limits."""

HANGS = 3 * PATIENCE
"""Seconds after which a store that gives neither an answer nor an error is reported."""

SETTLED = 12.0
"""Seconds, two renewals, for which a store must answer before the log reports it: failures until then are one incident.
"""

_SOON = 0.25  # seconds until the next look at pools that lack something, or have a surplus
_UNUSED = 0.5  # seconds until the next look at pools that were never used, while others of the process are
_LEAST = 0.02
_RECENT = 1.0


class Membership:
    """One process in a budget.

    Args:
        name: Of the budget.
        terms: Of the budget; what the store adds is missing.
        store: Which one, see `open_store`.
    """

    def __init__(self, name: str, terms: Terms, store: str) -> None:
        self.pid = os.getpid()
        self.name = name
        self.store: Store = open_store(store, name)
        self.holding = Holding(terms._replace(ttl=self.store.ttl, reserve=self.store.reserve), secrets.token_hex(8))
        self.due = inf  # of the request at the reaper that counts
        self._lock = _thread.allocate_lock()  # native, under gevent too; never waited for, only tried
        self.woken = False  # while a step was taken, or before it
        self.stepped = -inf  # when the last one was
        self._busy = False  # a worker talks to the store
        self._since = 0.0  # when it began
        self._peak, self._peak_at = 0, -inf  # the highest need of the last second
        self._down_since: float | None = None
        self._incident = Incident()  # answers that fail again soon are one incident in the log
        self._error = ""
        self._warned = False

    # -- called by the reaper ------------------------------------------------------

    def step(self, engines: list[Engine[Any]], now: float) -> float:
        """Set the limits, and have the share renewed if that is due; return when to call again."""
        if self.holding.answer is None and not any(one.state.started and not one.state.closed for one in engines):
            return now + _UNUSED  # nothing is opened for pools that were never used
        if self.holding.answer is not None and all(engine.state.closed for engine in engines):
            if not self._busy and not any(engine.state.entries for engine in engines):
                self._busy = True
                registry.runtime_of(SYSTEM).workers.submit(self._leave, engines)
            return now + _UNUSED
        self.apply(engines)
        needs = [_measure(engine) for engine in engines]
        need, size = sum(one.need for one in needs), sum(one.size for one in needs)
        if need >= self._peak or now - self._peak_at > _RECENT:
            self._peak, self._peak_at = need, now
        due = self.holding.due(need, size)
        if now >= due and not self._busy and engines:
            self._busy, self._since = True, now
            registry.runtime_of(SYSTEM).workers.submit(self._renew, engines)
        limit = self.holding.limit(now)
        if self._busy:
            due = now + _SOON
            if now - self._since > HANGS and self._down_since is None:
                self._no_answer(TimeoutError(f"none within {HANGS:g} s"))
        elif need > limit or size > limit:
            due = min(due, now + _SOON)
        lapse = self.holding.until - MARGIN
        return max(now + _LEAST, min(due, lapse) if lapse > now else due)

    # -- limits -------------------------------------------------------------------

    def apply(self, engines: list[Engine[Any]], wait: bool = False) -> None:
        """Set the limits of the pools: first those that shrink, then those that grow.

        Args:
            engines: Of the pools.
            wait: Wait for another thread that does it; the reaper does not.
        """
        while not self._lock.acquire(False):
            if not wait:
                return  # the worker looks at them after it
            time.sleep(0.001)
        try:
            self._apply(engines)
        finally:
            self._lock.release()

    def _apply(self, engines: list[Engine[Any]]) -> None:
        share, note = self.holding.limit(SYSTEM.now()), self.note()
        needs = [_measure(engine) for engine in engines]
        goals = split(share, needs)
        for engine, goal, one in zip(engines, goals, needs):
            engine.state.limits.notes[BY] = note
            if goal < one.limit:
                limit_size(engine, BY, goal)
        needs = [_measure(engine) for engine in engines]
        for engine, limit, one in zip(engines, raised(share, goals, needs), needs):
            if limit > one.limit:
                limit_size(engine, BY, limit)

    # -- the store ------------------------------------------------------------------

    def _renew(self, engines: list[Engine[Any]]) -> None:
        holding = self.holding
        try:
            if self.pid != os.getpid():
                return
            self.apply(engines, wait=True)
            needs, now = [_measure(engine) for engine in engines], SYSTEM.now()
            need = max(sum(one.need for one in needs), self._peak if now - self._peak_at <= _RECENT else 0)
            request = holding.ask(now, need, sum(one.like for one in needs), sum(one.size for one in needs))
            try:
                answer = self.store.renew(request, holding.terms, _owners(engines))
            except Exception as error:
                holding.miss()
                self._no_answer(error)
            else:
                holding.accept(answer)
                self._answered()
            self.apply(engines, wait=True)
        finally:
            self._busy = False

    def _leave(self, engines: list[Engine[Any]]) -> None:
        try:
            self.leave(engines)
        except Exception as error:  # its lease ends by itself
            self._error = format_error(error)
        finally:
            self.holding.leave()
            self._busy = False

    def leave(self, engines: list[Engine[Any]]) -> None:
        """Return the share, if the pools have closed everything. For the exit, and for closed pools."""
        if self.pid != os.getpid() or self.holding.answer is None or any(engine.state.entries for engine in engines):
            return
        self.holding.number += 1
        self.store.release(self.holding.member, self.holding.number, _owners(engines))

    # -- messages --------------------------------------------------------------------

    def _no_answer(self, error: BaseException) -> None:
        self._error = format_error(error)
        if self._down_since is not None:
            return
        self._down_since = SYSTEM.now()
        if self._incident.begins(self._down_since):
            terms = self.holding.terms
            number = min(self.holding.share, terms.floor)
            keeps = f"; {terms.ttl - MARGIN:.0f} s after its last renewal it keeps at most {number}"
            logger.warning(
                "budget %r: no answer from the store: %s; until there is one, this process opens no more than the %d "
                "connections that it may have%s", self.name, self._error, self.holding.share,
                "" if terms.ttl == inf else keeps,
                extra=fields("budget_lost", budget=self.name, error=self._error),
            )  # fmt: skip

    def _answered(self) -> None:
        now = SYSTEM.now()
        if self._down_since is not None:
            self._down_since = None
            self._incident.ends(now)
        over = self._incident.over(now, SETTLED)
        if over is not None:
            seconds, flaps = over
            logger.warning(
                "budget %r: the store answers again after %.1f s%s", self.name, seconds,
                f", in which it was silent {flaps + 1} times" if flaps else "",
                extra=fields("budget_found", budget=self.name, seconds=seconds),
            )  # fmt: skip
        answer, terms = self.holding.answer, self.holding.terms
        assert answer is not None
        most = (terms.total - terms.reserve) // terms.floor if terms.max_members is None else terms.max_members
        if answer.members > most and not self._warned:
            self._warned = True
            logger.warning(
                "budget %r: %d processes share it, more than %s allows: %d", self.name, answer.members,
                "its total" if terms.max_members is None else "max_members", most,
                extra=fields("budget_crowded", budget=self.name, members=answer.members, most=most),
            )  # fmt: skip

    def note(self) -> str:
        """Return the share, for messages."""
        holding, answer = self.holding, self.holding.answer
        text = f"{holding.limit(SYSTEM.now())} of {holding.terms.total}"
        if self._down_since is not None:
            return f"{text}, no answer from the store for {SYSTEM.now() - self._down_since:.0f} s ({self._error})"
        if answer is None:
            return f"{text}, no answer from the store yet"
        others = answer.members - 1
        return f"{text}, {answer.others} held by {others} other process{'es'[: 2 * (others != 1)]}"

    def stats(self) -> dict[str, Any]:
        """Return the figures of the budget as this process knows them."""
        holding, answer = self.holding, self.holding.answer
        known = answer is not None
        return {
            "name": self.name, "total": holding.terms.total, "share": holding.limit(SYSTEM.now()),
            "held_by_others": answer.others if answer is not None else None,
            "members": answer.members if answer is not None else None,
            "lost": self._error if self._down_since is not None or not known else None, "note": self.note(),
        }  # fmt: skip


def _measure(engine: Engine[Any]) -> PoolNeed:
    with engine.lock:
        state = engine.state
        most = min([engine.settings.max_size, *(limit for by, limit in state.limits.items() if by != BY)])
        limit = state.limits.get(BY, 0)
        size = len(state.entries)
        coming = len(state.creating) + len(state.checking)
        need = min(most, state.in_use + max(coming, len(state.waiters)))
        if state.closed:
            return PoolNeed(need, 0, 0, size, limit)
        like = max(size - len(state.closing), engine.settings.min_size if state.started else 0)
        return PoolNeed(need, min(most, like), most, size, limit)


def _owners(engines: list[Engine[Any]]) -> list[Any]:
    found = [engine.owner() for engine in engines if engine.owner is not None]
    return [pool for pool in found if pool is not None]

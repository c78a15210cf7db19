"""The state of a pool with lanes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .._masking import shown
from ..lanes import DEFAULT, Lanes, current_lane
from ..settings import PoolSettings
from .entry import Entry, LaneEntry, Token
from .lanes import LaneQueue, LaneRecord, lane_snapshots
from .state import MOST_AHEAD, UNLIMITED, PoolState

__all__ = ["LaneState", "state_for"]


def state_for(settings: PoolSettings, lock: Any) -> PoolState:
    """Return an empty state for a pool with these settings."""
    sizes = settings.min_size, settings.max_size, settings.max_idle
    return PoolState(*sizes) if settings.lanes is None else LaneState(*sizes, Lanes.of(settings.lanes), lock)


class LaneState(PoolState):
    """`PoolState` with a `LaneQueue`. What it asks first is the time, for the levels."""

    lanes: LaneQueue
    entry_class = LaneEntry

    def __init__(self, min_size: int, max_size: int, max_idle: int | None, lanes: Lanes, lock: Any) -> None:
        self.lanes = LaneQueue(lanes, lock)
        super().__init__(min_size, max_size, max_idle)
        self.waiters = self.lanes

    def resize(self, min_size: int, max_size: int, max_idle: int | None) -> None:
        super().resize(min_size, max_size, max_idle)
        self.lanes.fit(self.max_size)

    def lane(self, name: str | None) -> LaneRecord:
        """Return a lane; for ``None`` that of the current code, or the default.

        Raises:
            ValueError, TypeError: The pool has no lane of this name, or it is not a string.
        """
        lanes = self.lanes.by_name
        if name is None:
            return lanes.get(current_lane() or DEFAULT) or lanes[DEFAULT]
        if not isinstance(name, str):
            raise TypeError(f"lane must be the name of a lane, not {shown(name)}")
        if name not in lanes:
            raise ValueError(f"lane must be one of {', '.join(lanes)}, not {shown(name)}")
        return lanes[name]

    def probe_lane(self) -> LaneRecord:
        """Return the lane of health checks."""
        return self.lanes.by_name.get("health") or self.lanes.by_name[DEFAULT]

    # -- counts ---------------------------------------------------------------------

    def stats(self) -> dict[str, Any]:
        return {**super().stats(), "lanes": {name: one.counts() for name, one in lane_snapshots(self.lanes).items()}}

    # -- decisions ------------------------------------------------------------------

    def give_back(self, token: Token) -> None:
        """Push a released resource onto the idle stack, without the lock; `serve` has to follow."""
        self.lanes.returned.append(token.entry)  # first: once it is idle, it may be lent again, after a `collect`
        self.idle.append(token)

    def take(self, lane: LaneRecord, now: float, pop: Callable[[], Token]) -> Token | None:
        """Take an idle resource for a lane, unless there are waiters that come first."""
        lanes = self.lanes
        lanes.tick(now)
        if self.fast_path_closed or not lanes.may_have_one(lane) or (lanes and lanes.demand):
            return None
        try:
            token = pop()
        except IndexError:
            return None
        if lanes.served > lane.level:
            lanes.catch_up(lane)
        lanes.lend(lane, token.entry)
        lane.at_once += 1
        return token

    def accept(self, token: Token, now: float) -> str | None:
        self.lanes.tick(now)
        return super().accept(token, now)

    def serve(self, allowed: int, now: float, ahead: int = MOST_AHEAD) -> tuple[int, list[tuple[Token, str]]]:
        self.lanes.tick(now)
        return super().serve(allowed, now, ahead)

    def hand_over_one(self) -> bool:
        """Take back what was released; return whether there is nothing more to do, which is so without waiters."""
        if self.lanes or self.closed or self.filling or self.max_idle != UNLIMITED:
            return False
        current = all(entry.generation is self.generation for entry in self.lanes.collect())
        size = len(self.entries)
        return current and size <= self.max_size and self.min_size <= size - len(self.closing)

    def settle(self, entry: Entry) -> None:
        super().settle(entry)
        lane: LaneRecord | None = getattr(entry, "lane", None)
        if lane is not None:
            lane.advance(entry.idle_since)  # the end of its lease, if it was released
            self.lanes.take_back(entry)

    # -- deadlocks ------------------------------------------------------------------

    def blockers(self, lane: LaneRecord) -> list[Entry]:
        """Return the leases of which one must end before a lane that is full may have one more."""
        lanes = [lane] if lane.full else self.lanes.by_name.values()
        return [entry for one in lanes for entry in one.lent]

    def is_stuck(self, lane: LaneRecord, thread: int) -> bool:
        """Whether only a timeout can help the waiters of a lane, and this thread is one of those that block it."""
        if any(not entry.held or entry.thread not in self.lanes.threads for entry in self.blockers(lane)):
            return False  # the usual case: a holder is working
        if self.creating or self.checking or self.closing:
            return False
        return lane in self.stuck() and any(entry.thread == thread for entry in self.blockers(lane))

    def stuck(self) -> list[LaneRecord]:
        """Return the lanes that only a timeout can help: the threads that block them wait in such lanes themselves."""
        lanes = self.lanes.by_name.values()
        waits_in = {waiter.thread: lane for lane in lanes for waiter in lane.queue if not waiter.given}
        stuck = [lane for lane in lanes if lane.queue and not self.lanes.may_have_one(lane)]

        def waits(entry: Entry) -> bool:
            return entry.held and waits_in.get(entry.thread) in stuck

        while True:
            left = [lane for lane in stuck if all(map(waits, self.blockers(lane)))]
            if left == stuck:
                return stuck
            stuck = left

"""The state of a pool with lanes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .._masking import shown
from ..lanes import DEFAULT, Lanes, current_lane
from ..settings import PoolSettings
from .entry import Entry, LaneEntry, Token
from .lanes import LaneQueue, Line, lane_snapshots
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

    def line(self, name: str | None) -> Line:
        """Return a lane; for ``None`` that of the current code, or the default.

        Raises:
            ValueError, TypeError: The pool has no lane of this name, or it is not a string.
        """
        lines = self.lanes.lines
        if name is None:
            return lines.get(current_lane() or DEFAULT) or lines[DEFAULT]
        if not isinstance(name, str):
            raise TypeError(f"lane must be the name of a lane, not {shown(name)}")
        if name not in lines:
            raise ValueError(f"lane must be one of {', '.join(lines)}, not {shown(name)}")
        return lines[name]

    def probe_line(self) -> Line:
        """Return the lane of health checks."""
        return self.lanes.lines.get("health") or self.lanes.lines[DEFAULT]

    # -- counts ---------------------------------------------------------------------

    def stats(self) -> dict[str, Any]:
        return {**super().stats(), "lanes": {name: one.counts() for name, one in lane_snapshots(self.lanes).items()}}

    # -- decisions ------------------------------------------------------------------

    def give_back(self, token: Token) -> None:
        """Push a released resource onto the idle stack, without the lock; `serve` has to follow."""
        self.lanes.returned.append(token.entry)  # first: once it is idle, it may be lent again, after a `collect`
        self.idle.append(token)

    def take(self, line: Line, now: float, pop: Callable[[], Token]) -> Token | None:
        """Take an idle resource for a lane, unless there are waiters that come first."""
        lanes = self.lanes
        lanes.tick(now)
        if self.fast_path_closed or not lanes.may_have_one(line) or (lanes and lanes.demand):
            return None
        try:
            token = pop()
        except IndexError:
            return None
        if lanes.served > line.level:
            lanes.catch_up(line)
        lanes.lend(line, token.entry)
        line.at_once += 1
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
        line: Line | None = getattr(entry, "lane", None)
        if line is not None:
            line.advance(entry.idle_since)  # the end of its lease, if it was released
            self.lanes.take_back(entry)

    # -- deadlocks ------------------------------------------------------------------

    def blockers(self, line: Line) -> list[Entry]:
        """Return the leases of which one must end before a lane that is full may have one more."""
        lines = [line] if line.full else self.lanes.lines.values()
        return [entry for one in lines for entry in one.lent]

    def is_stuck(self, line: Line, thread: int) -> bool:
        """Whether only a timeout can help the waiters of a lane, and this thread is one of those that block it."""
        if any(not entry.held or entry.thread not in self.lanes.threads for entry in self.blockers(line)):
            return False  # the usual case: a holder is working
        if self.creating or self.checking or self.closing:
            return False
        return line in self.stuck() and any(entry.thread == thread for entry in self.blockers(line))

    def stuck(self) -> list[Line]:
        """Return the lanes that only a timeout can help: the threads that block them wait in such lanes themselves."""
        lines = self.lanes.lines.values()
        places = {waiter.thread: line for line in lines for waiter in line.queue if not waiter.given}
        stuck = [line for line in lines if line.queue and not self.lanes.may_have_one(line)]

        def waits(entry: Entry) -> bool:
            return entry.held and places.get(entry.thread) in stuck

        while True:
            left = [line for line in stuck if all(map(waits, self.blockers(line)))]
            if left == stuck:
                return stuck
            stuck = left

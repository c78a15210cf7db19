"""The wait queue of a pool with lanes: which waiter is served next (P3, P8 for each lane).

It replaces `WaitQueue` in a pool that is made with lanes, as
`lanestate` replaces `PoolState`; a pool without has nothing of them.
Invariants, besides those of `PoolState`:

- A lane never has more leases than its ``most``, and no lane takes a slot that
  another has reserved: ``sum(max(leases, reserve)) <= max_size``.
- P3: within a lane, waiters are in order of arrival, and the first is served first.
- P8: no waiter waits while a resource is idle, or a slot is free that may be
  filled, *that its lane may use*. `demand` counts the waiters that may be served.

Weights divide the slots that are not reserved by start-time fair queueing
(P. Goyal, H. M. Vin, H. Cheng, "Start-time Fair Queueing", SIGCOMM 1996), whose
order needs no length in advance: a lease is charged while it lasts, as a thread's
processor time is in P. Goyal, X. Guo, H. M. Vin, "A Hierarchical CPU Scheduler
for Multimedia Operating Systems", OSDI 1996. The *level* of a lane is the
connection time it had beyond its reserve, divided by its weight; of the lanes
with waiters, that with the lowest level is next. A lane that begins to wait is
raised to the level that was served last, less one round of its leases, so that
an idle lane saves nothing up. Leases that have just begun have cost nothing yet;
each counts for as long as its lane's leases usually last (at most `_FORESEEN`),
so that of many slots that become free together not all go to one lane.

The lock guards everything except ``returned``. Every acquire takes the slow
path: whether a lane may have an idle resource is decided under the lock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, SupportsIndex

from ..lanes import Lane, Lanes
from .entry import LaneEntry, Token
from .report.histogram import Histogram
from .report.snapshot import LaneSnapshot
from .waiter import Waiter, WaitQueue

__all__ = ["LaneQueue", "LaneRecord", "clear_counters", "lane_snapshots"]

_UNKNOWN = 0.01  # seconds: the usual duration of a lane's leases before the first has ended
_SMOOTHING = 8  # leases
_FORESEEN = 1.0  # seconds: after that time, a wrong guess of a duration has no effect any more


class LaneRecord:
    """The record of one lane: its waiters, its leases and its level."""

    __slots__ = (
        "name", "settings", "reserve", "queue", "lent", "level", "usual", "at",
        "at_once", "timeouts", "refusals", "wait",
    )  # fmt: skip

    def __init__(self, name: str, settings: Lane, threads: set[int], lock: Any) -> None:
        self.name = name
        self.settings = settings
        self.reserve = settings.reserve  # less while the pool is too small for all reserves
        self.queue = WaitQueue()
        self.queue.threads = threads  # those of all lanes
        self.lent: dict[LaneEntry, float] = {}  # and since when
        self.level = 0.0  # connection seconds by weight, up to `at`
        self.usual = _UNKNOWN  # seconds: the moving average of its leases
        self.at = 0.0
        self.at_once = self.timeouts = self.refusals = 0  # leases without a wait; ...
        self.wait = Histogram(lock)  # of the other leases

    @property
    def full(self) -> bool:
        """Whether it has as many leases as it may have."""
        most = self.settings.most
        return most is not None and len(self.lent) >= most

    @property
    def charged(self) -> int:
        """Number of leases beyond the reserve."""
        return max(0, len(self.lent) - self.reserve)

    @property
    def start(self) -> float:
        """Its level, with what the leases in progress will probably cost more."""
        charged, lent = self.charged, len(self.lent)
        if not charged:
            return self.level
        coming = sum([max(0.0, since + self.usual - self.at) for since in self.lent.values()])
        return self.level + coming * charged / lent / self.settings.weight

    @property
    def wanted(self) -> int:
        """Number of its waiters that its own limit lets through."""
        most, waiting = self.settings.most, len(self.queue)
        return waiting if most is None else min(waiting, max(0, most - len(self.lent)))

    @property
    def by_reserve(self) -> int:
        """Number of its waiters that its reserved slots suffice for."""
        return min(self.wanted, max(0, self.reserve - len(self.lent)))

    def advance(self, now: float) -> None:
        """Charge its leases until now."""
        if now > self.at:
            charged = len(self.lent) - self.reserve
            if charged > 0:
                self.level += charged * (now - self.at) / self.settings.weight
            self.at = now

    def clear(self) -> None:
        """Reset its counters."""
        self.at_once = self.timeouts = self.refusals = 0
        self.wait.clear()

    def snapshot(self) -> LaneSnapshot:
        """Return its figures. Needs the lock."""
        wait = self.wait.snapshot(self.at_once)
        return LaneSnapshot(
            len(self.lent), len(self.queue), self.reserve, self.settings.weight, self.settings.most,
            wait.count, self.timeouts, self.refusals, wait,
        )  # fmt: skip


class LaneQueue(WaitQueue):
    """The waiters of all lanes, each in the queue of its lane; the deque itself stays empty."""

    def __init__(self, lanes: Lanes, lock: Any) -> None:
        super().__init__()
        self._lock = lock
        self.size = 0  # the pool's max_size
        self.now = 0.0  # of the last `tick`
        self.served = 0.0  # the highest level that was served so far
        self.returned: deque[Any] = deque()  # released since the last `tick`; without the lock
        self.by_name: dict[str, LaneRecord] = {}
        self.use(lanes)

    def use(self, lanes: Any) -> None:
        """Apply other weights, reserves and limits; lanes may be added.

        Raises:
            ValueError: Lanes are missing.
        """
        missing = [name for name in self.by_name if name not in (lanes or ())]
        if missing:
            raise ValueError(f"lanes of a running pool can be changed and added, not removed: {', '.join(missing)}")
        for name, settings in lanes.items():
            lane = self.by_name.get(name)
            if lane is None:
                self.by_name[name] = lane = LaneRecord(name, settings, self.threads, self._lock)
                lane.at = self.now
            lane.settings = settings
        self._all = tuple(self.by_name.values())
        self.fit(self.size)

    def fit(self, size: int) -> None:
        """Set the pool's size; below the sum of the reserves, the lanes declared last lose theirs.

        One slot is kept for the lanes that have none reserved.
        """
        self.size = size
        left = size - any(not lane.settings.reserve for lane in self._all)
        for lane in self._all:
            lane.reserve = min(lane.settings.reserve, max(0, left))
            left -= lane.reserve

    # -- as WaitQueue ---------------------------------------------------------------

    def __len__(self) -> int:
        return sum([len(lane.queue) for lane in self._all])

    def __bool__(self) -> bool:
        for lane in self._all:  # noqa: SIM110 - a generator takes three times as long
            if lane.queue:
                return True
        return False

    def __iter__(self) -> Iterator[Waiter]:
        """Those that may be served come first, each part in order of arrival."""
        able, others = [], []
        for lane in self._all:
            waiting, wanted = list(lane.queue), lane.wanted
            able += waiting[:wanted]
            others += waiting[wanted:]
        for part in (able, others):
            yield from sorted(part, key=lambda waiter: waiter.arrived)

    def __getitem__(self, index: SupportsIndex) -> Waiter:  # type: ignore[override]
        heads = [lane.queue[0] for lane in self._all if lane.queue]
        return sorted(heads, key=lambda waiter: waiter.arrived)[index]

    def join(self, waiter: Waiter) -> None:
        """Insert a waiter into the queue of its lane, at its time of arrival."""
        if not waiter.lane.queue:
            self.catch_up(waiter.lane)
        waiter.lane.queue.join(waiter)

    def leave(self, waiter: Waiter) -> Token | BaseException | None:
        """As `WaitQueue.leave`."""
        return waiter.lane.queue.leave(waiter)  # type: ignore[no-any-return]

    def fail(
        self, error: Callable[[str], BaseException], text: str, cause: BaseException | None = None, attempts: int = 0
    ) -> None:
        """As `WaitQueue.fail`."""
        for lane in self._all:
            lane.queue.fail(error, text, cause, attempts)

    def hand_over(self, token: Token) -> bool:
        """Hand a token to the waiter that is next; return ``False`` if no lane with waiters may have it."""
        while (lane := self._next()) is not None:
            self.lend(lane, token.entry)  # first: an exception in between leaves it to the reaper, which takes it back
            if lane.queue.hand_over(token):
                return True
            self.take_back(token.entry)  # all its waiters had left
        return False

    def blocks(self, waiter: Waiter, exhausted: bool) -> bool:
        """Whether there is nothing that a waiter's lane may use; ``exhausted``: nothing is idle, no slot is free."""
        self.collect()
        return exhausted or not self.may_have_one(waiter.lane)

    def needing_release(self, waiter: Waiter, of_all: int, closing: int) -> int:
        """As `WaitQueue.needing_release`, for the waiters of its lane."""
        self.collect()
        lane: LaneRecord = waiter.lane
        unmet = max(0, lane.reserve - len(lane.lent))
        others = sum(other.wanted - other.by_reserve for other in self._all if other is not lane)
        usable = max(0, unmet + max(0, self.free - others) - closing)
        most = lane.settings.most
        return len(lane.queue) - (usable if most is None else min(usable, max(0, most - len(lane.lent))))

    # -- which lane is next ---------------------------------------------------------

    @property
    def free(self) -> int:
        """Number of slots that are neither lent nor reserved."""
        left = self.size
        for lane in self._all:
            lent = len(lane.lent)
            left -= lent if lent > lane.reserve else lane.reserve
        return left

    def may_have_one(self, lane: LaneRecord) -> bool:
        """Whether a lane may have one more lease, if there is a resource for it."""
        lent, most = len(lane.lent), lane.settings.most
        return (most is None or lent < most) and (lent < lane.reserve or self.free > 0)

    @property
    def demand(self) -> int:
        """Number of waiters that may be served, if there are resources for them."""
        wanted = sum([lane.wanted for lane in self._all])
        if not wanted:
            return 0
        reserved = sum([lane.by_reserve for lane in self._all])
        return reserved + min(wanted - reserved, max(0, self.free))

    def _next(self) -> LaneRecord | None:
        waiting = [lane for lane in self._all if lane.queue and self.may_have_one(lane)]
        return min(waiting, key=_turn) if len(waiting) > 1 else waiting[0] if waiting else None

    def catch_up(self, lane: LaneRecord) -> None:
        """Raise the level of a lane that had no waiters, or was at its limit."""
        slack = (lane.charged + 1) * lane.usual / lane.settings.weight
        lane.level += max(0.0, self.served - slack - lane.start)

    # -- leases ---------------------------------------------------------------------

    def tick(self, now: float) -> None:
        """Charge all leases until now, and take back those that were released without the lock."""
        self.collect()
        if now > self.now:
            self.now = now
        for lane in self._all:
            lane.advance(self.now)

    def collect(self) -> list[Any]:
        """Take back the leases that were released without the lock, each at the time of its release; return them."""
        found = []
        while self.returned:
            entry = self.returned[0]
            if entry.lane is not None:
                entry.lane.advance(entry.idle_since)
                self.take_back(entry)
            found.append(entry)
            self.returned.popleft()  # last: twice is harmless, because it is not lent again before the next call
        return found

    def lend(self, lane: LaneRecord, entry: Any) -> None:
        """Record a lease of a lane."""
        if entry.lane is not None:
            self.collect()  # released since the last `tick`
        if len(lane.lent) >= lane.reserve:
            self.served = max(self.served, lane.start)
        entry.lane = lane
        lane.lent[entry] = lane.at

    def take_back(self, entry: Any) -> None:
        """Record that a lease has ended, if there is one."""
        lane: LaneRecord | None = entry.lane
        if lane is None:
            return
        was_full = lane.full
        since = lane.lent.pop(entry, None)
        entry.lane = None
        if since is None:
            return
        lane.usual += (min(max(0.0, lane.at - since), _FORESEEN) - lane.usual) / _SMOOTHING
        if was_full and lane.queue:
            self.catch_up(lane)


def _turn(lane: LaneRecord) -> tuple[bool, float, float]:
    return len(lane.lent) >= lane.reserve, lane.start, lane.queue[0].arrived


def lane_snapshots(lanes: LaneQueue) -> dict[str, LaneSnapshot]:
    """Return the figures of each lane. Needs the lock."""
    lanes.tick(lanes.now)
    return {name: lane.snapshot() for name, lane in lanes.by_name.items()}


def clear_counters(lanes: LaneQueue) -> None:
    """Reset the counters of each lane. Needs the lock."""
    for lane in lanes.by_name.values():
        lane.clear()

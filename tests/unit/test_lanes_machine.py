"""The pool's decisions with lanes, without threads: each case by itself, then all in any order.

The machine of `test_state` with the order of one queue replaced by what lanes promise.
"""

from __future__ import annotations

import itertools
import math
import random
import threading
from collections import Counter
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pooling.core.entry import LaneEntry, Token
from pooling.core.lanes import LaneRecord
from pooling.core.lanestate import LaneState
from pooling.core.outage import Outage
from pooling.core.state import UNLIMITED
from pooling.core.waiter import Waiter
from pooling.errors import PoolClosed
from pooling.lanes import Lane, Lanes
from tests.unit.test_state import ERRAND, NOW, Box, box_of, failed

_threads = itertools.count(1)
LANES = {"health": Lane(reserve=1), "web": Lane(weight=4), "batch": Lane(weight=1, most=3)}


def a_state(max_size: int = 5, lanes: dict[str, Lane] | None = None, min_size: int = 0) -> LaneState:
    state = LaneState(min_size, max_size, None, Lanes(LANES if lanes is None else lanes), threading.RLock())
    state.started = True
    return state


def reserved(state: LaneState, expires: float = math.inf) -> Token:
    token = Token()
    token.entry = entry = LaneEntry(token)
    entry.begin(state.generation, expires, NOW)
    state.reserve(entry)
    return token


def lane_waiter(state: LaneState, lane: str, arrived: float = NOW, again: bool = False) -> Waiter:
    waiter = Waiter(arrived, next(_threads), again, state.lane(lane))
    waiter.box = Box()
    return waiter


def put(state: LaneState, *lanes: str) -> list[Waiter]:
    """Let waiters arrive, one after the other."""
    waiters = [lane_waiter(state, lane, NOW + number) for number, lane in enumerate(lanes)]
    for waiter in waiters:
        state.waiters.join(waiter)
    return waiters


def idle(state: LaneState, number: int) -> list[Token]:
    tokens = [reserved(state) for _ in range(number)]
    for token in tokens:
        state.settle(token.entry)
        state.idle.append(token)
    return tokens


def lent_to(state: LaneState, lane: str, number: int = 1) -> list[Token]:
    """Resources that a lane has on lease."""
    tokens = idle(state, number)
    for token in tokens:
        state.idle.remove(token)
        state.lanes.lend(state.lane(lane), token.entry)
    return tokens


def served(waiters: list[Waiter]) -> list[int]:
    return [number for number, waiter in enumerate(waiters) if waiter.given]


def counts(state: LaneState) -> dict[str, int]:
    return {lane.name: len(lane.lent) for lane in state.lanes.by_name.values() if lane.lent}


# -- reserves and limits -----------------------------------------------------------------


def test_reserved_place_is_for_its_lane_only() -> None:
    state = a_state(3)
    idle(state, 3)
    waiters = put(state, "web", "web", "web", "health")
    state.serve(UNLIMITED, NOW)
    assert served(waiters) == [0, 1, 3]
    assert not state.idle


def test_reserve_comes_first_where_there_is_one_resource_for_two() -> None:
    """Before the weights and the arrival: the other place is there, but its resource is still being closed."""
    state = a_state(3)
    tokens = lent_to(state, "web")
    (closing,) = idle(state, 1)
    state.idle.clear()
    state.close(closing.entry)
    waiters = put(state, "web", "health")
    tokens += idle(state, 1)
    state.serve(UNLIMITED, NOW)
    assert served(waiters) == [1]


def test_reserved_place_stays_idle_without_its_lane() -> None:
    """P8 is about the places that a lane may use."""
    state = a_state(3)
    idle(state, 3)
    waiters = put(state, "web", "web", "web")
    creations, closes = state.serve(UNLIMITED, NOW)
    assert served(waiters) == [0, 1] and len(state.idle) == 1
    assert (creations, closes) == (0, [])
    assert state.waiters.demand == 0 and state.lanes.blocks(waiters[2], state.exhausted)


@pytest.mark.parametrize(
    ("lent", "waiting", "creations"),
    [
        pytest.param({}, ["web"] * 9, 4, id="all but the reserved one"),
        pytest.param({}, ["web"] * 9 + ["health"] * 9, 5, id="and that for its own lane"),
        pytest.param({"health": 1}, ["web"] * 9, 4, id="in use, it is not kept twice"),
        pytest.param({"health": 2}, ["web"] * 9, 3, id="a lane may use more than its reserve"),
        pytest.param({}, ["batch"] * 9, 3, id="bounded by its limit"),
        pytest.param({"batch": 2}, ["batch"] * 9, 1, id="leases count for the limit"),
        pytest.param({"batch": 3}, ["batch"] * 9, 0, id="no creation at the limit"),
        pytest.param({"batch": 3}, ["batch"] * 9 + ["web"], 1, id="nor instead of another lane"),
        pytest.param({"web": 4}, ["web"] * 9 + ["batch"] * 9, 0, id="no place beside the reserve"),
        pytest.param({"web": 4}, ["web"] * 9 + ["health"], 1, id="the reserve is there at once"),
    ],
)
def test_creations_are_planned_for_those_that_may_be_served(
    lent: dict[str, int], waiting: list[str], creations: int
) -> None:
    state = a_state(5)
    tokens = [lent_to(state, lane, number) for lane, number in lent.items()]
    put(state, *waiting)
    assert state.serve(UNLIMITED, NOW) == (creations, [])
    del tokens


def test_limit_is_not_exceeded_by_idle_resources() -> None:
    state = a_state(5)
    idle(state, 5)
    waiters = put(state, *["batch"] * 5)
    state.serve(UNLIMITED, NOW)
    assert served(waiters) == [0, 1, 2]


def test_waiter_that_leaves_at_the_limit_keeps_no_place() -> None:
    """What it was given at the last moment goes back, and counts for its lane no more."""
    state = a_state(5)
    idle(state, 3)
    first, second, third, fourth = put(state, *["batch"] * 4)
    state.serve(UNLIMITED, NOW)
    token = state.waiters.leave(second)
    assert isinstance(token, Token) and counts(state) == {"batch": 3}
    assert state.accept(token, NOW) is None
    assert fourth.given and counts(state) == {"batch": 3}
    assert first.given and third.given


def test_lane_is_fifo_although_another_overtakes_it() -> None:
    state = a_state(2, {"web": Lane(weight=4), "batch": Lane()})
    (one, two) = lent_to(state, "batch", 2)
    waiters = put(state, "batch", "batch", "web", "web")
    state.lanes.tick(10.0)
    assert state.accept(one, 10.0) is None
    assert served(waiters) == [2]
    assert state.accept(two, 10.0) is None
    assert served(waiters) == [2, 3]


@pytest.mark.parametrize(
    ("size", "reserves"),
    [(6, (2, 3)), (5, (2, 2)), (4, (2, 1)), (3, (2, 0)), (2, (1, 0)), (1, (0, 0)), (0, (0, 0))],
)
def test_limit_of_the_size_below_the_reserves(size: int, reserves: tuple[int, int]) -> None:
    """The lanes declared last lose theirs, and the others keep one place: no lane starves."""
    state = a_state(6, {"a": Lane(reserve=2), "b": Lane(reserve=3)})
    state.limits["budget"] = size
    state.resize(0, 6, None)
    assert tuple(state.lane(name).reserve for name in "ab") == reserves
    del state.limits["budget"]
    state.resize(0, 6, None)
    assert (state.lane("a").reserve, state.lane("b").reserve) == (2, 3)


def test_release_without_the_lock_is_counted_at_the_next_step() -> None:
    state = a_state(5)
    tokens = lent_to(state, "batch", 3)
    (waiter,) = put(state, "batch")
    state.give_back(tokens[0])
    assert counts(state) == {"batch": 3}
    state.serve(UNLIMITED, NOW)
    assert box_of(waiter) == [tokens[0]] and counts(state) == {"batch": 3}


def test_release_in_the_middle_of_a_step_is_counted_before_it_is_lent_again() -> None:
    """A release takes no lock, so its resource may be found idle by the very step that has just counted the others."""
    state = a_state(5)
    (token,) = lent_to(state, "batch")
    (waiter,) = put(state, "web")
    state.lanes.tick(NOW)
    state.give_back(token)
    state.match_waiters(NOW)
    state.lanes.tick(NOW)
    assert box_of(waiter) == [token] and counts(state) == {"web": 1}
    assert state.waiters.leave(waiter) is token
    assert state.accept(token, NOW) is None and counts(state) == {}


def test_take_does_not_pass_waiters() -> None:
    """A resource that was pushed a moment ago is for the waiter of another lane (P3, P8)."""
    state = a_state(5)
    idle(state, 1)
    put(state, "web")
    assert state.take(state.lane("batch"), NOW, state.idle.pop) is None
    state.serve(UNLIMITED, NOW)
    idle(state, 1)
    assert state.take(state.lane("batch"), NOW, state.idle.pop) is not None
    assert counts(state) == {"web": 1, "batch": 1}


def test_take_passes_waiters_that_may_not_have_it() -> None:
    """A lane at its limit holds up no other lane."""
    state = a_state(5)
    tokens = lent_to(state, "batch", 3)
    put(state, "batch")
    idle(state, 1)
    assert state.take(state.lane("web"), NOW, state.idle.pop) is not None
    del tokens


@pytest.mark.parametrize(
    ("lane", "lent", "waiting", "needing"),
    [
        ("web", {}, [], -4),
        ("web", {"web": 4}, [], 0),
        ("web", {"web": 4}, ["web", "web"], 2),
        ("health", {"web": 4}, ["web"] * 9, -1),
        ("batch", {}, [], -3),
        ("batch", {"batch": 3}, ["batch"], 1),
        ("web", {"batch": 3}, ["batch"] * 9, -1),
        ("web", {"batch": 2}, ["batch"] * 9, -1),
    ],
)
def test_max_waiting_is_for_each_lane(lane: str, lent: dict[str, int], waiting: list[str], needing: int) -> None:
    """A lane with a long queue has no other lane refused."""
    state = a_state(5)
    tokens = [lent_to(state, name, number) for name, number in lent.items()]
    put(state, *waiting)
    assert state.waiters.needing_release(lane_waiter(state, lane), 99, len(state.closing)) == needing
    del tokens


# -- shares --------------------------------------------------------------------------------


class Load:
    """Lanes that always have waiters, on a virtual clock; each lease lasts as long as its lane's leases do."""

    def __init__(self, state: LaneState, lasting: dict[str, float], seed: int = 1, spread: bool = True) -> None:
        self.state, self.lasting, self.spread = state, lasting, spread
        self.random = random.Random(seed)
        self.now = 0.0
        self.numbers = itertools.count()
        self.ends: list[tuple[float, int, Token, LaneRecord]] = []
        self.waiting: list[Waiter] = []
        self.held: Counter[str] = Counter()
        self.leases: Counter[str] = Counter()
        self.longest: Counter[str] = Counter()
        idle(state, state.max_size)

    def demand(self, lane: str, number: int) -> None:
        for _ in range(number):
            waiter = lane_waiter(self.state, lane, self.now)
            self.waiting.append(waiter)
            self.state.waiters.join(waiter)

    def begin(self) -> None:
        self.state.serve(UNLIMITED, self.now)
        for waiter in [one for one in self.waiting if one.given]:
            self.waiting.remove(waiter)
            token = waiter.box.get(False)
            name = waiter.lane.name
            seconds = self.lasting[name] * (self.random.expovariate(1) if self.spread else 1)
            self.longest[name] = max(self.longest[name], self.now - waiter.arrived)
            self.ends.append((self.now + seconds, next(self.numbers), token, waiter.lane))
            self.held[name] += seconds
            self.leases[name] += 1

    def run(self, until: float, refill: bool = True, besides: str = "") -> None:
        self.begin()
        while self.ends:
            end = min(self.ends)
            if end[0] >= until:
                self.now = until
                return
            self.ends.remove(end)
            self.now, _, token, lane = end
            token.entry.idle_since = self.now
            if refill and lane.name != besides:
                self.demand(lane.name, 1)
            self.state.give_back(token)
            del token, end
            self.begin()

    def shares(self) -> dict[str, float]:
        total = sum(self.held.values())
        return {name: held / total for name, held in self.held.items()}


@pytest.mark.parametrize("size", [1, 3, 10])
@pytest.mark.parametrize("lasting", [(0.2, 0.2), (0.1, 5.0), (5.0, 0.1)])
@pytest.mark.parametrize("weights", [(4, 1), (1, 9)])
def test_shares_of_the_connection_time(size: int, lasting: tuple[float, float], weights: tuple[int, int]) -> None:
    """Within 5 % of the weights under saturation, however long the leases of each lane are."""
    state = a_state(size, {"web": Lane(weight=weights[0]), "batch": Lane(weight=weights[1])})
    load = Load(state, {"web": lasting[0], "batch": lasting[1]}, spread=False)
    for name in load.lasting:
        load.demand(name, size + 5)
    load.run(200 * sum(lasting) / size)
    for name, weight in zip(("web", "batch"), weights):
        assert load.shares()[name] == pytest.approx(weight / sum(weights), abs=0.025)


def test_three_lanes_and_a_reserve() -> None:
    """The reserve comes first; the weights divide the rest."""
    state = a_state(10, {"health": Lane(reserve=1), "web": Lane(weight=4), "batch": Lane(weight=2)})
    load = Load(state, {"health": 0.2, "web": 0.05, "batch": 1.0})
    for name in load.lasting:
        load.demand(name, 15)
    load.run(100)
    shared = 9 / 10
    expected = {"health": 0.1 + shared / 7, "web": shared * 4 / 7, "batch": shared * 2 / 7}
    for name, share in expected.items():
        assert load.shares()[name] == pytest.approx(share, rel=0.05)


def test_what_a_limited_lane_cannot_use_goes_to_the_others() -> None:
    state = a_state(10, {"web": Lane(weight=1), "batch": Lane(weight=9, most=3), "other": Lane(weight=1)})
    load = Load(state, {"web": 0.1, "batch": 0.1, "other": 0.1})
    for name in load.lasting:
        load.demand(name, 40)
    load.run(60)
    for name, share in {"batch": 0.3, "web": 0.35, "other": 0.35}.items():
        assert load.shares()[name] == pytest.approx(share, rel=0.05)


def test_limited_lane_saves_nothing_up() -> None:
    """What its limit withheld from it is not made up for when the limit is lifted."""
    state = a_state(10, {"web": Lane(), "batch": Lane(weight=9, most=2)})
    load = Load(state, {"web": 0.1, "batch": 0.1})
    for name in load.lasting:
        load.demand(name, 15)
    load.run(40)
    state.waiters.use(Lanes({"web": Lane(), "batch": Lane()}))
    load.held.clear()
    load.run(60)
    assert load.shares()["batch"] == pytest.approx(0.5, abs=0.03)


def test_idle_lane_saves_nothing_up() -> None:
    """After a long time alone, a lane has neither a debt nor does the other have a credit."""
    state = a_state(10, {"web": Lane(), "batch": Lane()})
    load = Load(state, {"web": 0.1, "batch": 0.1})
    load.demand("web", 15)
    load.run(200)
    load.held.clear()
    load.demand("batch", 50)
    load.run(230)
    assert load.shares()["web"] == pytest.approx(0.5, rel=0.05)
    assert load.longest["web"] < 2


def test_lane_that_asks_for_less_than_its_share_gets_it_all() -> None:
    """And waits for at most one lease of the others, as there are ten places."""
    state = a_state(10, {"web": Lane(), "batch": Lane()})
    load = Load(state, {"web": 0.05, "batch": 1.0})
    load.demand("batch", 50)
    load.run(20)
    load.longest.clear()
    for second in range(20, 120):
        load.run(second, besides="web")
        load.demand("web", 10)  # 0.5 connections on average
    assert load.leases["web"] >= 990
    assert load.longest["web"] < 3


def test_places_that_become_free_together_go_to_both_lanes() -> None:
    """Although nothing has been charged yet: a long lease counts from its beginning."""
    state = a_state(10, {"web": Lane(weight=4), "batch": Lane(weight=1)})
    state.lane("batch").usual, state.lane("web").usual = 1.0, 0.02  # as learnt from leases before
    idle(state, 10)
    put(state, *["batch"] * 10, *["web"] * 30)
    state.serve(UNLIMITED, NOW)
    assert counts(state) == {"batch": 1, "web": 9}


@pytest.mark.parametrize("seed", range(5))
def test_no_lane_starves(seed: int) -> None:
    """Whatever the weights are, each waiter is served in the end."""
    chance = random.Random(seed)
    lanes = {f"lane{n}": Lane(weight=10 ** chance.uniform(-2, 2), most=chance.choice([None, 1, 2])) for n in range(6)}
    state = a_state(3, lanes)
    load = Load(state, {name: 10 ** chance.uniform(-2, 1) for name in lanes}, seed)
    for name in lanes:
        load.demand(name, 10)
    load.run(math.inf, refill=False)
    assert load.leases == dict.fromkeys(lanes, 10)


# -- all of it in any order ------------------------------------------------------------------

WHICH = st.integers(0, 7)
NAMES = ["health", "web", "batch", "default"]


class LaneMachine(RuleBasedStateMachine):
    """The model plays borrowers, workers, the reaper and the operator, as `test_state.StateMachine` does."""

    def __init__(self) -> None:
        super().__init__()
        self.now = NOW
        self.outage = Outage()
        self.numbers = itertools.count()
        self.waiting_in: dict[str, list[Waiter]] = {name: [] for name in NAMES}
        self.awaking: list[Waiter] = []
        self.making: list[Token] = []
        self.checking: list[Token] = []
        self.closing: list[Token] = []
        self.held: list[tuple[Token, str]] = []
        self.size = self.attempts = 0

    @initialize(
        size=st.integers(3, 6), min_size=st.integers(0, 2), reserve=st.integers(0, 2), most=st.integers(1, 3),
        weight=st.sampled_from([0.1, 1, 4]),
    )
    def begin(self, size: int, min_size: int, reserve: int, most: int, weight: float) -> None:
        lanes = {"health": Lane(reserve=reserve), "web": Lane(weight=weight), "batch": Lane(most=most)}
        self.state = a_state(size, lanes, min_size)
        self.state.started = False

    # -- what the engine does under its lock

    def serve(self) -> None:
        creations, closes = self.state.serve(self.outage.allowed(self.now), self.now)
        self.making += [reserved(self.state, self.now + 60) for _ in range(creations)]
        self.closing += [token for token, _ in closes]

    def deliver(self, token: Token) -> None:
        if self.state.accept(token, self.now):
            self.evict(token)
        self.serve()

    def evict(self, token: Token, dead: bool = False) -> None:
        self.state.close(token.entry)
        if dead:
            self.outage.died(token.entry.checked, self.now)
        self.closing.append(token)

    def retire(self, token: Token) -> None:
        assert self.state.retire(token.entry)
        self.serve()

    def queue_up(self, lane: str, arrived: float, again: bool) -> None:
        waiter = lane_waiter(self.state, lane, arrived, again)
        self.waiting_in[lane].append(waiter)
        self.waiting_in[lane].sort(key=lambda one: one.arrived)
        self.state.started = True
        self.state.waiters.join(waiter)
        self.serve()

    def vet(self, token: Token, lane: str, arrived: float, alive: bool = True) -> None:
        if alive and not self.state.fast_path_closed and not self.state.unfit(token.entry, self.now):
            token.entry.since = self.now
            self.held.append((token, lane))
            return
        if alive:
            self.deliver(token)
        else:
            self.evict(token, dead=True)
        if not self.state.closed:
            self.queue_up(lane, arrived, again=True)

    # -- borrowers

    @precondition(lambda self: not self.state.closed)
    @rule(lane=st.sampled_from(NAMES))
    def arrive(self, lane: str) -> None:
        arrived = next(self.numbers)
        blocked = bool(self.state.lane(lane).queue)
        token = self.state.take(self.state.lane(lane), self.now, self.state.idle.pop)
        if token is None:
            self.queue_up(lane, arrived, again=False)
        else:
            assert not blocked  # P3
            self.vet(token, lane, arrived)

    @precondition(lambda self: self.awaking)
    @rule(which=WHICH, alive=st.booleans())
    def wake(self, which: int, alive: bool) -> None:
        waiter = self.awaking.pop(which % len(self.awaking))
        item = waiter.box.get(False)
        if isinstance(item, Token):
            self.vet(item, waiter.lane.name, waiter.arrived, alive)

    @precondition(lambda self: any(self.waiting_in.values()))
    @rule(which=WHICH)
    def leave(self, which: int) -> None:
        waiting = [waiter for lane in self.waiting_in.values() for waiter in lane]
        waiter = waiting[which % len(waiting)]
        self.waiting_in[waiter.lane.name].remove(waiter)
        assert self.state.waiters.leave(waiter) is None
        self.serve()

    @precondition(lambda self: self.awaking)
    @rule(which=WHICH, interrupted=st.booleans())
    def leave_with_a_gift(self, which: int, interrupted: bool) -> None:
        waiter = self.awaking.pop(which % len(self.awaking))
        (item,) = box_of(waiter)
        assert self.state.waiters.leave(waiter) is item
        if isinstance(item, Token) and interrupted:
            self.deliver(item)
        elif isinstance(item, Token):
            self.vet(item, waiter.lane.name, waiter.arrived)

    @precondition(lambda self: self.held)
    @rule(which=WHICH, hot=st.booleans())
    def release(self, which: int, hot: bool) -> None:
        token, _ = self.held.pop(which % len(self.held))
        token.entry.idle_since = self.now
        if hot:
            self.state.give_back(token)
            self.serve()
        else:
            self.deliver(token)

    @precondition(lambda self: self.held)
    @rule(which=WHICH)
    def interrupted_release(self, which: int) -> None:
        """An exception between the two steps of `give_back`: the reaper closes the resource."""
        token, _ = self.held.pop(which % len(self.held))
        self.state.lanes.returned.append(token.entry)
        self.evict(token)
        self.serve()

    @precondition(lambda self: self.state.idle and self.state.waiters)
    @rule()
    def interrupted_hand_over(self) -> None:
        """An exception after the lease was recorded, before the waiter had it: the reaper closes the resource."""
        token = self.state.idle.pop()
        self.state.lanes.lend(self.state.lane("web"), token.entry)
        self.evict(token)
        self.serve()

    @precondition(lambda self: self.held)
    @rule(which=WHICH, dead=st.booleans())
    def discard(self, which: int, dead: bool) -> None:
        self.evict(self.held.pop(which % len(self.held))[0], dead)
        self.serve()

    @precondition(lambda self: self.held)
    @rule(which=WHICH)
    def detach(self, which: int) -> None:
        self.retire(self.held.pop(which % len(self.held))[0])

    @precondition(lambda self: self.held)
    @rule(which=WHICH)
    def reset_on_a_worker(self, which: int) -> None:
        token, _ = self.held.pop(which % len(self.held))
        self.state.checking[token.entry] = ERRAND
        self.state.waiters.take_back(token.entry)
        self.checking.append(token)
        self.serve()

    # -- workers

    @precondition(lambda self: self.making)
    @rule(which=WHICH, works=st.booleans())
    def creation_ends(self, which: int, works: bool) -> None:
        token = self.making.pop(which % len(self.making))
        if works:
            token.entry.checked = self.now
            self.outage.succeeded(self.state.max_size, self.now)
            self.deliver(token)
        else:
            failed(self.outage, self.now, waiting=bool(self.state.waiters))
            self.retire(token)

    @precondition(lambda self: self.checking)
    @rule(which=WHICH, alive=st.booleans())
    def check_ends(self, which: int, alive: bool) -> None:
        token = self.checking.pop(which % len(self.checking))
        if alive:
            self.deliver(token)
        else:
            self.evict(token, dead=True)
            self.serve()

    @precondition(lambda self: self.closing)
    @rule(which=WHICH)
    def close_ends(self, which: int) -> None:
        self.retire(self.closing.pop(which % len(self.closing)))

    # -- the reaper and the operator

    @precondition(lambda self: self.state.idle)
    @rule()
    def evict_the_longest_unused(self) -> None:
        self.evict(self.state.idle.popleft())
        self.serve()

    @rule(seconds=st.sampled_from([0.05, 1, 30]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.serve()

    @rule()
    def drain(self) -> None:
        self.closing += [token for token, _ in self.state.drain()]
        self.serve()

    @rule()
    def pause_or_resume(self) -> None:
        self.state.paused = not self.state.paused
        self.serve()

    @rule(limit=st.sampled_from([None, 0, 1, 2, 5]))
    def limit_the_size(self, limit: int | None) -> None:
        self.state.limits.clear()
        if limit is not None:
            self.state.limits["budget"] = limit
        self.state.resize(0, 6, None)
        self.serve()

    @rule(most=st.integers(1, 3), weight=st.sampled_from([0.5, 3]), reserve=st.integers(0, 2))
    def change_the_lanes(self, most: int, weight: float, reserve: int) -> None:
        changed = {"health": Lane(reserve=reserve), "web": Lane(weight=weight), "batch": Lane(most=most)}
        self.state.waiters.use(Lanes(changed))
        self.serve()

    @rule(sure=st.integers(0, 4))
    def close(self, sure: int) -> None:
        if sure == 4:
            self.state.closed, self.state.generation = True, object()
            self.state.waiters.fail(PoolClosed, "closed")
            self.serve()

    # -- what always holds

    @invariant()
    def keeps_its_promises(self) -> None:
        if not hasattr(self, "state"):
            return
        self.served_in_order_of_arrival()
        self.each_lease_counts_once()
        self.one_place_each()
        self.limits_hold()
        self.bounded()
        self.nobody_waits_in_vain()

    def served_in_order_of_arrival(self) -> None:
        """P3, within a lane."""
        for name, lane in self.waiting_in.items():
            given = [waiter for waiter in lane if waiter.given]
            assert given == lane[: len(given)]
            assert not given or self.state.closed or self.state.surplus <= 0
            self.waiting_in[name] = lane[len(given) :]
            self.awaking += given
            assert list(self.state.lane(name).queue) == self.waiting_in[name]
        left = [waiter for lane in self.waiting_in.values() for waiter in lane]
        assert len(self.state.waiters) == len(left) and bool(self.state.waiters) is bool(left)
        assert set(self.state.waiters) == set(left)
        assert self.state.waiters.threads == {waiter.thread for waiter in left}

    def boxes(self) -> list[tuple[Token, str]]:
        return [
            (item, waiter.lane.name) for waiter in self.awaking for item in box_of(waiter) if isinstance(item, Token)
        ]

    def each_lease_counts_once(self) -> None:
        """A lane's leases are those that its borrowers hold, or will take from their boxes."""
        out = self.boxes() + self.held
        for name in NAMES:
            expected = {token.entry for token, lane in out if lane == name}
            assert set(self.state.lane(name).lent) == expected
            assert all(entry.lane is self.state.lane(name) for entry in expected)
        assert not self.state.lanes.returned

    def one_place_each(self) -> None:
        """P1, and no slot is lost (P8)."""
        state = self.state
        out = [token for token, _ in self.boxes() + self.held]
        assert state.in_use == len(out)
        for tokens, entries in (
            (self.making, state.creating),
            (self.checking, state.checking),
            (self.closing, state.closing),
            ([*out, *self.making, *self.checking, *self.closing, *state.idle], state.entries),
        ):
            assert len(tokens) == len(entries) and {token.entry for token in tokens} == set(entries)

    def limits_hold(self) -> None:
        """No lane gets a place beyond its limit, or one that another has reserved.

        After a change of the lanes or of the size there may be more, but never more than before.
        """
        lanes = list(self.state.lanes.by_name.values())
        excess = {lane.name: len(lane.lent) - (lane.settings.most or 99) for lane in lanes}
        taken = sum(max(len(lane.lent), lane.reserve) for lane in lanes) - self.state.max_size
        bounds = (self.state.max_size, tuple((lane.settings, lane.reserve) for lane in lanes))
        before: Any = getattr(self, "_before", None)
        if before is None or before[0] != bounds:
            before = bounds, excess, taken
        for name, number in excess.items():
            assert number <= max(0, before[1][name]), name
        assert taken <= max(0, before[2])
        self._before = bounds, excess, taken

    def bounded(self) -> None:
        """P2, P7."""
        size, attempts = len(self.state.entries), len(self.making)
        assert size <= max(self.size, self.state.max_size)
        assert attempts <= max(self.attempts, self.outage.allowed(self.now))
        self.size, self.attempts = size, attempts

    def nobody_waits_in_vain(self) -> None:
        """P8: no waiter beside an idle resource or a free slot that its lane may use; reckoned without `demand`."""
        state = self.state
        if state.closed:
            assert not state.waiters and not state.idle
            return
        if state.paused or state.surplus > 0:
            return
        allowed = self.outage.allowed(self.now) - len(state.creating)
        room = allowed > 0 and len(state.entries) < state.max_size
        used = {lane.name: len(lane.lent) for lane in state.lanes.by_name.values()}
        coming = len(state.creating) + len(state.checking)
        for _ in range(coming):  # those that are on their way serve one each
            lane = self.next_able(used)
            if lane is not None:
                used[lane] += 1
        assert self.next_able(used) is None or not (room or state.idle)

    def next_able(self, used: dict[str, int]) -> str | None:
        """Return a lane that may have one more, if it has so many leases and its waiters took what came before."""
        state = self.state
        for name in ("health", "web", "default", "batch"):
            lane = state.lane(name)
            took = used[name] - len(lane.lent)
            if len(lane.queue) <= took or used[name] >= (lane.settings.most or 99):
                continue
            rest = [other for other in state.lanes.by_name.values() if other != lane]
            others = sum(max(used[other.name], other.reserve) for other in rest)
            if used[name] < lane.reserve or others + used[name] + 1 <= state.max_size:
                return name
        return None

    def teardown(self) -> None:
        if not hasattr(self, "state"):
            return
        self.close(4)
        for token in [*self.making, *self.checking, *(token for token, _ in self.held)]:
            self.deliver(token)
        for waiter in [*self.awaking, *(waiter for lane in self.waiting_in.values() for waiter in lane)]:
            item = self.state.waiters.leave(waiter)
            if isinstance(item, Token):
                self.deliver(item)
        for token in self.closing:
            self.retire(token)
        assert not self.state.entries and not self.state.waiters
        assert not any(lane.lent for lane in self.state.lanes.by_name.values())


TestLanesInAnyOrder = LaneMachine.TestCase

"""The budget's model under a virtual clock: what no order of events, however unlucky, may break.

The stores and the members of this simulation are `Ledger` and `Holding`, the code that runs.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections import Counter
from collections.abc import Callable
from math import inf
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from pooling.fleet.model import (
    MARGIN,
    RENEWAL,
    TTL,
    Answer,
    Holding,
    Ledger,
    PoolNeed,
    Request,
    Row,
    Terms,
    fair,
    level,
    raised,
    split,
)

# -- fair shares ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "wants", "shares"),
    [
        (10, [3, 4], [3, 4]),  # enough for all
        (10, [2, 8, 9], [2, 4, 4]),  # the small one gets all, the others the same
        (11, [9, 9, 9], [4, 4, 3]),  # nothing is left over
        (2, [1, 1, 1], [1, 1, 0]),
        (-3, [1], [0]),
        (5, [], []),
    ],
)
def test_fair_shares(size: int, wants: list[int], shares: list[int]) -> None:
    assert fair(size, wants) == shares


@given(st.integers(0, 200), st.lists(st.integers(0, 50), max_size=30))
def test_shares_are_max_min_fair(size: int, wants: list[int]) -> None:
    shares = fair(size, wants)
    assert sum(shares) == min(size, sum(wants))
    for want, mine in zip(wants, shares):
        assert mine <= want
        if mine < want:  # F3
            assert all(other <= mine + 1 for other in shares)


# -- one store, few requests ---------------------------------------------------------


def renew(
    ledger: Ledger, terms: Terms, member: str, number: int, need: int, held: int, now: float, like: int = 0,
    epoch: str = "1",
) -> Answer:  # fmt: skip
    return ledger.renew(Request(member, number, need, like or held, held), terms, now, epoch, fresh=True)


def test_a_member_alone_gets_what_it_needs() -> None:
    ledger, terms = Ledger(), Terms(10)
    assert renew(ledger, terms, "a", 1, 7, 0, 0.0) == (7, 7, 0, 1, 0.0)
    assert renew(ledger, terms, "a", 2, 70, 7, 1.0).share == 10


def test_a_share_is_lent_only_after_it_is_reported_closed() -> None:
    ledger, terms = Ledger(), Terms(10)
    renew(ledger, terms, "a", 1, 10, 0, 0.0)
    assert renew(ledger, terms, "b", 1, 10, 0, 1.0)[:2] == (0, 5)  # nothing is free yet
    assert renew(ledger, terms, "a", 2, 10, 10, 2.0).share == 5
    assert renew(ledger, terms, "b", 2, 10, 0, 3.0).share == 0  # a has not closed it
    assert renew(ledger, terms, "a", 3, 10, 7, 4.0).share == 5
    assert renew(ledger, terms, "b", 3, 10, 0, 5.0).share == 3
    assert renew(ledger, terms, "a", 4, 10, 5, 6.0).share == 5
    assert renew(ledger, terms, "b", 4, 10, 3, 7.0).share == 5


def test_nobody_shrinks_more_than_others_lack() -> None:
    ledger, terms = Ledger(), Terms(12)
    renew(ledger, terms, "a", 1, 6, 0, 0.0)
    renew(ledger, terms, "b", 1, 6, 0, 0.0)
    assert renew(ledger, terms, "c", 1, 2, 0, 1.0).fair == 2
    assert renew(ledger, terms, "a", 2, 1, 6, 2.0, like=6).share == 4  # c lacks 2
    assert renew(ledger, terms, "b", 2, 1, 6, 2.5, like=6).share == 6  # which are on their way


def test_idle_connections_are_kept_while_nobody_lacks_them() -> None:
    ledger, terms = Ledger(), Terms(10)
    renew(ledger, terms, "a", 1, 8, 0, 0.0)
    assert renew(ledger, terms, "a", 2, 0, 8, 5.0, like=5).share == 5  # three were never opened
    renew(ledger, terms, "a", 3, 0, 5, 5.1)
    assert renew(ledger, terms, "b", 1, 3, 0, 6.0).share == 3
    assert renew(ledger, terms, "b", 2, 9, 3, 7.0).share == 5
    assert renew(ledger, terms, "a", 4, 0, 5, 8.0, like=5).share == 1  # the floor stays


def test_a_late_request_changes_nothing() -> None:
    ledger, terms = Ledger(), Terms(10)
    renew(ledger, terms, "a", 1, 4, 0, 0.0)
    renew(ledger, terms, "a", 3, 8, 4, 1.0)
    assert renew(ledger, terms, "a", 2, 1, 0, 2.0).share == 8
    assert ledger.rows["a"].held == 8
    ledger.release("a", 3)
    assert ledger.rows
    ledger.release("a", 4)
    assert not ledger.rows


def test_a_lost_answer_leaks_nothing() -> None:
    ledger, terms = Ledger(), Terms(10)
    renew(ledger, terms, "a", 1, 9, 0, 0.0)  # the answer, 9, is lost
    assert ledger.rows["a"].held == 9
    assert renew(ledger, terms, "a", 2, 2, 0, 1.0).share == 2
    assert ledger.rows["a"].held == 2


def test_a_dead_member_is_forgotten_after_its_lease() -> None:
    ledger, terms = Ledger(), Terms(10)
    renew(ledger, terms, "a", 1, 10, 0, 0.0)
    renew(ledger, terms, "b", 1, 10, 0, 10.0)
    assert renew(ledger, terms, "b", 2, 10, 0, TTL - 0.1).share == 0
    assert renew(ledger, terms, "b", 3, 10, 0, TTL).share == 10


def test_floors_of_absent_members_are_kept() -> None:
    ledger, terms = Ledger(), Terms(10, floor=2, max_members=3)
    assert renew(ledger, terms, "a", 1, 10, 2, 0.0).share == 6
    assert renew(ledger, terms, "b", 1, 2, 2, 0.0).share == 2
    assert renew(ledger, terms, "c", 1, 2, 2, 0.0).share == 2
    assert renew(ledger, terms, "d", 1, 2, 2, 0.0).share == 2  # one more than declared keeps its floor
    assert renew(ledger, terms, "a", 2, 10, 6, 1.0).share == 4  # and the others make room


@pytest.mark.parametrize("rows", [{}, {"b": Row(4, 4, 4, 900.0, 7)}])
def test_a_restarted_store_learns_for_one_ttl(rows: dict[str, Row]) -> None:
    ledger, terms = Ledger(rows, "1"), Terms(10)
    assert renew(ledger, terms, "a", 5, 10, 3, 1000.0, epoch="2") == (3, 10, 0, 1, TTL)
    assert renew(ledger, terms, "c", 1, 10, 0, 1001.0, epoch="2").share == 1  # the floor is granted
    assert renew(ledger, terms, "a", 6, 10, 3, 1000.0 + TTL, epoch="2").share > 3


def test_a_store_that_was_away_learns_too() -> None:
    ledger, terms = Ledger(), Terms(10)
    renew(ledger, terms, "a", 1, 4, 0, 0.0)
    renew(ledger, terms, "b", 1, 4, 0, 0.0)
    assert renew(ledger, terms, "a", 2, 10, 1, 100.0).share == 1  # b may have kept its floor
    assert renew(ledger, terms, "b", 2, 10, 1, 101.0).share == 1
    assert renew(ledger, terms, "a", 3, 10, 1, 100.0 + TTL).share == 5


# -- one member ------------------------------------------------------------------------


def test_a_member_keeps_its_floor_when_its_lease_ends() -> None:
    holding = Holding(Terms(10, floor=2), "a")
    assert holding.limit(0.0) == 0
    holding.ask(100.0, 6, 0, 0)
    holding.accept(Answer(6, 6, 0, 1))
    assert [holding.limit(100 + after) for after in (0, TTL - MARGIN - 0.1, TTL - MARGIN)] == [6, 6, 2]
    asked = holding.ask(100 + TTL, 6, 6, 3)
    assert asked.held == 3  # one is not closed yet
    assert holding.limit(100 + TTL) == 2


def test_a_declared_member_may_use_its_floor_unasked() -> None:
    assert Holding(Terms(10, floor=2, max_members=5), "a").limit(0.0) == 2


def test_when_a_member_renews() -> None:
    holding = Holding(Terms(10), "a")
    assert holding.due(1, 0) == -inf
    holding.ask(10.0, 4, 0, 0)
    holding.accept(Answer(4, 4, 0, 1))
    assert holding.due(4, 4) == 10.0 + RENEWAL
    assert holding.due(5, 4) == 10.1  # it lacks one more
    holding.accept(Answer(2, 4, 0, 2))
    assert holding.due(4, 4) == 11.0  # others will give back what it lacks
    holding.ask(20.0, 1, 4, 4)
    holding.accept(Answer(2, 2, 0, 2))
    assert [holding.due(1, size) for size in (4, 2)] == [25.0, 20.1]  # once the surplus is closed, it says so
    holding.miss()
    assert holding.due(1, 2) == 21.0
    holding.accept(Answer(2, 2, 0, 2, 3.0))
    assert holding.due(1, 4) == 23.0


@given(st.integers(0, 30), st.lists(st.tuples(*[st.integers(0, 12)] * 5), min_size=1, max_size=6))
def test_pools_of_a_process_stay_within_its_share(share: int, numbers: list[tuple[int, ...]]) -> None:
    pools = [PoolNeed(need, like, most, size, limit) for need, like, most, size, limit in numbers]
    goals = split(share, pools)
    assert sum(goals) <= share
    lowered = [one._replace(limit=min(goal, one.limit)) for goal, one in zip(goals, pools)]
    before = sum(max(one.limit, one.size) for one in lowered)
    limits = raised(share, goals, lowered)
    assert sum(max(limit, one.size) for limit, one in zip(limits, lowered)) <= max(share, before)
    assert all(limit <= max(goal, 0) for limit, goal in zip(limits, goals))


def test_a_pool_without_need_lends_its_part_to_the_other() -> None:
    idle, busy = PoolNeed(0, 2, 10, 2, 3), PoolNeed(9, 3, 10, 3, 3)
    assert split(6, [idle, busy]) == [0, 6]
    assert raised(6, [0, 6], [idle._replace(limit=0), busy]) == [0, 4]  # two are not closed yet
    assert raised(6, [0, 6], [idle._replace(limit=0, size=0), busy]) == [0, 6]


# -- a fleet under a virtual clock ------------------------------------------------------


class Member:
    """A process with a pool: opens what it needs as far as its limit allows, and closes a surplus within some seconds.

    Its clock has an offset, and runs faster or slower than the store's by up to 2 %.
    """

    def __init__(self, terms: Terms, name: str, offset: float = 0.0, rate: float = 1.0) -> None:
        self.holding = Holding(terms, name)
        self.offset, self.rate = offset, rate
        self.open = 0
        self.want = 0
        self.cut = False  # from the store
        self.waiting: Request | None = None

    def clock(self, now: float) -> float:
        return self.offset + now * self.rate

    def limit(self, now: float) -> int:
        return self.holding.limit(self.clock(now))

    def use(self, now: float) -> None:
        self.open = max(self.open, min(self.want, self.limit(now)))

    def shrink(self, now: float, at_most: int) -> None:
        self.open = max(self.limit(now), self.open - at_most) if self.open > self.limit(now) else self.open

    def ask(self, now: float) -> Request:
        self.waiting = self.holding.ask(self.clock(now), self.want, self.open, self.open)
        return self.waiting

    def accept(self, request: Request, answer: Answer, now: float) -> None:
        if self.waiting is request:  # else it has given it up
            self.waiting = None
            self.holding.accept(answer)
            self.use(now)


class Fleet:
    """Members, a store and the network between them; every event checks that the total is kept."""

    def __init__(self, terms: Terms, seed: int) -> None:
        self.terms, self.random = terms, random.Random(seed)
        self.ledger, self.epoch = Ledger(), 1
        self.fresh = True
        self.members: dict[str, Member] = {}
        self.away, self.loss = False, 0.02
        self.now, self.opened, self.most, self.requests = 0.0, 0, 0, 0
        self._numbers = itertools.count()
        self._events: list[tuple[float, int, Callable[..., Any], tuple[Any, ...]]] = []

    def at(self, after: float, call: Callable[..., Any], *args: Any) -> None:
        heapq.heappush(self._events, (self.now + after, next(self._numbers), call, args))

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while self._events and self._events[0][0] <= end:
            self.now, _, call, args = heapq.heappop(self._events)
            call(*args)
        self.now = end

    def check(self, member: Member, before: int) -> None:
        self.opened += member.open - before
        self.most = max(self.most, self.opened)
        assert self.opened <= self.terms.total, f"{self.opened} open at {self.now:.2f}"

    def start(self, want: int) -> Member:
        name = f"{next(self._numbers):08x}"
        member = Member(self.terms, name, self.random.uniform(-1e6, 1e6), self.random.uniform(0.98, 1.02))
        self.members[name] = member
        member.want = want
        self.at(0.0, self.tick, member)
        return member

    def crash(self, member: Member) -> None:
        self.members.pop(member.holding.member, None)
        self.opened -= member.open

    def leave(self, member: Member) -> None:
        self.crash(member)
        self.at(self.random.uniform(0, 0.1), self.ledger.release, member.holding.member, member.holding.number + 1)

    def alive(self, member: Member) -> bool:
        return self.members.get(member.holding.member) is member

    def tick(self, member: Member) -> None:
        if not self.alive(member):
            return
        if member.open > member.limit(self.now):
            self.at(self.random.uniform(0.0, 3.0), self.close, member)
        else:
            before = member.open
            member.use(self.now)
            self.check(member, before)
        if member.waiting is None and member.clock(self.now) >= member.holding.due(member.want, member.open):
            request = member.ask(self.now)
            self.at(self.random.uniform(0, 0.2), self.arrive, member, request)
            self.at(2.0, self.give_up, member, request)
        self.at(0.25, self.tick, member)

    def close(self, member: Member) -> None:
        if self.alive(member):
            before = member.open
            member.shrink(self.now, self.random.randint(1, 50))
            self.check(member, before)

    def arrive(self, member: Member, request: Request) -> None:
        if self.away or member.cut or self.random.random() < self.loss:
            return
        self.requests += 1
        answer = self.ledger.renew(request, self.terms, self.now, str(self.epoch), self.fresh)
        if self.random.random() < 0.05:  # delivered again, much later
            self.at(self.random.uniform(0, 10), self.arrive, member, request)
        if self.random.random() > self.loss:
            self.at(self.random.uniform(0, 0.2), self.answer, member, request, answer)

    def answer(self, member: Member, request: Request, answer: Answer) -> None:
        if self.alive(member):
            before = member.open
            member.accept(request, answer, self.now)
            self.check(member, before)

    def give_up(self, member: Member, request: Request) -> None:
        if member.waiting is request:
            member.waiting = None
            member.holding.miss()

    def restart(self, forget: bool) -> None:
        self.epoch += 1
        self.fresh = False
        if forget:
            self.ledger = Ledger()

    def settled(self) -> bool:
        """Whether every member has its fair share, as far as the floors of absent ones leave room."""
        size, floor = self.terms.total, self.terms.floor
        if self.terms.max_members is not None:
            size -= floor * max(0, self.terms.max_members - len(self.ledger.rows))
        top, _ = level(size, Counter(max(one.want, floor) for one in self.members.values()))
        return all(one.limit(self.now) >= min(max(one.want, floor), top) for one in self.members.values())


@pytest.mark.parametrize(("members", "rounds", "seed"), [(200, 12, 1), (200, 12, 2), (200, 12, 3), (2000, 1, 4)])
def test_a_large_fleet_stays_within_its_total(members: int, rounds: int, seed: int) -> None:
    """Crashes, joins, partitions, restarts of the store with and without its memory, lost and repeated messages."""
    fleet = Fleet(Terms(3 * members, max_members=members * 12 // 10), seed)
    for _ in range(members):
        fleet.start(fleet.random.randint(0, 12))
    for _ in range(rounds):
        fleet.run(5.0)
        for member in fleet.random.sample(list(fleet.members.values()), members // 10):
            fleet.random.choice((fleet.crash, fleet.leave))(member)
        for _ in range(members // 10):
            fleet.start(fleet.random.randint(0, 12))
        for member in fleet.members.values():
            if fleet.random.random() < 0.3:
                member.want = fleet.random.randint(0, 12)
            member.cut = fleet.random.random() < (0.8 if member.cut else 0.08)
        fleet.away = fleet.random.random() < (0.6 if fleet.away else 0.1)
        if fleet.random.random() < 0.3:
            fleet.restart(fleet.random.random() < 0.5)
    assert fleet.most > 2.5 * members  # the total was used
    if rounds > 2:
        fleet.away = False
        for member in fleet.members.values():
            member.cut, member.want = False, 12
        fleet.run(10 + 2 * TTL + 2 * RENEWAL)  # repeated messages, leases of the dead, learning
        assert fleet.settled()


@pytest.mark.parametrize("declared", [None, 30])
def test_demands_are_met_within_two_renewals(declared: int | None) -> None:
    fleet = Fleet(Terms(60, max_members=declared), 1)
    fleet.loss = 0.0
    members = [fleet.start(10) for _ in range(6)]
    fleet.run(2 * RENEWAL)
    assert fleet.settled()
    late = [fleet.start(10) for _ in range(6)]  # a rollout: old and new side by side
    fleet.run(2 * RENEWAL + 1)
    assert fleet.settled() and all(member.open >= 1 for member in members + late)
    for member in members:
        fleet.leave(member)
    fleet.run(2 * RENEWAL)
    assert fleet.settled()
    for member in late[1:]:
        member.want = 0
    late[0].want = 40
    fleet.run(2 * RENEWAL + 1)
    assert late[0].open >= (40 if declared is None else 60 - 30)


def test_without_the_store_everybody_is_at_the_floor_in_time_and_back_within_one_ttl() -> None:
    fleet = Fleet(Terms(60), 2)
    fleet.loss = 0.0
    members = [fleet.start(10) for _ in range(12)]
    fleet.run(10.0)
    assert fleet.settled()
    fleet.away = True
    fleet.run(TTL)
    assert [member.open for member in members] == [1] * 12
    fleet.run(105.0)
    assert [member.open for member in members] == [1] * 12  # and stays there
    fleet.away = False
    fleet.run(TTL + 2.5)  # it learns for one TTL, from the first request on
    assert fleet.settled()


@pytest.mark.parametrize("seed", range(4))
def test_what_those_that_are_cut_off_have_given_up_goes_to_the_others(seed: int) -> None:
    fleet = Fleet(Terms(40, max_members=8), seed)
    members = [fleet.start(12) for _ in range(8)]
    fleet.run(10.0 + seed)
    assert fleet.opened == 40
    for member in members[1:]:
        member.cut = True
    fleet.run(TTL + 2 * RENEWAL)
    assert members[0].open == 12 and [member.open for member in members[1:]] == [1] * 7
    for member in members:
        member.cut = False
    fleet.run(2 * RENEWAL + 5)
    assert fleet.settled()


def test_a_large_fleet_in_balance_sends_one_request_in_five_seconds() -> None:
    fleet = Fleet(Terms(500, max_members=500), 3)
    for _ in range(100):
        fleet.start(12)  # more than there is
    fleet.run(30.0)
    before = fleet.requests
    fleet.run(50.0)
    assert fleet.requests - before <= 100 * 11


class Machine(RuleBasedStateMachine):
    """Any order of steps, each of them as small as a crash can be late."""

    MOST = 5
    terms = Terms(9, floor=1, max_members=MOST)

    def __init__(self) -> None:
        super().__init__()
        self.ledger, self.epoch = Ledger(), 1
        self.members: list[Member] = []
        self.requests: list[tuple[Member, Request]] = []
        self.answers: list[tuple[Member, Request, Answer]] = []
        self.now = 0.0
        self.started = itertools.count()
        self.known = True

    @precondition(lambda self: len(self.members) < self.MOST)
    @rule(want=st.integers(0, 12), rate=st.floats(0.98, 1.02))
    def start(self, want: int, rate: float) -> None:
        self.members.append(Member(self.terms, f"{next(self.started):08x}", 1e4, rate))
        self.members[-1].want = want

    @precondition(lambda self: self.members)
    @rule(data=st.data())
    def crash(self, data: st.DataObject) -> None:
        self.members.remove(data.draw(st.sampled_from(self.members)))

    @precondition(lambda self: self.members)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        member = data.draw(st.sampled_from(self.members))
        self.members.remove(member)
        self.ledger.release(member.holding.member, member.holding.number + 1)

    @precondition(lambda self: self.members)
    @rule(data=st.data(), want=st.integers(0, 12))
    def use(self, data: st.DataObject, want: int) -> None:
        member = data.draw(st.sampled_from(self.members))
        member.want = want
        member.use(self.now)

    @precondition(lambda self: self.members)
    @rule(data=st.data(), number=st.integers(1, 3))
    def close(self, data: st.DataObject, number: int) -> None:
        data.draw(st.sampled_from(self.members)).shrink(self.now, number)

    @precondition(lambda self: self.members)
    @rule(data=st.data())
    def ask(self, data: st.DataObject) -> None:
        member = data.draw(st.sampled_from(self.members))
        self.requests.append((member, member.ask(self.now)))

    @precondition(lambda self: self.requests)
    @rule(data=st.data(), keep=st.booleans())
    def arrive(self, data: st.DataObject, keep: bool) -> None:
        member, request = one = data.draw(st.sampled_from(self.requests))
        if not keep:  # else it arrives twice
            self.requests.remove(one)
        answer = self.ledger.renew(request, self.terms, self.now, str(self.epoch))
        self.answers.append((member, request, answer))

    @precondition(lambda self: self.answers)
    @rule(data=st.data(), lost=st.booleans())
    def answer(self, data: st.DataObject, lost: bool) -> None:
        member, request, answer = one = data.draw(st.sampled_from(self.answers))
        self.answers.remove(one)
        if not lost and member in self.members:
            member.accept(request, answer, self.now)

    @rule(forget=st.booleans())
    def restart(self, forget: bool) -> None:
        self.epoch += 1
        if forget:
            self.ledger = Ledger()
            self.known = False  # which the store cannot tell from the leases that it has forgotten

    @rule(seconds=st.sampled_from([0.1, 1.0, 3.0]), times=st.integers(1, 6))
    def wait(self, seconds: float, times: int) -> None:
        """Time passes; a surplus is closed within 3 s, which is less than the margin."""
        for _ in range(times):
            over = [member for member in self.members if member.open > member.limit(self.now)]
            self.now += seconds
            if seconds == 3.0:
                for member in over:
                    member.shrink(self.now, 99)
            else:
                for member in self.members:
                    if member.open > member.limit(self.now):
                        member.shrink(self.now, 99)
            for member in self.members:
                member.use(self.now)

    @invariant()
    def total_is_kept(self) -> None:
        assert sum(member.open for member in self.members) <= self.terms.total

    @invariant()
    def limits_are_known_to_the_store(self) -> None:
        for member in self.members:
            row = self.ledger.rows.get(member.holding.member)
            held = 0 if row is None or row.until <= self.now else row.held
            assert member.limit(self.now) <= max(held, self.terms.floor) or not self.known, "F2"


TestMachine = Machine.TestCase
TestMachine.settings = settings(stateful_step_count=60, deadline=None)

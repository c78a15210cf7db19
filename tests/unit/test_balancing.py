"""The balancer of several servers, as values in and values out: choice, ejection, return, zones, budget."""

from __future__ import annotations

import copy
import pickle
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from pooling import Balancing, HTTPPool
from pooling.adapters.http.balancing.bases import MOST_SERVERS, Base, GroupURL, checked_bases, split_origin
from pooling.adapters.http.balancing.model import RESERVE, Balancer, RetryBudget, Server

CALL = object()


def servers(*names: str, zones: dict[str, str] | None = None) -> list[Server]:
    return [Server(name, (zones or {}).get(name)) for name in names or ("a", "b", "c")]


def balancer(
    policy: Balancing | None = None, among: list[Server] | None = None, zone: str | None = None, places: int = 100
) -> Balancer:
    made = Balancer(policy or Balancing(), zone, places, random.Random(7).random)
    made.use(servers() if among is None else among, 0.0)
    return made


def nothing(server: Server) -> int:
    return 0


def counted(made: Balancer, now: float, times: int = 1000, load: Callable[[Any], int] = nothing) -> Counter[str]:
    found = [made.choose(now, load, CALL) for _ in range(times)]
    return Counter(server.name for server in found if server is not None)


def know(made: Balancer, now: float, **latencies: float) -> None:
    """Let each server have answered within a time."""
    for server in made.servers:
        for _ in range(5):
            made.succeeded(server, CALL, now, latencies.get(server.name, 0.01))


def fail(made: Balancer, server: Server, now: float, times: int = 5) -> list[float | None]:
    return [made.failed(server, CALL, now, 0.001) for _ in range(times)]


# -- choice ---------------------------------------------------------------------------


def test_equal_servers_get_equal_shares() -> None:
    made = balancer()
    know(made, 1.0)
    assert all(270 < number < 400 for number in counted(made, 1.0).values())


def test_the_faster_of_two_is_chosen() -> None:
    made = balancer()
    know(made, 1.0, a=0.1)
    assert counted(made, 1.0)["a"] == 0


def test_load_counts_beside_latency() -> None:
    made = balancer(among=servers("a", "b"))
    know(made, 1.0, a=0.01, b=0.03)
    assert counted(made, 1.0, load=lambda server: {"a": 1, "b": 0}[server.name]) == {"a": 1000}
    assert counted(made, 1.0, load=lambda server: {"a": 5, "b": 0}[server.name]) == {"b": 1000}


def test_servers_that_are_not_known_are_tried_first_and_spread_by_load() -> None:
    made = balancer(among=servers("a", "b"))
    made.succeeded(made.servers[0], CALL, 1.0, 0.01)
    assert counted(made, 1.0) == {"b": 1000}
    assert counted(made, 1.0, load=lambda server: {"a": 0, "b": 1}[server.name]) == {"a": 1000}


def test_one_slow_answer_is_no_slow_server() -> None:
    made = balancer(among=servers("a", "b"))
    know(made, 1.0, a=0.01, b=0.1)
    made.succeeded(made.servers[0], CALL, 1.0, 5.0)
    assert made.servers[0].latency == pytest.approx(0.02)
    assert counted(made, 1.0) == {"a": 1000}
    for _ in range(4):
        made.succeeded(made.servers[0], CALL, 1.0, 5.0)
    assert counted(made, 1.0) == {"b": 1000}


def test_a_slow_server_is_tried_again_after_some_time() -> None:
    made = balancer(among=servers("a", "b"))
    know(made, 0.0, a=0.01, b=0.1)
    for now in range(1, 12):
        made.succeeded(made.servers[0], CALL, float(now), 0.01)
        assert counted(made, float(now), 10) == {"a": 10}
    made.succeeded(made.servers[0], CALL, 12.0, 0.01)
    assert counted(made, 12.0, 10) == {"b": 10}  # 10 x slower fades within 5 s x ln 10


def test_a_server_that_fails_fast_does_not_look_best() -> None:
    made = balancer(Balancing(eject_after=1000), among=servers("a", "b"))
    know(made, 1.0, b=0.05)
    for _ in range(50):
        made.failed(made.servers[0], CALL, 1.0, 0.001)
    assert made.servers[0].latency == pytest.approx(0.01)
    assert counted(made, 1.0) == {"b": 1000}


def test_a_server_that_has_only_failed_does_not_look_unknown() -> None:
    made = balancer(Balancing(eject_after=1000), among=servers("a", "b"))
    made.failed(made.servers[0], CALL, 1.0, 0.001)
    assert counted(made, 1.0) == {"b": 1000}  # which is not known either
    made.succeeded(made.servers[1], CALL, 1.0, 0.5)
    assert made.typical == pytest.approx(0.95) and counted(made, 1.0) == {"b": 1000}
    assert made.servers[0].latency is None


def test_single_failures_do_not_starve_a_server() -> None:
    made = balancer(among=servers("a", "b"))
    know(made, 1.0, b=0.02)
    made.failed(made.servers[0], CALL, 1.0, 0.01)
    assert counted(made, 1.0) == {"a": 1000}


def test_tried_servers_are_left_out() -> None:
    made = balancer()
    know(made, 1.0)
    a, b, c = made.servers
    assert made.choose(1.0, nothing, CALL, tried=[a, b]) is c
    assert made.choose(1.0, nothing, CALL, tried=[a, b, c]) is None
    assert made.has_other(1.0, [a, b]) and not made.has_other(1.0, [a, b, c])


def test_usual_choices_change_nothing() -> None:
    """So they need no lock."""
    for among in (servers("a"), servers("a", "b"), servers(*ZONES, zones=ZONES)):
        made = balancer(among=among, zone="eu", places=3)
        know(made, 1.0, d=0.02)
        before = [[getattr(server, name) for name in Server.__slots__] for server in among]
        for load in (nothing, lambda server: 3):  # the near zone is full with that
            assert {made.choose_usual(2.0, load) for _ in range(200)} <= set(among)
        assert before == [[getattr(server, name) for name in Server.__slots__] for server in among]
        assert made.special == set() and (made.typical, made.servers) == (made.typical, tuple(among))


def test_an_answer_in_normal_service_is_noted_without_the_lock() -> None:
    made = balancer()
    a, b, _ = made.servers
    assert made.succeeded_usual(a, 1.0, 0.5) and (a.latency, a.seen) == (0.5, 1.0)
    made.failed(a, CALL, 2.0, 0.5)
    assert not made.succeeded_usual(a, 2.0, 0.1) and a.latency == 0.5 and a.in_a_row == 1
    assert made.succeeded_usual(b, 2.0, 0.1)
    fail(made, a, 3.0)
    assert made.special == {a}
    assert not made.succeeded_usual(b, 3.0, 0.4) and b.seen == 2.0


@pytest.mark.parametrize("age", [0.0, 0.01, 1.0, 30.0])
@pytest.mark.parametrize("failed", [0, 1, 3])
def test_the_usual_choice_is_the_one_that_costs_less(age: float, failed: int) -> None:
    """Whether one fails or not: there is a short way if none does."""
    made = balancer()
    a, b, c = made.servers
    know(made, 1.0, a=0.01, b=0.02, c=0.04)
    for _ in range(failed):
        made.failed(a, CALL, 1.0, 0.001)
    now, decay = 1.0 + age, made.policy.decay
    for loads in ((0, 0, 0), (4, 0, 0), (20, 0, 9), (1, 0, 3)):
        amount = {server.name: load for server, load in zip(made.servers, loads)}
        costs = {one.name: one.cost(now, amount[one.name], decay, made.typical) for one in made.servers}
        found = {made.choose_usual(now, lambda server: amount[server.name]).name for _ in range(200)}  # noqa: B023
        dearest = max(costs.values())
        assert all(costs[name] < dearest or sorted(costs.values())[1] == dearest for name in found), (costs, found)


def test_any_two_of_the_servers_are_compared() -> None:
    made, pairs = balancer(among=servers("a", "b", "c", "d")), Counter[tuple[str, ...]]()
    loads: list[str] = []

    def load(server: Server) -> int:
        loads.append(server.name)
        return 0

    a = made.servers[0]
    for tried in ((), (a,)):
        for _ in range(3000):
            loads.clear()
            made.choose(1.0, load, CALL, tried=tried)
            pairs[tuple(loads[:2])] += 1
    assert len(pairs) == 4 * 3 and all(first != second for first, second in pairs)
    for pair, number in pairs.items():  # each of 12 at first, then each of 6
        assert 200 < number < 300 if "a" in pair else 650 < number < 850


# -- ejection and return ---------------------------------------------------------------


def test_five_failures_in_a_row_eject() -> None:
    made = balancer()
    a = made.servers[0]
    assert fail(made, a, 1.0, 4) == [None] * 4
    made.succeeded(a, CALL, 1.0, 0.01)
    assert fail(made, a, 2.0) == [None] * 4 + [30.0]
    assert (a.ejected_until, a.ejections, a.failures) == (32.0, 1, 9)
    assert counted(made, 31.9)["a"] == 0


def test_at_most_half_are_ejected() -> None:
    made = balancer(among=servers("a", "b", "c", "d", "e"))
    for server in made.servers:
        fail(made, server, 1.0)
    assert [server.name for server in made.ejected()] and len(made.ejected()) == 2
    alone = balancer(among=servers("a"))
    fail(alone, alone.servers[0], 1.0, 50)
    assert alone.ejected() == [] and counted(alone, 1.0) == {"a": 1000}


def test_one_request_tries_an_ejected_server() -> None:
    made = balancer()
    know(made, 1.0)
    a = made.servers[0]
    fail(made, a, 1.0)
    first, second = object(), object()
    assert made.choose(31.5, nothing, first) is a
    assert made.choose(31.5, nothing, second) is not a
    made.left(first)  # it was interrupted, for example
    assert made.choose(31.5, nothing, second) is a
    assert made.succeeded(a, second, 31.5, 0.01)
    assert a.ejected_until is None and a.in_a_row == 0


def test_a_late_answer_of_an_earlier_request_ends_no_ejection() -> None:
    made = balancer()
    fail(made, made.servers[0], 1.0)
    assert not made.succeeded(made.servers[0], object(), 2.0, 0.01)
    assert made.failed(made.servers[0], object(), 2.0, 0.01) is None
    assert made.servers[0].ejected_until == 31.0


def test_ejections_grow_and_are_forgotten() -> None:
    made = balancer(Balancing(eject_for=10.0, eject_for_max=25.0))
    a, now, lengths = made.servers[0], 1.0, [fail(made, made.servers[0], 1.0)[-1]]
    for _ in range(3):
        assert a.ejected_until is not None
        now = a.ejected_until
        assert made.choose(now, nothing, CALL) is a
        lengths.append(made.failed(a, CALL, now, 0.001))
    assert lengths == [10.0, 20.0, 25.0, 25.0]
    now += 25.0
    assert made.choose(now, nothing, CALL) is a and made.succeeded(a, CALL, now, 0.01)
    assert fail(made, a, now + 24.0)[-1] == 25.0  # soon after its return
    now += 49.0
    assert made.choose(now, nothing, CALL) is a and made.succeeded(a, CALL, now, 0.01)
    assert fail(made, a, now + 26.0)[-1] == 10.0
    assert a.ejections == 6


def test_a_request_that_cannot_be_repeated_tries_last() -> None:
    made = balancer()
    a = made.servers[0]
    fail(made, a, 0.0)
    assert made.choose(31.0, nothing, CALL, safe=False) is not a
    assert made.choose(60.0, nothing, CALL, safe=False) is a  # nothing else has tried it


def test_a_returned_server_gets_its_share_gradually() -> None:
    made = balancer(Balancing(slow_start=10.0), among=servers("a", "b"))
    know(made, 0.0)
    a = made.servers[0]
    fail(made, a, 0.0)
    assert made.choose(30.0, nothing, CALL) is a
    made.succeeded(a, CALL, 30.0, 0.01)
    made.servers[1].seen = 30.0  # else the memory of the other fades
    for server in made.servers:
        server.latency = 0.01
    shares = []
    for seconds in (0.0, 2.0, 4.0, 6.0, 8.0, 10.0):
        shares.append(counted(made, 30.0 + seconds, 2000)["a"] / 2000)
    for share, expected in zip(shares, (0.1, 0.2, 0.4, 0.6, 0.8)):
        assert share <= expected + 0.05  # of those for which it would be the better one
    assert shares[0] < 0.15 and sorted(shares) == shares
    assert a.ramp_from is None


def test_no_slow_start() -> None:
    made = balancer(Balancing(slow_start=0.0), among=servers("a", "b"))
    fail(made, made.servers[0], 0.0)
    made.choose(30.0, nothing, CALL)
    made.succeeded(made.servers[0], CALL, 30.0, 0.01)
    assert made.servers[0].ramp_from is None
    made.recover(made.servers[1], 31.0)
    assert made.servers[1].ramp_from is None


def test_a_resting_server_is_left_out_unless_all_rest() -> None:
    made = balancer(among=servers("a", "b"))
    know(made, 1.0)
    a, b = made.servers
    made.rest(a, 5.0)
    made.rest(a, 3.0)  # sooner than before: no change
    assert counted(made, 4.0) == {"b": 1000}
    assert not made.has_other(4.0, [b]) and made.has_other(5.0, [b])
    made.rest(b, 5.0)
    assert set(counted(made, 4.0)) <= {"a", "b"} and made.choose(4.0, nothing, CALL, tried=[a]) is None
    assert counted(made, 5.0).total() == 1000


def test_servers_come_and_go() -> None:
    a, b, c = servers()
    made = balancer(among=[a, b])
    know(made, 0.0)
    fail(made, a, 0.0)
    made.use([b, c], 1.0)
    assert made.ejected() == [] and c.ramp_from == 1.0 and b.ramp_from is None
    assert fail(made, a, 1.0) == [None] * 5  # a request of before
    assert "a" not in counted(made, 1.0)
    made.use([b, c, *servers("d", "e")], 20.0)
    fail(made, b, 20.0)
    fail(made, c, 20.0)
    assert len(made.ejected()) == 2
    made.use([b, c], 21.0)
    assert len(made.ejected()) == 1


# -- zones ----------------------------------------------------------------------------

ZONES = {"a": "eu", "b": "eu", "c": "eu", "d": "us", "e": "ap"}


def test_the_near_zone_gets_all_while_it_is_healthy() -> None:
    made = balancer(among=servers(*ZONES, zones=ZONES), zone="eu")
    know(made, 1.0, a=0.2, b=0.2, c=0.2)
    assert set(counted(made, 1.0)) == {"a", "b", "c"}


def test_other_zones_help_when_many_near_servers_are_out() -> None:
    made = balancer(among=servers(*ZONES, zones=ZONES), zone="eu")
    know(made, 1.0, d=0.02, e=0.05)
    a, b, c, *_ = made.servers
    fail(made, a, 1.0)
    found = counted(made, 1.0)
    assert 0.88 < (found["b"] + found["c"]) / 1000 < 0.98  # 2/3 x 1.4
    fail(made, b, 1.0)
    found = counted(made, 1.0)
    assert 0.4 < found["c"] / 1000 < 0.54  # 1/3 x 1.4
    assert found["e"] == 0  # the farther of the two others
    assert made.choose(1.0, nothing, CALL, tried=[c]) in made.servers[3:]


def test_a_full_near_zone_spills() -> None:
    made = balancer(among=servers("a", "d", zones=ZONES), zone="eu", places=10)
    know(made, 1.0, d=0.02)
    assert counted(made, 1.0, load=lambda server: {"a": 9, "d": 0}[server.name]) == {"a": 1000}
    assert counted(made, 1.0, load=lambda server: {"a": 10, "d": 0}[server.name]) == {"d": 1000}


def test_a_zone_without_servers_is_no_preference() -> None:
    made = balancer(among=servers(*ZONES, zones=ZONES), zone="sa")
    assert len(counted(made, 1.0)) == 5


# -- hedging --------------------------------------------------------------------------


def test_another_server_is_one_in_normal_service() -> None:
    made = balancer(among=servers("a", "b", "c", "d"))
    know(made, 1.0, d=0.5)
    a, b, c, _ = made.servers
    assert {made.other(1.0, nothing, a) for _ in range(100)} == {b, c}  # the better one of two
    fail(made, b, 1.0)
    made.rest(c, 5.0)
    assert {made.other(1.0, nothing, a) for _ in range(100)} == {made.servers[3]}
    assert made.servers[1].trial is None  # also when its time is over
    assert {made.other(99.0, nothing, a) for _ in range(100)} == {made.servers[3]}
    alone = balancer(among=servers("a"))
    assert alone.other(1.0, nothing, alone.servers[0]) is None


def test_another_server_is_near_if_there_is_one() -> None:
    made = balancer(among=servers("a", "b", "c", zones={"a": "eu", "b": "eu"}), zone="eu")
    know(made, 1.0, a=0.5, b=0.5)
    a, b, c = made.servers
    assert {made.other(1.0, nothing, a) for _ in range(50)} == {b}
    fail(made, b, 1.0)
    assert {made.other(1.0, nothing, a) for _ in range(50)} == {c}


def test_a_request_that_was_given_up_tells_that_its_server_is_slow() -> None:
    made = balancer(among=servers("a", "b"))
    a, b = made.servers
    made.slow(a, 1.0, 0.2)
    assert a.latency == 0.2
    made.slow(a, 1.0, 0.1)  # it would have taken longer than that
    assert a.latency == 0.2
    made.slow(a, 1.0, 0.4)
    assert a.latency == pytest.approx(0.25)
    fail(made, b, 1.0, 4)
    made.slow(b, 1.0, 0.4)
    assert (b.failures, b.in_a_row) == (4, 4) and made.failed(b, CALL, 1.0, 0.001) is not None


# -- budget ---------------------------------------------------------------------------


def test_retries_are_limited_to_their_part_of_the_requests() -> None:
    budget, retries = RetryBudget(0.2), 0
    for number in range(1, 5001):
        budget.requests += 1
        retries += budget.withdraw()
        assert retries <= max(RESERVE, 0.2 * number + 1e-6)
    assert retries >= 0.2 * 5000 - 1
    for _ in range(5000):  # and no retry
        budget.requests += 1
    assert sum(budget.withdraw() for _ in range(5000)) == RESERVE
    none = RetryBudget(0.0)
    none.requests += 1
    assert not none.withdraw()


def test_unused_budget_is_not_saved_up() -> None:
    budget = RetryBudget(0.2)
    for _ in range(10_000):
        budget.requests += 1
    assert sum(budget.withdraw() for _ in range(100)) == RESERVE


# -- a state machine --------------------------------------------------------------------


class Balancers(RuleBasedStateMachine):
    """Any order of requests, outcomes, pauses and changes keeps the invariants."""

    @initialize(
        number=st.integers(1, 7), near=st.integers(0, 7), part=st.sampled_from([0.0, 0.2, 0.5]),
        slow=st.sampled_from([0.0, 5.0]), seed=st.integers(0, 9),
    )  # fmt: skip
    def begin(self, number: int, near: int, part: float, slow: float, seed: int) -> None:
        self.now, self.made = 1000.0, 0
        self.policy = Balancing(eject_after=3, eject_for=10, eject_for_max=40, max_ejected=part, slow_start=slow)
        self.balancer = Balancer(self.policy, "near", 5, random.Random(seed).random)
        self.balancer.use([self.new(place < near) for place in range(number)], self.now)
        self.calls: list[tuple[object, Server, bool]] = []  # with whether it began as a trial
        self.before: dict[Server, int] = {}

    def new(self, near: bool = False) -> Server:
        self.made += 1
        return Server(f"server {self.made}", "near" if near else "far")

    def load(self, server: Server) -> int:
        assert server in self.balancer.servers
        return sum(one is server for _, one, _ in self.calls)

    @rule(safe=st.booleans(), skip=st.integers(0, 3))
    def request(self, safe: bool, skip: int) -> None:
        call, tried = object(), list(self.balancer.servers)[:skip]
        due = {s: s.ejected_until for s in self.balancer.servers if s.ejected_until is not None}
        trials = [one for _, one, trial in self.calls if trial]
        found = self.balancer.choose(self.now, self.load, call, safe, tried)
        if found is None:
            assert tried
            return
        assert found in self.balancer.servers and found not in tried
        if found in due:
            assert self.now >= due[found] and found not in trials and found.trial is call
        elif found.resting_until > self.now:
            others = [s for s in self.balancer.servers if s not in due and s.resting_until <= self.now]
            assert not others and not tried
        self.calls.append((call, found, found in due))

    @rule(data=st.data(), outcome=st.sampled_from(["answer", "failure", "nothing"]), seconds=st.floats(0, 100))
    def end(self, data: st.DataObject, outcome: str, seconds: float) -> None:
        if not self.calls:
            return
        call, server, trial = self.calls.pop(data.draw(st.integers(0, len(self.calls) - 1)))
        was = server.ejected_until
        if outcome == "answer":
            returned = self.balancer.succeeded(server, call, self.now, seconds)
            assert returned == (trial and was is not None and server.trial is None and server.ejected_until is None)
        elif outcome == "failure":
            ejected = self.balancer.failed(server, call, self.now, seconds)
            assert ejected is None or self.policy.eject_for <= ejected <= self.policy.eject_for_max
            if ejected is not None:
                assert server.ejected_until == self.now + ejected
        self.balancer.left(call)

    @rule(seconds=st.floats(0, 50))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds

    @rule(place=st.integers(0, 6), seconds=st.floats(0, 20))
    def rest(self, place: int, seconds: float) -> None:
        self.balancer.rest(self.balancer.servers[place % len(self.balancer.servers)], self.now + seconds)

    @rule(keep=st.integers(0, 6), new=st.integers(0, 3))
    def change(self, keep: int, new: int) -> None:
        kept = [*self.balancer.servers][:keep]
        self.balancer.use([*kept, *(self.new(True) for _ in range(new if kept else new + 1))], self.now)
        self.calls = [one for one in self.calls if one[1] in self.balancer.servers]

    @rule()
    def fork(self) -> None:
        self.calls = []
        self.balancer.forget_calls()

    @invariant()
    def at_most_half_are_ejected(self) -> None:
        if hasattr(self, "balancer"):
            ejected = [server for server in self.balancer.servers if server.ejected_until is not None]
            assert len(ejected) <= int(self.policy.max_ejected * len(self.balancer.servers))
            assert sorted(map(id, ejected)) == sorted(map(id, self.balancer.ejected()))

    @invariant()
    def averages_are_in_their_range(self) -> None:
        if hasattr(self, "balancer"):
            for server in self.balancer.servers:
                assert 0.0 <= server.failing <= 1.0 and (server.latency is None or 0.0 <= server.latency <= 100.0)
                assert server.cost(self.now, 3, 10.0, 1.0) >= 0.0

    @invariant()
    def a_trial_is_a_request_in_progress(self) -> None:
        if hasattr(self, "balancer"):
            calls = [call for call, _, _ in self.calls]
            assert all(server.trial is None or server.trial in calls for server in self.balancer.servers)


TestBalancers = Balancers.TestCase


# -- arguments --------------------------------------------------------------------------


def test_bases() -> None:
    found = checked_bases(["HTTP://A.example:80/api/", "http://b.example:8080"], "eu", ["eu", None])
    assert found == [Base("http://a.example/api", "eu"), Base("http://b.example:8080", None)]
    assert [(base.origin, base.path) for base in found] == [
        ("http://a.example", "/api"), ("http://b.example:8080", ""),
    ]  # fmt: skip
    assert found[0].label("10.0.0.1") == "http://10.0.0.1/api" and found[1].label("::1") == "http://[::1]:8080"
    by_url = checked_bases(["http://a", "http://b"], "eu", {"http://b": "eu"})
    assert [base.zone for base in by_url] == [None, "eu"]
    assert split_origin("https://A:443?x") == ("https://a", "?x")


@pytest.mark.parametrize(
    ("first", "path", "other", "target", "url"),
    [
        ("http://a", "/x?y=1", "http://b:81", "/x?y=1", "http://b:81/x?y=1"),
        ("http://a", "/x", "http://b/v2", "/v2/x", "http://b/v2/x"),
        ("http://a/v1", "/x", "http://b/v2", "/v2/x", "http://b/v2/x"),
        ("http://a/v1", "/x#y?z", "http://b/v2", "/v2/x", "http://b/v2/x#y?z"),
        ("http://a/v1", "/x", "http://b", "/x", "http://b/x"),
        ("http://a/v1", "/", "http://b", "/", "http://b/"),
        ("http://a/v1", "/v1", "http://b/v2", "/v2/v1", "http://b/v2/v1"),
        ("http://a", "//x", "http://b", "//x", "http://b//x"),
    ],
)  # fmt: skip
def test_url_at_another_server(first: str, path: str, other: str, target: str, url: str) -> None:
    made, base = GroupURL.below(Base(first, None), path), Base(other, None)
    assert made.at(base) == (target, url) == made.at(base)
    assert made.at(made.first) == (made.target, made)


def test_url_without_the_path_of_the_first_server() -> None:
    """As after a redirect."""
    first = Base("http://a/v1", None)
    for rest, target in (("/v10/x", "/v10/x"), ("/v1", "/v2"), ("/v1?y", "/v2?y"), ("", "/"), ("?y", "/?y")):
        assert GroupURL(first.origin + rest, first).at(Base("http://b/v2", None)) == (target, f"http://b{target}")
    assert GroupURL("http://a/v1?y", first).at(Base("http://b", None)) == ("/?y", "http://b/?y")


def test_url_is_copied_and_pickled() -> None:
    made = GroupURL("http://a/x?y=1", Base("http://a", "eu"))
    copies = [copy.deepcopy(made), *(pickle.loads(pickle.dumps(made, protocol)) for protocol in range(6))]
    for one in copies:
        assert type(one) is GroupURL and (one, one.first, one.target) == (made, made.first, "/x?y=1")
        assert one.at(Base("http://b", None)) == ("/x?y=1", "http://b/x?y=1")


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"base_urls": "http://a"}, TypeError, "base_urls must be several URLs, not a str"),
        ({"base_urls": 3}, TypeError, "base_urls must be several URLs, not 3"),
        ({"base_urls": [None]}, TypeError, "base_urls must be strings, not None"),
        ({"base_urls": [3]}, TypeError, "base_urls must be a string, not 3"),
        ({"base_urls": []}, ValueError, f"base_urls must have from 1 to {MOST_SERVERS} URLs, not 0"),
        ({"base_urls": ["http://a", "http://A/"]}, ValueError, "base_urls must not name a server twice"),
        ({"base_urls": ["http://a", "https://b"]}, ValueError, "base_urls must be all http:// or all https://"),
        ({"base_urls": ["ftp://a"]}, ValueError, "base_urls must begin with http:// or https://"),
        ({"base_urls": ["http://a?x"]}, ValueError, "base_urls must have no query and no fragment"),
        ({"base_urls": ["http://u:p@a"]}, ValueError, "base_urls must have no user and password: give them as auth="),
        ({"base_urls": ["http://a"], "base_url": "http://b"}, ValueError, "base_url and base_urls exclude each other"),
        ({"base_urls": ["http://a"], "zone": "eu"}, ValueError, "zone and zones must be given together"),
        ({"base_urls": ["http://a"], "zone": 3, "zones": ["x"]}, TypeError, "zone must be a non-empty string, not 3"),
        ({"base_urls": ["http://a"], "zone": "x", "zones": "x"}, TypeError, "zones must be a mapping of URLs to zones"),
        ({"base_urls": ["http://a"], "zone": "x", "zones": []}, ValueError, "zones must have one zone for each of"),
        ({"base_urls": ["http://a"], "zone": "x", "zones": [3]}, TypeError, "zones must be non-empty strings, not 3"),
        ({"base_urls": ["http://a"], "zone": "x", "zones": {"b": "x"}}, ValueError, "1 of its keys are not there"),
        ({"zone": "eu"}, ValueError, "zone and zones need base_urls"),
        ({"balancing": Balancing()}, ValueError, "balancing needs base_urls"),
        ({"base_urls": ["http://a"], "balancing": 3}, TypeError, "balancing must be a Balancing, not 3"),
        ({"base_urls": ["http://a"], "pooled": False}, ValueError, "pooled must be True with base_urls"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        HTTPPool(**arguments)


@pytest.mark.parametrize(
    ("field", "value", "error", "text"),
    [
        ("eject_after", 0, ValueError, "eject_after must be at least 1, not 0"),
        ("eject_after", 1.5, TypeError, "eject_after must be a whole number, not 1.5"),
        ("eject_for", 0, ValueError, "eject_for must be above 0 and finite, not 0"),
        ("slow_start", -1, ValueError, "slow_start must be at least 0 and finite, not -1"),
        ("decay", "x", TypeError, "decay must be a number, not 'x'"),
        ("max_ejected", 0.6, ValueError, "max_ejected must be at most 0.5, not 0.6"),
        ("retry_budget", 1.5, ValueError, "retry_budget must be at most 1, not 1.5"),
        ("eject_for_max", 1, ValueError, "eject_for_max must be at least eject_for=30.0, not 1"),
        ("resolve", 1, TypeError, "resolve must be True or False, not 1"),
        ("resolve_interval", float("inf"), ValueError, "resolve_interval must be above 0 and finite, not inf"),
        ("hedge_after", 0, ValueError, "hedge_after must be above 0 and finite, not 0"),
        ("hedge_after", True, TypeError, "hedge_after must be a number, not True"),
        ("decay", None, TypeError, "decay must be a number, not None"),
    ],
)
def test_bad_settings(field: str, value: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        Balancing(**{field: value})

"""The pool's decisions without threads: each case by itself, then all in any order."""

from __future__ import annotations

import math
import queue
import random
from collections import deque
from collections.abc import Callable
from itertools import count
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from pooling.core.entry import Entry, Token
from pooling.core.outage import PATIENCE, REMEMBERED, Outage
from pooling.core.state import UNLIMITED, PoolState, WorkerTask
from pooling.core.waiter import Waiter
from pooling.errors import CreateFailed, PoolClosed
from pooling.settings import Backoff

NOW = 100.0
ERRAND = WorkerTask(5.0, round_trip=False)
_threads = count(1)
STEADY = Backoff(jitter=False)  # 0.05, 0.1, 0.2, ... 30; 0.25 at most while there are waiters


# -- builders --------------------------------------------------------------------


class Box:
    """A waiter's box whose content a test can read."""

    def __init__(self) -> None:
        self.items: deque[Any] = deque()

    def put(self, item: Any) -> None:
        self.items.append(item)

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        if not self.items:
            raise queue.Empty
        return self.items.popleft()


def a_waiter(arrived: float = NOW, again: bool = False, attempts: int = 0) -> Waiter:
    waiter = Waiter(arrived, thread=next(_threads), again=again)
    waiter.box = Box()
    waiter.attempts = attempts
    return waiter


def box_of(waiter: Waiter) -> list[Any]:
    """The content of a waiter's box."""
    assert isinstance(waiter.box, Box)
    return list(waiter.box.items)


def reserved(state: PoolState, expires: float = math.inf) -> Token:
    """A reserved slot without a resource."""
    token = Token()
    token.entry = entry = Entry(token)
    entry.generation, entry.expires = state.generation, expires
    entry.since = entry.idle_since = entry.checked = NOW
    entry.resource = None
    state.reserve(entry)
    return token


def lent(state: PoolState, expires: float = math.inf) -> Token:
    """A resource that a borrower holds."""
    token = reserved(state, expires)
    state.settle(token.entry)
    return token


def idle(state: PoolState, expires: float = math.inf) -> Token:
    """A resource on top of the idle stack."""
    token = lent(state, expires)
    state.idle.append(token)
    return token


def checked_by(state: PoolState) -> Callable[[Entry], None]:
    return lambda entry: state.checking.__setitem__(entry, ERRAND)


def a_pool(
    min_size: int = 0,
    max_size: int = 5,
    max_idle: int | None = None,
    *,
    in_use: int = 0,
    resting: int = 0,
    waiting: int = 0,
    creating: int = 0,
    checking: int = 0,
    closing: int = 0,
) -> tuple[PoolState, list[Token]]:
    """A state with so many of each, and the tokens, which must stay alive."""
    state = PoolState(min_size, UNLIMITED, max_idle)
    state.started = True
    tokens = [lent(state) for _ in range(in_use)] + [reserved(state) for _ in range(creating)]
    for number, verb in ((checking, checked_by(state)), (closing, state.close)):
        for _ in range(number):
            tokens.append(lent(state))
            verb(tokens[-1].entry)
    tokens += [idle(state) for _ in range(resting)]
    state.waiters.extend(a_waiter(NOW + number) for number in range(waiting))
    state.max_size = max_size
    return state, tokens


# -- the wait queue ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("arrivals", "order"),
    [
        ([1.0, 2.0, 3.0], [0, 1, 2]),
        ([1.0, 3.0, 2.0], [0, 2, 1]),
        ([3.0, 2.0, 1.0], [2, 1, 0]),
        ([1.0, 1.0, 1.0], [0, 1, 2]),
        ([2.0, 2.0, 1.0, 2.0], [2, 0, 1, 3]),
    ],
)
def test_wait_queue_is_in_order_of_arrival(arrivals: list[float], order: list[int]) -> None:
    """However late the lock was reached; at the same instant, in order of joining (P3)."""
    state = PoolState(0, 1, 1)
    waiters = [a_waiter(arrived) for arrived in arrivals]
    for waiter in waiters:
        state.waiters.join(waiter)
    assert list(state.waiters) == [waiters[number] for number in order]


def test_entry_of_a_lost_token_can_be_looked_up() -> None:
    """After an exception between the two the reaper gets an entry that no pool has."""
    token = Token()
    entry = Entry(token)
    del token
    state = PoolState(0, 1)
    assert entry() is None
    assert not state.owns(entry)
    assert not state.retire(entry)


def test_waiter_that_was_given_a_dead_resource_keeps_its_position() -> None:
    """It goes before waiters that arrived at the same time, and after earlier ones (P3)."""
    state = PoolState(0, 1, 1)
    older, same, younger = a_waiter(1.0), a_waiter(2.0), a_waiter(3.0)
    for waiter in (older, same, younger):
        state.waiters.join(waiter)
    first, second = a_waiter(2.0, again=True), a_waiter(2.0, again=True)
    state.waiters.join(first)
    state.waiters.join(second)
    assert list(state.waiters) == [older, first, second, same, younger]


def test_leaving_without_an_item() -> None:
    """It is out of the queue, accepts nothing any more, and may leave twice."""
    state, _ = a_pool(waiting=2)
    waiter, other = state.waiters
    assert state.waiters.leave(waiter) is None
    assert list(state.waiters) == [other]
    assert waiter.give(Token()) is False
    assert state.waiters.leave(waiter) is None


def test_leaving_with_a_given_token() -> None:
    """An item that came at the last moment is returned once, for the next waiter (P8)."""
    state, (token,) = a_pool(in_use=1, waiting=1)
    waiter = state.waiters[0]
    assert state.accept(token, NOW) is None
    assert state.waiters.leave(waiter) is token
    assert state.waiters.leave(waiter) is None


def test_leaving_with_an_error_given() -> None:
    state, _ = a_pool(waiting=1)
    waiter = state.waiters[0]
    state.waiters.fail(PoolClosed, "closed")
    assert isinstance(state.waiters.leave(waiter), PoolClosed)


def test_interrupted_hand_over_leaves_the_waiter_without_a_token() -> None:
    """An exception between the two steps leaves a waiter that is marked but has no token."""
    state, _ = a_pool(waiting=1)
    waiter = state.waiters[0]
    waiter.given = True
    assert state.waiters.leave(waiter) is None


@pytest.mark.parametrize(("attempts", "failing"), [(0, [0, 1, 2]), (2, [1, 2]), (3, [2]), (4, [])])
def test_fail_waiters_by_attempts(attempts: int, failing: list[int]) -> None:
    """Only waiters that have seen so many failures; the others keep their order."""
    state = PoolState(0, 1, 1)
    waiters = [a_waiter(float(number), attempts=seen) for number, seen in enumerate((0, 2, 3))]
    for waiter in waiters:
        state.waiters.join(waiter)
    cause = OSError("refused")
    state.waiters.fail(CreateFailed, "no", cause, attempts)
    assert [number for number, waiter in enumerate(waiters) if waiter.given] == failing
    assert list(state.waiters) == [waiter for waiter in waiters if not waiter.given]
    for number in failing:
        (error,) = box_of(waiters[number])
        assert isinstance(error, CreateFailed)
        assert error.__cause__ is cause


def test_fail_waiters_gives_each_an_error_of_its_own() -> None:
    """A shared one would collect the tracebacks of all threads that raise it."""
    state, _ = a_pool(waiting=2)
    first, second = state.waiters
    state.waiters.fail(PoolClosed, "closed")
    assert box_of(first)[0] is not box_of(second)[0]


def test_fail_waiters_skips_a_waiter_that_was_given_a_token() -> None:
    """A waiter that was served but not yet removed keeps its token."""
    state, (token,) = a_pool(in_use=1, waiting=1)
    waiter = state.waiters[0]
    waiter.give(token)
    state.waiters.fail(PoolClosed, "closed")
    assert box_of(waiter) == [token]


# -- match and accept ----------------------------------------------------------------


def test_match_gives_the_last_used_to_the_first_waiter() -> None:
    """Waiters first-in first-out, idle resources last-in first-out (P3)."""
    state, tokens = a_pool(resting=3, waiting=2)
    first, second = state.waiters
    assert state.match_waiters(NOW) == []
    assert box_of(first) == [tokens[2]]
    assert box_of(second) == [tokens[1]]
    assert list(state.idle) == [tokens[0]]
    assert not state.waiters


def test_match_keeps_the_wait_queue_in_order() -> None:
    state, _ = a_pool(resting=1, waiting=3)
    _, second, third = state.waiters
    assert state.match_waiters(NOW) == []
    assert list(state.waiters) == [second, third]


def test_match_skips_waiters_that_were_given_a_token() -> None:
    """An interruption between giving and removing leaves a stale head (P8)."""
    state, (token,) = a_pool(resting=1, waiting=2)
    stale, waiter = state.waiters
    stale.give(Token())
    assert state.match_waiters(NOW) == []
    assert box_of(waiter) == [token]
    assert len(box_of(stale)) == 1


def test_match_lends_nothing_during_a_pause() -> None:
    state, _ = a_pool(resting=1, waiting=1)
    state.paused = True
    assert state.match_waiters(NOW) == []
    assert len(state.idle) == len(state.waiters) == 1


def test_accept_serves_the_oldest_waiter() -> None:
    state, (token,) = a_pool(in_use=1, waiting=2)
    oldest = state.waiters[0]
    assert state.accept(token, NOW) is None
    assert box_of(oldest) == [token]
    assert not state.idle


def test_accept_pushes_onto_the_idle_stack_without_waiters() -> None:
    state, (token, other) = a_pool(in_use=1, resting=1)
    assert state.accept(token, NOW) is None
    assert list(state.idle) == [other, token]


@pytest.mark.parametrize("place", ["creating", "checking"])
def test_accept_ends_a_check_on_a_worker(place: str) -> None:
    state, (token,) = a_pool(**{place: 1})
    assert state.accept(token, NOW) is None
    assert not getattr(state, place)
    assert list(state.idle) == [token]


def test_accepted_resource_is_not_held() -> None:
    """Its check began after its last release; its last borrower must not look like the holder of its next lease."""
    state, (token,) = a_pool(checking=1)
    token.entry.idle_since, token.entry.since = NOW - 5, NOW - 1
    assert state.accept(token, NOW) is None
    assert not state.idle.pop().entry.held


def test_accept_refuses_after_close() -> None:
    state, (token,) = a_pool(in_use=1)
    state.closed = True
    assert state.accept(token, NOW) == "closed"


@pytest.mark.parametrize(("expires", "reason"), [(NOW + 1, None), (NOW, "lifetime"), (NOW - 1, "lifetime")])
def test_accept_refuses_an_expired_resource(expires: float, reason: str | None) -> None:
    """Also with a waiter: not every release goes to the stack (P6)."""
    state, _ = a_pool(waiting=1)
    token = lent(state, expires)
    assert state.accept(token, NOW) == reason


def test_accept_refuses_the_old_generation() -> None:
    """A resource being created during the drain counts as old: its generation was set at the start."""
    state, (made_before,) = a_pool(creating=1)
    state.drain()
    made_after = reserved(state)
    assert state.accept(made_before, NOW) == "drained"
    assert state.accept(made_after, NOW) is None


@pytest.mark.parametrize("waiting", [0, 1])
@pytest.mark.parametrize(("max_size", "reason"), [(1, "surplus"), (2, None)])
def test_accept_refuses_a_surplus_after_a_shrink(max_size: int, reason: str | None, waiting: int) -> None:
    """A surplus is closed although there is a waiter: the bound comes first (P2)."""
    state, (token, _) = a_pool(max_size=max_size, in_use=2, waiting=waiting)
    assert state.accept(token, NOW) == reason


@pytest.mark.parametrize(
    ("resting", "waiting", "reason"), [(1, 0, None), (2, 0, "max_idle"), (2, 1, None), (3, 0, "max_idle")]
)
def test_accept_keeps_at_most_max_idle(resting: int, waiting: int, reason: str | None) -> None:
    """Unless there is a waiter for it."""
    state, (token, *_) = a_pool(max_idle=2, in_use=1, resting=resting, waiting=waiting)
    state.paused = True  # else the stack would serve the waiter first
    assert state.accept(token, NOW) == reason


@pytest.mark.parametrize(
    ("idle_since", "checked", "place"),
    [(40, 0, 3), (30, 0, 3), (40, 50, 3), (30, 50, 2), (25, 50, 2), (20, 50, 1), (5, 50, 0)],
)
def test_accept_returns_a_checked_resource_to_its_idle_position(idle_since: float, checked: float, place: int) -> None:
    """On top it would count as used last, and no resource would ever reach its idle timeout."""
    state, (token, *resting) = a_pool(in_use=1, resting=3)
    for number, other in enumerate(resting, 1):
        other.entry.idle_since = number * 10.0
    token.entry.idle_since, token.entry.checked = idle_since, checked
    assert state.accept(token, NOW) is None
    assert list(state.idle) == [*resting[:place], token, *resting[place:]]


def test_refused_accept_changes_nothing() -> None:
    """The caller closes it; until then it stays where it was (P1)."""
    state, (token,) = a_pool(checking=1, waiting=1)
    state.closed = True
    state.accept(token, NOW)
    assert set(state.checking) == {token.entry}
    assert not state.idle and len(state.waiters) == 1


# -- the plan ------------------------------------------------------------------------

FREE = UNLIMITED  # the server is up


@pytest.mark.parametrize(
    ("pool", "allowed", "creations"),
    [
        pytest.param({"waiting": 3}, FREE, 3, id="one for each waiter"),
        pytest.param({"waiting": 9}, FREE, 5, id="bounded by max_size"),
        pytest.param({"waiting": 9, "in_use": 3}, FREE, 2, id="bounded by the free slots"),
        pytest.param({"waiting": 9, "in_use": 3, "closing": 2}, FREE, 0, id="closing ones count (P2)"),
        pytest.param({"waiting": 9, "in_use": 7}, FREE, 0, id="beyond max_size after a shrink"),
        pytest.param({"waiting": 3, "creating": 2}, FREE, 1, id="not for whom one is being made"),
        pytest.param({"waiting": 3, "checking": 1}, FREE, 2, id="nor for whom one is being checked"),
        pytest.param({"waiting": 3, "resting": 2}, FREE, 1, id="nor for whom one is idle"),
        pytest.param({"waiting": 1, "creating": 3}, FREE, 0, id="enough on their way"),
        pytest.param({"waiting": 3}, 0, 0, id="none while the server is down (P7)"),
        pytest.param({"waiting": 3}, 1, 1, id="one probe at a time (P7)"),
        pytest.param({"waiting": 3, "creating": 1}, 1, 0, id="the probe is under way (P7)"),
        pytest.param({"waiting": 5, "creating": 1}, 4, 3, id="the ramp counts what is under way"),
        pytest.param({"waiting": 5, "creating": 3}, 2, 0, id="more under way than allowed"),
        pytest.param({}, FREE, 0, id="no demand"),
        pytest.param({"min_size": 3}, FREE, 3, id="refill to min_size"),
        pytest.param({"min_size": 3, "in_use": 1, "resting": 1}, FREE, 1, id="lent ones count for min_size"),
        pytest.param({"min_size": 3, "creating": 3}, FREE, 0, id="so do those being made"),
        pytest.param({"min_size": 3, "closing": 3}, FREE, 2, id="closing ones do not, but take up room"),
        pytest.param({"min_size": 3}, 1, 1, id="refill one by one while the server is down"),
        pytest.param({"min_size": 2, "waiting": 3, "in_use": 1}, FREE, 3, id="waiters or min_size: the larger"),
        pytest.param({"min_size": 4, "waiting": 1, "in_use": 1}, FREE, 3, id="min_size or waiters: the larger"),
    ],
)
def test_serve_plans_creations(pool: dict[str, int], allowed: int, creations: int) -> None:
    state, tokens = a_pool(**pool)
    assert state.serve(allowed, NOW) == (creations, [])
    assert len(tokens) == len(state.entries)  # it plans; reserving is the caller's


@pytest.mark.parametrize(("paused", "creations"), [(False, 3), (True, 1)])
def test_serve_during_a_pause_fills_up_to_min_size_only(paused: bool, creations: int) -> None:
    state, _ = a_pool(min_size=1, waiting=3)
    state.paused = paused
    assert state.serve(FREE, NOW) == (creations, [])


@pytest.mark.parametrize("what", ["closed", "not started"])
def test_serve_plans_no_creation(what: str) -> None:
    """After a close, and before the first acquire (P11)."""
    state, _ = a_pool(min_size=2)
    state.closed, state.started = what == "closed", what != "not started"
    assert state.serve(FREE, NOW) == (0, [])


def test_serve_matches_waiters_before_it_creates() -> None:
    state, tokens = a_pool(resting=2, waiting=1)
    waiter = state.waiters[0]
    assert state.serve(FREE, NOW) == (0, [])
    assert box_of(waiter) == [tokens[1]]


def test_serve_twice_changes_nothing() -> None:
    """It is level-triggered: correct from any state, and idempotent."""
    state, tokens = a_pool(max_size=3, in_use=2, resting=2, closing=1, waiting=1)
    first = state.serve(FREE, NOW)
    places = [len(place) for place in (state.idle, state.waiters, state.closing)]
    assert first == (0, [(tokens[3], "surplus")])
    assert state.serve(FREE, NOW) == (0, [])
    assert [len(place) for place in (state.idle, state.waiters, state.closing)] == places


@pytest.mark.parametrize(
    ("max_size", "closing", "closed"), [(5, 0, []), (4, 0, [0]), (2, 0, [0, 1, 2]), (1, 0, [0, 1, 2]), (4, 1, [0])]
)
def test_serve_closes_the_surplus(max_size: int, closing: int, closed: list[int]) -> None:
    """The longest unused first; what is being closed already is not counted twice (P2)."""
    state, tokens = a_pool(max_size=max_size, in_use=2, closing=closing, resting=3)
    resting = tokens[-3:]
    plan = state.serve(FREE, NOW)
    assert plan == (0, [(resting[number], "surplus") for number in closed])
    assert list(state.idle) == [token for number, token in enumerate(resting) if number not in closed]
    assert len(state.closing) == closing + len(closed)
    assert len(state.entries) == len(tokens)  # a slot counts until the close has returned


def test_serve_closes_idle_resources_above_max_idle() -> None:
    """The longest unused first, and only without waiters."""
    state, tokens = a_pool(max_idle=1, resting=4, waiting=1)
    assert state.serve(FREE, NOW) == (0, [(tokens[0], "max_idle"), (tokens[1], "max_idle")])
    assert list(state.idle) == [tokens[2]]


def test_serve_closes_the_surplus_before_it_lends() -> None:
    """Waiters do not delay a shrink (P2)."""
    state, (_, token) = a_pool(max_size=1, in_use=1, resting=1, waiting=1)
    assert state.serve(FREE, NOW) == (0, [(token, "surplus")])
    assert len(state.waiters) == 1


def test_serve_closes_all_idle_resources_after_a_close() -> None:
    state, tokens = a_pool(in_use=1, resting=2)
    state.closed = True
    _, closes = state.serve(FREE, NOW)
    assert dict(closes) == {tokens[1]: "closed", tokens[2]: "closed"}
    assert state.closing == {token.entry for token in tokens[1:]}


def test_serve_closes_resources_released_during_a_drain() -> None:
    """The fast path pushes without the lock, and a drain may come in between."""
    state, tokens = a_pool(in_use=3)
    state.drain()
    state.idle.extend(tokens[:2])
    _, closes = state.serve(FREE, NOW)
    assert dict(closes) == {tokens[0]: "drained", tokens[1]: "drained"}
    assert not state.idle


@pytest.mark.parametrize(("expires", "closed"), [(NOW + 1, False), (NOW, True)])
def test_serve_lends_no_expired_resource(expires: float, closed: bool) -> None:
    state, _ = a_pool(waiting=1)
    token = idle(state, expires)
    plan = state.serve(FREE, NOW)
    assert plan == ((1, [(token, "lifetime")]) if closed else (0, []))


def test_drain_removes_idle_resources_only() -> None:
    state, tokens = a_pool(in_use=1, resting=2, creating=1)
    generation = state.generation
    assert state.drain() == [(tokens[2], "drained"), (tokens[3], "drained")]
    assert state.generation is not generation
    assert not state.idle
    assert len(state.closing) == 2 and len(state.creating) == 1 and state.in_use == 1
    assert state.drain() == []


# -- drain, retire and counts ---------------------------------------------------------


def test_retire_frees_the_slot_once() -> None:
    state, (token, _) = a_pool(closing=2)
    assert state.retire(token.entry) is True
    assert state.retire(token.entry) is False
    assert len(state.entries) == len(state.closing) == 1


@pytest.mark.parametrize("place", ["in_use", "creating", "checking", "closing"])
def test_retire_from_anywhere(place: str) -> None:
    state, (token,) = a_pool(**{place: 1})
    assert state.retire(token.entry) is True
    assert not state.entries and not getattr(state, place)


def test_foreign_entry_is_not_retired() -> None:
    """The parent's, after a fork (P9)."""
    state, (mine,) = a_pool(in_use=1)
    _, (foreign,) = a_pool(in_use=1)
    assert not state.owns(foreign.entry)
    assert state.retire(foreign.entry) is False
    assert state.owns(mine.entry)


def test_counts() -> None:
    state, _ = a_pool(max_size=9, in_use=1, resting=2, creating=3, checking=1, closing=2)
    assert len(state.entries) == 9
    assert state.in_use == 1
    assert state.live == 4  # idle, in use, being checked
    assert state.surplus == -2


def test_in_use_is_never_negative() -> None:
    """The fast path moves tokens while other threads count."""
    state, tokens = a_pool(resting=1)
    state.idle.extend(tokens)
    assert state.in_use == 0


@pytest.mark.parametrize("place", ["resting", "creating", "checking", "closing"])
def test_lent_lists_resources_held_by_borrowers(place: str) -> None:
    state, tokens = a_pool(in_use=2, **{place: 1})
    assert set(state.lent()) == {token.entry for token in tokens[:2]}


def test_token_being_released_has_no_holder() -> None:
    """A resource that was released and not yet put back is in use, but not held."""
    state, (token,) = a_pool(in_use=1)
    token.entry.idle_since = NOW + 1
    assert state.lent() == []
    assert state.in_use == 1


@pytest.mark.parametrize(
    ("pool", "exhausted"),
    [({"in_use": 5}, True), ({"in_use": 4, "closing": 1}, True), ({"in_use": 4}, False), ({"resting": 5}, False)],
)
def test_exhausted(pool: dict[str, int], exhausted: bool) -> None:
    """Whether nothing is idle and no slot is free."""
    state, _keys = a_pool(**pool)
    assert state.exhausted is exhausted


@pytest.mark.parametrize("why", ["", "closed", "paused", "surplus"])
def test_fast_path_closed(why: str) -> None:
    """Whether the fast path must not lend."""
    state, _ = a_pool(max_size=1 if why == "surplus" else 2, in_use=2)
    state.closed, state.paused = why == "closed", why == "paused"
    assert state.fast_path_closed is bool(why)


# -- the outage ------------------------------------------------------------------------


def failed(outage: Outage, now: float, waiting: bool = True, final: bool = False) -> bool:
    return outage.failed(OSError("refused"), final, now, STEADY, waiting, uniform=random.random)


def test_creations_are_unlimited_while_the_server_is_up() -> None:
    assert Outage().allowed(NOW) == UNLIMITED


def test_one_probe_at_a_time_while_the_server_is_down() -> None:
    """None until the backoff has passed, then one (P7)."""
    outage = Outage()
    assert failed(outage, NOW) is True
    assert outage.allowed(NOW) == outage.allowed(NOW + 0.049) == 0
    assert outage.allowed(NOW + 0.05) == 1


def test_only_the_first_failure_begins_an_outage() -> None:
    outage = Outage()
    assert [failed(outage, NOW + number) for number in range(3)] == [True, False, False]
    assert outage.since == NOW


@pytest.mark.parametrize(
    ("waiting", "delays"),
    [
        (True, [0.05, 0.1, 0.2, 0.25, 0.25]),
        (False, [0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 30.0, 30.0]),
    ],
)
def test_delays_grow_and_are_capped_while_borrowers_wait(waiting: bool, delays: list[float]) -> None:
    outage = Outage()
    found = []
    for _ in delays:
        now = outage.retry_at
        failed(outage, now, waiting)
        found.append(outage.retry_at - now)
    assert found == pytest.approx(delays)


def test_full_jitter() -> None:
    outage = Outage()
    outage.failed(OSError(), False, NOW, Backoff(initial=8, probe_interval=60), True, uniform=lambda: 0.25)
    assert outage.retry_at == NOW + 2


def test_failures_of_creations_in_flight_do_not_lengthen_the_delay() -> None:
    """Ten creations that fail together count as one failure (P7)."""
    outage = Outage()
    for _ in range(10):
        failed(outage, NOW)
    assert outage.failures == 1
    assert outage.retry_at == NOW + 0.05


def test_last_error_is_kept_without_its_frames() -> None:
    outage = Outage()
    try:
        raise OSError("refused")
    except OSError as error:
        outage.failed(error, True, NOW, STEADY, False, uniform=random.random)
        assert outage.error is error
    assert outage.error.__traceback__ is None
    assert outage.final


@pytest.mark.parametrize(
    ("failures", "final", "sooner"), [(0, False, False), (1, False, False), (10, False, True), (10, True, True)]
)
def test_new_waiter_shortens_the_delay(failures: int, final: bool, sooner: bool) -> None:
    """A final error is not retried for each new waiter: accounts could get locked (P7)."""
    outage, now = Outage(), NOW
    for _ in range(failures):
        now = outage.retry_at
        failed(outage, now, waiting=False, final=final)
    before = outage.retry_at
    if final:
        assert outage.hurry(now, STEADY)
        assert outage.retry_at == pytest.approx(now + REMEMBERED)
        assert not outage.hurry(now + 1, STEADY)
        return
    assert outage.hurry(now, STEADY) is sooner
    assert outage.retry_at == (now + STEADY.probe_interval if sooner else before)


def test_recovery_ramps_up() -> None:
    """A server that has just come back gets few attempts at first (P7)."""
    outage = Outage()
    failed(outage, NOW)
    assert outage.succeeded(10, NOW) is True
    ramp = [outage.allowed(NOW)]
    while ramp[-1] != UNLIMITED:
        assert outage.succeeded(10, NOW) is False
        ramp.append(outage.allowed(NOW))
    assert ramp == [2, 4, 8, UNLIMITED]
    assert (outage.error, outage.final, outage.failures) == (None, False, 0)


def test_success_while_up_changes_nothing() -> None:
    outage = Outage()
    assert outage.succeeded(10, NOW) is False
    assert outage.allowed(NOW) == UNLIMITED


def test_failure_during_the_ramp_starts_it_again() -> None:
    outage = Outage()
    failed(outage, NOW)
    outage.succeeded(10, NOW)
    outage.succeeded(10, NOW)
    assert failed(outage, NOW + 1) is True
    outage.succeeded(10, NOW)
    assert outage.allowed(NOW + 1) == 2


@pytest.mark.parametrize("luck", [0.0, 0.01, 0.3])
def test_rate_of_attempts_is_bounded_whatever_the_jitter(luck: float) -> None:
    """However short the random delays: at most 8 attempts a second, and two more at the beginning (P7)."""
    outage, now, attempts = Outage(), NOW, 0
    while now < NOW + 60:
        outage.failed(OSError(), False, now, Backoff(), True, uniform=lambda: luck)
        attempts += 1
        assert attempts <= 2 + 8 * (now - NOW)
        now = outage.retry_at
    assert attempts > 8 * 60  # and no fewer, since the delays are short


def test_shorter_backoff_settings_are_respected() -> None:
    outage, now = Outage(), NOW
    for _ in range(100):
        outage.failed(OSError(), False, now, Backoff(probe_interval=0.02), True, uniform=lambda: 0.0)
        now = outage.retry_at
    assert now == pytest.approx(NOW + 99 * 0.01)


# -- limits after a death ----------------------------------------------------------------

OLD = NOW - 30  # when a resource was proved alive, long before it died


def test_after_a_death_creations_start_with_one() -> None:
    """A dead server sees one attempt, not one for each broken resource; a live one is not flooded (P7)."""
    outage = Outage()
    assert outage.died(OLD, NOW) is True
    ramp = [outage.allowed(NOW)]
    while ramp[-1] != UNLIMITED:
        assert outage.succeeded(10, NOW) is False  # there was no outage
        ramp.append(outage.allowed(NOW))
    assert ramp == [1, 2, 4, 8, UNLIMITED]


@pytest.mark.parametrize("later", [0.001, 0.5, 3, 3600])
def test_deaths_of_one_moment_limit_creations_once(later: float) -> None:
    """Otherwise hundreds of resources that died together would be replaced one at a time."""
    outage = Outage()
    outage.died(OLD, NOW)
    assert outage.died(OLD, NOW) is False
    outage.succeeded(10, NOW + 0.001)
    assert outage.died(OLD, NOW + later) is False
    assert outage.died(NOW, NOW + later) is False
    assert outage.allowed(NOW + later) >= 2


def test_death_of_a_resource_proved_alive_since_the_last_limit_counts() -> None:
    outage = Outage()
    outage.died(OLD, NOW)
    outage.succeeded(10, NOW + 0.01)
    assert outage.died(NOW + 0.01, NOW + 60) is True  # made then
    assert outage.allowed(NOW + 60) == 1


def test_only_death_of_a_resource_proved_alive_since_the_outage_limits_creations() -> None:
    outage = Outage()
    failed(outage, NOW)
    outage.succeeded(10, NOW + 5)
    assert outage.died(NOW + 4, NOW + 6) is False
    assert outage.allowed(NOW + 6) == 2
    assert outage.died(NOW + 5, NOW + 6) is True
    assert outage.allowed(NOW + 6) == 1


@pytest.mark.parametrize("works", [True, False])
def test_constant_deaths_limit_creations_once_a_second(works: bool) -> None:
    """As many resources are to be replaced as are missing."""
    outage, now, doubts = Outage(), NOW, 0
    while now < NOW + 10:
        doubts += outage.died(now, now)
        if works:
            outage.succeeded(10, now)
        now += 0.01
    assert doubts in (10, 11)


def test_limit_after_a_death_expires() -> None:
    """A hung creation proves nothing, and there may be no creation at all."""
    outage = Outage()
    outage.died(OLD, NOW)
    assert outage.allowed(NOW + 0.9) == 1
    assert outage.allowed(outage.lapses_at) == UNLIMITED
    assert outage.died(OLD, NOW + 1.1) is False  # of the same age: it lasts no longer
    assert outage.allowed(NOW + 1.1) == UNLIMITED
    assert outage.died(NOW + 2, NOW + 3) is True


@pytest.mark.parametrize("full", [False, True])
def test_death_during_an_outage_does_not_limit_creations_again(full: bool) -> None:
    outage = Outage()
    if full:
        outage.refused(OSError("too many"), NOW, lambda: 0.5)
    else:
        failed(outage, NOW)
    assert outage.died(OLD, NOW) is False
    assert outage.allowed(NOW) == 0
    assert outage.allowed(outage.retry_at) == 1


def test_limit_after_a_death_stays_during_the_outage() -> None:
    outage = Outage()
    outage.died(OLD, NOW)
    failed(outage, NOW + 0.1)
    outage.succeeded(1000, NOW + 0.2)
    assert outage.allowed(NOW + 60) == 2


class Doubts(RuleBasedStateMachine):
    """Deaths and creations in any order, compared with a model."""

    def __init__(self) -> None:
        super().__init__()
        self.now = NOW
        self.outage = Outage()
        self.begun = -math.inf  # the last limit that proved unnecessary
        self.over = -math.inf  # it may have died of the outage that held creations up until then

    @property
    def holding(self) -> bool:
        return self.outage.error is not None or self.outage.full is not None

    @rule(age=st.sampled_from([0, 0.1, 0.9, 1.1, 30]))
    def die(self, age: float) -> None:
        before = self.outage.allowed(self.now)
        news = not self.holding and self.now >= self.begun + PATIENCE and self.now - age >= self.over
        assert self.outage.died(self.now - age, self.now) is news
        assert self.outage.allowed(self.now) == (1 if news else before)
        if news:
            self.begun, self.over = self.now, self.now + PATIENCE

    @rule()
    def succeed(self) -> None:
        before = self.outage.allowed(self.now)
        if self.holding or self.now < self.over:
            self.over = self.now
        self.outage.succeeded(8, self.now)
        assert self.outage.allowed(self.now) >= min(2 * before, UNLIMITED)

    @rule(full=st.booleans())
    def fail(self, full: bool) -> None:
        if full and self.outage.error is None:
            self.outage.refused(OSError("too many"), self.now, random.random)
        else:
            failed(self.outage, self.now)
        self.begun = -math.inf

    @rule(seconds=st.sampled_from([0.01, 0.5, 1, 30]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @invariant()
    def held_up_for_a_while_only(self) -> None:
        """P8: a limit after a death ends in time, whatever happens."""
        assert self.holding or self.outage.allowed(self.now) >= 1
        if self.begun > -math.inf:
            assert self.outage.allowed(self.begun + PATIENCE) == UNLIMITED


TestDoubts = Doubts.TestCase


@given(st.lists(st.tuples(st.sampled_from(["fail", "succeed", "die", "pass"]), st.floats(0, 60))))
def test_allowed_is_always_a_number_that_recovers(story: list[tuple[str, float]]) -> None:
    """Whatever happened, after the delay at least one attempt is allowed (P8)."""
    outage, now = Outage(), NOW
    for what, seconds in story:
        if what == "fail":
            failed(outage, now, waiting=seconds > 30)
        elif what == "succeed":
            outage.succeeded(10, now)
        elif what == "die":
            outage.died(now - seconds, now)
        now += seconds
        assert outage.allowed(now) >= (0 if outage.error else 1)
        assert outage.allowed(now + STEADY.maximum) >= 1


# -- all of it in any order ------------------------------------------------------------

WHICH = st.integers(0, 7)  # one of several, counted around


class StateMachine(RuleBasedStateMachine):
    """The model plays all parts: borrowers, workers, the reaper, the operator.

    Each rule does what `Engine` does under its lock, and ends in `serve`. The
    model holds the tokens that are not in the state, as leases and jobs do.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = NOW
        self.outage = Outage()
        self.numbers = count()
        self.line: list[Waiter] = []  # the waiters, in order of arrival
        self.awaking: list[Waiter] = []  # waiters that were given something and have not taken it yet
        self.making: list[Token] = []
        self.checking: list[Token] = []
        self.closing: list[Token] = []
        self.held: list[Token] = []
        self.size = self.attempts = 0  # after the last step

    @initialize(min_size=st.integers(0, 2), more=st.integers(0, 3), max_idle=st.sampled_from([2, None]))
    def begin(self, min_size: int, more: int, max_idle: int | None) -> None:
        self.state = PoolState(min_size, max(1, min_size + more), max_idle)

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

    def queue_up(self, arrived: float, again: bool) -> None:
        waiter = a_waiter(arrived, again)
        self.line.append(waiter)
        self.line.sort(key=lambda one: one.arrived)
        self.state.started = True
        self.state.waiters.join(waiter)
        self.serve()

    def vet(self, token: Token, arrived: float, alive: bool = True) -> None:
        """Borrow it, or return to the former position in the queue (P3)."""
        if alive and not self.state.fast_path_closed and not self.state.unfit(token.entry, self.now):
            self.held.append(token)
            return
        if alive:
            self.deliver(token)
        else:
            self.evict(token, dead=True)
        if not self.state.closed:
            self.queue_up(arrived, again=True)

    # -- borrowers

    @precondition(lambda self: not self.state.closed)
    @rule()
    def arrive(self) -> None:
        """Take an idle resource if there is no waiter, as the fast path does, or queue."""
        arrived = next(self.numbers)
        if self.state.idle and not self.state.waiters:
            self.vet(self.state.idle.pop(), arrived)
        else:
            self.queue_up(arrived, again=False)

    @precondition(lambda self: self.awaking)
    @rule(which=WHICH, alive=st.booleans())
    def take(self, which: int, alive: bool) -> None:
        """Wake up, and take what was given."""
        waiter = self.awaking.pop(which % len(self.awaking))
        item = waiter.box.get(False)
        if isinstance(item, Token):
            self.vet(item, waiter.arrived, alive)

    @precondition(lambda self: self.line)
    @rule(which=WHICH)
    def leave(self, which: int) -> None:
        """Time out, or be interrupted, with nothing given."""
        waiter = self.line.pop(which % len(self.line))
        assert self.state.waiters.leave(waiter) is None
        self.serve()

    @precondition(lambda self: self.awaking)
    @rule(which=WHICH, interrupted=st.booleans())
    def leave_with_a_gift(self, which: int, interrupted: bool) -> None:
        """Given at the last moment: a timeout takes it, an interruption passes it on (P8)."""
        waiter = self.awaking.pop(which % len(self.awaking))
        (item,) = box_of(waiter)
        assert self.state.waiters.leave(waiter) is item
        if isinstance(item, Token) and interrupted:
            self.deliver(item)
        elif isinstance(item, Token):
            self.vet(item, waiter.arrived)

    @precondition(lambda self: self.held)
    @rule(which=WHICH, hot=st.booleans())
    def release(self, which: int, hot: bool) -> None:
        """Through `accept`, or straight onto the stack, as the fast path does."""
        token = self.held.pop(which % len(self.held))
        if hot:
            self.state.idle.append(token)
            self.serve()
        else:
            self.deliver(token)

    @precondition(lambda self: self.held)
    @rule(which=WHICH, dead=st.booleans())
    def discard(self, which: int, dead: bool) -> None:
        self.evict(self.held.pop(which % len(self.held)), dead)
        self.serve()

    @precondition(lambda self: self.held)
    @rule(which=WHICH)
    def detach(self, which: int) -> None:
        self.retire(self.held.pop(which % len(self.held)))

    @precondition(lambda self: self.held)
    @rule(which=WHICH)
    def reset_on_a_worker(self, which: int) -> None:
        token = self.held.pop(which % len(self.held))
        self.state.checking[token.entry] = ERRAND
        self.checking.append(token)

    # -- workers

    @precondition(lambda self: self.making)
    @rule(which=WHICH)
    def creation_succeeds(self, which: int) -> None:
        token = self.making.pop(which % len(self.making))
        token.entry.checked = self.now
        self.outage.succeeded(self.state.max_size, self.now)
        self.deliver(token)

    @precondition(lambda self: self.making)
    @rule(which=WHICH)
    def creation_fails(self, which: int) -> None:
        token = self.making.pop(which % len(self.making))
        failed(self.outage, self.now, waiting=bool(self.line))
        self.retire(token)

    @precondition(lambda self: self.checking)
    @rule(which=WHICH, alive=st.booleans())
    def check_ends(self, which: int, alive: bool) -> None:
        token = self.checking.pop(which % len(self.checking))
        if alive:
            token.entry.checked = self.now
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

    @rule(max_size=st.integers(1, 5))
    def resize(self, max_size: int) -> None:
        self.state.max_size = max_size
        self.state.min_size = min(self.state.min_size, max_size)
        self.serve()

    @rule(sure=st.integers(0, 4))
    def close(self, sure: int) -> None:
        if sure == 4:  # most runs should go on for a while
            self.state.closed, self.state.generation = True, object()
            self.state.waiters.fail(PoolClosed, "closed")
            self.serve()

    # -- what always holds

    @invariant()
    def keeps_its_promises(self) -> None:
        self.served_in_order_of_arrival()  # first: it records the served waiters
        self.one_place_each()
        self.bounded()
        self.calm()
        self.nobody_waits_in_vain()
        self.nothing_unwanted_rests()

    def served_in_order_of_arrival(self) -> None:
        """P3: served waiters arrived before all that still wait."""
        served = [waiter for waiter in self.line if waiter.given]
        assert served == self.line[: len(served)]
        assert not served or self.state.closed or self.state.surplus <= 0  # a shrink comes first
        self.line = self.line[len(served) :]
        self.awaking += served
        assert list(self.state.waiters) == self.line
        assert self.state.waiters.threads == {waiter.thread for waiter in self.line}

    def one_place_each(self) -> None:
        """P1: each token is in one place, and the state knows which; no slot is lost (P8)."""
        state = self.state
        boxes = [item for waiter in self.awaking for item in box_of(waiter) if isinstance(item, Token)]
        outside = boxes + self.held + self.making + self.checking + self.closing
        assert state.in_use == len(boxes) + len(self.held)
        for tokens, entries in (
            (self.making, state.creating),
            (self.checking, state.checking),
            (self.closing, state.closing),
            ([*outside, *state.idle], state.entries),
        ):
            assert len(tokens) == len(entries)
            assert {token.entry for token in tokens} == set(entries)

    def bounded(self) -> None:
        """P2: the surplus after a shrink never grows."""
        size = len(self.state.entries)
        assert size <= max(self.size, self.state.max_size)
        self.size = size

    def calm(self) -> None:
        """P7: no creation is begun beyond what the server's state allows."""
        attempts = len(self.making)
        assert attempts <= max(self.attempts, self.outage.allowed(self.now))
        self.attempts = attempts

    def nobody_waits_in_vain(self) -> None:
        """P8: no waiter beside an idle resource, nor beside a free slot that may be filled."""
        state = self.state
        if state.closed:
            assert not state.waiters and not state.idle
            return
        assert not state.idle or not state.waiters or state.paused
        allowed = self.outage.allowed(self.now) - len(state.creating)
        if allowed > 0 and len(state.entries) < state.max_size and state.started:
            assert state.paused or len(state.waiters) <= len(state.creating) + len(state.checking)
            assert len(state.entries) - len(state.closing) >= state.min_size

    def nothing_unwanted_rests(self) -> None:
        """No surplus and no resource of an old generation is idle."""
        assert self.state.surplus <= 0 or not self.state.idle
        assert all(token.entry.generation is self.state.generation for token in self.state.idle)

    def teardown(self) -> None:
        """After a close every resource is closed and every waiter leaves (P8)."""
        if not hasattr(self, "state"):
            return
        self.close(4)
        for token in self.making + self.checking + self.held:
            self.deliver(token)
        for waiter in self.line + self.awaking:
            item = self.state.waiters.leave(waiter)
            if isinstance(item, Token):
                self.deliver(item)
        for token in self.closing:
            self.retire(token)
        assert not self.state.entries and not self.state.waiters


TestAnyOrder = StateMachine.TestCase

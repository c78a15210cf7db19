"""The whole pool, in any order of events: borrowers in threads, workers, the reaper, faults.

Threads are real, but one runs at a time, and a thread whose wait is over continues only
when the test says so (`Turns`): what Hypothesis finds is reproducible.
"""

from __future__ import annotations

import logging
import math
import queue
import threading
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pooling import (
    CircuitBreaker,
    CircuitOpen,
    CreateFailed,
    Lease,
    Pool,
    PoolClosed,
    PoolSettings,
    PoolTimeout,
    PoolUnavailable,
    TooManyWaiting,
)
from pooling.core.adapter import Adapter
from pooling.core.checkout import GRACE
from pooling.core.entry import Entry, Token
from pooling.core.liveness import ANSWER_TTL
from pooling.core.schedule import AUDIT
from pooling.core.state import MOST_AHEAD
from pooling.core.waiter import Waiter
from pooling.testing import FakeAdapter, FakeResource, VirtualClock
from tests.unit.conftest import Make, fill, run_jobs

PATIENCE = 30.0  # real seconds before a thread is called stuck
TICK = 2.0**-10  # seconds between two arrivals
BREAKER = CircuitBreaker(failures=2, rate=None, open_for=4, open_for_max=8)


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    """Thousands of runs would fill the log."""
    caplog.set_level(logging.CRITICAL, "pooling")


class Struck(BaseException):
    """Raised by a signal or ``gevent.Timeout`` in the middle of a call."""


class WrongPassword(Exception):
    """No attempt to create will succeed."""


# -- threads that take turns -------------------------------------------------------


class Place:
    """The wait of one thread, until it is over and the test lets the thread continue."""

    def __init__(self, box: Any, deadline: float) -> None:
        self.box = box
        self.deadline = deadline
        self.error: type[BaseException] | None = None
        self.loses = False  # whether what it was given goes down with the error
        self.turn = threading.Semaphore(0)

    @property
    def over(self) -> bool:
        return self.error is not None or not self.box.empty()


class Turns(VirtualClock):
    """A clock whose threads act one at a time, each until it waits again or ends.

    A thread whose wait is over stays where it is until `let_go`, and more may
    happen to it meanwhile: it may be given something after its time is up, or
    be interrupted with something given.
    """

    def __init__(self, workers: str) -> None:
        super().__init__(workers=workers)
        self.places: list[Place] = []
        self.fuse: int | None = None  # how many readings more until one raises
        self.frozen = 0.0  # for how long the process stood still, and its clock with it
        self._idle = threading.Semaphore(0)  # the running thread waits now, or has ended

    def now(self) -> float:
        if self.fuse is not None:
            self.fuse -= 1
            if self.fuse < 0:
                self.fuse = None
                raise Struck
        return super().now()

    def wall(self) -> float:
        return super().wall() + self.frozen

    @property
    def time(self) -> float:
        """The monotonic time, read without burning the fuse."""
        return super().wall()

    def get(self, box: Any, timeout: float | None) -> Any:
        place = Place(box, math.inf if timeout is None else self.time + timeout)
        if box.empty() and place.deadline > self.time:
            self.places.append(place)
            self._idle.release()
            assert place.turn.acquire(timeout=PATIENCE), "never had its turn"
            self.places.remove(place)
        if place.error is None:
            return box.get(False)
        if place.loses and not box.empty():
            box.get(False)
        raise place.error

    @property
    def due(self) -> list[Place]:
        """The waits that are over, in the order in which they began."""
        return [place for place in self.places if place.over]

    def let_go(self, place: Place) -> None:
        """Let one thread act until it waits again or ends."""
        place.turn.release()
        self._until_idle()

    def start(self, function: Callable[[], object]) -> threading.Thread:
        """Let a new thread act until it waits or ends."""

        def act() -> None:
            try:
                function()
            finally:
                self._idle.release()

        thread = threading.Thread(target=act, daemon=True)
        thread.start()
        self._until_idle()
        return thread

    def _until_idle(self) -> None:
        assert self._idle.acquire(timeout=PATIENCE), "a thread blocks on something else than the clock"

    # what `advance` asks for

    def upcoming(self) -> list[float]:
        return super().upcoming() + [place.deadline for place in self.places]

    def wake_due(self) -> None:
        for place in self.places:
            if place.deadline <= self.time and not place.over:
                place.error = queue.Empty

    def next_moment(self, end: float) -> float:
        """When something falls due, or the end if that is sooner."""
        return min(at for at in [end, *self.upcoming()] if at > self.time)


class Borrower:
    """A thread that asks for one resource."""

    def __init__(self, pool: Pool[FakeResource], timeout: float, now: float) -> None:
        self.pool = pool
        self.timeout = timeout
        self.arrived, self.deadline = now, now + timeout
        self.lease: Lease[FakeResource] | None = None
        self.error: type[BaseException] | None = None
        self.waiter: Waiter | None = None  # its entry in the wait queue after the last step
        self.waits = True  # it is in the wait queue, or has not arrived
        self.overtook: list[Borrower] = []  # borrowers that arrived earlier and still waited when it was served

    def __call__(self) -> None:
        self.thread = threading.current_thread()
        try:
            self.lease = self.pool.acquire(self.timeout)
        except BaseException as error:
            self.error = type(error)  # without its frames, which hold what an interruption lost

    @property
    def gone(self) -> bool:
        return self.lease is not None or self.error is not None


# -- the server --------------------------------------------------------------------


class Server(FakeAdapter):
    """Creates resources while it is up, and records a creation without a free slot."""

    plain = False

    def __init__(self, *, blocking: bool, enforces_timeouts: bool) -> None:
        super().__init__(blocking=blocking, enforces_timeouts=enforces_timeouts)
        self.final = (WrongPassword,)
        self.slots: Callable[[], int] = int
        self.too_many = False
        self.down: type[Exception] | None = None  # raised by each attempt to create
        self.every: list[FakeResource] = []
        self.lent: set[FakeResource] = set()
        self.spoilt: set[FakeResource] = set()  # cannot be reset
        self.cut: set[FakeResource] = set()  # its check or its close took too long
        self.silent: set[FakeResource] = set()  # died, and only a round trip can tell
        self.slow = False  # it answers no reset for the time being
        self.sent: set[FakeResource] = set()  # their resets are not finished
        self.unanswered: set[FakeResource] = set()  # and cannot be
        self.answers: dict[FakeResource, float] = {}  # when it answered at the end of a lease
        self.time: Callable[[], float] = float
        self.last_death = -math.inf  # when the pool could know of one

    def create(self) -> FakeResource:
        self.too_many |= len(self.open) >= self.slots()
        if self.down is not None:
            raise self.down
        resource = super().create()
        self.every.append(resource)
        return resource

    def is_alive(self, resource: FakeResource) -> bool:
        return self.noted(super().is_alive(resource) or resource in self.silent)

    def validate(self, resource: FakeResource, timeout: float) -> None:
        self.noted(resource.alive)
        super().validate(resource, timeout)

    def is_broken(self, resource: FakeResource, error: BaseException) -> bool:
        return not self.noted(not super().is_broken(resource, error))

    def noted(self, alive: bool) -> bool:
        if not alive:
            self.last_death = self.time()
        return alive

    def reset(self, resource: FakeResource) -> object:
        if resource in self.spoilt:
            raise OSError("reset")
        return super().reset(resource)

    def interrupt(self, resource: FakeResource) -> None:
        if resource not in self.lent:
            self.abandon(resource)

    def abandon(self, resource: FakeResource) -> None:
        self.cut.add(resource)
        self.open.discard(resource)


class AnsweringServer(Server):
    """Its reset makes a round trip: a resource that fails it is dead, and one that answers was alive."""

    def reset(self, resource: FakeResource) -> bool:
        super().reset(resource)
        if not resource.alive:
            raise OSError("reset")  # which may have other reasons: the others are not suspect
        self.answers[resource] = self.time()
        return True


class SendingServer(Server):
    """Its reset is only sent: whether it has succeeded shows when the answer is there, which may take long."""

    def reset(self, resource: FakeResource) -> object:
        if not self.enforces_timeouts:
            return super().reset(resource)
        self.sent.add(resource)
        if self.slow or resource in self.silent:
            self.unanswered.add(resource)
        return "sent"

    def finish_reset(self, resource: FakeResource, timeout: float) -> bool:
        assert resource in self.sent
        if resource in self.unanswered and (resource in self.silent or self.slow):
            if timeout in (0, GRACE):
                return False
            raise TimeoutError("reset")  # a worker waits until then
        if not (resource.alive or resource in self.silent):
            self.noted(False)
            raise ConnectionError("reset")
        super().reset(resource)
        self.sent.discard(resource)
        return True


class PlainServer(Server):
    """Without checks and resets: leases take no lock."""

    plain = True
    is_alive = Adapter.is_alive
    validate = Adapter.validate
    reset = Adapter.reset
    is_broken = Adapter.is_broken


# -- the machine -------------------------------------------------------------------

def some(*values: Any) -> st.SearchStrategy[Any]:
    return st.sampled_from(values)


WHICH = st.integers(0, 7)  # one of several, counted around
TIMEOUT = some(2, 40, 0.125, 0)


class PoolMachine(RuleBasedStateMachine):
    """All actions of borrowers, workers, the server and the operator, in any order.

    After each step every thread whose wait is over continues, unless it is delayed, and so
    does the reaper; then each promise is checked.
    """

    workers = "manual"

    @initialize(
        kind=some(Server, AnsweringServer, SendingServer, PlainServer),
        blocking=st.booleans(),
        enforces_timeouts=st.booleans(),
        sizes=some((0, 1), (0, 2), (1, 1), (1, 3), (2, 3)),
        limits=some(
            {}, {"max_idle": 2}, {"max_uses": 2}, {"max_attempts": 2}, {"max_waiting": 2}, {"breaker": BREAKER},
        ),
        ages=some(
            {}, {"idle_timeout": 8, "max_lifetime": 40}, {"validation_interval": 0}, {"health_check_interval": 2},
            {"keepalive_interval": 3, "leak_timeout": 5, "max_validation_failures": 1},
        ),
        abrupt=st.booleans(),
        ahead=some(1, MOST_AHEAD),
    )
    def begin(
        self,
        kind: type[Server],
        blocking: bool,
        enforces_timeouts: bool,
        sizes: tuple[int, int],
        limits: dict[str, Any],
        ages: dict[str, float],
        abrupt: bool,
        ahead: int,
    ) -> None:
        self.ahead = ahead
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr("pooling.core.engine.MOST_AHEAD", ahead)
        self.sound = False  # until the promises have been looked at
        self.clock = Turns(self.workers)
        self.clock.runtime.workers.do = lambda function, args: function(*args)  # let errors out
        self.clock.runtime.reaper.collect_after = math.inf  # there are no cycles here
        self.server = kind(blocking=blocking, enforces_timeouts=enforces_timeouts)
        settings = PoolSettings(
            min_size=sizes[0], max_size=sizes[1], lifetime_jitter=0, health_check_interval=None
        ).replace(backoff_jitter=False, **limits, **ages)
        self.pool: Pool[FakeResource] = Pool(adapter=self.server, settings=settings, clock=self.clock)
        self.state = self.pool.engine.state
        self.server.slots = lambda: len(self.state.entries)
        self.server.time = lambda: self.clock.time
        self.borrowers: list[Borrower] = []  # in order of arrival
        self.leases: list[Lease[FakeResource]] = []
        self.detached: list[FakeResource] = []
        self.unattended: list[Entry] = []  # whose second close was lost: they wait for `close_timeout`
        self.condemned: set[FakeResource] = set()  # not to be lent again
        self.delayed = 0  # for how many steps more
        self.abrupt = abrupt  # the close does not wait for delayed threads
        self.fuse: int | None = None
        self.struck = self.final = False
        self.exact = True  # no interruption has made the counts uncertain
        self.acquired = self.released = self.refused = self.orphans = 0
        self.size = self.attempts = 0  # after the last step

    # -- steps

    def call(self, function: Callable[..., object], *args: Any) -> None:
        """Run a borrower's call; it is interrupted if a fuse was set."""
        self.clock.fuse, lit, self.fuse = self.fuse, self.fuse is not None, None
        try:
            function(*args)
        except Struck:
            pass
        struck = lit and self.clock.fuse is None
        self.clock.fuse = None
        if struck:
            self.struck, self.exact = True, False
            self.pass_time(AUDIT)  # at worst one audit period (P8)

    def go_on(self) -> None:
        """Let threads whose wait is over continue, and the reaper do what is due."""
        acted = True
        while acted:
            acted = self.clock.runtime.reaper.step(False)
            while self.clock.due and not self.delayed:
                self.call(self.clock.let_go, self.clock.due[0])
                acted = True

    def pass_time(self, seconds: float) -> None:
        """Stop at each time at which something falls due, so that every thread acts in time."""
        end = self.clock.now() + seconds
        while self.clock.now() < end:
            self.clock.advance(self.clock.next_moment(end) - self.clock.now())
            self.go_on()
            self.calm()  # creations begun before an outage may go on in it

    def take(self, which: int) -> Lease[FakeResource]:
        """One of the leases, for the last time."""
        lease = self.leases.pop(which % len(self.leases))
        self.server.lent.discard(lease.resource)
        return lease

    # -- borrowers

    @rule(timeout=TIMEOUT)
    def acquire(self, timeout: float) -> None:
        self.pass_time(TICK)  # no two arrive at the same instant
        self.borrowers.append(Borrower(self.pool, timeout, self.clock.now()))
        self.call(self.clock.start, self.borrowers[-1])

    @precondition(lambda self: self.leases)
    @rule(which=WHICH)
    def release(self, which: int) -> None:
        self.released += 1
        self.call(self.take(which).release)

    @rule(releases=st.lists(WHICH, max_size=2), timeouts=st.lists(TIMEOUT, max_size=4), prompt=st.booleans())
    def come_and_go(self, releases: list[int], timeouts: list[float], prompt: bool) -> None:
        """The usual traffic, with workers that are prompt or not."""
        for timeout in timeouts:
            self.acquire(timeout)
            self.keeps_its_promises()
        for which in releases[: len(self.leases)]:
            self.release(which)
            self.keeps_its_promises()
        if prompt:
            self.run_jobs()

    @precondition(lambda self: self.leases and self.state.waiters)
    @rule(which=WHICH, interrupted=st.booleans())
    def release_at_the_last_moment(self, which: int, interrupted: bool) -> None:
        """The oldest waiter is interrupted, or its time is up, before it is given something (P8)."""
        self.delayed = max(self.delayed, 1)
        (place,) = [place for place in self.clock.places if place.box is self.state.waiters[0].box]
        if interrupted:
            place.error = Struck
        else:
            self.pass_time(max(0.0, place.deadline - self.clock.now()))
        self.release(which)

    @precondition(lambda self: self.leases)
    @rule(which=WHICH, how=some("fail", "break_off", "spoil", "discard", "detach", "drop"))
    def end_otherwise(self, which: int, how: str) -> None:
        getattr(self, how)(self.take(which))

    def fail(self, lease: Lease[FakeResource], error: type[BaseException] = ValueError) -> None:
        self.released += 1
        with pytest.raises(error), lease:
            raise error

    def break_off(self, lease: Lease[FakeResource]) -> None:
        """The error in the block tells that the resource is dead, where that can be known."""
        if not self.server.plain:
            self.condemned.add(lease.resource)
        self.fail(lease, ConnectionError)

    def spoil(self, lease: Lease[FakeResource]) -> None:
        """Release it in a state that cannot be reset."""
        if not self.server.plain:
            self.server.spoilt.add(lease.resource)
            self.condemned.add(lease.resource)
        self.fail(lease, Struck)

    def discard(self, lease: Lease[FakeResource]) -> None:
        self.released += 1
        self.condemned.add(lease.resource)
        self.call(lease.discard)

    def detach(self, lease: Lease[FakeResource]) -> None:
        self.condemned.add(lease.resource)
        self.detached.append(lease.resource)
        self.server.open.discard(lease.resource)
        assert lease.detach() is self.detached[-1]

    def drop(self, lease: Lease[FakeResource]) -> None:
        """Drop the lease without a release; the garbage collector finds it (P8)."""
        self.orphans += 1

    @precondition(lambda self: self.clock.places)
    @rule(which=WHICH, loses=some(False, False, True))
    def interrupt(self, which: int, loses: bool) -> None:
        """Raise in a thread that waits; what it is given before it acts may go down with it."""
        place = self.clock.places[which % len(self.clock.places)]
        if place.error is None:
            place.error, place.loses = Struck, loses
            self.exact &= not loses

    # -- time

    @rule(steps=st.integers(1, 4))
    def delay(self, steps: int) -> None:
        """For some steps threads whose wait is over do not continue."""
        self.delayed = steps

    @precondition(lambda self: self.clock.due)
    @rule(which=WHICH)
    def let_one_go(self, which: int) -> None:
        self.call(self.clock.let_go, self.clock.due[which % len(self.clock.due)])

    @rule(seconds=some(TICK, 0.25, 0.5, 1, 6, 31))
    def wait(self, seconds: float) -> None:
        self.pass_time(seconds)

    # -- workers

    @property
    def jobs(self) -> int:
        return self.clock.jobs if self.workers == "manual" else 0

    @precondition(lambda self: self.jobs)
    @rule(which=WHICH)
    def run_job(self, which: int) -> None:
        self.clock.run_job(which % self.jobs)

    @rule()
    def run_jobs(self) -> None:
        for _ in range(self.jobs):
            self.run_job(0)
            self.keeps_its_promises()

    # -- faults

    @rule(
        what=some(
            "kill", "restart", "die_silently", "freeze", "come_back", "go_down", "refuse", "strike", "drop_job",
            "slow_down", "speed_up",
        ),
        which=WHICH,
    )
    def disturb(self, what: str, which: int) -> None:
        getattr(self, what)(which)

    def kill(self, which: int) -> None:
        """A resource dies, wherever it is."""
        there = sorted(self.server.open, key=lambda resource: resource.number)
        if there:
            there[which % len(there)].alive = False

    def restart(self, _: int) -> None:
        """All resources die, and the server is there again at once."""
        self.server.down = None
        for resource in self.server.open:
            resource.alive = False

    def die_silently(self, which: int) -> None:
        """Some or all die without a sign on their sockets: a firewall has dropped their connections."""
        for resource in sorted(self.server.open, key=lambda resource: resource.number)[: 1 + which]:
            resource.alive = False
            self.server.silent.add(resource)

    def freeze(self, _: int) -> None:
        """The process stands still for an hour, and all that it holds dies meanwhile."""
        self.clock.frozen += 3600
        for entry in self.state.entries:
            entry.answered = entry.answered and False  # but a moment before, which no clock would show
        self.die_silently(99)
        self.server.noted(False)

    def go_down(self, _: int) -> None:
        self.server.down = OSError

    def refuse(self, _: int) -> None:
        self.server.down, self.final = WrongPassword, True

    def come_back(self, _: int) -> None:
        self.server.down = None

    def slow_down(self, _: int) -> None:
        self.server.slow = True

    def speed_up(self, _: int) -> None:
        self.server.slow = False

    def strike(self, readings: int) -> None:
        """Raise in the next call of a borrower, after so many readings of the clock (P8)."""
        if self.workers == "manual":  # no borrower does a worker's job
            self.fuse = readings

    def drop_job(self, which: int) -> None:
        """A worker dies. An orphan's close carries no token: its loss shows by `close_timeout`."""
        if not self.jobs:
            return
        number = which % self.jobs
        arguments = self.clock.runtime.workers.jobs[number][1]
        tokens = [argument for argument in arguments if isinstance(argument, Token)]
        if tokens:
            self.orphans += self.state.owns(tokens[0].entry)
        else:
            self.unattended += [argument for argument in arguments if isinstance(argument, Entry)]
        del arguments, tokens
        self.clock.drop_job(number)

    # -- the operator

    @rule(what=some("resize", "drain", "check", "fill", "pause", "resume", "resume"), number=WHICH)
    def steer(self, what: str, number: int) -> None:
        getattr(self, what)(number)

    def drain(self, _: int) -> None:
        self.condemned |= self.server.open
        self.pool.drain()

    def resize(self, number: int) -> None:
        size = 1 + number % 4
        self.pool.resize(size, min(self.state.min_size, size))

    def fill(self, _: int) -> None:
        self.pool.fill(self.state.max_size)

    def check(self, _: int) -> None:
        self.pool.check()

    def pause(self, _: int) -> None:
        self.pool.pause()

    def resume(self, _: int) -> None:
        self.pool.resume()
        self.calm()  # before a borrower finds out that the server is down

    # -- promises

    @invariant()
    def keeps_its_promises(self) -> None:
        self.sound = False
        self.go_on()
        self.served_in_order_of_arrival()
        self.collect()
        self.lent_once_and_as_new()
        self.bounded()
        self.timely()
        self.calm()
        self.nobody_waits_in_vain()
        self.adds_up()
        self.delayed = max(0, self.delayed - 1)
        self.sound = True

    def served_in_order_of_arrival(self) -> None:
        """P3: no borrower is served while one that arrived earlier still waits."""
        line = {waiter.thread: waiter for waiter in self.state.waiters if not waiter.given}
        present = {borrower.thread.ident: borrower for borrower in self.borrowers if not borrower.gone}
        assert list(line) == [ident for ident in present if ident in line]
        stayed: list[Borrower] = []
        for borrower in self.borrowers:
            waiter = None if borrower.gone else line.get(borrower.thread.ident)
            if waiter is not None and waiter is borrower.waiter:
                stayed.append(borrower)
            elif waiter is None and borrower.waits:
                borrower.overtook = stayed.copy()
            borrower.waits, borrower.waiter = waiter is not None, waiter

    def collect(self) -> None:
        """Take over the leases of served borrowers, and check the errors of the others."""
        for borrower in [borrower for borrower in self.borrowers if borrower.gone]:
            self.borrowers.remove(borrower)
            borrower.thread.join(PATIENCE)
            if borrower.lease is None:
                assert self.had_to_fail(borrower), borrower.error
                self.refused += borrower.error is TooManyWaiting
                continue
            assert not borrower.overtook
            self.borrowed(borrower.lease, borrower)

    def had_to_fail(self, borrower: Borrower) -> bool:
        settings = self.pool.settings
        assert borrower.error is not None
        return {
            PoolTimeout: self.clock.now() >= borrower.deadline,
            PoolUnavailable: borrower.timeout == 0 or settings.max_attempts is not None,
            CircuitOpen: settings.breaker is not None,
            TooManyWaiting: settings.max_waiting is not None,
            PoolClosed: self.pool.closed,
            CreateFailed: self.final,
            Struck: True,
        }[borrower.error]

    def borrowed(self, lease: Lease[FakeResource], borrower: Borrower) -> None:
        """P5, P6: a lent resource is clean and alive, and none is lent during a pause or above max_size."""
        assert not self.state.fast_path_closed
        resource = lease.resource
        assert resource not in self.condemned
        if not self.server.plain:
            assert not resource.dirty
            assert resource.alive or self.could_not_know(lease, borrower)
        resource.dirty = True
        self.acquired += 1
        self.leases.append(lease)
        self.server.lent.add(resource)

    def could_not_know(self, lease: Lease[FakeResource], borrower: Borrower) -> bool:
        """Whether it died without a sign, and there was no reason or no time for a round trip (P6).

        Or it died just after it had answered.
        """
        entry = next(entry for entry in self.state.entries if entry.resource is lease.resource)
        answer = self.server.answers.get(lease.resource, -math.inf)
        recent = answer > borrower.arrived or entry.since - answer < ANSWER_TTL
        # At the same time: in either order.
        if self.server.enforces_timeouts and recent and answer >= self.server.last_death:
            return True
        seen = max(entry.idle_since, entry.checked)
        # Created at the same instant: after the death. Interrupted: unreported.
        beyond_suspicion = seen >= self.server.last_death or self.struck
        asked = entry.checked >= borrower.arrived or borrower.timeout == 0
        fresh = entry.since - seen <= self.pool.settings.validation_interval
        return lease.resource in self.server.silent and (asked or (beyond_suspicion and fresh))

    def lent_once_and_as_new(self) -> None:
        """P1: one borrower each, and nothing is closed under its holder, or twice."""
        entries = [entry.resource for entry in self.state.entries if entry.resource]
        assert len(set(entries)) == len(entries)
        lent = [lease.resource for lease in self.leases]
        idle = [token.entry.resource for token in self.state.idle]
        assert len({*lent, *idle}) == len(lent) + len(idle)
        assert self.struck or not self.condemned.difference(self.server.sent).intersection(idle)
        assert not any(resource.closed for resource in [*lent, *idle, *self.detached])
        assert all(resource.closed <= 1 for resource in self.server.every)

    def bounded(self) -> None:
        """P2: one slot for each open resource, and no more than max_size except after a shrink."""
        assert not self.server.too_many
        assert self.server.open <= {entry.resource for entry in self.state.entries}
        size = len(self.state.entries)
        assert size <= max(self.size, self.state.max_size)
        self.size = size

    def timely(self) -> None:
        """P4: no borrower waits beyond its deadline, and no hung work keeps its slot."""
        state, settings, now = self.state, self.pool.settings, self.clock.now()
        assert all(now < entry.since + settings.create_timeout for entry in state.creating)
        assert all(now < entry.since + settings.reset_timeout for entry in state.checking)
        assert all(now < entry.since + settings.close_timeout for entry in state.closing)
        if not self.clock.due:
            assert all(now < borrower.deadline for borrower in self.borrowers)
            assert len(self.borrowers) == len(state.waiters)

    def calm(self) -> None:
        """P7: no creation is begun beyond what the server's state allows."""
        attempts = len(self.state.creating)
        assert attempts <= max(self.attempts, self.pool.engine.outage.allowed(self.clock.now()))
        self.attempts = attempts

    def nobody_waits_in_vain(self) -> None:
        """P8: no waiter beside an idle resource, nor beside a free slot that may be filled."""
        state = self.state
        assert self.struck or not self.pool.metrics.count["audit_repairs"]
        if state.closed:
            assert not state.waiters and not state.idle
            return
        # A waiter beside an idle resource is only possible while another one is checked for it.
        assert not state.idle or state.paused or len(state.waiters) <= len(state.checking)
        allowed = self.pool.engine.outage.allowed(self.clock.now()) - len(state.creating)
        if allowed > 0 and len(state.entries) < state.max_size and state.started:
            assert state.paused or len(state.waiters) <= len(state.creating) + len(state.checking)
            short = state.filling or len(state.entries) - len(state.closing) < state.min_size
            assert not short or len(state.creating) >= self.ahead  # each of these starts the next

    def adds_up(self) -> None:
        """P12: the pool's counts are right, and no slot is lost (P8)."""
        stats, shot = self.pool.stats(), self.pool.metrics.snapshot()
        for place in ("size", "idle", "in_use", "creating", "checking", "closing", "waiting"):
            assert stats[place] == getattr(shot, place)
        assert shot.size == shot.idle + shot.in_use + shot.creating + shot.checking + shot.closing
        assert shot.acquired >= shot.released
        if self.clock.due:
            return  # tokens are on their way
        assert shot.in_use == len(self.leases) == len(self.pool.holders())
        if self.exact:
            assert shot.created == sum(shot.closed.values()) + shot.size - shot.creating
            assert (shot.acquired, shot.released) == (self.acquired, self.released)
            assert (shot.refusals, shot.orphans) == (self.refused, self.orphans)

    def teardown(self) -> None:
        """After a close all borrowers leave, and each resource is closed once (P8)."""
        self.patch.undo()
        if not self.sound:
            for place in self.clock.places.copy():
                place.error = Struck
                self.clock.let_go(place)
            return
        self.fuse = None
        if not self.abrupt:
            self.delayed = 0
            self.keeps_its_promises()
        self.pool.close(timeout=0)
        self.delayed = 0
        self.acquire(1)
        self.keeps_its_promises()
        assert not self.borrowers
        while self.leases:
            self.release(0)
        self.keeps_its_promises()
        while self.jobs:
            self.run_jobs()
        assert all(entry in self.unattended for entry in self.state.entries)
        self.pass_time(self.pool.settings.close_timeout)
        self.keeps_its_promises()
        assert not self.state.entries
        gone = self.server.cut.union(self.detached)
        assert all(resource.closed or resource in gone for resource in self.server.every)


class InlineMachine(PoolMachine):
    """The same with workers that do each job at once, in the thread that causes it."""

    workers = "inline"


TestManualWorkers = PoolMachine.TestCase
TestInlineWorkers = InlineMachine.TestCase


# -- regressions that it found -----------------------------------------------------


@pytest.mark.parametrize("end", [Lease.detach, lambda lease: None], ids=["detached", "dropped"])
def test_lease_that_is_never_released_counts_as_acquired(
    make: Make, clock: VirtualClock, end: Callable[[Lease[Any]], object]
) -> None:
    """Counters only grow (P12)."""
    pool = make()
    end(pool.acquire())
    clock.settle()
    assert pool.metrics.snapshot().acquired == 1


def test_waiter_for_a_check_is_not_delayed_by_the_close(make: Make) -> None:
    """The checked resource is dead: another is created at once in the free slot (P8)."""
    clock = Turns("manual")
    pool = make(clock=clock, adapter=Server(blocking=True, enforces_timeouts=False), max_size=2)
    (resource,) = fill(pool, 1)
    clock.advance(1)
    clock.start(Borrower(pool, 5, clock.now()))
    resource.alive = False
    clock.run_job()
    assert (pool.stats()["creating"], pool.stats()["closing"]) == (1, 1)
    pool.close(timeout=0)
    clock.let_go(clock.due[0])


def test_one_round_trip_is_enough_for_one_acquire(make: Make) -> None:
    """On a worker, the result was too old when it arrived, and the check was repeated endlessly (P4)."""

    class Running(VirtualClock):
        def now(self) -> float:
            self.skip(TICK)
            assert super().now() < 10, "an endless loop"
            return super().now()

    server = Server(blocking=True, enforces_timeouts=False)
    pool = make(clock=Running(start=0), adapter=server, validation_interval=0)
    for _ in range(2):
        pool.acquire(timeout=2).release()
    assert server.calls["validate"] == 1


def test_pool_is_filled_up_after_two_checks_that_hang(make: Make) -> None:
    """The sweep for the second one replaced the one for the end of the limit after a death (P8)."""
    clock = Turns("manual")
    server = Server(blocking=True, enforces_timeouts=False)
    pool = make(clock=clock, adapter=server, min_size=2, max_size=3, reset_timeout=5)
    fill(pool, 2)
    lease = pool.acquire()
    pool.check()
    clock.advance(0.25)
    lease.resource.dirty = False
    lease.release()
    pool.check()
    for _ in range(40):
        clock.advance(0.25)
    assert pool.stats()["creating"] == 2
    pool.close(timeout=0)


def test_resource_released_during_close_is_closed(make: Make) -> None:
    """By the thread that was given it, not later by the garbage collector (P8)."""
    clock = Turns("inline")
    pool = make(clock=clock, max_size=1)
    lease = pool.acquire()
    borrower = Borrower(pool, 1, clock.now())
    clock.start(borrower)
    lease.release()
    pool.close(timeout=0)
    clock.let_go(clock.due[0])
    assert borrower.error is PoolClosed
    assert pool.stats()["size"] == 0


def test_failed_check_leaves_no_cycle_that_holds_the_token(make: Make, manual: VirtualClock) -> None:
    """Else the slot would not be reclaimed when its close is lost (P8)."""
    server = Server(blocking=True, enforces_timeouts=False)
    pool = make(clock=manual, adapter=server)
    fill(pool, 1)
    server.fail("validate", ConnectionError("dead"))
    pool.check()
    manual.run_job()
    manual.drop_job()
    manual.settle()
    run_jobs(manual)
    assert pool.stats()["size"] == 0


def test_expired_resource_released_to_a_closed_pool_is_closed(
    make: Make, clock: VirtualClock
) -> None:
    """On the fast path, which takes no lock (P2)."""
    pool = make(adapter=PlainServer(blocking=True, enforces_timeouts=True), max_lifetime=10)
    lease = pool.acquire()
    clock.advance(20)
    pool.close(timeout=0)
    lease.release()
    assert pool.stats()["size"] == 0


def test_error_of_an_outage_keeps_no_frame_of_a_borrower_alive(make: Make) -> None:
    """An error raised in the borrower's thread has a context whose frames may hold leases (P8)."""
    server = PlainServer(blocking=False, enforces_timeouts=True)
    pool = make(adapter=server)
    server.down = OSError
    with pytest.raises(PoolUnavailable):
        pool.acquire(timeout=0)
    error = pool.engine.outage.error
    while error is not None:
        assert error.__traceback__ is None
        error = error.__context__


def test_the_replacement_is_created_though_the_discard_was_interrupted() -> None:
    """Found by the machine: the close was on a worker, so nothing served before it had ended."""
    machine = PoolMachine()
    machine.begin(
        kind=PlainServer, blocking=False, enforces_timeouts=False, sizes=(1, 1), limits={}, ages={}, abrupt=False,
        ahead=1,
    )  # fmt: skip
    for step in (
        lambda: machine.acquire(timeout=2),
        lambda: machine.acquire(timeout=2),
        lambda: machine.delay(steps=1),
        lambda: machine.release(which=0),
        lambda: machine.disturb(what="strike", which=2),
        *[lambda: machine.delay(steps=1)] * 3,
        lambda: machine.steer(number=1, what="resize"),
        lambda: machine.end_otherwise(how="discard", which=0),
    ):
        step()
        machine.keeps_its_promises()
    machine.teardown()

"""Observers: each event once, with its arguments, outside the lock, at no cost without observers."""

from __future__ import annotations

import logging
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Any
from unittest.mock import MagicMock

import pytest

from pooling import CreateFailed, Lease, Observer, Pool, PoolTimeout, PoolUnavailable, TooManyWaiting
from pooling.testing import FakeAdapter, FakeResource, VirtualClock
from tests.unit.conftest import Make, Task, collect, fill, lent_elsewhere, run_jobs

EVENTS = [name for name in vars(Observer) if not name.startswith("_")]
HOT = ("acquired", "released")
# Of HTTP pools, see their tests.
OF_REQUESTS = {"responded", "circuit_opened", "circuit_closed", "server_ejected", "server_returned"}


class Diary(Observer):
    """Records each event with its arguments."""

    def __init__(self) -> None:
        self.entries: list[tuple[Any, ...]] = []

    def of(self, *events: str) -> list[tuple[Any, ...]]:
        return [entry for entry in self.entries if entry[0] in events]


class LoudDiary(Diary):
    """Also the events of the fast path."""


def _writer(event: str) -> Callable[..., None]:
    def write(self: Diary, *args: Any) -> None:
        self.entries.append((event, *args))

    return write


for _event in EVENTS:
    setattr(LoudDiary if _event in HOT else Diary, _event, _writer(_event))
for _event in HOT:
    setattr(LoudDiary, _event, _writer(_event))


@pytest.fixture
def diary() -> LoudDiary:
    return LoudDiary()


# -- one case for each event --------------------------------------------------------------

Case = Callable[[Make, FakeAdapter, VirtualClock, Observer], object]
CASES: dict[str, tuple[Case, tuple[Any, ...]]] = {}


def tells(*expected: Any) -> Callable[[Case], Case]:
    """Register a case: what happens in a pool, and what an observer is told."""

    def register(case: Case) -> Case:
        CASES[case.__name__.strip("_")] = case, expected
        return case

    return register


@tells("acquired", "test", 0.0)
def _acquire(make: Make, adapter: FakeAdapter, clock: VirtualClock, observer: Observer) -> None:
    pool = make(observers=[observer])
    pool.acquire().release()


@tells("acquired", "test", 2.0)
def _acquire_after_a_wait(
    make: Make, adapter: FakeAdapter, clock: VirtualClock, observer: Observer
) -> None:
    pool = make(max_size=1)
    with lent_elsewhere(pool) as (lease,):
        pool.add_observer(observer)
        waiting = Task(pool.acquire)
        clock.until_parked(1)
        clock.advance(2)
        lease.release()
        waiting.result()


@tells("released", "test", 3.0)
def _release(make: Make, adapter: FakeAdapter, clock: VirtualClock, observer: Observer) -> None:
    with make(observers=[observer]).acquire():
        clock.advance(3)


@tells("released", "test", 3.0)
def _release_on_the_hot_path(
    make: Make, adapter: FakeAdapter, clock: VirtualClock, observer: Observer
) -> None:
    with make(factory=object, observers=[observer]).acquire():
        clock.advance(3)


@tells("released", "test", 3.0)
def _discard(make: Make, adapter: FakeAdapter, clock: VirtualClock, observer: Observer) -> None:
    lease = make(observers=[observer]).acquire()
    clock.advance(3)
    lease.discard()


@tells("created", "test", 0.0)
def _create(make: Make, adapter: FakeAdapter, clock: VirtualClock, observer: Observer) -> None:
    make(observers=[observer]).acquire()


@tells("closed", "test", "discarded")
def _close(make: Make, adapter: FakeAdapter, clock: VirtualClock, observer: Observer) -> None:
    make(observers=[observer]).acquire().discard()


@tells("exhausted", "test", 1)
def _exhaust(make: Make, adapter: FakeAdapter, clock: VirtualClock, observer: Observer) -> None:
    pool = make(max_size=1, observers=[observer])
    with pool.acquire(), pytest.raises(PoolTimeout):
        pool.acquire(0)


@tells("waited", "test", 2.0)
def _wait(make: Make, adapter: FakeAdapter, clock: VirtualClock, observer: Observer) -> None:
    pool = make(max_size=1)
    with lent_elsewhere(pool) as (lease,):
        pool.add_observer(observer)
        waiting = Task(pool.acquire)
        clock.until_parked(1)
        clock.advance(2)
        lease.release()
        waiting.result().release()
        pool.acquire().release()  # it need not wait


@tells("timed_out", "test", 2.0)
def _time_out(make: Make, adapter: FakeAdapter, clock: VirtualClock, observer: Observer) -> None:
    pool = make(max_size=1, observers=[observer])
    with pool.acquire():
        waiting = Task(pool.acquire, 2)
        clock.until_parked(1)
        clock.advance(2)
        with pytest.raises(PoolTimeout):
            waiting.result()


@tells("refused", "test")
def _refuse(make: Make, adapter: FakeAdapter, clock: VirtualClock, observer: Observer) -> None:
    pool = make(max_size=1, max_waiting=1, observers=[observer])
    lease = pool.acquire()
    waiting = Task(pool.acquire)
    clock.until_parked(1)
    with pytest.raises(TooManyWaiting):
        pool.acquire()
    lease.release()
    waiting.result()


GONE, NO, WRONG = ConnectionError("gone"), ConnectionError("no"), PermissionError("wrong password")


@tells("validation_failed", "test", GONE)
def _validate(make: Make, adapter: FakeAdapter, clock: VirtualClock, observer: Observer) -> None:
    pool = make(observers=[observer])
    fill(pool, 1)
    clock.advance(10)
    adapter.fail("validate", GONE)
    pool.acquire()


@tells("health_checked", "test", None)
def _check_health(make: Make, adapter: FakeAdapter, clock: VirtualClock, observer: Observer) -> None:
    pool = make(observers=[observer], health_check_interval=10)
    fill(pool, 1)
    clock.advance(10)


@tells("health_checked", "test", GONE)
def _fail_a_health_check(make: Make, adapter: FakeAdapter, clock: VirtualClock, observer: Observer) -> None:
    pool = make(observers=[observer], health_check_interval=10)
    fill(pool, 1)
    adapter.fail("validate", GONE)
    clock.advance(10)


@tells("create_failed", "test", NO)
def _fail_to_create(make: Make, adapter: FakeAdapter, clock: VirtualClock, observer: Observer) -> None:
    adapter.fail("create", NO)
    with pytest.raises(PoolUnavailable):
        make(observers=[observer]).acquire(0)


@tells("outage_began", "test", WRONG)
def _begin_an_outage(make: Make, adapter: FakeAdapter, clock: VirtualClock, observer: Observer) -> None:
    adapter.final = (PermissionError,)
    adapter.fail("create", WRONG)
    with pytest.raises(CreateFailed):
        make(observers=[observer]).acquire()


@tells("outage_ended", "test", 0.05)
def _end_an_outage(make: Make, adapter: FakeAdapter, clock: VirtualClock, observer: Observer) -> None:
    adapter.fail("create", NO)
    pool = make(observers=[observer])
    waiting = Task(pool.acquire)
    clock.until_parked(1)
    clock.advance(0.05)
    waiting.result()


@tells("resets_failed", "test", WRONG)
def _fail_to_reset(make: Make, adapter: FakeAdapter, clock: VirtualClock, observer: Observer) -> None:
    adapter.fail("reset", WRONG, times=5)
    pool = make(observers=[observer])
    for _ in range(5):
        pool.acquire().release()


@tells("resets_recovered", "test")
def _reset_again(make: Make, adapter: FakeAdapter, clock: VirtualClock, observer: Observer) -> None:
    adapter.fail("reset", NO, times=3)
    pool = make(observers=[observer])
    for _ in range(50):
        pool.acquire().release()


@tells("drained", "test")
def _drain(make: Make, adapter: FakeAdapter, clock: VirtualClock, observer: Observer) -> None:
    make(observers=[observer]).drain()


class FullServer(FakeAdapter):
    def is_full(self, error: BaseException) -> bool:
        return error is NO


FULL = "the server refuses more connections; 1 are open"


@tells("adapted", "test", 10, 9, FULL, True)
def _adapt(make: Make, adapter: FakeAdapter, clock: VirtualClock, observer: Observer) -> None:
    full = FullServer()
    pool = make(adapter=full, observers=[observer], adaptive="on", max_size=50)
    lease = pool.acquire()
    full.fail("create", NO, times=99)
    waiting = Task(pool.acquire, 60.0)
    clock.until_parked(1)
    clock.advance(11.0)
    lease.release()
    waiting.result().release()


@tells("leaked", "test", "?", 30.0)
def _leak(make: Make, adapter: FakeAdapter, clock: VirtualClock, observer: Observer) -> None:
    with make(observers=[observer], leak_timeout=30).acquire():
        clock.advance(300)


@tells("orphaned", "test", "?")
def _orphan(make: Make, adapter: FakeAdapter, clock: VirtualClock, observer: Observer) -> None:
    pool = make(observers=[observer])
    pool.acquire()
    collect(clock)


def told(entry: tuple[Any, ...]) -> tuple[Any, ...]:
    """An entry to compare: a place in this file as ``?``, durations rounded."""
    return tuple(
        "?" if isinstance(part, str) and __file__ in part
        else round(part, 6) if isinstance(part, float) else part
        for part in entry
    )  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_each_event_is_reported_once(
    name: str, make: Make, adapter: FakeAdapter, clock: VirtualClock, diary: LoudDiary
) -> None:
    case, expected = CASES[name]
    case(make, adapter, clock, diary)
    assert [told(entry) for entry in diary.of(expected[0])] == [expected]


def test_every_event_has_a_test_case() -> None:
    assert {expected[0] for _, expected in CASES.values()} == set(EVENTS) - OF_REQUESTS


def test_every_event_has_an_empty_method() -> None:
    observer = Observer()
    arguments = {"exhausted": (1,), "refused": (), "drained": (), "resets_recovered": (), "leaked": ("here", 1.0)}
    arguments["adapted"] = (10, 12, "why", True)
    arguments["responded"] = ("GET", "http://here", 200, 1.0)
    arguments["server_ejected"] = ("http://here", "connect", 30.0)
    arguments["circuit_opened"] = ("http://here", "3 failures in a row")
    for event in EVENTS:
        assert getattr(observer, event)("test", *arguments.get(event, ("",))) is None


@pytest.mark.parametrize("name", CASES)
def test_an_observer_is_called_outside_the_lock(
    name: str, make: Make, adapter: FakeAdapter, clock: VirtualClock
) -> None:
    inside: list[str] = []
    pools: list[Pool[Any]] = []

    def remember(**given: Any) -> Pool[Any]:
        pools.append(make(**given))
        return pools[-1]

    case, _ = CASES[name]
    observer = Observer()
    for event in EVENTS:
        setattr(observer, event, lambda *args, e=event: inside.extend([e] * pools[0].engine.lock._is_owned()))
    case(remember, adapter, clock, observer)
    assert inside == []


class Rude(LoudDiary):
    """Records what it is told, and raises."""


for _event in EVENTS:
    setattr(Rude, _event, lambda self, *args, e=_event: (self.entries.append((e, *args)), 1 / 0))


@pytest.mark.parametrize("name", CASES)
def test_exception_of_an_observer_changes_nothing(
    name: str,
    make: Make,
    adapter: FakeAdapter,
    clock: VirtualClock,
    diary: LoudDiary,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    case, expected = CASES[name]
    rude, logger = Rude(), MagicMock()
    monkeypatch.setattr("pooling.core.observer.logger", logger)

    def with_both(**given: Any) -> Pool[Any]:
        given["observers"] = [rude, *given.get("observers", [])]
        return make(**given)

    case(with_both, adapter, clock, diary)
    assert [told(entry) for entry in diary.of(expected[0])] == [expected]
    assert logger.exception.call_count == len(rude.entries) > 0


def test_exception_of_an_observer_is_logged(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    rude = Rude()
    make(observers=[rude]).drain()
    (record,) = caplog.records
    assert record.message == f"observer {rude!r} failed in drained()"
    assert record.levelno == logging.ERROR
    assert record.exc_info is not None and record.exc_info[0] is ZeroDivisionError


# -- close reasons ------------------------------------------------------------------------


def _overdue_close(pool: Pool[Any], clock: VirtualClock, adapter: FakeAdapter) -> None:
    fill(pool, 1)
    pool.acquire().discard()
    clock.advance(5)


def _overdue_check(pool: Pool[Any], clock: VirtualClock, adapter: FakeAdapter) -> None:
    fill(pool, 1)
    pool.acquire().release()
    clock.advance(5)


def _rest(pool: Pool[Any], clock: VirtualClock, adapter: FakeAdapter) -> None:
    fill(pool, 1)
    clock.advance(300)
    run_jobs(clock)


def _end(end: Callable[[Lease[Any]], object]) -> Callable[[Pool[Any], VirtualClock, FakeAdapter], None]:
    def way(pool: Pool[Any], clock: VirtualClock, adapter: FakeAdapter) -> None:
        fill(pool, 1)
        end(pool.acquire())
        run_jobs(clock)

    return way


@pytest.mark.parametrize(
    ("reason", "way"),
    [
        ("discarded", _end(Lease.discard)),
        ("detached", _end(Lease.detach)),
        ("idle_timeout", _rest),
        ("close_timeout", _overdue_close),
        ("check_timeout", _overdue_check),
    ],
)
def test_every_counted_close_is_reported(
    make: Make,
    adapter: FakeAdapter,
    manual: VirtualClock,
    diary: LoudDiary,
    reason: str,
    way: Callable[[Pool[Any], VirtualClock, FakeAdapter], None],
) -> None:
    adapter.enforces_timeouts = way is not _overdue_check
    pool = make(observers=[diary], clock=manual, close_timeout=5, reset_timeout=5, health_check_timeout=5)
    way(pool, manual, adapter)
    assert pool.metrics.snapshot().closed == {reason: 1}
    assert Counter(entry[2] for entry in diary.of("closed")) == {reason: 1}


def test_close_that_returns_at_its_time_limit_is_reported_once(
    make: Make, manual: VirtualClock, diary: LoudDiary
) -> None:
    """While the reaper is about to abandon it."""

    class JustInTime(FakeAdapter):
        def abandon(self, resource: FakeResource) -> None:
            manual.run_job()

    pool = make(adapter=JustInTime(), observers=[diary], clock=manual, close_timeout=5)
    fill(pool, 1)
    pool.acquire().discard()
    manual.advance(5)
    assert pool.metrics.snapshot().closed == {"discarded": 1}
    assert diary.of("closed") == [("closed", "test", "discarded")]


# -- adding and removing ------------------------------------------------------------------


def test_observers_can_be_added_and_removed(make: Make, diary: LoudDiary) -> None:
    pool = make(factory=object)
    pool.acquire().release()
    pool.add_observer(diary)
    pool.acquire().release()
    pool.remove_observer(diary)
    pool.acquire().release()
    assert [entry[0] for entry in diary.entries] == ["acquired", "released"]


def test_observers_are_notified_in_the_order_they_were_added(make: Make) -> None:
    order: list[int] = []
    pool = make()
    for number in (1, 2, 3):
        observer = Observer()
        observer.drained = lambda name, n=number: order.append(n)  # type: ignore[method-assign,misc]
        pool.add_observer(observer)
    pool.drain()
    assert order == [1, 2, 3]


def test_removing_an_unknown_observer_is_harmless(make: Make, diary: LoudDiary) -> None:
    pool = make(observers=[diary])
    pool.remove_observer(Observer())
    pool.drain()
    assert diary.of("drained") == [("drained", "test")]


# -- no cost without observers ------------------------------------------------------------


def calls_of_a_checkout(pool: Pool[Any]) -> list[str]:
    """Return the names of the Python functions that lending and taking back an idle resource calls."""
    pool.acquire().release()
    called: list[str] = []

    def profile(frame: FrameType, event: str, argument: object) -> None:
        if event == "call":
            called.append(frame.f_code.co_name)

    sys.setprofile(profile)
    try:
        with pool.acquire():
            pass
    finally:
        sys.setprofile(None)
    return called


@pytest.mark.parametrize("observers", [[], [Diary()]], ids=["no observer", "one for other events"])
def test_fast_path_calls_no_observer(make: Make, observers: list[Observer]) -> None:
    pool = make(factory=object, observers=observers)
    assert calls_of_a_checkout(pool) == ["acquire", "now", "__enter__", "__exit__", "now"]


def test_observers_of_leases_are_notified_on_every_lease(make: Make, diary: LoudDiary) -> None:
    pool = make(factory=object, observers=[diary])
    assert calls_of_a_checkout(pool).count("notify") == 4
    pool.remove_observer(diary)
    assert "notify" not in calls_of_a_checkout(pool)


def test_mock_observer_receives_events(make: Make) -> None:
    """Its methods are not those of its class."""
    mock = MagicMock(spec=Observer)
    make(factory=object, observers=[mock]).acquire().release()
    mock.released.assert_called_once_with("test", 0.0)


def test_a_method_set_on_the_observer_itself_is_called(make: Make) -> None:
    heard: list[float] = []
    observer = Observer()
    observer.released = lambda pool, held: heard.append(held)  # type: ignore[method-assign]
    make(factory=object, observers=[observer]).acquire().release()
    assert heard == [0.0]


class Quiet(Observer):
    """Has no method for events of the fast path, and records if one is called all the same."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def __getattribute__(self, name: str) -> object:
        if name in HOT:
            self.heard.append(name)
        return super().__getattribute__(name)

    def created(self, pool: str, seconds: float) -> None:
        self.heard.append("created")


def test_observer_without_lease_events_keeps_the_fast_path(make: Make) -> None:
    """Nor on slow paths: an empty call for each lease costs too much."""
    quiet = Quiet()
    pool = make(factory=object, max_uses=100, observers=[quiet])  # max_uses means a slow release
    quiet.heard.clear()  # whether it listens was looked up when it was added
    with pool.acquire():
        pass
    assert quiet.heard == ["created"]


# -- observers that use the pool --------------------------------------------------------------


class Borrower(logging.Handler, Observer):
    """Acquires from the same pool when it is notified."""

    def __init__(self, timeout: float) -> None:
        super().__init__()
        self.timeout = timeout
        self.pool: Pool[Any] | None = None
        self.told: list[str] = []

    def use(self, what: str) -> None:
        self.told.append(what)
        assert self.pool is not None
        with suppress(PoolTimeout), self.pool.acquire(self.timeout):
            pass

    def emit(self, record: logging.LogRecord) -> None:
        self.use(record.getMessage())

    def exhausted(self, pool: str, waiting: int) -> None:
        self.use("exhausted")

    def timed_out(self, pool: str, waited: float) -> None:
        self.use("timed out")

    def acquired(self, pool: str, waited: float) -> None:
        self.use("acquired")


def test_log_handler_that_acquires_is_warned_of_a_deadlock_once(make: Make, clock: VirtualClock) -> None:
    """The handler needs a resource that its own thread holds: without a limit, each warning would cause another."""
    pool = make(max_size=1)
    handlers = [Borrower(5), Borrower(5)]

    def borrow_twice() -> None:
        with pool.acquire(), pytest.raises(PoolTimeout):
            pool.acquire(20)

    for handler in handlers:
        handler.pool = pool
        logging.getLogger("pooling").addHandler(handler)
    try:
        task = Task(borrow_twice)
        for seconds in (5, 5, 10):  # each handler's wait, and the rest of the borrower's
            clock.until_parked(1)
            clock.advance(seconds)
        task.result()
    finally:
        for handler in handlers:
            logging.getLogger("pooling").removeHandler(handler)
    for handler in handlers:
        (told,) = handler.told
        assert "probable deadlock" in told
    pool.acquire(0).release()


def test_acquire_inside_an_observer_is_not_reported_to_it(make: Make, clock: VirtualClock) -> None:
    one, other = Borrower(0), Diary()
    pool = make(max_size=1, observers=[one, other])
    one.pool = pool
    with pool.acquire():
        for _ in range(2):
            with pytest.raises(PoolTimeout):
                pool.acquire(0)
    assert one.told == ["acquired", *2 * ["exhausted", "timed out"]]
    assert len(other.of("timed_out")) == 2 + 5  # the other observer is told of all


def test_factory_that_acquires_does_not_hang(make: Make, clock: VirtualClock) -> None:
    made: list[object] = []

    def factory() -> object:
        with suppress(PoolTimeout), pool.acquire(0):
            pass
        made.append(object())
        return made[-1]

    pool = make(factory=factory, max_size=3)
    pool.acquire(1).release()
    assert len(made) <= 3


def test_interrupted_observer_does_not_silence_the_pool(
    make: Make, clock: VirtualClock, caplog: pytest.LogCaptureFixture
) -> None:
    class Struck(BaseException):
        pass

    class Interrupted(Observer):
        struck = 0

        def exhausted(self, pool: str, waiting: int) -> None:
            self.struck += 1
            raise Struck

    observer = Interrupted()
    pool = make(max_size=1, observers=[observer])
    with pool.acquire():
        for number in (1, 2):
            with pytest.raises(Struck):
                pool.acquire(0)
            assert observer.struck == number

"""Texts: repr, errors, holders, warnings; one line for each incident, and none when all is well."""

from __future__ import annotations

import io
import logging
import re
import sys
import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

import pooling
from pooling import (
    CreateFailed,
    Lease,
    LeaseError,
    Pool,
    PoolClosed,
    PoolError,
    PoolSettings,
    PoolTimeout,
    PoolUnavailable,
    TooManyWaiting,
)
from pooling.core.report.holders import depth_of_borrower
from pooling.testing import FakeAdapter, VirtualClock
from tests.unit.conftest import Make, Task, collect, entry_of, fill, lent_elsewhere, oversleep, run_jobs


def line() -> int:
    """The line that calls this."""
    return sys._getframe(1).f_lineno


def fails(function: Callable[..., Any], *args: Any) -> str:
    """Return the text of the error that a call raises."""
    with pytest.raises(PoolError) as raised:
        function(*args)
    return str(raised.value)


def timed_out(pool: Pool[Any], clock: VirtualClock, seconds: float) -> str:
    """Have another thread wait until it times out; return the text of its error."""
    waiting = Task(pool.acquire, seconds)
    clock.until_parked(1)
    clock.advance(seconds)
    return fails(waiting.result)


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """Return what was logged as a warning or worse, line by line."""
    return lambda: [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]


Warnings = Callable[[], list[str]]


def by_release(pool: Pool[Any]) -> None:
    pool.acquire().release()


# -- error classes ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error", [PoolTimeout, PoolUnavailable, TooManyWaiting, PoolClosed, CreateFailed, LeaseError]
)
def test_every_error_is_a_pool_error_of_the_public_module(error: type[Exception]) -> None:
    assert issubclass(error, PoolError)
    assert error.__module__ == PoolError.__module__ == "pooling"
    assert getattr(pooling, error.__name__) is error
    assert error.__doc__


def test_pool_timeout_is_a_timeout_error() -> None:
    assert issubclass(PoolTimeout, TimeoutError)


# -- repr ---------------------------------------------------------------------------------


def test_repr_states_the_counts(make: Make, manual: VirtualClock) -> None:
    pool = make(name="orders", max_size=4, clock=manual, adapter=FakeAdapter(enforces_timeouts=False))
    assert repr(pool) == "<Pool 'orders': 0/4 in use, 0 idle, 0 waiting>"
    fill(pool, 3)
    pool.acquire().release()
    pool.acquire().discard()
    lease = pool.acquire()
    waiting = Task(pool.acquire)
    manual.until_parked(1)
    pool.fill(4)
    assert repr(pool) == (
        "<Pool 'orders': 1/4 in use, 0 idle, 1 creating, 1 checking, 1 closing, 1 waiting>"
    )
    run_jobs(manual)
    waiting.result().release()
    lease.release()
    run_jobs(manual)
    pool.close(0)
    run_jobs(manual)
    assert repr(pool) == "<Pool 'orders': 0/4 in use, 0 idle, 0 waiting, closed>"


def test_repr_names_the_class(make: Make) -> None:
    class Connections(Pool[Any]):
        pass

    assert repr(Connections(object, name="ldap")).startswith("<Connections 'ldap': ")


def test_repr_says_that_the_pool_is_paused(make: Make) -> None:
    pool = make()
    pool.pause()
    assert "paused" in repr(pool)


def test_stats_are_the_counts_and_the_bounds(make: Make, adapter: FakeAdapter) -> None:
    pool = make(name="orders", max_size=4)
    fill(pool, 2)
    with pool.acquire():
        adapter.fail("create", ConnectionError("no\n  route"))
        pool.fill(3)
        assert pool.stats() == {
            "name": "orders", "size": 2, "idle": 1, "in_use": 1, "creating": 0, "checking": 0,
            "closing": 0, "waiting": 0, "min_size": 0, "max_size": 4, "paused": False,
            "closed": False, "down": "ConnectionError: no route", "resets_failing": None,
        }  # fmt: skip


# -- exhausted ----------------------------------------------------------------------------


def test_timeout_names_the_holders(make: Make, clock: VirtualClock) -> None:
    """The text of the design, word for word."""
    pool = make(name="orders", max_size=10)
    here = line() + 1
    leases = [pool.acquire() for _ in range(7)]
    clock.advance(30)
    there = line() + 1
    leases += [pool.acquire() for _ in range(3)]
    clock.advance(6.2)
    function = sys._getframe(0).f_code.co_name if sys.version_info >= (3, 12) else "<listcomp>"
    assert timed_out(pool, clock, 5) == (
        "pool 'orders': no thing within 5.0 s (10/10 in use, 0 idle, 0 waiting); held by: "
        f"test_words.py:{here} {function}() in MainThread for 41.2 s ×7; "
        f"test_words.py:{there} {function}() in MainThread for 11.2 s ×3"
    )


def test_message_counts_the_other_waiters(make: Make, clock: VirtualClock) -> None:
    pool = make(max_size=1)
    lease = pool.acquire()
    patient = [Task(pool.acquire, 60), Task(pool.acquire, 60)]
    clock.until_parked(2)
    hasty = Task(pool.acquire, 5)
    clock.until_parked(3)
    clock.advance(5)
    assert "(1/1 in use, 0 idle, 2 waiting)" in fails(hasty.result)
    lease.release()
    patient[0].result().release()
    patient[1].result().release()


def test_timeout_names_at_most_five_places(make: Make, clock: VirtualClock) -> None:
    pool = make(max_size=8)
    leases: list[Lease[Any]] = []
    for number in range(8):
        code = compile("leases.append(pool.acquire())", f"/srv/app/view{number}.py", "exec")
        exec(code, {"leases": leases, "pool": pool})
        clock.advance(1)
    text = timed_out(pool, clock, 1)
    assert re.findall(r"view\d\.py", text) == [f"view{number}.py" for number in range(5)]
    assert text.endswith("; and 3 more places")


def test_timeout_zero_has_its_own_message(make: Make) -> None:
    pool = make(max_size=1)
    with lent_elsewhere(pool):
        assert fails(pool.acquire, 0).startswith(
            "pool 'test': no thing at once (1/1 in use, 0 idle, 0 waiting); held by: "
        )


def test_timeout_mentions_the_leases_of_the_same_thread_first(make: Make, clock: VirtualClock) -> None:
    pool = make(max_size=2)

    def nest() -> None:
        with pool.acquire():
            clock.advance(1)
            with lent_elsewhere(pool):
                pool.acquire(0)

    text = fails(nest)
    mine, all_held = text.split("; this thread holds ")[1].split("; held by: ")
    assert re.fullmatch(r"1 itself: test_words.py:\d+ nest\(\) in MainThread for 1.0 s", mine)
    assert all_held.startswith(mine.removeprefix("1 itself: "))
    assert "hold()" in all_held


def test_without_tracking_no_holder_is_named(make: Make, clock: VirtualClock) -> None:
    pool = make(max_size=1, track_holders=False)
    with pool.acquire():
        assert timed_out(pool, clock, 5) == (
            "pool 'test': no thing within 5.0 s (1/1 in use, 0 idle, 0 waiting)"
        )


def test_timeout_says_that_the_pool_is_paused(make: Make, clock: VirtualClock) -> None:
    """Otherwise a wait beside idle resources would be a riddle."""
    pool = make()
    fill(pool, 1)
    pool.pause()
    assert "paused" in timed_out(pool, clock, 5)


# -- down, refused, closed, ended ---------------------------------------------------------


def test_timeout_during_an_outage_names_the_cause(make: Make, adapter: FakeAdapter, clock: VirtualClock) -> None:
    pool = make()
    adapter.fail("create", ConnectionError("could not connect\n\tto server:  refused"), times=99)
    waiting = Task(pool.acquire, 5)
    clock.until_parked(1)
    clock.advance(5)
    with pytest.raises(PoolTimeout) as raised:
        waiting.result()
    assert str(raised.value) == (
        "pool 'test': no thing within 5.0 s (0/2 in use, 0 idle, 0 waiting); "
        "last thing error: ConnectionError: could not connect to server: refused"
    )
    assert isinstance(raised.value.__cause__, ConnectionError)


def test_error_without_a_message_is_named_by_its_class(make: Make, adapter: FakeAdapter) -> None:
    adapter.fail("create", ConnectionResetError())
    assert fails(make().acquire, 0).endswith("; last thing error: ConnectionResetError")


def test_refusal_states_max_waiting(make: Make, clock: VirtualClock) -> None:
    pool = make(max_size=1, max_waiting=1)
    lease = pool.acquire()
    waiting = Task(pool.acquire)
    clock.until_parked(1)
    assert fails(pool.acquire) == (
        "pool 'test': the wait queue is full (max_waiting=1; 1/1 in use, 0 idle, 1 waiting)"
    )
    lease.release()
    waiting.result()


def test_final_error_is_the_cause(make: Make, adapter: FakeAdapter) -> None:
    adapter.final = (PermissionError,)
    adapter.fail("create", PermissionError("wrong password"))
    assert fails(make().acquire) == (
        "pool 'test': cannot create a thing: PermissionError: wrong password"
    )


def test_max_attempts_error_states_their_number(make: Make, adapter: FakeAdapter) -> None:
    adapter.fail("create", ConnectionError("refused"))
    assert fails(make(max_attempts=1).acquire) == (
        "pool 'test': 1 attempts to create a thing failed: ConnectionError: refused"
    )


# -- holders ------------------------------------------------------------------------------


def test_holders_state_thread_place_and_duration(make: Make, clock: VirtualClock) -> None:
    pool = make(max_size=3)
    assert pool.holders() == []
    place, lease = line(), pool.acquire()
    clock.advance(2)
    with lent_elsewhere(pool):
        clock.advance(1)
        mine, other = pool.holders()  # the longest holder comes first
    assert (mine.file, mine.line) == (__file__, place)
    assert (mine.function, mine.thread) == ("test_holders_state_thread_place_and_duration", "MainThread")
    assert (mine.seconds, repr(mine)) == (3.0, f"<Holder {mine}>")
    assert (other.function, other.seconds) == ("hold", 1.0)
    assert other.thread.startswith("Thread-")
    assert str(mine) == (
        f"test_words.py:{place} test_holders_state_thread_place_and_duration() in MainThread for 3.0 s"
    )
    lease.release()
    assert len(pool.holders()) == 1


def test_idle_resource_has_no_holder(make: Make, clock: VirtualClock) -> None:
    pool = make(max_size=3)
    fill(pool, 3)
    clock.advance(10)
    pool.pause()
    fails(pool.acquire, 0)
    pool.resume()
    pool.check()
    assert pool.holders() == []


def test_creating_checking_and_closing_entries_have_no_holder(make: Make, manual: VirtualClock) -> None:
    pool = make(max_size=3, clock=manual, adapter=FakeAdapter(enforces_timeouts=False))
    fill(pool, 2)
    pool.acquire().release()
    pool.acquire().discard()
    pool.fill(3)
    assert pool.holders() == []


def test_ended_holder_is_named_with_the_time_of_its_end(
    make: Make, clock: VirtualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = make(max_size=1)
    task = Task(pool.acquire)
    lease = task.result()
    ended = time.monotonic()
    monkeypatch.setattr("pooling.core.report.holders.time", SimpleNamespace(monotonic=lambda: ended + 41))
    clock.advance(60)
    (holder,) = pool.holders()
    assert holder.thread == task.name and holder.ended == pytest.approx(41, abs=10)
    text = timed_out(pool, clock, 5)
    assert re.search(rf" in {task.name}, ended \d\d s ago, for 65\.0 s$", text), text
    lease.release()


def test_ended_holder_that_never_waited_is_named_by_its_identifier(make: Make) -> None:
    pool = make()
    fill(pool, 1)
    task = Task(pool.acquire)
    lease = task.result()
    assert pool.holders()[0].thread == f"thread {task.ident} (ended)"
    lease.release()


def test_thread_with_a_reused_identifier_is_not_named_as_the_holder(
    make: Make, clock: VirtualClock, warnings: Warnings
) -> None:
    """Identifiers are reused as soon as a thread has ended."""
    pool = make(max_size=1)
    first = Task(pool.acquire)
    lease = first.result()

    def acquire() -> None:
        entry_of(pool, lease.resource).thread = threading.get_ident()  # as if this were its identifier
        pool.acquire(5)

    second = Task(acquire)
    clock.until_parked(1)
    clock.advance(5)
    text = fails(second.result)
    assert "this thread holds" not in text and f" in {first.name}, ended " in text
    assert warnings() == []  # and no deadlock
    lease.release()


def test_end_of_a_thread_is_not_attributed_to_the_next_holder(make: Make, clock: VirtualClock) -> None:
    pool = make(max_size=1)
    Task(pool.acquire).result().release()
    clock.advance(1)
    with pool.acquire():
        (holder,) = pool.holders()
        assert (holder.thread, holder.ended) == (threading.current_thread().name, None)


def test_untracked_holder_is_counted(make: Make, clock: VirtualClock) -> None:
    pool = make(track_holders=False)
    with pool.acquire():
        clock.advance(2)
        (holder,) = pool.holders()
    assert str(holder) == "?:0 ?() in an untracked thread for 2.0 s"


def test_holders_are_known_without_keeping_frames(make: Make) -> None:
    """A frame would keep the lease alive, so a dropped lease would never be found."""
    pool = make()
    lease = pool.acquire()
    entry = entry_of(pool, lease.resource)
    kept = [getattr(entry, name) for name in type(entry).__slots__]
    assert not any(hasattr(value, "f_code") for value in kept)


# -- leaks --------------------------------------------------------------------------------


def test_leak_is_reported_once_and_again_on_release(
    make: Make, clock: VirtualClock, warnings: Warnings
) -> None:
    pool = make(leak_timeout=30)
    place, lease = line(), pool.acquire()
    where = f"{__file__}:{place} test_leak_is_reported_once_and_again_on_release()"
    clock.advance(29.9)
    assert warnings() == []
    clock.advance(300)
    assert warnings() == [
        f"pool 'test': a thing has been in use for 30.0 s (leak_timeout=30), acquired at {where}"
    ]
    lease.release()
    assert warnings()[1:] == [f"pool 'test': the leaked thing acquired at {where} was released after 329.9 s"]


@pytest.mark.parametrize("factory", [None, object], ids=["with a reset", "the hot path"])
@pytest.mark.parametrize("end", [Lease.release, Lease.discard])
def test_each_leak_is_reported_separately(
    make: Make,
    clock: VirtualClock,
    warnings: Warnings,
    factory: Callable[[], object] | None,
    end: Callable[[Lease[Any]], None],
) -> None:
    pool = make(leak_timeout=30, **({"factory": factory} if factory else {}))
    for _ in range(2):
        lease = pool.acquire()
        clock.advance(30)
        end(lease)
    assert [("has been in use" in text, "was released" in text) for text in warnings()] == [(1, 0), (0, 1)] * 2


def test_leak_is_reported_however_late_the_lease_began(
    make: Make, clock: VirtualClock, warnings: Warnings
) -> None:
    pool = make(leak_timeout=30, idle_timeout=None)
    pool.acquire().release()
    clock.advance(1000.7)
    lease = pool.acquire()
    clock.advance(29.9)
    assert warnings() == []
    clock.advance(0.2)
    assert len(warnings()) == 1
    lease.release()


def test_leak_is_reported_after_close(make: Make, clock: VirtualClock, warnings: Warnings) -> None:
    pool = make(leak_timeout=30)
    with pool.acquire():
        pool.close(0)
        clock.advance(30)
    assert [("has been in use" in text, "was released" in text) for text in warnings()] == [(1, 0), (0, 1)]


# -- orphans ------------------------------------------------------------------------------


def test_dropped_lease_is_reported_with_where_it_was_acquired(
    make: Make, clock: VirtualClock, warnings: Warnings
) -> None:
    pool = make()
    place = line() + 1
    pool.acquire()
    collect(clock)
    assert warnings() == [
        "pool 'test': a lease was dropped without release, acquired at "
        f"{__file__}:{place} test_dropped_lease_is_reported_with_where_it_was_acquired(); closing its thing"
    ]


def test_dropped_lease_has_no_place_without_tracking(make: Make, clock: VirtualClock, warnings: Warnings) -> None:
    pool = make(track_holders=False)
    pool.acquire()
    collect(clock)
    assert "acquired at an unknown place (track_holders is off)" in warnings()[0]


def test_interrupted_release_is_not_reported_as_dropped(
    make: Make, adapter: FakeAdapter, clock: VirtualClock, warnings: Warnings
) -> None:
    """The resource is closed, and no borrower is blamed."""
    pool = make()
    lease = pool.acquire()
    adapter.fail("reset", KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        lease.release()
    collect(clock)
    assert warnings() == []


@pytest.mark.parametrize("end", [Lease.release, Lease.discard])
def test_lost_job_is_not_reported_as_a_dropped_lease(
    make: Make, manual: VirtualClock, warnings: Warnings, end: Callable[[Lease[Any]], None]
) -> None:
    pool = make(adapter=FakeAdapter(enforces_timeouts=False), clock=manual)
    fill(pool, 1)
    end(pool.acquire())
    manual.drop_job()
    collect(manual)
    assert pool.metrics.snapshot().orphans == 1
    assert warnings() == []


def test_failing_close_of_a_dropped_pool_is_not_reported_as_a_bug(
    make: Make, adapter: FakeAdapter, clock: VirtualClock, warnings: Warnings
) -> None:
    pool = make()
    fill(pool, 1)
    adapter.fail("close", OSError("gone"))
    del pool
    clock.settle()
    assert adapter.calls["close"] == 1
    assert warnings() == []


# -- deadlocks ----------------------------------------------------------------------------


def test_self_deadlock_is_logged_at_once(
    make: Make, clock: VirtualClock, warnings: Warnings
) -> None:
    pool = make(max_size=1)

    def nest() -> None:
        with pool.acquire(), pool.acquire(5):
            pass

    nested = Task(nest)
    clock.until_parked(1)
    (text,) = warnings()
    assert re.fullmatch(
        r"pool 'test': probable deadlock: every thing is held by a thread that is itself waiting; "
        r"held by: test_words.py:\d+ nest\(\) in Thread-\d+ for 0.0 s",
        text,
    )
    clock.advance(5)
    fails(nested.result)


def test_deadlock_between_threads_is_logged(
    make: Make, clock: VirtualClock, warnings: Warnings
) -> None:
    """When the last of them begins to wait, and not before."""
    pool = make(max_size=2)
    both, first_waits = threading.Barrier(2), threading.Event()

    def nest(before: Callable[[], object]) -> None:
        with pool.acquire():
            both.wait(30)
            before()
            pool.acquire(5).release()

    first, second = Task(nest, lambda: None), Task(nest, lambda: first_waits.wait(30))
    clock.until_parked(1)
    assert warnings() == []
    first_waits.set()
    clock.until_parked(2)
    assert len(warnings()) == 1
    clock.interrupt(TimeoutError("enough"))  # now the second can get what the first releases
    with pytest.raises(TimeoutError, match="enough"):
        first.result()
    second.result()


def _with_another(pool: Pool[Any]) -> None:
    with pool.acquire(), lent_elsewhere(pool):
        pool.acquire(5)


def _at_once(pool: Pool[Any]) -> None:
    with pool.acquire(), pool.acquire():
        pool.acquire(0)


@pytest.mark.parametrize("nest", [_with_another, _at_once])
def test_wait_that_another_thread_can_end_is_not_a_deadlock(
    make: Make, clock: VirtualClock, warnings: Warnings, nest: Callable[[Pool[Any]], None]
) -> None:
    nested = Task(nest, make(max_size=2))
    if nest is _with_another:
        clock.until_parked(1)
    clock.advance(5)
    fails(nested.result)
    assert warnings() == []


@pytest.mark.parametrize("end", [Lease.release, Lease.discard])
def test_wait_for_a_reset_on_a_worker_is_not_a_deadlock(
    make: Make, manual: VirtualClock, warnings: Warnings, end: Callable[[Lease[Any]], None]
) -> None:
    """The reset, or the close, of the resource is in progress."""
    pool = make(max_size=1, clock=manual, adapter=FakeAdapter(enforces_timeouts=False))
    fill(pool, 1)

    def twice() -> None:
        end(pool.acquire())
        pool.acquire(5).release()

    task = Task(twice)
    manual.until_parked(1)
    assert warnings() == []
    manual.advance(5)
    fails(task.result)


def test_resource_being_validated_for_a_waiter_is_not_held_by_it(
    make: Make, manual: VirtualClock, warnings: Warnings
) -> None:
    """The only resource is being validated for the thread that had it last: it waits for a worker."""
    pool = make(max_size=1, clock=manual, adapter=FakeAdapter(enforces_timeouts=False))

    def twice() -> None:
        for _ in range(2):
            pool.acquire(5).release()
            run_jobs(manual)  # the reset
            manual.advance(1)  # so that a round trip is due

    fill(pool, 1)
    task = Task(twice)
    manual.until_parked(1)
    assert manual.jobs == 1 and pool.stats()["checking"] == 1
    assert warnings() == []
    run_jobs(manual)
    task.result()


def test_resource_being_lent_is_not_attributed_to_its_last_holder(
    make: Make, manual: VirtualClock, warnings: Warnings
) -> None:
    """It was checked after its last lease, and is in a waiter's box when its last holder acquires again."""
    pool = make(max_size=1, clock=manual, adapter=FakeAdapter(enforces_timeouts=False))
    fill(pool, 1)
    again, seen = threading.Event(), threading.Event()

    def first() -> None:
        pool.acquire(5).release()
        assert again.wait(30)
        pool.acquire(5).release()

    def second() -> None:
        pool.engine.clock.get = hold_up
        pool.acquire(5).release()

    original = pool.engine.clock.get

    def hold_up(box: Any, timeout: float | None) -> Any:
        item = original(box, timeout)
        pool.engine.clock.get = original
        again.set()  # it is out of the queue, and its lease has not begun
        assert seen.wait(30)
        return item

    holder = Task(first)
    while not manual.jobs:  # the reset
        pass
    manual.advance(1)
    run_jobs(manual)
    manual.advance(1)
    pool.check()  # the check begins now
    waiter = Task(second)
    manual.until_parked(1)
    run_jobs(manual)
    manual.until_parked(1)  # the last holder
    assert warnings() == []
    seen.set()
    while not manual.jobs:
        pass
    run_jobs(manual)
    for _ in range(2):
        waiter.result()
        run_jobs(manual)
    holder.result()


# -- outages ------------------------------------------------------------------------------


def test_outage_logs_two_lines(
    make: Make, adapter: FakeAdapter, clock: VirtualClock, warnings: Warnings
) -> None:
    pool = make()
    adapter.fail("create", ConnectionError("refused"), times=9999)
    waiting = [Task(pool.acquire, 90), Task(pool.acquire, 90)]
    clock.until_parked(2)
    clock.advance(60)
    assert adapter.calls["create"] > 100
    assert warnings() == ["pool 'test': cannot create a thing: ConnectionError: refused"]
    adapter.mend("create")
    clock.advance(1)
    for task in waiting:
        task.result()
    assert len(warnings()) == 1  # it may come back soon
    clock.advance(5)
    began, ended = warnings()
    assert re.fullmatch(r"pool 'test': recovered after 60\.\d s", ended)


def flap(pool: Pool[Any], adapter: FakeAdapter, clock: VirtualClock, times: int) -> None:
    """Have a creation fail, and the next one work; so many times, two a second."""
    for _ in range(times):
        adapter.fail("create", ConnectionError("cut"))
        waiting = Task(pool.acquire, 60)
        clock.until_parked(1)
        clock.advance(0.5)
        waiting.result().discard()


def test_intermittent_outage_logs_two_lines(
    make: Make, adapter: FakeAdapter, clock: VirtualClock, warnings: Warnings
) -> None:
    """A network that drops some packets."""
    pool = make()
    flap(pool, adapter, clock, 100)
    assert warnings() == ["pool 'test': cannot create a thing: ConnectionError: cut"]
    clock.advance(4)
    flap(pool, adapter, clock, 1)
    clock.advance(4.4)
    assert len(warnings()) == 1
    clock.advance(1)
    ended = warnings()[1]
    assert re.fullmatch(
        r"pool 'test': recovered after 54\.\d s; creations succeeded and failed again 100 times meanwhile", ended
    )


def test_separate_outages_log_two_lines_each(
    make: Make, adapter: FakeAdapter, clock: VirtualClock, warnings: Warnings
) -> None:
    pool = make()
    flap(pool, adapter, clock, 1)
    clock.advance(6)
    flap(pool, adapter, clock, 1)
    oversleep(clock, 6)  # the reaper comes late
    flap(pool, adapter, clock, 1)
    pool.close()
    assert [line.split(": ")[1] for line in warnings()] == [
        "cannot create a thing", "recovered after 0.0 s", "cannot create a thing", "recovered after 0.0 s",
        "cannot create a thing", "recovered after 0.0 s",
    ]  # fmt: skip


def test_pool_closed_during_an_outage_logs_no_recovery(
    make: Make, adapter: FakeAdapter, clock: VirtualClock, warnings: Warnings
) -> None:
    pool = make()
    adapter.fail("create", ConnectionError("refused"), times=9999)
    fails(pool.acquire, 0)
    pool.close()
    assert len(warnings()) == 1


def test_final_error_is_logged_once_for_all_borrowers(
    make: Make, adapter: FakeAdapter, clock: VirtualClock, warnings: Warnings
) -> None:
    pool = make()
    adapter.final = (PermissionError,)
    adapter.fail("create", PermissionError("wrong password"), times=9999)
    for _ in range(50):
        fails(pool.acquire)
        clock.advance(1)
    assert warnings() == ["pool 'test': cannot create a thing: PermissionError: wrong password"]


@pytest.mark.parametrize(
    ("held", "reason"),
    [("close", "closing a thing took over 5.0 s"), ("reset", "checking a thing took over 5.0 s")],
)
def test_hung_work_logs_one_line(
    make: Make, manual: VirtualClock, warnings: Warnings, held: str, reason: str
) -> None:
    pool = make(adapter=FakeAdapter(enforces_timeouts=False), clock=manual)
    fill(pool, 1)
    lease = pool.acquire()
    lease.discard() if held == "close" else lease.release()
    manual.advance(60)
    assert warnings() == [f"pool 'test': {reason}; its slot is free again"]


@pytest.mark.parametrize(
    ("step", "use"),
    [("validate", Pool.check), ("reset", by_release), ("close", Pool.drain)],
    ids=["validate", "reset", "close"],
)
def test_base_exception_of_an_adapter_on_a_worker_is_not_reported_as_a_bug(
    make: Make, warnings: Warnings, step: str, use: Callable[[Pool[Any]], None]
) -> None:
    """For example ``SystemExit`` of a driver, or ``gevent.Timeout``."""
    adapter = FakeAdapter(enforces_timeouts=False)
    pool = make(adapter=adapter)
    fill(pool, 1)
    adapter.fail(step, SystemExit("gave up"))
    use(pool)
    assert pool.stats()["size"] == 0
    assert not [text for text in warnings() if "bug in pooling" in text]


# -- silence ------------------------------------------------------------------------------


def test_nothing_is_logged_when_all_is_well(
    make: Make, clock: VirtualClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Not even to debug: open, lend, wait, age out, replace, resize, close."""
    caplog.set_level(logging.DEBUG)
    with make(min_size=1, max_size=2, max_lifetime=100, idle_timeout=10, leak_timeout=60) as pool:
        for _ in range(3):
            with lent_elsewhere(pool, 2) as leases:
                waiting = Task(pool.acquire)
                clock.until_parked(1)
                for lease in leases:
                    lease.release()
            waiting.result().release()
            clock.advance(50)
        pool.drain()
        pool.resize(1)
        pool.check()
        pool.pause()
        pool.resume()
    clock.advance(1000)
    assert caplog.records == []


@pytest.mark.parametrize("way", ["drain", "idle", "lifetime", "dead"])
def test_dead_or_expired_resource_causes_no_warning(
    make: Make, clock: VirtualClock, warnings: Warnings, way: str
) -> None:
    pool = make(max_lifetime=100, idle_timeout=50)
    (resource,) = fill(pool, 1)
    if way == "drain":
        pool.drain()
    elif way == "dead":
        resource.alive = False
    else:
        oversleep(clock, {"idle": 50, "lifetime": 100}[way])
    clock.advance(0)
    pool.acquire().release()
    assert resource.closed == 1
    assert warnings() == []


# -- texts from outside ---------------------------------------------------------------------


CLEAR = "\x1b[2J\nERROR: all is lost\u202e"
SHOWN = r"\x1b[2J\nERROR: all is lost\u202e"


def test_server_texts_are_escaped(
    make: Make, adapter: FakeAdapter, clock: VirtualClock, warnings: Warnings
) -> None:
    pool = make()
    adapter.fail("create", ConnectionError(CLEAR), times=9)
    told = fails(pool.acquire, 0)
    for text in [told, *warnings(), pool.stats()["down"], repr(pool)]:
        assert text.isprintable(), text
    assert r"\x1b[2J ERROR: all is lost\u202e" in told


def test_names_are_escaped(clock: VirtualClock, adapter: FakeAdapter, warnings: Warnings) -> None:
    pool: Pool[Any] = Pool(adapter=adapter, clock=clock, name=CLEAR, settings=PoolSettings(max_size=1, min_size=0))
    thread = threading.current_thread()
    before, thread.name = thread.name, CLEAR
    try:
        with pool.acquire():
            told = fails(pool.acquire, 0)
            holder = str(pool.holders()[0])
        pool.acquire()
        collect(clock)
    finally:
        thread.name = before
    manager = pooling.PoolManager()
    manager.add_pool(pool)
    summary = io.StringIO()
    manager.print_summary(summary)
    pool.metrics.print_summary(summary)
    report = str(manager.startup(0.1))
    for text in [told, holder, *warnings(), repr(pool), repr(manager), report, *summary.getvalue().split("\n")]:
        assert text.isprintable(), text
    assert SHOWN in told and SHOWN in report and SHOWN in summary.getvalue()


def test_the_holder_is_the_innermost_frame_outside_the_given_modules() -> None:
    def function(module: str, body: str, **names: object) -> Callable[[], Any]:
        namespace: dict[str, Any] = {"__name__": module, **names}
        exec(f"def call():\n    return {body}", namespace)  # noqa: S102
        return namespace["call"]  # type: ignore[no-any-return]

    between = ("between.",)
    inner = function("between.engine", "depth(between)", depth=depth_of_borrower, between=between)
    outer = function("between.orm", "inner()", inner=inner)
    assert function("shop.views", "inner()", inner=inner)() == 2
    assert function("shop.views", "outer()", outer=outer)() == 3
    assert function("betweens", "outer()", outer=outer)() == 3

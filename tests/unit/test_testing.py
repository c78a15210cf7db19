"""The tools for tests are public, so they are tested: clock, adapter, script, unpooled pool, leak fixture."""

from __future__ import annotations

import gc
import queue
from collections.abc import Callable
from typing import Any

import pytest

from pooling import Lease, Pool, PoolSettings, PoolTimeout
from pooling.testing import FakeAdapter, FakeResource, Script, UnpooledPool, VirtualClock, leaked_leases
from tests.unit.conftest import Make, Task, fill

pytest_plugins = ["pytester"]


# -- VirtualClock -------------------------------------------------------------------------


def test_time_stands_still_until_it_is_advanced() -> None:
    clock = VirtualClock(start=5)
    assert clock.now() == clock.wall() == 5
    clock.advance(2.5)
    assert clock.now() == clock.wall() == 7.5


def test_wait_returns_an_item_that_is_there() -> None:
    box: Any = queue.SimpleQueue()
    box.put("item")
    assert VirtualClock().get(box, 0) == "item"


@pytest.mark.parametrize("timeout", [0, -1])
def test_wait_with_timeout_zero_returns_at_once(timeout: float) -> None:
    with pytest.raises(queue.Empty):
        VirtualClock().get(queue.SimpleQueue(), timeout)


def test_wait_ends_with_an_item(clock: VirtualClock) -> None:
    box: Any = queue.SimpleQueue()
    waiting = Task(clock.get, box, None)
    clock.until_parked(1)
    box.put("item")
    assert waiting.result() == "item"
    clock.until_parked(0)


def test_wait_ends_when_its_time_has_passed(clock: VirtualClock) -> None:
    short, long = Task(clock.get, queue.SimpleQueue(), 5), Task(clock.get, queue.SimpleQueue(), 6)
    clock.until_parked(2)
    clock.advance(5)
    with pytest.raises(queue.Empty):
        short.result()
    clock.until_parked(1)
    clock.advance(1)
    with pytest.raises(queue.Empty):
        long.result()


def test_wait_without_a_limit_does_not_end(clock: VirtualClock) -> None:
    box: Any = queue.SimpleQueue()
    waiting = Task(clock.get, box, None)
    clock.until_parked(1)
    clock.advance(1e9)
    clock.until_parked(1)
    box.put("item")
    assert waiting.result() == "item"


@pytest.mark.parametrize("number", [0, 2])
def test_waiting_for_more_or_fewer_threads_than_come_fails(
    clock: VirtualClock, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    box: Any = queue.SimpleQueue()
    waiting = Task(clock.get, box, None)
    clock.until_parked(1)
    monkeypatch.setattr("pooling.testing.PATIENCE", 0)
    with pytest.raises(AssertionError, match=f"1 threads are parked, not {number}"):
        clock.until_parked(number)
    box.put("item")
    waiting.result()


def test_waiting_on_a_clock_that_is_not_advanced_fails(
    clock: VirtualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stuck test must not look like one whose wait has ended."""
    monkeypatch.setattr("pooling.testing.PATIENCE", 0)
    with pytest.raises(AssertionError):
        clock.get(queue.SimpleQueue(), 5)


def test_due_work_is_done_in_order_and_on_time(make: Make, clock: VirtualClock) -> None:
    """However far the clock is advanced at once."""
    seen: list[tuple[str, float]] = []

    def note(word: str) -> Callable[[object], None]:
        return lambda resource: seen.append((word, clock.now() - 1000))

    late = make(factory=object, close=note("late"), idle_timeout=60)
    early = make(factory=object, close=note("early"), idle_timeout=40)
    for pool in (late, early):
        pool.acquire().release()
    clock.advance(1000)
    assert seen == [("early", 40), ("late", 60)]


def test_interrupt_raises_in_a_parked_thread(clock: VirtualClock) -> None:
    first = Task(clock.get, queue.SimpleQueue(), 5)
    clock.until_parked(1)
    second = Task(clock.get, queue.SimpleQueue(), 5)
    clock.until_parked(2)
    clock.interrupt(KeyboardInterrupt("second"), 1)
    with pytest.raises(KeyboardInterrupt, match="second"):
        second.result()
    clock.interrupt(KeyboardInterrupt("first"))
    with pytest.raises(KeyboardInterrupt, match="first"):
        first.result()


def test_strike_raises_in_a_thread_that_reads_the_clock(clock: VirtualClock) -> None:
    clock.strike(KeyboardInterrupt("one"))
    clock.strike(KeyboardInterrupt("two"))
    for words in ("one", "two"):
        with pytest.raises(KeyboardInterrupt, match=words):
            clock.now()
    assert clock.now() == 1000


def test_slow_work_is_done_inline_by_default(make: Make) -> None:
    pool = make(min_size=2)
    pool.fill()
    assert pool.stats()["idle"] == 2


def test_slow_work_can_wait_for_the_test(make: Make, manual: VirtualClock) -> None:
    pool = make(max_size=3, clock=manual)
    pool.fill(3)
    assert manual.jobs == 3
    manual.run_job(2)
    manual.drop_job()
    manual.run_job()
    assert (manual.jobs, pool.stats()["idle"]) == (0, 2)


def test_slow_work_can_have_threads(make: Make, adapter: FakeAdapter) -> None:
    pool = make(clock=VirtualClock(workers="threads"))
    adapter.hold("create")
    pool.fill(2)
    adapter.until_held("create")
    adapter.until_held("create")  # both at the same time
    waiting = Task(pool.acquire)
    adapter.let_go("create")
    waiting.result()


@pytest.mark.parametrize("verb", [lambda clock: clock.jobs, VirtualClock.run_job, VirtualClock.drop_job])
def test_jobs_need_manual_workers(clock: VirtualClock, verb: Callable[[VirtualClock], object]) -> None:
    with pytest.raises(AssertionError, match='this needs VirtualClock\\(workers="manual"\\)'):
        verb(clock)


def test_pools_of_a_virtual_clock_need_no_reaper_thread(
    make: Make, clock: VirtualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(*args: object) -> None:
        raise AssertionError("a thread was started")

    monkeypatch.setattr("_thread.start_new_thread", forbidden)
    pool = make()
    pool.acquire().discard()
    clock.advance(1000)


# -- FakeAdapter --------------------------------------------------------------------------


def test_fake_adapter_counts_its_calls(make: Make, adapter: FakeAdapter) -> None:
    pool = make(max_size=3)
    fill(pool, 3)
    pool.acquire().discard()
    assert (adapter.made, adapter.closed, len(adapter.open), adapter.most_open) == (3, 1, 2, 3)
    assert dict(adapter.calls) == {"create": 3, "is_alive": 1, "close": 1}
    assert repr(pool.acquire().resource) == "<FakeResource 2>"


@pytest.mark.parametrize("step", ["create", "is_alive", "validate", "reset", "close", "interrupt", "abandon"])
def test_fail_applies_to_the_given_number_of_calls(adapter: FakeAdapter, step: str) -> None:
    resource = FakeResource(1)
    arguments = {"create": (), "validate": (resource, 1.0)}.get(step, (resource,))
    adapter.fail(step, OSError("first"))
    adapter.fail(step, OSError("again"), times=2)
    call = getattr(adapter, step)
    for words in ("first", "again", "again"):
        with pytest.raises(OSError, match=words):
            call(*arguments)
    call(*arguments)
    assert adapter.calls[step] == 4


def test_mend_cancels_planned_failures(adapter: FakeAdapter) -> None:
    adapter.fail("create", OSError("no"), times=99)
    adapter.mend("create")
    assert adapter.create().number == 1


def test_held_step_hangs_until_let_go(adapter: FakeAdapter) -> None:
    adapter.hold("create")
    creating = Task(adapter.create)
    adapter.until_held("create")
    assert creating.is_alive()
    assert adapter.made == 0
    adapter.let_go("create")
    assert creating.result().number == 1
    adapter.create()  # and hangs no more


@pytest.mark.parametrize(
    ("resource", "dead"), [(FakeResource(1), False), (FakeResource(2), True)], ids=["alive", "dead"]
)
def test_dead_resource_fails_its_checks(adapter: FakeAdapter, resource: FakeResource, dead: bool) -> None:
    resource.alive = not dead
    assert adapter.is_alive(resource) is not dead
    if dead:
        with pytest.raises(ConnectionError, match="dead"):
            adapter.validate(resource, 1)
    else:
        adapter.validate(resource, 1)


def test_broken_and_final_errors_can_be_configured(adapter: FakeAdapter) -> None:
    resource = adapter.create()
    assert adapter.is_broken(resource, ConnectionResetError())
    assert not adapter.is_final(PermissionError())
    adapter.broken_by, adapter.final = (ValueError,), (PermissionError,)
    assert not adapter.is_broken(resource, ConnectionResetError())
    assert adapter.is_broken(resource, ValueError())
    assert adapter.is_final(PermissionError())


# -- Script -------------------------------------------------------------------------------


def test_script_orders_its_threads() -> None:
    order: list[str] = []
    script = Script("a1", "b1", "b2", "a2")

    def actor(*steps: str) -> Callable[[], None]:
        def act() -> None:
            for step in steps:
                with script(step):
                    order.append(step)

        return act

    script.run(actor("a1", "a2"), actor("b1", "b2"))
    assert order == ["a1", "b1", "b2", "a2"]


def test_pass_by_ends_a_step_when_it_begins(make: Make, clock: VirtualClock) -> None:
    """For a step that will block, as in the docstring."""
    pool = make(max_size=1)
    script = Script("A takes", "B asks", "A returns")

    def a() -> None:
        with script("A takes"):
            lease = pool.acquire()
        with script("A returns"):
            clock.until_parked(1)
            lease.release()

    def b() -> None:
        script.pass_by("B asks")
        with pool.acquire():
            pass

    script.run(a, b)
    assert pool.stats()["idle"] == 1


def test_script_raises_the_error_of_an_actor() -> None:
    script = Script("only")

    def actor() -> None:
        with script("only"):
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        script.run(actor)


def test_script_fails_if_a_step_is_left() -> None:
    script = Script("one", "two", "three")
    with pytest.raises(AssertionError, match=r"not taken: \['two', 'three'\]"):
        script.run(lambda: script.pass_by("one"))


def test_error_names_a_step_whose_turn_never_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pooling.testing.PATIENCE", 0)
    script = Script("one", "two")
    with pytest.raises(AssertionError, match="step 'two' never had its turn"):
        script.pass_by("two")


# -- UnpooledPool -------------------------------------------------------------------------


def unpooled(clock: VirtualClock, adapter: FakeAdapter, **settings: Any) -> UnpooledPool[FakeResource]:
    return UnpooledPool(adapter=adapter, settings=PoolSettings(**settings), clock=clock, name="test")


def test_unpooled_pool_creates_a_resource_for_each_lease(clock: VirtualClock, adapter: FakeAdapter) -> None:
    pool = unpooled(clock, adapter, min_size=5)
    for number in (1, 2, 3):
        with pool.acquire() as resource:
            assert resource.number == number
            assert len(adapter.open) == 1
        assert resource.closed == 1
    pool.open()
    assert adapter.made == 3


def test_unpooled_pool_is_bounded_and_fair(clock: VirtualClock, adapter: FakeAdapter) -> None:
    pool = unpooled(clock, adapter, max_size=2)
    one, two = pool.acquire(), pool.acquire()
    with pytest.raises(PoolTimeout):
        pool.acquire(0)
    waiting = Task(pool.acquire)
    clock.until_parked(1)
    one.release()
    assert waiting.result().resource.number == 3
    two.release()


def test_unpooled_pool_takes_the_arguments_of_a_pool() -> None:
    made: list[object] = []
    pool: Pool[object] = UnpooledPool(object, close=made.append, clock=VirtualClock())
    assert isinstance(pool, Pool)
    assert repr(pool).startswith("<UnpooledPool 'pool-")
    with pool.acquire() as resource:
        pass
    assert made == [resource]


# -- leaked leases ------------------------------------------------------------------------


def on_system_clock() -> Pool[FakeResource]:
    return Pool(adapter=FakeAdapter(blocking=False), name="real")


def test_unreleased_lease_is_reported_with_its_place() -> None:
    pool = on_system_clock()
    with leaked_leases() as found:
        lease = pool.acquire()
        pool.acquire().release()
    (text,) = found
    assert text.startswith("pool 'real': still held by test_testing.py:")
    assert "test_unreleased_lease_is_reported_with_its_place() in MainThread" in text
    lease.release()


def test_dropped_lease_is_reported() -> None:
    pool = on_system_clock()
    with leaked_leases() as found:
        pool.acquire()
    assert found  # as held or as dropped, depending on whether the reaper has run


def test_lease_acquired_before_the_block_is_not_reported() -> None:
    pool = on_system_clock()
    lease = pool.acquire()
    with leaked_leases() as found:
        pool.acquire().release()
    assert found == []
    lease.release()


def test_right_lease_among_many_is_reported(make: Make, clock: VirtualClock) -> None:
    def of_before() -> Lease[Any]:
        return pool.acquire()

    def of_the_block() -> Lease[Any]:
        return pool.acquire()

    pool = make(max_size=40)
    before = []
    for _ in range(30):
        before.append(of_before())
        clock.advance(1)
    with leaked_leases() as found:
        left = []
        for _ in range(5):
            left.append(of_the_block())
            clock.advance(1)
            before.append(of_before())
            before.pop().release()
    assert [text for text in found if "of_before" in text] == []
    assert sorted(text.rpartition(" for ")[2] for text in found) == ["1.0 s", "2.0 s", "3.0 s", "4.0 s", "5.0 s"]
    for lease in before + left:
        lease.release()


def test_released_leases_are_not_reported() -> None:
    with leaked_leases() as found:
        pool = on_system_clock()
        with pool.acquire(), pool.acquire():
            pass
    assert found == []


def test_pool_made_in_the_block_is_checked_too() -> None:
    with leaked_leases() as found:
        pool = on_system_clock()
        lease = pool.acquire()
    assert len(found) == 1
    lease.release()


def test_pool_on_a_virtual_clock_is_checked_too(make: Make) -> None:
    with leaked_leases() as found:
        lease = make().acquire()
    assert len(found) == 1
    lease.release()


def test_fixture_fails_a_test_that_does_not_release(pytester: pytest.Pytester) -> None:
    pytester.makeconftest("from pooling.testing import no_leaked_leases")
    pytester.makepyfile(
        """
        import pytest
        from pooling import Pool
        from pooling.testing import FakeAdapter

        pytestmark = pytest.mark.usefixtures("no_leaked_leases")
        pool = Pool(adapter=FakeAdapter(blocking=False), name="mine")
        kept = []

        def test_clean():
            with pool.acquire():
                pass

        def test_leaking():
            kept.append(pool.acquire())

        def test_after_it():
            with pool.acquire():
                pass
        """
    )
    result = pytester.runpytest_inprocess("-p", "no:cacheprovider")
    result.assert_outcomes(passed=3, errors=1)
    result.stdout.fnmatch_lines(["*pool 'mine': still held by *:* test_leaking() in MainThread*"])
    gc.collect()


def test_module_works_without_pytest(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util
    import sys

    import pooling.testing

    monkeypatch.setitem(sys.modules, "pytest", None)
    spec = importlib.util.spec_from_file_location("pooling._testing_again", pooling.testing.__file__)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    module.__package__ = "pooling"
    spec.loader.exec_module(module)
    assert hasattr(module, "VirtualClock")
    assert not hasattr(module, "no_leaked_leases")

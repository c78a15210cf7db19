"""A pool with lanes, as its users see it; known interleavings by name; interrupted anywhere.

`test_lanes_machine` has the decisions without threads.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import sys
import threading
import time
from collections import Counter
from typing import Any

import pytest

from pooling import HTTPPool, Lane, Pool, PoolClosed, PoolSettings, PoolTimeout, TooManyWaiting, from_url, lane
from pooling.core import lanes as core_lanes
from pooling.core.lanestate import LaneState
from pooling.core.sizing import limit_size
from pooling.lanes import current_lane
from pooling.testing import FakeAdapter, Script, VirtualClock
from tests.unit import test_interruptions
from tests.unit.conftest import Make, Task, entry_of, lent_elsewhere, maintenance_of
from tests.unit.test_interruptions import Scene, strike_everywhere

LANES = {"health": Lane(reserve=1), "web": Lane(weight=4), "batch": Lane(weight=1, most=2)}


def state_of(pool: Pool[Any]) -> LaneState:
    assert isinstance(pool.engine.state, LaneState)
    return pool.engine.state


def waiting(pool: Pool[Any], clock: VirtualClock, name: str | None, parked: int, **how: Any) -> Task:
    """Start a thread that acquires in a lane; return when so many threads wait."""
    task = Task(lambda: pool.acquire(lane=name, **how))
    clock.until_parked(parked)
    return task


# -- given to the pool ------------------------------------------------------------------


@pytest.mark.parametrize(
    "given",
    [
        {"health": Lane(reserve=1), "web": Lane(weight=4), "batch": Lane(most=5)},
        {"health": {"reserve": 1}, "web": {"weight": 4}, "batch": {"most": 5}},
        "health:reserve=1,web:weight=4,batch:weight=1:most=5",
        " health:reserve=1, web:weight=4.0:most=none, batch:most=5 ",
    ],
)
def test_lanes_in_each_form(given: Any) -> None:
    made = PoolSettings(lanes=given)
    assert made.lanes == {
        "health": Lane(reserve=1), "web": Lane(weight=4), "batch": Lane(most=5), "default": Lane()
    }
    assert hash(made) == hash(PoolSettings(lanes=given))
    assert PoolSettings.from_mapping({"lanes": given}) == made


def test_lanes_in_a_url_and_the_environment() -> None:
    pool = from_url("sqlite:///:memory:?max_size=5&lanes=web:weight=4,batch:most=2")
    assert pool.settings.lanes == {"web": Lane(weight=4), "batch": Lane(most=2), "default": Lane()}
    pool.close()
    made = PoolSettings.from_env("DB_", {"DB_LANES": "batch:most=2"})
    assert made.lanes == {"batch": Lane(most=2), "default": Lane()}


@pytest.mark.parametrize(
    ("given", "kind", "rule"),
    [
        (3, TypeError, "must be a mapping of Lane objects by name or None"),
        ({}, TypeError, "must be a mapping of Lane objects by name, or None"),
        ({"a b": Lane()}, ValueError, "A-Z a-z 0-9"),
        ({"a": 3}, TypeError, r"must be Lane objects by name \(a is 3\)"),
        ({"a": {"size": 3}}, ValueError, r"reserve, weight and most \(a has 'size'\)"),
        ({"a": {"weight": "3"}}, TypeError, r"\(a: Lane.weight must be a number, not '3'\)"),
        ("a:weight", ValueError, "written as name:weight=4"),
        ("a,a", ValueError, "a is given twice"),
        ({f"lane{n}": Lane() for n in range(33)}, ValueError, "at most 32 lanes"),
        ({"a": Lane(reserve=6), "b": Lane(reserve=5)}, ValueError, r"at most max_size \(10\) .*\(default\): a 6, b 5"),
        ({"a": Lane(reserve=10)}, ValueError, "leave a slot for the lanes without"),
        ({"a": Lane(reserve=9), "default": Lane(reserve=2)}, ValueError, "at most max_size"),
    ],
)
def test_bad_lanes(given: Any, kind: type[Exception], rule: str) -> None:
    with pytest.raises(kind, match=rule):
        PoolSettings(lanes=given)


@pytest.mark.parametrize(
    ("fields", "kind", "rule"),
    [
        ({"weight": 0}, ValueError, "Lane.weight must be above 0, not 0"),
        ({"weight": float("nan")}, ValueError, "Lane.weight must be above 0, not nan"),
        ({"weight": True}, TypeError, "Lane.weight must be a number"),
        ({"reserve": -1}, ValueError, "Lane.reserve must be at least 0, not -1"),
        ({"reserve": 1.0}, TypeError, "Lane.reserve must be a whole number"),
        ({"most": 0}, ValueError, "Lane.most must be at least 1, not 0"),
        ({"reserve": 3, "most": 2}, ValueError, r"Lane.reserve must be at most most \(2\), not 3"),
    ],
)
def test_bad_lane(fields: dict[str, Any], kind: type[Exception], rule: str) -> None:
    with pytest.raises(kind, match=rule):
        Lane(**fields)


def test_every_place_may_be_reserved_if_every_lane_has_one() -> None:
    PoolSettings(max_size=3, lanes={"a": Lane(reserve=2), "default": Lane(reserve=1)})


def test_lanes_can_be_changed_and_added(make: Make, clock: VirtualClock) -> None:
    pool = make(max_size=3, lanes={"batch": Lane(most=1)})
    pool.acquire(lane="batch")
    first, second = (waiting(pool, clock, "batch", number) for number in (1, 2))
    pool.reconfigure(lanes={"batch": Lane(most=2), "web": Lane(weight=4)})
    assert first.result() and pool.stats()["waiting"] == 1
    pool.reconfigure(lanes={"batch": Lane(), "web": Lane()})
    assert second.result()


def test_lanes_cannot_be_removed_or_begun_later(make: Make) -> None:
    pool, plain = make(lanes={"batch": Lane()}), make()
    for lanes in (None, {"web": Lane()}):
        with pytest.raises(ValueError, match="can be changed and added, not removed: batch"):
            pool.reconfigure(lanes=lanes)
    with pytest.raises(ValueError, match="must be given when the pool is made"):
        plain.reconfigure(lanes={"web": Lane()})
    assert plain.settings.lanes is None and pool.settings.lanes == {"batch": Lane(), "default": Lane()}


def test_resize_below_the_reserves_is_refused(make: Make) -> None:
    pool = make(max_size=5, lanes={"a": Lane(reserve=3)})
    with pytest.raises(ValueError, match=r"must reserve at most max_size \(3\) slots together.*a 3"):
        pool.resize(3)
    pool.resize(4)
    assert pool.stats()["max_size"] == 4


def test_limit_below_the_reserves_is_kept_and_reported(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    """A budget comes first. The lanes declared last lose their places, and one is left for all others."""
    pool = make(max_size=6, lanes={"a": Lane(reserve=2), "b": Lane(reserve=3)})
    caplog.set_level(logging.WARNING, "pooling")
    limit_size(pool.engine, "budget", 3)
    assert {name: each["reserve"] for name, each in pool.stats()["lanes"].items()} == {"a": 2, "b": 0, "default": 0}
    assert "limited to 3, so 3 reserved slots of its lanes are given up" in caplog.text
    limit_size(pool.engine, "budget", 3)
    assert len(caplog.records) == 1
    limit_size(pool.engine, "budget", None)
    assert {name: each["reserve"] for name, each in pool.stats()["lanes"].items()} == {"a": 2, "b": 3, "default": 0}
    pool.resize(6)


def test_pools_that_have_no_lanes_say_so() -> None:
    with pytest.raises(ValueError, match="lanes must be None for an HTTP pool"):
        HTTPPool(lanes={"web": Lane()})
    with pytest.raises(ValueError, match="lanes must be None for a SQLAlchemy engine"):
        from_url("sqlalchemy+sqlite:///file.db?lanes=web:weight=2")
    with HTTPPool() as pool, pytest.raises(ValueError, match="lanes must be None for an HTTP pool"):
        pool.reconfigure(lanes={"web": Lane()})


# -- the lane of an acquire -----------------------------------------------------------------


def in_use(pool: Pool[Any]) -> dict[str, int]:
    return {name: each["in_use"] for name, each in pool.stats()["lanes"].items() if each["in_use"]}


def test_lane_of_an_acquire(make: Make) -> None:
    pool = make(max_size=9, lanes=LANES)
    leases = [pool.acquire(), pool.acquire(lane="web")]
    with lane("batch"):
        leases += [pool.acquire(), pool.acquire(lane="health")]
        with lane("unknown to this pool"):
            leases.append(pool.acquire())
        assert current_lane() == "batch"
    assert current_lane() is None
    assert in_use(pool) == {"default": 2, "web": 1, "batch": 1, "health": 1}
    for lease in leases:
        lease.release()
    assert in_use(pool) == {}


def test_unknown_lane_is_refused(make: Make) -> None:
    pool = make(lanes={"batch": Lane()})
    with pytest.raises(ValueError, match="lane must be one of batch, default, not 'bach'"):
        pool.acquire(lane="bach")
    with pytest.raises(TypeError, match="lane must be the name of a lane, not 3"):
        pool.acquire(lane=3)  # type: ignore[arg-type]
    assert pool.stats()["size"] == 0


def test_pool_without_lanes_ignores_them(make: Make) -> None:
    """So that code that names a lane runs with any pool."""
    pool = make()
    with lane("batch"), pool.acquire(lane="web"), pool.acquire(lane="web"):
        pass
    assert "lanes" not in pool.stats() and "lanes" not in pool.metrics.to_dict()


def test_pool_without_lanes_has_no_part_of_them(make: Make) -> None:
    """The fast path tests the wait queue itself, and pushes with the stack's own method."""
    pool = make()
    fast, state = pool.engine.fast, pool.engine.state
    assert not isinstance(state, LaneState) and fast.waiters is state.waiters
    assert fast.push == state.idle.append


def test_decorated_function() -> None:
    @lane("batch")
    def view(seen: str) -> str | None:
        """Documented."""
        return f"{seen} {current_lane()}"

    @lane("web")
    async def coroutine() -> str | None:
        await asyncio.sleep(0)
        return current_lane()

    assert view("in") == "in batch" and current_lane() is None
    assert (view.__name__, view.__doc__) == ("view", "Documented.")
    assert asyncio.run(coroutine()) == "web" and current_lane() is None


def test_one_lane_object_for_many_threads() -> None:
    batch, inside = lane("batch"), threading.Barrier(2)

    def work() -> str | None:
        with batch:
            inside.wait(20)
            with batch:
                inside.wait(20)
            return current_lane()

    assert [task.result() for task in (Task(work), Task(work))] == ["batch", "batch"]
    with pytest.raises(ZeroDivisionError), batch:
        1 / 0  # noqa: B018
    assert current_lane() is None


def test_bad_decorations() -> None:
    with pytest.raises(TypeError, match="must be the name of a lane, not <function"):
        lane(lambda: None)  # type: ignore[arg-type]  # used without its name

    def stream() -> Any:
        yield

    with pytest.raises(TypeError, match=r"stream\(\) is a generator: use 'with lane\('batch'\):' within it"):
        lane("batch")(stream)


# -- waits -----------------------------------------------------------------------------------


def test_batch_saturated_leaves_web_its_place(make: Make, clock: VirtualClock) -> None:
    pool = make(max_size=3, lanes={"web": Lane(), "batch": Lane(most=2)})
    leases = [pool.acquire(lane="batch") for _ in range(2)]
    late = waiting(pool, clock, "batch", 1)
    with pool.acquire(lane="web", timeout=0), pytest.raises(PoolTimeout):
        pool.acquire(lane="batch", timeout=0)
    assert pool.stats()["idle"] == 1 and pool.stats()["waiting"] == 1  # an idle one that batch may not use
    leases[0].release()
    assert late.result()


def test_reserved_place_is_given_at_once(make: Make, clock: VirtualClock) -> None:
    pool = make(max_size=3, lanes=LANES)
    leases = [pool.acquire(lane="web") for _ in range(2)]
    late = waiting(pool, clock, "web", 1)
    pool.acquire(lane="health", timeout=0.5).release()
    pool.acquire(lane="health", timeout=0).release()
    assert pool.stats()["waiting"] == 1
    leases[0].release()
    assert late.result()


def test_no_audit_repair_because_of_a_reserved_place(make: Make, clock: VirtualClock) -> None:
    """An idle resource beside a waiter is right, where its lane may not use it."""
    pool = make(max_size=3, lanes=LANES, acquire_timeout=60)
    leases = [pool.acquire(lane="web") for _ in range(2)]
    pool.acquire(lane="health").release()
    late = waiting(pool, clock, "web", 1)
    for _ in range(5):
        clock.advance(1)
    assert pool.metrics.snapshot().audit_repairs == 0 and pool.stats()["idle"] == 1
    leases[0].release()
    assert late.result()


def test_timeout_names_the_lane_and_the_counts(make: Make, clock: VirtualClock) -> None:
    pool = make(max_size=4, lanes=LANES)
    held = [pool.acquire(lane=name) for name in ("web", "batch", "batch")]
    late = waiting(pool, clock, "web", 1)
    with pytest.raises(PoolTimeout) as raised:
        pool.acquire(lane="batch", timeout=0)
    text = str(raised.value)
    assert "no thing at once in lane 'batch' (3/4 in use, 0 idle, 1 waiting; lanes: health 1 reserved; " in text
    assert "web 1 in use, 1 waiting; batch 2/2 in use, 0 waiting)" in text
    assert ", lane batch" in text  # the holders
    assert "lanes: " in repr(pool) and "lanes: " in str(pool.exhaustion())
    held[0].release()
    late.result()


def test_max_waiting_holds_for_each_lane(make: Make, clock: VirtualClock) -> None:
    """A lane with a long queue has no other lane refused."""
    pool = make(max_size=2, max_waiting=1, lanes={"web": Lane(), "batch": Lane()})
    leases = [pool.acquire(lane="batch") for _ in range(2)]
    tasks = [waiting(pool, clock, "batch", 1)]
    with pytest.raises(TooManyWaiting, match="the wait queue of lane 'batch' is full .*batch 2 in use, 1 waiting"):
        pool.acquire(lane="batch")
    tasks.append(waiting(pool, clock, "web", 2))
    assert {name: each.refusals for name, each in (pool.metrics.snapshot().lanes or {}).items() if each.refusals} == {
        "batch": 1
    }
    for lease in leases:
        lease.release()
    for task in tasks:
        task.result()


def test_dead_resource_is_replaced_within_the_lane(make: Make, clock: VirtualClock, adapter: FakeAdapter) -> None:
    """The borrower keeps its place, its lane no lease of the dead one, and it is counted once."""
    pool = make(max_size=2, lanes={"batch": Lane(most=1)})
    with pool.acquire(lane="batch") as resource:
        pass
    resource.alive = False
    with pool.acquire(lane="batch") as other:
        assert other is not resource and in_use(pool) == {"batch": 1}
    assert pool.stats()["idle"] == 1
    lanes = pool.metrics.snapshot().lanes
    assert lanes is not None and lanes["batch"].acquired == 2 and in_use(pool) == {}


def test_discarded_detached_and_dropped_leases_end_in_their_lane(
    make: Make, clock: VirtualClock, adapter: FakeAdapter
) -> None:
    pool = make(max_size=2, lanes={"batch": Lane(most=1)})
    pool.acquire(lane="batch").discard()
    adapter.close(pool.acquire(lane="batch", timeout=0.1).detach())
    pool.acquire(lane="batch", timeout=0.1)  # dropped
    gc.collect()
    clock.settle()
    pool.acquire(lane="batch", timeout=0.1).release()
    assert in_use(pool) == {}


def test_reset_on_a_worker_ends_the_lease(make: Make, manual: VirtualClock) -> None:
    pool = make(clock=manual, adapter=FakeAdapter(enforces_timeouts=False), max_size=2, lanes={"batch": Lane(most=1)},
                validate_on_acquire=False)  # fmt: skip
    pool.fill(2)
    while manual.jobs:
        manual.run_job()
    lease = pool.acquire(lane="batch")
    lease.release()
    assert in_use(pool) == {} and pool.stats()["checking"] == 1
    pool.acquire(lane="batch", timeout=0)


def test_close_fails_the_waiters_of_each_lane(make: Make, clock: VirtualClock) -> None:
    pool = make(max_size=3, lanes=LANES)
    held = [pool.acquire(lane="web"), pool.acquire(lane="batch")]
    tasks = [waiting(pool, clock, "web", 1), waiting(pool, clock, "batch", 2)]
    pool.close(timeout=0)
    for task in tasks:
        with pytest.raises(PoolClosed):
            task.result()
    for lease in held:
        lease.release()
    with pytest.raises(PoolClosed):
        pool.acquire(lane="health")
    clock.settle()
    assert pool.stats()["size"] == 0


def test_drained_resource_is_closed_at_its_release(make: Make, adapter: FakeAdapter, clock: VirtualClock) -> None:
    pool = make(max_size=3, lanes=LANES)
    lease = pool.acquire(lane="web")
    pool.drain()
    lease.release()
    clock.settle()
    assert not adapter.open and pool.stats()["size"] == 0


def test_pause_and_resume(make: Make, clock: VirtualClock) -> None:
    pool = make(max_size=3, lanes=LANES)
    pool.acquire(lane="web").release()
    pool.pause()
    tasks = [waiting(pool, clock, "web", 1), waiting(pool, clock, "health", 2)]
    pool.resume()
    assert all(task.result() for task in tasks)


# -- what is seen ----------------------------------------------------------------------------


def test_stats_and_metrics_by_lane(make: Make, clock: VirtualClock) -> None:
    pool = make(max_size=3, lanes=LANES)
    with pool.acquire(lane="web"):
        late = waiting(pool, clock, "batch", 1) if pool.stats()["idle"] else None
        assert late is None
        with pool.acquire(lane="batch"):
            waiter = waiting(pool, clock, "batch", 1)
            clock.advance(2)
            assert pool.stats()["lanes"]["batch"] == {
                "in_use": 1, "waiting": 1, "reserve": 0, "weight": 1, "most": 2
            }
        lease = waiter.result()
        with pytest.raises(PoolTimeout):
            pool.acquire(lane="web", timeout=0)
        lease.release()
    lanes = pool.metrics.snapshot().lanes or {}
    assert list(lanes) == ["health", "web", "batch", "default"]
    assert (lanes["batch"].acquired, lanes["batch"].wait.max, lanes["web"].timeouts) == (2, 2.0, 1)
    assert pool.metrics.to_dict()["lanes"]["batch"]["wait"]["max"] == 2.0
    assert sum(each.acquired for each in lanes.values()) == pool.metrics.snapshot().acquired
    pool.metrics.reset()
    assert not any(each.acquired or each.timeouts for each in (pool.metrics.snapshot().lanes or {}).values())


def test_holder_has_its_lane(make: Make) -> None:
    pool = make(lanes={"batch": Lane()})
    with pool.acquire(lane="batch"):
        (holder,) = pool.holders()
    assert holder.lane == "batch" and str(holder).endswith(", lane batch")


# -- health checks -----------------------------------------------------------------------------


def test_probe_uses_the_lane_health(make: Make, adapter: FakeAdapter, clock: VirtualClock) -> None:
    """Its reserved place is for it, however busy the pool is."""
    pool = make(max_size=3, lanes=LANES)
    leases = [pool.acquire(lane="web") for _ in range(2)]
    assert pool.probe(timeout=1) is None and pool.probe(timeout=1) is None
    assert adapter.calls["validate"] == 2 and in_use(pool) == {"web": 2}
    health = pool.acquire(lane="health")
    clock.advance(2)
    assert str(pool.probe(timeout=1)).startswith("exhausted: 3 of 3 in use")
    health.release()
    leases.clear()


def test_probe_without_a_lane_of_its_own_takes_no_reserved_place(make: Make) -> None:
    pool = make(max_size=3, lanes={"web": Lane(), "other": Lane(reserve=1)})
    leases = [pool.acquire(lane="web") for _ in range(2)]
    pool.acquire(lane="other").release()
    assert pool.stats()["idle"] == 1
    assert str(pool.probe(timeout=1)).startswith("exhausted: 2 of 3 in use")
    leases.pop().release()
    assert pool.probe(timeout=1) is None


# -- deadlocks ---------------------------------------------------------------------------------


def deadlocks(caplog: pytest.LogCaptureFixture) -> int:
    return sum(getattr(record, "pooling_event", "") == "deadlock" for record in caplog.records)


def test_deadlock_at_the_limit_of_a_lane(
    make: Make, clock: VirtualClock, caplog: pytest.LogCaptureFixture
) -> None:
    """A thread that holds the lane's last place and waits for another, although other lanes work and have places."""
    pool = make(max_size=4, lanes={"batch": Lane(most=1)})
    caplog.set_level(logging.WARNING, "pooling")
    with lent_elsewhere(pool), pool.acquire(lane="batch"), pytest.raises(PoolTimeout):
        task = Task(clock.until_parked, 1)
        threading.Thread(target=lambda: (clock.until_parked(1), clock.advance(10)), daemon=True).start()
        pool.acquire(lane="batch")
    task.result()
    assert deadlocks(caplog) == 1


def test_no_deadlock_while_a_holder_can_be_served(
    make: Make, clock: VirtualClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Both places of batch are held by threads that wait, but one of them waits for web, which will release one."""
    pool = make(max_size=3, lanes={"web": Lane(), "batch": Lane(most=2)})
    caplog.set_level(logging.WARNING, "pooling")
    mine = pool.acquire(lane="web")

    def hold_and_wait(second: str) -> None:
        with pool.acquire(lane="batch"):
            both.wait(20)
            if second == "batch":
                clock.until_parked(1)
            with pool.acquire(lane=second):
                pass

    both = threading.Barrier(2)
    tasks = [Task(hold_and_wait, "web"), Task(hold_and_wait, "batch")]
    clock.until_parked(2)
    assert deadlocks(caplog) == 0
    mine.release()
    for task in tasks:
        task.result()


def test_deadlock_across_lanes(make: Make, clock: VirtualClock, caplog: pytest.LogCaptureFixture) -> None:
    """Each of two threads holds one and waits for another; the reserved place that is idle helps neither."""
    pool = make(max_size=3, lanes={"health": Lane(reserve=1), "web": Lane(), "batch": Lane()})
    pool.acquire(lane="health").release()
    caplog.set_level(logging.WARNING, "pooling")
    started = threading.Barrier(2)

    def both(name: str, other: str) -> None:
        with pool.acquire(lane=name):
            started.wait(20)
            with pytest.raises(PoolTimeout):
                pool.acquire(lane=other, timeout=5)
            started.wait(20)

    tasks = [Task(both, "web", "batch"), Task(both, "batch", "web")]
    clock.until_parked(2)
    assert deadlocks(caplog) == 1
    clock.advance(5)
    for task in tasks:
        task.result()


# -- interleavings -----------------------------------------------------------------------------


def nothing_lost(pool: Pool[Any], clock: VirtualClock) -> None:
    """P8: every place of every lane can be used again."""
    gc.collect()
    clock.settle()
    assert in_use(pool) == {} and pool.stats()["waiting"] == 0
    assert not pool.engine.state.waiters.threads
    most = [state_of(pool).lane(name).settings.most for name in ("web", "batch")]
    for name, limit in zip(("web", "batch"), most):
        free = pool.settings.max_size - sum(line.reserve for line in state_of(pool).lanes.by_name.values())
        leases = [pool.acquire(lane=name, timeout=0.01) for _ in range(min(limit or 99, free))]
        with pytest.raises(PoolTimeout):
            pool.acquire(lane=name, timeout=0)
        for lease in leases:
            lease.release()
    pool.close()
    clock.settle()
    assert pool.stats()["size"] == 0


def test_release_meets_timeout_in_another_lane(make: Make, clock: VirtualClock) -> None:
    """The place that a release frees goes to web while the waiter of batch leaves: neither loses anything."""
    pool = make(max_size=2, lanes={"web": Lane(), "batch": Lane(most=1)})
    batch, other = pool.acquire(lane="batch"), pool.acquire(lane="web")
    served: list[str] = []

    def wait(name: str, timeout: float) -> None:
        try:
            with pool.acquire(lane=name, timeout=timeout):
                served.append(name)
        except PoolTimeout:
            served.append(f"no {name}")

    original, leases = clock.get, [other]
    tasks: list[Task] = []

    def get(box: Any, timeout: float | None) -> Any:
        try:
            return original(box, timeout)
        finally:
            if threading.current_thread() is tasks[0] and leases:
                leases.pop().release()  # its time is up, and it has not left the queue yet

    pool.engine.clock.get = get
    for number, (name, timeout) in enumerate([("batch", 5), ("web", 60)], 1):
        tasks.append(Task(wait, name, timeout))
        clock.until_parked(number)
    clock.advance(5)
    for task in tasks:
        task.result()
    assert sorted(served) == ["no batch", "web"]
    batch.release()
    nothing_lost(pool, clock)


def test_limit_reached_while_a_waiter_leaves(make: Make, clock: VirtualClock) -> None:
    """The first waiter of batch times out as the lane's place is given to it: it takes it, or the second one does."""
    pool = make(max_size=2, lanes={"web": Lane(), "batch": Lane(most=1)})
    lease = pool.acquire(lane="batch")
    served: list[int] = []

    def wait(number: int, timeout: float) -> None:
        with pool.acquire(lane="batch", timeout=timeout):
            served.append(number)

    original, leases = clock.get, [lease]
    tasks: list[Task] = []

    def get(box: Any, timeout: float | None) -> Any:
        try:
            return original(box, timeout)
        finally:
            if threading.current_thread() is tasks[0] and leases:
                leases.pop().release()

    pool.engine.clock.get = get
    for number, timeout in ((1, 5), (2, 60)):
        tasks.append(Task(wait, number, timeout))
        clock.until_parked(number)
    clock.advance(5)
    for task in tasks:
        task.result()
    assert served == [1, 2]
    nothing_lost(pool, clock)


def test_release_while_the_lane_looks_for_an_idle_one(make: Make, clock: VirtualClock) -> None:
    """A release between the look at the idle stack and the entry into the queue is seen (P8)."""
    pool = make(max_size=1, lanes={"web": Lane(), "batch": Lane()})
    lease = pool.acquire(lane="web")
    script = Script("finds nothing", "comes back", "is served")
    lanes = state_of(pool).lanes
    original = lanes.join

    def join(waiter: Any) -> None:
        script.pass_by("finds nothing")
        with script("is served"):
            original(waiter)

    lanes.join = join  # type: ignore[method-assign]

    def give_back() -> None:
        with script("comes back"):
            token = entry_of(pool, lease.resource)()
            assert token is not None
            state_of(pool).give_back(token)  # without the lock, as a release begins

    script.run(lambda: pool.acquire(lane="batch", timeout=5).release(), give_back)
    lanes.join = original  # type: ignore[method-assign]
    nothing_lost(pool, clock)


def test_hand_over_to_a_waiter_that_left_frees_the_limit(make: Make, clock: VirtualClock) -> None:
    """An interrupted hand-over leaves a stale head: it is skipped, and its lane keeps no lease."""
    pool = make(max_size=2, lanes={"web": Lane(), "batch": Lane(most=1)})
    lease = pool.acquire(lane="batch")
    late = waiting(pool, clock, "batch", 1)
    stale = state_of(pool).lane("batch").queue[0]
    with pool.engine.lock:
        stale.given = True
    lease.release()
    assert in_use(pool) == {}
    clock.interrupt(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        late.result()
    nothing_lost(pool, clock)


def test_forked_state_has_the_lanes(make: Make) -> None:
    """As in a child, which begins with an empty state: its lanes are new, and no lease is counted."""
    pool = make(max_size=3, lanes=LANES)
    lease = pool.acquire(lane="batch")
    before = pool.engine.state
    maintenance_of(pool).after_fork()
    assert pool.engine.state is not before and in_use(pool) == {}
    with pool.acquire(lane="batch"), pool.acquire(lane="batch"):
        assert in_use(pool) == {"batch": 2}
    assert pool.engine.fast.push == state_of(pool).give_back
    del lease


# -- interrupted anywhere --------------------------------------------------------------------------


class Laned(Scene):
    settings = {"lanes": {"web": Lane(weight=4), "batch": Lane(most=1)}}


class TakeIdle(Laned):
    """An acquire of an idle resource, and its release."""

    def prepare(self) -> None:
        self.fill(2)

    def act(self) -> None:
        with self.pool.acquire(lane="batch"):
            pass


class TakeDead(TakeIdle):
    def prepare(self) -> None:
        super().prepare()
        for resource in self.adapter.open:
            resource.alive = False

    def act(self) -> None:
        self.pool.acquire(timeout=60, lane="batch").release()


class LanesWaiting(Laned):
    """A lane is at its limit, and two borrowers of another wait."""

    def prepare(self) -> None:
        self.fill(2)
        self.leases = [self.pool.acquire(lane="batch"), self.pool.acquire(lane="web")]
        self.borrow("first")
        self.borrow("second")

    def let_go(self) -> None:
        self.leases.clear()


class ReleaseWithLanes(LanesWaiting):
    def act(self) -> None:
        self.leases[0].release()
        self.leases[1].release()


class DiscardWithLanes(LanesWaiting):
    def act(self) -> None:
        self.leases.pop().discard()


class WaiterAtTheLimit(LanesWaiting):
    def act(self) -> None:
        try:
            self.pool.acquire(timeout=1, lane="batch")
        except PoolTimeout:
            pass


class ChangeLanes(LanesWaiting):
    def act(self) -> None:
        self.pool.reconfigure(lanes={"web": Lane(most=2), "batch": Lane(weight=2)})
        self.leases[1].release()


_known: set[object] = set()  # points that were interrupted


@pytest.mark.parametrize(
    "kind", [TakeIdle, TakeDead, ReleaseWithLanes, DiscardWithLanes, WaiterAtTheLimit, ChangeLanes],
    ids=lambda kind: kind.__name__,
)  # fmt: skip
def test_interrupted_anywhere(
    kind: type[Scene], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As in `test_interruptions`, in the code of the lanes; and no lane counts a lease that has ended."""
    caplog.set_level("CRITICAL", "pooling")
    hook, whole, struck = sys.unraisablehook, test_interruptions.whole, test_interruptions.Struck
    monkeypatch.setattr(sys, "unraisablehook", lambda it: isinstance(it.exc_value, struck) or hook(it))

    def whole_with_lanes(scene: Scene) -> None:
        whole(scene)
        lanes = state_of(scene.pool).lanes
        assert not any(line.lent or line.queue for line in lanes.by_name.values()) and not lanes.returned

    monkeypatch.setattr(test_interruptions, "whole", whole_with_lanes)
    monkeypatch.setattr(test_interruptions, "_CORE", core_lanes.__file__)  # the rest is interrupted there
    gc.collect()
    gc.freeze()
    try:
        alike = kind in (TakeIdle, TakeDead, WaiterAtTheLimit)  # no other waiter is served meanwhile
        points = strike_everywhere(kind, _known if alike else frozenset(), monkeypatch)
        _known.update(points if alike else ())
    finally:
        gc.unfreeze()


# -- threads ---------------------------------------------------------------------------------------


def saturate(pool: Pool[Any], lanes: dict[str, tuple[int, float]], seconds: float) -> dict[str, float]:
    """Have threads of each lane hold leases, each for so long; return the connection time of each lane."""
    held: Counter[str] = Counter()
    lock, begun = threading.Lock(), time.monotonic() + 0.5
    end = begun + seconds

    def work(name: str, lasting: float) -> None:
        while time.monotonic() < end:
            with pool.acquire(lane=name, timeout=60):
                since = time.monotonic()
                time.sleep(lasting)
                took = min(time.monotonic(), end) - max(since, begun)
            with lock:
                held[name] += max(0.0, took)

    tasks = [Task(work, name, lasting) for name, (threads, lasting) in lanes.items() for _ in range(threads)]
    for task in tasks:
        task.result()
    return {name: held[name] / sum(held.values()) for name in lanes}


def test_shares_of_real_threads() -> None:
    """Within 5 % of the weights, with leases that last twenty times as long in one lane as in the other."""
    pool = Pool(
        FakeAdapter().create, max_size=5, min_size=0, health_check_interval=None,
        lanes={"web": Lane(weight=4), "batch": Lane(weight=1)},
    )  # fmt: skip
    with pool:
        shares = saturate(pool, {"web": (12, 0.005), "batch": (6, 0.1)}, 8.0)
    assert shares["web"] == pytest.approx(0.8, abs=0.04), shares


def test_churn_of_real_threads_ends_whole() -> None:
    """Random lanes, timeouts, discards and drops: limits hold, all is closed in the end."""
    adapter = FakeAdapter()
    pool = Pool(adapter=adapter, max_size=4, min_size=0, health_check_interval=None, lanes=LANES)
    over: list[str] = []

    def work(number: int) -> None:
        names = ["web", "batch", "health", None]
        for turn in range(150):
            name = names[(number + turn) % 4]
            try:
                lease = pool.acquire(lane=name, timeout=(0, 0.001, 0.5)[turn % 3])
            except PoolTimeout:
                continue
            used = {line.name: len(line.lent) for line in state_of(pool).lanes.by_name.values()}
            if used["batch"] > 2 or sum(used.values()) > 4:
                over.append(str(used))
            if turn % 17 == 0:
                lease.discard()
            elif turn % 13:
                lease.release()
            del lease

    tasks = [Task(work, number) for number in range(10)]
    for task in tasks:
        task.result()
    assert not over
    deadline = time.monotonic() + 20
    gc.collect()
    while pool.stats()["in_use"] or in_use(pool):
        assert time.monotonic() < deadline, pool
        time.sleep(0.01)
    pool.close()
    assert pool.stats()["size"] == 0 and adapter.made == adapter.closed

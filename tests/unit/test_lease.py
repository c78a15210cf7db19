"""Leases: release, discard, detach, and what happens to the resource."""

from __future__ import annotations

import copy
import gc
import pickle
import re
import weakref
from collections.abc import Callable
from typing import Any

import pytest

import pooling
from pooling import HTTPPool, Lease, LeaseError, Pool, PoolManager
from pooling.testing import FakeAdapter, FakeResource, VirtualClock
from tests.unit.conftest import Make, Task, collect, fill, run_jobs


def by_block(lease: Lease[Any]) -> None:
    with lease:
        pass


ENDS: dict[str, Callable[[Lease[Any]], object]] = {
    "release": Lease.release,
    "discard": Lease.discard,
    "detach": Lease.detach,
    "block": by_block,
}
USES: dict[str, Callable[[Lease[Any]], object]] = {**ENDS, "resource": lambda lease: lease.resource}


def closed(pool: Pool[Any]) -> dict[str, int]:
    return pool.metrics.snapshot().closed


# -- ways to end a lease ------------------------------------------------------------------


@pytest.mark.parametrize("end", [Lease.release, by_block])
def test_released_resource_is_lent_again(make: Make, end: Callable[[Lease[Any]], object]) -> None:
    pool = make()
    lease = pool.acquire()
    resource = lease.resource
    end(lease)
    assert pool.acquire().resource is resource


def test_discarded_resource_is_closed_and_replaced(make: Make) -> None:
    pool = make()
    lease = pool.acquire()
    resource = lease.resource
    lease.discard()
    assert resource.closed == 1
    assert closed(pool) == {"discarded": 1}
    assert pool.acquire().resource.number == 2


def test_detached_resource_stays_open_and_leaves_the_pool(make: Make) -> None:
    pool = make(max_size=1)
    resource = pool.acquire().detach()
    assert pool.stats()["size"] == 0
    assert closed(pool) == {"detached": 1}
    assert pool.acquire().resource.number == 2
    pool.close(0)
    assert resource.alive
    assert resource.closed == 0


@pytest.mark.parametrize("use", USES.values(), ids=USES)
@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
def test_an_ended_lease_cannot_be_used(
    make: Make, end: Callable[[Lease[Any]], object], use: Callable[[Lease[Any]], object]
) -> None:
    pool = make()
    lease = pool.acquire()
    end(lease)
    before = pool.stats()
    with pytest.raises(LeaseError, match="pool 'test': this lease was released before"):
        use(lease)
    assert pool.stats() == before


@pytest.mark.parametrize("end", [Lease.release, Lease.discard, Lease.detach])
def test_lease_may_be_released_inside_its_block(make: Make, end: Callable[[Lease[Any]], object]) -> None:
    pool = make()
    lease = pool.acquire()
    with lease:
        end(lease)
    assert pool.stats()["in_use"] == 0


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
def test_a_lease_is_active_until_it_ends(make: Make, end: Callable[[Lease[Any]], object]) -> None:
    lease = make().acquire()
    assert lease.active
    end(lease)
    assert not lease.active


def test_lease_of_a_session_is_active_until_it_ends() -> None:
    with HTTPPool() as http:
        lease = http.acquire()
        assert lease.active
        lease.release()
        assert not lease.active


def test_second_release_does_not_affect_the_next_borrower(make: Make) -> None:
    pool = make(max_size=1)
    late = pool.acquire()
    late.release()
    with pool.acquire() as resource:
        with pytest.raises(LeaseError):
            late.release()
        with pytest.raises(LeaseError):
            late.discard()
        assert pool.stats()["in_use"] == 1
        assert resource.alive


def test_another_thread_may_release_a_lease(make: Make) -> None:
    pool = make()
    lease = pool.acquire()
    Task(lease.release).result()
    assert pool.stats()["idle"] == 1


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
def test_ending_a_lease_serves_a_waiter(
    make: Make, clock: VirtualClock, end: Callable[[Lease[Any]], object]
) -> None:
    pool = make(max_size=1)
    lease = pool.acquire()
    waiting = Task(pool.acquire)
    clock.until_parked(1)
    end(lease)
    assert waiting.result().resource is not None


def test_dropped_lease_is_recovered(make: Make, clock: VirtualClock) -> None:
    pool = make(max_size=1)
    lease = pool.acquire()
    resource = lease.resource
    waiting = Task(pool.acquire)
    clock.until_parked(1)
    del lease
    collect(clock)
    assert resource.closed == 1  # it may have been left in any state
    assert waiting.result().resource.number == 2
    assert closed(pool) == {"orphaned": 1}


def test_lease_in_a_cycle_is_recovered_by_the_garbage_collector(make: Make, clock: VirtualClock) -> None:
    pool = make(max_size=1)
    cycle: list[Any] = [pool.acquire()]
    cycle.append(cycle)
    del cycle
    collect(clock)
    assert pool.stats()["size"] == 0


@pytest.mark.parametrize("given", [{}, {"factory": object}], ids=["with a reset", "the hot path"])
def test_destructor_that_releases_too_late_does_nothing(
    make: Make, clock: VirtualClock, given: dict[str, Any]
) -> None:
    """In a cycle, the garbage collector runs the destructor after it has cleared the lease's token."""

    class Session:
        def __init__(self, lease: Lease[Any]) -> None:
            self.lease = lease
            self.me = self

        def __del__(self) -> None:
            self.lease.release()

    pool = make(**given)
    Session(pool.acquire())
    gc.collect()
    assert pool.stats()["idle"] == 0
    clock.settle()
    assert pool.stats()["size"] == 0


def test_repr_of_a_lease_shows_its_resource(make: Make) -> None:
    lease = make().acquire()
    assert repr(lease) == "<Lease of pool 'test': <FakeResource 1>>"
    lease.release()
    assert repr(lease) == "<Lease of pool 'test': ended>"


# -- an error in the block ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "reasons"),
    [
        (ConnectionError("gone"), {"broken": 1}),
        (BrokenPipeError("gone"), {"broken": 1}),
        (ValueError("not the resource's fault"), {}),
        (KeyboardInterrupt(), {}),
        (SystemExit(), {}),
    ],
    ids=repr,
)
def test_error_in_the_block_is_reraised_and_shown_to_is_broken(
    make: Make, error: BaseException, reasons: dict[str, int]
) -> None:
    pool = make()
    with pytest.raises(type(error)) as raised, pool.acquire():
        raise error
    assert raised.value is error
    assert error.__cause__ is None
    assert error.__context__ is None
    assert closed(pool) == reasons


def test_failing_is_broken_counts_as_broken(
    make: Make, adapter: FakeAdapter, caplog: pytest.LogCaptureFixture
) -> None:
    pool = make()
    adapter.fail("is_broken", RuntimeError("a bug in the adapter"))
    with pytest.raises(KeyError, match="mine"), pool.acquire():
        raise KeyError("mine")
    assert closed(pool) == {"broken": 1}
    assert [record.message for record in caplog.records] == ["pool 'test': is_broken() failed"]


def test_without_a_block_is_broken_is_not_called(make: Make, adapter: FakeAdapter) -> None:
    lease = make().acquire()
    try:
        raise ConnectionError("gone")
    except ConnectionError:
        lease.release()
    assert adapter.calls["is_broken"] == 0


@pytest.mark.parametrize(
    ("error", "reasons"),
    [
        (OSError("who knows"), {}),
        (GeneratorExit(), {}),
        (KeyboardInterrupt(), {"interrupted": 1}),
        (SystemExit(), {"interrupted": 1}),
    ],
    ids=repr,
)
def test_without_is_broken_an_interrupted_resource_is_closed(
    make: Make, error: BaseException, reasons: dict[str, int]
) -> None:
    pool = make(factory=object, close=lambda resource: None)
    with pytest.raises(type(error)), pool.acquire():
        raise error
    assert closed(pool) == reasons


@pytest.mark.parametrize(("alive", "reasons"), [(True, {}), (False, {"invalid": 1})])
@pytest.mark.parametrize("reset", [None, lambda resource: None])
def test_without_is_broken_a_round_trip_decides(
    make: Make, alive: bool, reasons: dict[str, int], reset: Callable[[object], None] | None
) -> None:
    pool = make(factory=object, validate=lambda resource: alive, reset=reset)
    with pytest.raises(OSError, match="who knows"), pool.acquire():
        raise OSError("who knows")
    assert closed(pool) == reasons


# -- reset --------------------------------------------------------------------------------


def test_released_resource_is_reset(make: Make, adapter: FakeAdapter) -> None:
    pool = make()
    with pool.acquire() as resource:
        resource.dirty = True
    assert not resource.dirty
    assert adapter.calls["reset"] == 1


def test_failing_reset_closes_the_resource(make: Make, adapter: FakeAdapter) -> None:
    pool = make()
    adapter.fail("reset", OSError("gone"))
    with pool.acquire() as resource:
        pass
    assert resource.closed == 1
    assert closed(pool) == {"reset": 1}
    assert pool.metrics.snapshot().errors == {"reset": 1}


def test_interrupted_reset_closes_the_resource_and_is_reraised(make: Make, adapter: FakeAdapter) -> None:
    pool = make()
    adapter.fail("reset", KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        pool.acquire().release()
    assert closed(pool) == {"reset": 1}


def test_slow_reset_blocks_no_borrower(make: Make, manual: VirtualClock) -> None:
    """It is done on a worker; the resource is lent only after it (P5)."""
    pool = make(adapter=FakeAdapter(enforces_timeouts=False), max_size=1, clock=manual)
    (resource,) = fill(pool, 1)
    with pool.acquire():
        resource.dirty = True
    assert pool.stats()["checking"] == 1
    waiting = Task(pool.acquire)
    manual.until_parked(1)
    run_jobs(manual)
    waiting.result()
    assert not resource.dirty


def test_broken_resource_is_not_reset(make: Make, adapter: FakeAdapter) -> None:
    with pytest.raises(ConnectionError), make().acquire():
        raise ConnectionError("gone")
    assert adapter.calls["reset"] == 0


# -- checks on release --------------------------------------------------------------------


@pytest.mark.parametrize("uses", [1, 3])
def test_resource_is_replaced_after_max_uses(make: Make, uses: int) -> None:
    pool = make(max_uses=uses)
    numbers = []
    for _ in range(2 * uses):
        with pool.acquire() as resource:
            numbers.append(resource.number)
    assert numbers == [1] * uses + [2] * uses
    assert closed(pool) == {"max_uses": 2}


@pytest.mark.parametrize("kept", [0, 1, 2])
def test_no_more_than_max_idle_are_kept(make: Make, kept: int) -> None:
    pool = make(max_size=3, max_idle=kept)
    leases = [pool.acquire() for _ in range(3)]
    for lease in leases:
        lease.release()
    assert pool.stats()["idle"] == kept
    assert closed(pool) == {"max_idle": 3 - kept}


def test_max_idle_does_not_withhold_resources_from_waiters(make: Make, clock: VirtualClock) -> None:
    pool = make(max_size=1, max_idle=0)
    lease = pool.acquire()
    resource = lease.resource
    waiting = Task(pool.acquire)
    clock.until_parked(1)
    lease.release()
    assert waiting.result().resource is resource


@pytest.mark.parametrize("factory", [None, object], ids=["with a reset", "the hot path"])
def test_expired_resource_is_closed_on_release(
    make: Make, clock: VirtualClock, factory: Callable[[], object] | None
) -> None:
    pool = make(max_lifetime=60, **({"factory": factory} if factory else {}))
    with pool.acquire():
        clock.advance(60)
        assert closed(pool) == {}  # not while it is lent
    assert closed(pool) == {"lifetime": 1}
    assert pool.stats()["size"] == 0


# -- the close ----------------------------------------------------------------------------


def test_failing_close_frees_the_slot(make: Make, adapter: FakeAdapter) -> None:
    pool = make(max_size=1)
    adapter.fail("close", OSError("cannot"))
    pool.acquire().discard()
    assert pool.acquire().resource.number == 2
    assert pool.metrics.snapshot().errors == {"close": 1}


def test_pool_without_a_close_drops_the_resource(make: Make) -> None:
    class Thing:
        pass

    pool = make(factory=Thing)
    lease = pool.acquire()
    thing = weakref.ref(lease.resource)
    lease.discard()
    assert thing() is None
    assert pool.stats()["size"] == 0


def test_every_resource_is_closed_once(make: Make, adapter: FakeAdapter) -> None:
    pool = make(max_size=3)
    seen: list[FakeResource] = []
    for end in (Lease.release, Lease.discard, Lease.release):
        leases = [pool.acquire() for _ in range(3)]
        seen += (lease.resource for lease in leases)
        for lease in leases:
            end(lease)
    pool.close()
    assert {resource.closed for resource in seen} == {1}
    assert adapter.open == set()


# -- copies ---------------------------------------------------------------------------------


@pytest.mark.parametrize("way", [copy.copy, copy.deepcopy, pickle.dumps])
def test_owners_of_resources_cannot_be_copied(make: Make, way: Callable[[object], object]) -> None:
    """P1: a lease and its copy would release the same resource."""
    pool = make(max_size=2)
    lease = pool.acquire()
    for thing, instead in [
        (lease, "Lease objects cannot be copied or pickled: a resource has one borrower; pass the lease itself on, or"),
        (pool, "Pool objects cannot be copied or pickled: threads share one, forked processes inherit it, and other"),
        (pool.metrics, "PoolMetrics objects cannot be copied or pickled: they belong to their pool; keep or send a"),
        (PoolManager(), "PoolManager objects cannot be copied or pickled: threads share one, forked processes"),
    ]:
        with pytest.raises(TypeError, match=re.escape(instead)):
            way(thing)
    lease.release()
    assert pool.acquire().resource is not pool.acquire().resource


def pools_of_all_kinds() -> dict[str, Callable[[], Any]]:
    from sqlalchemy import create_engine

    from pooling.adapters import sqlalchemy
    from pooling.compat.psycopg_pool import ConnectionPool, NullConnectionPool
    from pooling.observe import PerformanceMonitor

    return {
        "HTTPPool": pooling.HTTPPool,
        "HTTP2Pool": pooling.HTTP2Pool,
        "PostgresPool": lambda: pooling.PostgresPool("host=h"),
        "MySQLPool": lambda: pooling.MySQLPool("mysql://h"),
        "SQLitePool": lambda: pooling.SQLitePool(":memory:"),
        "RedisPool": pooling.RedisPool,
        "ConnectionPool": lambda: ConnectionPool("host=h", open=False),
        "NullConnectionPool": lambda: NullConnectionPool("host=h", open=False),
        "SQLAlchemy": lambda: create_engine("sqlite:///x.db", poolclass=sqlalchemy.Pool).pool,
        "FleetBudget": lambda: pooling.FleetBudget(9, name="copied"),
        "PerformanceMonitor": PerformanceMonitor,
    }


@pytest.mark.parametrize("kind", pools_of_all_kinds())
def test_pools_of_all_kinds_cannot_be_copied(kind: str) -> None:
    thing = pools_of_all_kinds()[kind]()
    for way in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match=f"^{type(thing).__name__} objects cannot be copied or pickled: "):
            way(thing)


def test_leases_of_all_kinds_cannot_be_copied() -> None:
    from pooling.adapters.http.sessions import SessionLease
    from pooling.adapters.http2.client import ClientLease
    from pooling.adapters.redis.lease import RedisLease

    for kind in (SessionLease, ClientLease, RedisLease):
        assert kind.__reduce_ex__ is Lease.__reduce_ex__
        assert not {"__copy__", "__deepcopy__", "__reduce__"} & set(vars(kind))

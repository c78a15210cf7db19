"""What a close leaves behind: one close for each resource, and its counters."""

from __future__ import annotations

import pytest

from pooling import Pool
from pooling.core.report.histogram import SHORT
from pooling.testing import FakeAdapter, VirtualClock
from tests.unit.conftest import Make, run_jobs


def test_resource_evicted_twice_is_closed_once(make: Make, adapter: FakeAdapter, manual: VirtualClock) -> None:
    """Two threads may find the same resource dead, and the second must not close it again (P1)."""
    evicted: list[str] = []
    adapter.evicted = lambda resource, reason: evicted.append(reason)  # type: ignore[assignment, method-assign]
    pool = make(clock=manual)
    pool.fill(1)
    run_jobs(manual)
    token = pool.engine.state.idle[-1]
    assert pool.engine.state.idle.take(token)
    pool.engine.evict(token, "dead")
    pool.engine.evict(token, "surplus")
    run_jobs(manual)
    assert evicted == ["dead"]
    assert pool.metrics.snapshot().closed == {"dead": 1}
    assert adapter.closed == 1


def test_time_in_use_is_kept_when_a_resource_is_closed(make: Make, clock: VirtualClock) -> None:
    """Short uses are summed in the entry, whose end must not lose them (P12)."""
    pool = make(clock=clock)
    with pool.acquire():
        clock.advance(SHORT / 2)
    pool.drain()
    use = pool.metrics.snapshot().use
    assert (use.count, use.mean) == (1, pytest.approx(SHORT / 2))


def test_closed_resource_is_destroyed_before_its_slot_is_free() -> None:
    """Drivers release what counts as a connection in destructors, too (P2)."""
    sizes: list[int] = []

    class Thing:
        def __del__(self) -> None:
            sizes.append(pool.stats()["size"])

    pool = Pool(Thing, min_size=0, max_size=1, clock=VirtualClock())
    pool.acquire().discard()
    assert sizes == [1] and pool.stats()["size"] == 0

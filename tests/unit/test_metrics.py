"""Counters, durations, and the forms in which they are read."""

from __future__ import annotations

import io
import json
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest

from pooling import Lease, Pool, PoolMetrics, PoolTimeout, PoolUnavailable, TooManyWaiting
from pooling.core.report.histogram import FOLD_AT, SHORT, Histogram
from pooling.core.state import PoolState
from pooling.core.waiter import Waiter
from pooling.testing import FakeAdapter, FakeResource, VirtualClock
from tests.unit.conftest import Make, Task, collect, fill, lent_elsewhere, run_jobs

# Older names of the figures.
B1 = {
    "timestamp", "duration_seconds", "total_connections", "active_connections", "idle_connections",
    "max_connections", "connection_requests", "connection_timeouts", "connection_errors",
    "avg_acquisition_time_ms", "avg_release_time_ms", "pool_utilization", "error_rate",
}  # fmt: skip
D4 = {
    "active_connections", "idle_connections", "waiting_requests", "total_connections_created",
    "total_connections_closed", "connection_errors", "connection_timeouts",
    "avg_connection_acquisition_time", "max_connection_acquisition_time", "health_check_failures",
    "last_health_check", "pool_exhausted_count",
}  # fmt: skip


def time_out(pool: Pool[Any], clock: VirtualClock, seconds: float = 1) -> None:
    waiting = Task(pool.acquire, seconds)
    clock.until_parked(1)
    clock.advance(seconds)
    with pytest.raises(PoolTimeout):
        waiting.result()


def hold(pool: Pool[Any], clock: VirtualClock, seconds: float) -> None:
    with pool.acquire():
        clock.advance(seconds)


def test_a_lease_that_ends_during_a_snapshot_counts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What exporters have reported once cannot be taken back."""
    pool = Pool(object)
    lease, lent = pool.acquire(), PoolState.lent

    def lent_before(state: PoolState) -> list[Any]:
        found = lent(state)
        if lease.active:
            lease.release()  # as another thread may, which needs no lock
        return found

    monkeypatch.setattr(PoolState, "lent", lent_before)
    assert pool.metrics.snapshot().acquired == 1


def test_a_resource_that_maintenance_has_taken_is_not_counted_as_acquired() -> None:
    """A counter that decreases later looks like a restarted process to Prometheus, which then adds all of it again."""
    pool = Pool(object)
    pool.acquire().release()
    token = pool.engine.state.idle.pop()
    assert pool.metrics.snapshot().acquired == 1
    pool.metrics.reset()
    pool.engine.state.idle.put_back(token)
    assert pool.metrics.snapshot().acquired == 0
    pool.acquire().release()
    assert pool.metrics.snapshot().acquired == 1


@pytest.mark.parametrize("end", [Lease.release, Lease.discard, Lease.detach])
@pytest.mark.parametrize("settings", [{}, {"max_uses": 2}, {"lanes": "web, batch"}])
def test_number_of_acquires_never_decreases_nor_is_too_high(end: Any, settings: dict[str, Any]) -> None:
    """A snapshot at each line of the second and third lease at which another thread can make one."""
    pool = Pool(object, **settings)
    pool.acquire().release()
    seen: list[int] = []

    def look(*_: object) -> Any:
        if not pool.engine.lock._is_owned():
            seen.append(pool.metrics.snapshot().acquired)
        return look

    for _ in range(2):
        before = sys.gettrace()
        sys.settrace(look)
        try:
            end(pool.acquire())
        finally:
            sys.settrace(before)
    seen.append(pool.metrics.snapshot().acquired)
    assert seen == sorted(seen)
    assert set(seen) == {1, 2, 3}


@pytest.mark.parametrize("max_size", [1, 2])
def test_a_resource_on_its_way_to_a_waiter_is_not_counted_as_acquired(max_size: int) -> None:
    """The waiter may be interrupted. The clock stands still, as one with a low resolution does for a while."""
    pool = Pool(object, max_size=max_size, clock=VirtualClock(), health_check_interval=None)
    lease = pool.acquire()
    waiter = Waiter(0.0, 0, False, None)
    pool.engine.state.waiters.join(waiter)
    lease.release()
    assert waiter.given and pool.metrics.snapshot().acquired == 1


# -- gauges -------------------------------------------------------------------------------


def test_counts_of_a_snapshot_add_up(make: Make, manual: VirtualClock) -> None:
    """One resource in each state, and one waiter."""
    pool = make(adapter=FakeAdapter(enforces_timeouts=False), max_size=5, clock=manual)
    fill(pool, 4)
    leases = [pool.acquire() for _ in range(4)]
    for lease in leases[:2]:
        lease.release()
    manual.run_job()  # the reset of the first: it is idle now, and the second being checked
    leases[2].discard()
    pool.fill(5)
    pool.pause()
    waiting = Task(pool.acquire)
    manual.until_parked(1)
    s = pool.metrics.snapshot()
    assert (s.idle, s.in_use, s.creating, s.checking, s.closing, s.size) == (1, 1, 1, 1, 1, 5)
    assert (s.waiting, s.min_size, s.max_size) == (1, 0, 5)
    assert (s.utilization, s.saturation) == (0.2, 0.2)
    pool.resume()
    waiting.result()


@pytest.mark.parametrize("read", [PoolMetrics.snapshot, PoolMetrics.reset])
def test_snapshot_takes_the_lock_once(make: Make, read: Callable[[PoolMetrics], object]) -> None:
    metrics = make().metrics
    metrics.lock = lock = MagicMock(wraps=metrics.lock)
    read(metrics)
    assert lock.__enter__.call_count == lock.__exit__.call_count == 1


def test_snapshot_is_immutable(make: Make) -> None:
    pool = make()
    before = pool.metrics.snapshot()
    kept = before.to_dict()
    pool.acquire().discard()
    assert before.to_dict() == kept
    with pytest.raises(AttributeError):
        before.acquired = 7  # type: ignore[misc]


def test_changing_the_dicts_of_a_snapshot_does_not_change_the_metrics(make: Make) -> None:
    pool = make()
    pool.acquire().discard()
    pool.metrics.snapshot().closed["discarded"] = 99
    assert pool.metrics.snapshot().closed == {"discarded": 1}


@pytest.mark.parametrize(
    ("in_use", "size", "max_size", "utilization", "saturation"),
    [(0, 0, 4, 0.0, 0.0), (0, 2, 4, 0.0, 0.0), (1, 2, 4, 0.5, 0.25), (4, 4, 4, 1.0, 1.0)],
)
def test_utilization_is_of_open_resources_and_saturation_of_max_size(
    make: Make, in_use: int, size: int, max_size: int, utilization: float, saturation: float
) -> None:
    pool = make(max_size=max_size)
    fill(pool, size)
    leases = [pool.acquire() for _ in range(in_use)]
    s = pool.metrics.snapshot()
    assert (s.utilization, s.saturation) == (utilization, saturation)
    assert len(leases) == s.in_use


# -- peak ---------------------------------------------------------------------------------


@pytest.mark.parametrize("factory", [None, object], ids=["with a reset", "the hot path"])
def test_peak_is_the_most_in_use_at_once(make: Make, factory: type | None) -> None:
    pool = make(max_size=5, **({"factory": factory} if factory else {}))
    leases = [pool.acquire() for _ in range(3)]
    for lease in leases:
        lease.release()
    pool.acquire().release()
    assert pool.metrics.snapshot().peak_in_use == 3


@pytest.mark.parametrize("factory", [None, object], ids=["with a reset", "the hot path"])
def test_peak_counts_leases_on_the_fast_path(make: Make, factory: type | None) -> None:
    pool = make(max_size=5, **({"factory": factory} if factory else {}))
    fill(pool, 3)
    leases = [pool.acquire() for _ in range(3)]
    for lease in leases:
        lease.release()
    assert pool.metrics.snapshot().peak_in_use == 3


def test_peak_does_not_include_what_maintenance_has_taken() -> None:
    pool = Pool(object, min_size=2)
    pool.open()
    with pool.acquire():
        token = pool.engine.state.idle.pop()
        assert pool.metrics.snapshot().peak_in_use == 1
        pool.engine.state.idle.put_back(token)


def test_peak_outlives_the_resources(make: Make) -> None:
    pool = make(max_size=5)
    fill(pool, 3)
    leases = [pool.acquire() for _ in range(3)]
    for lease in leases:
        lease.release()
    pool.drain()
    assert pool.metrics.snapshot().peak_in_use == 3


def test_peak_starts_again_after_a_reset(make: Make) -> None:
    pool = make(max_size=5)
    leases = [pool.acquire() for _ in range(3)]
    for lease in leases:
        lease.release()
    pool.metrics.reset()
    pool.acquire().release()
    assert pool.metrics.snapshot().peak_in_use == 1


def test_peak_is_not_more_than_was_in_use_at_once(make: Make, manual: VirtualClock) -> None:
    """Two resources are lent one after the other: the first is being reset when the second is lent."""
    pool = make(adapter=FakeAdapter(enforces_timeouts=False), clock=manual)
    fill(pool, 2)
    pool.acquire().release()
    pool.acquire().release()
    run_jobs(manual)
    assert pool.metrics.snapshot().peak_in_use == 1


# -- counters -----------------------------------------------------------------------------


def test_each_acquire_and_release_is_counted(make: Make) -> None:
    pool = make(factory=object, max_size=3)
    for _ in range(5):
        pool.acquire().release()
    leases = [pool.acquire(), pool.acquire()]
    s = pool.metrics.snapshot()
    assert (s.acquired, s.released, s.requests, s.created) == (7, 5, 7, 2)
    assert len(leases) == s.in_use


@pytest.mark.parametrize("end", [Lease.release, Lease.discard, Lease.detach, None])
def test_acquire_stays_counted_however_the_lease_ends(
    make: Make, clock: VirtualClock, end: Any
) -> None:
    pool = make()
    lease = pool.acquire()
    if end is not None:
        end(lease)
    del lease
    collect(clock)
    assert pool.metrics.snapshot().acquired == 1


def test_counts_outlive_the_resources(make: Make) -> None:
    pool = make(max_uses=2)
    for _ in range(6):
        pool.acquire().release()
    s = pool.metrics.snapshot()
    assert (s.acquired, s.released, s.created, s.closed) == (6, 6, 3, {"max_uses": 3})


def test_timeouts_refusals_and_exhaustion_are_counted(make: Make, clock: VirtualClock) -> None:
    pool = make(max_size=1, max_waiting=1)
    lease = pool.acquire()
    time_out(pool, clock)
    waiting = Task(pool.acquire)
    clock.until_parked(1)
    for _ in range(3):
        with pytest.raises(TooManyWaiting):
            pool.acquire()
    lease.release()
    waiting.result()
    s = pool.metrics.snapshot()
    assert (s.timeouts, s.refusals, s.requests, s.acquired) == (1, 3, 6, 2)
    assert s.exhausted == 2  # exhausted twice, whatever waiters joined


def test_exhaustion_is_one_event_for_any_number_of_waiters(make: Make, clock: VirtualClock) -> None:
    pool = make(max_size=1)
    lease = pool.acquire()
    tasks = []
    for place in (1, 2, 3):
        tasks.append(Task(lambda: pool.acquire().release()))
        clock.until_parked(place)
    lease.release()
    for task in tasks:
        task.result()
    assert pool.metrics.snapshot().exhausted == 1


def test_waiting_for_a_creation_is_not_exhaustion(make: Make, manual: VirtualClock) -> None:
    pool = make(clock=manual)
    waiting = Task(pool.acquire)
    manual.until_parked(1)
    run_jobs(manual)
    waiting.result()
    assert pool.metrics.snapshot().exhausted == 0


def test_errors_are_counted_by_kind(make: Make, adapter: FakeAdapter, clock: VirtualClock) -> None:
    pool = make()
    adapter.fail("create", ConnectionRefusedError("no"), times=2)
    adapter.fail("create", OSError("no"))
    adapter.fail("reset", ValueError("cannot"))
    adapter.fail("close", ValueError("cannot"))
    for _ in range(4):
        pool.fill(1)
        clock.advance(10)
    pool.acquire().release()
    s = pool.metrics.snapshot()
    assert s.errors == {"ConnectionRefusedError": 2, "OSError": 1, "reset": 1, "close": 1}


def test_acquires_that_fail_in_an_outage_are_counted(make: Make, adapter: FakeAdapter) -> None:
    """A failed request counts as a request, whatever its error."""
    pool = make(max_attempts=1)
    adapter.fail("create", ConnectionError("no"))
    with pytest.raises(PoolUnavailable):
        pool.acquire()
    assert pool.metrics.snapshot().requests == 1


def test_validation_and_health_failures_are_counted_separately(
    make: Make, adapter: FakeAdapter, clock: VirtualClock
) -> None:
    pool = make()
    fill(pool, 1)
    clock.advance(10)
    adapter.fail("validate", ConnectionError("gone"))
    pool.acquire()
    s = pool.metrics.snapshot()
    assert (s.validation_failures, s.health_failures, s.last_health_check) == (1, 0, None)


def test_orphans_and_leaks_are_counted(make: Make, clock: VirtualClock) -> None:
    pool = make(leak_timeout=30)
    lease = pool.acquire()
    clock.advance(60)
    s = pool.metrics.snapshot()
    assert (s.leaks, s.orphans) == (1, 0)
    del lease
    collect(clock)
    s = pool.metrics.snapshot()
    assert (s.leaks, s.orphans) == (1, 1)


@pytest.mark.parametrize(
    ("acquired", "timeouts", "refusals", "errors", "rate"),
    [
        (0, 0, 0, 0, 0.0),
        (4, 0, 0, 0, 0.0),
        (3, 1, 0, 0, 0.25),
        (3, 0, 1, 0, 0.25),
        (4, 0, 0, 1, 0.25),
        (1, 1, 0, 3, 1.0),
        (0, 0, 0, 2, 1.0),
    ],
)
def test_error_rate_is_a_fraction_of_the_requests(
    make: Make, acquired: int, timeouts: int, refusals: int, errors: int, rate: float
) -> None:
    s = make().metrics.snapshot()._replace(
        acquired=acquired, timeouts=timeouts, refusals=refusals, errors={"OSError": errors}
    )
    assert s.error_rate == rate


# -- durations ----------------------------------------------------------------------------


def test_acquires_that_did_not_wait_count_as_zero_waits(make: Make, clock: VirtualClock) -> None:
    pool = make(max_size=1)
    for _ in range(3):
        pool.acquire().release()
    with lent_elsewhere(pool) as (lease,):
        waiting = Task(pool.acquire)
        clock.until_parked(1)
        clock.advance(4)
        lease.release()
        waiting.result()
    wait = pool.metrics.snapshot().wait
    assert (wait.count, wait.mean, wait.max, wait.p50) == (5, 0.8, 4.0, 0.0)
    assert wait.p99 == pytest.approx(4, rel=0.5)


def test_uses_are_timed(make: Make, clock: VirtualClock) -> None:
    pool = make(factory=object, max_lifetime=None)
    for seconds in (1, 2, 3):
        hold(pool, clock, seconds)
    use = pool.metrics.snapshot().use
    assert (use.count, use.mean, use.max) == (3, 2.0, 3.0)
    assert use.p50 == pytest.approx(2, rel=0.5)


def test_short_uses_are_counted_and_summed(make: Make, clock: VirtualClock) -> None:
    pool = make(factory=object)
    for _ in range(10):
        hold(pool, clock, SHORT / 2)
    hold(pool, clock, 1)
    use = pool.metrics.snapshot().use
    assert use.count == 11
    assert use.mean == pytest.approx((10 * SHORT / 2 + 1) / 11)
    assert use.p50 == pytest.approx(SHORT / 2)
    assert use.max == pytest.approx(1)


class Slow(FakeAdapter):
    """Slow: each step moves the clock."""

    def __init__(self, clock: VirtualClock, seconds: float) -> None:
        super().__init__()
        self.clock, self.seconds = clock, seconds

    def create(self) -> FakeResource:
        self.clock.skip(self.seconds)
        return super().create()

    def validate(self, resource: FakeResource, timeout: float) -> None:
        self.clock.skip(self.seconds)
        super().validate(resource, timeout)

    def reset(self, resource: FakeResource) -> None:
        self.clock.skip(self.seconds)
        super().reset(resource)


@pytest.mark.parametrize("name", ["create", "validate", "release"])
def test_creation_validation_and_release_are_timed(make: Make, clock: VirtualClock, name: str) -> None:
    pool = make(adapter=Slow(clock, 2))
    pool.acquire().release()
    clock.advance(10)
    pool.acquire()
    timed = getattr(pool.metrics.snapshot(), name)
    assert (timed.count, timed.mean, timed.max) == (1, 2.0, 2.0)


def test_timeout_is_not_counted_as_a_served_wait(make: Make, clock: VirtualClock) -> None:
    pool = make(max_size=1)
    with lent_elsewhere(pool):
        time_out(pool, clock, 9)
        assert pool.metrics.snapshot().wait.max == 0.0


def test_without_metrics_nothing_is_timed_but_all_is_counted(make: Make, clock: VirtualClock) -> None:
    pool = make(adapter=Slow(clock, 2), enable_metrics=False)
    hold(pool, clock, 2)
    s = pool.metrics.snapshot()
    assert (s.acquired, s.created) == (1, 1)
    assert (s.create.count, s.validate.count) == (0, 0)


@pytest.mark.parametrize(
    ("durations", "p50", "p95", "p99"),
    [
        ([1.0] * 100, 1.0, 1.0, 1.0),
        ([0.001] * 94 + [1.0] * 6, 0.001, 1.0, 1.0),
        ([0.001] * 98 + [5.0] * 2, 0.001, 0.001, 5.0),
        ([i / 100 for i in range(1, 101)], 0.5, 0.95, 0.99),
        ([1e6] * 3, 1e6, 1e6, 1e6),
        ([0.0] * 3, 0.0, 0.0, 0.0),
    ],
)
def test_percentiles_are_right_within_their_bucket(
    durations: list[float], p50: float, p95: float, p99: float
) -> None:
    histogram = Histogram(threading.RLock())
    for seconds in durations:
        histogram.record(seconds)
    s = histogram.snapshot()
    assert s.count == len(durations)
    assert s.mean == pytest.approx(sum(durations) / len(durations))
    assert s.max == max(durations)
    assert (s.p50, s.p95, s.p99) == pytest.approx((p50, p95, p99), rel=0.5)
    assert s.p50 <= s.p95 <= s.p99 <= s.max


def test_duration_may_be_recorded_inside_the_lock() -> None:
    """By a destructor that runs there: no duration is lost, and nothing deadlocks."""
    lock = threading.RLock()
    histogram = Histogram(lock)
    with lock:
        for _ in range(1000):
            histogram.record(1)
    assert histogram.snapshot().count == 1000


# -- reset --------------------------------------------------------------------------------


def test_reset_clears_counters_and_leaves_gauges(make: Make, clock: VirtualClock) -> None:
    pool = make(max_size=1)
    with pool.acquire():
        time_out(pool, clock)
    held = pool.acquire()
    clock.advance(5)
    pool.metrics.reset()
    s = pool.metrics.snapshot()
    assert (s.in_use, s.size, s.peak_in_use) == (1, 1, 1)
    assert (s.acquired, s.released, s.created, s.timeouts, s.exhausted) == (0, 0, 0, 0, 0)
    assert (s.closed, s.errors, s.duration) == ({}, {}, 0.0)
    assert {h.count for h in (s.wait, s.use, s.create, s.validate, s.release)} == {0}
    clock.advance(3)
    held.release()
    s = pool.metrics.snapshot()
    assert (s.acquired, s.released, s.duration) == (0, 1, 3.0)


# -- forms --------------------------------------------------------------------------------


@pytest.mark.parametrize("names", [B1, D4], ids=["B1", "D4"])
def test_older_names_exist(make: Make, names: set[str]) -> None:
    assert names <= make().metrics.to_dict().keys()


def test_older_names_keep_their_meaning_and_units(make: Make, clock: VirtualClock) -> None:
    """Milliseconds where the name says so, seconds elsewhere."""
    pool = make(adapter=Slow(clock, 0.5), validate_on_acquire=False)
    lease, other = pool.acquire(), pool.acquire()
    other.release()
    pool.acquire().release()
    d = pool.metrics.to_dict()
    assert d["timestamp"] == clock.wall()
    assert d["duration_seconds"] == d["duration"] == 2.0
    assert (d["total_connections"], d["active_connections"], d["idle_connections"]) == (2, 1, 1)
    assert (d["max_connections"], d["pool_utilization"], d["saturation"]) == (2, 0.5, 0.5)
    assert (d["connection_requests"], d["connection_timeouts"], d["connection_errors"]) == (3, 0, 0)
    assert d["avg_acquisition_time_ms"] == pytest.approx(1000 / 3)
    assert d["avg_connection_acquisition_time"] == pytest.approx(1 / 3)
    assert d["max_connection_acquisition_time"] == 0.5
    assert d["avg_release_time_ms"] == 500.0
    assert (d["total_connections_created"], d["total_connections_closed"]) == (2, 0)
    assert (d["waiting_requests"], d["pool_exhausted_count"], d["error_rate"]) == (0, 0, 0.0)
    lease.release()


def test_a_failed_creation_counts_under_the_older_names(
    make: Make, adapter: FakeAdapter, clock: VirtualClock
) -> None:
    pool = make()
    adapter.fail("create", ConnectionError("no"), times=99)
    time_out(pool, clock)
    adapter.mend("create")
    clock.advance(60)
    pool.acquire().discard()
    d = pool.metrics.to_dict()
    assert (d["connection_requests"], d["connection_timeouts"]) == (2, 1)
    assert d["connection_errors"] == adapter.calls["create"] - 1
    assert d["total_connections_closed"] == 1


def test_metrics_are_json_serializable(make: Make) -> None:
    pool = make()
    pool.acquire().discard()
    flat, pretty = pool.metrics.to_json(), pool.metrics.to_json(pretty=True)
    assert json.loads(flat) == json.loads(pretty) == pool.metrics.to_dict()
    assert "\n" not in flat
    assert pretty.startswith('{\n  "name": "test",\n')


def test_no_number_is_nan(make: Make) -> None:
    def refuse(text: str) -> None:
        raise AssertionError(text)

    json.loads(make().metrics.to_json(), parse_constant=refuse)


def test_save_writes_a_file(make: Make, tmp_path: Path) -> None:
    pool = make()
    path = tmp_path / "metrics.json"
    for _ in range(2):  # again, over the first
        pool.metrics.save(path)
        assert json.loads(path.read_text(encoding="utf-8")) == pool.metrics.to_dict()
    pool.metrics.save(str(tmp_path / "other.json"))
    assert sorted(os.listdir(tmp_path)) == ["metrics.json", "other.json"]


@pytest.mark.parametrize("failing", ["pooling.core.report.metrics.os.replace", "json.dumps"])
def test_failed_save_keeps_the_old_file(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise OSError("disk full")

    path = tmp_path / "metrics.json"
    path.write_text("old")
    monkeypatch.setattr(failing, fail)
    with pytest.raises(OSError, match="disk full"):
        make().metrics.save(path)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["metrics.json"]


def test_two_threads_may_save_at_the_same_time(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool, path, replace = make(), tmp_path / "metrics.json", os.replace

    def interleaved(source: str, target: str) -> None:
        monkeypatch.setattr("pooling.core.report.metrics.os.replace", replace)
        Task(pool.metrics.save, path).result()  # 2: all of the other's save
        replace(source, target)  # 3: the end of ours

    monkeypatch.setattr("pooling.core.report.metrics.os.replace", interleaved)
    pool.metrics.save(path)  # 1: all but the last step
    assert json.loads(path.read_text()) == pool.metrics.to_dict()


def test_summary_states_counts_and_durations(make: Make, clock: VirtualClock, adapter: FakeAdapter) -> None:
    pool = make(name="orders", max_size=3)
    hold(pool, clock, 2)
    adapter.fail("reset", OSError("gone"))
    hold(pool, clock, 4)
    out = io.StringIO()
    pool.metrics.print_summary(out)
    assert out.getvalue().splitlines()[:5] == [
        "pool 'orders' over 6.0 s",
        "  now       0 in use, 0 idle, 0 waiting, 0 open of at most 3; peak 1 in use",
        "  requests  2: 2 served, 0 timed out, 0 refused, 0 other errors; exhausted 0 times",
        "  resources 1 created, 1 closed (1 reset)",
        "  errors    1 (1 reset)",
    ]
    assert "  use       mean 3 s, p50 " in out.getvalue()


def test_summary_goes_to_standard_output(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    make().metrics.print_summary()
    assert capsys.readouterr().out.startswith("pool 'test' over 0.0 s\n")


def test_short_release_is_timed_too(make: Make, clock: VirtualClock, adapter: FakeAdapter) -> None:
    pool = make(adapter=Slow(clock, 2e-5))
    pool.acquire().release()
    assert pool.metrics.snapshot().release.mean == pytest.approx(2e-5)


def test_releases_keep_few_durations_one_by_one(make: Make) -> None:
    """However long a pool is used without a look at its metrics."""
    pool = make(max_size=1)
    for _ in range(3 * FOLD_AT + 1):
        pool.acquire().release()
    recent = pool.metrics.durations.release.recent
    assert 0 < len(recent) < FOLD_AT
    assert pool.metrics.snapshot().release.count == 3 * FOLD_AT + 1

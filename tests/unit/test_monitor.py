"""The monitor on a clock that stands still: samples, history, incidents, advice, reports, exports."""

from __future__ import annotations

import copy
import gc
import html.parser
import json
import os
import re
import threading
import time
import tracemalloc
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pooling import Observer, Pool, PoolManager, PoolSettings, PoolTimeout
from pooling.core.report.histogram import Buckets, Histogram, bound_of, place_of
from pooling.core.runtime.reaper import LISTENERS
from pooling.observe import PerformanceMonitor
from pooling.observe import report as shape
from pooling.observe.advice import advise, advise_process, busiest
from pooling.observe.export import Exporter, write_atomically
from pooling.observe.history import COUNTERS, MOST_HOSTS, HostMinute, Minute, ProcessMinute, Series
from pooling.observe.incidents import MOST_INCIDENTS, WORDS, Incidents, Listener
from pooling.observe.page import render_page
from pooling.observe.process import ProcessReading, note
from pooling.observe.reading import read_foreign
from pooling.observe.report import MOST_POINTS, compile_report, render_text, span_text
from pooling.observe.spread import NO_TOTALS, Spread, Totals
from pooling.testing import FakeAdapter, VirtualClock
from tests.unit.conftest import Make, Task, lent_elsewhere

WALL = 600_000.0  # the epoch of the tests: a whole minute


@pytest.fixture
def clock() -> VirtualClock:
    """As in conftest, but it begins at a whole minute."""
    return VirtualClock(start=WALL)


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ENABLE_METRICS", "METRICS_EXPORT_INTERVAL"):
        monkeypatch.delenv(name, raising=False)


def observed(pools: Any, clock: VirtualClock, **given: Any) -> PerformanceMonitor:
    return PerformanceMonitor(pools, clock=clock, **{"interval": 10.0, **given})


def use(pool: Pool[Any], clock: VirtualClock, seconds: float) -> None:
    with pool.acquire():
        clock.advance(seconds)


# -- samples and minutes -----------------------------------------------------------------


def test_minutes_add_up(make: Make, clock: VirtualClock) -> None:
    pool = make(name="db")
    monitor = observed(pool, clock)
    for _ in range(6):
        use(pool, clock, 5.0)
        clock.advance(25.0)
    found = monitor.get_report()["pools"]["db"]
    assert (found["acquired"], found["created"], found["failed"], found["seconds"]) == (6, 1, 0, 180.0)
    assert found["use"]["count"] == 6
    assert found["use"]["mean"] == pytest.approx(5.0)
    assert found["in_use"]["peak"] == 1
    assert found["in_use"]["mean"] == pytest.approx(6 * 5 / 180)
    rates = [value for value in found["series"]["requests_per_second"] if value is not None]
    assert [round(value * 60) for value in rates[:3]] == [2, 2, 2]


def test_what_came_before_the_monitor_is_not_counted(make: Make, clock: VirtualClock) -> None:
    pool = make(name="db")
    use(pool, clock, 1.0)
    monitor = observed(pool, clock)
    assert monitor.get_report()["pools"]["db"]["acquired"] == 0


def test_pool_made_later_is_counted_from_its_beginning(make: Make, clock: VirtualClock) -> None:
    manager = PoolManager()
    monitor = observed(manager, clock)
    clock.advance(3.0)
    pool = make(name="late")
    manager.add_pool(pool)
    use(pool, clock, 1.0)
    clock.advance(30.0)
    assert monitor.get_report()["pools"]["late"]["acquired"] == 1


def test_pools_that_end_between_two_samples_are_counted() -> None:
    """One that the monitor has never seen, and the last leases of one that it has."""
    with PerformanceMonitor(interval=3600.0) as monitor:
        known = Pool(object, name="monitor-known")
        others = PerformanceMonitor([known], interval=3600.0)
        monitor.sample()
        brief = Pool(object, name="monitor-brief")
        for pool, times in ((known, 2), (brief, 3)):
            for _ in range(times):
                with pool.acquire():
                    pass
        known.close()
        del pool, known, brief
        wanted = [(monitor, "monitor-known", "closed"), (monitor, "monitor-brief", "dropped"),
                  (others, "monitor-known", "closed")]  # fmt: skip
        end = time.monotonic() + 60
        for one, name, state in wanted:
            series = one.current_sampler().series
            while name not in series or series[name].state != state:
                assert time.monotonic() < end
                time.sleep(0.01)
        pools = monitor.get_report()["pools"]
        assert (pools["monitor-known"]["acquired"], pools["monitor-brief"]["acquired"]) == (2, 3)
        second = Pool(object, name="monitor-known")  # continues the history of the first
        closed = Pool(object, name="monitor-closed")
        monitor.sample()
        with second.acquire():
            closed.close()
        monitor.sample()
        third = Pool(object, name="monitor-closed")
        monitor.sample()
        series = monitor.current_sampler().series
        assert [series[name].state for name in ("monitor-known", "monitor-closed")] == ["open", "open"]
        gone = Pool(object, name="monitor-gone")
        gone.acquire().release()
        del closed, gone  # in this order
        while "monitor-gone" not in series:
            assert time.monotonic() < end
            time.sleep(0.01)
        assert series["monitor-closed"].state == "open"
        assert monitor.get_report()["pools"]["monitor-known"]["acquired"] == 3
        third.close()
        second.close()
        pools = others.get_report()["pools"]
        assert (list(pools), pools["monitor-known"]["acquired"]) == (["monitor-known"], 2)
        others.stop()
    count = len(LISTENERS)
    del monitor, others, wanted, one, series
    gc.collect()
    assert len(LISTENERS) <= count - 2  # nothing of them is left


def test_reset_of_the_metrics_loses_and_doubles_nothing(make: Make, clock: VirtualClock) -> None:
    pool = make(name="db")
    monitor = observed(pool, clock)
    for _ in range(3):
        use(pool, clock, 1.0)
    monitor.sample()
    pool.metrics.reset()
    for _ in range(2):
        use(pool, clock, 1.0)
    assert monitor.get_report()["pools"]["db"]["acquired"] == 5


def test_peak_between_samples_is_seen(make: Make, clock: VirtualClock) -> None:
    pool = make(name="db", max_size=5)
    monitor = observed(pool, clock, interval=60.0)
    leases = [pool.acquire() for _ in range(4)]
    for lease in leases:
        lease.release()
    clock.advance(60.0)
    assert monitor.get_report()["pools"]["db"]["in_use"]["peak"] == 4


def test_waits_and_their_percentiles(make: Make, clock: VirtualClock) -> None:
    pool = make(name="db", max_size=1)
    monitor = observed(pool, clock)
    for _ in range(3):
        with lent_elsewhere(pool) as leases:
            waiting = Task(lambda: pool.acquire().release())
            clock.until_parked(1)
            clock.advance(2.0)
            leases.pop().release()
        waiting.result()
    with lent_elsewhere(pool) as leases:
        late = Task(pool.acquire, 3.0)
        clock.until_parked(1)
        clock.advance(3.0)
        with pytest.raises(PoolTimeout):
            late.result()
        leases.pop().release()
    found = monitor.get_report()["pools"]["db"]
    assert (found["timeouts"], found["acquired"], found["failed"]) == (1, 7, 1)
    assert found["wait"]["max"] == pytest.approx(2.0, rel=0.5)
    assert found["success_rate"] == pytest.approx(7 / 8)
    assert found["waiting_peak"] == 0  # no sample fell into a wait


def test_samples_come_by_themselves(make: Make, clock: VirtualClock) -> None:
    monitor = observed(make(name="db"), clock, interval=10.0)
    before = monitor.get_performance_summary()["monitor"]["samples"]
    clock.advance(35.0)
    assert monitor.get_performance_summary()["monitor"]["samples"] == before + 3 + 1


def test_history_is_bounded_by_the_retention(make: Make, clock: VirtualClock) -> None:
    pool = make(name="db")
    monitor = observed(pool, clock, retention=300.0, interval=30.0)
    clock.advance(3600.0)
    series = monitor.current_sampler().series["db"]
    assert len(list(series.since(0))) <= 300 / 60 + 2
    assert monitor.retention == 300.0


def test_day_of_a_pool_takes_about_a_megabyte() -> None:
    """The figures of `pooling.observe.history`: measured with every counter and 20 buckets in use."""
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        series = Series("db", "Pool", Minute, 86400.0)
        for number in range(1440):
            minute = series.at(WALL + 60 * number)
            minute.count(range(1000, 1010))
            for name in ("wait", "use", "create"):
                getattr(minute, name).add(
                    NO_TOTALS, Totals(1000, 10.0, Buckets(dict.fromkeys(range(20), 50 + number), 10.0, 0.1))
                )
            minute.closed.add({"idle_timeout": 3, "lifetime": number})
        series.at(WALL + 60 * 1440)
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert grown < 2_000_000, grown


def test_process_figures(clock: VirtualClock) -> None:
    monitor = observed([], clock)
    clock.advance(60.0)
    found = monitor.get_performance_summary()["process"]
    assert found["pid"] == os.getpid()
    assert found["memory_bytes"] > 1_000_000 and 0 < found["memory_percent"] < 100
    assert found["threads"] >= 1 and found["descriptors"] >= 3 and found["cpu_seconds"] > 0


def test_processor_time_is_the_difference_of_two_readings() -> None:
    minute = ProcessMinute(0)
    before = ProcessReading(1, 10.0, 5 << 20, 3, 20, 0.0)
    note(minute, None, before, 0.0)
    note(minute, before, before._replace(cpu_seconds=15.0, rss=9 << 20), 10.0)
    note(minute, before, before, 10.0)
    assert (minute.cpu, minute.cpu_peak, minute.rss, minute.threads) == (0.25, 0.5, 9 << 20, 3)


def test_pool_that_cannot_be_read_is_named_once(
    make: Make, clock: VirtualClock, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool, other = make(name="db"), make(name="fine")

    def fail() -> None:
        raise RuntimeError("no figures")

    monkeypatch.setattr(pool.metrics, "snapshot", fail)
    monitor = observed([pool, other], clock)
    clock.advance(100.0)
    assert [r.getMessage() for r in caplog.records] == ["monitor: db cannot be observed: RuntimeError: no figures"]
    assert monitor.current_sampler().series["fine"].last


# -- which pools ------------------------------------------------------------------------------


def test_no_reference_keeps_a_dropped_pool_alive_and_its_history_stays(clock: VirtualClock) -> None:
    pool = Pool(adapter=FakeAdapter(), clock=clock, name="short", health_check_interval=None)
    monitor = observed([pool], clock)
    use(pool, clock, 1.0)
    monitor.sample()
    del pool
    gc.collect()
    clock.settle()
    clock.advance(10.0)
    assert monitor.source.pools() == []
    found = monitor.get_report()["pools"]["short"]
    assert (found["state"], found["acquired"]) == ("dropped", 1)


def test_closed_pool_leaves_its_history_and_its_successor_continues_it(make: Make, clock: VirtualClock) -> None:
    manager = PoolManager()
    first = make(name="db")
    manager.add_pool(first)
    monitor = observed(manager, clock)
    use(first, clock, 1.0)
    monitor.sample()
    manager.close_pool("db")
    clock.advance(10.0)
    assert monitor.get_report()["pools"]["db"]["state"] == "closed"
    second = make(name="db")
    manager.add_pool(second)
    clock.advance(1.0)
    use(second, clock, 1.0)
    found = monitor.get_report()["pools"]["db"]
    assert (found["state"], found["acquired"]) == ("open", 2)


def test_pool_that_left_its_manager_is_observed_no_longer(make: Make, clock: VirtualClock) -> None:
    manager, pool = PoolManager(), make(name="db")
    manager.add_pool(pool, owned=False)
    monitor = observed(manager, clock)
    assert len(pool.engine.events.observers) == 1
    manager.close_pool("db")
    clock.advance(10.0)
    assert pool.engine.events.observers == () and not pool.closed
    assert monitor.get_report()["pools"]["db"]["state"] == "closed"


def test_pools_of_one_name_are_told_apart(make: Make, clock: VirtualClock) -> None:
    one, other = make(name="db"), make(name="db")
    monitor = observed([one, other], clock)
    use(other, clock, 1.0)
    found = monitor.get_report()["pools"]
    assert {label: pool["acquired"] for label, pool in found.items()} == {"db": 0, "db (2)": 1}
    assert set(monitor.get_performance_summary()["pools"]) == {"db", "db (2)"}
    one.close()
    assert monitor.get_performance_summary()["pools"]["db (2)"]["acquired"] == 1


def test_number_of_series_is_bounded(clock: VirtualClock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pooling.observe.sampler.MOST_SERIES", 3)
    manager = PoolManager()
    monitor = observed(manager, clock)
    for number in range(6):
        manager.create_pool(f"p{number}", FakeAdapter(), clock=clock, health_check_interval=None)
        clock.advance(10.0)
        manager.close_pool(f"p{number}", 0)
        clock.advance(60.0)
    assert list(monitor.current_sampler().series) == ["p3", "p4", "p5"]


def test_all_pools_of_the_process_without_the_parts_of_others(clock: VirtualClock, tmp_path: Path) -> None:
    from pooling import HTTPPool, SQLitePool

    gc.collect()  # pools that other tests have dropped
    with HTTPPool(name="mine-http", health_url="http://127.0.0.1:9/", health_check_interval=None) as http, SQLitePool(
        tmp_path / "a.db", readers=2, name="mine-sqlite"
    ) as lite:
        lite.execute_query("SELECT 1")
        labels = [label for label, _ in PerformanceMonitor(clock=clock).source.pools()]
        assert labels.count("mine-http") == labels.count("mine-sqlite") == 1
        assert not [label for label in labels if label.startswith(("mine-http ", "mine-sqlite-"))]
        assert http.name in labels


def test_foreign_figures_become_a_reading() -> None:
    found = read_foreign(
        {"in_use": 2, "size": 3, "max_size": 4, "waiting_requests": 1, "connection_requests": 10, "error_rate": 0.2,
         "total_connections_created": 3, "connection_errors": 1, "avg_acquisition_time_ms": 50.0}, 7.0
    )  # fmt: skip
    assert (found.in_use, found.waiting, found.counts[:2], found.errors) == (2, 1, (8, 2), {"connect": 1})
    assert found.wait.total == pytest.approx(0.4)


# -- the promised names -----------------------------------------------------------------------


def test_promised_names(make: Make, clock: VirtualClock) -> None:
    manager = PoolManager()
    manager.create_pool("http_pool", "http://127.0.0.1:9/")
    manager.create_pool("db_pool", "sqlite://")
    try:
        summary = observed(manager, clock).get_performance_summary()
        assert summary["status"] == "up"
        assert summary["http_pool"]["success_rate"] == 1.0
        assert summary["database_pool"]["active_connections"] == 0
        assert summary["uptime_seconds"] >= 0 and summary["timestamp"] > 0
        assert json.dumps(summary)
    finally:
        manager.shutdown(0)


def test_only_pool_of_its_kind_is_found_under_the_promised_name(clock: VirtualClock) -> None:
    from pooling import HTTPPool, SQLitePool

    with HTTPPool(name="api") as http, SQLitePool(":memory:", name="cache") as lite:
        summary = observed([http, lite], clock).get_performance_summary()
        assert summary["http_pool"] is summary["pools"]["api"]
        assert summary["database_pool"] is summary["pools"]["cache"]
        assert summary["pools"]["cache"]["last_minute"]["failed"] == 0


def test_status_of_pools_in_trouble(make: Make, clock: VirtualClock) -> None:
    pool = make(name="db")
    monitor = observed(pool, clock)
    assert monitor.get_performance_summary()["status"] == "up"
    pool.pause()
    assert monitor.get_performance_summary()["status"] == "degraded"
    pool.resume()
    lease = pool.acquire()
    pool.resize(1, 0)
    assert monitor.get_performance_summary()["status"] == "degraded"  # exhausted
    lease.release()
    assert monitor.get_performance_summary()["status"] == "up"
    pool.close()
    assert monitor.get_performance_summary()["status"] == "down"
    assert monitor.get_report()["status"] == "down"


# -- the hot path -------------------------------------------------------------------------------


def test_hot_path_does_not_know_of_it(make: Make, clock: VirtualClock) -> None:
    """No lease is observed: the fast path of acquire and release stays open."""
    pool = make(name="db")
    use(pool, clock, 1.0)
    monitor = observed(pool, clock)
    assert pool.engine.events.observers and not pool.engine.events.leases_observed
    assert pool.engine.fast.lendable_generation is pool.engine.state.generation
    for event in ("acquired", "released"):
        assert getattr(Listener, event) is getattr(Observer, event)
    monitor.stop()
    assert pool.engine.events.observers == ()


# -- incidents ----------------------------------------------------------------------------------


def kinds(monitor: PerformanceMonitor) -> list[tuple[str, int]]:
    return [(one["kind"], one["count"]) for one in monitor.get_report()["incidents"]]


def test_outage_exhaustion_leak_and_drain_are_incidents(
    make: Make, clock: VirtualClock, adapter: FakeAdapter
) -> None:
    pool = make(name="db", max_size=1, leak_timeout=20.0)
    monitor = observed(pool, clock)
    adapter.fail("create", ConnectionRefusedError("password=hunter2"), times=3)
    first = Task(lambda: pool.acquire())
    clock.until_parked(1)
    clock.advance(5.0)
    lease = first.result()
    waiting = Task(pool.acquire, 1.0)
    clock.until_parked(1)
    clock.advance(1.0)
    with pytest.raises(PoolTimeout):
        waiting.result()
    clock.advance(30.0)
    lease.release()
    pool.drain()
    assert [kind for kind, _ in kinds(monitor)] == ["outage", "exhausted", "timeout", "leak", "drain"]
    report = monitor.generate_report(format="json")
    assert "hunter2" not in report and "hunter2" not in monitor.generate_report(format="html")
    leak = json.loads(report)["incidents"][3]
    assert Path(__file__).name in leak["text"] and leak["peak"] >= 20


def test_repetitions_are_one_incident(clock: VirtualClock) -> None:
    incidents = Incidents(clock.wall)
    for _ in range(5):
        incidents.note("db", "exhausted", peak=3)
        clock.advance(60.0)
    clock.advance(600.0)
    incidents.note("db", "exhausted")
    incidents.begin("db", "outage", "refused")
    clock.advance(5.0)
    found = incidents.since(0, clock.wall())
    assert [(one["count"], one["peak"]) for one in found] == [(5, 3), (1, 0), (1, 0)]
    assert found[0]["end"] - found[0]["start"] == 240.0
    assert found[2]["end"] is None
    incidents.finish("db", "outage")
    assert incidents.since(0, clock.wall())[2]["end"] == clock.wall()
    assert incidents.since(clock.wall() - 1, clock.wall())[0]["kind"] == "outage"


def test_incidents_are_bounded(clock: VirtualClock) -> None:
    incidents = Incidents(clock.wall)
    for number in range(3 * MOST_INCIDENTS):
        incidents.note("db", "leak", f"place {number}", by_text=True)
        clock.advance(1.0)
    assert len(incidents.since(0, clock.wall())) == MOST_INCIDENTS
    assert len(incidents.last) <= MOST_INCIDENTS + 1


def test_every_event_of_an_observer_is_accepted(clock: VirtualClock) -> None:
    incidents = Incidents(clock.wall)
    listener = Listener("db", lambda: incidents)
    error = ValueError("why")
    listener.created("db", 1.0)
    listener.exhausted("db", 2)
    listener.timed_out("db", 1.0)
    listener.refused("db")
    listener.validation_failed("db", error)
    listener.health_checked("db", error)
    listener.health_checked("db", None)
    listener.leaked("db", "a.py:1 f()", 9.0)
    listener.orphaned("db", "a.py:2 g()")
    listener.outage_began("db", error)
    listener.outage_ended("db", 1.0)
    listener.resets_failed("db", error)
    listener.resets_recovered("db")
    listener.drained("db")
    listener.adapted("db", 10, 12, "3 waited", True)
    listener.adapted("db", 12, 13, "3 waited", False)
    found = {one["kind"] for one in incidents.since(0, clock.wall())}
    assert found == set(WORDS)
    silent = Listener("db", lambda: None)
    silent.refused("db")
    silent.outage_began("db", error)
    silent.outage_ended("db", 1.0)


# -- durations -----------------------------------------------------------------------------------


def test_spread_is_the_difference_of_two_readings() -> None:
    lock = threading.RLock()
    histogram = Histogram(lock)
    for _ in range(100):
        histogram.record(0.010)
    before = Totals.of(100, 0.010, histogram.buckets())
    for _ in range(100):
        histogram.record(0.001)
    after = Totals.of(300, 1.1 / 300, histogram.buckets())  # and 100 that waited for nothing
    spread = Spread()
    spread.add(before, after)
    assert (spread.count, round(spread.total, 6)) == (200, 0.1)
    assert spread.percentile(0.25) <= 1e-6
    assert spread.percentile(0.99) == pytest.approx(0.001, rel=0.42)
    assert spread.most < 0.0015
    spread.freeze()
    whole = Spread()
    whole.merge(spread)
    whole.merge(spread)
    assert (whole.count, whole.percentile(0.99)) == (400, spread.percentile(0.99))


def test_spread_of_a_cleared_histogram_is_all_of_it() -> None:
    spread = Spread()
    spread.add(Totals(10, 1.0, Buckets({5: 10}, 1.0, 0.1)), Totals(2, 0.02, Buckets({place_of(0.01): 2}, 0.02, 0.01)))
    assert (spread.count, spread.total, spread.most) == (2, 0.02, 0.01)
    assert Spread().to_dict() == {"count": 0, "mean": 0.0, "p50": 0.0, "p95": 0.0, "p99": 0.0, "max": 0.0}


def test_bounds_of_buckets() -> None:
    for seconds in (1e-7, 1e-6, 0.5, 1e9):
        place = place_of(seconds)
        assert seconds <= bound_of(place) and (place == 0 or bound_of(place - 1) <= seconds)


def test_hosts_with_the_fewest_requests_are_added_up() -> None:
    minute = Minute(0)
    for number in range(MOST_HOSTS + 5):
        minute.hosts[f"host-{number}"] = figures = HostMinute()
        figures.statuses.add({200: number + 1, 503: 1})
    minute.freeze()
    assert len(minute.hosts) == MOST_HOSTS + 1
    assert sum(figures.requests for figures in minute.hosts.values()) == sum(range(1, 16)) + 15
    assert minute.hosts["others"].requests == sum(range(1, 6)) + 5


# -- advice -----------------------------------------------------------------------------------------


def busy_minute(rate: float, hold: float, wait: float, **counts: int) -> Minute:
    minute = Minute(600_000)
    minute.seconds, minute.max_size, minute.size, minute.in_use_peak = 60.0, 4, 4, 4
    number = int(rate * 60)
    given = {"acquired": number, **counts}
    minute.count(given.get(name, 0) for name in COUNTERS)
    minute.use.add(NO_TOTALS, Totals(number, number * hold, Buckets({place_of(hold): number}, number * hold, hold)))
    minute.wait.add(NO_TOTALS, Totals(number, number * wait, Buckets({place_of(wait): number}, number * wait, wait)))
    return minute


def advice_for(*minutes: Minute, incidents: Any = (), kind: str = "Pool", **settings: Any) -> list[dict[str, Any]]:
    series = Series("db", kind, Minute, 86400.0)
    series.settings = {"max_size": 4, "min_size": 0, **settings}
    total = Minute(0)
    for minute in minutes:
        total.merge(minute)
    return advise(series, list(minutes), total, list(incidents))


def incident(kind: str, start: float = 600_000.0, end: float | None = 600_030.0, text: str = "x") -> dict[str, Any]:
    return {"pool": "db", "kind": kind, "start": start, "end": end, "count": 1, "text": text, "peak": 0.0}


def test_the_adaptive_size_is_quoted_and_not_contradicted() -> None:
    crowded = busy_minute(20, 0.25, 0.8, exhausted=50)
    assert advice_for(crowded, adaptive="on", max_size=50) == []
    assert [one["setting"] for one in advice_for(crowded, adaptive="on", max_size=4)] == ["max_size"]
    proposal = {**incident("proposed", text="4 -> 7: 3 waited"), "peak": 7}
    (found,) = advice_for(incidents=[proposal], adaptive="observe")
    assert found["why"] == "Adaptive size, 4 -> 7: 3 waited."
    assert (found["setting"], found["suggested"]) == ("adaptive", "on")
    (found,) = advice_for(incidents=[proposal], adaptive="on")
    assert (found["setting"], found["current"], found["suggested"]) == ("max_size", 4, 7)
    step = incident("adapted", start=600_100.0, end=600_100.0)
    assert advice_for(incidents=[proposal, step], adaptive="on") == []


def test_no_second_writer_is_proposed_for_sqlite() -> None:
    minute = busy_minute(20, 0.25, 0.8, exhausted=50)
    minute.max_size = 1
    (writer,) = advice_for(minute, kind="SQLitePool", max_size=1)
    assert (writer["title"], writer["setting"]) == ("Write in fewer or shorter transactions", None)
    (found,) = advice_for(minute, kind="PostgresPool", max_size=1)
    assert found["setting"] == "max_size"


def test_size_by_littles_law() -> None:
    """20 a second of 0.25 s each are 5 at once: 4 are too few, and somewhat more than 5 are needed."""
    (found,) = advice_for(busy_minute(20, 0.25, 0.8, exhausted=50, timeouts=7))
    assert (found["setting"], found["current"], found["severity"]) == ("max_size", 4, "act")
    assert 6 <= found["suggested"] <= 14
    assert str(found["suggested"]) in found["title"] and "Little" not in found["title"]
    (server,) = advice_for(busy_minute(20, 0.25, 0.8, exhausted=50), kind="PostgresPool")
    assert "doctor" in server["why"] and server["severity"] == "consider"


def test_busiest_minute_is_robust() -> None:
    minutes = [busy_minute(1, 0.1, 0.0) for _ in range(39)] + [busy_minute(100, 0.1, 0.0)]
    assert busiest(minutes) is not minutes[-1]
    assert busiest(minutes[-2:]) is minutes[-1]
    assert busiest([]) is None


def test_timeouts_in_an_outage_are_no_matter_of_size() -> None:
    (found,) = advice_for(busy_minute(20, 0.25, 0.8, exhausted=50, timeouts=7), incidents=[incident("outage")])
    assert found["title"] == "The server could not be reached" and found["setting"] is None
    (lasting,) = advice_for(incidents=[incident("outage", end=None)])
    assert lasting["severity"] == "act" and "still going on" in lasting["why"]


def test_all_held_and_none_returned() -> None:
    minute = busy_minute(0, 0.1, 0.0, exhausted=1, timeouts=3)
    (found,) = advice_for(minute)
    assert found["setting"] == "leak_timeout"


def test_long_leases_where_the_size_suffices() -> None:
    (found,) = advice_for(busy_minute(1, 0.01, 0.0, exhausted=1, timeouts=1))
    assert found["title"].startswith("Look for leases")


@pytest.mark.parametrize(
    ("kind", "title"),
    [("leak", "Release leases earlier"), ("orphan", "Release leases: use with"), ("resets", "Resets kept failing")],
)
def test_incident_gives_advice(kind: str, title: str) -> None:
    (found,) = advice_for(incidents=[incident(kind, text="shop.py:7 buy()")])
    assert (found["title"], found["severity"]) == (title, "act")
    assert "shop.py:7 buy()" in found["why"]


def test_deaths_churn_idle_capacity_and_slow_creation() -> None:
    dead = busy_minute(1, 0.01, 0.0, created=20)
    dead.closed.add({"dead": 8})
    assert advice_for(dead, keepalive_interval=None)[0]["setting"] == "keepalive_interval"
    churn = busy_minute(2, 0.01, 0.0, created=100)
    churn.closed.add({"max_idle": 90})
    assert advice_for(churn, max_idle=1)[0]["setting"] == "max_idle"
    idle = busy_minute(1, 0.01, 0.0)
    idle.seconds, idle.size, idle.in_use_peak, idle.min_size = 7200.0, 20, 2, 20
    (found,) = advice_for(idle)
    assert (found["setting"], found["suggested"]) == ("min_size", 3)
    slow = busy_minute(1, 0.01, 0.0)
    slow.create.add(NO_TOTALS, Totals(5, 10.0, Buckets({place_of(2.0): 5}, 10.0, 2.0)))
    assert advice_for(slow)[0]["setting"] == "min_size"


def test_hosts_and_queries() -> None:
    minute = busy_minute(1, 0.01, 0.0)
    minute.hosts["api"] = figures = HostMinute()
    figures.statuses.add({200: 80, 503: 15, 429: 5})
    minute.queries.add(NO_TOTALS, Totals(20, 60.0, Buckets({place_of(3.0): 20}, 60.0, 3.0)))
    minute.query_errors = 5
    titles = [one["title"] for one in advice_for(minute)]
    assert titles == ["api fails", "api limits the rate", "Queries are slow", "Queries fail"]


def test_quiet_pool_gets_no_advice() -> None:
    assert advice_for(busy_minute(1, 0.01, 0.0)) == []


def test_advice_about_the_process() -> None:
    minutes = []
    for number in range(120):
        minute = ProcessMinute(60 * number)
        minute.seconds, minute.cpu_seconds = 60.0, 57.0
        minute.rss, minute.descriptors = (100 + 2 * number) << 20, 20
        minutes.append(minute)
    found = advise_process(minutes)
    assert [one["title"] for one in found] == [
        "The process uses a whole processor", "The process keeps more and more memory"
    ]  # fmt: skip
    assert advise_process(minutes[:5]) == []


# -- reports ------------------------------------------------------------------------------------------


class Page(html.parser.HTMLParser):
    """Reads a page strictly: every tag is closed, in order."""

    VOID = {"meta", "br", "rect", "path"}

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.links: list[str] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href", "onload", "onclick")]
        if tag not in ("meta",):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


@pytest.fixture
def eventful(make: Make, clock: VirtualClock) -> PerformanceMonitor:
    """A pool with a name that is HTML, used for two hours."""
    pool = make(name="<script>alert(1)</script>&\"'", max_size=1)
    monitor = observed(pool, clock, interval=60.0)
    monitor.pool = pool  # type: ignore[attr-defined]
    for _ in range(6):
        with lent_elsewhere(pool) as leases:
            waiting = Task(pool.acquire, 1.0)
            clock.until_parked(1)
            clock.advance(1.0)
            with pytest.raises(PoolTimeout):
                waiting.result()
            leases.pop().release()
        clock.advance(1200.0)
    return monitor


def test_page_is_one_file_and_every_text_is_escaped(eventful: PerformanceMonitor) -> None:
    text = eventful.generate_report(format="html")
    page = Page(text)
    assert "script" not in page.tags and page.links == []
    assert page.tags.count("svg") >= 5 and page.tags.count("title") > 50
    assert not re.search(r"https?://|url\(|@import", text)
    assert "prefers-color-scheme:dark" in text and 'name="viewport"' in text
    assert any("<script>alert(1)</script>" in one for one in page.texts)
    assert any("Look for leases" in one or "Raise max_size" in one for one in page.texts)


def test_json_has_the_documented_shape(eventful: PerformanceMonitor) -> None:
    report = json.loads(eventful.generate_report(format="json"))
    documented = set(re.findall(r"``(\w+)``", shape.__doc__ or ""))
    assert set(report) <= documented | {"from", "to"}
    (pool,) = report["pools"].values()
    assert set(pool) - documented <= {"requests_per_second", *COUNTERS}
    points = report["timeline"]["points"]
    assert points <= MOST_POINTS
    assert all(len(values) == points for values in pool["series"].values())
    assert report["totals"]["failed"] == 6
    assert sum(value or 0 for value in pool["series"]["failed"]) == 6


def test_text_says_what_happened(eventful: PerformanceMonitor) -> None:
    text = eventful.generate_report()
    assert "What to change\n  ! " in text
    assert "acquires timed out" in text and "exhausted" in text and "▁" in text
    assert "6 timed out" in text and "\n1 pool, " in text


@pytest.mark.parametrize(
    ("kind", "lasted", "count", "expected"),
    [
        ("leak", 0.0, 1, ""),
        ("leak", 23.5, 12, ", 12 times within 23.5 s"),
        ("timeout", 0.1, 8, ", 8 times"),
        ("exhausted", 3.85, 3, " for 3.85 s, 3 times"),
        ("outage", 4.0, 1, " for 4 s"),
        ("outage", None, 2, ", still going on, 2 times"),
    ],
)
def test_how_long_and_how_often(kind: str, lasted: float | None, count: int, expected: str) -> None:
    end = None if lasted is None else WALL + lasted
    assert span_text({"kind": kind, "start": WALL, "end": end, "count": count}) == expected


def test_peak_of_the_process_is_not_below_its_last_reading() -> None:
    last, none = ProcessReading(1, 0.0, 200, 9, 40, 0.0), Series("process", "process", ProcessMinute, 60.0)
    report = compile_report(
        [], none, Incidents.of([]), now=WALL, hours=1, since=WALL, status="up", enabled=True, last=last
    )
    assert report["process"]["memory"] == {"last": 200, "peak": 200}
    assert report["process"]["threads"]["peak"] == 9 and report["process"]["descriptors"]["peak"] == 40


def test_period_of_a_report(make: Make, clock: VirtualClock) -> None:
    pool = make(name="db")
    monitor = observed(pool, clock, interval=60.0)
    use(pool, clock, 1.0)
    clock.advance(3 * 3600.0)
    use(pool, clock, 1.0)
    assert monitor.get_report(hours=1)["pools"]["db"]["acquired"] == 1
    assert monitor.get_report(hours=24)["pools"]["db"]["acquired"] == 2
    assert monitor.get_report(hours=24)["from"] == WALL  # when the observation began


def test_report_of_nothing(clock: VirtualClock) -> None:
    monitor = observed([], clock)
    for form in ("text", "json", "html"):
        assert monitor.generate_report(format=form)
    assert "Nothing." in monitor.generate_report()


def test_a_long_list_of_incidents_is_cut(eventful: PerformanceMonitor) -> None:
    report = eventful.get_report()
    report["incidents"] = [dict(report["incidents"][0], start=WALL + number) for number in range(300)]
    assert "older ones are left out" in render_text(report)
    page = Page(render_page(report))
    assert "details" in page.tags and page.tags.count("li") == 212


# -- exports ----------------------------------------------------------------------------------------------


def test_export_to_a_file_is_rotated(make: Make, clock: VirtualClock, tmp_path: Path) -> None:
    path, pool = tmp_path / "metrics.json", make(name="db")
    monitor = observed(pool, clock)
    monitor.export_to(path, every=30.0, keep=2)
    assert not path.exists()
    clock.advance(30.0)
    assert json.loads(path.read_text())["pools"]["db"]["size"] == 0
    clock.advance(90.0)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["metrics.json", "metrics.json.1", "metrics.json.2"]
    times = [json.loads((tmp_path / name).read_text())["timestamp"] for name in ("metrics.json.1", "metrics.json.2")]
    assert times == sorted(times, reverse=True)


def test_interval_of_exports_comes_from_the_environment(
    make: Make, clock: VirtualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("METRICS_EXPORT_INTERVAL", "15")
    assert observed([], clock, interval=None).interval == PoolSettings().metrics_interval  # samples are as before
    got: list[dict[str, Any]] = []
    pool = make(name="db")
    monitor = observed(pool, clock, export=got.append, interval=7.0)
    clock.advance(60.0)
    assert len(got) == 4
    assert got[0]["pools"]["db"]["max_size"] == 2
    monitor.stop()
    clock.advance(60.0)
    assert len(got) == 4


def test_reader_finds_a_whole_file_at_any_time(tmp_path: Path) -> None:
    path = tmp_path / "m.json"
    write_atomically(str(path), "{}", 3)
    stop = threading.Event()
    seen: list[str] = []

    def read() -> None:
        while not stop.is_set():
            seen.append(path.read_text())

    reader = Task(read)
    for number in range(200):
        write_atomically(str(path), "x" * 4000 + str(number % 10), 3)
    stop.set()
    reader.result()
    assert {len(text) for text in seen} <= {2, 4001}
    assert sorted(one.name for one in tmp_path.iterdir()) == ["m.json", "m.json.1", "m.json.2", "m.json.3"]


def test_errors_of_exports_are_logged_once(
    make: Make, clock: VirtualClock, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    broken = [True]

    def send(summary: object) -> None:
        if broken[0]:
            raise ConnectionError("nobody there, password=hunter2")

    monitor = observed(make(name="db"), clock)
    monitor.export_to(send, every=10.0)
    monitor.export_to(tmp_path / "no" / "such" / "folder.json", every=10.0)
    clock.advance(50.0)
    texts = [record.getMessage() for record in caplog.records]
    assert len(texts) == 2 and "hunter2" not in str(texts)
    broken[0] = False
    clock.advance(10.0)
    broken[0] = True
    clock.advance(30.0)
    assert len(caplog.records) == 3


def test_export_that_hangs_delays_nothing(make: Make) -> None:
    clock = VirtualClock(start=WALL, workers="threads")
    pool = Pool(adapter=FakeAdapter(), clock=clock, name="db", health_check_interval=None)
    hangs, calls = threading.Event(), []

    def send(summary: object) -> None:
        calls.append(1)
        hangs.wait(20)

    monitor = observed(pool, clock, interval=10.0)
    monitor.export_to(send, every=10.0)
    try:
        for _ in range(5):
            clock.advance(10.0)
            pool.acquire().release()
        report = monitor.get_report()
        assert report["pools"]["db"]["acquired"] == 5
        assert len(calls) <= 1
    finally:
        hangs.set()
        monitor.stop()


def test_path_has_the_process_id(tmp_path: Path) -> None:
    exporter = Exporter(tmp_path / "m-{pid}.json", 1.0, 0)
    exporter.run(lambda: {"a": 1})
    assert json.loads((tmp_path / f"m-{os.getpid()}.json").read_text()) == {"a": 1}


# -- switched off, and bad arguments ------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["environment", "argument"])
def test_switched_off(
    how: str, make: Make, clock: VirtualClock, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if how == "environment":
        monkeypatch.setenv("ENABLE_METRICS", "false")
    pool = make(name="db")
    path = tmp_path / "m.json"
    monitor = observed(pool, clock, export=path, enabled=None if how == "environment" else False)
    clock.advance(3600.0)
    assert not monitor.enabled and not path.exists() and pool.engine.events.observers == ()
    assert monitor.get_performance_summary()["pools"]["db"]["max_size"] == 2
    assert "switched off" in monitor.generate_report() and "switched off" in monitor.generate_report(format="html")
    assert repr(monitor) == "<PerformanceMonitor: off>"


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda m: PerformanceMonitor([], interval=0), ValueError, "interval must be at least 0.1, not 0"),
        (lambda m: PerformanceMonitor([], interval="5"), TypeError, "interval must be a number, not '5'"),
        (lambda m: PerformanceMonitor([], interval=float("nan")), ValueError, "interval must be at least 0.1, not nan"),
        (lambda m: PerformanceMonitor([], retention=1e9), ValueError, "retention must be at most 604800, not 10000"),
        (lambda m: PerformanceMonitor([], enabled="yes"), TypeError, "enabled must be true, false or None, not 'yes'"),
        (lambda m: PerformanceMonitor("db"), TypeError, "PoolManager, a pool or several pools, not 'db'"),
        (lambda m: PerformanceMonitor([1]), TypeError, "pool must be a pooling.Pool"),
        (lambda m: PerformanceMonitor([], export=7), TypeError, "export must be a path or a callable, not 7"),
        (lambda m: PerformanceMonitor([], export=" "), ValueError, "not an empty string"),
        (lambda m: m.export_to("x", every=0), ValueError, "every must be at least 0.1, not 0"),
        (lambda m: m.export_to("x", keep=-1), ValueError, "keep must be from 0 to 1000, not -1"),
        (lambda m: m.export_to("x", keep=1.5), TypeError, "keep must be a whole number, not 1.5"),
        (lambda m: m.generate_report(hours=0), ValueError, "hours must be above 0, not 0"),
        (lambda m: m.generate_report(hours=-1), ValueError, "hours must be above 0, not -1"),
        (lambda m: m.generate_report(hours=200), ValueError, "hours must be at most 168, not 200"),
        (lambda m: m.generate_report(hours=True), TypeError, "hours must be a number, not True"),
        (lambda m: m.generate_report(format="pdf"), ValueError, "format must be one of text, json, html, not 'pdf'"),
        (lambda m: m.generate_report(format=None), TypeError, "format must be one of text, json, html, not None"),
    ],
)  # fmt: skip
def test_bad_arguments(
    call: Callable[[PerformanceMonitor], object], error: type[Exception], text: str, clock: VirtualClock
) -> None:
    monitor = observed([], clock)
    with pytest.raises(error, match=re.escape(text)):
        call(monitor)
    assert type(monitor).__name__ == "PerformanceMonitor"


@pytest.mark.parametrize(("name", "value"), [("ENABLE_METRICS", "maybe"), ("METRICS_EXPORT_INTERVAL", "soon")])
def test_bad_variables(name: str, value: str, clock: VirtualClock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=f"{name}='{value}'"):
        observed([], clock, export=lambda summary: None)


def test_interval_is_that_of_the_pools(make: Make, clock: VirtualClock) -> None:
    assert observed([], clock, interval=None).interval == PoolSettings().metrics_interval
    slow, fast = make(name="a", metrics_interval=300.0), make(name="b", metrics_interval=2.0)
    assert observed([slow], clock, interval=None).interval == 60.0
    assert observed([slow, fast], clock, interval=None).interval == 2.0


def test_not_copied(clock: VirtualClock) -> None:
    with pytest.raises(TypeError, match="cannot be copied or pickled"):
        copy.copy(observed([], clock))


def test_dropped_monitor_leaves_nothing(make: Make, clock: VirtualClock) -> None:
    pool = make(name="db")
    gone = weakref.ref(observed(pool, clock))
    gc.collect()
    assert gone() is None
    clock.advance(100.0)
    pool.drain()  # its listener has nothing to note it in
    assert not clock.runtime.reaper.has_other_requests()

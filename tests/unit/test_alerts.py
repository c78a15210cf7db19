"""Alerts on a clock that stands still: when one begins and ends, what the rules see, and where alerts go."""

from __future__ import annotations

import copy
import gc
import logging
import math
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pooling import HTTPPool, Pool, PoolManager, PoolTimeout, SQLitePool, TooManyWaiting
from pooling.observe import Alert, Alerts, PerformanceMonitor, Rule, Sample, Webhook, usual_rules
from pooling.observe.alerts import living
from pooling.observe.delivery import MOST_QUEUED, Delivery, Failed
from pooling.observe.hysteresis import AGAIN, LONGEST_CLEAR, Change, Hysteresis
from pooling.observe.rules import DEFAULT_RULES, Watch
from pooling.testing import FakeAdapter, VirtualClock
from tests.unit.conftest import Make, Task, lent_elsewhere, run_jobs

BEGAN, ENDED = Change.BEGAN, Change.ENDED


# -- hysteresis ------------------------------------------------------------------------------


def test_an_alert_begins_after_and_ends_after() -> None:
    state = Hysteresis(after=10.0, clear=60.0)
    assert [state.update(True, now) for now in (0.0, 9.9, 10.0, 11.0)] == [None, None, BEGAN, None]
    assert state.firing and state.began == 0.0
    assert [state.update(False, now) for now in (20.0, 79.9, 80.0, 81.0)] == [None, None, ENDED, None]
    assert not state.firing and state.ended == 20.0


def test_what_does_not_last_is_no_alert() -> None:
    state = Hysteresis(after=10.0, clear=60.0)
    for now in range(100):
        assert state.update(now % 9 != 0, float(now)) is None


def test_at_once() -> None:
    state = Hysteresis(after=0.0, clear=0.0)
    assert (state.update(True, 1.0), state.update(False, 1.0)) == (BEGAN, ENDED)


@pytest.mark.parametrize("period", [2.0, 30.0, 100.0, 119.0])
def test_a_condition_that_flaps_is_one_alert(period: float) -> None:
    state, now, found = Hysteresis(after=0.0, clear=60.0), 0.0, []
    while now < 4 * 3600:
        found.append(state.update(now % period < period / 2, now))
        now += 0.5
    assert [change for change in found if change] == [BEGAN]
    assert state.flaps == pytest.approx(4 * 3600 / period, abs=2)


def test_slow_flapping_becomes_rare() -> None:
    """Bad for 100 s and good for 100 s, for a week: each alert takes twice as long to end as the one before."""
    state, found = Hysteresis(after=0.0, clear=60.0), []
    for step in range(7 * 24 * 3600 // 10):
        change = state.update(step // 10 % 2 == 0, step * 10.0)
        if change:
            found.append((change, step * 10.0))
    assert [change for change, _ in found] == [BEGAN, ENDED, BEGAN]
    assert state.clear == 120.0


def test_clear_is_bounded_and_forgotten() -> None:
    state, now = Hysteresis(after=0.0, clear=60.0), 0.0
    for _ in range(20):
        assert state.update(True, now) is BEGAN
        state.update(False, now)
        now += state.clear
        assert state.update(False, now) is ENDED
    assert state.clear == LONGEST_CLEAR
    now += 2 * LONGEST_CLEAR
    state.update(True, now)
    assert state.clear == 60.0
    assert AGAIN < LONGEST_CLEAR


def test_end_by_force() -> None:
    state = Hysteresis(after=0.0, clear=60.0)
    assert state.end(0.0) is None
    state.update(True, 1.0)
    assert (state.end(2.0), state.end(3.0), state.ended) == (ENDED, None, 2.0)


RUNS = st.tuples(st.sampled_from([True, True, False, False, None]), st.integers(1, 10), st.floats(0.1, 20.0))


@given(after=st.floats(0, 30), clear=st.floats(0, 60), runs=st.lists(RUNS, min_size=5, max_size=40))
def test_alerts_alternate(after: float, clear: float, runs: list[tuple[bool | None, int, float]]) -> None:
    """At most one is open, each that began has ended or is open, and none begins or ends too early."""
    state, now, changes = Hysteresis(after, clear), 1000.0, []
    held_since = good_since = math.inf  # how long the condition has held, or not, as the updates showed it
    for holds, seconds in [(holds, seconds) for holds, number, seconds in runs for _ in range(number)]:
        now += seconds
        before, due = state.firing, state.clear
        if holds is None:
            change = state.end(now)
            held_since = good_since = math.inf
            assert change is (ENDED if before else None)
        else:
            held_since = min(held_since, now) if holds else math.inf
            good_since = math.inf if holds else min(good_since, now)
            change = state.update(holds, now)
            if change is BEGAN:
                assert holds and now - held_since >= after
            if change is ENDED:
                assert not holds and now - good_since >= clear
                assert state.ended == good_since
            if holds and not before and now - held_since >= after:
                assert change is BEGAN  # in time
            if not holds and before and now - good_since >= due:
                assert change is ENDED
        if change is not None:
            changes.append(change)
        assert state.firing is (len(changes) % 2 == 1)
        assert clear <= state.clear <= max(clear, LONGEST_CLEAR)
        assert (state.began is None) is not (state.firing or (holds is True))
    assert changes == [BEGAN, ENDED] * (len(changes) // 2) + [BEGAN] * (len(changes) % 2)


# -- rules, on pools -------------------------------------------------------------------------


class Seen(list[Alert]):
    """A target that keeps what it gets."""

    __hash__ = object.__hash__  # type: ignore[assignment]

    def __call__(self, alert: Alert) -> None:
        self.append(alert)

    @property
    def short(self) -> list[str]:
        return [f"{alert.pool} {alert.kind} {alert.state}" for alert in self]


@pytest.fixture
def seen() -> Seen:
    return Seen()


@pytest.fixture(autouse=True)
def no_alerts_left() -> Iterator[None]:
    yield
    for alerts in list(living.values()):
        alerts.stop()


def watch(pools: Any, clock: VirtualClock, seen: Seen, **given: Any) -> Alerts:
    return Alerts(pools, to=seen, clock=clock, **given)


def test_nothing_is_wrong(make: Make, clock: VirtualClock, seen: Seen) -> None:
    pool = make(leak_timeout=100.0)
    alerts = watch([pool], clock, seen)
    for _ in range(100):
        with pool.acquire():
            clock.advance(1.0)
    assert (seen, alerts.firing(), alerts.dropped) == ([], [], 0)


def test_exhausted(make: Make, clock: VirtualClock, seen: Seen) -> None:
    pool = make(name="db", max_size=1)
    alerts = watch([pool], clock, seen)
    with lent_elsewhere(pool) as leases:
        waiter = Task(pool.acquire, 1000.0)
        clock.until_parked(1)
        clock.advance(9.0)
        assert seen == []
        clock.advance(5.0)
        assert seen.short == ["db exhausted began"]
        clock.advance(100.0)
        assert seen.short == ["db exhausted began"]
        assert alerts.firing() == seen
        leases[0].release()
        waiter.result().release()
    clock.advance(70.0)
    assert seen.short == ["db exhausted began", "db exhausted ended"]
    began, ended = seen
    assert began.text.startswith("exhausted: 1 of 1 in use, 1 waiting, the oldest for 1")
    assert "held by: conftest.py:" in began.text
    assert began.ended is None and ended.began == began.began
    assert ended.ended is not None and 114 <= ended.ended - ended.began <= 116
    assert ended.text == f"exhausted: over after {ended.ended - ended.began:.0f} s"
    assert (began.severity, began.key, alerts.firing()) == ("warning", ended.key, [])


def test_timeouts_are_counted_from_the_beginning_of_a_new_pool(make: Make, clock: VirtualClock, seen: Seen) -> None:
    first = make(name="old", max_size=1)
    pools = PoolManager()
    pools.add_pool(first)

    def time_out(pool: Pool[Any]) -> None:
        with lent_elsewhere(pool) as leases:
            with pytest.raises(PoolTimeout):
                pool.acquire(0.0)
            leases[0].release()

    time_out(first)  # before
    watch(pools, clock, seen)
    clock.advance(5.0)
    assert seen == []
    second = make(name="new", max_size=1)
    pools.add_pool(second)
    time_out(second)
    time_out(second)
    clock.advance(1.0)
    assert seen.short == ["new timeouts began"]
    assert (seen[0].text, seen[0].severity) == ("2 acquires timed out", "critical")
    clock.advance(59.0)
    time_out(second)
    clock.advance(59.0)
    assert len(seen) == 1
    clock.advance(5.0)
    assert seen.short[1:] == ["new timeouts ended"]
    assert seen[1].flaps == 1 and "with 1 interruptions" in seen[1].text
    second.metrics.reset()
    time_out(second)
    clock.advance(1.0)
    assert seen.short[2:] == ["new timeouts began"]


def test_outage_is_one_alert(make: Make, clock: VirtualClock, adapter: FakeAdapter, seen: Seen) -> None:
    pool = make(name="db", max_size=1, acquire_timeout=0.5)
    watch([pool], clock, seen)
    adapter.fail("create", ConnectionRefusedError("password=hunter2 refused"), times=10_000)
    for _ in range(20):
        waiter = Task(pool.acquire)
        clock.until_parked(1)
        clock.advance(1.0)
        with pytest.raises(PoolTimeout):
            waiter.result()
    assert seen.short == ["db outage began"]  # the timeouts are its consequence
    assert "hunter2" not in str(seen[0].to_dict()) and "refused" in seen[0].text
    adapter.mend("create")
    clock.advance(60.0)
    pool.acquire().release()
    clock.advance(30.0)
    assert seen.short == ["db outage began", "db outage ended"]


def test_short_outage_is_no_alert(make: Make, clock: VirtualClock, adapter: FakeAdapter, seen: Seen) -> None:
    pool = make(acquire_timeout=10.0)
    watch([pool], clock, seen)
    adapter.fail("create", ConnectionRefusedError("restarting"), times=2)
    waiter = Task(pool.acquire)
    clock.until_parked(1)
    clock.advance(3.0)
    waiter.result().release()
    clock.advance(30.0)
    assert seen == []


def test_leak_and_dropped_lease(make: Make, clock: VirtualClock, seen: Seen) -> None:
    pool = make(name="db", leak_timeout=5.0)
    watch([pool], clock, seen)
    lease = pool.acquire()
    clock.advance(20.0)
    assert seen.short == ["db leak began"]
    assert "held for longer than leak_timeout: test_alerts.py:" in seen[0].text
    clock.advance(200.0)
    assert len(seen) == 1
    lease.release()
    clock.advance(70.0)
    assert seen.short[1:] == ["db leak ended"]
    pool.acquire()
    gc.collect()
    clock.advance(1.0)
    assert seen.short[2:] == ["db dropped began"]
    assert seen[2].text == "1 lease dropped without release"


def test_resets_keep_failing(make: Make, clock: VirtualClock, adapter: FakeAdapter, seen: Seen) -> None:
    pool = make(name="db", validate_on_acquire=False)
    watch([pool], clock, seen)
    adapter.fail("reset", ConnectionError("no"), times=3)
    for _ in range(3):
        pool.acquire().release()
    clock.advance(1.0)
    assert seen.short == ["db resets began"] and "no" in seen[0].text
    for _ in range(30):
        pool.acquire().release()
    clock.advance(70.0)
    assert seen.short[1:] == ["db resets ended"]


def test_refused(make: Make, clock: VirtualClock, seen: Seen) -> None:
    pool = make(name="db", max_size=1, max_waiting=0)
    watch([pool], clock, seen)
    with lent_elsewhere(pool) as leases:
        with pytest.raises(TooManyWaiting):
            pool.acquire(1.0)
        leases[0].release()
    clock.advance(1.0)
    assert seen.short == ["db refused began"]
    assert seen[0].text == "1 acquire refused: the wait queue is full"


def test_health(make: Make, clock: VirtualClock, adapter: FakeAdapter, seen: Seen) -> None:
    pool = make(name="db", health_check_interval=10.0)
    watch([pool], clock, seen)
    pool.fill(2)
    adapter.fail("validate", ConnectionError("odd"), times=1)
    clock.advance(12.0)
    assert seen.short == ["db unhealthy began"]
    clock.advance(10.0)
    pool.fill(1)
    clock.advance(60.0)
    assert seen.short == ["db unhealthy began", "db unhealthy ended"]


def test_utilization(make: Make, clock: VirtualClock, seen: Seen) -> None:
    pool = make(name="db", max_size=2)
    watch([pool], clock, seen, rules=usual_rules(utilization=0.5, utilization_after=30.0))
    with pool.acquire():
        clock.advance(100.0)
        assert seen == []
        with pool.acquire():
            clock.advance(35.0)
            assert seen.short == ["db busy began"]
            assert seen[0].text == "2 of 2 in use (limit 50 %)"
    clock.advance(70.0)
    assert seen.short[1:] == ["db busy ended"]


def test_slow_waits(make: Make, clock: VirtualClock, seen: Seen) -> None:
    pool = make(name="db", max_size=1, acquire_timeout=4.0)
    watch([pool], clock, seen, rules=usual_rules(exhausted=None, wait_after=10.0, utilization_after=None))

    def wait_for(seconds: float) -> None:
        with lent_elsewhere(pool) as leases:
            waiter = Task(pool.acquire)
            clock.until_parked(1)
            clock.advance(seconds)
            leases[0].release()
            waiter.result().release()

    for _ in range(9):  # each is two acquires
        wait_for(3.0)
    assert seen == []  # too few to say
    for _ in range(12):
        wait_for(3.0)
    assert seen.short == ["db slow began"]
    assert seen[0].text.startswith("1 acquire of 100 waits for ") and "(limit 2 s)" in seen[0].text
    for _ in range(70):
        wait_for(0.1)
        clock.advance(2.0)
    assert seen.short[1:] == ["db slow ended"]


def test_alerts_of_a_closed_pool_end(make: Make, clock: VirtualClock, seen: Seen) -> None:
    pools = PoolManager()
    for name in ("a", "b", "c"):
        pools.add_pool(make(name=name, max_size=1, leak_timeout=1.0), owned=name != "b")
    leases = [pools[name].acquire() for name in pools]
    alerts = watch(pools, clock, seen)
    clock.advance(3.0)
    assert sorted(seen.short) == ["a leak began", "b leak began", "c leak began"]
    pools["a"].close(0.0, interrupt=False)
    pools.close_pool("b")  # which belongs to other code, and stays open
    clock.advance(1.0)
    assert sorted(seen.short[3:]) == ["a leak ended", "b leak ended"]
    assert seen[3].text.endswith("the pool was closed or removed")
    pool = pools["c"]
    pools.close_pool("c", 0.0)
    del pool
    clock.advance(1.0)
    assert len(seen) == 6 and alerts.firing() == []
    for lease in leases:
        lease.release()


def test_pools_of_one_name(make: Make, clock: VirtualClock, seen: Seen) -> None:
    pools = [make(name="db", max_size=1, leak_timeout=1.0) for _ in range(2)]
    leases = [pool.acquire() for pool in pools]
    watch(pools, clock, seen)
    clock.advance(3.0)
    assert sorted(seen.short) == ["db (2) leak began", "db leak began"]
    for lease in leases:
        lease.release()


def test_a_rule_of_ones_own_and_one_that_fails(
    make: Make, clock: VirtualClock, seen: Seen, caplog: pytest.LogCaptureFixture
) -> None:
    samples: list[Sample] = []

    def two_in_use(sample: Sample) -> str | None:
        samples.append(sample)
        return "two\nat once" if sample.in_use >= 2 else None

    def wrong(sample: Sample) -> str | None:
        raise LookupError("password=hunter2")

    pool = make(name="db")
    watch([pool], clock, seen, rules=[Rule("wrong", wrong), Rule("two", two_in_use, severity="critical", clear=0.0)])
    with pool.acquire(), pool.acquire():
        clock.advance(3.0)
    clock.advance(3.0)
    assert seen.short == ["db two began", "db two ended"]
    assert (seen[0].text, seen[0].severity) == ("two at once", "critical")
    (complaint,) = [record.getMessage() for record in caplog.records if "cannot be checked" in record.getMessage()]
    assert complaint == "alerts: rule 'wrong' cannot be checked: LookupError: password=***"
    assert (samples[1].seconds, samples[1].max_size) == (1.0, 2)


def test_pools_of_a_monitor(make: Make, clock: VirtualClock, seen: Seen) -> None:
    pool = make(name="db", leak_timeout=1.0)
    monitor = PerformanceMonitor([pool], clock=clock)
    watch(monitor, clock, seen)
    lease = pool.acquire()
    clock.advance(3.0)
    assert seen.short == ["db leak began"]
    lease.release()


def test_http_and_sqlite(tmp_path: Any, clock: VirtualClock) -> None:
    http, lite = HTTPPool(name="http"), SQLitePool(tmp_path / "x.db", readers=1, name="lite")
    with http, lite:
        assert lite.readers is not None
        lite.execute_query("SELECT 1")
        for pool in (http, lite, lite.readers):
            sample = Watch("x", new=True).sample(pool, 0.0)
            assert (sample.exhausted, sample.down, sample.unhealthy, sample.in_use) == (None, None, None, 0)
        with lite.readers.acquire():
            assert Watch("x", new=True).sample(lite.readers, 0.0).exhausted == "exhausted: 1 of 1 in use, 0 waiting"


# -- life ------------------------------------------------------------------------------------


def test_stop(make: Make, clock: VirtualClock, seen: Seen) -> None:
    pool = make(leak_timeout=1.0)
    with watch([pool], clock, seen) as alerts:
        assert repr(alerts) == "<Alerts: 10 rules, every 1 s, 0 firing>"
    lease = pool.acquire()
    clock.advance(10.0)
    assert (seen, alerts.check()) == ([], [])
    assert repr(alerts) == "<Alerts: 10 rules, stopped>"
    alerts.stop()
    lease.release()


def test_pools_are_held_weakly(clock: VirtualClock, seen: Seen) -> None:
    pool: Pool[Any] = Pool(adapter=FakeAdapter(), clock=clock)
    reference = weakref.ref(pool)
    watch([pool], clock, seen)
    del pool
    gc.collect()
    assert reference() is None
    clock.advance(10.0)
    assert seen == []


def test_no_copy(clock: VirtualClock) -> None:
    with pytest.raises(TypeError, match="it belongs to its process"):
        copy.copy(Alerts([], clock=clock))


@pytest.mark.parametrize(
    ("make_it", "text"),
    [
        (lambda: Alerts([], interval=0.01), "Alerts.interval must be from 0.1 to 60 seconds, not 0.01"),
        (lambda: Alerts([], interval=True), "Alerts.interval must be a number of seconds, not True"),
        (lambda: Alerts([], group=""), "Alerts.group must be a non-empty string, not ''"),
        (lambda: Alerts([], to="https://u:p@h/x"), 'Alerts.to must be "log", a callable or a Webhook'),
        (lambda: Alerts([], to=[3]), "Alerts.to must be .* not 3"),
        (lambda: Alerts([], rules="outage"), "Alerts.rules must be a list of pooling.observe.Rule, not 'outage'"),
        (lambda: Alerts([], rules=["outage"]), "one is 'outage'"),
        (lambda: Alerts([], rules=[DEFAULT_RULES[0]] * 2), "two rules of the kind 'outage'"),
        (lambda: Alerts("db"), "pools must be a PoolManager, a pool or several pools"),
        (lambda: Rule("two words", str), "Rule.kind must be a word, not 'two words'"),
        (lambda: Rule("x", "test"), "Rule.test must be callable, not 'test'"),
        (lambda: usual_rules(exhausted=-1), "exhausted must be from 0 to 86400, not -1"),
        (lambda: Rule("x", str, after=-1), "Rule.after must be from 0 to 86400 seconds, not -1"),
        (lambda: Rule("x", str, clear="1"), "Rule.clear must be a number of seconds, not '1'"),
        (lambda: Rule("x", str, severity="bad"), "Rule.severity must be one of warning, critical, not 'bad'"),
        (lambda: usual_rules(utilization=1.5), "utilization must be from 0.01 to 0.99, not 1.5"),
        (lambda: usual_rules(wait="1"), "wait must be a number, not '1'"),
        (lambda: Webhook("ftp://h/x"), "Webhook.url must be an address such as"),
        (lambda: Webhook("https://u:hunter2@h:port/"), "Webhook.url must be an address such as"),
        (lambda: Webhook(3), "Webhook.url must be a string, not of type int"),
        (lambda: Webhook("https://h/", headers=[1]), "Webhook.headers must be a mapping, not of type list"),
        (lambda: Webhook("https://h/", body="x"), "Webhook.body must be callable, not 'x'"),
        (lambda: Webhook("https://h/", timeout=0), "Webhook.timeout must be from 0.01 to 300, not 0"),
        (lambda: Webhook("https://h/", retries=1.5), "Webhook.retries must be a whole number, not 1.5"),
        (lambda: Webhook("https://h/", backoff="1"), "Webhook.backoff must be a number, not '1'"),
    ],
)
def test_bad_arguments(make_it: Callable[[], object], text: str) -> None:
    with pytest.raises((ValueError, TypeError), match=text) as caught:
        make_it()
    assert "hunter2" not in str(caught.value) and "u:p" not in str(caught.value)


# -- delivery --------------------------------------------------------------------------------


def alert(number: int = 1) -> Alert:
    return Alert("leak", "began", f"db{number}", "warning", "text", 1.0, host="h", pid=7)


def test_to_the_log(make: Make, clock: VirtualClock, caplog: pytest.LogCaptureFixture) -> None:
    pool = make(name="db", max_size=1, leak_timeout=1.0)
    alerts = Alerts([pool], clock=clock, group="shop")
    lease = pool.acquire()
    clock.advance(3.0)
    lease.release()
    clock.advance(70.0)
    records: list[Any] = [one for one in caplog.records if getattr(one, "pooling_event", "") == "alert"]
    assert [one.levelno for one in records] == [logging.WARNING] * 2
    assert records[0].getMessage().startswith("alert: pool 'db': held for longer than leak_timeout: ")
    assert [one.pooling_state for one in records] == ["began", "ended"]
    assert {(one.pooling_pool, one.pooling_kind, one.pooling_key) for one in records} == {
        ("db", "leak", "shop:db:leak")
    }
    assert alerts.firing() == []


def test_target_that_fails_is_logged_once_and_stops_no_other(
    make: Make, clock: VirtualClock, seen: Seen, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(alert: Alert) -> None:
        raise RuntimeError("token=hunter2")

    pool = make(name="db", leak_timeout=1.0, max_size=1)
    alerts = Alerts([pool], to=[broken, seen], clock=clock)
    for _ in range(2):
        lease = pool.acquire()
        clock.advance(3.0)
        lease.release()
        clock.advance(500.0)
    assert len(seen) == 4 and alerts.dropped == 4
    (complaint,) = [one for one in caplog.records if "delivering" in one.getMessage()]
    assert complaint.getMessage().endswith("broken failed, the alert is dropped: RuntimeError: token=***")
    assert complaint.pooling_event == "alert_dropped"  # type: ignore[attr-defined]


def test_queue_is_bounded(manual: VirtualClock, seen: Seen, caplog: pytest.LogCaptureFixture) -> None:
    delivery = Delivery(seen, manual)
    for number in range(MOST_QUEUED + 5):
        delivery.put(alert(number))
    assert (delivery.dropped, seen, manual.jobs) == (5, [], 1)
    assert len([one for one in caplog.records if "too many are waiting" in one.getMessage()]) == 1
    run_jobs(manual)
    assert [one.pool for one in seen] == [f"db{number}" for number in range(MOST_QUEUED)]  # in order
    assert delivery.sent == MOST_QUEUED
    delivery.put(alert())
    run_jobs(manual)
    assert delivery.sent == MOST_QUEUED + 1


class Flaky(Webhook):
    """A webhook that fails so many times."""

    def __init__(self, failures: int, again: bool = True) -> None:
        super().__init__("https://user:hunter2@hooks.example.com/secret?token=hunter3", retries=3, backoff=1.0)
        self.failures, self.again, self.calls = failures, again, 0

    def __call__(self, alert: Alert) -> None:
        self.calls += 1
        if self.calls <= self.failures:
            raise Failed("status 500", self.again)


@pytest.mark.parametrize(
    ("failures", "again", "calls", "sent"), [(0, True, 1, 1), (3, True, 4, 1), (9, True, 4, 0), (9, False, 1, 0)]
)
def test_webhook_is_repeated_with_backoff(
    failures: int, again: bool, calls: int, sent: int, caplog: pytest.LogCaptureFixture
) -> None:
    clock = VirtualClock(workers="threads")
    target = Flaky(failures, again)
    delivery = Delivery(target, clock)
    began = clock.now()
    delivery.put(alert())
    for attempt in range(calls - 1):
        clock.until_parked(1)
        (due,) = clock.upcoming()
        assert 0.75 * 2**attempt <= due - clock.now() <= 1.25 * 2**attempt
        clock.advance(due - clock.now())
    for _ in range(10_000):
        if delivery.sent + delivery.dropped:
            break
        time.sleep(0.001)
    assert (target.calls, delivery.sent, delivery.dropped) == (calls, sent, 1 - sent)
    assert clock.now() - began <= 9.0
    assert "hunter" not in caplog.text
    assert ("delivering to webhook https://hooks.example.com failed" in caplog.text) is (sent == 0)


def test_alert_as_json() -> None:
    found = alert().to_dict()
    assert found == {
        "key": "h:db1:leak", "kind": "leak", "state": "began", "pool": "db1", "severity": "warning",
        "text": "pool 'db1': text", "began": 1.0, "ended": None, "flaps": 0, "group": None, "host": "h", "pid": 7,
    }  # fmt: skip
    assert repr(Webhook("https://u:p@h:8443/secret?x=1")) == "<Webhook https://h:8443>"

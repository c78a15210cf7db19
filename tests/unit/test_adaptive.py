"""Adaptive size: windows of samples, decisions, and a pool that follows them; loads in `test_adaptive_simulation`."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
from typing import Any

import pytest

from pooling import HTTPPool, Lease, Observer, Pool, PoolSettings, SQLitePool
from pooling.adapters.shared.adapted import with_adaptive
from pooling.adaptive.controller import START, Controller
from pooling.adaptive.window import Sample, Window, Windows
from pooling.core.adapting import Adapting
from pooling.core.sizing import limit_size
from pooling.testing import FakeAdapter, FakeResource, VirtualClock
from pooling.tools.doctor.plan import Plan
from pooling.tools.doctor.report import Report

from .conftest import Make, Task, maintenance_of

# -- windows ------------------------------------------------------------------------------------


def pressed(at: float, **changes: Any) -> Sample:
    """Return a sample of a pool with 10 of 10 in use, where 5 wait and 20 leases end each second."""
    given: dict[str, Any] = {"size": 10, "live": 10, "in_use": 10, "waiting": 5, "completed": int(20 * at), **changes}
    return Sample(at, **given)


def add(windows: Windows, *samples: Sample) -> list[Window]:
    return [window for window in map(windows.add, samples) if window is not None]


def every(seconds: float, until: float, **changes: Any) -> list[Sample]:
    return [pressed(number * seconds, **changes) for number in range(int(until / seconds) + 1)]


def test_a_window_of_ten_seconds() -> None:
    (found,) = add(Windows(), *every(0.25, 10.0))
    assert (found.at, found.seconds, found.completed, found.size) == (10.0, 10.0, 200, 10)
    assert (found.rate, found.waiting, found.in_use, found.held, found.driver) == (20.0, 5.0, 10.0, 0.5, None)


def test_only_time_under_pressure_counts() -> None:
    calm = [Sample(5 + number * 0.25, 10, 10, 4, 0, 100 + number) for number in range(1, 21)]
    (found,) = add(Windows(), *every(0.25, 5.0), *calm)
    assert (found.seconds, found.completed) == (5.0, 100)


@pytest.mark.parametrize(
    "change",
    [{"waiting": 0}, {"in_use": 0}, {"in_use": 11}],
    ids=["nobody waits", "all are being created", "more than the limit, after a shrink"],
)
def test_without_pressure_there_is_no_window(change: dict[str, int]) -> None:
    windows = Windows()
    assert add(windows, *every(0.25, 60.0, **change)) == []
    assert windows.ends is None


def test_nothing_is_known_about_a_gap() -> None:
    (found,) = add(Windows(fewest=1), *every(0.25, 5.0), *(pressed(8 + number / 4) for number in range(9)))
    assert (found.seconds, found.completed) == (7.0, 140)


def test_a_window_goes_on_until_enough_leases_ended() -> None:
    samples = [pressed(number * 0.25, completed=number // 2) for number in range(400)]
    found = add(Windows(), *samples)
    assert [(one.at, one.completed) for one in found] == [(50.0, 100)]


def test_a_window_ends_after_a_minute_at_the_latest() -> None:
    (found,) = add(Windows(), *(pressed(number * 0.25, completed=number // 20) for number in range(260)))
    assert (found.at, found.completed) == (60.0, 12)


def test_another_size_begins_a_new_window() -> None:
    later = [pressed(5 + number * 0.25, size=12, in_use=12) for number in range(41)]
    (found,) = add(Windows(), *every(0.25, 4.75), *later)
    assert (found.at, found.size, found.completed) == (15.0, 12, 200)


def test_time_in_the_driver_by_littles_law() -> None:
    """6 of 10 are blocked on average, and 20 leases end each second: 0.3 s of each lease."""
    (found,) = add(Windows(), *every(0.25, 10.0, blocked=6))
    assert found.driver == pytest.approx(0.3) and not found.counted
    (found,) = add(Windows(), *every(0.25, 5.0, blocked=6), *(pressed(5 + number / 4) for number in range(1, 21)))
    assert found.driver is None


def test_time_in_the_driver_that_is_counted() -> None:
    (found,) = add(Windows(), *(pressed(number / 4, blocked=6, driver=number * 1.0) for number in range(41)))
    assert found.driver == pytest.approx(0.2) and found.counted
    reset = [pressed(number / 4, driver=number % 20 * 1.0, round_trips=(number, number * 0.5)) for number in range(41)]
    (found,) = add(Windows(), *reset)
    assert found.driver is None and found.round_trip == 0.5


def test_trouble_and_a_full_server_are_remembered() -> None:
    (found,) = add(Windows(), *every(0.25, 5.0), pressed(5.25, trouble="down"), pressed(10.0, full=True))
    assert (found.trouble, found.full) == ("down", True)


# -- decisions ----------------------------------------------------------------------------------


def window(at: float, size: int = 10, **changes: Any) -> Window:
    """Return a window in which each lease takes 0.1 s, all of it in the driver, and all are in use."""
    seconds = changes.pop("time", 0.1)
    given: dict[str, Any] = {
        "live": size, "seconds": 10.0, "completed": round(size * 10 / seconds), "waiting": 5.0, "in_use": float(size),
        "driver": seconds,
    }  # fmt: skip
    return Window(at, size, **{**given, **changes})


def overshot() -> Controller:
    """Return a controller that has grown from 10 to 17, and gone back to 13."""
    controller = Controller(1, 50)
    assert controller.decide(window(10)).after == 17
    assert controller.decide(window(20, 17, completed=900, driver=0.19)).after == 13
    return controller


@pytest.mark.parametrize(("low", "high", "size"), [(1, 50, START), (1, 4, 4), (20, 50, 20), (7, 7, 7)])
def test_it_begins_with_ten_within_the_bounds(low: int, high: int, size: int) -> None:
    assert Controller(low, high).size == size


def test_it_grows_while_borrowers_wait() -> None:
    found = Controller(1, 50).decide(window(10))
    assert (found.before, found.after, found.wanted) == (10, 17, 17)
    assert found.reason == "5 waited on average: 100 completions/s, 100 ms in the driver per lease (sampled)"


def test_an_unmeasured_driver_is_said() -> None:
    found = Controller(1, 50).decide(window(10, driver=None, round_trip=0.002, failed=3))
    assert "100 ms held per lease (the adapter does not time its driver" in found.reason
    assert "round trips 2 ms" in found.reason and found.reason.endswith("3 acquires failed")


def test_growth_that_did_not_help_goes_half_back() -> None:
    controller = overshot()
    assert controller.last is not None and "10 -> 17 changed the completions by -10.0%" in controller.last.reason
    assert controller.reversals == 1


def test_it_goes_down_while_that_helps_and_rests() -> None:
    controller = overshot()
    assert controller.decide(window(30, 13, time=0.114)).after == 12
    assert controller.decide(window(40, 12)).after == 12
    for at in range(50, 500, 10):
        assert controller.decide(window(at, 12)).after == 12
    assert controller.reversals == 1


def test_growth_is_tried_again_after_minutes_and_then_rarely() -> None:
    controller = overshot()
    controller.decide(window(30, 13, time=0.114))
    tried = []
    for at in range(40, 20_000, 10):
        size = controller.size
        if controller.decide(window(at, size, time=0.1 * max(1.0, size / 12))).after > size:
            tried.append(at)
    gaps = [after - before for before, after in zip([40, *tried], tried)]
    assert gaps[0] == 600 and gaps == sorted(gaps) and gaps[-1] >= 3600 and controller.size in (12, 13)


def test_growth_is_tried_again_when_the_server_is_faster() -> None:
    controller = overshot()
    controller.decide(window(30, 13, time=0.114))
    controller.decide(window(40, 12))
    assert controller.decide(window(330, 12, time=0.07)).after == 13


def test_the_direction_is_kept_during_the_cool_down() -> None:
    controller = overshot()
    controller.decide(window(30, 13, time=0.114))
    controller.decide(window(40, 12))
    found = controller.decide(window(50, 12, time=0.05))
    assert found.after == 12 and "no change of direction for another 270 s" in found.reason


def test_a_step_that_clearly_cost_completions_is_undone_at_once() -> None:
    controller = overshot()
    controller.decide(window(30, 13, time=0.114))
    found = controller.decide(window(40, 12, completed=700))
    assert found.after == 13 and found.reason.startswith("the last step is undone, 13 -> 12 changed")


def test_an_overloaded_server() -> None:
    """1.5 times the usual time, and no more completions: x 0.9. A single window makes no usual time."""
    controller = Controller(1, 10)
    for at in range(10, 100, 10):
        assert controller.decide(window(at)).after == 10
    found = controller.decide(window(100, time=0.17))
    assert found.after == 9 and "takes 1.7 times as long as usual" in found.reason


def test_longer_holds_are_no_overload() -> None:
    """The borrowers' own work is in them: round trips must be slow, too."""
    controller = Controller(1, 10)
    for at in range(10, 100, 10):
        controller.decide(window(at, driver=None, round_trip=0.001))
    slower = window(100, time=0.2, driver=None)._replace(driver=None)
    assert controller.decide(slower._replace(round_trip=0.001)).after == 10
    assert controller.decide(slower).after == 10
    assert controller.decide(slower._replace(round_trip=0.005)).after == 9


def test_heavier_queries_are_not_taken_for_an_overload_for_long() -> None:
    controller = Controller(1, 10)
    for at in range(10, 100, 10):
        controller.decide(window(at))
    sizes = [controller.decide(window(at, controller.size, time=0.3)).after for at in range(100, 3000, 10)]
    assert sizes[:3] == [9, 9, 10] and set(sizes[3:]) == {10}


def test_no_growth_below_half_use() -> None:
    found = Controller(1, 50).decide(window(10, in_use=4.0))
    assert found.after == 10 and "less than half of 10 is in use" in found.reason


def test_no_growth_above_littles_law() -> None:
    """Bursts: 40/s of 0.1 s each."""
    found = Controller(1, 50).decide(window(10, completed=400, in_use=5.0))
    assert found.after == 10 and "by Little's law 5 are in use, and 10 leave room" in found.reason


def test_a_full_server() -> None:
    controller = Controller(1, 50)
    found = controller.decide(Window(10, 10, 6, full=True))
    assert (found.after, found.reason) == (9, "the server refuses more connections; 6 are open")
    sizes = [controller.decide(Window(at, controller.size, 6, full=True)).after for at in (20, 30, 40, 50)]
    assert sizes == [8, 7, 6, 5]
    assert controller.decide(window(60, 5)).after == 5, "it would be refused again"
    assert controller.decide(window(700, 5)).after == 6


def test_frozen() -> None:
    controller = Controller(1, 50)
    controller.decide(window(10))
    found = controller.decide(window(20, 17, trouble="the server cannot be reached"))
    assert (found.after, found.reason) == (17, "frozen: the server cannot be reached")
    found = controller.decide(window(30, 17))
    assert found.after == 17 and "the effect of the last step is not known" in found.reason
    assert controller.decide(window(40, 17)).after > 17


def test_few_completions_decide_nothing() -> None:
    found = Controller(1, 50).decide(window(10, completed=19))
    assert found.after == 10 and "for moments only" in found.reason


def test_bounds() -> None:
    found = Controller(1, 12).decide(window(10))
    assert (found.after, found.wanted) == (12, 17) and found.reason.endswith("; max_size=12 allows no more")
    found = Controller(10, 50).decide(Window(10, 10, 3, full=True))
    assert (found.after, found.wanted) == (10, 9) and found.reason.endswith("; min_size=10 allows no less")
    controller = Controller(1, 50)
    controller.set_bounds(20, 30)
    assert controller.size == 20
    controller.set_bounds(1, 5)
    assert controller.size == 5


def test_shares_of_a_budget() -> None:
    """It asks for more once, and goes on when that is granted."""
    controller = Controller(1, 50)
    assert controller.decide(window(10)).after == 17
    found = controller.decide(window(20, 10))
    assert (found.after, found.reason) == (17, "asks for 17; another limit grants 10")
    assert controller.decide(window(30, 17)).after > 17


def test_observing_walks_nowhere() -> None:
    controller = Controller(1, 50)
    found = [controller.decide(window(at, 20), act=False) for at in range(10, 100, 10)]
    assert {(one.before, one.after) for one in found} == {(20, 29)} and controller.reversals == 0


# -- settings -----------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["yes", "On", "", True, None])
def test_other_values_are_refused(value: Any) -> None:
    with pytest.raises((ValueError, TypeError), match="adaptive must be"):
        PoolSettings(adaptive=value)


def test_from_the_environment() -> None:
    assert PoolSettings.from_env("DB_", {"DB_ADAPTIVE": "on"}).adaptive == "on"
    with pytest.raises(ValueError, match="DB_ADAPTIVE='maybe': adaptive must be 'off', 'observe' or 'on'"):
        PoolSettings.from_env("DB_", {"DB_ADAPTIVE": "maybe"})


# -- a pool -------------------------------------------------------------------------------------


class Diary(Observer):
    def __init__(self) -> None:
        self.steps: list[tuple[int, int, bool]] = []

    def adapted(self, pool: str, before: int, after: int, reason: str, applied: bool) -> None:
        self.steps.append((before, after, applied))


def adapting(pool: Pool[Any], fewest: int = 5) -> Adapting[Any]:
    """Return what steers a pool, with windows that need less."""
    found = maintenance_of(pool).adapting
    assert found is not None
    found.windows.fewest = fewest
    return found


class Load:
    """Borrowers who hold every resource of a pool; 3 more wait, and one lease ends every quarter of a second."""

    def __init__(self, pool: Pool[Any], clock: VirtualClock) -> None:
        self.pool, self.clock = pool, clock
        self.leases: list[Lease[Any]] = [pool.acquire() for _ in range(pool.stats()["max_size"])]
        self.tasks: list[Task] = []
        self.wait()

    def wait(self) -> None:
        while len(self.tasks) < 3:
            self.tasks.append(Task(self.pool.acquire, 1000.0))
        self.clock.until_parked(3)

    def run(self, seconds: float) -> None:
        for _ in range(int(seconds * 4)):
            self.leases.pop(0).release()
            served = self.pool.stats()["max_size"] - len(self.leases)
            self.leases += [task.result() for task in self.tasks[:served]]
            del self.tasks[:served]
            self.wait()
            self.clock.advance(0.25)

    def end(self) -> None:
        for lease in self.leases:
            lease.release()
        for task in self.tasks:
            task.result().release()


def test_a_pool_grows(make: Make, clock: VirtualClock, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "pooling")
    diary = Diary()
    pool = make(adaptive="on", max_size=12, observers=[diary])
    adapting(pool)
    assert pool.stats()["max_size"] == 10
    assert pool.stats()["adaptive"] == {"mode": "on", "limit": 10, "wanted": 10, "reason": None}
    load = Load(pool, clock)
    load.run(12.0)
    assert pool.stats()["max_size"] == pool.stats()["size"] == 12
    assert diary.steps == [(10, 12, True)]
    (record,) = [one for one in caplog.records if getattr(one, "pooling_event", None) == "adapted"]
    assert record.getMessage().startswith("pool 'test': the size changes from 10 to 12: 3 waited on average: 4.1 c")
    assert (vars(record)["pooling_before"], vars(record)["pooling_after"]) == (10, 12)
    assert "max_size=12 allows no more" in pool.stats()["adaptive"]["reason"]
    load.end()


def test_a_pool_observes(make: Make, clock: VirtualClock) -> None:
    diary = Diary()
    pool = make(adaptive="observe", max_size=50, observers=[diary])
    limit_size(pool.engine, "budget", 4)
    adapting(pool)
    load = Load(pool, clock)
    load.run(60.0)
    assert pool.stats()["max_size"] == 4 and "adaptive" not in pool.engine.state.limits
    assert diary.steps == [(4, 8, False)], "the same proposal is reported once"
    found = pool.stats()["adaptive"]
    assert found["reason"].startswith("3 waited on average")
    assert (found["mode"], found["limit"], found["wanted"]) == ("observe", None, 8)
    load.end()


def test_advise_quotes_it(make: Make, clock: VirtualClock) -> None:
    pool = make(adaptive="observe", max_size=4)
    adapting(pool)
    report = Report(None, Plan(), ())
    assert with_adaptive(report, pool.stats()) is report
    load = Load(pool, clock)
    load.run(12.0)
    (finding,) = with_adaptive(report, pool.stats()).findings
    assert finding.what.startswith("adaptive='observe' found at a limit of 4: 3 waited on average")
    assert finding.cure == "It would try 8; set adaptive='on' to let it"
    load.end()
    assert with_adaptive(report, make().stats()) is report


class Timed(FakeAdapter):
    """Tells that every second holder is blocked; or counts the time, if it is set."""

    seconds: float | None = None
    broken = False
    asked = 0

    def command_of(self, resource: FakeResource) -> object:
        if self.broken:
            raise RuntimeError("mine")
        return "command" if resource.number % 2 else None

    def driver_time(self) -> float | None:
        self.asked += 1
        if self.broken:
            raise RuntimeError("mine")
        if self.seconds is not None:
            self.seconds += 0.05
        return self.seconds


@pytest.mark.parametrize(
    ("seconds", "broken", "text"),
    [(None, False, "(sampled"), (0.0, False, "(counted"), (0.0, True, "does not time its driver")],
)
def test_how_the_driver_is_timed(
    make: Make, clock: VirtualClock, seconds: float | None, broken: bool, text: str
) -> None:
    adapter = Timed()
    adapter.seconds, adapter.broken = seconds, broken
    pool = make(adapter=adapter, adaptive="observe", max_size=4)
    adapting(pool)
    load = Load(pool, clock)
    load.run(12.0)
    assert text in pool.stats()["adaptive"]["reason"]
    load.end()


def test_nothing_is_read_or_due_while_nobody_waits(make: Make, clock: VirtualClock) -> None:
    timed = Timed()
    pool = make(adapter=timed, adaptive="on", max_size=50, idle_timeout=None, max_lifetime=None)
    for _ in range(100):
        pool.acquire().release()
    clock.advance(60.0)
    pool.engine.schedule_sweep(clock.now())
    clock.settle()
    assert [at for at in clock.upcoming() if at <= clock.now() + 3600] == [] and timed.asked == 0
    load = Load(pool, clock)
    load.run(5.0)
    assert 20 <= timed.asked <= 26, "up to five times a second"
    load.end()
    clock.advance(60.0)
    assert [at for at in clock.upcoming() if at <= clock.now() + 3600] == []


def test_frozen_while_the_server_is_down(make: Make, clock: VirtualClock, adapter: FakeAdapter) -> None:
    pool = make(adaptive="on", max_size=50)
    adapting(pool)
    lease = pool.acquire()
    adapter.fail("create", ConnectionRefusedError("down"), times=10_000)
    waiting = Task(pool.acquire, 1000.0)
    clock.until_parked(1)
    clock.advance(30.0)
    assert pool.stats()["adaptive"]["reason"].startswith("frozen: the server cannot be reached (ConnectionRefusedErr")
    assert pool.stats()["max_size"] == 10
    lease.release()
    waiting.result().release()


def test_other_limits_and_settings(make: Make, clock: VirtualClock) -> None:
    pool = make(adaptive="on", max_size=50)
    limit_size(pool.engine, "budget", 4)
    assert pool.stats()["max_size"] == 4
    assert pool.engine.state.limits["adaptive"] == 10, "what it asks a budget for"
    limit_size(pool.engine, "budget", None)
    pool.reconfigure(max_size=6)
    clock.settle()
    assert (pool.stats()["max_size"], pool.stats()["adaptive"]["limit"]) == (6, 6)
    pool.reconfigure(max_size=40, adaptive="off")
    clock.settle()
    assert pool.stats()["max_size"] == 40 and "adaptive" not in pool.engine.state.limits
    pool.reconfigure(adaptive="on")
    clock.settle()
    assert pool.stats()["max_size"] == 6, "it goes on from there"
    pool.reconfigure(min_size=40)
    clock.settle()
    assert pool.stats()["max_size"] == 40, "nothing to steer"


def test_switched_on_later(make: Make, clock: VirtualClock) -> None:
    pool = make(max_size=50)
    leases = [pool.acquire() for _ in range(12)]
    pool.reconfigure(adaptive="on")
    clock.settle()
    for lease in leases:
        lease.release()
    clock.settle()
    assert (pool.stats()["max_size"], pool.stats()["size"]) == (10, 10)


def test_other_kinds_of_pools() -> None:
    with HTTPPool(max_size=50) as http:
        http.reconfigure(adaptive="on")
        assert http.connections.slots.settings.adaptive == "on"
    with HTTPPool(max_size=50, adaptive="on") as http:
        assert http.stats()["max_size"] == 10
    with SQLitePool(":memory:", max_size=50, adaptive="on") as cache:
        assert cache.execute_query("SELECT 1")[0][0] == 1


def test_a_pool_that_is_made_starts_no_thread() -> None:
    before = threading.active_count()
    pool: Pool[Any] = Pool(object, adaptive="on", max_size=50)
    assert pool.stats()["max_size"] == 10 and threading.active_count() == before


def test_not_imported_unless_used() -> None:
    code = (
        "import sys, pooling; pooling.Pool(object).acquire().release()\n"
        "assert 'pooling.adaptive' not in sys.modules and 'pooling.core.adapting' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="POSIX")
def test_a_forked_child_begins_anew() -> None:
    pool: Pool[Any] = Pool(object, adaptive="on", max_size=50)
    found = adapting(pool)
    found.controller.size = 20
    limit_size(pool.engine, "adaptive", 20)
    child = os.fork()
    if not child:
        os._exit(0 if pool.stats()["max_size"] == 10 and adapting(pool).controller.size == 10 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    pool.close()



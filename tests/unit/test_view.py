"""The view of all processes, and the minutes that it and the report are made of: sums are the truth."""

from __future__ import annotations

import itertools
import json
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pooling import Pool, PoolTimeout
from pooling.observe import archive as archive_module
from pooling.observe import local, process, shared
from pooling.observe.archive import Archive
from pooling.observe.history import MOST_HOSTS
from pooling.observe.incidents import Incidents
from pooling.observe.local import LocalHistory
from pooling.observe.minutes import (
    BLOCK,
    PROCESS,
    MinuteLog,
    by_start,
    compact,
    mean_of_one,
    merge,
    minute_of,
    spread_of,
)
from pooling.observe.overall import render, report_of
from pooling.observe.process import ProcessReading
from pooling.observe.shared import SharedDirectory
from pooling.observe.slotfile import SlotFile
from pooling.observe.view import Viewer
from pooling.testing import FakeAdapter
from tests.integration.tools import environment, wait_until

NOON = 1_764_417_600.0  # a multiple of ten minutes
SECRET = "hunter2"
numbers = itertools.count()


class Wall:
    """A clock that the modules under test read instead of the time of day."""

    def __init__(self) -> None:
        self.now = NOON
        self.module = SimpleNamespace(time=lambda: self.now, monotonic=time.monotonic, sleep=time.sleep)


@pytest.fixture
def wall(monkeypatch: pytest.MonkeyPatch) -> Wall:
    made = Wall()
    for module in (local, shared):
        monkeypatch.setattr(module, "time", made.module)
    for module_name in ("pooling.observe.view", "pooling.observe.overall", "pooling.observe.figures"):
        monkeypatch.setattr(sys.modules[module_name], "time", made.module)
    return made


@pytest.fixture
def name() -> str:
    return f"view-{next(numbers)}"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "metrics"


@pytest.fixture
def directory(path: Path) -> Iterator[SharedDirectory]:
    made = writing(path)
    yield made
    made.observe_no_more()
    made.process().close()


def writing(path: Path) -> SharedDirectory:
    """A directory that this process writes to, as `shared.share` makes one."""
    made = SharedDirectory(path)
    made.writes = made.process().active = True
    return made


def use(pool: Pool[Any], times: int) -> None:
    for _ in range(times):
        with pool.acquire():
            pass


def figures(**counters: float) -> dict[str, Any]:
    gauges = {"open": 1, "used": 1, "size": 2, "max": 4, "pending": 0}
    return {"counters": counters, "gauges": gauges, "recent": {"in_use": 2}}


def sums(book: dict[str, dict[int, dict[str, Any]]], pool: str = "db") -> dict[str, float]:
    """What was counted in all minutes."""
    found: dict[str, float] = {}
    for minute in book.get(pool, {}).values():
        for key, value in minute["counters"].items():
            found[key] = found.get(key, 0) + value
    return found


# -- minutes --------------------------------------------------------------------------


def test_minutes_add_up_to_the_counters() -> None:
    log, total, now = MinuteLog(), 0, NOON
    for _ in range(300):
        total += random.randrange(5)
        log.note({"db": figures(acquired=total)}, now)
        now += random.uniform(0.5, 3)
    assert sums(log.book) == {"acquired": total}
    assert len(log.book["db"]) in range(3, 18)
    minutes = [minute_of(one) for one in log.book["db"].values()]
    assert sum(one.acquired for one in minutes) == total
    for one in minutes[1:-1]:
        assert (one.max_size, one.size, one.in_use_peak) == (4, 2, 2)
        assert one.seconds == pytest.approx(60, abs=3.1) and one.in_use == pytest.approx(1.0, abs=0.01)


def test_clock_that_is_set_back_loses_nothing() -> None:
    log = MinuteLog()
    for at, counted in ((NOON + 120, 5), (NOON, 7), (NOON + 60, 8), (NOON + 181, 9)):
        log.note({"db": figures(acquired=counted)}, at)
    assert sums(log.book) == {"acquired": 9}
    assert all(one.seconds >= 0 for one in map(minute_of, log.book["db"].values()))


def test_minutes_may_begin_later_than_the_counters() -> None:
    log = MinuteLog()
    log.skip({"db": figures(acquired=1000)})
    log.note({"db": figures(acquired=1003)}, NOON)
    assert sums(log.book) == {"acquired": 3}


def test_minutes_that_were_stored_elsewhere_are_forgotten() -> None:
    log = MinuteLog()
    for minute in range(4):
        log.note({"db": figures(acquired=minute + 1)}, NOON + 60 * minute)
    assert log.over == 3
    minutes, last = log.take()
    assert sums(minutes) == {"acquired": 3} and last == NOON + 120
    log.forget(last)
    assert (log.over, sums(log.book)) == (0, {"acquired": 1})


def test_minutes_of_processes_are_added_and_old_ones_become_blocks() -> None:
    book: Any = {}
    for _ in range(3):
        log = MinuteLog()
        for minute in range(25 * 60):
            log.note({"db": figures(acquired=minute + 1)}, NOON + 60 * minute)
        merge(book, log.book)
    now = NOON + 25 * 3600
    small = compact(book, now, 30 * 3600)
    assert sums(small) == sums(book) == {"acquired": 3 * 25 * 60}
    starts = sorted(small["db"])
    assert len(starts) == 60 + 24 * 6
    assert [start % BLOCK for start in starts if start < now - 3600] == [0] * (24 * 6)
    assert minute_of(small["db"][starts[0]]).in_use_peak == 6  # over the processes the sum, over time the highest
    day = compact(book, now, 24 * 3600)
    assert min(day["db"]) >= NOON + 3600 - BLOCK
    assert compact(small, now, 30 * 3600) == small


def test_hosts_are_bounded_and_none_is_lost() -> None:
    log = MinuteLog()
    counters = {f"http://{host}\tstatuses/200": float(host) for host in range(1, 41)}
    log.note({"db": figures(**counters)}, NOON)
    log.note({"db": figures(**counters)}, NOON + 60)
    found = minute_of(log.book["db"][int(NOON)])
    assert len(found.hosts) == MOST_HOSTS + 1
    assert sum(one.statuses.total() for one in found.hosts.values()) == sum(range(1, 41))
    assert dict(found.hosts["http://40"].statuses.items()) == {200: 40}


def test_process_figures_are_integrated() -> None:
    log = MinuteLog()
    for second in range(0, 50, 10):
        log.note({}, NOON + second)
        log.note_process(ProcessReading(1, second * 0.5, 1000, 4, 20, NOON), NOON + second)
    minute = log.book[PROCESS][int(NOON)]
    assert minute["counters"]["cpu.ns"] == 20e9
    assert minute["areas"]["memory"] == pytest.approx(40_000) and minute["peaks"]["cpu"] == 0.5


def test_percentiles_come_from_the_buckets() -> None:
    pool: Pool[Any] = Pool(object, name="view-buckets")
    for seconds in (0.001, 0.002, 0.2):
        pool.metrics.durations.wait.record(seconds)
    counters = local.Recorder().sample()["view-buckets"]["counters"]
    found = spread_of(counters, "wait")
    assert found.count == 3 and found.total == pytest.approx(0.203)
    assert 0.001 <= found.percentile(0.5) <= 0.0029 and 0.14 <= found.percentile(0.99) <= 0.29
    pool.close()


def test_advice_is_about_one_process_on_average() -> None:
    log, book = MinuteLog(), dict[str, Any]()
    for second in range(59):
        log.note({"db": figures(acquired=second, timeouts=1)}, NOON + second)
    for _ in range(4):
        merge(book, log.book)
    one = minute_of(mean_of_one(book["db"][int(NOON)]))
    assert (one.acquired, one.timeouts, one.max_size, one.in_use_peak) == (58, 1, 4, 2)


# -- the archive -----------------------------------------------------------------------


@pytest.fixture
def retired(tmp_path: Path) -> Iterator[SlotFile]:
    folder = os.open(tmp_path, os.O_RDONLY)
    file = SlotFile.open("retired.v1", folder, create=True)
    yield file
    file.close()
    os.close(folder)


def minutes_of(*counted: int) -> dict[str, list[dict[str, Any]]]:
    log = MinuteLog()
    for minute, acquired in enumerate(itertools.accumulate(counted)):
        log.note({"db": figures(acquired=acquired)}, NOON + 60 * minute)
    return log.to_dict()


def test_nothing_is_archived_twice(retired: SlotFile) -> None:
    """A process that was killed after it had stored old minutes, and before it removed them from its file."""
    minutes = minutes_of(1, 2, 4)
    archive = Archive(retired)
    archive.take("a", by_start({"db": minutes["db"][:2]}), int(NOON) + 60)
    archive.store(NOON + 200, {"a"})
    again = Archive(retired)
    assert (again.after("a"), sums(again.book)) == (NOON + 60, {"acquired": 3})
    again.add_ended("a", {"pid": 1, "time": NOON, "minutes": minutes, "events": []})
    again.add_ended("a", {"pid": 1, "time": NOON, "minutes": minutes, "events": []})
    again.store(NOON + 200, {"a"})
    assert sums(Archive(retired).book) == {"acquired": 7}
    again.store(NOON + 200, set())
    assert Archive(retired).taken == {}


def test_what_lasted_ends_with_the_process(retired: SlotFile) -> None:
    event = {"pool": "db", "kind": "outage", "start": NOON, "end": None, "count": 1, "text": "", "peak": 0}
    archive = Archive(retired)
    archive.add_ended("a", {"pid": 7, "time": NOON + 9, "events": [event]})
    assert archive.events == [{**event, "end": NOON + 9, "pid": 7}]
    archive.events *= 1000
    archive.store(NOON, set())
    assert len(Archive(retired).events) == 200


def test_archive_does_not_disturb_the_figures_beside_it(retired: SlotFile) -> None:
    retired.write(b"figures", 5)
    Archive(retired).store(NOON, set())
    retired.write(b"more figures", 6)
    found = retired.read()
    assert found is not None and (found.data, found.tag) == (b"more figures", 6)
    assert Archive(retired).number == 1


def test_archive_that_is_too_large_reaches_back_less_far(retired: SlotFile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive_module, "MOST_BYTES", 5000)
    log = MinuteLog()
    for minute in range(10 * 60):
        log.note({"db": figures(acquired=minute)}, NOON + 60 * minute)
    archive = Archive(retired)
    archive.take("a", log.book, 1)
    archive.store(NOON + 36000, {"a"})
    assert min(Archive(retired).book["db"]) > NOON + 3600 * 8
    assert max(Archive(retired).book["db"]) == NOON + 599 * 60


def test_old_minutes_move_to_the_archive_and_none_is_lost(
    directory: SharedDirectory, path: Path, name: str, wall: Wall
) -> None:
    pool: Pool[Any] = Pool(object, name=name)
    for minute in range(200):
        use(pool, 3)
        assert directory.write()
        wall.now += 60
        if minute % 50 == 49:
            assert report_of(SharedDirectory(path))["pools"][name]["acquired"] == 3 * (minute + 1)
    file = directory.process().file
    assert file is not None and len(directory.process().log.book[name]) <= 7
    live, past = directory.all_records()
    assert len(live) == 1 and sums(past.book, name)["acquired"] >= 3 * 193
    pool.close()


@pytest.mark.parametrize("step", ["archive", "retired", "unlink"])
def test_reader_is_killed_while_it_folds(
    directory: SharedDirectory, path: Path, name: str, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """At any of its steps: the sums of the minutes and of the counters stay the same."""
    pool: Pool[Any] = Pool(object, name=name)
    use(pool, 5)
    assert directory.write()
    directory.process().close()  # now the file is that of a dead process

    class Killed(BaseException):
        pass

    real, written = SlotFile.write, []

    def write(self: SlotFile, data: bytes, tag: int = 0) -> None:
        if len(written) == ["archive", "retired"].index(step):
            raise Killed
        written.append(data)
        real(self, data, tag)

    reader = SharedDirectory(path)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        if step == "unlink":
            patch.setattr(os, "unlink", lambda *args, **more: exec("raise killed", {"killed": Killed()}))
        else:
            patch.setattr(SlotFile, "write", write)
        reader.read()
    reader.process().close()
    last = SharedDirectory(path)
    assert last.read().pools[name]["counters"]["acquired"] == 5
    assert report_of(last)["pools"][name]["acquired"] == 5
    assert os.listdir(path) == ["retired.v1"]
    pool.close()


# -- the view --------------------------------------------------------------------------


def pool_of(found: dict[str, Any], name: str) -> dict[str, Any]:
    pools: list[dict[str, Any]] = found["pools"]
    return next(pool for pool in pools if pool["name"] == name)


@pytest.fixture
def viewer() -> Iterator[Viewer]:
    history = LocalHistory()
    yield Viewer(history.all_records)
    history.observe_no_more()
    local.LISTENERS.remove(history.listen)


def test_view_of_a_process(viewer: Viewer, name: str) -> None:
    pool: Pool[Any] = Pool(object, name=name, max_size=2)
    assert pool_of(viewer.view(), name)["state"] == "up"
    first, second = pool.acquire(), pool.acquire()
    got: list[Any] = []
    waiting = threading.Thread(target=lambda: got.append(pool.acquire()))
    waiting.start()
    wait_until(lambda: pool.stats()["waiting"] == 1)
    found = viewer.view()
    mine = pool_of(found, name)
    expected = {
        "kind": "Pool", "processes": 1, "idle": 0, "in_use": 2, "size": 2, "max_size": 2, "waiting": 1,
        "state": "exhausted", "last_error": None, "last_error_at": None,
        "by_process": [{"pid": os.getpid(), "in_use": 2, "size": 2, "waiting": 1}],
    }  # fmt: skip
    assert {key: mine[key] for key in expected} == expected
    assert mine["oldest_wait"] > 0
    assert [one["pid"] for one in mine["holders"]] == [os.getpid()] * 2
    assert "test_view_of_a_process()" in mine["holders"][0]["where"]
    assert mine["minutes"]["leases"][-1] + (mine["minutes"]["leases"][-2] or 0) == 2
    assert [len(values) for values in mine["minutes"].values() if isinstance(values, list)] == [60] * 5
    events = [one for one in found["events"] if one["pool"] == name]
    assert [(one["kind"], one["end"], one["pid"]) for one in events] == [("exhausted", None, os.getpid())]
    first.release()
    waiting.join()
    second.release()
    got[0].release()
    found = viewer.view()
    assert pool_of(found, name)["state"] == "up"
    assert [one["end"] is None for one in found["events"] if one["pool"] == name] == [False]
    pool.close()
    assert pool_of(viewer.view(), name)["state"] == "closed"
    own = next(one for one in found["processes"] if one["pid"] == os.getpid())
    assert own["memory"] > 1 << 20 and own["threads"] >= 1 and own["descriptors"] > 2 and own["age"] < 5
    json.dumps(found)


def test_exhausted_means_what_it_does_for_health(viewer: Viewer, name: str) -> None:
    """All are in use, whether or not a borrower waits; the event is about those that wait."""
    pool: Pool[Any] = Pool(object, name=name, max_size=1)
    with pool.acquire():
        found = viewer.view()
        assert pool_of(found, name)["state"] == "exhausted" and "exhausted" in str(pool.probe(1))
        assert [one for one in found["events"] if one["pool"] == name] == []
    assert pool_of(viewer.view(), name)["state"] == "up" and pool.probe(1) is None
    pool.close()


def test_rates_are_those_between_two_views(name: str, wall: Wall) -> None:
    history = LocalHistory()
    viewer = Viewer(history.all_records)
    pool: Pool[Any] = Pool(object, name=name)
    assert pool_of(viewer.view(), name)["leases_per_second"] == 0
    assert viewer.view()["processes"][0]["cpu"] is None
    use(pool, 30)
    wall.now += 3
    found = viewer.view()
    assert pool_of(found, name)["leases_per_second"] == pytest.approx(10)
    assert found["processes"][0]["cpu"] >= 0
    wall.now += 1
    use(pool, 10)
    assert pool_of(viewer.view(), name)["leases_per_second"] == pytest.approx(10)  # over 4 s: 1 s is too short
    wall.now += 10
    assert pool_of(viewer.view(), name)["leases_per_second"] == pytest.approx(0)
    local.LISTENERS.remove(history.listen)
    history.observe_no_more()
    pool.close()


def test_timeouts_are_those_of_the_last_minutes(name: str, wall: Wall) -> None:
    history = LocalHistory()
    viewer = Viewer(history.all_records)
    pool: Pool[Any] = Pool(object, name=name, max_size=1)
    viewer.view()
    with pool.acquire():
        for _ in range(3):
            with pytest.raises(PoolTimeout):
                pool.acquire(0.001)
    for seconds, expected in ((2, 3.0), (30, 3.0), (150, 0.0)):  # not 90 a minute, and then none
        wall.now += seconds
        assert pool_of(viewer.view(), name)["timeouts_per_minute"] == expected, seconds
    local.LISTENERS.remove(history.listen)
    history.observe_no_more()
    pool.close()


def test_percentiles_forget_what_is_a_minute_old(name: str, wall: Wall) -> None:
    history = LocalHistory()
    viewer = Viewer(history.all_records)
    pool: Pool[Any] = Pool(object, name=name)
    viewer.view()
    pool.metrics.durations.wait.record(5.0)
    for seconds, longest in ((1, 5.0), (2, 5.0), (20, 5.0), (25, 5.0), (15, 0.0), (5, 0.0)):
        wall.now += seconds
        found = pool_of(viewer.view(), name)["wait"]["p99"]
        assert found == pytest.approx(longest, rel=0.5), seconds
    local.LISTENERS.remove(history.listen)
    history.observe_no_more()
    pool.close()


def test_percentiles_include_processes_that_began_within_the_minute(wall: Wall) -> None:
    """Also one that is older, but could not be seen before."""

    def record(pid: int, place: int, number: int, started: float) -> dict[str, Any]:
        one = figures(acquired=number, **{f"use/{place}": number, "use.ns": number * 10**9})
        own = {"cpu_seconds": 1.0, "memory": 100, "threads": 5, "descriptors": 20, "started": started}
        return {"pid": pid, "time": wall.now, "pools": {"db": one}, "process": own}

    records: dict[str, dict[str, Any]] = {}
    viewer = Viewer(lambda: (records, local.Past({}, [])))
    for second in range(60):
        wall.now = NOON + second
        records["old"] = record(1, 20, 10 + second, NOON - 1000)  # 1 ms
        if second >= 40:
            records["young"] = record(2, 40, 100 + second, NOON + 39)  # 1 s
        if second >= 50:
            records["attached"] = record(3, 42, 100 * second, NOON - 2000)  # 2 s
        use = pool_of(viewer.view(), "db")["use"]
    assert 1 < use["p99"] <= 2.1 and 0.5 < use["p50"] <= 2.1
    del records["attached"]
    use = pool_of(viewer.view(), "db")["use"]
    assert 0.5 < use["p50"] < use["p99"] <= 1.1


def test_pool_whose_server_is_down(viewer: Viewer, name: str) -> None:
    adapter = FakeAdapter()
    for _ in range(100):
        adapter.fail("create", OSError(f"cannot connect to postgresql://me:{SECRET}@db/shop: refused"))
    pool: Pool[Any] = Pool(adapter=adapter, name=name)
    viewer.view()
    with pytest.raises(Exception, match="refused"):
        pool.acquire(0.05)
    found = viewer.view()
    mine = pool_of(found, name)
    assert mine["state"] == "down"
    assert mine["last_error"] == "OSError: cannot connect to postgresql://me:***@db/shop: refused"
    assert abs(mine["last_error_at"] - time.time()) < 60
    assert [one["kind"] for one in found["events"] if one["pool"] == name] == ["timeout", "outage"]
    assert SECRET not in json.dumps(found)
    pool.close()


def test_outage_that_began_before_the_viewer(name: str) -> None:
    class Failing(FakeAdapter):
        def create(self) -> Any:
            raise OSError("down")

    pool: Pool[Any] = Pool(adapter=Failing(), name=name)
    with pytest.raises(Exception, match="down"):
        pool.acquire(0.01)
    history = LocalHistory()
    found = Viewer(history.all_records).view()
    local.LISTENERS.remove(history.listen)
    history.observe_no_more()
    assert pool_of(found, name)["last_error"] == "OSError: down"
    assert [(one["kind"], one["end"], one["text"]) for one in found["events"] if one["pool"] == name] == [
        ("outage", None, "OSError: down")
    ]
    pool.close()


def test_no_secret_is_in_the_files(directory: SharedDirectory, path: Path, name: str) -> None:
    adapter = FakeAdapter()
    for _ in range(100):
        adapter.fail("create", OSError(f"no connection: password={SECRET} host=db"))
    pool: Pool[Any] = Pool(adapter=adapter, name=name)
    directory.write()
    with pytest.raises(Exception, match="no connection"):
        pool.acquire(0.05)
    directory.write()
    stored = b"".join(file.read_bytes() for file in path.iterdir())
    assert b"no connection" in stored and SECRET.encode() not in stored
    pool.close()


def test_figures_of_processes_are_added(monkeypatch: pytest.MonkeyPatch) -> None:
    def record(pid: int, used: int, down: bool = False) -> dict[str, Any]:
        gauges = {"open": 1, "used": used, "size": 3, "idle": 3 - used, "max": 5, "pending": pid, "oldest_wait": pid}
        holders = [{"where": "x", "thread": "t", "since": 10.0 * pid + number} for number in range(8)]
        one = {"kind": "Pool", "counters": {}, "gauges": {**gauges, "down": int(down)}, "holders": holders}
        return {"pid": pid, "time": 30.0, "pools": {"db": one}, "process": {"started": 100 - pid, "cpu_seconds": 0}}

    records = {"a": record(1, 2), "b": record(2, 3)}
    viewer = Viewer(lambda: (records, local.Past({}, [])))
    mine = pool_of(viewer.view(), "db")
    expected = {
        "in_use": 5, "idle": 1, "size": 6, "max_size": 10, "waiting": 3, "oldest_wait": 2, "processes": 2,
    }  # fmt: skip
    assert {key: mine[key] for key in expected} == expected
    assert [one["since"] for one in mine["holders"]] == [*range(10, 18), 20, 21]
    assert mine["holders"][0]["seconds"] == 20  # when the process told it, however long ago that is
    assert mine["state"] == "up"
    assert [one["pid"] for one in viewer.view()["processes"]] == [2, 1]  # the oldest first
    records["b"] = record(2, 3, down=True)
    assert pool_of(viewer.view(), "db")["state"] == "down"


def test_view_of_the_own_directory_keeps_the_lock(
    directory: SharedDirectory, path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second descriptor of the own file, once closed, would take its lock along."""
    monkeypatch.setattr(shared, "current", lambda: directory)
    pool: Pool[Any] = Pool(object, name=name)
    use(pool, 3)
    directory.write()
    for viewer in (Viewer.of_directory(path), Viewer.of_process(), Viewer.of_directory(f"{path}/../metrics")):
        assert pool_of(viewer.view(), name)["processes"] == 1
    code = "import sys; from pooling.observe.shared import SharedDirectory as S; print(S(sys.argv[1]).read().processes)"
    done = subprocess.run([sys.executable, "-c", code, str(path)], env=environment(), capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("1\n", "")
    pool.close()


def test_watched_processes_write_though_nothing_changes(
    directory: SharedDirectory, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(directory.process().recorder, "sample", lambda epoch: {})

    def number() -> int:
        directory.write()
        file = directory.process().file
        record = None if file is None else file.read()
        return 0 if record is None else record.number

    first = number()
    assert number() <= first + 1  # at most if a minute has ended
    directory.watch()
    assert number() < number() < number()


# -- the report ------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["text", "json", "html"])
def test_report_of_several_processes(directory: SharedDirectory, path: Path, name: str, form: str) -> None:
    pool: Pool[Any] = Pool(object, name=name, max_size=3)
    use(pool, 50)
    directory.write()
    directory.process().close()  # killed
    text = render(SharedDirectory(path), 1, form)
    assert name in text and {"text": "requests  50 (", "json": '"acquired": 50', "html": "0 processes"}[form] in text
    pool.close()


def test_quiet_process_counts_until_now(wall: Wall) -> None:
    """A process writes nothing while nothing changes; its connections, and what it holds, count all the same."""

    def record(pid: int, until: float) -> dict[str, Any]:
        log = MinuteLog()
        for second in (1, until):
            log.note({"db": figures(acquired=1)}, NOON + second)
            log.note_process(ProcessReading(pid, 1.0, 100, 5, 20, 0.0), NOON + second)
        own = {"cpu_seconds": 1.0, "memory": 100, "threads": 5, "descriptors": 20, "started": 0.0}
        one = {"db": figures(acquired=1)}
        return {"pid": pid, "time": NOON + until, "pools": one, "minutes": log.to_dict(), "process": own}

    records = {"1": record(1, 5), "2": record(2, 55)}
    wall.now = NOON + 55
    source: Any = SimpleNamespace(all_records=lambda: (records, local.Past({}, [])))
    report = report_of(source, 1)
    assert report["status"] == "up"
    assert report["pools"]["db"]["max_size"] == 2 * figures()["gauges"]["max"]
    assert report["pools"]["db"]["seconds"] == pytest.approx(55, abs=1)
    assert report["process"]["memory"] == {"last": 200, "peak": 200} and report["pools"]["db"]["acquired"] == 2
    wall.now = NOON + 200  # no further than the minute
    assert report_of(source, 1)["pools"]["db"]["seconds"] == pytest.approx(60, abs=1)


def test_advice_about_several_processes_says_that_it_is_about_an_average_one(wall: Wall) -> None:
    def record(pid: int) -> dict[str, Any]:
        log = MinuteLog()
        log.note({"db": figures()}, NOON + 1)
        busy = {"acquired": 6000, "exhausted": 40, "timeouts": 5, "use/42": 6000, "use.ns": 12_000 * 10**9}
        log.note({"db": figures(**busy)}, NOON + 55)
        return {"pid": pid, "time": NOON + 55, "pools": {"db": figures(**busy)}, "minutes": log.to_dict()}

    wall.now = NOON + 55
    leak = {"pool": "db", "kind": "leak", "start": NOON, "end": NOON, "count": 1, "text": "x", "peak": 60.0}
    for number in (1, 4):
        records = {str(pid): {**record(pid), "events": [leak]} for pid in range(number)}
        source: Any = SimpleNamespace(all_records=lambda records=records: (records, local.Past({}, [])))
        advice = {item["setting"]: item for item in report_of(source, 1)["advice"]}
        size = advice["max_size"]
        assert size["current"] == 4 and size["suggested"] > 200  # 111 leases a second of 2 s each, in each process
        assert ("an average process, of up to 4; where the load is uneven" in size["why"]) is (number > 1)
        assert "average process" not in advice[None]["why"]  # leaks are those of all


def test_incidents_of_processes_that_overlap_are_one() -> None:
    def event(start: float, end: float | None, **more: Any) -> dict[str, Any]:
        own = {"pool": "db", "kind": "outage", "start": start, "end": end, "count": 1, "text": "x", "peak": start}
        return {**own, **more}

    several = [event(10, 20), event(12, None), event(11, 19), event(11, 19, text="y"), event(0, 1, pool="api")]
    found = [(one["pool"], one["start"], one["end"], one["count"], one["peak"])
             for one in Incidents.of(several).since(0, 100)]  # fmt: skip
    assert found == [("api", 0, 1, 1, 0), ("db", 10, None, 3, 12), ("db", 11, 19, 1, 11)]


def test_command_reports(directory: SharedDirectory, path: Path, name: str) -> None:
    pool: Pool[Any] = Pool(object, name=name)
    use(pool, 7)
    directory.write()

    def run(*arguments: str, **env: str) -> tuple[int, str, str]:
        done = subprocess.run(
            [sys.executable, "-m", "pooling", "report", *arguments], capture_output=True, text=True,
            env=environment(POOLING_METRICS_DIR="", **env),
        )  # fmt: skip
        return done.returncode, done.stdout, done.stderr

    mistyped = path / "mistyped"
    mistyped.mkdir()
    code, output, _ = run("--dir", str(path), "--format", "json")
    assert code == 0 and json.loads(output)["pools"][name]["acquired"] == 7
    code, output, _ = run("--dir", str(path), "--hours", "1")
    assert code == 0 and "1 process\n" in output
    for arguments, expected, message in (
        ((), 2, "--dir is required where POOLING_METRICS_DIR is not set"),
        (("--dir", str(path), "--hours", "0"), 2, "must be a number above 0, at most 24, not '0'"),
        (("--dir", str(path / "none")), 1, "argument --dir: no such directory: '/"),
        (("--dir", str(mistyped)), 1, "mistyped': is it the POOLING_METRICS_DIR?"),
    ):
        code, _, errors = run(*arguments)
        assert code == expected and message in errors
    assert not (path / "none").exists() and not list(mistyped.iterdir())
    pool.close()


@pytest.mark.parametrize(
    ("command", "code"), [(("top", "--once", "--json"), 2), (("dashboard", "--port", "0"), 2), (("report",), 1)]
)
def test_a_reader_does_not_create_a_directory(path: Path, command: tuple[str, ...], code: int) -> None:
    """Its name was mistyped."""
    done = subprocess.run(
        [sys.executable, "-m", "pooling", *command], env=environment(POOLING_METRICS_DIR=str(path)),
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (code, "")
    assert f"POOLING_METRICS_DIR: no such directory: '{path}'" in done.stderr
    with pytest.raises(FileNotFoundError):
        SharedDirectory(path).read()
    assert not path.exists()


# -- processes -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["gunicorn: worker [shop]", ""], "gunicorn: worker [shop]"),
        (["/usr/bin/python3.11", "/srv/bin/gunicorn", "-w", "4", "shop:app"], "python3.11 gunicorn"),
        (["/usr/bin/python3", "-W", "ignore", "-m", "celery", "-A", "shop"], "python3 -m celery"),
        (["python", "-X", "dev", "run.py", f"postgresql://me:{SECRET}@db"], "python run.py"),
        (["python", "-c", f"connect('{SECRET}')"], "python -c"),
        ([f"worker postgresql://me:{SECRET}@db/shop"], "worker postgresql://me:***@db/shop"),
        (["/usr/sbin/uwsgi", "--password", SECRET], "uwsgi"),
        ([], ""),
    ],
)
def test_command_has_no_arguments(monkeypatch: pytest.MonkeyPatch, words: list[str], expected: str) -> None:
    monkeypatch.setattr(process.psutil.Process, "cmdline", lambda self: words)
    assert process.command() == expected


def run_code(code: str, **env: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], env=environment(**env), capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_system_without_record_locks() -> None:
    """As on Windows: the view of one process works, and sharing says why it cannot."""
    code = """
import sys
sys.modules["fcntl"] = None
import pooling
from pooling.observe.view import Viewer
from pooling.observe.shared import SharedDirectory
pool = pooling.Pool(object, name="db")
with pool.acquire(): print(Viewer.of_process().view()["pools"][0]["in_use"])
try: SharedDirectory("/nowhere").read()
except OSError as error: print(error)
"""
    assert run_code(code, POOLING_METRICS_DIR="") == (
        "1\nprocesses cannot share metrics here: the system has no POSIX record locks\n"
    )


def test_forked_child_begins_anew() -> None:
    code = """
import os, sys, pooling
from pooling.observe.view import Viewer
viewer = Viewer.of_process()
pool = pooling.Pool(object, name="db")
def use(times):
    for _ in range(times):
        with pool.acquire(): pass
use(5)
viewer.view()
def seen():
    found = viewer.view()
    leases = found["pools"][0]["minutes"]["leases"]
    return [one["pid"] == os.getpid() for one in found["processes"]], sum(filter(None, leases))
sys.stdout.flush()
if os.fork() == 0:
    use(3)
    print(seen(), flush=True)
    os._exit(0)
os.wait()
print(seen())
"""
    output = run_code(code, POOLING_METRICS_DIR="", PYTHONWARNINGS="ignore::DeprecationWarning")
    assert output == "([True], 3)\n([True], 5)\n"

"""The directory with the figures of all processes: nothing is lost, nothing is counted twice, no file stays."""

from __future__ import annotations

import errno
import gc
import itertools
import json
import logging
import os
import secrets
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pooling import Pool, PoolUnavailable
from pooling.observe import figures, local, shared, slotfile
from pooling.observe.figures import Recorder, add_up
from pooling.observe.shared import SharedDirectory
from pooling.observe.slotfile import SlotFile
from pooling.testing import FakeAdapter
from tests.integration.tools import wait_until

ROOT = Path(__file__).parents[2]
numbers = itertools.count()


class Killed(BaseException):
    """The process is killed here."""


def snapshot(**counters: float) -> dict[str, Any]:
    return {"pools": {"own": {"counters": counters, "gauges": {"used": 2}, "peaks": {"in_use": 3}, "holders": []}}}


def leave_file(path: Path, found: dict[str, Any] | None, pid: int = 4242) -> str:
    """Leave the file of a process that has ended."""
    path.mkdir(0o700, exist_ok=True)
    name = f"{pid}-{secrets.token_hex(8)}.v1"
    folder = os.open(path, os.O_RDONLY)
    file = SlotFile.open(name, folder, fresh=True)
    if found is not None:
        file.write(json.dumps(found).encode())
    file.close()
    os.close(folder)
    return name


def names(path: Path) -> set[str]:
    return set(os.listdir(path))


def db(totals: shared.Totals) -> dict[str, float]:
    """The counters of the pool of the snapshots."""
    counters: dict[str, float] = totals.pools["own"]["counters"]
    return counters


@pytest.fixture(autouse=True)
def other_tests_have_pools_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "MOST_POOLS", 1 << 20)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "metrics"


@pytest.fixture
def directory(path: Path) -> Iterator[SharedDirectory]:
    made = SharedDirectory(path)
    yield made
    made.process().close()


@pytest.fixture
def name() -> str:
    return f"shared-{next(numbers)}"


def another(directory: SharedDirectory) -> SharedDirectory:
    """The same for the next process, after this one was killed, which has closed its files."""
    directory.process().close()
    return SharedDirectory(directory.path)


# -- the directory -------------------------------------------------------------------


def test_directory_is_private(directory: SharedDirectory, path: Path) -> None:
    directory.writes = True
    directory.read()
    assert path.stat().st_mode & 0o777 == 0o700
    assert {(path / name).stat().st_mode & 0o777 for name in names(path)} == {0o600}


def test_directory_of_another_user_is_refused(
    directory: SharedDirectory, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path.mkdir(0o700)
    me = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: me + 1)
    with pytest.raises(PermissionError, match=rf"belong to the user of the process \({me + 1}\), not to user {me}$"):
        directory.read()
    assert names(path) == set()


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o777])
def test_directory_that_others_can_write_to_is_refused(directory: SharedDirectory, path: Path, mode: int) -> None:
    path.mkdir()
    path.chmod(mode)
    with pytest.raises(PermissionError, match=f"must not be writable for others, but has mode {mode:o}: use chmod 700"):
        directory.read()


def test_path_that_is_a_file_is_an_error(directory: SharedDirectory, path: Path) -> None:
    path.touch()
    with pytest.raises(OSError, match="Not a directory"):
        directory.read()


@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        (3, TypeError, "path must be the path of a directory, not 3"),
        (None, TypeError, "path must be the path of a directory, not None"),
        (b"/tmp", TypeError, "path must be the path of a directory, not b'/tmp'"),
        ("", ValueError, "path must be a non-empty path without null characters, not ''"),
        ("a\0b", ValueError, r"path must be a non-empty path without null characters, not 'a\\x00b'"),
    ],
)
def test_bad_path_is_refused(bad: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        SharedDirectory(bad)


def test_failure_to_write_is_logged_once_and_raises_nothing(
    directory: SharedDirectory, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path.touch()
    directory.writes = directory.process().active = True
    with caplog.at_level(logging.WARNING, "pooling"):
        assert not directory.write()
        assert not directory.write()
    assert [record.getMessage() for record in caplog.records] == [
        f"POOLING_METRICS_DIR={path}: metrics of this process are not shared: [Errno 20] Not a directory: '{path}'"
    ]


def test_directory_that_was_deleted_is_made_again(directory: SharedDirectory, path: Path) -> None:
    directory.writes = directory.process().active = True
    assert directory.write() and len(names(path)) == 2
    for name in names(path):
        (path / name).unlink()
    path.rmdir()
    assert directory.write() and len(names(path)) == 2
    assert directory.read().processes == 1


def test_own_file_that_was_deleted_is_made_again(directory: SharedDirectory, path: Path) -> None:
    directory.writes = directory.process().active = True
    assert directory.write()
    (path / directory.process().name).unlink()
    assert directory.read().processes == 1
    assert len(names(path)) == 2


def test_other_files_are_left_alone(directory: SharedDirectory, path: Path) -> None:
    leave_file(path, snapshot(acquired=1))
    (path / "README").write_text("ours")
    directory.read()
    assert names(path) == {"README", "retired.v1"}


# -- processes that have ended ---------------------------------------------------------


def test_dead_process_is_folded_and_its_file_deleted(directory: SharedDirectory, path: Path) -> None:
    leave_file(path, snapshot(acquired=5, created=1))
    leave_file(path, snapshot(acquired=7, timeouts=2))
    for _ in range(3):
        totals = directory.read()
        assert db(totals) == {"acquired": 12, "created": 1, "timeouts": 2}
        assert totals.pools["own"]["gauges"] == {} and totals.processes == 0
        assert names(path) == {"retired.v1"}
    assert db(another(directory).read()) == {"acquired": 12, "created": 1, "timeouts": 2}


def test_file_without_a_record_is_deleted(directory: SharedDirectory, path: Path) -> None:
    """Its process was killed before its first write."""
    leave_file(path, None)
    assert directory.read().pools == {}
    assert names(path) == {"retired.v1"}


def test_stale_file_of_a_process_id_that_lives_again(directory: SharedDirectory, path: Path) -> None:
    """The lock decides, not the process id: this one is ours."""
    leave_file(path, snapshot(acquired=5), pid=os.getpid())
    assert db(directory.read()) == {"acquired": 5}
    assert names(path) == {"retired.v1"}


OTHER = """
import json, os, sys
from pooling.observe.slotfile import SlotFile
file = SlotFile.open("77-0123456789abcdef.v1", os.open(sys.argv[1], os.O_RDONLY), fresh=True)
file.lock()
for line in sys.stdin:
    file.write(line.encode())
    print("written", flush=True)
"""


@pytest.fixture
def other(path: Path) -> Iterator[Callable[[dict[str, Any] | None], None]]:
    """Another process that writes, and is killed when it is told ``None``."""
    path.mkdir(0o700)
    process = subprocess.Popen(
        [sys.executable, "-c", OTHER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    )

    def tell(found: dict[str, Any] | None) -> None:
        assert process.stdin is not None and process.stdout is not None
        if found is None:
            process.kill()
            process.wait()
        else:
            process.stdin.write(json.dumps(found) + "\n")
            process.stdin.flush()
            assert process.stdout.readline() == "written\n"

    yield tell
    process.kill()
    process.communicate()


def test_live_process_counts_and_its_gauges_do(
    directory: SharedDirectory, other: Callable[[dict[str, Any] | None], None], path: Path
) -> None:
    other(snapshot(acquired=5))
    leave_file(path, snapshot(acquired=1))
    totals = directory.read()
    assert db(totals) == {"acquired": 6}
    assert (totals.pools["own"]["gauges"], totals.pools["own"]["peaks"]) == ({"used": 2}, {"in_use": 3})
    assert totals.processes == 1
    other(snapshot(acquired=9))
    assert db(directory.read()) == {"acquired": 10}
    other(None)
    totals = directory.read()
    assert (db(totals), totals.pools["own"]["gauges"], totals.processes) == ({"acquired": 10}, {}, 0)
    assert names(path) == {"retired.v1"}


# -- killed at any instant ---------------------------------------------------------------


def fold_until_killed(directory: SharedDirectory) -> None:
    with pytest.raises(Killed):
        directory.read()


def test_killed_in_the_middle_of_the_commit(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """1. A reader adds up two dead. 2. It is killed after so many bytes of the new totals. 3. Another reads."""
    real = os.pwrite
    leave_file(path, snapshot(acquired=100))
    directory = SharedDirectory(path)
    directory.read()
    size = os.stat(path / "retired.v1").st_size
    assert size > 0
    for written in range(0, 160, 3):
        expected = db(directory.read())["acquired"] + 12
        leave_file(path, snapshot(acquired=5))
        leave_file(path, snapshot(acquired=7))
        with monkeypatch.context() as patch:

            def pwrite(descriptor: int, data: bytes, offset: int, written: int = written) -> int:
                real(descriptor, data[:written], offset)
                raise Killed

            patch.setattr(os, "pwrite", pwrite)
            fold_until_killed(directory)
        directory = another(directory)
        assert db(directory.read()) == {"acquired": expected}, f"killed after {written} bytes"
        assert names(path) == {"retired.v1"}


@pytest.mark.parametrize("deleted", [0, 1, 2])
def test_killed_between_fold_and_delete(
    directory: SharedDirectory, path: Path, monkeypatch: pytest.MonkeyPatch, deleted: int
) -> None:
    """1. A reader commits the totals of two dead. 2. It deletes so many files, and is killed. 3. Others read, twice."""
    leave_file(path, snapshot(acquired=5))
    leave_file(path, snapshot(acquired=7))
    real, calls = os.unlink, itertools.count()

    def unlink(name: str, dir_fd: int) -> None:
        if next(calls) == deleted:
            raise Killed
        real(name, dir_fd=dir_fd)

    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", unlink)
        if deleted < 2:
            fold_until_killed(directory)
        else:
            directory.read()
    assert len(names(path)) == 3 - deleted
    directory = another(directory)
    assert db(directory.read()) == {"acquired": 12}
    assert names(path) == {"retired.v1"}
    assert db(another(directory).read()) == {"acquired": 12}


def test_file_that_cannot_be_deleted_is_counted_once(
    directory: SharedDirectory, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(name: str, dir_fd: int) -> None:
        raise PermissionError(errno.EPERM, "no")

    leave_file(path, snapshot(acquired=5))
    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", refuse)
        for _ in range(3):
            assert db(directory.read()) == {"acquired": 5}
    assert db(directory.read()) == {"acquired": 5}
    assert names(path) == {"retired.v1"}


def test_full_disk_loses_nothing(
    directory: SharedDirectory, path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    leave_file(path, snapshot(acquired=5))

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    directory.writes = directory.process().active = True
    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING, "pooling"):
        patch.setattr(os, "pwrite", full)
        for _ in range(2):
            assert db(directory.read()) == {"acquired": 5}
            assert not directory.write()
    assert len([record for record in caplog.records if "No space left" in record.getMessage()]) == 1
    assert db(directory.read()) == {"acquired": 5}
    assert directory.write() and directory.read().processes == 1
    assert len(names(path)) == 2


def test_reader_whose_turn_does_not_come_says_so(
    directory: SharedDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared, "PATIENCE", 0.0)
    monkeypatch.setattr(SlotFile, "lock", lambda self: False)
    directory.writes = True
    with pytest.raises(TimeoutError, match=r"no turn to read or write the metrics: another process has locked /"):
        directory.read()


def test_1000_restarts_leave_two_files(directory: SharedDirectory, path: Path) -> None:
    for _ in range(1000):
        leave_file(path, snapshot(acquired=1))
        if secrets.randbelow(10) == 0:
            directory.read()
    assert db(directory.read()) == {"acquired": 1000}
    assert names(path) == {"retired.v1"}


# -- counters of this process --------------------------------------------------------------


def use(pool: Pool[Any], times: int) -> None:
    for _ in range(times):
        with pool.acquire():
            pass


def test_own_pools_are_in_the_totals(directory: SharedDirectory, name: str) -> None:
    directory.writes = directory.process().active = True
    pool: Pool[Any] = Pool(object, name=name, max_size=3)
    use(pool, 10)
    with pool.acquire():
        found = directory.read().pools[name]
    assert found["counters"]["acquired"] == 11 and found["counters"]["created"] == 1
    assert {key: found["gauges"][key] for key in ("used", "idle", "max", "pending", "down")} == {
        "used": 1, "idle": 0, "max": 3, "pending": 0, "down": 0,
    }  # fmt: skip
    assert "test_own_pools_are_in_the_totals" in found["holders"][0]["where"]
    pool.close()


def test_process_that_uses_no_pool_writes_nothing(
    directory: SharedDirectory, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "all_pools", list)
    directory.writes = True
    directory.write()
    assert not path.exists()
    assert directory.read().processes == 0
    assert names(path) == {"retired.v1"}


def test_unchanged_figures_are_not_written_again(directory: SharedDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    process = directory.process()
    directory.writes = process.active = True
    monkeypatch.setattr(process.recorder, "sample", lambda epoch: {"own": add_up([])})
    directory.write()
    assert process.file is not None
    first = process.file.read()
    directory.write()
    assert process.file.read() == first


def test_counters_survive_a_reset(name: str) -> None:
    recorder = Recorder()
    pool: Pool[Any] = Pool(object, name=name)
    use(pool, 5)
    assert recorder.sample()[name]["counters"]["acquired"] == 5
    pool.metrics.reset()
    use(pool, 2)
    assert recorder.sample()[name]["counters"]["acquired"] == 7
    pool.close()


def test_directory_of_another_application_is_only_read(directory: SharedDirectory, path: Path, name: str) -> None:
    pool: Pool[Any] = Pool(object, name=name)
    use(pool, 5)
    path.mkdir(0o700)
    assert directory.write()
    assert (name in directory.read().pools, names(path)) == (False, {"retired.v1"})
    pool.close()


@pytest.mark.parametrize("sampled", [True, False])
def test_counters_survive_the_pool(directory: SharedDirectory, name: str, sampled: bool) -> None:
    """Also those of a pool that came and went between two samples."""
    directory.writes = directory.process().active = True
    shared.LISTENERS.append(directory.listen)
    try:
        pool: Pool[Any] = Pool(object, name=name)
        use(pool, 5)
        if sampled:
            assert directory.read().pools[name]["counters"]["acquired"] == 5
        use(pool, 3)
        number, pools = id(pool.engine.ref), pool.engine.runtime.pools
        del pool
        gc.collect()
        wait_until(lambda: number not in pools)  # the reaper has removed it
        wait_until(lambda: directory.read().pools.get(name, {}).get("counters", {}).get("acquired") == 8)
        assert directory.read().pools[name]["gauges"] == {}
    finally:
        shared.LISTENERS.remove(directory.listen)


def test_pools_of_one_name_are_summed(name: str) -> None:
    recorder = Recorder()
    pools: list[Pool[Any]] = [Pool(object, name=name, max_size=size) for size in (2, 3)]
    for pool in pools:
        use(pool, 4)
    found = recorder.sample()[name]
    assert found["counters"]["acquired"] == 8 and found["gauges"]["max"] == 5
    for pool in pools:
        pool.close()


def test_inner_pools_are_left_out(name: str) -> None:
    pool: Pool[Any] = Pool(object, name=name)
    pool.metrics.inner = True
    use(pool, 1)
    assert name not in Recorder().sample()
    pool.close()


def test_sums_do_not_depend_on_the_order() -> None:
    """A counter that is smaller by one digit in the last place is a restart to Prometheus, and its rate wrong."""
    recorder, found = Recorder(), []
    pools: list[Pool[Any]] = [Pool(object, name=f"order-{number}") for number in range(3)]
    for pool, seconds in zip(pools, (0.1, 0.2, 0.3)):
        pool.metrics.durations.wait.record(seconds)
    sampled = recorder.sample()
    for order in itertools.permutations(pools):
        found.append(add_up(sampled[pool.name] for pool in order)["counters"]["wait.ns"])
    assert set(found) == {600_000_000}
    assert all(isinstance(value, int) for pool in pools for value in sampled[pool.name]["counters"].values())
    for pool in pools:
        pool.close()


def test_many_names_are_counted_together(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "MOST_POOLS", 100)
    recorder = Recorder()
    pools: list[Pool[Any]] = [Pool(object, name=f"{name}-{number}") for number in range(110)]
    for pool in pools:
        use(pool, 1)
    found = recorder.sample()
    assert len(found) == 101
    assert found[figures.OTHERS]["counters"]["acquired"] >= 10
    assert set(found) == set(recorder.sample())
    for pool in pools:
        pool.close()


def test_closed_pool_has_no_limits_any_more(name: str) -> None:
    recorder = Recorder()
    pool: Pool[Any] = Pool(object, name=name, max_size=7)
    use(pool, 1)
    pool.close()
    found = recorder.sample()[name]
    assert "max" not in found["gauges"] and found["gauges"]["size"] == 0
    assert found["counters"]["acquired"] == 1


def test_peaks_are_those_since_the_last_scrape(name: str) -> None:
    recorder = Recorder()
    pool: Pool[Any] = Pool(object, name=name, max_size=5)
    recorder.sample(0)
    leases = [pool.acquire() for _ in range(4)]
    for lease in leases:
        lease.release()
    assert recorder.sample(0)[name]["peaks"]["in_use"] == 4
    assert recorder.sample(0)[name]["peaks"]["in_use"] == 4
    assert recorder.sample(1)[name]["peaks"]["in_use"] == 0
    leases = [pool.acquire() for _ in range(2)]  # no new maximum, and over before the sample
    for lease in leases:
        lease.release()
    assert recorder.sample(1)[name]["peaks"]["in_use"] == 2
    assert recorder.sample(2)[name]["peaks"]["in_use"] == 0
    pool.close()


def test_scrape_of_the_directory_begins_a_new_peak(directory: SharedDirectory, name: str) -> None:
    directory.writes = directory.process().active = True
    pool: Pool[Any] = Pool(object, name=name, max_size=5)
    for expected in (3, 1, 2):
        for lease in [pool.acquire() for _ in range(expected)]:
            lease.release()
        directory.write()  # writes do not begin one
        directory.write()
        assert directory.read().pools[name]["peaks"]["in_use"] == expected
    assert directory.read().pools[name]["peaks"]["in_use"] == 0
    pool.close()


def test_counter_never_decreases(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The snapshot of an HTTP pool adds up hosts one after the other: one may be forgotten meanwhile."""
    recorder = Recorder()
    pool: Pool[Any] = Pool(object, name=name)
    use(pool, 5)
    snapshot = pool.metrics.snapshot()
    for created, expected in ((5, 5), (3, 5), (6, 6), (0, 6)):
        changed = snapshot._replace(created=created)
        monkeypatch.setattr(pool.metrics, "snapshot", lambda changed=changed: changed)
        assert recorder.sample()[name]["counters"]["created"] == expected
    pool.close()


def test_longest_times_are_those_since_the_last_scrape(name: str) -> None:
    recorder = Recorder()
    pool: Pool[Any] = Pool(object, name=name)
    use(pool, 1)
    recorder.sample(0)
    for seconds in (0.3, 0.02):
        pool.metrics.durations.wait.record(seconds)
        assert 0.3 <= recorder.sample(0)[name]["peaks"]["wait"] <= 0.37
    assert recorder.sample(1)[name]["peaks"]["wait"] == 0
    pool.metrics.durations.wait.record(0.02)
    assert 0.02 <= recorder.sample(1)[name]["peaks"]["wait"] <= 0.024
    pool.close()


def test_oldest_wait_and_outage_are_seen(name: str) -> None:
    recorder = Recorder()

    class Failing(FakeAdapter):
        def create(self) -> Any:
            raise OSError("down")

    pool: Pool[Any] = Pool(adapter=Failing(), name=name, max_attempts=1)
    with pytest.raises(PoolUnavailable):
        pool.acquire(30)
    assert recorder.sample()[name]["gauges"]["down"] == 1
    pool.close()


def test_snapshots_are_added_up() -> None:
    one = {"counters": {"a": 1, "b": 2}, "gauges": {"used": 1, "oldest_wait": 3.0}, "peaks": {"wait": 1.0, "in_use": 2}}
    two = {"counters": {"a": 5}, "gauges": {"used": 2, "oldest_wait": 1.0}, "peaks": {"wait": 4.0, "in_use": 2}}
    assert add_up([one, two]) == {
        "counters": {"a": 6, "b": 2}, "gauges": {"used": 3, "oldest_wait": 3.0}, "peaks": {"wait": 4.0, "in_use": 4},
        "holders": [],
    }  # fmt: skip


# -- the process ------------------------------------------------------------------------------


def run(code: str, **env: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **env}, cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    return done.stdout


SEEN = "import sys, pooling, pooling.manager; print(sorted(n for n in sys.modules if n.startswith('pooling.observe')))"


def test_nothing_is_imported_without_the_variable() -> None:
    assert run(SEEN, POOLING_METRICS_DIR="") == "[]\n"


def test_variable_is_enough(path: Path) -> None:
    code = """
import os, pooling
pool = pooling.Pool(object, name="own")
print(os.path.exists(os.environ["POOLING_METRICS_DIR"]))
for _ in range(5):
    with pool.acquire(): pass
"""
    assert run(code, POOLING_METRICS_DIR=str(path)) == "False\n"
    assert db(SharedDirectory(path).read())["acquired"] == 5  # written at exit, at the latest


FORK = """
import os, sys, threading
import pooling
from pooling.observe import shared
pool = pooling.Pool(object, name="own")
def use(times):
    for _ in range(times):
        with pool.acquire(): pass
use(3)
assert shared.current().write()
if os.fork() == 0:
    use(4)
    sys.exit()  # which runs the exit handlers
os.wait()
if os.fork() == 0:
    os._exit(0)  # used nothing
os.wait()
print(shared.current().read().processes)
"""


def test_forked_children_write_for_themselves(path: Path) -> None:
    env = {"POOLING_METRICS_DIR": str(path), "PYTHONWARNINGS": "ignore::DeprecationWarning"}
    assert run(FORK, **env) == "1\n"
    assert db(SharedDirectory(path).read())["acquired"] == 7


SLOW = """
import sys, threading, time
import pooling
from pooling.observe.slotfile import SlotFile
pool = pooling.Pool(object, name="own")
writing, write = threading.Event(), SlotFile.write
def write_slowly(file, data, tag=0):
    if threading.current_thread() is not threading.main_thread():
        writing.set()
        time.sleep(1.5)  # as on a busy disk
    write(file, data, tag)
SlotFile.write = write_slowly
with pool.acquire(): pass
assert writing.wait(60)
with pool.acquire(): pass
"""


def test_exit_waits_for_a_thread_that_writes(path: Path) -> None:
    """What is counted meanwhile is written, too."""
    run(SLOW, POOLING_METRICS_DIR=str(path))
    assert db(SharedDirectory(path).read())["acquired"] == 2


DROPPED = """
import threading, time
import pooling
from pooling.core.runtime.reaper import LISTENERS
from pooling.observe import shared
pool = pooling.Pool(object, name="own")
with pool.acquire(): pass
assert shared.current().write()
seen = threading.Event()
LISTENERS.append(lambda reaper, dropped: dropped and seen.set())
directory = shared.current()
with directory.exclusive(directory.process()):  # as a thread that waits for a disk
    with pool.acquire(): pass
    del pool
    began = time.monotonic()
    assert seen.wait(60) and time.monotonic() - began < 4, time.monotonic() - began
"""


def test_a_thread_that_writes_does_not_delay_the_reaper(path: Path) -> None:
    run(DROPPED, POOLING_METRICS_DIR=str(path))
    assert db(SharedDirectory(path).read())["acquired"] == 2


MULTIPROCESSING = """
import pooling, multiprocessing
pool = pooling.Pool(object, name="own")
def use(times):
    for _ in range(times):
        with pool.acquire(): pass
if __name__ == "__main__":
    children = [multiprocessing.get_context("fork").Process(target=use, args=(n,)) for n in (1, 2, 3)]
    for child in children: child.start()
    for child in children: child.join()
"""


@pytest.mark.parametrize("module", ["multiprocessing", "billiard"])
def test_children_of_multiprocessing_write_at_their_end(path: Path, module: str) -> None:
    pytest.importorskip(module)
    env = {"POOLING_METRICS_DIR": str(path), "PYTHONWARNINGS": "ignore::DeprecationWarning"}
    assert run(MULTIPROCESSING.replace("multiprocessing", module), **env) == ""
    assert db(SharedDirectory(path).read())["acquired"] == 6


GEVENT = """
from gevent import monkey
monkey.patch_all()
import gevent, pooling
from pooling.observe import shared
pool = pooling.Pool(lambda: gevent.sleep(0.01) or object(), name="own", max_size=2)
def use():
    with pool.acquire():
        gevent.sleep(0.01)
jobs = [gevent.spawn(use) for _ in range(10)] + [gevent.spawn(shared.current().read) for _ in range(5)]
gevent.joinall(jobs, timeout=10, raise_error=True)
print(shared.current().read().pools["own"]["counters"]["acquired"])
"""


def test_gevent(path: Path) -> None:
    pytest.importorskip("gevent")
    assert run(GEVENT, POOLING_METRICS_DIR=str(path)) == "10\n"
    assert db(SharedDirectory(path).read())["acquired"] == 10


def test_child_closes_the_files_of_its_parent_before_it_has_its_own(
    directory: SharedDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise it would lose a lock that one of its other threads has just taken."""
    directory.writes = True
    directory.read()
    parent, pid, seen = directory.process(), os.getpid() + 1, []
    close = type(parent).close

    def closing(self: Any) -> None:
        seen.append(pid in directory.processes)
        close(self)

    monkeypatch.setattr(type(parent), "close", closing)
    monkeypatch.setattr(os, "getpid", lambda: pid)
    child = directory.process()
    assert seen == [False] and child is directory.process() is not parent
    assert (parent.directory, parent.retired, parent.file) == (-1, None, None)


def test_one_process_has_one_directory(path: Path) -> None:
    code = """
from pooling.observe.shared import share, current
import sys
one = share(sys.argv[1] if len(sys.argv) > 1 else "/tmp/pooling-one")
assert share("/tmp/pooling-one") is one is current()
try:
    share("/tmp/pooling-two")
except ValueError as error:
    print(error)
"""
    assert run(code, POOLING_METRICS_DIR="") == (
        "path must be '/tmp/pooling-one', which this process uses already, not '/tmp/pooling-two'\n"
    )


def test_slots_of_both_files_are_apart() -> None:
    assert slotfile.offset_of(1) - slotfile.offset_of(2) == slotfile.MOST_BYTES

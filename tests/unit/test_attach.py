"""Attaching: a look now and then costs next to nothing, and no other user gets anything."""

from __future__ import annotations

import errno
import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pooling import Pool, _attach
from pooling.observe import attach, figures, view
from pooling.observe.attach import DefaultDirectory
from pooling.observe.shared import LISTENERS
from tests.integration.tools import environment

USER = os.geteuid()


@pytest.fixture(autouse=True)
def other_tests_have_pools_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "MOST_POOLS", 1 << 20)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What is private to the user: the directories are in it."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return tmp_path


@pytest.fixture
def directory(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[DefaultDirectory]:
    """That of this process, whose worker does nothing by itself."""
    monkeypatch.setattr(DefaultDirectory, "begin", lambda self, reaper: setattr(self.process(), "active", True))
    attach.attach(_attach.directories()[0])
    made = attach.watchable()[0]
    yield made
    made.detach()
    LISTENERS.remove(made.listen)


def test_directories_of_a_user(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", "/var/tmp")
    found = _attach.directories()
    assert found[0] == f"{home}/pooling"
    assert found[-2:] == [f"/var/tmp/pooling-{USER}", f"/tmp/pooling-{USER}"]
    monkeypatch.setenv("XDG_RUNTIME_DIR", f"{home}/none")
    assert f"{home}/none/pooling" not in _attach.directories()


def test_runtime_directory_of_another_user_is_not_used(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: USER + 1)  # `su` keeps the environment
    assert f"{home}/pooling" not in _attach.directories()
    assert _attach.directories()[-1] == f"/tmp/pooling-{USER + 1}"


def test_watcher_is_gone_after_some_seconds(tmp_path: Path) -> None:
    path = tmp_path / "watch"
    assert not _attach.is_watched(str(path))
    path.touch()
    assert _attach.is_watched(str(path))
    for age in (_attach.WATCHED + 1, -_attach.WATCHED - 1):  # the clock may have been set
        os.utime(path, (0, time.time() - age))
        assert not _attach.is_watched(str(path))


def run(code: str, **env: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], env=environment(**env), capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


UNWATCHED = """
import gc, os, sys, time
import pooling
from pooling import _attach
_attach.EVERY = 0.05
looks, stat = [], os.stat
def counted(path, **more):
    looks.append(str(path))
    return stat(path, **more)
pool = pooling.Pool(object, name="db")
os.stat = counted
with pool.acquire(): pass
time.sleep(0.5)
print(len([path for path in looks if path.endswith("pooling/watch")]) > 2, len(os.listdir("/proc/self/task")))
print([name for name in sys.modules if name.startswith("pooling.observe") or name == "psutil"])
print(os.listdir(os.environ["XDG_RUNTIME_DIR"]))
pool.close()
del pool
gc.collect()
from pooling.core.runtime import registry
deadline = time.monotonic() + 20
while not all(runtime.current_reaper.ended for runtime in registry.runtimes):
    assert time.monotonic() < deadline
    time.sleep(0.01)
"""


def test_without_a_watcher_nothing_happens(home: Path) -> None:
    """Nothing is imported or written, no thread is started but the reaper, and that ends with the last pool (P11)."""
    assert run(UNWATCHED, XDG_RUNTIME_DIR=str(home), POOLING_METRICS_DIR="") in {
        f"True {threads}\n[]\n[]\n" for threads in (2, 3)  # the reaper, and a worker that created the resource
    }


def test_it_can_be_switched_off(home: Path) -> None:
    (home / "pooling").mkdir(0o700)
    (home / "pooling" / "watch").touch()
    code = """
import sys, time, pooling
from pooling.core.runtime.reaper import LISTENERS
pool = pooling.Pool(object, name="db")
with pool.acquire(): pass
print(LISTENERS)
"""
    assert run(code, XDG_RUNTIME_DIR=str(home), POOLING_ATTACH="0", POOLING_METRICS_DIR="") == "[]\n"


def test_switch_that_is_neither_on_nor_off() -> None:
    env = environment(POOLING_ATTACH="perhaps")
    done = subprocess.run([sys.executable, "-c", "import pooling"], env=env, capture_output=True, text=True)
    assert "ValueError: POOLING_ATTACH must be 0 or 1, not 'perhaps'" in done.stderr


def test_windows_does_not_offer_it(monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[Any] = []
    monkeypatch.setattr(_attach, "LISTENERS", [])
    monkeypatch.setattr(_attach, "CHECKS", looks)
    monkeypatch.setattr(os, "register_at_fork", lambda **hooks: None)
    monkeypatch.setenv("POOLING_ATTACH", "1")
    with monkeypatch.context() as patch:
        patch.setattr(sys, "platform", "win32")
        _attach.offer()
    assert looks == []
    _attach.offer()
    assert len(looks) == 1


def test_master_of_uwsgi_does_not_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """It forks in C, at which moment no other thread should be awake."""
    pool: Pool[Any] = Pool(object, name="uwsgi")
    with pool.acquire():
        pass
    put: list[Any] = []
    reaper = pool.engine.runtime.reaper
    monkeypatch.setattr(reaper, "inbox", SimpleNamespace(put=put.append))
    for worker, looks in ((0, 0), (3, 1)):
        monkeypatch.setitem(sys.modules, "uwsgi", SimpleNamespace(worker_id=lambda worker=worker: worker))
        _attach.WatcherCheck().listen(reaper, None)
        assert len(put) == looks
    monkeypatch.undo()
    pool.close()


# -- a process that is watched -----------------------------------------------------------


def test_attached_until_the_watcher_is_gone(directory: DefaultDirectory, home: Path) -> None:
    pool: Pool[Any] = Pool(object, name="attached")
    with pool.acquire():
        pass
    (home / "pooling").mkdir(0o700)
    viewer = view.Viewer.of_directory(home / "pooling")
    viewer.view()
    directory.step()
    found = viewer.view()
    mine = [one for one in found["pools"] if one["name"] == "attached"]
    assert [one["pid"] for one in found["processes"]] == [os.getpid()] and mine[0]["size"] == 1
    assert [number for number in mine[0]["minutes"]["leases"] if number is not None] in ([0], [0, 0])  # before it
    with pool.acquire():
        pass
    directory.step()
    mine = [one for one in viewer.view()["pools"] if one["name"] == "attached"]
    assert sum(filter(None, mine[0]["minutes"]["leases"])) <= 1
    observers = len(pool.engine.events.observers)
    os.utime(home / "pooling" / "watch", (0, 0))
    directory.step()
    assert os.listdir(home / "pooling") == []
    assert len(pool.engine.events.observers) == observers - 1
    assert not directory.process().attached
    directory.attach()  # another watcher
    viewer.view()
    directory.step()
    assert [one["pid"] for one in viewer.view()["processes"]] == [os.getpid()]
    pool.close()


def test_last_process_removes_what_the_dead_have_left(directory: DefaultDirectory, home: Path) -> None:
    directory.watch()
    code = """
import os, sys, pooling
from pooling.observe.attach import attach, watchable
pool = pooling.Pool(object, name="db")
with pool.acquire(): pass
attach(sys.argv[1])
assert watchable()[0].write()
os.kill(os.getpid(), 9)
"""
    subprocess.run([sys.executable, "-c", code, str(home / "pooling")], env=environment(POOLING_METRICS_DIR=""))
    assert len(os.listdir(home / "pooling")) >= 3
    os.utime(home / "pooling" / "watch", (0, 0))
    directory.attach()
    directory.step()
    assert os.listdir(home / "pooling") == []


def test_directory_of_another_user_is_refused_and_said_once(
    directory: DefaultDirectory, home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An attacker has created it first."""
    (home / "pooling").mkdir()
    (home / "pooling").chmod(0o777)
    (home / "pooling" / "watch").touch()
    with caplog.at_level(logging.WARNING, "pooling"):
        for _ in range(3):
            directory.attach()
            directory.step()
            assert not directory.process().attached
    assert os.listdir(home / "pooling") == ["watch"]
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 1 and "must not be writable for others" in messages[0]
    with pytest.raises(PermissionError, match="must not be writable for others"):
        view.Viewer.of_directory(home / "pooling").view()


def test_symbolic_link_is_refused(directory: DefaultDirectory, home: Path) -> None:
    """It would lead to another private directory of the same user."""
    (home / "elsewhere").mkdir(0o700)
    (home / "pooling").symlink_to(home / "elsewhere")
    with pytest.raises(OSError) as caught:
        directory.read()
    assert caught.value.errno in (errno.ELOOP, errno.ENOTDIR)
    assert os.listdir(home / "elsewhere") == []


def test_full_disk_ends_it(
    directory: DefaultDirectory, home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    directory.watch()
    pool: Pool[Any] = Pool(object, name="full")
    with pool.acquire():
        pass
    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING, "pooling"):
        patch.setattr(os, "pwrite", full)
        for _ in range(3):
            directory.attach()
            directory.step()
            assert not directory.process().attached
            directory.watch()
    assert len([record for record in caplog.records if "No space left" in record.getMessage()]) == 1
    directory.attach()
    directory.step()
    assert directory.process().attached
    pool.close()


def test_one_directory_that_is_refused_hides_no_other(
    home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    good, bad = home / "good", home / "bad"
    bad.mkdir()
    bad.chmod(0o777)
    monkeypatch.setattr(view, "watchable", lambda: [DefaultDirectory(str(bad)), DefaultDirectory(str(good))])
    viewer = view.Viewer.of_directory(None)
    with caplog.at_level(logging.WARNING, "pooling"):
        assert viewer.view()["processes"] == viewer.view()["pools"] == []
    assert len([record for record in caplog.records if "must not be writable" in record.getMessage()]) == 1
    monkeypatch.setattr(view, "watchable", lambda: [DefaultDirectory(str(bad))])
    with pytest.raises(PermissionError):
        view.Viewer.of_directory(None).view()


def test_look_attaches_on_a_worker(home: Path) -> None:
    code = """
import os, sys, time, pooling
from pooling import _attach
_attach.EVERY = 0.05
pool = pooling.Pool(object, name="db")
with pool.acquire(): pass
path = os.path.join(os.environ["XDG_RUNTIME_DIR"], "pooling")
os.mkdir(path, 0o700)
open(os.path.join(path, "watch"), "w").close()
deadline = time.monotonic() + 20
while len(os.listdir(path)) < 3:
    assert time.monotonic() < deadline
    time.sleep(0.01)
import threading  # no thread of ours or of psutil is left there, which would cause a warning at a fork
print("attached", threading.active_count())
"""
    assert run(code, XDG_RUNTIME_DIR=str(home), POOLING_METRICS_DIR="") == "attached 1\n"


def test_reaper_that_begins_again_goes_on(directory: DefaultDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[Any] = []
    monkeypatch.setattr(DefaultDirectory, "begin", lambda self, reaper: begun.append(reaper))
    pool: Pool[Any] = Pool(object, name="again")
    with pool.acquire():
        pass
    reaper = pool.engine.runtime.reaper
    begun.clear()
    directory.listen(reaper, None)
    assert begun == [reaper]
    directory.process().attached = False
    directory.listen(reaper, None)
    assert begun == [reaper]
    pool.close()


def test_fork_in_the_middle_of_the_import(home: Path) -> None:
    """A child could never import what another thread of its parent was importing."""
    code = """
import os, signal, sys, threading, time
import pooling
from pooling import _attach
begun = threading.Event()
class Slow:
    def find_spec(self, name, path=None, target=None):
        if name == "psutil":
            begun.set()
            time.sleep(1)
sys.meta_path.insert(0, Slow())
path = os.path.join(os.environ["XDG_RUNTIME_DIR"], "pooling")
os.mkdir(path, 0o700)
open(os.path.join(path, "watch"), "w").close()
pool = pooling.Pool(object, name="db")
with pool.acquire(): pass
assert begun.wait(20)
if os.fork() == 0:
    signal.alarm(20)
    import pooling.observe.process
    os._exit(0)
print(os.wait()[1])
"""
    env = {"XDG_RUNTIME_DIR": str(home), "POOLING_METRICS_DIR": "", "PYTHONWARNINGS": "ignore::DeprecationWarning"}
    assert run(code, **env) == "0\n"

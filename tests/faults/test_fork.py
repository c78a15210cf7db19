"""P9: however the process forked, a child has pools of its own, and the parent's are untouched.

Each test runs a program of `tests.faults.forked` and looks at three things: its
exit status, which fails when anything in it or in its children does; what the
server has received, where no connection may have been used by a process that
did not make it, nor have ended before that process ended it; and standard error,
which must be empty.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.recorder import Record, Recorder

ROOT = Path(__file__).parents[2]
TIMEOUT = 60  # a program that is stuck kills itself before

HOOK_OR_BARE = ["hook", "bare"]
ALL_WAYS = ["hook", "bare", "hook-pageless", "bare-pageless"]

# CPython 3.12+ warns of a fork beside threads: of ours there must be none, but
# these programs have threads of their own.
BESIDE_THREADS = "ignore:This process:DeprecationWarning"


class Program:
    """A program that forks."""

    def __init__(self, scene: str, how: str, adapter: str, server: Recorder, warnings: str = BESIDE_THREADS) -> None:
        self.server = server
        self.process = subprocess.Popen(
            [sys.executable, "-X", "dev", "-W", "error", "-W", warnings, "-m", "tests.faults.forked", scene],
            cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env={"PATH": "/usr/bin:/bin", "FORK": how, "ADAPTER": adapter, "PORT": str(server.port)},
        )  # fmt: skip

    def result(self, say: str = "") -> list[Record]:
        """Wait for its end and check it; return the connections that it made itself."""
        try:
            out, err = self.process.communicate(say, TIMEOUT)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        assert self.process.returncode == 0, f"it ended with {self.process.returncode}:\n{err}"
        assert (out, err) == ("", "")
        assert self.server.until(lambda: all(record.ended for record in self.server.records))
        for record in self.server.records:
            assert not record.foreign, f"{record.foreign} on the connection of {record.maker}: {record.heard}"
        return self.server.made_by(self.process.pid)


@pytest.fixture
def server() -> Iterator[Recorder]:
    with Recorder() as recorder:
        yield recorder


def test_recorder_detects_a_foreign_connection(server: Recorder) -> None:
    """The failure that the tests below look for is detected when it happens."""
    from tests.faults.recorder import Connection

    line = Connection(server.port)
    line.sock.sendall(b"1 stolen\n")
    line.sock.close()
    assert server.until(lambda: server.records[0].ended)
    assert server.records[0].foreign == [(1, "stolen")]


@pytest.mark.parametrize("adapter", ["abandons", "functions"])
@pytest.mark.parametrize("how", ALL_WAYS)
def test_child_starts_empty_whatever_the_parent_has(server: Recorder, how: str, adapter: str) -> None:
    """With leases, an idle resource, a waiter, and locks held by another thread."""
    mine = Program("everything", how, adapter, server).result()
    assert sorted(word for record in mine for word in record.words if word == "parent") == ["parent"] * 4


@pytest.mark.parametrize("how", ALL_WAYS)
@pytest.mark.parametrize(
    "scene",
    [
        "leaving_a_block",
        "leaving_a_block_that_others_wait_for",
        "leaving_a_block_by_an_error",
        "child_of_a_child",
        "from_a_thread",
    ],
)
def test_forks_of_any_kind_at_any_point(server: Recorder, scene: str, how: str) -> None:
    Program(scene, how, "abandons", server).result()


@pytest.mark.parametrize("how", HOOK_OR_BARE)
@pytest.mark.parametrize("scene", ["busy_reaper", "creation_under_way", "from_a_worker"])
def test_fork_while_the_pools_threads_are_busy(server: Recorder, scene: str, how: str) -> None:
    Program(scene, how, "abandons", server).result()


@pytest.mark.parametrize("scene", ["while_waiting", "at_any_moment"])
def test_fork_in_a_signal_handler(server: Recorder, scene: str) -> None:
    """The forking thread itself is inside the pool's code."""
    Program(scene, "hook", "abandons", server).result()


@pytest.mark.parametrize("adapter", ["abandons", "functions"])
@pytest.mark.parametrize("how", HOOK_OR_BARE)
@pytest.mark.parametrize("scene", ["unused", "used", "dropped"])
def test_exit_of_a_child_sends_nothing_to_the_parents_servers(
    server: Recorder, scene: str, how: str, adapter: str
) -> None:
    """Not even destructors of a driver, at the end of interpreter finalization, send anything."""
    mine = Program(scene, how, adapter, server).result()
    children = [record for record in server.records if record not in mine]
    assert bool(children) == (scene != "unused")
    if how == "hook":  # else CPython does not know that its threads are gone, and may not exit properly
        assert all(record.words[-1] == "bye" for record in children), "it did not close its own"


@pytest.mark.parametrize("how", HOOK_OR_BARE)
def test_destructors_during_the_fork_handler(server: Recorder, how: str) -> None:
    Program("destructors", how, "abandons", server).result()


def test_failing_abandon_does_not_prevent_the_others(server: Recorder) -> None:
    Program("failing_abandon", "hook", "abandons", server).result()


def test_resource_held_across_a_fork_sends_nothing(server: Recorder) -> None:
    assert "stolen" not in [word for record in server.records for word in record.words]
    Program("held_across_a_fork", "hook", "abandons", server).result()


def test_idle_child_keeps_no_connection_of_its_parent_open(server: Recorder) -> None:
    program = Program("nothing_held_open", "hook", "abandons", server)
    assert server.until(lambda: bool(server.records) and server.records[0].ended)
    program.result("ended\n")


@pytest.mark.parametrize("scene", ["processes-fork", "processes-forkserver", "processes-spawn", "subprocesses"])
def test_other_ways_to_start_a_child(server: Recorder, scene: str) -> None:
    Program(scene, "hook", "abandons", server).result()


def test_pools_threads_cause_no_warning_at_a_fork(server: Recorder) -> None:
    Program("no_warning", "hook", "abandons", server, warnings="error").result()


def test_many_forks_under_load(server: Recorder) -> None:
    """Two hundred, while eight threads borrow and release; a third with a lease held."""
    Program("churn", "hook", "abandons", server).result()


UWSGI = """
import ctypes, os, sys, time, types

uwsgi = sys.modules["uwsgi"] = types.ModuleType("uwsgi")
uwsgi.worker_id = lambda: 0
threads = []
look = ctypes.CFUNCTYPE(None)(lambda: threads.append(len(os.listdir("/proc/self/task"))))
ctypes.CDLL(None).__register_atfork(look, None, None, None)  # it runs last: in the opposite order of registration

from pooling import Pool

pool = Pool(object, max_size=2, health_check_interval=0.05)
with pool.acquire():
    pass
for _ in range(20):
    child = ctypes.PyDLL(None).fork()
    if child == 0:
        with pool.acquire():
            os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    time.sleep(0.01)
print(set(threads))
time.sleep(0.2)
print(len(os.listdir("/proc/self/task")) > 1)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="it counts threads in /proc")
def test_threads_rest_while_uwsgi_forks() -> None:
    """Otherwise a worker may inherit an interpreter lock that is never released (P9); see `runtime.fork`."""
    done = subprocess.run([sys.executable, "-c", UWSGI], text=True, capture_output=True, timeout=60, cwd=ROOT)
    assert (done.returncode, done.stdout, done.stderr) == (0, "{1}\nTrue\n", "")

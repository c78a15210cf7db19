"""P10: a process ends by itself, at once and silently, whatever was left open or checked out.

Each test runs programs of `tests.faults.ending`, under ``-X dev -W error``, and
looks at how long their end took, at their exit status, and at standard error,
where nothing may be but the error that ended them.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

import pytest

from tests.faults.recorder import Recorder

ROOT = Path(__file__).parents[2]
AT_ONCE = 5.0  # seconds, on a busy machine
TIMEOUT = 60

# How a program ends, and its exit status then.
ENDS = {
    "returns": 0,
    "exits": 3,
    "fails": 1,
    "is_killed": -signal.SIGTERM,
    "is_told_to_exit": 5,
    "is_interrupted": -signal.SIGINT,
}
ERRORS = {"fails": "KeyError: 'the error itself'\n", "is_interrupted": "KeyboardInterrupt\n"}


class Program:
    """A program that ends; a context manager, which cleans up after a failed test."""

    def __init__(self, state: str, end: str = "", **environment: str) -> None:
        self.name = f"{state}, {end}" if end else state
        self.end = end
        self.process = subprocess.Popen(
            [sys.executable, "-X", "dev", "-W", "error", "-m", "tests.faults.ending", *self.name.split(", ")],
            cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env={"PATH": "/usr/bin:/bin", **environment},
        )  # fmt: skip

    def __enter__(self) -> Program:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.process.kill()
        self.process.communicate()

    def result(self) -> list[str]:
        """Wait for its end and check it; return what it printed, without the time."""
        try:
            out, err = self.process.communicate(timeout=TIMEOUT)
        except subprocess.TimeoutExpired:
            self.process.kill()
            out, err = self.process.communicate()
            pytest.fail(f"{self.name}: did not end: {out}{err}", pytrace=False)
        ended = time.monotonic()
        lines = out.splitlines()
        assert lines, f"{self.name}: {err}"
        took = ended - float(lines.pop(0))
        error = ERRORS.get(self.end, "")
        assert err.endswith(error), f"{self.name}: {err}"
        assert err.count("Traceback (") == bool(error), f"{self.name}: {err}"
        if not error:
            assert err == "", self.name
        assert "Exception ignored" not in err, f"{self.name}: {err}"
        assert self.process.returncode == ENDS.get(self.end, 0), f"{self.name}: {err}"
        assert took < AT_ONCE, f"{self.name}: the end took {took:.1f} s"
        return lines


@pytest.fixture
def server() -> Iterator[Recorder]:
    with Recorder() as recorder:
        yield recorder


def result(program: Program) -> list[str]:
    """Wait for the end of one program and check it."""
    with program:
        return program.result()


def all_ends(state: str, ends: list[str]) -> None:
    """Run a program for each end, side by side."""
    with ExitStack() as programs, ThreadPoolExecutor(len(ends)) as waiting:
        started = [programs.enter_context(Program(state, end)) for end in ends]
        for judged in [waiting.submit(program.result) for program in started]:
            judged.result()


@pytest.mark.parametrize(
    "state",
    [
        "unused",
        "in_use",
        "waiting",
        "creating",
        "idle_with_hanging_close",
        "stuck_reaper",
        "churning",
        "dropped_pool",
    ],
)
def test_exit_with_anything_left_open(state: str) -> None:
    all_ends(state, list(ENDS))


@pytest.mark.parametrize(
    "state",
    [
        "main_waiting",
        "main_creating",
        "main_holding",
        "main_opening",
        "closing",
        "checking",
        "closed",
    ],
)
def test_a_signal_while_the_main_thread_waits(state: str) -> None:
    all_ends(state, [end for end in ENDS if end != "returns"])


@pytest.mark.parametrize("end", ["exits", "is_killed", "is_told_to_exit"])
def test_a_signal_at_any_moment(end: str) -> None:
    """At any point of the pool's code in the main thread."""
    all_ends("main_churning", [end] * 6)


def test_atexit_handlers_can_still_acquire() -> None:
    assert result(Program("handlers")) == ["borrowed"] * 2


def test_atexit_handler_that_waits_for_a_server_times_out() -> None:
    assert len(result(Program("handlers_and_a_server_that_hangs"))) >= 2


def test_atexit_handlers_can_close_pools() -> None:
    result(Program("handlers_that_close"))


def test_destructors_can_use_a_pool_during_finalization() -> None:
    done = result(Program("destructors"))
    assert sorted(done) == sorted(["release", "discard", "leave", "borrow", "close"] * 3)


def test_lock_of_a_vanished_thread_does_not_block_the_last_one() -> None:
    done = result(Program("destructors_behind_a_lock"))
    assert sorted(done) == sorted(["release", "discard", "leave", "borrow", "close"])


@pytest.mark.parametrize("used", ["before", "never"])
def test_threads_may_outlive_the_main_thread(used: str) -> None:
    """CPython 3.12+ starts no thread any more by then."""
    result(Program("outliving", USED=used))


def test_only_idle_resources_are_closed_at_exit(server: Recorder) -> None:
    """Resources in use are not closed, neither by the pool nor by a destructor."""
    result(Program("goodbyes", PORT=str(server.port)))
    assert server.until(lambda: len(server.records) == 2 and all(record.ended for record in server.records))
    assert sorted(record.words for record in server.records) == [["hello"], ["hello", "bye"]]

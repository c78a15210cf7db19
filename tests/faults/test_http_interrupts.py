"""An exception at any line of `HTTPPool` loses no slot and no socket (P2, P8)."""

from __future__ import annotations

import contextlib
import gc
import itertools
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest

from pooling import Balancing, HTTPPool, PoolSettings
from tests.integration.test_hedging import prefer_first
from tests.integration.test_http import wait_until
from tests.integration.test_http_wire import Guard, Login
from tests.integration.tools import ROOT
from tests.raw import Asked, RawServer, ok

OURS = "/pooling/adapters/http/"


class Interrupted(BaseException):
    """As a signal handler raises it."""


def hooks_and_streams(http: HTTPPool, url: str) -> None:
    def hook(response: Any, **kwargs: Any) -> None:
        if not response.url.endswith("/inner"):
            http.get("/inner")

    with http.acquire() as session:
        session.get(url + "/outer", hooks={"response": hook})
        next(session.get(url + "/stream", stream=True).iter_content(1))


def login(http: HTTPPool, url: str) -> None:
    http.get("/", auth=Login("alice"))


def traced(work: Callable[[], None], interrupt_at: int | None = None) -> list[tuple[str, int]]:
    """Do work; return the lines of ours that it passes, and raise at the one with that number."""
    lines: list[tuple[str, int]] = []

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        name = frame.f_code.co_filename
        if OURS not in name:
            return None
        if event == "line":
            lines.append((name, frame.f_lineno))
            if len(lines) - 1 == interrupt_at:
                raise Interrupted
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        with contextlib.suppress(Interrupted):
            work()
    finally:
        sys.settrace(before)
    return lines


def lent(http: HTTPPool) -> int:
    """Return how many slots and connections are in use."""
    stats = http.stats()
    return int(stats["in_use"] + sum(host["in_use"] for host in stats["hosts"].values()))


def numbers(lines: list[tuple[str, int]]) -> list[int]:
    """Return where each line was passed for the first and for the last time."""
    last = {line: number for number, line in enumerate(lines)}
    first = {line: len(lines) - 1 - number for number, line in enumerate(reversed(lines))}
    assert len(first) > 100
    return sorted({*first.values(), *last.values()})


@pytest.mark.usefixtures("small_heap")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # raised within a destructor
@pytest.mark.parametrize("work", [hooks_and_streams, login])
def test_an_exception_at_any_line_loses_nothing(work: Callable[[HTTPPool, str], None]) -> None:
    guard = Guard()

    def answer(asked: Asked) -> bytes:
        return guard(asked) if work is login else ok("x" * 1000)

    settings = PoolSettings(max_size=2, acquire_timeout=30)
    with RawServer(answer) as server, HTTPPool(settings, base_url=server.url) as http:
        http.get("/")

        for number in numbers(traced(lambda: work(http, server.url))):
            traced(lambda: work(http, server.url), number)
            if lent(http):
                gc.collect()
            wait_until(lambda: lent(http) == 0)
            assert http.stats()["size"] <= 2
            for _ in range(2):
                assert http.get("/").text in ("x" * 1000, "unknown")


@pytest.mark.parametrize("end", ["the second answers", "the first answers", "the second dies", "the first dies"])
def test_an_exception_at_any_line_of_a_hedge_loses_nothing(end: str) -> None:
    # In a process of its own: after a trace function has raised in an `except` clause, or at the end of a `with`,
    # CPython 3.11 may go on with that exception as the one being handled, or with the lock still held.
    code = f"import os; from {__name__} import interrupt_hedges as run; run({end!r}); os._exit(0)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr[-3000:]


def interrupt_hedges(end: str) -> None:
    sent: defaultdict[str, threading.Event] = defaultdict(threading.Event)  # by path: a thread may be late
    paths = (f"/{number}" for number in itertools.count())

    def first(asked: Asked) -> bytes | None:
        if asked.target == "/plain":
            return ok("plain")
        sent[asked.target].wait(1.0)
        time.sleep(0.02 if "second" in end else 0.0)
        return None if end == "the first dies" else ok("first")

    def second(asked: Asked) -> bytes | None:
        if asked.target == "/plain":
            return ok("plain")
        sent[asked.target].set()
        time.sleep(0.02 if "first" in end else 0.0)
        return None if end == "the second dies" else ok("second")

    policy = Balancing(hedge_after=0.01, retry_budget=1.0, eject_after=1000)
    with (
        RawServer(first) as one, RawServer(second) as other,
        HTTPPool(base_urls=[one.url, other.url], balancing=policy, max_size=8, retry=0) as http,
    ):  # fmt: skip
        def work() -> None:
            prefer_first(http)
            http.get(next(paths))

        lines = traced(work)
        assert [host.hedges for host in http.metrics.hosts() if host.host == other.url] == [1]
        begun = next(number for number, (file, _) in enumerate(lines) if file.endswith("hedging.py"))
        for number in numbers(lines[begun:]):  # what comes before is in every request
            traced(work, begun + number)
            if lent(http):
                gc.collect()
            wait_until(lambda: lent(http) == 0)
            assert http.stats()["size"] <= 8
        for server in (one, other):
            assert http.get(server.url + "/plain").text == "plain"

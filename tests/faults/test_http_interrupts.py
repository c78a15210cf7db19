"""An exception at any line of `HTTPPool` loses no slot and no socket (P2, P8)."""

from __future__ import annotations

import contextlib
import gc
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest

from pooling import HTTPPool, PoolSettings
from tests.integration.test_http import wait_until
from tests.integration.test_http_wire import Guard, Login
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

        def lent() -> int:
            stats = http.stats()
            return int(stats["in_use"] + sum(host["in_use"] for host in stats["hosts"].values()))

        lines = traced(lambda: work(http, server.url))
        last = {line: number for number, line in enumerate(lines)}
        first = {line: len(lines) - 1 - number for number, line in enumerate(reversed(lines))}
        assert len(first) > 100
        for number in sorted({*first.values(), *last.values()}):
            traced(lambda: work(http, server.url), number)
            if lent():
                gc.collect()
            wait_until(lambda: lent() == 0)
            assert http.stats()["size"] <= 2
            for _ in range(2):
                assert http.get("/").text in ("x" * 1000, "unknown")

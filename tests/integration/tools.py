"""What integration tests share: threads, patience, programs of their own."""

from __future__ import annotations

import inspect
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

__all__ = ["ROOT", "environment", "everywhere", "in_thread", "note_cleanings", "run_forking", "wait_until"]

ROOT = Path(__file__).parents[2]


def in_thread(function: Callable[[], object]) -> threading.Thread:
    """Start a thread."""
    thread = threading.Thread(target=function)
    thread.start()
    return thread


def everywhere(test: Callable[..., None]) -> Callable[..., None]:
    """Run a test in the main thread, where signals are handled, and in another."""

    def run(where: str, **fixtures: Any) -> None:
        if where == "main thread":
            test(**fixtures)
        else:
            with ThreadPoolExecutor(1) as other:
                other.submit(test, **fixtures).result()

    signature = inspect.signature(test)
    where = inspect.Parameter("where", inspect.Parameter.KEYWORD_ONLY)
    vars(run).update(vars(test), __signature__=signature.replace(parameters=[*signature.parameters.values(), where]))
    run.__name__, run.__doc__, run.__module__ = test.__name__, test.__doc__, test.__module__
    marked: Callable[..., None] = pytest.mark.parametrize("where", ["main thread", "other thread"])(run)
    return marked


def wait_until(condition: Callable[[], object], patience: float = 30.0) -> None:
    """Wait for something to come true; fail if it never does."""
    deadline = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.01)


def environment(**more: str) -> dict[str, str]:
    """The environment of a program that is to import what is tested here."""
    return {**os.environ, "PYTHONPATH": str(ROOT), **more}


def run_forking(program: str) -> None:
    """Run a program that forks in a process without pytest's threads; it prints what it saw."""
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", program],
        env=environment(), start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        output, errors = process.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # the child as well, which may be what hangs
        process.communicate()
        raise
    assert (process.returncode, output, errors) == (0, "child ok\nparent ok\n", "")


def note_cleanings(patch: pytest.MonkeyPatch) -> list[bytes]:
    """Return a list to which everything is added that is sent to clean PostgreSQL sessions, also COMMITs."""
    from pooling.adapters.postgres import session

    sent: list[bytes] = []
    real = session.round_trip

    def noting(conn: Any, query: bytes, *further: Any) -> Any:
        sent.append(query)
        return real(conn, query, *further)

    class NotingSent(session.Sent):
        def __init__(self, conn: Any, query: bytes, timeout: float) -> None:
            sent.append(query)
            super().__init__(conn, query, timeout)

    patch.setattr(session, "round_trip", noting)
    patch.setattr(session, "Sent", NotingSent)
    return sent

"""Signals that end an application, in separate processes."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from tests.integration.tools import environment

PROGRAM = """
import signal, sys, threading, time
from pooling import PoolManager, application_lifespan
{before}
manager = PoolManager()
closed = []
pool = manager.create_pool("a", dict, close=lambda one: closed.append(1))
try:
    with application_lifespan(manager=manager, signals={signals}):
        with pool.acquire():
            pass
        {inside}
        print("ready", flush=True)
        {meanwhile}
finally:
    print("closed" if pool.closed and closed else "open", flush=True)
{after}
"""

WAIT = "while True: time.sleep(0.05)"


def run(number: signal.Signals, **parts: str) -> tuple[int, list[str], str]:
    """Run the program, send it a signal when it is ready; return exit code, output, and errors."""
    code = PROGRAM.format(**{"before": "", "signals": "True", "inside": "", "meanwhile": WAIT, "after": "", **parts})
    process = subprocess.Popen(
        [sys.executable, "-c", code], env=environment(), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        output, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    return process.returncode, output.split(), errors


@pytest.mark.skipif(sys.platform == "win32", reason="no such signals there")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_block(number: signal.Signals) -> None:
    code, output, errors = run(number)
    assert output == ["closed"]
    if number is signal.SIGTERM:
        assert (code, errors) == (128 + 15, "")
    else:
        assert "KeyboardInterrupt" in errors  # the previous handler was called


def test_signals_are_unchanged_by_default() -> None:
    code, output, _ = run(signal.SIGTERM, signals="False")
    assert (code, output) == (-signal.SIGTERM, [])


def test_a_previous_handler_decides() -> None:
    code, output, errors = run(
        signal.SIGTERM,
        before="stop = []\nsignal.signal(signal.SIGTERM, lambda number, frame: stop.append(number))",
        meanwhile="while not stop: time.sleep(0.01)",
        after="signal.raise_signal(signal.SIGTERM); print(len(stop))",  # and was restored
    )
    assert (code, output, errors) == (0, ["closed", "2"], "")


def test_ignored_signals_stay_ignored() -> None:
    code, output, errors = run(
        signal.SIGTERM,
        before="signal.signal(signal.SIGTERM, signal.SIG_IGN)",
        meanwhile="time.sleep(0.2); signal.raise_signal(signal.SIGTERM)",
    )
    assert (code, output, errors) == (0, ["closed"], "")


def test_a_handler_installed_later_is_kept() -> None:
    code, output, _ = run(
        signal.SIGTERM,
        inside="stop = []; signal.signal(signal.SIGTERM, lambda *args: stop.append(1))",
        meanwhile="while not stop: time.sleep(0.01)",
        after="print(signal.getsignal(signal.SIGTERM).__name__)",
    )
    assert (code, output) == (0, ["closed", "<lambda>"])


@pytest.mark.parametrize("module", ["uwsgi", "gunicorn.arbiter"])
def test_signals_of_servers_are_unchanged(module: str) -> None:
    code, output, _ = run(signal.SIGTERM, before=f"sys.modules[{module!r}] = sys")
    assert (code, output) == (-signal.SIGTERM, [])

"""All faults at once for ``POOLING_STRESS_SECONDS``: nothing is lost, and no thread is stuck.

Each attack has a process of its own, so that its counts of threads and
descriptors are its own, and one that hangs can be ended.
"""

from __future__ import annotations

import gc
import logging
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.faults.stress import Attack, Options

ROOT = Path(__file__).parents[2]
SECONDS = float(os.environ.get("POOLING_STRESS_SECONDS", "2"))

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the attack forks")


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--careful",),
        ("--gc-threshold", "1"),
        ("--switch-interval", "1e-6"),
        ("--forks",),
        ("--forks", "--careful", "--switch-interval", "1e-6"),
        ("--calm",),
        ("--calm", "--careful", "--switch-interval", "1e-6"),
        ("--rounds",),
        # Few, so that no other borrower wakes the forgotten waiter.
        ("--rounds", "--threads", "3", "--size", "1", "--switch-interval", "1e-6"),
        ("--rounds", "--threads", "3", "--size", "2", "--careful", "--switch-interval", "1e-6"),
    ],
    ids=lambda options: " ".join(options) or "plain",
)
def test_stress_with_all_faults_at_once(options: tuple[str, ...]) -> None:
    """Created = closed, no thread, no descriptor, no waiter beside a free slot (P1, P2, P8, P9)."""
    run = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-m", "tests.faults.stress", "--seconds", str(SECONDS), *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=SECONDS + 150,
    )
    assert (run.returncode, run.stderr) == (0, ""), run.stdout + run.stderr


def test_stress_restores_what_it_changes() -> None:
    def shared() -> tuple[object, ...]:
        hooks = sys.unraisablehook, threading.excepthook
        return sys.getswitchinterval(), gc.get_threshold(), hooks, logging.getLogger("pooling").disabled

    before = shared()
    verdict = Attack(Options(seconds=0.1, calm=True, switch_interval=1e-6, gc_threshold=10)).run()
    assert verdict.problems == []
    assert shared() == before


def test_verdict_is_bad_if_a_promise_is_broken() -> None:
    """Calm, because a strike in this process could hit a thread that other tests have left."""
    attack = Attack(Options(seconds=0.1, calm=True))
    attack.server.closed -= 1
    problems = attack.run().problems
    assert len(problems) == 1 and "made" in problems[0]

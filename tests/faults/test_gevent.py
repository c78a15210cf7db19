"""Everything holds under gevent, whenever it patches the process; see `gevent_cases`."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("gevent")

_SCRIPT = Path(__file__).with_name("gevent_cases.py")
_ROOT = _SCRIPT.parents[2]
_WORLDS = ["before", "preload", "used", "fork", "fork_used"]
_CASES = re.findall(r"^def (\w+)\(\) -> Case:$", _SCRIPT.read_text(), re.MULTILINE)


@pytest.mark.parametrize("world", _WORLDS)
@pytest.mark.parametrize("case", _CASES)
def test_under_gevent(case: str, world: str) -> None:
    # CPython 3.13+ warns of threads that began after the fork.
    command = [sys.executable, "-W", "ignore:This process:DeprecationWarning", str(_SCRIPT), world, case]
    started = time.monotonic()
    done = subprocess.run(
        command, cwd=_ROOT, env={"PYTHONPATH": str(_ROOT)}, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    assert time.monotonic() - started < 20  # it ends by itself, and at once (P10)
    print(f"the hub was blocked for {done.stdout.strip()} s at most")

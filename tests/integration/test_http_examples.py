"""The examples about HTTP run as they stand."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("http_script.py", r"\d+ requests to http://127\.0\.0\.1:\d+ over 1 socket\(s\)"),
        ("http_fetcher.py", r"200 of 200, 169,000 bytes\n.*: 200 requests over \d+ sockets"),
        ("http_balancing.py", r"(?s)all work: .*a fails: .*a is back: .*a \d+%.*no request failed\n$"),
        ("http_oauth.py", r"ann is known as token-of-ann\nbob is known as token-of-bob\n1 socket for all"),
        ("reverse_proxy.py", r"200 answers over \d+ sockets"),
    ],
)
def test_example(name: str, says: str) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", str(EXAMPLES / name)], capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(says, done.stdout), done.stdout

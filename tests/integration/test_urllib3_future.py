"""urllib3-future, which other packages pull in, replaces urllib3 for all programs: `HTTPPool` refuses it by name."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import CI
from tests.integration.tools import ROOT, environment


def test_urllib3_future_is_refused_by_name(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(tmp_path), "urllib3-future"]
    installed = subprocess.run(command, capture_output=True, text=True, timeout=300)
    if installed.returncode != 0 and not CI:
        pytest.skip(f"pip cannot install urllib3-future: {installed.stderr.strip().splitlines()[-1]}")
    assert installed.returncode == 0, installed.stderr
    code = """if True:
        import urllib3, pooling
        assert urllib3.__version__.split(".")[2] >= "900", urllib3.__version__
        pooling.Pool(dict).acquire().release()  # all else works
        try:
            pooling.HTTPPool
        except ImportError as error:
            print(error)
    """
    env = environment(PYTHONPATH=os.pathsep.join([str(tmp_path), str(ROOT)]))
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("HTTPPool needs urllib3, which urllib3-future 2.")
    assert "pip uninstall urllib3-future" in done.stdout

"""The documentation builds without a warning, and its pages refer to files that exist."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs import PAGES, ROOT
from tests.servers import requires


def build(pages: Path, target: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", str(pages), str(target)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500)


@pytest.fixture(autouse=True)
def sphinx() -> None:
    missing = [name for name in ("sphinx", "furo") if importlib.util.find_spec(name) is None]
    requires("Sphinx", None if missing else "installed", 'pip install -e ".[docs]"')


def test_documentation_builds_without_a_warning(tmp_path: Path) -> None:
    done = build(ROOT / "docs", tmp_path / "html")
    assert done.returncode == 0, done.stderr
    pages = {path.relative_to(ROOT / "docs").with_suffix("") for path in PAGES[1:]}
    built = {path.relative_to(tmp_path / "html").with_suffix("") for path in (tmp_path / "html").rglob("*.html")}
    assert pages <= built
    reference = (tmp_path / "html" / "reference" / "pool.html").read_text("utf-8")
    assert 'id="pooling.Pool.acquire"' in reference, "autodoc shows nothing"


def test_warning_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "conf.py").write_text("")
    (tmp_path / "index.rst").write_text("Title\n=====\n\n:doc:`nowhere`\n")
    done = build(tmp_path, tmp_path / "html")
    assert done.returncode != 0 and "nowhere" in done.stderr

"""The examples of the pages about several servers run as they are."""

from __future__ import annotations

import contextlib
import io
import re
import textwrap
from pathlib import Path
from typing import Any

import pytest

PAGES = Path(__file__).parents[2] / "docs" / "howto"
STEP = re.compile(r"^\.\. (?:code-block:: python|check:)\n\n((?: {4}.*\n|\n)+)", re.M)


@pytest.mark.parametrize("name", ["balancing.rst", "regions.rst"])
def test_examples_run(name: str) -> None:
    names: dict[str, Any] = {"printed": ""}
    steps = STEP.findall((PAGES / name).read_text("utf-8"))
    assert len(steps) > 1
    for step in steps:
        with contextlib.redirect_stdout(io.StringIO()) as written:
            exec(textwrap.dedent(step), names)
        names["printed"] = written.getvalue() or names["printed"]
    for server in names.get("started", ()):
        server.shutdown()
        server.server_close()

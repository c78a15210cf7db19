"""The PostgreSQL examples run as they stand."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.servers import PostgresServer

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("postgres_script", "chair: 4\nlamp: 7\ntable: 2\n"),
        ("postgres_worker", "money: 500 of 500\n"),
        ("postgres_rotation", "0 errors in all queries; now as example_green\n"),
    ],
)
@pytest.mark.parametrize("told_by", ["argument", "environment"])
def test_an_example_runs(postgres: PostgresServer, name: str, says: str, told_by: str) -> None:
    argument = [postgres.dsn] if told_by == "argument" or name == "postgres_rotation" else []
    run = subprocess.run(
        [sys.executable, ROOT / "examples" / f"{name}.py", *argument],
        env={**os.environ, "PYTHONPATH": str(ROOT), "DATABASE_URL": postgres.dsn},
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert (run.returncode, run.stderr) == (0, "")
    assert says in run.stdout

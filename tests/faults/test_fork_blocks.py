"""P9 where a connection is held in a block: a forked child that leaves its copy ends no transaction of the parent's."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.servers import PostgresServer, requires

ROOT = Path(__file__).parents[2]
KINDS = ["facade", "facade_by_hand", "postgres", "transaction", "dbapi"]
ENGINES = ["sqlalchemy", "sqlalchemy_begin", "sqlalchemy_raw"]


def run(kind: str, how: str, server: PostgresServer) -> None:
    program = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-m", "tests.faults.blocks", kind, how, server.dsn],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, cwd=ROOT, capture_output=True, text=True, timeout=90,
    )  # fmt: skip
    assert (program.returncode, program.stdout, program.stderr) == (0, "parent ok\n", "")


@pytest.mark.parametrize("how", ["hook", "bare"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_childs_copy_of_a_block_is_dropped(postgres: PostgresServer, kind: str, how: str) -> None:
    run(kind, how, postgres)


@pytest.mark.parametrize("how", ["hook", "bare"])
@pytest.mark.parametrize("kind", ENGINES)
def test_a_childs_copy_of_an_engines_connection_is_dropped(postgres: PostgresServer, kind: str, how: str) -> None:
    try:
        import sqlalchemy  # noqa: F401
    except ImportError:
        requires("SQLAlchemy", None, "pip install SQLAlchemy")
    run(kind, how, postgres)

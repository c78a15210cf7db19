"""The pool without the internals of psycopg, libc and CPython: each one missing or switched off, and all of them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest

from pooling._plain import switched_off
from pooling.adapters.postgres import internals, pool
from tests.servers import PostgresServer

from .tools import environment

assert pool  # imports all of the package, and so each module's list
MODULES = sorted(internals.USED)
ROOT = Path(__file__).parents[2]
# The PostgreSQL part of the suite.
PART = [
    "tests/integration/test_postgres.py", "tests/integration/test_postgres_cleaning.py",
    "tests/integration/test_left_open.py", "tests/integration/test_beginning.py", "tests/unit/test_postgres.py",
    "tests/unit/test_stalls.py", "tests/unit/test_internals.py",
]  # fmt: skip

# A short life of a pool, in which each of the internals would be used.
SCENARIO = """
import logging, sys, psycopg
from pooling import CreateFailed, PoolTimeout, PostgresPool, PoolSettings, TransactionRolledBack
from pooling.adapters.postgres import internals, pool

logging.getLogger("pooling").addHandler(logging.NullHandler())
dsn, module = sys.argv[1:]
ONE = PoolSettings(min_size=0, max_size=1, acquire_timeout=10)

class Own(psycopg.Connection):
    @classmethod
    def connect(cls, conninfo="", **kwargs):
        return super().connect(conninfo, **kwargs)

def work():
    for session in ("clean", "trust"):
        def configure(conn):
            conn.execute("SET search_path = pg_catalog, public")
        with PostgresPool(dsn, ONE, session=session, query_statistics=True, configure=configure) as db:
            for number in range(8):
                with db.connection() as conn:
                    assert conn.execute("SELECT %s::int", [number]).fetchone() == (number,)
            with db.connection() as conn:
                conn.execute("SET a.b = 'c'")
                conn.row_factory = psycopg.rows.dict_row
                conn.add_notice_handler(print)
                conn.adapters.register_loader(23, psycopg.types.string.TextLoader)
                conn.mine = 1
            with db.acquire() as again:
                assert again is conn and not hasattr(again, "mine")
                again.autocommit = True
                assert again.execute("SELECT 1").fetchone() == (1,)
                found = again.execute("SELECT coalesce(current_setting('a.b', true), '')").fetchone()[0]
                assert found == ("" if session == "clean" else "c"), found
                again.execute("DO 'BEGIN RAISE NOTICE $$must not be printed$$; END'")
                assert again.execute("SHOW search_path").fetchone()[0] == "pg_catalog, public"
            assert db.execute_query("SELECT 2") == [(2,)]
            with db.transaction() as conn:
                with conn.transaction():
                    conn.execute("SELECT 1")
            try:
                with db.connection() as conn:
                    try:
                        conn.execute("SELECT 1 / 0")
                    except psycopg.Error:
                        pass
                raise AssertionError("not rolled back")
            except TransactionRolledBack:
                pass
            assert db.run(lambda conn: conn.execute("SELECT 3").fetchone()) == (3,)
            assert db.stats()["size"] == 1 and db.metrics.snapshot().created == 1, db.metrics.snapshot()
    with PostgresPool(dsn, ONE, connection_class=Own) as db:
        assert db.execute_query("SELECT 4") == [(4,)]
        assert db.execute_query("SELECT current_setting('application_name') LIKE %s", ["%pool-%"]) == [(True,)]
    try:
        with PostgresPool(dsn + "_nowhere", ONE.replace(acquire_timeout=0.5)) as db:
            db.acquire()
        raise AssertionError("connected to nowhere")
    except (CreateFailed, PoolTimeout) as error:
        assert isinstance(error.__cause__, psycopg.OperationalError)

work()
print(internals.USED[module])
"""


def run(server: PostgresServer, module: str, **variables: str) -> str:
    """Run the scenario in a new interpreter, and return its last line."""
    kept = {name: value for name, value in environment(**variables).items() if not name.startswith("PG")}
    process = subprocess.run(
        [sys.executable, "-c", SCENARIO, server.dsn, module],
        cwd=ROOT, env=kept, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    assert process.stderr == ""
    lines = process.stdout.splitlines()
    assert len(lines) == 1, process.stdout
    return lines[0]


@pytest.mark.parametrize("module", MODULES)
def test_pool_works_without_the_internals_of_one_module(
    postgres: PostgresServer, module: str, tmp_path: Path
) -> None:
    """In a copy of psycopg, these names are replaced by others."""
    source = Path(psycopg.__file__).parent
    copy = tmp_path / "psycopg"
    shutil.copytree(source, copy, ignore=shutil.ignore_patterns("__pycache__"))
    names = {step for name in internals.USED[module].names for step in name.split(".") if step.startswith("_")}
    assert names, f"{module} uses no private name"
    private = re.compile(rf"\b(?:{'|'.join(sorted(names - {'_preparing'}))})\b")
    for path in copy.rglob("*.py"):
        path.write_text(private.sub(lambda found: f"{found[0]}_renamed", path.read_text(encoding="utf-8")))
        if private.fullmatch(path.stem):
            path.rename(path.with_stem(f"{path.stem}_renamed"))
    line = run(postgres, module, PYTHONPATH=os.pathsep.join([str(tmp_path), str(ROOT)]))
    assert line.startswith(f"psycopg {psycopg.__version__} has no ")
    assert line.endswith(f": the plain way is used; see pooling/adapters/postgres/{module}.py")


@pytest.mark.parametrize("module", ["", "1", "foreign", *MODULES])
def test_pool_works_with_the_switch(postgres: PostgresServer, module: str) -> None:
    run(postgres, MODULES[0], POOLING_PLAIN=module)


@pytest.mark.skipif(switched_off("1"), reason="this is that run")
@pytest.mark.parametrize(
    ("part", "least"), [(PART, 250), (["tests/integration/test_redis.py"], 100)], ids=["postgresql", "redis"]
)
def test_part_of_the_suite_passes_with_all_of_it_switched_off(part: list[str], least: int) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *part],
        cwd=ROOT, env=environment(POOLING_PLAIN="1"), capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout[-20_000:]
    passed = re.search(r"(\d+) passed", run.stdout)
    assert passed is not None and int(passed[1]) > least, run.stdout[-2_000:]

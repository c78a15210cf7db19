"""`PostgresPool` in a process whose threads are greenlets."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.servers import PostgresServer

ROOT = Path(__file__).parents[2]

PROGRAM = """
from gevent import monkey; monkey.patch_all()
import sys, time
import gevent
from pooling import PoolSettings, PostgresPool
db = PostgresPool(sys.argv[1], PoolSettings(min_size=0, max_size=4, acquire_timeout=30), command_timeout=20)
began = time.monotonic()
jobs = [gevent.spawn(db.execute_query, "SELECT %s::int FROM pg_sleep(0.1)", [n]) for n in range(40)]
gevent.joinall(jobs, raise_error=True)
assert [job.value for job in jobs] == [[(n,)] for n in range(40)]
assert time.monotonic() - began < 3.5  # one after the other would take 4
with gevent.Timeout(0.3, False):
    with db.connection() as conn:
        conn.execute("SELECT pg_sleep(30)")
with db.connection() as conn:
    assert conn.execute("SELECT 1").fetchone() == (1,)
db.close()
print("well")
"""


def test_greenlets_share_a_pool(postgres: PostgresServer) -> None:
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM, postgres.dsn], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert (run.returncode, run.stdout, run.stderr) == (0, "well\n", "")

"""`PostgresPool` in a process whose threads are greenlets."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

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

turns = []
def tick():
    while True:
        gevent.sleep(0.01)
        turns.append(1)
ticks = gevent.spawn(tick)
def commit_slowly():  # not in the main greenlet, for which that is a thread like any other
    with PostgresPool(sys.argv[1], session="trust") as db, db.connection() as conn:
        conn.execute('''
            CREATE TEMP TABLE slow (n int);
            CREATE FUNCTION pg_temp.doze() RETURNS trigger LANGUAGE plpgsql AS $$
            BEGIN PERFORM pg_sleep(1); RETURN NULL; END $$;
            CREATE CONSTRAINT TRIGGER dozes AFTER INSERT ON slow DEFERRABLE INITIALLY DEFERRED
            FOR EACH ROW EXECUTE FUNCTION pg_temp.doze()
        ''')
        conn.commit()
        conn.execute("INSERT INTO slow VALUES (1)")
        turns.clear()
        conn.commit()
        assert len(turns) > 20, turns  # psycopg's
        conn.execute("INSERT INTO slow VALUES (1)")
        turns.clear()
    assert len(turns) > 20, turns  # the block's own
gevent.spawn(commit_slowly).get()
ticks.kill()
print("well")
"""


# As under `gunicorn -k gevent --preload`: psycopg has chosen how to wait before there is a hub.
LATE = """
import sys, time
from pooling import PoolSettings, PostgresPool
def make():
    return PostgresPool(sys.argv[1], PoolSettings(min_size=0, max_size=4, acquire_timeout=30), command_timeout=20)
db = make()
if sys.argv[2] == "used":
    assert db.execute_query("SELECT 1") == [(1,)]
from gevent import monkey; monkey.patch_all()
import gevent
if sys.argv[2] == "made after":
    db = make()
turns = []
def tick():
    while True:
        gevent.sleep(0.01)
        turns.append(time.monotonic())
ticks = gevent.spawn(tick)
gevent.sleep(0.05)
for _ in range(2):
    began = time.monotonic()
    jobs = [gevent.spawn(db.execute_query, "SELECT 1 FROM pg_sleep(2)") for _ in range(4)]
    gevent.joinall(jobs, raise_error=True)
    took = time.monotonic() - began
    turned = sum(began < turn < began + took for turn in turns)
assert took < 6, took  # one after the other would take 8
assert turned > 20, turned  # blocked, the hub would not turn once in a query
ticks.kill()
db.close()
print("well")
"""


@pytest.mark.parametrize("when", ["made before", "made after", "used"])
def test_gevent_may_come_after_psycopg(postgres: PostgresServer, when: str) -> None:
    run = subprocess.run(
        [sys.executable, "-c", LATE, postgres.dsn, when], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert (run.returncode, run.stdout) == (0, "well\n"), run.stderr


def test_greenlets_share_a_pool(postgres: PostgresServer) -> None:
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM, postgres.dsn], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert (run.returncode, run.stdout, run.stderr) == (0, "well\n", "")

"""A threaded worker: many threads run jobs on few connections. Run it with

    python examples/postgres_worker.py postgresql://localhost/app

It transfers money between accounts. Transactions that conflict are run again, and no money is lost.
"""

from __future__ import annotations

import functools
import queue
import random
import sys
import threading
from typing import Any

import psycopg

from pooling import PoolSettings, PostgresPool

THREADS, JOBS, ACCOUNTS = 16, 200, 5


def transfer(conn: psycopg.Connection[Any], source: int, target: int) -> None:
    """Move 1; called again in a new transaction after a conflict."""
    conn.execute("UPDATE example_accounts SET money = money - 1 WHERE id = %s", [source])
    conn.execute("UPDATE example_accounts SET money = money + 1 WHERE id = %s", [target])


def work(db: PostgresPool, jobs: queue.SimpleQueue[tuple[int, int]]) -> None:
    while True:
        try:
            source, target = jobs.get_nowait()
        except queue.Empty:
            return
        db.run(functools.partial(transfer, source=source, target=target), retries=50)


def main(dsn: str) -> None:
    jobs: queue.SimpleQueue[tuple[int, int]] = queue.SimpleQueue()
    for _ in range(JOBS):
        source, target = random.sample(range(ACCOUNTS), 2)
        jobs.put((source, target))
    settings = PoolSettings(min_size=1, max_size=4, acquire_timeout=30)
    with PostgresPool(dsn, settings, name="transfers", query_statistics=True) as db:
        db.execute_query("CREATE TABLE example_accounts (id int PRIMARY KEY, money int)")
        db.execute_query("INSERT INTO example_accounts SELECT n, 100 FROM generate_series(0, %s) n", [ACCOUNTS - 1])
        try:
            crew = [threading.Thread(target=work, args=(db, jobs)) for _ in range(THREADS)]
            for thread in crew:
                thread.start()
            for thread in crew:
                thread.join()
            total = db.execute_query("SELECT sum(money) FROM example_accounts")[0][0]
            stats = db.get_pool_stats()
            print(f"{JOBS} transfers by {THREADS} threads over {stats['current_state']['size']} connections")
            print(f"money: {total} of {100 * ACCOUNTS}")
            print(f"queries: {stats['queries']['count']}, p95 {stats['queries']['p95'] * 1e3:.1f} ms, "
                  f"deadlocks run again: {stats['queries']['errors']}")  # fmt: skip
        finally:
            db.execute_query("DROP TABLE example_accounts")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "")

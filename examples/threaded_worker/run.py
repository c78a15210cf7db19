"""A worker with several threads that runs until SIGTERM or Ctrl-C.

::

    pip install pooling
    python examples/threaded_worker/run.py                          # SQLite in memory
    DATABASE_URL=postgresql://... python examples/threaded_worker/run.py

It shuts down in order: it accepts no new work, finishes running jobs, and closes the pools.
"""

import os
import queue
import threading
import time

from pooling.manager import PoolManager, application_lifespan

THREADS = 8
jobs: "queue.Queue[int | None]" = queue.Queue(maxsize=100)


def work(manager: PoolManager) -> None:
    while (job := jobs.get()) is not None:
        with manager["db"].connection(timeout=5) as conn:  # waits if all are in use; commits
            conn.execute(f"INSERT INTO job VALUES ({job})")


def main() -> None:
    manager = PoolManager()
    manager.create_pool("db", os.environ.get("DATABASE_URL") or "sqlite://")
    with application_lifespan(manager=manager, signals=True):
        with manager["db"].connection() as conn:
            conn.execute("CREATE TABLE IF NOT EXISTS job (number integer)")
        threads = [threading.Thread(target=work, args=(manager,)) for _ in range(THREADS)]
        for thread in threads:
            thread.start()
        try:
            for number in range(1_000_000_000):
                jobs.put(number)
                time.sleep(0.001)
        finally:
            for _ in threads:
                jobs.put(None)
            for thread in threads:
                thread.join()
            (done,) = manager["db"].execute_query("SELECT count(*) FROM job")[0]
            print(f"{done} jobs done, {manager['db']!r}", flush=True)


if __name__ == "__main__":
    main()

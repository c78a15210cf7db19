"""Forked workers, as in Celery or multiprocessing: the pool is created and used before the fork.

::

    pip install pooling
    python examples/prefork_worker/run.py                           # SQLite, in a temporary directory
    DATABASE_URL=postgresql://... python examples/prefork_worker/run.py

Each worker starts with the same pool, empty, and connects by itself; the parent keeps its connections.
"""

import multiprocessing
import os
import tempfile

from pooling import Pool
from pooling.manager import from_url

TASKS = 200
db: "Pool | None" = None


def task(number: int) -> int:
    with db.connection() as conn:
        conn.execute(f"INSERT INTO task VALUES ({number})")
    return os.getpid()


def main(database: str) -> None:
    global db
    db = from_url(database)
    with db.connection() as conn:  # in the parent
        conn.execute("CREATE TABLE IF NOT EXISTS task (number integer)")
    with multiprocessing.get_context("fork").Pool(4, maxtasksperchild=20) as workers:
        pids = set(workers.map(task, range(TASKS), chunksize=5))
        workers.close()
        workers.join()
    (done,) = db.execute_query("SELECT count(*) FROM task")[0]
    print(f"{done} tasks done by {len(pids)} processes, {db!r}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as directory:
        main(os.environ.get("DATABASE_URL") or f"sqlite:///{directory}/tasks.db")

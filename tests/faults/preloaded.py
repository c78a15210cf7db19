"""A WSGI application whose pool is in full use before the server forks; `test_preload` serves it.

It answers with the process that served and the process that made the
connection: these must be the same.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable
from typing import Any

from pooling import Pool, PoolSettings
from tests.faults.recorder import Connection, Connections
from tests.faults.rest import let_others_come_to_rest

SETTINGS = PoolSettings(min_size=1, max_size=3, acquire_timeout=10.0)

pool: Pool[Connection] = Pool(adapter=Connections(int(os.environ["PORT"])), settings=SETTINGS, name="preloaded")


def use(word: str, threads: int = 1) -> set[int]:
    """Acquire in so many threads at once; return the processes that made the connections."""
    makers = set()

    def borrow() -> None:
        for _ in range(3):
            with pool.acquire() as line:
                line.ask(word)
                makers.add(line.maker)

    running = [threading.Thread(target=borrow) for _ in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    return makers


pool.open()
assert use("parent", threads=6) == {os.getpid()}
kept = pool.acquire()  # and never released
let_others_come_to_rest()


def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Use the pool in the worker, in its own thread and in others."""
    makers = use("worker") | use("worker", threads=6)
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [" ".join(map(str, [os.getpid(), *makers])).encode()]

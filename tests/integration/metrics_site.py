"""An application whose workers share their metrics, for real servers that fork.

``/use?n=3`` takes so many leases of each pool and answers which process did; ``/metrics`` is for Prometheus. The
parent of the workers uses the pools as well, before they are forked.
"""

from __future__ import annotations

import os
from typing import Any
from urllib.parse import parse_qs

from pooling import Pool, SQLitePool
from pooling.web.wsgi import metrics_app

db = SQLitePool(os.environ["METRICS_SQLITE"], max_size=3, acquire_timeout=60, name="db")
things: Pool[Any] = Pool(object, max_size=2, name="things")
metrics = metrics_app(token=os.environ["METRICS_TOKEN"])


def use(times: int) -> None:
    for _ in range(times):
        with db.acquire() as conn:
            conn.execute("SELECT 1").fetchall()
        with things.acquire():
            pass


def application(environ: dict[str, Any], start_response: Any) -> Any:
    """Answer; each response says which process it is from."""

    def start(status: str, headers: list[tuple[str, str]]) -> Any:
        return start_response(status, [*headers, ("X-Pid", str(os.getpid()))])

    if environ["PATH_INFO"] == "/metrics":
        return metrics(environ, start)
    times = int(parse_qs(environ["QUERY_STRING"]).get("n", ["0"])[0])
    use(times)
    start("200 OK", [("Content-Type", "text/plain")])
    return [f"{times}".encode()]


use(int(os.environ["METRICS_PARENT_LEASES"]))

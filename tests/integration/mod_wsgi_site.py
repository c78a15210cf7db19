"""An application with a database pool and an HTTP pool, for Apache's mod_wsgi.

``/answer?n=3`` asks both servers about a number; ``s=0.5`` stays in the query for so many seconds.
"""

from __future__ import annotations

import json
import os
from typing import Any
from urllib.parse import parse_qsl

from pooling import HTTPPool, PoolManager, PostgresPool
from pooling.web.wsgi import PoolingMiddleware, lease, metrics_app

MAX_SIZE = 4

db = PostgresPool(os.environ["SITE_POSTGRES"], max_size=MAX_SIZE, acquire_timeout=20.0, name="db")
api = HTTPPool(base_url=os.environ["SITE_HTTP"], max_size=MAX_SIZE, acquire_timeout=20.0, name="api")
manager = PoolManager()
manager.add_pool(db)
manager.add_pool(api)
metrics = metrics_app(token=os.environ["SITE_TOKEN"])
assert db.execute_query("SELECT 42") == [(42,)]  # while mod_wsgi loads the script


def pages(environ: dict[str, Any], start_response: Any) -> Any:
    """Answer; each response says which process it is from."""

    def start(status: str, headers: list[tuple[str, str]], error: Any = None) -> Any:
        return start_response(status, [*headers, ("X-Pid", str(os.getpid()))], error)

    if environ["PATH_INFO"] == "/metrics":
        return metrics(environ, start)
    query = dict(parse_qsl(environ["QUERY_STRING"]))
    sql = "SELECT %s::int * 2, pg_sleep(%s::float)::text"
    double, _ = lease(environ, "db").execute(sql, (query["n"], query.get("s", "0"))).fetchone()
    echoed = api.get("/echo", params={"n": query["n"]}, timeout=20).json()["target"]
    start("200 OK", [("Content-Type", "application/json")])
    return [json.dumps([double, echoed]).encode()]


application = PoolingMiddleware(pages, manager, health_path="/health")

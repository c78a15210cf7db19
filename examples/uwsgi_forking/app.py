"""A WSGI application under uWSGI, which forks its workers after loading it: no lazy-apps, no fork hooks.

::

    pip install "pooling[binary]" uwsgi
    cd examples/uwsgi_forking && uwsgi uwsgi.ini                         # SQLite, in this directory
    cd examples/uwsgi_forking && DATABASE_URL=postgresql://... uwsgi uwsgi.ini

http://127.0.0.1:8000/ counts visits, /health reports up or down.
"""

import os
from collections.abc import Callable, Iterable
from typing import Any

from pooling.web.wsgi import PoolingMiddleware, lease


def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    conn = lease(environ, "db")  # this request's connection; released at the end of the response
    conn.execute("INSERT INTO visit VALUES (CURRENT_TIMESTAMP)")
    conn.commit()
    (number,) = conn.execute("SELECT count(*) FROM visit").fetchone()
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [f"visit {number} to process {os.getpid()}\n".encode()]


application = PoolingMiddleware(
    app, database_url=os.environ.get("DATABASE_URL") or "sqlite:///visits.db", health_path="/health"
)

# In the parent. Each worker starts with an empty pool and connects by itself; no hook is needed.
with application.manager["db"].connection() as conn:
    conn.execute("CREATE TABLE IF NOT EXISTS visit (at text)")

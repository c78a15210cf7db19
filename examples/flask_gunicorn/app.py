"""A Flask application under gunicorn --preload: its pool is created and used before the workers are forked.

::

    pip install "pooling[flask,binary]" gunicorn
    cd examples/flask_gunicorn && gunicorn                               # SQLite, in this directory
    cd examples/flask_gunicorn && DATABASE_URL=postgresql://... gunicorn

http://127.0.0.1:8000/ counts visits, /export streams them, /health reports up or down.
"""

import os
from collections.abc import Iterator

from flask import Flask, Response

from pooling.web.flask import Pooling

app = Flask(__name__)
app.config["POOLING"] = {"db": os.environ.get("DATABASE_URL") or "sqlite:///visits.db"}
pools = Pooling(app)
app.register_blueprint(pools.health_blueprint())

# In the parent. Each worker starts with an empty pool and connects by itself; no hook is needed.
with app.app_context(), pools.manager["db"].connection() as conn:
    conn.execute("CREATE TABLE IF NOT EXISTS visit (at text)")


@app.get("/")
def visit() -> str:
    conn = pools.lease("db")  # this request's connection; released at the end of the response
    conn.execute("INSERT INTO visit VALUES (CURRENT_TIMESTAMP)")
    conn.commit()
    (number,) = conn.execute("SELECT count(*) FROM visit").fetchone()
    return f"visit {number} to process {os.getpid()}, {pools.manager['db']!r}\n"


@app.get("/export")
def export() -> Response:
    cursor = pools.lease("db").execute("SELECT at FROM visit")

    def lines() -> Iterator[str]:
        for (at,) in cursor:
            yield f"{at}\n"

    return Response(lines(), content_type="text/plain")  # the connection is released after the last line

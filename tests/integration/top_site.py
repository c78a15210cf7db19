"""An application with a PostgreSQL pool, which knows nothing of ``top``.

``/use?n=3`` takes so many leases, ``/hold?seconds=5`` one for so long; the answer is the process id.
"""

from __future__ import annotations

import os
import time
from typing import Any
from urllib.parse import parse_qs

from pooling import PostgresPool

db = PostgresPool(os.environ["TOP_DSN"], name=os.environ["TOP_POOL"], min_size=0, max_size=2, acquire_timeout=30)


def hold(seconds: float) -> None:
    with db.connection() as connection:
        connection.execute("SELECT 1")
        time.sleep(seconds)


def application(environ: dict[str, Any], start_response: Any) -> Any:
    query = parse_qs(environ["QUERY_STRING"])
    if environ["PATH_INFO"] == "/hold":
        hold(float(query["seconds"][0]))
    else:
        for _ in range(int(query.get("n", ["1"])[0])):
            hold(0)
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [f"{os.getpid()}".encode()]

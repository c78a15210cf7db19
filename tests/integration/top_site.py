"""An application with a PostgreSQL pool, which knows nothing of ``top``.

``/use?n=3`` takes so many leases, ``/hold?while=/a/path`` one as long as that file exists. The answer is the process
id.
"""

from __future__ import annotations

import os
import time
from typing import Any
from urllib.parse import parse_qs

from pooling import PostgresPool

db = PostgresPool(os.environ["TOP_DSN"], name=os.environ["TOP_POOL"], min_size=0, max_size=2, acquire_timeout=120)


def hold(path: str | None = None) -> None:
    with db.connection() as connection:
        connection.execute("SELECT 1")
        while path is not None and os.path.exists(path):
            time.sleep(0.05)


def application(environ: dict[str, Any], start_response: Any) -> Any:
    query = parse_qs(environ["QUERY_STRING"])
    if environ["PATH_INFO"] == "/hold":
        hold(query["while"][0])
    else:
        for _ in range(int(query.get("n", ["1"])[0])):
            hold()
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [f"{os.getpid()}".encode()]

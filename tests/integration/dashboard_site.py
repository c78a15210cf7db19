"""An application with a page that shows its pools, for real servers.

``/use?n=3`` takes so many leases; ``/hold?s=5`` holds all of a pool for so many seconds while another thread waits, and
answers at once. The page is at ``/pools``.
"""

from __future__ import annotations

import os
import threading
import time
from contextlib import ExitStack
from typing import Any
from urllib.parse import parse_qs

from pooling import Pool
from pooling.web.dashboard import dashboard_app

SIZE = 2
db: Pool[Any] = Pool(object, max_size=SIZE, acquire_timeout=60, name="db")
page = dashboard_app(token=os.environ["DASHBOARD_TOKEN"])


def hold_all(seconds: float) -> None:
    with ExitStack() as leases:
        for _ in range(SIZE):
            leases.enter_context(db.acquire())
        threading.Thread(target=use, args=(1,), daemon=True).start()
        time.sleep(seconds)


def use(times: int) -> None:
    for _ in range(times):
        with db.acquire():
            pass


def application(environ: dict[str, Any], start_response: Any) -> Any:
    if environ["PATH_INFO"] == "/pools":
        return page(environ, start_response)
    query = {name: values[0] for name, values in parse_qs(environ["QUERY_STRING"]).items()}
    if environ["PATH_INFO"] == "/hold":
        threading.Thread(target=hold_all, args=(float(query["s"]),), daemon=True).start()
    else:
        use(int(query.get("n", "1")))
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [str(os.getpid()).encode()]

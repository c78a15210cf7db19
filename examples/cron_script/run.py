"""A cron script: fetches many items concurrently, stores them, ends.

::

    pip install pooling
    python examples/cron_script/run.py                       # from its own small service, into SQLite
    python examples/cron_script/run.py https://your.service DATABASE_URL

Nothing needs to be closed: the process ends at once, whatever is still open.
"""

import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from pooling import HTTPPool, PoolSettings
from pooling.manager import from_url

ITEMS = 200


class Service(BaseHTTPRequestHandler):
    """Answers with the item's number."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        body = self.path.strip("/").encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


def service() -> str:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Service)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_port}"


def main(base: str, database: str) -> None:
    http = HTTPPool(PoolSettings(max_size=16), base_url=base, timeout=(3, 10))
    db = from_url(database, settings=PoolSettings(max_size=4))
    with db.connection() as conn:
        conn.execute("CREATE TABLE IF NOT EXISTS item (number integer)")

    def fetch(number: int) -> None:
        response = http.get(f"/{number}")
        response.raise_for_status()
        with db.connection() as conn:  # commits, or rolls back on an error
            conn.execute(f"INSERT INTO item VALUES ({int(response.text)})")

    with ThreadPoolExecutor(16) as workers:
        list(workers.map(fetch, range(ITEMS)))
    print(f"{ITEMS} items, {http!r}, {db!r}")


if __name__ == "__main__":
    if len(sys.argv) > 2:
        main(sys.argv[1], sys.argv[2])
    else:
        with tempfile.TemporaryDirectory() as directory:
            main(service(), f"sqlite:///{directory}/items.db")

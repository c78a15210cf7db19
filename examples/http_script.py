"""A script that fetches many pages from one service; pooling takes one line.

``python examples/http_script.py [URL...]``; without arguments it starts its own
service.
"""

from __future__ import annotations

import sys
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

if __name__ == "__main__":  # from a checkout, too
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pooling import HTTPPool


class Here(SimpleHTTPRequestHandler):
    """Serves the directory of this file."""

    protocol_version = "HTTP/1.1"

    def __init__(self, *args: object) -> None:
        super().__init__(*args, directory=str(Path(__file__).parent))  # type: ignore[arg-type]

    def log_message(self, *args: object) -> None:
        pass


def fetch(urls: list[str]) -> None:
    """Print the size of each page, and the number of sockets used."""
    with HTTPPool(timeout=(5, 30), retry=3, name="script") as http:
        for url in urls:
            response = http.get(url)
            print(f"{response.status_code} {len(response.content):8,} bytes  {url}")
        for host in http.metrics.hosts():
            print(f"{host.requests} requests to {host.host} over {host.opened} socket(s)")


def main() -> None:
    """Fetch the given URLs, or pages of our own service."""
    if sys.argv[1:]:
        fetch(sys.argv[1:])
        return
    with ThreadingHTTPServer(("127.0.0.1", 0), Here) as server:
        server.daemon_threads = True
        Thread(target=server.serve_forever, daemon=True).start()
        fetch([f"http://127.0.0.1:{server.server_port}/{path.name}" for path in Path(__file__).parent.glob("*.py")])
        server.shutdown()


if __name__ == "__main__":
    main()

"""A session of another library, on the pool's sockets.

API clients are often sessions themselves: ``OAuth2Session`` of
requests-oauthlib, ``AuthorizedSession`` of google-auth. A pool cannot lend them,
but they can mount its transport adapter: each keeps its own token, and all
share the warm sockets.

``python examples/http_oauth.py`` demonstrates it with its own service, and with
``OAuth2Session`` if requests-oauthlib is installed.
"""

from __future__ import annotations

import json
import os
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import requests

if __name__ == "__main__":  # from a checkout, too
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pooling import HTTPPool


class BearerSession(requests.Session):
    """Works like such a library: fetches a token, and sends it with each request."""

    def __init__(self, token_url: str, client_id: str) -> None:
        super().__init__()
        self._token_url, self._client_id = token_url, client_id

    def fetch_token(self) -> None:
        """Request a token and store it."""
        answer = self.post(self._token_url, data={"client_id": self._client_id})
        self.headers["Authorization"] = "Bearer " + answer.json()["access_token"]


def session_for(http: HTTPPool, url: str, user: str) -> Any:
    """Return a library's session for one user, on the pool's sockets."""
    token = {"access_token": f"token-of-{user}", "token_type": "Bearer"}
    session: Any
    try:
        from requests_oauthlib import OAuth2Session
    except ImportError:
        session = BearerSession(url + "/token", user)
    else:
        session = OAuth2Session(client_id=user, token=token)
    session.mount("https://", http.adapter)  # all that is needed
    session.mount("http://", http.adapter)
    if isinstance(session, BearerSession):
        session.fetch_token()
    return session


class Service(BaseHTTPRequestHandler):
    """Issues tokens, and returns the token of each request."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.answer({"token": self.headers.get("Authorization", "").removeprefix("Bearer ")})

    def do_POST(self) -> None:
        user = self.rfile.read(int(self.headers["Content-Length"])).decode().partition("=")[2]
        self.answer({"access_token": f"token-of-{user}"})

    def answer(self, value: dict[str, str]) -> None:
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


def main() -> None:
    """Two users, one socket."""
    os.environ.setdefault("OAUTHLIB_INSECURE_TRANSPORT", "1")  # the service is on loopback
    with ThreadingHTTPServer(("127.0.0.1", 0), Service) as server:
        server.daemon_threads = True
        Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        with HTTPPool(name="api") as http:
            users = {name: session_for(http, url, name) for name in ("ann", "bob")}
            for name, session in users.items():
                print(name, "is known as", session.get(url + "/me").json()["token"])
            for session in users.values():
                session.close()  # leaves the pool's sockets open
            print(http.metrics.hosts()[0].opened, "socket for all")
        server.shutdown()


if __name__ == "__main__":
    main()

"""The README's Python code runs as it is, except for the addresses of its servers."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from wsgiref.util import setup_testing_defaults

import pytest

from tests.mariadb import MariaDBServer
from tests.redisserver import RedisServer
from tests.servers import PostgresServer

MYSQL = "mysql://root@localhost/app"
README = Path(__file__).parents[2] / "README.rst"


class Api(BaseHTTPRequestHandler):
    """Answers every request with a quote."""

    def do_GET(self) -> None:
        body = b'{"symbol": "ACME", "price": 12.5}'
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def api() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Api) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join(30)


class Mail:
    """Replaces ``smtplib.SMTP``, so that no mail server is needed."""

    sent: list[str] = []

    def __init__(self, host: str) -> None:
        self.host = host

    def sendmail(self, sender: str, recipient: str, text: str) -> None:
        self.sent.append(text)

    def noop(self) -> tuple[int, bytes]:
        return 250, b"fine"

    def rset(self) -> tuple[int, bytes]:
        return 250, b"fine"

    def quit(self) -> None: ...


def blocks() -> list[str]:
    """Return the README's Python blocks in order."""
    found = re.findall(r"^\.\. code-block:: python\n\n((?:    .*\n|\n)+)", README.read_text("utf-8"), re.M)
    return ["\n".join(line[4:] for line in block.splitlines()) for block in found]


def test_readme_runs_on_mysql(mariadb: MariaDBServer) -> None:
    names: dict[str, object] = {}
    for block in blocks():
        if MYSQL in block:
            exec(compile(block.replace(MYSQL, mariadb.url), "README.rst", "exec"), names)  # noqa: S102
    assert names["sales"] == [("lamp",)]


def test_readme_runs(
    api: str, postgres: PostgresServer, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("smtplib.SMTP", Mail)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for number, block in enumerate(blocks()):
        block = block.replace("https://api.example.com", api)
        block = block.replace("postgresql://localhost/app", postgres.dsn)
        if MYSQL in block:
            continue
        block = block.replace("redis://localhost/", redis_server.url.removesuffix("0"))
        exec(compile(block, f"README.rst, block {number}", "exec"), names)  # noqa: S102
    assert names["quote"] == {"symbol": "ACME", "price": 12.5}
    assert names["rows"] == [(12.5,)]
    assert names["orders"] == [("lamp",)]
    names["send"]("a", "b", "hello")  # type: ignore[operator]
    assert Mail.sent == ["hello"]
    environ: dict[str, object] = {"PATH_INFO": "/"}
    setup_testing_defaults(environ)
    assert names["application"](environ, lambda status, headers: None) == [b"2 visits"]  # type: ignore[operator]
    assert names["shop"].test_client().get("/all").text == "/\n/about\n"  # type: ignore[attr-defined]
    names["application"].manager.shutdown()  # type: ignore[attr-defined]
    names["shop"].extensions["pooling"].shutdown()  # type: ignore[attr-defined]
    for name in ("mail", "http", "cache", "db", "shared"):
        names[name].close()  # type: ignore[attr-defined]

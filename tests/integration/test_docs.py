"""Every example of README.rst and docs/ runs as it is, except for the addresses of its servers.

A page fails at the line of the example, and its examples run in order, in one process. To run one page:
``python -m pytest tests/integration/test_docs.py -k tutorial``.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.docs import PAGES, ROOT, steps
from tests.mail import MailServer
from tests.servers import _free_port

PORT = re.compile(r"""(127\.0\.0\.1(?::|", ))(8\d\d\d)\b""")
"""A port of a server that a page starts: runs at the same time must not use the same one."""


class Api(BaseHTTPRequestHandler):
    """Answers every request with a quote."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b'{"symbol": "ACME", "price": 12.5}'
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_POST = do_PUT = do_DELETE = do_HEAD = do_GET

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


def with_servers(text: str, request: pytest.FixtureRequest) -> str:
    """Start the servers that the text names, and put their addresses into it."""
    if "https://api.example.com" in text:
        text = text.replace("https://api.example.com", request.getfixturevalue("api"))
    if "postgresql://localhost/app" in text:
        text = text.replace("postgresql://localhost/app", request.getfixturevalue("postgres").dsn)
    if "mysql://root@localhost/app" in text:
        text = text.replace("mysql://root@localhost/app", request.getfixturevalue("mariadb").url)
    if "redis://localhost/" in text:
        text = text.replace("redis://localhost/", request.getfixturevalue("redis_server").url.removesuffix("0"))
    if 'SMTP("mail.example.com"' in text:
        server = request.getfixturevalue("mail_server")
        text = text.replace('SMTP("mail.example.com"', f'SMTP("127.0.0.1", {server.server_address[1]}')
    return text


@pytest.fixture
def mail_server() -> Iterator[MailServer]:
    with MailServer() as server:
        yield server


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_examples_run(page: Path, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    found = steps(page.read_text("utf-8"))
    if not found:
        return
    ports: dict[str, int] = {}

    def with_free_ports(text: str) -> str:
        return PORT.sub(lambda found: f"{found[1]}{ports.setdefault(found[2], _free_port())}", text)

    folder = tmp_path / "page"
    folder.mkdir()
    given = [step._replace(code=with_servers(with_free_ports(step.code), request)) for step in found]
    listed = tmp_path / "steps.json"
    listed.write_text(json.dumps([str(page.relative_to(ROOT)), given]), "utf-8")
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)]),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "NO_COLOR": "1",
    }
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "tests.docs", str(listed)],
        cwd=folder, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"

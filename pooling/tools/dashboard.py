"""``python -m pooling dashboard``: the page of `pooling.web.dashboard`, served from a process of its own."""

from __future__ import annotations

import argparse
import ipaddress
import os
import socket
import socketserver
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from ..web._access import pack
from ..web.dashboard import DashboardEndpoint, WSGIApp
from .metrics_dir import existing

__all__ = ["DESCRIPTION", "HELP", "DashboardServer", "add_arguments", "is_local", "run"]

HELP = "show the pools of running applications on a web page"
DESCRIPTION = """
Serves a page that shows the pools of a running application live: of all processes that share a
directory (POOLING_METRICS_DIR), or of those that can be attached to. On a loopback address, every
user of this machine can see it; with a token, only those who enter it. Other addresses need a
token, and should have a proxy with TLS in front.
"""

TOKEN = "POOLING_DASHBOARD_TOKEN"
"""The environment variable with the token; unlike an option, other users cannot see it in the list of processes."""

_PORT = 8089
_REFUSAL = f"""Without a token, this page is only for browsers on this machine, at a loopback address, without a proxy.
Start it with --token, or with {TOKEN} in the environment.
""".encode()
_FROM_PROXIES = ("HTTP_FORWARDED", "HTTP_VIA", "HTTP_X_REAL_IP")  # and HTTP_X_FORWARDED_*


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--host", default="127.0.0.1", metavar="ADDRESS", help="where to listen (default: %(default)s)")
    parser.add_argument(
        "--port", type=_port, default=_PORT, metavar="N", help="0 means any free port (default: %(default)s)"
    )
    parser.add_argument(
        "--dir", type=Path, metavar="PATH",
        help="the application's POOLING_METRICS_DIR (default: that of the environment, else the processes "
        "that can be attached to)",
    )  # fmt: skip
    parser.add_argument("--token", metavar="TEXT", help=f"what a browser has to enter (default: ${TOKEN})")


def run(options: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    """Serve until the process is ended, by Ctrl-C for example.

    Args:
        options: As parsed.
        parser: Reports an invalid option, with exit code 2.
    """
    token = os.environ.get(TOKEN) or None if options.token is None else options.token
    if token is not None and not token.strip():
        parser.error("argument --token: must not be empty")
    try:
        directory = existing(options.dir)
    except NotADirectoryError as error:
        parser.error(str(error))
    try:
        server = DashboardServer(options.host, options.port, directory, token)
    except PermissionError as error:
        parser.error(str(error))
    except OSError as error:
        parser.error(f"cannot listen on {options.host!r}, port {options.port}: {error.strerror or error}")
    try:
        server.viewer.view()
    except OSError as error:
        server.server_close()
        parser.error(f"cannot read {directory or 'the directories of this user'}: {error}")
    with server:
        whose = f"that share {directory}" if directory else "of all processes that can be attached to"
        print(f"{server.url} shows the pools {whose}; Ctrl-C ends it", flush=True)
        server.serve_forever()
    return 0


class DashboardServer(socketserver.ThreadingMixIn, WSGIServer):
    """Listens at once; `serve_forever` answers.

    Args:
        host: Name or address to listen on.
        port: 0 means any free one.
        directory: The directory that the application's processes share; ``None``
            means the processes that can be attached to.
        token: What clients must send; ``None`` admits those that use a loopback
            address themselves, see `is_local`.

    Attributes:
        viewer: Makes the views; only this one, because a process must open the files of a directory only once.

    Raises:
        PermissionError: The address is not a loopback address, and there is no token.
        OSError: It cannot listen there.
    """

    daemon_threads = True

    def __init__(self, host: str, port: int, directory: str | os.PathLike[str] | None, token: str | None) -> None:
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, _, _, _, address = found[0]
        if token is None and not _is_loopback(str(address[0])):
            raise PermissionError(
                f"{host!r} can be reached from other machines, so a token is needed: --token or ${TOKEN}"
            )
        self.address_family = family

        from ..observe.view import Viewer  # here: the other commands do without it

        self.viewer = Viewer.of_directory(directory)
        scope = "attached" if directory is None else "directory"
        admit = is_local if token is None else None
        endpoint = DashboardEndpoint(token=token, admit=admit, viewer=lambda: self.viewer, scope=scope)
        super().__init__(address[:2], _Handler)  # type: ignore[arg-type]
        self.set_app(_application(endpoint, asks_for_token=token is not None))

    @property
    def url(self) -> str:
        """The address of the page."""
        host = str(self.server_address[0])
        return f"http://{f'[{host}]' if ':' in host else host}:{self.server_port}/"

    def server_bind(self) -> None:
        """Bind without the look-up of the host's name, which can take seconds."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])
        self.setup_environ()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Report an error, unless the client is gone or too slow."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


class _Handler(WSGIRequestHandler):
    timeout = 10  # seconds for a client to send its request
    server_version, sys_version = "pooling", ""

    def log_message(self, format: str, *args: Any) -> None:
        pass


def _application(endpoint: DashboardEndpoint, asks_for_token: bool) -> WSGIApp:
    def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if environ.get("PATH_INFO") not in ("", "/"):
            start_response("404 Not Found", [("Content-Length", "0")])
            return [b""]
        status, headers, body = endpoint.answer(environ)
        if status.startswith("401") and not asks_for_token and environ["REQUEST_METHOD"] == "GET":
            status, headers, body = pack("403 Forbidden", _REFUSAL, "text/plain")
        start_response(status, headers)
        return [body]

    return application


def is_local(environ: Mapping[str, Any]) -> bool:
    """Whether a request comes from this machine, without a proxy in between that says so.

    The name in the URL must be a loopback one, too: a page from elsewhere whose
    name an attacker resolves to 127.0.0.1 (DNS rebinding) is not admitted.

    Only for a server that no reverse proxy is in front of: a proxy on the same
    host may add no header, and then all its clients look local.
    """
    if any(name in environ for name in _FROM_PROXIES) or any(name.startswith("HTTP_X_FORWARDED") for name in environ):
        return False
    host = str(environ.get("HTTP_HOST", ""))
    name = host[1:].partition("]")[0] if host.startswith("[") else host.rpartition(":")[0] or host
    return _is_loopback(str(environ.get("REMOTE_ADDR", ""))) and (name.lower() == "localhost" or _is_loopback(name))


def _is_loopback(text: str) -> bool:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


def _port(text: str) -> int:
    number = int(text) if text.isascii() and text.isdigit() else -1
    if not 0 <= number <= 65535:
        raise argparse.ArgumentTypeError(f"must be a whole number from 0 to 65535, not {text!r}")
    return number

"""An HTTP/2 server for tests, made of the h2 library: it can do what a real one does on bad days.

Paths: ``/hello``, ``/echo`` (the body), ``/headers`` (those of the request, as JSON), ``/big?bytes`` (a body of that
size), ``/slow?seconds``, ``/trickle`` (a byte each 50 ms without end), ``/last`` (announces the end of the connection
with the answer), ``/lost`` (closes the connection instead of an answer, the first time), ``/cookie`` (sets one),
``/moved`` (redirects to ``/hello``), ``/silence`` (never answers).
"""

from __future__ import annotations

import json
import socket
import ssl
import threading
import time
from contextlib import suppress
from typing import Any

import h2.config
import h2.connection
import h2.events
import h2.exceptions

__all__ = ["HTTP2Server"]


class HTTP2Server:
    """A server at 127.0.0.1, with TLS if it has a certificate.

    Attributes:
        requests: Method and path of each request, in order of arrival.
        opened: How many connections were opened.
    """

    def __init__(self, certificate: str | None = None, port: int = 0) -> None:
        self._context = None
        if certificate is not None:
            self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._context.load_cert_chain(certificate)
            self._context.set_alpn_protocols(["h2"])
        self.requests: list[str] = []
        self.opened = 0
        self.connections: list[Served] = []
        self.lose = True
        self._listener = socket.create_server(("127.0.0.1", port), reuse_port=False)
        self.port = self._listener.getsockname()[1]
        self.url = f"{'http' if certificate is None else 'https'}://127.0.0.1:{self.port}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                sock, _ = self._listener.accept()
                self.opened += 1
                threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock: Any) -> None:
        with suppress(OSError, ssl.SSLError, h2.exceptions.ProtocolError):
            if self._context is not None:
                sock = self._context.wrap_socket(sock, server_side=True)
            served = Served(self, sock)
            self.connections.append(served)
            try:
                served.run()
            finally:
                self.connections.remove(served)
                served.end()

    def __enter__(self) -> HTTP2Server:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End: accept no connection, and close all."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.hang_up()

    def hang_up(self) -> None:
        """Close all connections, as after an idle timeout."""
        for served in list(self.connections):
            served.end()

    def each(self, action: str) -> None:
        """Call a method of h2's connection, such as ``ping``, on all connections, and send its frames."""
        for served in list(self.connections):
            with served.lock:
                served.h2.ping(b"12345678") if action == "ping" else getattr(served.h2, action)()
                served.flush()


class Served:
    """One connection."""

    def __init__(self, server: HTTP2Server, sock: Any) -> None:
        self.server = server
        self.sock = sock
        self.lock = threading.RLock()
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
        self.bodies: dict[int, bytes] = {}
        self.headers: dict[int, dict[str, str]] = {}
        self.answered = 0
        self.pongs = 0

    def run(self) -> None:
        with self.lock:
            self.h2.initiate_connection()
            self.flush()
        while data := self.sock.recv(65536):
            with self.lock:
                events = self.h2.receive_data(data)
                self.flush()
            for event in events:
                self._handle(event)

    def _handle(self, event: Any) -> None:
        if isinstance(event, h2.events.RequestReceived):
            self.headers[event.stream_id] = {name.decode(): value.decode() for name, value in event.headers}
            self.bodies[event.stream_id] = b""
        elif isinstance(event, h2.events.DataReceived):
            self.bodies[event.stream_id] += event.data
            with self.lock:
                self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                self.flush()
        elif isinstance(event, h2.events.StreamEnded):
            threading.Thread(target=self._answer, args=(event.stream_id,), daemon=True).start()
        elif isinstance(event, h2.events.PingAckReceived):
            self.pongs += 1

    def _answer(self, stream: int) -> None:
        headers = self.headers[stream]
        path, _, query = headers[":path"].partition("?")
        self.server.requests.append(f"{headers[':method']} {path}")
        with suppress(OSError, ssl.SSLError, h2.exceptions.ProtocolError):
            if path == "/slow":
                time.sleep(float(query))
            elif path == "/silence":
                return
            elif path == "/lost" and self.server.lose and self.answered:
                self.server.lose = False
                self.end()
                return
            body, more, status = b"hello", [], 200
            if path == "/echo":
                body = self.bodies[stream]
            elif path == "/headers":
                body = json.dumps(headers).encode()
            elif path == "/big":
                body = b"x" * int(query)
            elif path == "/cookie":
                more = [("set-cookie", "who=me; path=/")]
            elif path == "/moved":
                status, more = 302, [("location", "/hello")]
            with self.lock:
                self.h2.send_headers(stream, [(":status", str(status)), *more])
                self.flush()
            while path == "/trickle":
                self._send(stream, b".")
                time.sleep(0.05)
            if path == "/last":
                with self.lock:
                    self.h2.send_data(stream, body, end_stream=True)
                    self.h2.close_connection()
                    self.flush()
                    return
            self._send(stream, b"" if headers[":method"] == "HEAD" else body, last=True)
            self.answered += 1

    def _send(self, stream: int, data: bytes, last: bool = False) -> None:
        while data:
            with self.lock:
                size = min(len(data), self.h2.local_flow_control_window(stream), self.h2.max_outbound_frame_size)
                if size:
                    self.h2.send_data(stream, data[:size])
                    self.flush()
                    data = data[size:]
            if not size:
                time.sleep(0.001)
        if last:
            with self.lock:
                self.h2.end_stream(stream)
                self.flush()

    def flush(self) -> None:
        self.sock.sendall(self.h2.data_to_send())

    def end(self) -> None:
        with suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)
        self.sock.close()

"""A mail server for tests: enough of SMTP for ``smtplib``, and several ways to end a session."""

from __future__ import annotations

import socketserver
import ssl
import threading
from typing import Any

__all__ = ["MailServer"]


class _Session(socketserver.StreamRequestHandler):
    server: MailServer
    tired = False

    def handle(self) -> None:
        server = self.server
        with server.lock:
            server.sessions.append(self)
        self.say("220 ready")
        mail: list[str] = []
        while line := self.rfile.readline():
            word = line.decode().strip()
            verb = word.upper().partition(" ")[0]
            if self.tired:  # the session has timed out, which the client notices at its next command
                self.say("421 4.4.2 timeout exceeded")
            elif verb == "DATA":
                self.say("354 go on")
                while (line := self.rfile.readline()) not in (b".\r\n", b""):
                    mail.append(line.decode().rstrip())
                with server.lock:
                    server.mails.append("\n".join(mail))
                mail.clear()
                self.say("250 stored")
            elif verb == "QUIT":
                self.say("221 bye")
                return
            else:
                self.say("250 fine")

    def say(self, text: str) -> None:
        try:
            self.wfile.write(f"{text}\r\n".encode())
        except OSError:
            pass  # the client has disconnected


class MailServer(socketserver.ThreadingTCPServer):
    """Listens on its own port and stores the mails.

    Attributes:
        sessions: All sessions; a ``tired`` one answers every command with 421, as after a timeout.
        mails: The headers and bodies received.
    """

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, certificate: str | None = None) -> None:
        super().__init__(("127.0.0.1", 0), _Session)
        self.lock = threading.Lock()
        self.sessions: list[_Session] = []
        self.mails: list[str] = []
        self._context = None
        if certificate is not None:
            self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._context.load_cert_chain(certificate)

    @property
    def port(self) -> int:
        return int(self.server_address[1])

    def get_request(self) -> Any:
        sock, address = super().get_request()
        if self._context is not None:
            sock = self._context.wrap_socket(sock, server_side=True)
        return sock, address

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log nothing: clients may disconnect at any time."""

    def __enter__(self) -> MailServer:
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *details: object) -> None:
        self.shutdown()
        self.server_close()

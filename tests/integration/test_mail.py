"""Pools of the standard library's clients, with a factory and functions, against servers that end sessions."""

from __future__ import annotations

import select
import smtplib
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from pooling import Pool
from pooling.core import hangup
from tests.conftest import Authority
from tests.docs import ROOT, steps
from tests.mail import MailServer


@pytest.fixture
def server() -> Iterator[MailServer]:
    with MailServer() as server:
        yield server


@pytest.fixture
def secure_server(authority: Authority) -> Iterator[MailServer]:
    with MailServer(authority.server) as server:
        yield server


def send(pool: Pool[smtplib.SMTP], text: str) -> smtplib.SMTP:
    with pool.acquire() as smtp:
        smtp.sendmail("a@example.com", "b@example.com", f"Subject: {text}")
    return smtp


def take_leave(server: MailServer, text: str) -> None:
    """Send an unsolicited message and hang up; return when that has arrived."""
    session = server.sessions[-1]
    session.say(text)
    session.connection.shutdown(socket.SHUT_RDWR)


def until(reached: Callable[[], bool]) -> None:
    """Wait for another thread."""
    pause = threading.Event()
    for _ in range(2000):
        if reached():
            return
        pause.wait(0.01)
    raise AssertionError("that never came true")


def until_ended(sock: socket.socket) -> None:
    """Wait until the end has arrived, without reading."""
    poll = select.poll()
    poll.register(sock.fileno(), getattr(select, "POLLRDHUP", select.POLLHUP))
    assert poll.poll(20_000), "the server did not hang up"


# -- the first example of docs/reference/pool.rst -----------------------------------------------


@pytest.fixture
def example(server: MailServer) -> Iterator[dict[str, Any]]:
    """The names that it defines, with our server's address."""
    names: dict[str, Any] = {}
    page = ROOT / "docs" / "reference" / "pool.rst"
    block = steps(page.read_text("utf-8"))[0].code
    block = block.replace('SMTP("mail.example.com"', f'SMTP("127.0.0.1", {server.port}')
    assert "127.0.0.1" in block
    exec(compile(block, str(page), "exec"), names)  # noqa: S102
    # Checked at each lease, so that no time has to pass.
    names["mail"].reconfigure(validation_interval=0)
    yield names
    names["mail"].close()


def test_the_first_example_sends(example: dict[str, Any], server: MailServer) -> None:
    for text in ("one", "two"):
        example["send"]("a@example.com", "b@example.com", f"Subject: {text}")
    assert server.mails == ["Subject: one", "Subject: two"]
    assert len(server.sessions) == 1


def test_its_check_detects_a_timed_out_session(example: dict[str, Any], server: MailServer) -> None:
    """The server answers 421 to ``noop()``, which raises nothing, and keeps the connection open."""
    pool: Pool[smtplib.SMTP] = example["mail"]
    example["send"]("a@example.com", "b@example.com", "Subject: one")
    until(lambda: pool.stats()["idle"] == 1)  # it is reset on a worker
    server.sessions[0].tired = True
    example["send"]("a@example.com", "b@example.com", "Subject: two")
    assert server.mails == ["Subject: one", "Subject: two"]
    assert pool.metrics.snapshot().closed["invalid"] == 1


def test_its_reset_detects_a_timed_out_session(example: dict[str, Any], server: MailServer) -> None:
    pool: Pool[smtplib.SMTP] = example["mail"]
    with pool.acquire() as first:
        server.sessions[0].tired = True
    with pool.acquire() as second:
        assert second is not first
    until(lambda: pool.metrics.snapshot().closed.get("reset") == 1)  # it is reset on a worker


# -- a factory alone --------------------------------------------------------------------------


def test_with_only_a_factory_an_ended_session_is_not_lent(server: MailServer) -> None:
    """The server sends 421 before it hangs up, so the end comes after unread bytes."""
    pool = Pool(lambda: smtplib.SMTP("127.0.0.1", server.port), close=smtplib.SMTP.close, name="mail")
    first = send(pool, "one")
    assert send(pool, "two") is first
    take_leave(server, "421 idle too long")
    assert first.sock is not None
    until_ended(first.sock)
    assert send(pool, "three") is not first
    assert len(server.mails) == 3
    assert pool.metrics.snapshot().closed["dead"] == 1
    pool.close()


def test_a_session_that_ended_in_use_is_not_lent_again(server: MailServer) -> None:
    """smtplib drops its socket and raises its own error, which is not a ``ConnectionError``."""
    pool = Pool(lambda: smtplib.SMTP("127.0.0.1", server.port), close=smtplib.SMTP.close, name="mail")
    with pytest.raises(smtplib.SMTPServerDisconnected), pool.acquire() as first:
        take_leave(server, "421 shutting down")
        while True:
            first.noop()
    assert send(pool, "one") is not first
    pool.close()


# -- TLS --------------------------------------------------------------------------------------


@pytest.fixture
def connect(secure_server: MailServer, authority: Authority) -> Callable[..., smtplib.SMTP_SSL]:
    def connect(version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> smtplib.SMTP_SSL:
        context = ssl.create_default_context(cafile=authority.file)
        context.minimum_version = context.maximum_version = version
        return smtplib.SMTP_SSL("127.0.0.1", secure_server.port, context=context)

    return connect


VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]


@pytest.mark.parametrize("version", VERSIONS, ids=lambda version: version.name)
def test_a_tls_session_is_kept_and_replaced(
    connect: Callable[..., smtplib.SMTP_SSL], secure_server: MailServer, version: ssl.TLSVersion
) -> None:
    pool: Pool[Any] = Pool(lambda: connect(version), close=smtplib.SMTP.close, name="mail")
    first = send(pool, "one")
    assert send(pool, "two") is first
    take_leave(secure_server, "421 idle too long")
    until_ended(first.sock)  # type: ignore[arg-type]
    assert send(pool, "three") is not first
    assert pool.metrics.snapshot().closed["dead"] == 1
    pool.close()


@pytest.mark.parametrize("version", VERSIONS, ids=lambda version: version.name)
def test_close_notify_ends_a_tls_session_and_data_does_not(authority: Authority, version: ssl.TLSVersion) -> None:
    """The server sends close_notify and keeps the connection open; detecting it reads nothing."""
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(authority.server)
    asking = ssl.create_default_context(cafile=authority.file)
    asking.minimum_version = asking.maximum_version = version
    listener = socket.create_server(("127.0.0.1", 0))
    peers: list[ssl.SSLSocket] = []

    def serve() -> None:
        peers.append(serving.wrap_socket(listener.accept()[0], server_side=True))

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    sock = asking.wrap_socket(socket.create_connection(listener.getsockname()), server_hostname="127.0.0.1")
    thread.join(20)
    (peer,) = peers
    with listener, sock, peer:
        assert hangup.watchable(sock)  # the tickets of TLS 1.3 are unread
        peer.sendall(b"hello")
        until(lambda: unread(sock) > 0)
        assert hangup.connected(sock)
        before = unread(sock)
        peer.settimeout(0)
        with pytest.raises(ssl.SSLWantReadError):
            peer.unwrap()  # sends close_notify, and would wait for ours
        until(lambda: unread(sock) > before)
        assert not hangup.connected(sock)
        assert sock.recv(100) == b"hello"


def unread(sock: socket.socket) -> int:
    """Return the number of bytes that have arrived; the system's recv consumes none of them."""
    try:
        return len(super(ssl.SSLSocket, sock).recv(65536, socket.MSG_PEEK | socket.MSG_DONTWAIT))  # type: ignore[misc]
    except BlockingIOError:
        return 0


"""The tests' own proxy works as documented; otherwise the fault tests would prove nothing."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from tests.proxy import LOOPBACK, Proxy


@pytest.fixture
def echo() -> Iterator[int]:
    """The port of an echo server."""
    listener = socket.create_server((LOOPBACK, 0))

    def serve(conn: socket.socket) -> None:
        with conn, contextlib.suppress(OSError):
            while data := conn.recv(65536):
                conn.sendall(data)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                conn, _ = listener.accept()
                threading.Thread(target=serve, args=(conn,), daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    yield listener.getsockname()[1]
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join(30)


@pytest.fixture
def proxy(echo: int) -> Iterator[Proxy]:
    with Proxy(echo) as proxy:
        yield proxy


def connect(proxy: Proxy) -> socket.socket:
    return socket.create_connection((LOOPBACK, proxy.port), timeout=30)


def ask(sock: socket.socket, words: bytes = b"hello") -> bytes:
    sock.sendall(words)
    heard = b""
    while len(heard) < len(words):
        more = sock.recv(65536)
        if not more:
            break
        heard += more
    return heard


def silent(sock: socket.socket) -> bool:
    sock.settimeout(0.3)
    try:
        sock.recv(1)
    except TimeoutError:
        return True
    finally:
        sock.settimeout(30)
    return False


def test_forwards_and_counts(proxy: Proxy) -> None:
    with connect(proxy) as one, connect(proxy) as other:
        assert ask(one) == ask(other) == b"hello"
        big = b"x" * 5_000_000
        sender = threading.Thread(target=one.sendall, args=(big,))
        sender.start()
        heard = 0
        while heard < len(big):
            heard += len(one.recv(65536))
        sender.join()
        assert (len(proxy.attempts), proxy.open, proxy.most_open) == (2, 2, 2)
    deadline = time.monotonic() + 30
    while proxy.open:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_refuses_and_accepts(proxy: Proxy) -> None:
    with connect(proxy) as old:
        proxy.refuse()
        with pytest.raises(ConnectionRefusedError):
            connect(proxy)
        assert ask(old) == b"hello"
        proxy.accept()
        with connect(proxy) as new:
            assert ask(new) == b"hello"


def test_cuts_connections(proxy: Proxy) -> None:
    with connect(proxy) as sock:
        assert ask(sock) == b"hello"
        assert proxy.cut() == 1
        with contextlib.suppress(ConnectionResetError):
            assert sock.recv(1) == b""
    with connect(proxy) as new:
        assert ask(new) == b"hello"


def test_holds_and_releases_data(proxy: Proxy) -> None:
    with connect(proxy) as sock:
        assert ask(sock) == b"hello"
        with proxy.held():
            sock.sendall(b"later")
            with connect(proxy) as new:
                new.sendall(b"also")
                assert silent(sock) and silent(new)
                proxy.release()
                assert new.recv(10) == b"also"
        assert sock.recv(10) == b"later"


def test_drops_data_for_ever(proxy: Proxy) -> None:
    with connect(proxy) as sock:
        assert ask(sock) == b"hello"
        assert proxy.drop(new=True) == 1
        with connect(proxy) as swallowed:
            sock.sendall(b"?")
            swallowed.sendall(b"?")
            assert silent(sock) and silent(swallowed)
            proxy.heal()
            sock.sendall(b"?")
            assert silent(sock) and silent(swallowed)
        with connect(proxy) as new:
            assert ask(new) == b"hello"


def test_delays_data(proxy: Proxy) -> None:
    proxy.delay(0.3)
    with connect(proxy) as sock:
        began = time.monotonic()
        assert ask(sock) == b"hello"
        assert time.monotonic() - began >= 0.6  # in both directions

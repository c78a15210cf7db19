"""Commands of MySQL's protocol, sent at once over a pair of sockets: nothing else needs a server."""

from __future__ import annotations

import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

pytest.importorskip("pymysql")
from pooling.adapters.mysql import wire  # noqa: E402
from pooling.adapters.mysql.wire import exchange  # noqa: E402

DONE = b"\x07\x00\x00\x01\x00\x00\x00\x02\x00\x00\x00"  # an answer
LINUX = pytest.mark.skipif(not wire.LIMITS_READS, reason="only Linux on 64 bits")


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def elsewhere(*arguments: Any) -> tuple[list[bytes], Exception | None]:
    """Call `exchange` in another thread: in the main one, where signals arrive, the socket does not block."""
    with ThreadPoolExecutor(1) as threads:
        return threads.submit(exchange, *arguments).result()


def unlimited(sock: socket.socket) -> bool:
    return sock.gettimeout() is None and not any(sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, 16))


def test_answers_in_one_piece_or_several(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    theirs.sendall(DONE * 3)
    assert exchange(ours, b"commands", 3, 5.0) == ([DONE[4:]] * 3, None)

    def slowly() -> None:
        for byte in DONE * 2:
            time.sleep(0.005)
            theirs.sendall(bytes([byte]))

    thread = threading.Thread(target=slowly)
    thread.start()
    assert exchange(ours, b"commands", 2, 5.0) == ([DONE[4:]] * 2, None)
    thread.join()


@LINUX
@pytest.mark.parametrize("answers", [b"", DONE, DONE[:5]])
def test_time_limit_leaves_the_socket_blocking(pair: tuple[socket.socket, socket.socket], answers: bytes) -> None:
    ours, theirs = pair
    theirs.sendall(answers)
    began = time.monotonic()
    found, error = elsewhere(ours, b"commands", 2, 0.2)
    assert 0.15 < time.monotonic() - began < 3.0
    assert found == [DONE[4:]] * (answers == DONE) and isinstance(error, TimeoutError)
    assert "no answer from the server within 0.2 s" in str(error)
    assert unlimited(ours)


def test_bytes_that_trickle_in_do_not_extend_the_time_limit(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    ended = threading.Event()

    def trickle() -> None:
        for byte in DONE * 10:
            if ended.wait(0.05):
                return
            theirs.sendall(bytes([byte]))

    thread = threading.Thread(target=trickle)
    thread.start()
    began = time.monotonic()
    _, error = elsewhere(ours, b"commands", 10, 0.3)
    took = time.monotonic() - began
    ended.set()
    thread.join()
    assert isinstance(error, TimeoutError) and took < 3.0


@LINUX
def test_socket_is_left_blocking_after_success_and_after_an_end(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    theirs.sendall(DONE)
    assert elsewhere(ours, b"commands", 1, 5.0)[1] is None
    assert unlimited(ours)
    theirs.close()
    assert isinstance(elsewhere(ours, b"commands", 1, 5.0)[1], OSError)
    assert unlimited(ours)


def test_a_socket_with_a_time_limit_of_its_own_keeps_the_way_it_works(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = pair
    ours.settimeout(9.0)
    theirs.sendall(DONE)
    assert exchange(ours, b"commands", 1, 5.0)[1] is None
    assert ours.gettimeout() == 5.0


def test_long_commands_do_not_block_for_longer_than_the_time_limit(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, _ = pair
    _, error = elsewhere(ours, b"x" * 50_000_000, 1, 0.2)  # the peer reads nothing
    assert isinstance(error, TimeoutError)


@LINUX
def test_signals_do_not_extend_the_time_limit(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    before = signal.signal(signal.SIGALRM, lambda *_: None)
    end = threading.Timer(10.0, theirs.close)
    end.start()
    signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)
    try:
        assert isinstance(exchange(ours, b"commands", 1, 0.3)[1], TimeoutError)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        end.cancel()


@LINUX
def test_commands_that_fill_a_small_buffer_do_not_block(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    end = threading.Timer(10.0, theirs.close)
    end.start()
    try:
        assert isinstance(elsewhere(ours, b"x" * 16_000, 1, 0.3)[1], TimeoutError)
    finally:
        end.cancel()

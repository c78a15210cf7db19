"""Whether the rest of an answer has arrived, as a look at the socket tells."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from pooling.adapters.postgres.wire import ends_here

COMMITTED = b"C\0\0\0\x0bCOMMIT\0"
READY = b"Z\0\0\0\5I"


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, servers = socket.socketpair()
    ours.setblocking(False)  # as libpq does
    with ours, servers:
        yield ours, servers


@pytest.mark.parametrize(
    ("sent", "ends"),
    [
        (READY, True),
        (COMMITTED + READY, True),
        (COMMITTED, False),
        (COMMITTED + READY[:-1], False),
        (COMMITTED + READY[:-1] + b"E", False),  # a transaction is open: no cleaning ends so
        (COMMITTED + READY + b"N\0\0\0\5\0", False),  # a notice follows
        (b"", False),
    ],
)
def test_only_the_end_of_an_answer_counts(
    pair: tuple[socket.socket, socket.socket], sent: bytes, ends: bool
) -> None:
    ours, servers = pair
    servers.sendall(sent)
    assert ends_here(ours.fileno()) is ends
    if sent:
        assert ours.recv(100) == sent  # it was only looked at
    servers.close()
    assert not ends_here(ours.fileno())


def test_a_closed_socket_is_no_answer(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, _ = pair
    fd = ours.fileno()
    ours.close()
    assert not ends_here(fd)

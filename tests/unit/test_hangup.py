"""With only a factory: a resource whose connection has ended is not lent again."""

from __future__ import annotations

import errno
import os
import socket
import ssl
import xmlrpc.client
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from pooling import Adapter, Pool
from pooling.core import hangup
from pooling.core.liveness import Liveness
from pooling.testing import VirtualClock
from tests.unit.conftest import Make

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pairs() -> Iterator[list[Pair]]:
    """Connected sockets, ours first; all are closed in the end."""
    made: list[Pair] = []
    yield made
    for pair in made:
        for end in pair:
            end.close()


@pytest.fixture
def connect(pairs: list[Pair]) -> Callable[[], socket.socket]:
    def connect() -> socket.socket:
        pairs.append(socket.socketpair())
        return pairs[-1][0]

    return connect


class Client:
    """Keeps its socket in the attribute that smtplib and others use."""

    def __init__(self, sock: socket.socket | None) -> None:
        self.sock = sock


class Speaker:
    """Has a ``fileno`` of its own."""

    def __init__(self, answer: object) -> None:
        self.answer = answer

    def fileno(self) -> Any:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def closed(pool: Pool[Any]) -> dict[str, int]:
    return dict(pool.metrics.snapshot().closed)


# -- which resources are watched ------------------------------------------------------------


def test_connected_socket_is_watched(connect: Callable[[], socket.socket]) -> None:
    sock = connect()
    assert hangup.watchable(sock)
    for name in ("sock", "socket", "_sock"):
        client = Client(None)
        setattr(client, name, sock)
        assert hangup.watchable(client)
    assert hangup.watchable(Speaker(sock.fileno()))


@pytest.mark.parametrize(
    "resource",
    [object(), None, "text", Speaker(-1), Speaker(None), Speaker("7"), Speaker(OSError("closed")), Client(None)],
    ids=lambda resource: type(resource).__name__,
)
def test_resource_without_a_socket_is_not_watched(resource: object) -> None:
    assert not hangup.watchable(resource)


def test_descriptor_that_is_not_a_socket_is_not_watched() -> None:
    read, write = os.pipe()
    with open(read, "rb") as file, open(write, "wb"):
        assert not hangup.watchable(file)


def test_unconnected_socket_is_not_watched() -> None:
    with socket.socket() as sock:
        assert not hangup.watchable(sock)
        assert not hangup.watchable(Client(sock))


def test_rpc_proxy_is_not_called_to_find_a_descriptor() -> None:
    class Refusing(xmlrpc.client.Transport):
        def request(self, *args: Any, **kwargs: Any) -> Any:
            pytest.fail(f"asked the server: {args}", pytrace=False)

    with xmlrpc.client.ServerProxy("http://127.0.0.1:9/", transport=Refusing()) as proxy:
        assert not hangup.watchable(proxy)


def test_check_reads_no_byte_and_sees_a_close_behind_unread_bytes(
    connect: Callable[[], socket.socket], pairs: list[Pair]
) -> None:
    sock = connect()
    peer = pairs[-1][1]
    assert hangup.connected(sock)
    peer.sendall(b"421 too long idle\r\n")
    assert hangup.connected(sock)  # unread bytes are the borrower's business
    peer.shutdown(socket.SHUT_WR)
    assert not hangup.connected(sock)
    assert sock.recv(100) == b"421 too long idle\r\n"


def test_connection_reset_counts_as_closed() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        sock = socket.create_connection(server.getsockname())
        peer, _ = server.accept()
        with sock, peer:
            assert hangup.watchable(sock)
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            peer.close()
            assert not hangup.connected(sock)


def test_client_without_its_socket_is_dead(connect: Callable[[], socket.socket]) -> None:
    client = Client(connect())
    client.sock = None
    assert not hangup.connected(client)


# -- how the pool uses it -------------------------------------------------------------------


@pytest.mark.parametrize("wrap", [lambda sock: sock, Client], ids=["socket", "client"])
def test_idle_resource_closed_by_its_peer_is_not_lent(
    make: Make, connect: Callable[[], socket.socket], pairs: list[Pair], wrap: Callable[[socket.socket], Any]
) -> None:
    pool = make(factory=lambda: wrap(connect()))
    with pool.acquire() as first:
        pass
    with pool.acquire() as again:
        assert again is first
    pairs[0][1].close()
    with pool.acquire() as second:
        assert second is not first
    assert closed(pool) == {"dead": 1}


def test_resource_closed_by_its_peer_while_lent_is_not_lent_again(
    make: Make, connect: Callable[[], socket.socket], pairs: list[Pair]
) -> None:
    pool = make(factory=connect)
    with pool.acquire() as first:
        pairs[0][1].close()
    assert pool.acquire().resource is not first


def test_resource_closed_by_its_borrower_is_not_lent_again(
    make: Make, connect: Callable[[], socket.socket]
) -> None:
    pool = make(factory=connect)
    with pool.acquire() as first:
        first.close()
    assert pool.acquire().resource is not first
    assert closed(pool) == {"dead": 1}


def test_check_closes_ended_connections(
    make: Make, connect: Callable[[], socket.socket], pairs: list[Pair]
) -> None:
    pool = make(factory=connect)
    pool.fill(2)
    pairs[0][1].close()
    pool.check()
    assert (pool.stats()["idle"], closed(pool)) == (1, {"dead": 1})


def test_resources_without_a_socket_among_them_are_left_alone(
    make: Make, connect: Callable[[], socket.socket], pairs: list[Pair]
) -> None:
    """A client that connects at its first use has no socket when it is created."""
    kinds = [Client(connect()), Client(None)]
    pool = make(factory=lambda: kinds.pop(0))
    with pool.acquire() as first, pool.acquire() as second:
        pass
    pairs[0][1].close()
    assert first.sock is not None
    with pool.acquire() as other:
        assert other is second
    second.sock = connect()
    pairs[1][1].close()  # it would connect anew
    with pool.acquire() as other:
        assert other is second


def test_resources_without_a_socket_are_not_checked(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = make(factory=object)
    pool.acquire().release()
    monkeypatch.setattr(Liveness, "is_sound", None)  # called first where the fast path ends
    for _ in range(3):
        pool.acquire().release()
    assert closed(pool) == {}


def test_sockets_of_an_adapter_without_is_alive_are_watched(
    make: Make, connect: Callable[[], socket.socket], pairs: list[Pair]
) -> None:
    class Plain(Adapter[socket.socket]):
        def create(self) -> socket.socket:
            return connect()

    pool = make(adapter=Plain())
    with pool.acquire() as first:
        pass
    pairs[0][1].close()
    assert pool.acquire().resource is not first


def test_is_alive_replaces_the_socket_check(
    make: Make, connect: Callable[[], socket.socket], pairs: list[Pair]
) -> None:
    class Trusting(Adapter[socket.socket]):
        def create(self) -> socket.socket:
            return connect()

        def is_alive(self, resource: socket.socket) -> bool:
            return True

    pool = make(adapter=Trusting())
    with pool.acquire() as first:
        pass
    pairs[0][1].close()
    assert pool.acquire().resource is first


# -- errors that leave the block ------------------------------------------------------------

ENDED = [
    ConnectionResetError("gone"), BrokenPipeError("gone"), ConnectionAbortedError("gone"), EOFError(),
    ssl.SSLError("bad record"), ssl.SSLEOFError("closed"), OSError(errno.EBADF, "bad descriptor"),
    OSError(errno.ENOTCONN, "not connected"), OSError(errno.EPIPE, "pipe"), OSError(errno.ETIMEDOUT, "timed out"),
    OSError(errno.EHOSTUNREACH, "no route"),
]  # fmt: skip
OTHERS = [
    ValueError("mine"), OSError("who knows"), FileNotFoundError(errno.ENOENT, "no file"), TimeoutError("slow"),
    PermissionError(errno.EACCES, "no"), GeneratorExit(),
]  # fmt: skip


def fail(pool: Pool[Any], error: BaseException) -> object:
    with pytest.raises(type(error)) as caught, pool.acquire() as resource:
        raise error
    assert caught.value is error
    return resource


@pytest.mark.parametrize("error", ENDED, ids=repr)
@pytest.mark.parametrize("reset", [None, lambda resource: None], ids=["", "with reset"])
def test_error_of_an_ended_connection_closes_the_resource(
    make: Make, error: BaseException, reset: Callable[[object], object] | None
) -> None:
    pool = make(factory=object, close=lambda resource: None, reset=reset)
    dead = fail(pool, error)
    assert closed(pool) == {"broken": 1}
    assert pool.acquire().resource is not dead


@pytest.mark.parametrize("error", OTHERS, ids=repr)
def test_any_other_error_keeps_the_resource(make: Make, error: BaseException) -> None:
    pool = make(factory=object)
    kept = fail(pool, error)
    assert closed(pool) == {}
    assert pool.acquire().resource is kept


@pytest.mark.parametrize("error", [ConnectionResetError("gone"), ValueError("mine")], ids=repr)
@pytest.mark.parametrize("answer", [True, False, None])
def test_is_broken_decides(make: Make, error: Exception, answer: bool | None) -> None:
    asked: list[tuple[object, BaseException]] = []

    def is_broken(resource: object, raised: BaseException) -> bool | None:
        asked.append((resource, raised))
        return answer

    pool = make(factory=object, is_broken=is_broken)
    resource = fail(pool, error)
    assert asked == [(resource, error)]
    broken = isinstance(error, ConnectionError) if answer is None else answer
    assert closed(pool) == ({"broken": 1} if broken else {})


def test_is_broken_cannot_keep_an_interrupted_resource(make: Make) -> None:
    pool = make(factory=object, is_broken=lambda resource, error: False)
    fail(pool, KeyboardInterrupt())
    assert sum(closed(pool).values()) == 1


def test_adapter_without_is_broken_has_the_same(make: Make) -> None:
    class Plain(Adapter[object]):
        def create(self) -> object:
            return object()

    pool = make(adapter=Plain())
    fail(pool, ConnectionResetError("gone"))
    assert closed(pool) == {"broken": 1}


# -- what validate returns --------------------------------------------------------------------


@pytest.mark.parametrize("answer", [None, True, False, 0, "", (), (421, b"timeout"), ...], ids=repr)
def test_only_false_means_dead(make: Make, clock: VirtualClock, answer: Any) -> None:
    asked: list[object] = []

    def validate(resource: object) -> Any:
        asked.append(resource)
        return answer

    pool = make(factory=object, validate=validate, max_size=1)
    with pool.acquire() as first:
        pass
    clock.advance(1)
    with pool.acquire() as second:
        assert (second is first) == (answer is not False)
    assert asked == [first]
    assert closed(pool) == ({"invalid": 1} if answer is False else {})

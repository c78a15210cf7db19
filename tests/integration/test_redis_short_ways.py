"""The short ways of `RedisPool` do as redis-py does: bytes sent, replies, errors; and where they are not taken."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import redis
from redis._parsers.encoders import Encoder
from redis._parsers.resp2 import _RESP2Parser
from redis._parsers.resp3 import _RESP3Parser
from redis.connection import PythonRespSerializer

from pooling import Observer, PoolTimeout, RedisPool
from pooling.adapters.redis import RedisAdapter, RedisSentinelPool
from pooling.adapters.redis.client import Client
from pooling.adapters.redis.connection import tracked
from pooling.adapters.redis.packing import can_pack, head_of, packed
from pooling.adapters.redis.replies import read_reply
from pooling.core.report.holders import place_of
from pooling.testing import VirtualClock
from tests.integration.tools import wait_until
from tests.redisserver import RedisServer

# -- what is sent ----------------------------------------------------------------------

SHORT: list[tuple[Any, ...]] = [
    ("GET", "a"), ("get", "a"), ("PING",), ("SET", "a", ""), ("SET", "a", " x\r\n\0"), ("INCRBY", "a", -12),
    ("SET", "a", 10**30), ("MSET", *map(str, range(300))), ("SET", "a", "x" * 4000),
]  # fmt: skip
LONG: list[tuple[Any, ...]] = [
    ("SET", "a", "é"), ("SET", "a", b"bytes"), ("SET", "a", 1.5), ("SET", "a", memoryview(b"x")),
    ("SET", "a", "x" * 4001), ("CONFIG GET", "save"), (b"GET", "a"), ("", "a"), ("gét", "a"), ("GET\n", "a"),
    ("SET", "a", True), ("SET", "a", None), ("SET", "a", type("Text", (str,), {})("x")),
]  # fmt: skip


@pytest.mark.parametrize("args", SHORT)
def test_bytes_are_those_of_redis_py(args: tuple[Any, ...]) -> None:
    theirs = PythonRespSerializer(6000, Encoder("utf-8", "strict", False).encode).pack(*args)
    assert packed(args, str(head_of(args[0]))) == b"".join(theirs)


@pytest.mark.parametrize("args", LONG)
def test_all_else_is_packed_by_redis_py(args: tuple[Any, ...]) -> None:
    head = head_of(args[0])
    assert head is None or packed(args, head) is None


@pytest.mark.parametrize(("encoding", "short"), [("utf-8", True), ("latin-1", True), ("utf-16", False), ("?", False)])
def test_encodings(encoding: str, short: bool) -> None:
    assert can_pack(redis.Connection(encoding=encoding)) is short


# -- what is received ------------------------------------------------------------------

REPLIES = [
    b"$5\r\nhello\r\n", b"$0\r\n\r\n", b"$4\r\na\r\nb\r\n", b"+OK\r\n", b"+\r\n", b":12\r\n", b":-1\r\n",
    b"-ERR wrong\r\n", b"*2\r\n$1\r\na\r\n:1\r\n", b"*0\r\n",
]  # fmt: skip
REPLIES_2 = [b"$-1\r\n", b"*-1\r\n"]
REPLIES_3 = [b"_\r\n", b",1.5\r\n", b"#t\r\n", b"%1\r\n+a\r\n+b\r\n", b"=6\r\ntxt:ab\r\n", b"(123\r\n", b"~1\r\n+a\r\n"]


class Pieces:
    """A socket that returns these bytes, one piece with each call, and then its end."""

    def __init__(self, *pieces: bytes) -> None:
        self.pieces = [piece for piece in pieces if piece]

    def recv(self, size: int) -> bytes:
        return self.pieces.pop(0) if self.pieces else b""

    def settimeout(self, timeout: float | None) -> None:
        pass


def parser_of(kind: type[Any], decode: bool, *pieces: bytes) -> Any:
    parser = kind(65536)
    encoder = Encoder("utf-8", "strict", decode)
    parser.on_connect(SimpleNamespace(_sock=Pieces(*pieces), encoder=encoder, socket_timeout=None))
    return parser


def seen(read: Callable[[], Any]) -> tuple[Any, ...]:
    try:
        found = read()
    except Exception as error:
        found = error
    return type(found), str(found)


@pytest.mark.parametrize("decode", [False, True])
@pytest.mark.parametrize("kind", [_RESP2Parser, _RESP3Parser])
def test_replies_are_those_of_redis_py(kind: type[Any], decode: bool) -> None:
    for reply in REPLIES + (REPLIES_2 if kind is _RESP2Parser else REPLIES_3):
        for cut in range(len(reply)):
            theirs = parser_of(kind, decode, reply[:cut], reply[cut:])
            expected = [seen(theirs.read_response), seen(theirs.read_response)]
            ours = parser_of(kind, decode, reply[:cut], reply[cut:])
            assert [seen(lambda: read_reply(ours)), seen(lambda: read_reply(ours))] == expected  # noqa: B023
            assert "Connection closed" in expected[1][1]


@pytest.mark.parametrize("kind", [_RESP2Parser, _RESP3Parser])
def test_replies_that_come_together(kind: type[Any]) -> None:
    data = b"".join(REPLIES)
    theirs, ours = parser_of(kind, False, data), parser_of(kind, False, data)
    for _ in REPLIES:
        assert seen(lambda: read_reply(ours)) == seen(theirs.read_response)


def test_a_push_between_replies_is_not_a_reply() -> None:
    parser = parser_of(_RESP3Parser, False, b"+first\r\n>2\r\n$3\r\nfoo\r\n$3\r\nbar\r\n", b"+second\r\n")
    assert (read_reply(parser), read_reply(parser)) == (b"first", b"second")


# -- errors ----------------------------------------------------------------------------


class Failing:
    """A socket that fails."""

    def __init__(self, error: BaseException, real: Any) -> None:
        self.error, self.real = error, real

    def sendall(self, data: object) -> None:
        raise self.error

    recv = recv_into = sendall

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)


class Stop(BaseException):
    """Interrupts."""


@pytest.mark.parametrize("error", [OSError(104, "reset"), BrokenPipeError(32, "pipe"), TimeoutError("late"), Stop()])
@pytest.mark.parametrize("sends", [True, False])
def test_errors_are_those_of_redis_py(redis_server: RedisServer, error: BaseException, sends: bool) -> None:
    found = []
    for kind in (redis.Connection, tracked(redis.Connection)[0]):
        conn: Any = kind(port=redis_server.port)
        conn.connect()
        if not sends:
            conn.send_command("PING")
        real = conn._sock
        failing = Failing(error, real)
        places = [conn] if sends else [conn, conn._parser, getattr(conn._parser, "_buffer", None)]
        for place in places:
            if hasattr(place, "_sock"):
                place._sock = failing
        with pytest.raises(BaseException) as caught:
            conn.send_command("PING") if sends else conn.read_response()
        assert conn._sock is None  # disconnected
        found.append((type(caught.value), str(caught.value)))
        real.close()
    if not sends and isinstance(error, TimeoutError):  # redis-py says "socket" in place of the address
        assert found[0][0] is found[1][0] is redis.TimeoutError
    else:
        assert found[0] == found[1]
    lost = {Stop: "", TimeoutError: "timed out"}.get(type(error), "ended")
    assert conn.lost == lost


def test_error_of_the_server(redis_server: RedisServer) -> None:
    pool = RedisPool(port=redis_server.port, max_size=1)
    client = redis.Redis(connection_pool=pool)
    client.set("text", "no number")
    for _ in range(3):
        with pytest.raises(redis.ResponseError, match="not an integer"):
            client.incr("text")
    assert pool.metrics.snapshot().created == 1
    pool.close()


# -- where they are not taken ----------------------------------------------------------


@pytest.mark.parametrize("kind", [redis.Connection, redis.SSLConnection, redis.UnixDomainSocketConnection])
def test_short_for_redis_pys_classes(kind: type[Any]) -> None:
    conn = tracked(kind)[0]()
    assert conn.packs
    assert conn.quick


def test_methods_of_another_class_are_called(redis_server: RedisServer) -> None:
    called = set()

    class Own(redis.Connection):
        def send_command(self, *args: Any, **kwargs: Any) -> Any:
            called.add("send")
            return super().send_command(*args, **kwargs)

        def read_response(self, *args: Any, **kwargs: Any) -> Any:
            called.add("read")
            return super().read_response(*args, **kwargs)

        def should_reconnect(self) -> bool:
            called.add("reconnect")
            return "now" in called

    pool = RedisPool(port=redis_server.port, max_size=1, connection_class=Own)
    client = redis.Redis(connection_pool=pool)
    called.clear()
    client.get("a")
    assert called == {"send", "read", "reconnect"}
    conn = pool.get_connection()
    called.add("now")
    pool.release(conn)
    called.discard("now")
    assert pool.metrics.snapshot().closed == {"reconnect": 1}
    pool.close()


def test_redis_pys_health_check_is_made(redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = RedisPool(port=redis_server.port, max_size=1, health_check_interval=1000)
    client = redis.Redis(connection_pool=pool)
    client.get("a")
    client.config_resetstat()
    conn = pool.get_connection()
    assert conn.next_health_check > 0
    conn.next_health_check = 0
    pool.release(conn)
    client.get("a")  # after a PING
    client.get("a")
    assert client.info("commandstats")["cmdstat_ping"]["calls"] == 1
    pool.close()


def test_loss_that_redis_py_has_made_good_is_forgotten(redis_server: RedisServer) -> None:
    pool = RedisPool(port=redis_server.port, max_size=1)
    conn = pool.get_connection()
    conn.send_command("CLIENT", "ID")
    redis_server.connect().client_kill_filter(_id=conn.read_response())
    with pytest.raises(redis.ConnectionError):
        conn.send_command("GET", "a")
        conn.read_response()
    assert conn.lost == "ended"
    conn.connect()
    pool.release(conn)
    conn = pool.get_connection()
    assert conn.lost == ""
    conn.disconnect()
    pool.release(conn)
    assert pool.metrics.snapshot().closed == {"disconnected": 1}
    pool.close()


class Leases(Observer):
    """Notes the leases."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def acquired(self, pool: str, waited: float) -> None:
        self.seen.append("acquired")

    def released(self, pool: str, held: float) -> None:
        self.seen.append("released")


def test_observers_and_max_uses(redis_server: RedisServer) -> None:
    observer = Leases()
    pool = RedisPool(port=redis_server.port, max_size=1, max_uses=3)
    client = redis.Redis(connection_pool=pool)
    for _ in range(3):
        client.get("a")
    wait_until(lambda: pool.metrics.snapshot().closed == {"max_uses": 1})
    pool.add_observer(observer)
    client.get("a")
    with pool.acquire() as own:
        own.get("a")
    assert observer.seen == ["acquired", "released"] * 2
    pool.close()


class AskedAdapter(RedisAdapter):
    """Counts how often a connection is looked at."""

    asked = 0

    def is_alive(self, resource: Client) -> bool:
        self.asked += 1
        return super().is_alive(resource)


class AskedPool(RedisPool):
    adapter_class = AskedAdapter


@pytest.mark.parametrize("clock", [VirtualClock(), None])
def test_another_clock_does_not_know_when_the_last_reply_came(redis_server: RedisServer, clock: Any) -> None:
    pool = AskedPool(port=redis_server.port, max_size=1, clock=clock)
    if clock is None:  # as for a sentinel's master
        pool.answer_ttl = RedisSentinelPool("orders", redis.Sentinel([])).answer_ttl
    client = redis.Redis(connection_pool=pool)
    for _ in range(5):
        client.get("a")
    assert isinstance(pool.redis_adapter, AskedAdapter)
    assert pool.redis_adapter.asked >= 4  # all but the first, which has just been made
    pool.close()


def test_connection_that_has_just_answered_is_not_looked_at(redis_server: RedisServer) -> None:
    pool = AskedPool(port=redis_server.port, max_size=1)
    client = redis.Redis(connection_pool=pool)
    for _ in range(1000):
        client.get("a")
    assert isinstance(pool.redis_adapter, AskedAdapter)
    assert pool.redis_adapter.asked < 900
    pool.close()


class BadResets(RedisAdapter):
    """Fails to reset what was left unclean."""

    def reset(self, resource: Client) -> bool:
        if resource.own.marks:
            raise ValueError("no reset")
        return super().reset(resource)


class BadPool(RedisPool):
    adapter_class = BadResets


def test_resets_that_failed_are_made_good_by_releases_that_need_none(redis_server: RedisServer) -> None:
    pool = BadPool(port=redis_server.port, max_size=1)
    for _ in range(20):
        with pool.acquire() as own:
            own.execute_command("WATCH", "a")
    assert "no reset" in str(pool.stats()["resets_failing"])
    client = redis.Redis(connection_pool=pool)
    for _ in range(200):
        client.get("a")
    assert pool.stats()["resets_failing"] is None
    pool.close()


# -- the holder ------------------------------------------------------------------------


@pytest.fixture
def pool(redis_server: RedisServer) -> Iterator[RedisPool]:
    pool = RedisPool(port=redis_server.port, max_size=1, acquire_timeout=0)
    with pool.acquire(30) as client:
        client.set("a", 1)
    yield pool
    pool.close()


def holder(pool: RedisPool) -> str:
    (entry,) = pool.engine.state.entries
    return place_of(entry).rsplit(" ", 1)[1]


def test_holder_is_the_application(pool: RedisPool) -> None:
    client = redis.Redis(connection_pool=pool)

    def command() -> None:
        client.get("a")

    def pipeline() -> None:
        client.pipeline().get("a").execute()

    def by_name() -> None:
        client.execute_command("GET", "a")

    def script() -> None:
        client.register_script("return 1")()

    def own() -> None:
        with pool.acquire() as mine:
            mine.get("a")

    def transaction() -> None:
        client.transaction(queued, "a")

    def queued(pipe: Any) -> None:
        assert holder(pool) == "transaction()"  # WATCH, by redis-py on its behalf
        pipe.multi()
        pipe.get("a")

    for use in (command, pipeline, by_name, script, own, transaction):
        use()
        assert holder(pool) == f"{use.__name__}()"
    exec("client.get('a')", {"client": client})  # code without the name of a module
    assert holder(pool) == "<module>()"


def test_holder_is_named_in_the_error(pool: RedisPool) -> None:
    conn = pool.get_connection()
    with pytest.raises(PoolTimeout, match=r"held by: .*test_redis_short_ways.py:\d+ test_holder_is_named"):
        redis.Redis(connection_pool=pool).get("a")
    pool.release(conn)


# -- a client's lease ------------------------------------------------------------------

CHANGES: list[Callable[[Any], object]] = [
    lambda callbacks: callbacks.update({"GET": str}),
    lambda callbacks: callbacks.__setitem__("get", str),
    lambda callbacks: callbacks.clear(),
    lambda callbacks: callbacks.pop("PING"),
    lambda callbacks: callbacks.__delitem__("PING"),
    lambda callbacks: callbacks.popitem(),
    lambda callbacks: callbacks.setdefault("GET", str),
    lambda callbacks: callbacks.__ior__({"GET": str}),
]


@pytest.mark.parametrize("number", range(len(CHANGES)))
def test_callbacks_are_those_of_redis_py_again(pool: RedisPool, number: int) -> None:
    with pool.acquire() as client:
        before = dict(client.response_callbacks)
        CHANGES[number](client.response_callbacks)
        assert dict(client.response_callbacks) != before
    with pool.acquire() as client:
        assert dict(client.response_callbacks) == before
        client.response_callbacks = {}
    with pool.acquire() as client:
        assert dict(client.response_callbacks) == before

"""`RedisPool` on a real server: what redis-py's clients do with it, and what no borrower leaves to the next."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from typing import Any, NamedTuple

import pytest
import redis
from redis.backoff import ConstantBackoff
from redis.credentials import CredentialProvider
from redis.retry import Retry

import pooling
from pooling import CreateFailed, LeaseError, PoolClosed, PoolManager, PoolTimeout, RedisPool, TooManyWaiting
from tests.conftest import Authority
from tests.integration.tools import ROOT, in_thread, wait_until
from tests.redisserver import PASSWORD, RedisServer, needs_redis

Make = Callable[..., RedisPool]


@pytest.fixture
def make(redis_server: RedisServer) -> Iterator[Make]:
    """Make pools for the server, closed at the end; every connection must be back by then."""
    made: list[RedisPool] = []
    redis_server.connect().flushall()

    def pool(**arguments: Any) -> RedisPool:
        arguments = {"host": "127.0.0.1", "port": redis_server.port, "max_size": 4, **arguments}
        made.append(RedisPool(**arguments))
        return made[-1]

    yield pool
    gc.collect()
    for each in made:
        wait_until(lambda each=each: each.stats()["in_use"] == 0)  # type: ignore[misc]
        each.close()


# -- what a borrower leaves behind -----------------------------------------------------


def send(*commands: tuple[object, ...], read: bool = True) -> Callable[[Any], object]:
    """Return a function that sends commands over a connection, and reads their replies."""

    def run(conn: Any) -> None:
        for command in commands:
            conn.send_command(*command)
            if read:
                conn.read_response()

    return run


def replies_off(conn: Any) -> None:
    conn.send_command("CLIENT", "REPLY", "OFF")


def half_read(conn: Any) -> None:
    conn.send_packed_command(conn.pack_commands([("GET", "a")] * 3))
    conn.read_response()


def in_small_letters(conn: Any) -> None:
    send(("multi",))(conn)


def own_bytes(conn: Any) -> None:
    conn.send_packed_command([b"*1\r\n$5\r\nMULTI\r\n"])
    conn.read_response()


LEFT: dict[str, Callable[[Any], object]] = {
    "MULTI": send(("MULTI",)),
    "MULTI in small letters": in_small_letters,
    "MULTI as bytes": lambda conn: send((b"MULTI",))(conn),
    "MULTI with queued commands": send(("MULTI",), ("SET", "mine", 1)),
    "MULTI in bytes of its own": own_bytes,
    "WATCH": send(("WATCH", "a")),
    "WATCH, after an EXEC that failed": lambda conn: (send(("WATCH", "a"))(conn), fails(conn, "EXEC")),
    "SUBSCRIBE": lambda conn: subscribe(conn, "SUBSCRIBE", "news"),
    "PSUBSCRIBE": lambda conn: subscribe(conn, "PSUBSCRIBE", "n*"),
    "MONITOR": send(("MONITOR",)),
    "CLIENT REPLY OFF": replies_off,
    "CLIENT REPLY SKIP": lambda conn: conn.send_command("CLIENT REPLY", "SKIP"),
    "CLIENT TRACKING": lambda conn: fails(conn, "CLIENT TRACKING", "ON"),
    "CLIENT SETNAME": send(("CLIENT", "SETNAME", "mine")),
    "CLIENT NO-EVICT": send(("CLIENT NO-EVICT", "ON")),
    "another database": send(("SELECT", 3)),
    "another database, by a transaction": send(("MULTI",), ("SELECT", 3), ("EXEC",)),
    "another protocol": lambda conn: (conn.send_command("HELLO", 2), conn.read_response()),
    "a reply not read": send(("GET", "a"), read=False),
    "replies half read": half_read,
    "READONLY": lambda conn: fails(conn, "READONLY"),
    "SCRIPT DEBUG": send(("SCRIPT DEBUG", "YES")),
    "RESET": send(("RESET",)),
}  # fmt: skip


def subscribe(conn: Any, *command: object) -> None:
    conn.send_command(*command)
    conn.read_response(**({"push_request": True} if conn.get_protocol() in (3, "3") else {}))


def fails(conn: Any, *command: object) -> None:
    conn.send_command(*command)
    with suppress(redis.ResponseError):
        conn.read_response()


def state_of(pool: redis.ConnectionPool) -> list[str]:
    """Return what the next borrower sees that a new connection does not have."""
    client = redis.Redis(connection_pool=pool)
    wrong = []
    try:
        if (answer := client.get("a")) != b"1":
            wrong.append(f"GET answers {answer!r}")
        info = client.client_info()
        wrong += [f"db {info['db']}"] if info["db"] else []
        wrong += ["named " + info["name"]] if info["name"] else []
        wrong += [f"flags {info['flags']}"] if info["flags"] != "N" else []  # x: MULTI, P: subscribed, O: MONITOR
        other = redis.Redis(host="127.0.0.1", port=pool.connection_kwargs["port"])
        with client.pipeline() as pipe:  # a WATCH that was left shows here
            pipe.set("mine", 1)
            conn = pipe.connection_pool.get_connection()
            pipe.connection = conn
            other.set("a", 1)
            pipe.execute()
        other.close()
    except Exception as error:
        wrong.append(f"{type(error).__name__}: {error}"[:60])
    return wrong


def soil(pool: redis.ConnectionPool, leave: Callable[[Any], object]) -> None:
    conn = pool.get_connection()
    try:
        leave(conn)
    finally:
        pool.release(conn)


@pytest.mark.parametrize("protocol", [2, 3])
@pytest.mark.parametrize("what", LEFT)
def test_nothing_is_left_to_the_next_borrower(
    make: Make, redis_server: RedisServer, what: str, protocol: int, record_property: Callable[[str, object], None]
) -> None:
    """Beside it, what redis-py's own pool lends next: in the test report's properties."""
    redis_server.connect().set("a", 1)
    theirs = redis.ConnectionPool(
        host="127.0.0.1", port=redis_server.port, protocol=protocol, max_connections=1, socket_timeout=1
    )
    with suppress(redis.RedisError):
        soil(theirs, LEFT[what])
    record_property("redis-py", state_of(theirs))
    theirs.disconnect()

    pool = make(max_size=1, protocol=protocol)
    soil(pool, LEFT[what])
    assert state_of(pool) == []
    assert pool.metrics.snapshot().closed.get("unclean") == 1


@pytest.mark.parametrize("protocol", [2, 3])
@pytest.mark.parametrize("what", LEFT)
def test_nothing_is_left_by_a_client_on_its_own_connection(
    make: Make, redis_server: RedisServer, what: str, protocol: int
) -> None:
    redis_server.connect().set("a", 1)
    pool = make(max_size=1, protocol=protocol)
    with pool.acquire() as client:
        LEFT[what](client.own)
    assert state_of(pool) == []


def test_reset_logs_in_again_where_that_is_possible(make: Make, redis_server: RedisServer) -> None:
    """A connection is kept after WATCH, MULTI, SELECT and the like; it has its database, name and protocol again."""
    pool = make(max_size=1, db=2, client_name="app", protocol=3, decode_responses=True)
    numbers = set()
    for leave in ("WATCH", "MULTI", "another database", "CLIENT SETNAME", "RESET"):
        with pool.acquire() as client:
            numbers.add(client.client_id())
            LEFT[leave](client.own)
        with pool.acquire() as client:
            info = client.client_info()
            assert (info["db"], info["name"], info["resp"]) == (2, "app", "3")
            numbers.add(int(info["id"]))
    assert len(numbers) == 1
    assert pool.metrics.snapshot().created == 1


def test_ordinary_use_costs_no_further_round_trip(make: Make, redis_server: RedisServer) -> None:
    client, admin = redis.Redis(connection_pool=make(max_size=1)), redis_server.connect()
    client.ping()
    before = admin.info("commandstats")
    for _ in range(20):
        client.set("a", 1)
        with client.pipeline() as pipe:
            pipe.watch("a")
            pipe.multi()
            pipe.get("a")
            pipe.execute()
    after = admin.info("commandstats")
    calls = {
        name.removeprefix("cmdstat_"): each["calls"] - before.get(name, {"calls": 0})["calls"]
        for name, each in after.items()
    }
    assert {name: number for name, number in calls.items() if number} == {
        "set": 20, "watch": 20, "multi": 20, "get": 20, "exec": 20, "info": 1,
    }  # fmt: skip
    assert client.connection_pool.metrics.snapshot().created == 1


def test_transaction_by_hand_that_is_ended_costs_nothing(make: Make) -> None:
    pool = make(max_size=1)
    with pool.acquire() as client:
        client.config_resetstat()
    for _ in range(3):
        with pool.acquire() as client:
            client.execute_command("WATCH", "a")
            client.execute_command("MULTI")
            client.execute_command("SET", "a", 2)
            assert client.execute_command("EXEC") == [b"OK"]
            client.execute_command("SELECT", 1)
            client.execute_command("SELECT", 0)
        with pool.acquire() as client:
            assert client.info("commandstats").get("cmdstat_reset") is None
    assert pool.metrics.snapshot().created == 1


def test_state_is_logged_once_for_each_kind(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    pool = make()
    for _ in range(3):
        soil(pool, LEFT["MULTI"])
        soil(pool, LEFT["a reply not read"])
    words = [record.getMessage() for record in caplog.records if "released in this state" in record.getMessage()]
    assert [text.rpartition(": ")[2] for text in words] == ["MULTI", "unread replies"]
    assert words[0].startswith(f"pool {pool.name!r}: ")


def test_argument_that_cannot_be_sent_costs_no_connection(make: Make) -> None:
    client = redis.Redis(connection_pool=make(max_size=1))
    for _ in range(3):
        with pytest.raises(redis.DataError):
            client.set("a", None)  # type: ignore[arg-type]
        with pytest.raises(redis.DataError), client.pipeline() as pipe:
            pipe.set("a", 1).set("a", None).execute()  # type: ignore[arg-type]
        with pytest.raises(redis.ResponseError):
            client.execute_command("NO-SUCH-COMMAND")
        assert client.execute_command(b"SET", "a", 1)
    assert client.connection_pool.metrics.snapshot().created == 1


def test_response_callbacks_of_a_client_are_its_own(make: Make) -> None:
    pool = make(max_size=1)
    with pool.acquire() as client:
        client.set_response_callback("GET", lambda reply: "mine")
        assert client.get("a") == "mine"
    with pool.acquire() as client:
        assert client.get("a") is None


# -- redis-py's clients ----------------------------------------------------------------


@pytest.mark.parametrize("protocol", [2, 3])
@pytest.mark.parametrize("decode", [False, True])
def test_commands(make: Make, protocol: int, decode: bool) -> None:
    pool = make(protocol=protocol, decode_responses=decode)
    client = redis.Redis(connection_pool=pool)
    assert isinstance(pool, redis.ConnectionPool)
    assert client.set("a", "é")
    assert client.get("a") == ("é" if decode else "é".encode())
    client.hset("h", mapping={"x": 1})
    assert list(client.hgetall("h")) == (["x"] if decode else [b"x"])
    with client.pipeline() as pipe:
        assert pipe.set("b", 2).incr("b").execute() == [True, 3]
    with client.pipeline(transaction=False) as pipe:
        assert len(pipe.get("a").get("b").execute()) == 2
    assert client.eval("return redis.call('INCR', KEYS[1])", 1, "b") == 4
    assert client.transaction(lambda pipe: pipe.multi() or pipe.incr("b"), "b") == [5]
    assert (pool.stats()["in_use"], pool.stats()["size"]) == (0, 1)


def test_blocking_command_and_lock(make: Make) -> None:
    client = redis.Redis(connection_pool=make())
    with ThreadPoolExecutor(1) as other:
        waiting = other.submit(client.blpop, ["queue"], 30)
        client.rpush("queue", "job")
        assert waiting.result() == (b"queue", b"job")
    with client.lock("lock", timeout=30):
        assert not client.lock("lock", timeout=30).acquire(blocking=False)
    assert client.lock("lock", timeout=30).acquire(blocking=False)


@pytest.mark.parametrize("protocol", [2, 3])
def test_pubsub_and_monitor(make: Make, protocol: int) -> None:
    pool = make(protocol=protocol)
    client = redis.Redis(connection_pool=pool)
    with client.pubsub(ignore_subscribe_messages=True) as pubsub:
        pubsub.subscribe("news")
        pubsub.get_message(timeout=1)
        client.publish("news", "hello")
        message = None
        while message is None:
            message = pubsub.get_message(timeout=30)
        assert message["data"] == b"hello"
        assert pool.stats()["in_use"] == 1
    with client.monitor() as monitor:
        client.get("seen")
        while "seen" not in monitor.next_command()["command"]:
            pass
    assert pool.stats()["in_use"] == 0
    assert client.ping()
    assert pool.metrics.snapshot().closed == {"disconnected": 2}


@pytest.mark.parametrize("name", ["decode_responses", "retry_on_timeout", "socket_keepalive", "ssl_check_hostname"])
def test_booleans_of_a_url_are_those_of_all_urls(name: str) -> None:
    for text, value in (("off", False), ("No", False), ("0", False), ("on", True), ("yes", True), ("TRUE", True)):
        pool = RedisPool.from_url(f"rediss://h?{name}={text}")
        assert pool.connection_kwargs[name] is value
        pool.close()
    with pytest.raises(ValueError, match=f"{name}='maybe': must be true or false"):
        RedisPool.from_url(f"rediss://h?{name}=maybe")
    with pytest.raises(ValueError, match=f"{name}='maybe': must be true or false"):
        pooling.from_url(f"rediss://h?{name}=maybe")


def test_unix_socket_and_url(redis_server: RedisServer) -> None:
    with RedisPool.from_url(f"unix://{redis_server.socket}?db=3&max_size=2") as pool:
        assert redis.Redis(connection_pool=pool).client_info()["db"] == 3
        assert pool.max_connections == 2
    with pooling.from_url(f"{redis_server.url}?max_connections=3&timeout=2&decode_responses=false") as pool:
        assert (pool.settings.max_size, pool.settings.acquire_timeout) == (3, 2.0)
        with pool.acquire() as client:
            client.set("a", 1)
            assert client.get("a") == b"1"


def test_manager_knows_the_scheme(redis_server: RedisServer) -> None:
    with PoolManager() as manager:
        pool = manager.create_pool("cache", redis_server.url, max_size=2, health_check_interval=9)
        assert manager.health_check()["cache"].status == "up"
        assert pool.connection_kwargs["health_check_interval"] == 9  # redis-py's
        assert manager.metrics()["cache"]["max_size"] == 2


def test_tls(authority: Authority) -> None:
    needs_redis()
    with RedisServer(tls=(authority.server, authority.file)) as server:
        with RedisPool.from_url(server.url, ssl_ca_certs=authority.file, max_size=2) as pool:
            client = redis.Redis(connection_pool=pool)
            for _ in range(3):
                assert client.set("a", 1)
            with pool.acquire() as own:
                own.execute_command("SELECT", 2)
            assert client.get("a") == b"1"
            assert pool.metrics.snapshot().created == 1  # neither a ticket nor the RESET cost a connection
            kill_all(server, "rediss")
            assert client.get("a") == b"1"
        with closing(RedisPool.from_url(server.url, acquire_timeout=1)) as pool:
            for use in (redis.Redis(connection_pool=pool).ping, pool.open):
                with pytest.raises(redis.ConnectionError, match="(?i)certificate"):
                    use()


def kill_all(server: RedisServer, kind: str = "redis") -> None:
    """End all other connections, and wait until they are gone."""
    with server.connect() as admin:
        admin.client_kill_filter(_type="normal", skipme=True)
        wait_until(lambda: len(admin.client_list(_type="normal")) == 1)


class Credentials(CredentialProvider):
    """Counts how often it was asked."""

    asked = 0
    password = PASSWORD

    def get_credentials(self) -> tuple[str, str]:
        self.asked += 1
        return "app", self.password


def test_users_and_credential_providers() -> None:
    needs_redis()
    with RedisServer("--requirepass", PASSWORD) as server:
        admin = server.connect()
        admin.acl_setuser(
            "app", enabled=True, passwords=[f"+{PASSWORD}"], keys=["*"], commands=["+get", "+set", "+select", "+reset"]
        )
        provider = Credentials()
        where: dict[str, Any] = {"host": "127.0.0.1", "port": server.port, "db": 1}
        with RedisPool(**where, credential_provider=provider) as pool:
            client = redis.Redis(connection_pool=pool)
            assert client.set("a", 1)  # without the right to PING
            with pool.acquire() as own:
                own.execute_command("SELECT", 0)
            assert client.get("a") == b"1"
            assert provider.asked == 2  # and once more after the RESET
            admin.acl_setuser("app", enabled=True, passwords=[f"-{PASSWORD}", "+new"])
            provider.password = "new"
            pool.re_auth_callback(object())
            assert client.get("a") == b"1"
            assert pool.metrics.snapshot().created == 2
        with closing(RedisPool(**where, username="app", password="wr0ng")) as pool:
            began = time.monotonic()
            with pytest.raises(CreateFailed) as caught:
                redis.Redis(connection_pool=pool).get("a")
            assert isinstance(caught.value, redis.AuthenticationError)
            assert "wr0ng" not in str(caught.value)
            assert time.monotonic() - began < 8


def test_commands_are_retried_by_redis_py(redis_server: RedisServer, make: Make) -> None:
    """Within the lease, on the same connection object, which opens a new socket."""
    pool = make(retry=Retry(ConstantBackoff(0.01), 3))
    client = redis.Redis(connection_pool=pool)
    with ThreadPoolExecutor(1) as other:
        waiting = other.submit(client.blpop, ["queue"], 30)
        wait_until(lambda: pool.stats()["in_use"] == 1)
        with redis_server.connect() as admin:
            blocked = wait_for_blocked(admin)
            admin.client_kill_filter(_id=blocked)
            assert wait_for_blocked(admin) != blocked
            admin.rpush("queue", "job")
        assert waiting.result() == (b"queue", b"job")
    pool.set_retry(Retry(ConstantBackoff(0.01), 7))
    conn = pool.get_connection()
    assert conn.retry.get_retries() == 7
    pool.release(conn)


def wait_for_blocked(admin: redis.Redis) -> str:
    """Return the number of the client that waits in a BLPOP."""
    found: list[str] = []

    def seen() -> bool:
        found[:] = [each["id"] for each in admin.client_list() if each["flags"] == "b"]
        return bool(found)

    wait_until(seen)
    return found[0]


def test_connecting_is_retried_by_the_pool() -> None:
    """One attempt at a time, for all who wait; redis-py's delays would come on top."""
    with closing(RedisPool(port=1, retry=Retry(ConstantBackoff(60), 3), acquire_timeout=1.0)) as pool:
        with pytest.raises(PoolTimeout) as caught:
            pool.acquire()
        assert isinstance(caught.value.__cause__, redis.ConnectionError)


# -- errors, limits, holders -------------------------------------------------------------


def test_exhaustion_names_the_borrower_and_is_redis_pys_error(make: Make) -> None:
    pool = make(max_size=1, acquire_timeout=0.2)
    client = redis.Redis(connection_pool=pool)
    pipe = client.pipeline()
    pipe.watch("a")
    with pytest.raises(PoolTimeout, match=r"1/1 in use.*test_exhaustion_names_the_borrower") as caught:
        client.get("a")
    assert isinstance(caught.value, redis.ConnectionError)
    assert isinstance(caught.value, redis.TimeoutError)
    assert isinstance(caught.value, getattr(redis, "MaxConnectionsError", redis.ConnectionError))
    assert "RedisPoolExhausted" in repr(caught.value)  # redis-py's __repr__ needs attributes of its own
    assert pool.holders()[0].function == "test_exhaustion_names_the_borrower_and_is_redis_pys_error"
    pipe.reset()
    pool.reconfigure(max_waiting=0)
    with pool.acquire(), pytest.raises(TooManyWaiting) as refused:
        client.get("a")
    assert isinstance(refused.value, redis.ConnectionError)


def test_server_down_is_redis_pys_error() -> None:
    with closing(RedisPool(port=1, acquire_timeout=0.3)) as pool:
        with pytest.raises(PoolTimeout, match="last connection error: ConnectionError") as caught:
            redis.Redis(connection_pool=pool).get("a")
        assert isinstance(caught.value, redis.ConnectionError)
        assert isinstance(caught.value, redis.TimeoutError)
        assert isinstance(caught.value.__cause__, redis.ConnectionError)


def test_closed_pool_is_redis_pys_error(make: Make) -> None:
    pool = make()
    pool.close()
    with pytest.raises(PoolClosed) as caught:
        redis.Redis(connection_pool=pool).get("a")
    assert isinstance(caught.value, redis.ConnectionError)


def test_waiters_are_served_in_order(make: Make) -> None:
    pool = make(max_size=1, acquire_timeout=30)
    client = redis.Redis(connection_pool=pool)
    order: list[int] = []
    with pool.acquire():
        threads = []
        for number in range(8):
            threads.append(in_thread(lambda number=number: (client.get("a"), order.append(number))))  # type: ignore[misc]
            wait_until(lambda number=number: pool.stats()["waiting"] == number + 1)  # type: ignore[misc]
    for thread in threads:
        thread.join()
    assert order == sorted(order)


def test_forgotten_connection_is_recovered(make: Make) -> None:
    """Of redis-py's own pools it would be lost for ever."""
    pool = make(max_size=1, acquire_timeout=30)
    conn = pool.get_connection()
    conn.send_command("PING")
    del conn
    gc.collect()
    assert redis.Redis(connection_pool=pool).ping()
    assert pool.metrics.snapshot().orphans == 1


def test_released_twice_or_to_another_pool(make: Make) -> None:
    pool, other = make(max_size=2), make()
    conn = pool.get_connection()
    other.release(conn)
    assert (pool.stats()["in_use"], pool.owns_connection(conn), other.owns_connection(conn)) == (1, True, False)
    pool.release(conn)
    one = pool.get_connection()
    pool.release(conn)  # again: it is lent to another borrower now
    assert pool.stats()["in_use"] == 1
    pool.release(one)
    other.release(redis.Connection())


def test_client_of_a_lease(make: Make) -> None:
    """Pipelines, locks, subscriptions: all on the one connection."""
    pool = make(max_size=1, acquire_timeout=1)
    with pool.acquire() as client:
        number = client.client_id()
        with client.pipeline() as pipe:
            pipe.watch("a")
            assert pipe.client_id() == number
            pipe.multi()
            pipe.set("a", 1)
            assert pipe.execute() == [True]
        with client.lock("lock", timeout=9):
            pass
        with client.pubsub() as pubsub:
            pubsub.subscribe("news")
            assert pubsub.get_message(timeout=9)["type"] == "subscribe"
        assert client.client_id() != number  # pubsub closes what it has used
        client.close()
        assert client.ping()
        assert isinstance(client, redis.Redis)
    with pytest.raises(LeaseError, match="lease has ended"):
        client.ping()


def test_disconnect_replaces_all(make: Make) -> None:
    pool = make(max_size=2, socket_timeout=30)
    client = redis.Redis(connection_pool=pool)
    first = client.client_id()
    mine = pool.get_connection()
    with ThreadPoolExecutor(1) as other:
        waiting = other.submit(client.blpop, ["nothing"], 20)
        wait_until(lambda: pool.stats()["in_use"] == 2)
        time.sleep(0.1)
        pool.disconnect()
        with pytest.raises(redis.ConnectionError):
            waiting.result()
    assert not mine.is_connected if hasattr(mine, "is_connected") else True
    pool.release(mine)
    assert client.client_id() > first
    assert pool.stats()["size"] == 1


def test_figures_under_redis_pys_names(make: Make) -> None:
    pool = make(max_size=3)
    one, other = pool.get_connection(), pool.get_connection()
    pool.release(other)
    assert (len(pool._available_connections), len(pool._in_use_connections), pool._created_connections) == (1, 1, 2)
    if hasattr(redis.ConnectionPool, "get_connection_count"):
        assert [number for number, _ in pool.get_connection_count()] == [1, 1]
    pool.release(one)
    pool.max_connections = 5
    assert (pool.settings.max_size, pool.timeout) == (5, pool.settings.acquire_timeout)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"cache_config": object()}, ValueError, "cache_config is not supported by RedisPool: client-side caching"),
        ({"cache": object()}, ValueError, "cache is not supported by RedisPool: client-side caching"),
        ({"maint_notifications_config": object()}, ValueError, "maint_notifications_config is not supported"),
        ({"queue_class": list}, ValueError, "queue_class is not supported.*order of arrival"),
        ({"max_size": 2, "max_connections": 3}, TypeError, "max_size and max_connections mean the same"),
        ({"timeout": 2, "acquire_timeout": 3}, TypeError, "acquire_timeout and timeout mean the same"),
        ({"max_size": 0}, ValueError, "max_size must be at least 1"),
        ({"max_connections": "many"}, TypeError, "max_size must be a whole number"),
        ({"max_sise": 2}, TypeError, "max_sise"),
        ({"protocol": 4}, redis.ConnectionError, "protocol must be either 2 or 3"),
        ({"settings": {"max_size": 2}}, TypeError, "settings must be a PoolSettings"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        RedisPool(**arguments)


def test_no_timeout_means_to_wait_for_ever() -> None:
    assert RedisPool(timeout=None).settings.acquire_timeout == threading.TIMEOUT_MAX


# -- threads -----------------------------------------------------------------------------


def test_no_thread_starves(
    make: Make, redis_server: RedisServer, record_property: Callable[[str, object], None]
) -> None:
    """64 threads on 4 connections; in redis-py's pool most get nothing in that time, see the report's properties."""
    pool = make(max_size=4, acquire_timeout=60)
    theirs = redis.BlockingConnectionPool(host="127.0.0.1", port=redis_server.port, max_connections=4, timeout=60)
    counts = compete(redis.Redis(connection_pool=pool).get, 64, 2.0)
    record_property("starved of 64 in redis-py's", compete(redis.Redis(connection_pool=theirs).get, 64, 2.0).count(0))
    theirs.disconnect()
    assert min(counts) > 0
    assert max(counts) <= 4 * min(counts) + 8


def compete(use: Callable[[str], object], threads: int, seconds: float) -> list[int]:
    """Let threads use something for a time; return how often each has."""
    counts, stop, start = [0] * threads, threading.Event(), threading.Barrier(threads)

    def work(number: int) -> None:
        start.wait()
        while not stop.is_set():
            use("a")
            counts[number] += 1

    crew = [in_thread(lambda number=number: work(number)) for number in range(threads)]  # type: ignore[misc]
    time.sleep(seconds)
    stop.set()
    for thread in crew:
        thread.join()
    return counts


class Exit(NamedTuple):
    code: int
    out: str
    err: str


def run(code: str) -> Exit:
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    return Exit(done.returncode, done.stdout, done.stderr)


def test_process_exits_at_once_and_silently(redis_server: RedisServer) -> None:
    code = f"""
import redis, pooling
pool = pooling.RedisPool(port={redis_server.port})
client = redis.Redis(connection_pool=pool)
client.ping()
held = pool.get_connection()
lease = pool.acquire()
print("done")
"""
    assert run(code) == Exit(0, "done\n", "")


def test_pool_that_is_dropped_closes_its_connections(make: Make, redis_server: RedisServer) -> None:
    admin = redis_server.connect()
    pool = RedisPool(host="127.0.0.1", port=redis_server.port, client_name="dropped")
    client = redis.Redis(connection_pool=pool)
    assert client.ping()
    assert [each["name"] for each in admin.client_list()].count("dropped") == 1
    gc.disable()
    try:
        del client, pool
        wait_until(lambda: "dropped" not in [each["name"] for each in admin.client_list()])
    finally:
        gc.enable()
    admin.close()


GEVENT = """
from gevent import monkey
EARLY
import gevent, redis
from pooling import RedisPool
pool = RedisPool(port=PORT, max_size=4, acquire_timeout=30)
client = redis.Redis(connection_pool=pool)
client.ping()
monkey.patch_all()

def work(number):
    for each in range(30):
        client.set(f"g{number}", each)
        assert client.get(f"g{number}") == str(each).encode()
        with pool.acquire() as own:
            own.execute_command("WATCH", "x")

gevent.joinall([gevent.spawn(work, number) for number in range(30)], raise_error=True)
try:
    with gevent.Timeout(0.2):
        client.blpop(["nothing"], 20)
except gevent.Timeout:
    print("interrupted")
assert client.ping() and pool.stats()["in_use"] == 0
"""


@pytest.mark.parametrize("early", ["monkey.patch_all()", ""])
def test_gevent(redis_server: RedisServer, early: str) -> None:
    """Patched at the beginning, or while the pool is in use."""
    code = "import warnings; warnings.simplefilter('ignore')" + GEVENT.replace("EARLY", early)
    assert run(code.replace("PORT", str(redis_server.port))) == Exit(0, "interrupted\n", "")

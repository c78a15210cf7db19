"""Pools of other libraries in a manager: psycopg_pool's and SQLAlchemy's engines."""

from __future__ import annotations

import io
from pathlib import Path

import psycopg_pool
import pytest
import sqlalchemy

from pooling import PoolManager
from pooling.web.wsgi import PoolingMiddleware, lease
from tests.servers import PostgresServer


def test_psycopg_pool(postgres: PostgresServer) -> None:
    pool = psycopg_pool.ConnectionPool(postgres.dsn, min_size=1, max_size=2, open=False, name="theirs")
    manager = PoolManager(startup_timeout=30.0)
    manager.add_pool(pool)
    with manager:
        health = manager.health_check(30.0)
        assert (health["theirs"].status, health["theirs"].reason) == ("up", None)
        with manager.lease("theirs") as conn:
            assert conn.execute("SELECT 1").fetchone() == (1,)
            figures = manager.metrics()["theirs"]
            assert (figures["active_connections"], figures["max_size"]) == (1, 2)
            with manager.lease("theirs"):
                exhausted = manager.health_check(0.2)
                assert (exhausted["theirs"].status, exhausted.status) == ("degraded", "degraded")
        assert manager.metrics()["theirs"]["success_rate"] > 0
        out = io.StringIO()
        manager.print_summary(out)
        assert "ConnectionPool" in out.getvalue()
    assert pool.closed
    assert manager.health_check(1.0)["theirs"].status == "down"


def test_a_psycopg_pool_whose_server_is_down() -> None:
    pool = psycopg_pool.ConnectionPool(
        "postgresql://postgres@127.0.0.1:1/x", min_size=0, max_size=1, open=False, reconnect_timeout=0.1
    )
    manager = PoolManager()
    manager.add_pool(pool, "away")
    pool.open()
    try:
        assert manager.health_check(0.5)["away"].status == "down"
    finally:
        manager.shutdown(5.0)


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
def test_an_engine(kind: str, tmp_path: Path, postgres: PostgresServer) -> None:
    theirs = postgres.dsn.replace("postgresql:", "postgresql+psycopg:")
    url = f"sqlite:///{tmp_path}/x.db" if kind == "sqlite" else theirs
    engine = sqlalchemy.create_engine(url, pool_size=2, max_overflow=1)
    manager = PoolManager(startup_timeout=30.0)
    with pytest.raises(ValueError, match="name must be given: this Engine has none"):
        manager.add_pool(engine)
    manager.add_pool(engine, "orm", critical=False)
    with manager:
        assert manager.health_check(30.0)["orm"].status == "up"
        with manager.lease("orm") as conn:
            assert conn.exec_driver_sql("SELECT 1").scalar() == 1
            figures = manager.metrics()["orm"]
            assert (figures["active_connections"], figures["max_size"]) == (1, 3)
        assert manager.metrics()["orm"]["idle_connections"] >= 1
        with manager.lease("orm"), manager.lease("orm"), manager.lease("orm"):
            health = manager.health_check(30.0)
            assert (health["orm"].status, health["orm"].reason) == ("degraded", "exhausted: 3 of 3 in use")
        seen = []

        def app(environ, start_response):  # type: ignore[no-untyped-def]
            seen.append(lease(environ, "orm").exec_driver_sql("SELECT 7").scalar())
            start_response("200 OK", [])
            return [b""]

        PoolingMiddleware(app, manager)({}, lambda *args: None)
        assert seen == [7] and manager.metrics()["orm"]["active_connections"] == 0
    assert manager.metrics()["orm"]["active_connections"] == 0


def test_an_engine_that_cannot_connect() -> None:
    engine = sqlalchemy.create_engine("postgresql+psycopg://app:s3cret@127.0.0.1:1/x")
    manager = PoolManager()
    manager.add_pool(engine, "orm")
    health = manager.health_check(30.0)
    assert health.status == "down"
    assert "s3cret" not in str(health.to_dict()) and "OperationalError" in (health["orm"].reason or "")

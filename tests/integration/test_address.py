"""Where a pool connects: one source decides, and values of another source are never sent there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pooling import CreateFailed, PoolManager, PoolSettings, PoolTimeout, PostgresPool
from pooling.adapters.mysql.address import WHERE as MYSQL_WHERE
from pooling.adapters.mysql.address import Address as MySQLAddress
from pooling.adapters.mysql.address import driver_of
from pooling.adapters.postgres.address import Address
from pooling.compat.psycopg_pool import ConnectionPool
from pooling.tools.demo.place import PostgresDatabase
from tests.servers import PostgresServer
from tests.trap import Trap

QUICK = PoolSettings(min_size=0, acquire_timeout=2.0)
REFUSED = (CreateFailed, PoolTimeout)


@pytest.fixture
def main(monkeypatch: pytest.MonkeyPatch) -> Iterator[Trap]:
    """The server of ``DATABASE_URL``, whose secret and options must go nowhere else."""
    with Trap() as trap:
        monkeypatch.setenv(
            "DATABASE_URL",
            f"postgresql://app:MAIN-SECRET@127.0.0.1:{trap.port}/main?options=-c%20search_path%3Dmain_schema",
        )
        yield trap


@pytest.fixture
def other() -> Iterator[Trap]:
    """Another server."""
    with Trap() as trap:
        yield trap


def fails(make: Callable[[], Any]) -> None:
    """Try to connect; the traps refuse every connection."""
    pool = make()
    try:
        with pytest.raises(REFUSED):
            pool.acquire().release()
    finally:
        pool.close()


def nothing_of_main(heard: bytes) -> None:
    for piece in (b"MAIN-SECRET", b"main", b"app\0", b"main_schema"):
        assert piece not in heard


def test_the_trap_receives_a_password(main: Trap) -> None:
    """Otherwise none of the other tests would prove anything."""
    fails(lambda: PostgresPool(settings=QUICK))
    for piece in (b"MAIN-SECRET", b"main", b"app\0", b"main_schema"):
        assert piece in main.heard


@pytest.mark.parametrize(
    "where",
    [
        {"host": "127.0.0.1", "user": "report", "dbname": "r", "password": "theirs"},
        {"host": "127.0.0.1"},
        {"hostaddr": "127.0.0.1"},
        {"port": None},  # only the port, together with PGHOST
    ],
)
@pytest.mark.parametrize("called", [False, True])
def test_a_server_named_in_kwargs_gets_nothing_of_database_url(
    monkeypatch: pytest.MonkeyPatch, main: Trap, other: Trap, where: dict[str, Any], called: bool
) -> None:
    monkeypatch.setenv("PGHOST", "127.0.0.1")
    monkeypatch.setenv("PGPASSWORD", "for-any")
    monkeypatch.setenv("PGUSER", "someone")
    kwargs = {**where, "port": other.port}
    fails(lambda: PostgresPool(settings=QUICK, kwargs=(lambda: kwargs) if called else kwargs))
    assert where.get("password", "for-any").encode() in other.heard
    nothing_of_main(other.heard)
    assert main.heard == b""


@pytest.mark.parametrize("kwargs", [{"dbname": "r"}, {"user": "report"}, {"dbname": "r", "autocommit": True}])
def test_libpqs_variables_fill_in_what_kwargs_omit(
    monkeypatch: pytest.MonkeyPatch, main: Trap, other: Trap, kwargs: dict[str, Any]
) -> None:
    for name, value in (("HOST", "127.0.0.1"), ("PORT", str(other.port)), ("PASSWORD", "pg"), ("USER", "report")):
        monkeypatch.setenv(f"PG{name}", value)
    fails(lambda: PostgresPool(settings=QUICK, kwargs=kwargs))
    assert b"pg\0" in other.heard and b"report\0" in other.heard
    nothing_of_main(other.heard)
    assert main.heard == b""


def test_a_service_named_in_kwargs_gets_nothing_of_database_url(
    monkeypatch: pytest.MonkeyPatch, main: Trap, other: Trap, tmp_path: Path
) -> None:
    file = tmp_path / "services"
    file.write_text(f"[reports]\nhost=127.0.0.1\nport={other.port}\nuser=report\npassword=theirs\n")
    monkeypatch.setenv("PGSERVICEFILE", str(file))
    fails(lambda: PostgresPool(settings=QUICK, kwargs={"service": "reports"}))
    assert b"theirs" in other.heard
    nothing_of_main(other.heard)
    assert main.heard == b""


def test_a_conninfo_gets_nothing_of_database_url(main: Trap, other: Trap) -> None:
    address = f"127.0.0.1:{other.port}"
    for conninfo in (f"postgresql://report:theirs@{address}/r", f"host=127.0.0.1 port={other.port} password=theirs"):
        fails(lambda conninfo=conninfo: PostgresPool(conninfo, QUICK))  # type: ignore[misc]
        fails(lambda conninfo=conninfo: PostgresPool(lambda: conninfo, QUICK))  # type: ignore[misc]
    with PoolManager() as manager:
        pool = manager.create_pool("db", f"postgresql://report:theirs@{address}/r", settings=QUICK)
        with pytest.raises(REFUSED):
            pool.acquire()
    assert b"theirs" in other.heard
    nothing_of_main(other.heard)
    assert main.heard == b""


@pytest.mark.parametrize("kwargs", [{}, {"autocommit": True}, {"application_name": "x"}, {"host": None}])
def test_database_url_is_used_without_arguments(main: Trap, kwargs: dict[str, Any]) -> None:
    fails(lambda: PostgresPool(settings=QUICK, kwargs=kwargs))
    assert b"MAIN-SECRET" in main.heard and b"main_schema" in main.heard


def test_a_password_in_kwargs_is_for_the_server_of_database_url(main: Trap) -> None:
    """The password comes from another source: a token, a file."""
    fails(lambda: PostgresPool(settings=QUICK, kwargs=lambda: {"password": "token"}))
    assert b"token" in main.heard and b"MAIN-SECRET" not in main.heard


@pytest.mark.parametrize("conninfo", ["", lambda: ""])
def test_the_drop_in_reads_libpqs_variables_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch, main: Trap, other: Trap, conninfo: Any
) -> None:
    for name, value in (("HOST", "127.0.0.1"), ("PORT", str(other.port)), ("PASSWORD", "pg"), ("USER", "report")):
        monkeypatch.setenv(f"PG{name}", value)
    made = ConnectionPool(
        conninfo, min_size=0, max_size=1, open=True, timeout=2, kwargs={"dbname": "r"},
    )  # fmt: skip
    with made as pool, pytest.raises(Exception, match="password authentication|timeout|no connection"):
        pool.getconn()
    assert b"pg\0" in other.heard
    nothing_of_main(other.heard)
    assert main.heard == b""


def test_the_manager_reads_one_variable(main: Trap, other: Trap) -> None:
    """An argument and the variable with the prefix are never mixed."""
    theirs = f"postgresql://report:theirs@127.0.0.1:{other.port}/r"
    for manager in (
        PoolManager.from_env("X_", {"X_DATABASE_URL": theirs, "DATABASE_URL": f"postgresql://x:MAIN-SECRET@127.0.0.1:{main.port}"}),
        PoolManager.from_env("", database=theirs),
    ):  # fmt: skip
        with pytest.raises(REFUSED):
            manager["db_pool"].acquire(2)
        manager.shutdown()
    assert b"theirs" in other.heard
    nothing_of_main(other.heard)
    assert main.heard == b""


def test_an_empty_variable_of_libpq_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compose files pass unset variables like this."""
    monkeypatch.setenv("PGCONNECT_TIMEOUT", "")
    assert Address("host=a", None, 30.0, {}).ask().arguments["connect_timeout"] == 15


def test_real_servers(monkeypatch: pytest.MonkeyPatch, postgres: PostgresServer, main: Trap) -> None:
    where = {"host": "127.0.0.1", "port": postgres.port, "user": "postgres", "dbname": "postgres"}
    with PostgresPool(settings=QUICK, kwargs=where) as db:
        assert db.execute_query("SHOW search_path") == [('"$user", public',)]
    assert main.heard == b""
    monkeypatch.setenv("DATABASE_URL", f"{postgres.dsn}?options=-c%20search_path%3Dpublic")
    with PostgresPool(settings=QUICK, kwargs={"application_name": "x"}) as db:
        assert db.execute_query("SHOW search_path") == [("public",)]


def test_the_demo_requires_a_named_server(main: Trap) -> None:
    for dsn in ("", " "):
        with pytest.raises(ValueError, match="must not be empty"):
            PostgresDatabase(dsn)


def test_djangos_engine_connects_as_djangos_settings_say(
    monkeypatch: pytest.MonkeyPatch, main: Trap, other: Trap
) -> None:
    """With Django's conninfo, whatever its settings omit."""
    monkeypatch.setenv("PGHOST", "127.0.0.1")
    monkeypatch.setenv("PGPORT", str(other.port))
    monkeypatch.setenv("PGPASSWORD", "pg")
    monkeypatch.setenv("PGUSER", "report")
    fails(lambda: PostgresPool("client_encoding=UTF8", QUICK, kwargs={"autocommit": True}))
    assert b"pg\0" in other.heard
    nothing_of_main(other.heard)
    assert main.heard == b""


@pytest.mark.parametrize("name", sorted(MYSQL_WHERE))
def test_a_mysql_server_named_in_kwargs_gets_nothing_of_database_url(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Neither its password nor its options nor its driver."""
    monkeypatch.setenv("DATABASE_URL", "mysql+mysqldb://app:MAIN-SECRET@db1/main?charset=latin1")
    for kwargs in ({name: "other"}, lambda: {name: "other"}):
        assert MySQLAddress("", kwargs, dict).ask().arguments == {name: "other"}
    assert MySQLAddress("", {"autocommit": True}, dict).ask().arguments["password"] == "MAIN-SECRET"
    assert driver_of("", {name: "other"}) is None
    assert driver_of("", {name: None}) == driver_of("", None) == "mysqlclient"


@pytest.mark.parametrize("text", ["", " "])
def test_an_empty_database_url_is_none(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("DATABASE_URL", text)
    assert "host" not in Address("", None, 30.0, {}).ask().arguments
    assert MySQLAddress("", None, dict).ask().arguments == {}
    assert driver_of("", None) is None

"""The private names of MySQL's drivers that the pool uses are in the installed versions, and mean the same."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import mysql.connector
import pymysql
import pytest

from pooling import MySQLPool, PoolSettings
from pooling.adapters.mysql import connector
from pooling.adapters.mysql import pymysql as ours
from pooling.adapters.mysql.tracking import notes_of
from tests.integration.tools import environment
from tests.mariadb import MariaDBServer

ONE = PoolSettings(min_size=0, max_size=1, acquire_timeout=30)


@pytest.fixture(params=["pymysql", "connector"])
def conn(request: pytest.FixtureRequest, mariadb: MariaDBServer) -> Iterator[Any]:
    with MySQLPool(mariadb.url.replace("+pymysql", ""), ONE, driver=request.param) as pool, pool.acquire() as conn:
        yield conn


def test_names_of_the_classes() -> None:
    assert ours.AVAILABLE and connector.AVAILABLE
    for name in ours.NEEDED:
        assert hasattr(pymysql.connections.Connection, name), f"PyMySQL {pymysql.VERSION_STRING}: {name}"
    for name in connector.NEEDED:
        assert hasattr(mysql.connector.MySQLConnection, name), f"mysql-connector-python: {name}"
    assert callable(pymysql.err.raise_mysql_exception) and callable(mysql.connector.errors.get_exception)


def test_attributes_of_a_connection(conn: Any) -> None:
    module = ours if isinstance(conn, pymysql.connections.Connection) else connector
    assert set(module.ATTRIBUTES) <= vars(conn).keys()
    driver = ours.PyMySQL() if module is ours else connector.Connector()
    assert driver.socket_of(conn).fileno() >= 0


def test_nothing_that_can_be_changed_in_place_is_forgotten(conn: Any) -> None:
    """An object that a borrower could change would be shared with the next one."""
    # The arguments of connect(), which are read then only; the protocol's own state.
    known = {
        "encoders", "decoders", "_connect_attrs", "_auth_plugin_map",  # PyMySQL
        "_conn_attrs", "_query_attrs", "_ssl", "_tls_versions", "_columns_desc", "_handshake",  # the other
    }  # fmt: skip
    found = {name for name, value in vars(conn).items() if isinstance(value, (dict, list, set)) and name[:2] != "__"}
    assert found <= known, "see client_state() and restore() of the driver"


@pytest.mark.parametrize(
    "use",
    [
        lambda conn: conn.cursor().execute("DO 1"),
        lambda conn: conn.commit(),
        lambda conn: conn.rollback(),
        lambda conn: conn.ping(),
        lambda conn: (getattr(conn, "select_db", None) or conn.cmd_init_db)("test"),
        lambda conn: conn.begin() if hasattr(conn, "begin") else conn.start_transaction(),
        lambda conn: (
            conn.set_character_set("latin1") if hasattr(conn, "set_character_set")
            else conn.set_charset_collation("latin1")
        ),
    ],
)  # fmt: skip
def test_whatever_is_sent_is_noted(conn: Any, use: Callable[[Any], object]) -> None:
    assert not notes_of(conn).dirty
    use(conn)
    assert notes_of(conn).dirty


def test_raw_commands_leave_the_driver_in_step(conn: Any) -> None:
    """What is sent without the driver is answered with packets that it never sees."""
    cursor = conn.cursor()
    for number in range(3):
        cursor.execute(f"SELECT {number}")
        assert list(cursor.fetchall()) == [(number,)]
        reset(conn)
    cursor.close()


def reset(conn: Any) -> None:
    driver = ours.PyMySQL() if isinstance(conn, pymysql.connections.Connection) else connector.Connector()
    driver.perform(conn, notes_of(conn).configuration.cleaning, 30.0, True)


PLAIN = """
import sys
from pooling import MySQLPool, PoolSettings, PoolTimeout
from pooling.adapters.mysql import pymysql as ours
assert not ours.AVAILABLE
db = MySQLPool(sys.argv[1], PoolSettings(min_size=0, max_size=1, acquire_timeout=30), driver=sys.argv[2],
               configure=lambda conn: conn.cursor().execute("SET @hook = 1"))
def run(conn, sql):
    cursor = conn.cursor()
    cursor.execute(sql)
    return list(cursor.fetchall()) if cursor.description else []
for _ in range(3):
    with db.connection() as conn:
        assert run(conn, "SELECT @mine, @hook, @@autocommit") == [(None, 1, 0)]
        run(conn, "SET @mine = 1")
        run(conn, "USE information_schema")
    assert db.execute_query("SELECT DATABASE(), %s", (1,)) == [("test", 1)]
assert db.execute_many("SELECT %s", [(1,), (2,)]) >= 0
assert db.run(lambda conn: run(conn, "SELECT 7")) == [(7,)]
assert db.probe() is None
print(sorted(db.metrics.snapshot().closed))
db.close()
"""


@pytest.mark.parametrize("driver", ["pymysql", "connector"])
def test_without_the_private_names_used_connections_are_closed(mariadb: MariaDBServer, driver: str) -> None:
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", PLAIN, mariadb.url.replace("+pymysql", ""), driver],
        env=environment(POOLING_PLAIN="1"), capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert (run.returncode, run.stdout, run.stderr) == (0, "['no reset']\n", "")

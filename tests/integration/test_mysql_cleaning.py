"""Nothing that a borrower leaves on a MySQL connection reaches the next one (P5): every kind of state, one by one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, NamedTuple

import pymysql
import pytest
from pymysql.cursors import DictCursor, SSCursor

from pooling import MySQLPool, PoolSettings
from pooling.adapters.mysql.failures import code_of
from pooling.adapters.mysql.pymysql import PyMySQL
from tests.mariadb import MariaDBServer, needs_mysqlclient

ONE = PoolSettings(min_size=0, max_size=1, acquire_timeout=30)


class Left(NamedTuple):
    """What a borrower leaves, and how the next one would see it.

    Attributes:
        leave: Statements, or what is done with the connection.
        look: A query, or a function, whose result must be the same for each borrower.
    """

    leave: list[str] | Callable[[Any], object]
    look: str | Callable[[Any], object]


def all_of(conn: Any, sql: str) -> list[Any]:
    # A borrower may have left another class of cursors.
    classes = [pymysql.cursors.Cursor] if isinstance(conn, pymysql.connections.Connection) else []
    with conn.cursor(*classes) as cursor:
        cursor.execute(sql)
        return list(cursor.fetchall()) if cursor.description else []


def error_of(sql: str) -> Callable[[Any], object]:
    """The number of the error that a statement ends with, or its result."""

    def look(conn: Any) -> object:
        try:
            return all_of(conn, sql)
        except Exception as error:
            return code_of(error)

    return look


def variables(name: str) -> str:
    return f"SHOW SESSION VARIABLES LIKE '{name}'"


def half_read(conn: Any) -> None:
    cursor = conn.cursor(SSCursor)
    cursor.execute("SELECT seq FROM seq_1_to_1000")
    cursor.fetchone()
    conn.kept = cursor  # otherwise its destructor reads the rest


LEFT = {
    "a transaction": Left(["INSERT INTO t VALUES (1)"], "SELECT n FROM t"),
    "a transaction of START": Left(["START TRANSACTION", "INSERT INTO t VALUES (1)"], "SELECT n FROM t"),
    "a read only transaction": Left(["START TRANSACTION READ ONLY", "SELECT * FROM t"], error_of("DELETE FROM t")),
    "a snapshot": Left(["START TRANSACTION WITH CONSISTENT SNAPSHOT"], "SELECT @@in_transaction"),
    "an XA transaction": Left(["XA START 'mine'", "INSERT INTO t VALUES (1)"], error_of("SELECT n FROM t")),
    "a savepoint": Left(["INSERT INTO t VALUES (1)", "SAVEPOINT mine"], error_of("ROLLBACK TO mine")),
    "autocommit": Left(["SET autocommit=1"], "SELECT @@autocommit"),
    "autocommit of the driver": Left(lambda conn: conn.autocommit(True), "SELECT @@autocommit"),
    "USE": Left(["USE other"], "SELECT DATABASE()"),
    "USE in disguise": Left(["EXECUTE IMMEDIATE CONCAT('US', 'E other')"], "SELECT DATABASE()"),
    "select_db": Left(lambda conn: conn.select_db("other"), "SELECT DATABASE()"),
    "charset": Left(["SET NAMES latin1"], variables("character_set_%")),
    "charset of the driver": Left(lambda conn: conn.set_character_set("latin1"), lambda conn: (
        conn.charset, conn.encoding, all_of(conn, "SELECT _utf8mb4 X'C3A4'"), all_of(conn, "SELECT 'ä', LENGTH('ä')"))),
    "collation": Left(["SET collation_connection=utf8mb4_bin"], variables("collation_connection")),
    "sql_mode": Left(["SET sql_mode='ANSI_QUOTES,NO_BACKSLASH_ESCAPES'"], "SELECT @@sql_mode"),
    "time zone": Left(["SET time_zone='+05:00'"], "SELECT @@time_zone"),
    "isolation level": Left(["SET SESSION TRANSACTION ISOLATION LEVEL SERIALIZABLE"], variables("tx_isolation")),
    "isolation level of the next": Left(["SET TRANSACTION READ ONLY"], error_of("DELETE FROM t")),
    "read only sessions": Left(["SET SESSION TRANSACTION READ ONLY"], variables("tx_read_only")),
    "session variables": Left(
        ["SET max_statement_time=7, foreign_key_checks=0, unique_checks=0, sql_log_bin=0, sql_select_limit=1"],
        "SELECT @@max_statement_time, @@foreign_key_checks, @@unique_checks, @@sql_log_bin, @@sql_select_limit"),
    "all session variables": Left(["SET wait_timeout=77, sort_buffer_size=65536, lc_time_names='de_DE'"],
                                  "SELECT * FROM information_schema.session_variables WHERE variable_name NOT IN "
                                  "('TIMESTAMP', 'PSEUDO_THREAD_ID', 'RAND_SEED1', 'RAND_SEED2', 'LAST_GTID', "
                                  "'ERROR_COUNT', 'WARNING_COUNT')"),
    "user variables": Left(["SET @mine = 1"], "SELECT @mine"),
    "temporary tables": Left(["CREATE TEMPORARY TABLE mine (n INT)"], error_of("SELECT * FROM mine")),
    "temporary table over another": Left(["CREATE TEMPORARY TABLE t (x INT)"], error_of("SELECT n FROM t")),
    "GET_LOCK": Left(["SELECT GET_LOCK('mine', 0)"], "SELECT IS_USED_LOCK('mine')"),
    "LOCK TABLES": Left(["LOCK TABLES t WRITE"], error_of("SELECT n FROM u")),
    "FLUSH TABLES WITH READ LOCK": Left(["FLUSH TABLES WITH READ LOCK"], error_of("DELETE FROM t")),
    "BACKUP LOCK": Left(["BACKUP LOCK t"], error_of("DELETE FROM t")),
    "prepared statements": Left(["PREPARE mine FROM 'SELECT 1'"], error_of("EXECUTE mine")),
    "handlers": Left(["HANDLER t OPEN"], error_of("HANDLER t READ FIRST")),
    "last insert id": Left(["INSERT INTO u VALUES (NULL)", "COMMIT"], "SELECT LAST_INSERT_ID()"),
    "warnings": Left(["SELECT CAST('x' AS INT)"], "SHOW WARNINGS"),
    "insert id of the driver": Left(["INSERT INTO u VALUES (NULL)"], lambda conn: bool(conn.insert_id())),
    "a half-read result": Left(half_read, "SELECT 1"),
    "cursor class": Left(lambda conn: setattr(conn, "cursorclass", DictCursor), lambda conn: conn.cursorclass),
    "converters": Left(lambda conn: conn.decoders.clear(), lambda conn: len(conn.decoders)),
    "own attributes": Left(lambda conn: setattr(conn, "user_id", 7), lambda conn: hasattr(conn, "user_id")),
    "arguments of the driver": Left(lambda conn: setattr(conn, "use_unicode", False), "SELECT 'x'"),
}  # fmt: skip


@pytest.fixture(scope="module")
def server(mariadb: MariaDBServer) -> MariaDBServer:
    conn = mariadb.connect()
    for sql in ("CREATE DATABASE IF NOT EXISTS other", "CREATE TABLE IF NOT EXISTS t (n INT) ENGINE=InnoDB",
                "CREATE TABLE IF NOT EXISTS u (n INT AUTO_INCREMENT PRIMARY KEY) ENGINE=InnoDB"):  # fmt: skip
        all_of(conn, sql)
    conn.close()
    return mariadb


OF_PYMYSQL = {
    "autocommit of the driver", "select_db", "charset of the driver", "insert id of the driver", "a half-read result",
    "cursor class", "converters", "own attributes", "arguments of the driver",
}  # fmt: skip
"""Its names; what takes their place in other drivers, ``test_mysql`` has."""
WAYS = {
    "several at once": "pymysql", "one by one": "pymysql", "mysql-connector-python": "connector",
    "mysqlclient": "mysqlclient",
}  # fmt: skip
CASES = [(way, kind) for way in WAYS for kind in LEFT if WAYS[way] == "pymysql" or kind not in OF_PYMYSQL]


@pytest.fixture
def pool(request: pytest.FixtureRequest, server: MariaDBServer) -> Iterator[MySQLPool]:
    needs_mysqlclient(WAYS[request.param])
    pool = MySQLPool(server.url.replace("+pymysql", ""), ONE, driver=WAYS[request.param])
    pool.session_rules.pipelined = request.param not in ("one by one", "mysqlclient")
    yield pool
    pool.close()
    conn = server.connect()
    all_of(conn, "DELETE FROM t")
    conn.commit()
    conn.close()


def leave(conn: Any, what: Left) -> None:
    if callable(what.leave):
        what.leave(conn)
    else:
        for sql in what.leave:
            all_of(conn, sql)


def look(conn: Any, what: Left) -> object:
    return what.look(conn) if callable(what.look) else all_of(conn, what.look)


@pytest.mark.parametrize(("pool", "kind"), CASES, indirect=["pool"])
def test_state_is_gone(pool: MySQLPool, kind: str) -> None:
    what = LEFT[kind]
    with pool.acquire() as conn:
        as_new = look(conn, what)
    for block in (pool.acquire, pool.connection):
        if block == pool.connection and ("transaction" in kind or kind == "a savepoint"):
            continue  # it commits
        number = None
        with suppress(pool.driver.error), block() as conn:
            number = pool.driver.thread_id(conn)
            leave(conn, what)
        with pool.acquire() as conn:
            assert look(conn, what) == as_new
            assert pool.driver.thread_id(conn) == number or kind in ("a half-read result", "BACKUP LOCK")
            as_new = look(conn, what) if kind.startswith("last insert") else as_new


@pytest.mark.parametrize("kind", LEFT)
def test_each_kind_of_state_would_be_seen_without_a_cleaning(server: MariaDBServer, kind: str) -> None:
    """Otherwise the test above could not fail."""
    what = LEFT[kind]
    conn = server.connect()
    as_new = look(conn, what)
    conn.close()
    conn = server.connect()
    leave(conn, what)
    if kind == "a half-read result":
        assert PyMySQL().unread(conn)
        conn.kept.close()
    else:
        assert look(conn, what) != as_new
    conn.close()

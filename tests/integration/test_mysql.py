"""`MySQLPool` against a real MariaDB, with every driver."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from pymysql.constants import CLIENT
from pymysql.cursors import DictCursor

import pooling
from pooling import (
    CommandTimeout,
    CommitUnknown,
    CreateFailed,
    MySQLPool,
    PoolSettings,
    PoolTimeout,
    TransactionRolledBack,
)
from pooling.adapters.mysql import driver as drivers
from pooling.adapters.mysql import session
from pooling.adapters.mysql.blocks import Transaction
from pooling.adapters.mysql.driver import NAMES
from pooling.adapters.mysql.drivers import load as load_driver
from pooling.adapters.mysql.statistics import text_of
from pooling.adapters.mysql.tracking import notes_of
from pooling.manager import PoolManager
from tests.conftest import Authority
from tests.integration.tools import wait_until
from tests.mariadb import MariaDBServer, needs_mariadb, needs_mysqlclient

ONE = PoolSettings(min_size=0, max_size=1, acquire_timeout=30)
Make = Callable[..., MySQLPool]


@pytest.fixture(scope="module")
def server(authority: Authority) -> Iterator[MariaDBServer]:
    needs_mariadb()
    with TemporaryDirectory(dir="/tmp") as folder:
        ca, cert = (Path(folder) / name for name in ("ca.pem", "cert.pem"))
        ca.write_bytes(Path(authority.file).read_bytes())
        cert.write_bytes(Path(authority.server).read_bytes())
        Path(folder).chmod(0o755)  # the server has an account of its own
        with MariaDBServer(f"--ssl-ca={ca}", f"--ssl-cert={cert}", f"--ssl-key={cert}", grants=True) as server:
            server.ask("CREATE TABLE t (n INT PRIMARY KEY) ENGINE=InnoDB")
            server.ask("CREATE DATABASE other")
            yield server


@pytest.fixture(params=NAMES)
def driver(request: pytest.FixtureRequest) -> str:
    needs_mysqlclient(request.param)
    return str(request.param)


@pytest.fixture
def make(server: MariaDBServer, driver: str) -> Iterator[Make]:
    pools = []

    def made(conninfo: Any = None, settings: PoolSettings = ONE, **options: Any) -> MySQLPool:
        options.setdefault("driver", driver)
        pools.append(MySQLPool(url(server) if conninfo is None else conninfo, settings, **options))
        return pools[-1]

    yield made
    for pool in pools:
        pool.close()
    server.ask("DELETE FROM t")


def url(server: MariaDBServer, user: str = "root", more: str = "") -> str:
    return f"mysql://{user}@127.0.0.1:{server.port}/test{more}"


def run(conn: Any, sql: str) -> list[Any]:
    cursor = conn.cursor()
    cursor.execute(sql)
    rows = list(cursor.fetchall()) if cursor.description else []
    cursor.close()
    return rows


def code(error: BaseException) -> int:
    return int(getattr(error, "errno", None) or error.args[0])


# -- verbs ---------------------------------------------------------------------------


def test_block_commits_and_rolls_back(make: Make, server: MariaDBServer) -> None:
    pool = make()
    with pool.connection() as conn:
        run(conn, "INSERT INTO t VALUES (1)")
    assert server.ask("SELECT n FROM t") == ((1,),)
    with pytest.raises(ZeroDivisionError), pool.connection() as conn:
        run(conn, "INSERT INTO t VALUES (2)")
        raise ZeroDivisionError
    with pool.acquire() as conn:
        run(conn, "INSERT INTO t VALUES (3)")  # not committed
    assert server.ask("SELECT n FROM t") == ((1,),)


def test_what_a_select_changes_is_committed(make: Make, server: MariaDBServer) -> None:
    """A result set does not tell that it belongs to a transaction with changes."""
    pool = make()
    with pool.connection() as conn:
        assert run(conn, "INSERT INTO t VALUES (1) RETURNING n") == [(1,)]
    assert server.ask("SELECT n FROM t") == ((1,),)


def test_execute_query_and_execute_many(make: Make, server: MariaDBServer) -> None:
    pool = make()
    assert pool.execute_query("SELECT %s + 1", (1,)) == [(2,)]
    assert pool.execute_query("SELECT '%'") == [("%",)]
    assert pool.execute_query("SELECT %(a)s", {"a": "x"}) == [("x",)]
    assert pool.execute_query("INSERT INTO t VALUES (1)") == []
    assert pool.execute_many("INSERT INTO t VALUES (%s)", ((n,) for n in (2, 3))) == 2
    assert pool.execute_many("INSERT INTO t VALUES (%s)", []) == 0
    with pytest.raises(Exception, match="Duplicate"):
        pool.execute_many("INSERT INTO t VALUES (%s)", [(4,), (1,)])
    assert server.ask("SELECT n FROM t ORDER BY n") == ((1,), (2,), (3,))


def test_cursor_class(make: Make, driver: str) -> None:
    if driver == "pymysql":
        assert make().execute_query("SELECT 1 AS one", cursor_class=DictCursor) == [{"one": 1}]
    elif driver == "connector":
        from mysql.connector.cursor import MySQLCursorDict

        assert make().execute_query("SELECT 1 AS one", cursor_class=MySQLCursorDict) == [{"one": 1}]
    else:
        from MySQLdb.cursors import DictCursor as Other

        assert make().execute_query("SELECT 1 AS one", cursor_class=Other) == [{"one": 1}]


@pytest.mark.parametrize("autocommit", [False, True])
def test_transaction(make: Make, server: MariaDBServer, autocommit: bool) -> None:
    pool = make(kwargs={"autocommit": autocommit})
    with pool.transaction(isolation_level="serializable") as conn:
        run(conn, "INSERT INTO t VALUES (1)")
        with pytest.raises(Exception, match=r"commit\(\) is not possible within transaction\(\)"):
            conn.commit()
        with pytest.raises(Exception, match=r"rollback\(\) is not possible within"):
            conn.rollback()
    assert server.ask("SELECT n FROM t") == ((1,),)
    with pytest.raises(ZeroDivisionError), pool.transaction() as conn:
        run(conn, "INSERT INTO t VALUES (2)")
        raise ZeroDivisionError
    with pool.transaction(read_only=True) as conn, pytest.raises(Exception, match="READ ONLY transaction") as caught:
        run(conn, "INSERT INTO t VALUES (3)")
    assert code(caught.value) == 1792
    wait_until(lambda: pool.stats()["idle"] == 1)  # it is not closed
    with pool.connection() as conn:
        conn.rollback()  # possible again
        run(conn, "INSERT INTO t VALUES (4)")
    assert server.ask("SELECT n FROM t") == ((1,), (4,))
    with pytest.raises(ValueError, match="isolation_level must be one of 'READ UNCOMMITTED'"):
        pool.transaction(isolation_level="none").__enter__()


def test_an_unused_lease_sends_nothing(make: Make, server: MariaDBServer) -> None:
    pool = make()
    with pool.acquire() as conn:
        number = conn.thread_id() if hasattr(conn, "thread_id") else conn.connection_id
    asked = "SELECT variable_value FROM information_schema.global_status WHERE variable_name = 'Questions'"
    before = int(server.ask(asked)[0][0])
    alone = int(server.ask(asked)[0][0]) - before
    for _ in range(10):
        with pool.acquire():
            pass
        with pool.connection() as conn:
            pass
    assert int(server.ask(asked)[0][0]) - before == 2 * alone
    with pool.acquire() as conn:
        assert number == (conn.thread_id() if hasattr(conn, "thread_id") else conn.connection_id)


@pytest.mark.parametrize("name", ["pymysql", "connector"])
def test_commit_and_cleaning_are_one_round_trip(
    server: MariaDBServer, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = []

    def counting(sock: Any, commands: bytes, count: int, timeout: float | None) -> Any:
        counts.append(count)
        return exchange(sock, commands, count, timeout)

    exchange = drivers.exchange
    with MySQLPool(url(server), ONE, driver=name) as pool:
        for sql in ("DELETE FROM t", "USE other"):
            with pool.connection() as conn:
                run(conn, sql)
                monkeypatch.setattr(drivers, "exchange", counting)
            monkeypatch.setattr(drivers, "exchange", exchange)
            assert pool.execute_query("SELECT DATABASE()") == [("test",)]
    assert counts == [3, 4]  # COMMIT, reset, SET; the database too, if it may be another one


def test_assignments_of_configure_take_no_command_of_their_own(server: MariaDBServer) -> None:
    def configure(conn: Any) -> None:
        run(conn, "SET time_zone = '+05:00'")
        run(conn, "set session sql_mode='ANSI_QUOTES'; ")
        run(conn, "SET @mine = 1")
        run(conn, "SET lock_wait_timeout = 7")

    asked = "SELECT @@time_zone, @@sql_mode, @mine, @@lock_wait_timeout"
    with MySQLPool(url(server), ONE, driver="pymysql", configure=configure) as pool:
        for _ in range(3):
            with pool.acquire() as conn:
                assert run(conn, asked) == [("+05:00", "ANSI_QUOTES", 1, 7)]
                commands = [text for _, text in notes_of(conn).configuration.staying.steps]
                run(conn, "SET time_zone='+01:00', sql_mode='', @mine=2, lock_wait_timeout=8")
    assert [text[:10] for text in commands[-2:]] == [b"SET @mine ", b"SET lock_w"] and len(commands) == 4


def test_collation_of_the_database_is_not_lost(server: MariaDBServer, make: Make) -> None:
    """LOAD DATA uses it; a reset makes it that of the server."""
    server.ask("CREATE DATABASE IF NOT EXISTS greek CHARACTER SET greek")
    pool = make(kwargs={"database": "greek"})
    for _ in range(3):
        assert pool.execute_query("SELECT @@collation_database") == [("greek_general_ci",)]


def test_database_chosen_behind_another_statement(server: MariaDBServer) -> None:
    with MySQLPool(url(server), ONE, driver="pymysql", kwargs={"client_flag": CLIENT.MULTI_STATEMENTS}) as pool:
        with pool.connection() as conn, conn.cursor() as cursor:
            cursor.execute("SELECT 1; USE other")
            while cursor.nextset():
                pass
        assert pool.execute_query("SELECT DATABASE()") == [("test",)]


# -- sessions ------------------------------------------------------------------------


def test_time_limits_of_hooks_do_not_apply_to_the_borrower(make: Make) -> None:
    """Drivers keep the limit of a command in an attribute."""

    def look(conn: Any) -> None:
        run(conn, "SELECT 1")

    def more(conn: Any) -> None:
        run(conn, "CREATE TEMPORARY TABLE mine AS SELECT 1 AS n")  # so that it is called after each cleaning

    short = ONE.replace(create_timeout=1.0, reset_timeout=1.0, health_check_timeout=1.0, validation_interval=0.0)
    for options in ({"configure": look}, {"configure": more}, {"check": look}, {"reset": look}):
        pool = make(settings=short, **options)
        for _ in range(2):
            with pool.acquire() as conn:
                assert run(conn, "SELECT SLEEP(1.2)")[0][0] == 0, options


FREEZES = {
    "check": lambda conn: None,  # by the pool
    "ping": lambda conn: conn.ping(False),
    "commit": lambda conn: conn.commit(),
    "rollback": lambda conn: conn.rollback(),
    "select_db": lambda conn: conn.select_db("other"),
}


@pytest.mark.parametrize("what", FREEZES)
def test_commands_of_pymysql_that_are_no_queries_are_limited(server: MariaDBServer, what: str) -> None:
    limits: dict[str, Any] = {"check": FREEZES["ping"]} if what == "check" else {"command_timeout": 1.0}
    settings = ONE.replace(health_check_timeout=1.0, validation_interval=0.0)
    failed: list[BaseException] = []

    def use() -> None:
        with pytest.raises((CommandTimeout, PoolTimeout)) as error, pool.acquire(3.0) as conn:
            server.pause()
            FREEZES[what](conn)
        failed.append(error.value)

    with MySQLPool(url(server), settings, driver="pymysql", **limits) as pool:
        pool.acquire().release()
        thread = threading.Thread(target=use, daemon=True)
        if what == "check":
            server.pause()
        thread.start()
        thread.join(20.0)
        server.proceed()
        thread.join(20.0)
        assert [type(error) for error in failed] == [PoolTimeout if what == "check" else pool.driver.command_timeout]


@pytest.mark.parametrize("driver", ["pymysql", "connector"])
@pytest.mark.parametrize("what", ["begin", "commit"])
def test_time_limit_of_the_connection_applies_to_the_ends_of_a_transaction(
    make: Make, server: MariaDBServer, driver: str, what: str
) -> None:
    failed: list[BaseException] = []
    pool = make(kwargs={"read_timeout": 1, "write_timeout": 1})

    def use() -> None:
        with pytest.raises(pool.driver.operational) as error:
            if what == "begin":
                with pool.acquire() as conn:
                    server.pause()
                    with Transaction(pool, conn, isolation_level="SERIALIZABLE"):
                        pass
            else:
                with pool.connection() as conn:
                    run(conn, "INSERT INTO t VALUES (1)")
                    server.pause()
        failed.append(error.value)

    thread = threading.Thread(target=use, daemon=True)
    thread.start()
    thread.join(20.0)
    ended = not thread.is_alive()
    server.proceed()
    thread.join(20.0)
    assert ended and isinstance(failed[0], CommitUnknown) == (what == "commit")


@pytest.mark.parametrize("driver", ["pymysql", "mysqlclient"])
def test_lost_connection_is_known_as_lost_after_its_cursor_was_closed(server: MariaDBServer, driver: str) -> None:
    """mysqlclient forgets it then; and its ``change_user()``, which cleans a session, writes into freed memory."""
    needs_mysqlclient(driver)
    used = load_driver(driver, None)
    conn = used.connect(used.complete({"host": "127.0.0.1", "port": server.port, "user": "root"}, 5.0, None))
    server.ask(f"KILL {used.thread_id(conn)}")
    cursor = conn.cursor()
    with pytest.raises(used.error):
        for _ in range(100):  # until the server has done so
            cursor.execute("DO 1")
            time.sleep(0.05)
    cursor.close()
    assert not used.is_open(conn)
    used.close(conn)


def test_configure_is_done_again_after_each_cleaning(make: Make) -> None:
    calls = []

    def only_sets(conn: Any) -> None:
        calls.append(1)
        run(conn, "SET @mine = 1")
        run(conn, "SELECT VERSION()")

    def more(conn: Any) -> None:
        run(conn, "CREATE TEMPORARY TABLE mine AS SELECT 1 AS n")

    pool = make(configure=only_sets)
    for _ in range(3):
        assert pool.execute_query("SELECT @mine") == [(1,)]
        with pool.acquire() as conn:
            run(conn, "SET @mine = 2")
    assert len(calls) == 1 or pool.driver.name == "mysqlclient"
    pool = make(configure=more)
    for _ in range(3):
        assert pool.execute_query("SELECT n FROM mine") == [(1,)]
        with pool.acquire() as conn:
            run(conn, "DROP TABLE mine")


def test_arguments_of_the_connection_are_restored(make: Make, server: MariaDBServer, driver: str) -> None:
    pool = make(
        url(server, more="?charset=latin1&autocommit=1&sql_mode=ANSI_QUOTES"), kwargs={"init_command": "SET @mine = 1"}
    )
    for _ in range(3):
        row = pool.execute_query("SELECT @@character_set_client, @@autocommit, @@sql_mode, @mine, DATABASE()")[0]
        assert row == ("latin1", 1, "ANSI_QUOTES", 1, "test")
        with pool.acquire() as conn:
            for sql in ("SET NAMES utf8mb4", "SET autocommit=0", "SET sql_mode=''", "SET @mine=2", "USE other"):
                run(conn, sql)


def test_session_of_a_connection_without_a_database(make: Make, server: MariaDBServer) -> None:
    pool = make(f"mysql://root@127.0.0.1:{server.port}")
    assert pool.execute_query("SELECT DATABASE()") == [(None,)]
    with pool.acquire() as conn:
        run(conn, "USE other")
    assert pool.execute_query("SELECT DATABASE()") == [(None,)]


def test_trust(make: Make, server: MariaDBServer) -> None:
    pool = make(session="trust")
    with pool.acquire() as conn:
        for sql in ("SET @mine=1", "SET autocommit=1", "SET autocommit=0", "INSERT INTO t VALUES (1)"):
            run(conn, sql)
    with pool.acquire() as conn:
        assert run(conn, "SELECT @mine, @@autocommit") == [(1, 0)]
    with pool.connection() as conn:
        run(conn, "SET autocommit=1")
    with pool.acquire() as conn:
        assert run(conn, "SELECT @@autocommit") == [(0,)]
    assert server.ask("SELECT * FROM t") == ()


def test_reset_and_callable_session(make: Make) -> None:
    calls: list[str] = []
    pool = make(reset=lambda conn: calls.append("reset"), session=lambda conn: calls.append("session"))
    with pool.acquire() as conn:
        pass
    with pool.acquire() as conn:
        run(conn, "SELECT 1")
    wait_until(lambda: calls == ["reset", "session", "reset"])
    with pytest.raises(TypeError, match="reset must be callable"):
        make(reset=1)
    with pytest.raises(ValueError, match="session must be 'clean', 'trust' or a callable"):
        make(session="dirty")


def test_failed_cleaning_costs_the_connection_only(make: Make) -> None:
    def reset(conn: Any) -> None:
        raise ZeroDivisionError

    pool = make(reset=reset)
    for _ in range(3):
        with pool.acquire() as conn:
            run(conn, "SELECT 1")
    wait_until(lambda: pool.metrics.snapshot().closed.get("reset", 0) >= 2)


def test_half_read_result(make: Make, driver: str) -> None:
    if driver == "mysqlclient":
        from MySQLdb.cursors import SSCursor as Unbuffered
    elif driver == "connector":
        from mysql.connector.cursor import MySQLCursor as Unbuffered
    else:
        from pymysql.cursors import SSCursor as Unbuffered
    pool = make()
    kept = []
    with pytest.raises(Exception, match="half-read result|out of sync"), pool.connection() as conn:
        cursor = pool.driver.cursor(conn, Unbuffered)
        cursor.execute("SELECT seq FROM seq_1_to_100000")
        assert cursor.fetchone() == (1,)
        kept.append(cursor)
    with pool.acquire() as conn:
        cursor = pool.driver.cursor(conn, Unbuffered)
        cursor.execute("SELECT seq FROM seq_1_to_100000")
        kept.append(cursor)
    assert pool.execute_query("SELECT 1") == [(1,)]


# -- errors --------------------------------------------------------------------------


def test_changed_record_that_is_caught_is_not_committed(make: Make, server: MariaDBServer) -> None:
    """With innodb_snapshot_isolation, the default since MariaDB 11.6.2, the server rolls back as after a deadlock."""
    pool = make(configure=lambda conn: run(conn, "SET innodb_snapshot_isolation = 1"))
    server.ask("INSERT INTO t VALUES (1), (2)")
    with pytest.raises(TransactionRolledBack, match="what failed: UPDATE t"), pool.connection() as conn:
        run(conn, "INSERT INTO t VALUES (10)")
        run(conn, "SELECT * FROM t")
        server.ask("UPDATE t SET n = 3 WHERE n = 1")
        with pytest.raises(pool.driver.error) as caught:
            run(conn, "UPDATE t SET n = 4 WHERE n = 1 OR n = 3")
        assert code(caught.value) == 1020
        run(conn, "INSERT INTO t VALUES (11)")
    assert pool.execute_query("SELECT n FROM t ORDER BY n") == [(2,), (3,)]


def test_deadlock_that_is_caught_is_not_committed(make: Make, server: MariaDBServer) -> None:
    """The server has rolled back all that came before it."""
    pool = make(settings=ONE.replace(max_size=2))
    server.ask("INSERT INTO t VALUES (1), (2)")
    barrier = threading.Barrier(2)
    outcomes: list[str] = []

    def work(first: int, second: int) -> None:
        try:
            with pool.connection() as conn:
                run(conn, f"INSERT INTO t VALUES ({10 * first})")
                run(conn, f"UPDATE t SET n = n WHERE n = {first}")
                barrier.wait(30)
                try:
                    run(conn, f"UPDATE t SET n = n WHERE n = {second}")
                except pool.driver.error as error:
                    assert code(error) == 1213
                    run(conn, "INSERT INTO t VALUES (100)")
            outcomes.append("committed")
        except TransactionRolledBack as error:
            assert isinstance(error, pool.driver.operational)
            outcomes.append(str(error).partition("what failed: ")[2])

    threads = [threading.Thread(target=work, args=pair) for pair in ((1, 2), (2, 1))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(outcomes) == ["UPDATE t SET n = n WHERE n = ?", "committed"]
    rows = {row[0] for row in server.ask("SELECT n FROM t")}
    assert 100 not in rows and len(rows) == 3


def test_rollback_makes_the_block_usable_again(make: Make, server: MariaDBServer) -> None:
    pool = make()
    with pool.connection() as conn:
        notes_of(conn).failed = "a statement"  # as after a deadlock
        conn.rollback()
        run(conn, "INSERT INTO t VALUES (1)")
    with pool.connection() as conn:
        notes_of(conn).failed = "a statement"
        run(conn, "ROLLBACK")
        run(conn, "INSERT INTO t VALUES (2)")
    assert server.ask("SELECT n FROM t") == ((1,), (2,))


def test_run_repeats_after_a_lock_wait_timeout(make: Make, server: MariaDBServer) -> None:
    pool = make(configure=lambda conn: run(conn, "SET innodb_lock_wait_timeout=1"))
    server.ask("INSERT INTO t VALUES (1)")
    blocker = server.connect()
    blocker.query("UPDATE t SET n = n WHERE n = 1")
    runs = []

    def work(conn: Any) -> str:
        runs.append(1)
        if len(runs) == 2:
            blocker.rollback()
        run(conn, "UPDATE t SET n = 2 WHERE n = 1")
        return "done"

    assert pool.run(work) == "done"
    assert len(runs) == 2
    blocker.query("UPDATE t SET n = n WHERE n = 2")
    with pytest.raises(Exception, match="Lock wait timeout"):
        pool.run(lambda conn: run(conn, "UPDATE t SET n = 3 WHERE n = 2"), retries=0)
    blocker.close()
    with pytest.raises(TypeError, match="retries must be a whole number"):
        pool.run(work, retries="1")  # type: ignore[arg-type]


def test_errors_are_also_the_drivers(make: Make) -> None:
    driver = make().driver
    for made, base in (
        (driver.commit_unknown, CommitUnknown), (driver.command_timeout, CommandTimeout),
        (driver.rolled_back, TransactionRolledBack),
    ):  # fmt: skip
        error = made("why")
        assert isinstance(error, base) and isinstance(error, driver.operational) and "why" in str(error)
        assert type(error).__module__ == "pooling"
    assert isinstance(driver.command_timeout("why"), TimeoutError)


# -- time limits ---------------------------------------------------------------------


def test_command_timeout_is_the_servers(make: Make) -> None:
    pool = make(command_timeout=2.0)
    began = time.monotonic()
    with pytest.raises(Exception, match="max_statement_time") as caught, pool.connection() as conn:
        run(conn, "SELECT SLEEP(30)")
    assert code(caught.value) == 1969 and not isinstance(caught.value, CommandTimeout)
    assert time.monotonic() - began < 12
    assert pool.execute_query("SELECT @@max_statement_time") == [(1.8,)]  # again, after the cleaning
    with pytest.raises(ValueError, match="command_timeout must be from 0.01"):
        make(command_timeout=0)


def test_command_timeout_of_a_server_that_does_not_stop(make: Make, server: MariaDBServer) -> None:
    server.ask("INSERT INTO t VALUES (1)")
    blocker = server.connect()
    blocker.query("UPDATE t SET n = n")
    pool = make(command_timeout=1.0)
    number = pool.execute_query("SELECT CONNECTION_ID()")[0][0]
    began = time.monotonic()
    limited = pytest.raises(CommandTimeout, match="a command took over 1 s, and the server did not answer")
    with limited, pool.connection() as conn:
        run(conn, "SET max_statement_time=0")
        run(conn, "UPDATE t SET n = 2")  # a wait for a lock does not notice a client that has gone
    assert time.monotonic() - began < 12
    listed = f"SELECT id FROM information_schema.processlist WHERE id = {number}"
    wait_until(lambda: not server.ask(listed), 20)  # it was ended there, too
    assert pool.execute_query("SELECT 1") == [(1,)]
    blocker.close()


def test_timeout_of_a_call(make: Make, driver: str) -> None:
    pool = make()
    if driver != "mysqlclient":  # whose calls cannot be limited one by one
        with pytest.raises(CommandTimeout, match=r"not done within 0.5 s"):
            pool.execute_query("SELECT SLEEP(30)", timeout=0.5)
    with pool.acquire(), pytest.raises(PoolTimeout):
        pool.execute_query("SELECT 1", timeout=0.1)
    assert pool.execute_query("SELECT SLEEP(0.7)", timeout=None) == [(0,)]


# -- addresses -----------------------------------------------------------------------


def test_urls_and_names_of_drivers(server: MariaDBServer) -> None:
    for scheme, name in (
        ("mysql", "pymysql"), ("mariadb", "pymysql"), ("mysql+pymysql", "pymysql"),
        ("mariadb+mysqlconnector", "connector"),
    ):  # fmt: skip
        with pooling.from_url(f"{scheme}://root@127.0.0.1:{server.port}/test?max_size=3") as pool:
            assert isinstance(pool, MySQLPool)
            assert (pool.driver.name, pool.settings.max_size) == (name, 3)
            assert pool.execute_query("SELECT DATABASE()") == [("test",)]
    with MySQLPool(kwargs={"host": "127.0.0.1", "port": server.port, "user": "root"}) as pool:
        assert pool.execute_query("SELECT 1") == [(1,)]
    with pytest.raises(ValueError, match="driver must be one of 'pymysql', 'connector', 'mysqlclient' or None"):
        MySQLPool(driver="odbc")


def test_address_of_the_environment(server: MariaDBServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", url(server))
    with MySQLPool() as pool:
        assert pool.execute_query("SELECT DATABASE()") == [("test",)]
    monkeypatch.setenv("DATABASE_URL", "postgresql://u:s3cret@h/db")
    with pytest.raises(ValueError, match="DATABASE_URL must be a URL that begins with mysql://") as caught:
        MySQLPool()
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("mysql://u:s3c/ret@h/db", "user and password must be percent-encoded"),
        ("mysql://u:s3cret@h:x/db", "the port is not a number"),
        ("mysql://u:s3cret@h:70000/db", "the port must be from 1 to 65535"),
        ("mysql://u:s3cret@a,b/db", "it must have one host"),
        ("mysql://u:s3cret@h/db?nope=1", "unknown parameter 'nope'"),
        ("mysql://u:s3cret@h/db?autocommit=maybe", "invalid value: autocommit='maybe'"),
        ("mysql://u:s3cret@h/db?ssl-mode=on", "ssl-mode must be one of DISABLED, PREFERRED"),
        ("mysql://u:s3cret@h/db?ssl_cert=a#s3cret", "parameters must be percent-encoded"),
        ("oracle://u:s3cret@h/db", "must be a URL that begins with mysql://"),
    ],
)
def test_malformed_address_is_refused_by_its_rule(text: str, rule: str) -> None:
    with pytest.raises(ValueError, match=rule) as caught:
        MySQLPool(text, driver="pymysql")
    assert "s3c" not in str(caught.value)


def test_password_with_all_kinds_of_characters(make: Make, server: MariaDBServer) -> None:
    server.ask("CREATE OR REPLACE USER odd@localhost IDENTIFIED BY %s", "p@s/s:w?d#&%")
    server.ask("GRANT ALL ON test.* TO odd@localhost")
    pool = make(url(server, "odd:p%40s%2Fs%3Aw%3Fd%23&%25"))
    assert pool.execute_query("SELECT 1") == [(1,)]
    assert "p@s" not in repr(pool) and "p@s" not in str(pool.stats())


def test_wrong_password_is_final_and_secret(make: Make, server: MariaDBServer) -> None:
    server.ask("CREATE OR REPLACE USER guarded@localhost IDENTIFIED BY 's3cret'")
    pool = make(url(server, "guarded:wr0ng"))
    began = time.monotonic()
    with pytest.raises(CreateFailed) as caught:
        pool.acquire()
    assert code(caught.value.__cause__ or caught.value) == 1045 and "wr0ng" not in str(caught.value)
    assert time.monotonic() - began < 15


def test_rotation(make: Make, server: MariaDBServer) -> None:
    server.ask("CREATE OR REPLACE USER turning@localhost IDENTIFIED BY 'one'")
    server.ask("GRANT ALL ON test.* TO turning@localhost")
    password = ["one"]
    pool = make(lambda: url(server, f"turning:{password[0]}"), ONE.replace(max_size=2))
    first = pool.execute_query("SELECT CONNECTION_ID()")
    wait_until(lambda: pool.stats()["idle"] == 1)  # mysqlclient's is cleaned by a worker, with the first password
    server.ask("ALTER USER turning@localhost IDENTIFIED BY 'two'")
    assert pool.execute_query("SELECT CONNECTION_ID()") == first
    with pytest.raises(PoolTimeout):  # not final: the callable may return another one
        pool.rotate(timeout=1.0)
    if pool.driver.name != "mysqlclient":  # which logs in again to clean a session
        assert pool.execute_query("SELECT CONNECTION_ID()") == first  # the old ones are kept
    password[0] = "two"
    pool.rotate()
    assert pool.execute_query("SELECT CONNECTION_ID()") != first


def test_new_credentials_replace_all_connections(make: Make, server: MariaDBServer) -> None:
    users = ["root"]
    server.ask("CREATE OR REPLACE USER blue@localhost")
    server.ask("GRANT ALL ON test.* TO blue@localhost")
    pool = make(lambda: url(server, users[0]), ONE.replace(max_size=2))
    with pool.acquire():
        users[0] = "blue"
        with pool.acquire() as conn:
            assert run(conn, "SELECT SUBSTRING_INDEX(USER(), '@', 1)") == [("blue",)]
    for _ in range(3):
        assert pool.execute_query("SELECT SUBSTRING_INDEX(USER(), '@', 1)") == [("blue",)]


def test_tls(make: Make, server: MariaDBServer, authority: Authority, driver: str) -> None:
    def cipher(pool: MySQLPool) -> str:
        return str(pool.execute_query("SHOW STATUS LIKE 'Ssl_cipher'")[0][1])

    secure = make(url(server, more=f"?ssl-mode=VERIFY_IDENTITY&ssl_ca={authority.file}"))
    assert cipher(secure)
    for _ in range(3):  # cleaned over TLS
        with secure.connection() as conn:
            run(conn, "SET @mine = 1")
        assert secure.execute_query("SELECT @mine") == [(None,)]
    assert secure.metrics.snapshot().created == 1
    assert cipher(make(url(server, more="?ssl-mode=REQUIRED")))
    assert not cipher(make(url(server, more="?ssl-mode=DISABLED")))
    number = secure.execute_query("SELECT CONNECTION_ID()")[0][0]
    wait_until(lambda: secure.stats()["idle"] == 1)  # cleaned
    server.ask(f"KILL {number}")
    wait_until(lambda: not server.ask(f"SELECT 1 FROM information_schema.processlist WHERE id = {number}"))
    assert secure.execute_query("SELECT 1") == [(1,)]  # the end of a TLS session is seen, too


def test_tls_that_the_server_lacks_is_not_left_out(mariadb: MariaDBServer, driver: str) -> None:
    pool = MySQLPool(url(mariadb, more="?ssl-mode=REQUIRED"), ONE, driver=driver)
    with pytest.raises(pooling.PoolError, match="(?i)TLS|SSL"):
        pool.acquire(timeout=2.0)
    pool.close()


# -- observation ---------------------------------------------------------------------


def test_statistics_and_health(make: Make) -> None:
    pool = make(query_statistics=True)
    pool.execute_query("SELECT %s", ("s3cret",))
    with pytest.raises(Exception, match="doesn't exist"):
        pool.execute_query("SELECT * FROM nope")
    stats = pool.get_pool_stats()
    queries = stats["queries"]
    assert queries["errors_by_code"] == {"1146": 1} and queries["count"] >= 2
    assert "s3cret" not in str(stats)
    assert stats["current_state"]["max_size"] == 1
    assert pool.probe() is None
    manager = PoolManager()
    manager.add_pool(pool, "db")
    assert manager.health_check(30.0)["db"].status == "up"
    manager.remove_pool("db") if hasattr(manager, "remove_pool") else None


@pytest.mark.parametrize(
    ("query", "text"),
    [
        ("SELECT `a'b` = 'it''s' -- mine\n AND d = \"x\\\"y\"", "SELECT `a'b` = '?' AND d = '?'"),
        ("INSERT INTO t2 VALUES (1, 2.5, 0xFF) # 's3cret", "INSERT INTO t2 VALUES (?, ?, ?)"),
        ("SELECT /* 's */ 1--2, @a1, x\\'y", "SELECT ?--?, @a1, x\\'?'"),
        (b"SELECT 'not closed", "SELECT '?'"),
    ],
)  # fmt: skip
def test_texts_contain_no_literals(query: Any, text: str) -> None:
    assert text_of(query) == text


def test_advice(make: Make, server: MariaDBServer) -> None:
    server.ask("CREATE OR REPLACE USER few@localhost WITH MAX_USER_CONNECTIONS 5")
    server.ask("GRANT ALL ON test.* TO few@localhost")
    pool = make(url(server, "few"), ONE.replace(max_size=3, min_size=1))
    fine = pool.advise(workers=1)
    assert not fine.breaks and f"at 127.0.0.1:{server.port}" in str(fine) and "MariaDB" in str(fine)
    report = pool.advise(workers=2)
    assert [one.what for one in report.findings if one.level == "breaks"] == [
        "2 workers x max_size 3 = 6 connections, but max_user_connections of this user is 5"
    ]
    assert "the server accepts only 151" in str(make(settings=ONE.replace(max_size=200)).advise(1))
    with pytest.raises(TypeError, match="workers must be a whole number"):
        pool.advise(workers="2")  # type: ignore[arg-type]


def test_validation_query_and_check(make: Make) -> None:
    assert make(settings=ONE.replace(validation_interval=0.0), validation_query="SELECT 2").probe() is None
    checked: list[Any] = []
    pool = make(settings=ONE.replace(validation_interval=0.0), check=checked.append)
    for _ in range(2):
        pool.execute_query("SELECT 1")
    assert checked
    broken = make(settings=ONE.replace(validation_interval=0.0), validation_query="SELECT nope")
    with pytest.raises(Exception, match="nope"):
        broken.probe(5.0)


def test_server_that_takes_one_command_at_a_time(
    make: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As some proxies do, which never answer the others."""
    exchange = drivers.exchange

    def first_only(sock: Any, commands: bytes, count: int, timeout: float | None) -> Any:
        length = 4 + commands[0] + (commands[1] << 8)
        return exchange(sock, commands[:length], count, timeout)

    monkeypatch.setattr(drivers, "exchange", first_only)
    monkeypatch.setattr(session, "PROBE", 0.5)
    pool = make()
    with pool.acquire() as conn:
        run(conn, "SET @mine = 1")
    assert pool.execute_query("SELECT @mine") == [(None,)]
    if pool.driver.pipelines:
        assert "does not answer several commands at once" in caplog.text
        assert pool.metrics.snapshot().closed == {}


def test_server_without_a_reset(
    make: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pool = make()
    if not pool.driver.pipelines:
        return
    monkeypatch.setattr(session, "RESET", 0x7F)  # a command that no server knows
    with pool.acquire() as conn:
        run(conn, "SET @mine = 1")
    with pool.acquire():
        pass
    with pool.acquire():
        pass
    assert pool.execute_query("SELECT @mine") == [(None,)]
    assert "cannot reset a session: each connection that was used is closed" in caplog.text
    assert pool.metrics.snapshot().closed == {"no reset": 1}

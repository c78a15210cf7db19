"""Django's MySQL engine on our pools, with a real server and real requests."""

from __future__ import annotations

import functools
import io
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import pooling
from tests.integration.tools import ROOT, environment, wait_until
from tests.mariadb import MariaDBServer, needs_mariadb, needs_mysqlclient
from tests.proxy import Proxy
from tests.servers import LOOPBACK, PostgresServer

PYMYSQL = os.environ.get("TEST_WITH_PYMYSQL") == "1"
"""Whether this is the run of `test_all_of_this_with_pymysql`."""

django = pytest.importorskip("django")  # installed in CI: see test_django.py
if PYMYSQL:
    import pymysql

    pymysql.install_as_MySQLdb()

from django.core.exceptions import ImproperlyConfigured  # noqa: E402
from django.core.management import call_command  # noqa: E402
from django.core.management.base import CommandError, SystemCheckError  # noqa: E402
from django.db import transaction  # noqa: E402
from django.http import HttpResponse, StreamingHttpResponse  # noqa: E402
from django.test import override_settings  # noqa: E402

from tests.integration import django_site  # noqa: E402
from tests.integration.django_site import SECRET, alter, end_of_request, one, route  # noqa: E402
from tests.integration.test_django import Answer, ids  # noqa: E402

ALIAS = "mysql"


@pytest.fixture(scope="module", autouse=True)
def site(
    postgres: PostgresServer, mariadb: MariaDBServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[None]:
    """The site of the other tests, with one database more."""
    with django_site.running(postgres, tmp_path_factory):
        mariadb.ask("CREATE DATABASE django_site")
        mariadb.ask("CREATE TABLE django_site.item (id int PRIMARY KEY, name text, at datetime(6) DEFAULT now())")
        mariadb.ask("INSERT INTO django_site.item (id, name) SELECT seq, concat('item ', seq) FROM test.seq_1_to_5000")
        connections = django.db.connections
        connections.databases[ALIAS] = connections.configure_settings({**connections.databases, ALIAS: {
            "ENGINE": "pooling.web.django.mysql", "NAME": "django_site", "USER": "root", "PASSWORD": SECRET,
            "HOST": LOOPBACK, "PORT": mariadb.port, "OPTIONS": {"pool": {"max_size": 2, "acquire_timeout": 5}},
        }})[ALIAS]  # fmt: skip
        try:
            yield
        finally:
            connections[ALIAS].close()
            connections[ALIAS].close_pool()
            del connections[ALIAS], connections.databases[ALIAS]
            mariadb.ask("DROP DATABASE django_site")


@pytest.fixture(autouse=True)
def nothing_left(site: None) -> Iterator[None]:
    """Each test begins and ends without a lease in use."""
    yield
    django.db.close_old_connections()
    django_site.check_nothing_is_lent()


@pytest.fixture
def connection(site: None) -> Any:
    return django.db.connections[ALIAS]


@pytest.fixture(scope="module")
def item(site: None) -> Any:
    """A model."""
    from django.db import models

    class MySQLItem(models.Model):
        id = models.IntegerField(primary_key=True)
        name = models.TextField()
        at = models.DateTimeField()

        class Meta:
            app_label = "pooling"
            db_table = "item"
            managed = False

    return MySQLItem.objects.using(ALIAS)


SESSION = "SELECT CONNECTION_ID()"


# -- a request and its connection --------------------------------------------------


def test_acquires_at_the_first_query_and_releases_at_the_end(connection: Any) -> None:
    assert isinstance(connection.pool, pooling.MySQLPool)
    assert connection.pool.stats()["in_use"] == 0
    first = one(connection, SESSION)
    assert connection.pool.stats()["in_use"] == 1
    end_of_request()
    assert connection.pool.stats()["in_use"] == 0
    assert connection.connection is None
    assert one(connection, SESSION) == first


def test_a_request_sends_only_its_own_statements(connection: Any, item: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Django's engine sets the isolation level each time; here the cleaning does it."""
    one(connection, "SELECT 1")
    kind = type(connection.connection)
    end_of_request()
    wait_until(lambda: connection.pool.stats()["idle"] > 0)  # mysqlclient's are cleaned by a worker
    sent: list[str] = []
    original = kind.query

    def query(self: Any, sql: Any, *args: Any) -> Any:
        sent.append(sql if isinstance(sql, str) else bytes(sql).decode())
        return original(self, sql, *args)

    with connection.pool.acquire() as conn:
        assert conn.get_autocommit()  # so Django does not have to set it
    monkeypatch.setattr(kind, "query", query)
    assert item.filter(id__lt=10).count() == 9
    assert [sql.split()[0] for sql in sent] == ["SELECT"]


def test_a_streamed_response_keeps_its_connection_until_the_last_piece(connection: Any, item: Any) -> None:
    route(lambda request: StreamingHttpResponse(f"{one.id}\n" for one in item.iterator(chunk_size=100)))
    answer = Answer()
    parts = iter(answer.parts)
    assert next(parts) == b"1\n"
    assert connection.pool.stats()["in_use"] == 1
    assert len(list(parts)) == 4999
    answer.close()
    assert connection.pool.stats()["in_use"] == 0


def test_a_client_that_disconnects_early(connection: Any, item: Any) -> None:
    route(lambda request: StreamingHttpResponse(f"{one.id}\n" for one in item.iterator(chunk_size=100)))
    for _ in range(5):  # more often than there are connections
        answer = Answer()
        assert next(iter(answer.parts)) == b"1\n"
        answer.close()
        assert connection.pool.stats()["in_use"] == 0
    assert one(connection, "SELECT 1") == 1


@pytest.mark.filterwarnings("ignore")
def test_atomic_requests(connection: Any, monkeypatch: pytest.MonkeyPatch, mariadb: MariaDBServer) -> None:
    def view(request: Any) -> HttpResponse:
        with connection.cursor() as cursor:
            cursor.execute("INSERT INTO item (id, name) VALUES (%s, 'atomic')", [int(request.GET["id"])])
        if "fail" in request.GET:
            raise ValueError("roll back")
        return HttpResponse("done")

    alter(monkeypatch, connection, ATOMIC_REQUESTS=True)
    route(view)
    import logging

    logging.getLogger("django.request").disabled = True
    for path in ("/?id=7001", "/?id=7002&fail=1"):
        Answer(path).close()
    logging.getLogger("django.request").disabled = False
    assert connection.pool.stats()["in_use"] == 0
    assert mariadb.ask("SELECT id FROM django_site.item WHERE id > 7000") == ((7001,),)
    mariadb.ask("DELETE FROM django_site.item WHERE id > 7000")


class Sets:
    """Counts how many SET statements the server has executed since; look only while nobody else uses it."""

    def __init__(self, server: MariaDBServer) -> None:
        self._server = server
        first, self._last = self._look(), self._look()
        self._own = self._last - first  # the looking one's

    def _look(self) -> int:
        return int(self._server.ask("SHOW GLOBAL STATUS LIKE 'Com_set_option'")[0][1])

    def number(self) -> int:
        """Return how many there were since the last call."""
        before, self._last = self._last, self._look()
        return self._last - before - self._own


def insert(connection: Any, number: int) -> None:
    with connection.cursor() as cursor:
        cursor.execute("INSERT INTO item (id, name) VALUES (%s, 'atomic')", [number])


def test_atomic_blocks_one_after_the_other_turn_autocommit_off_once(connection: Any, mariadb: MariaDBServer) -> None:
    number = one(connection, SESSION)
    sets = Sets(mariadb)
    for each in range(3):
        with transaction.atomic(using=ALIAS):
            insert(connection, 7100 + each)
    with pytest.raises(KeyError), transaction.atomic(using=ALIAS):
        insert(connection, 7103)
        raise KeyError
    assert connection.get_autocommit() and connection.connection.get_autocommit()
    assert sets.number() == 1
    assert mariadb.ask("SELECT COUNT(*) FROM django_site.item WHERE id > 7099") == ((3,),)
    end_of_request()
    wait_until(lambda: connection.pool.stats()["idle"] > 0)
    insert(connection, 7104)  # autocommit is on again
    assert one(connection, SESSION) == number
    assert mariadb.ask("SELECT COUNT(*) FROM django_site.item WHERE id > 7099") == ((4,),)
    mariadb.ask("DELETE FROM django_site.item WHERE id > 7000")


def test_a_query_after_an_atomic_block_commits_itself(connection: Any, mariadb: MariaDBServer) -> None:
    connection.ensure_connection()
    sets = Sets(mariadb)
    with transaction.atomic(using=ALIAS):
        insert(connection, 7200)
    assert sets.number() == 1
    insert(connection, 7201)
    insert(connection, 7202)
    assert sets.number() == 1
    assert mariadb.ask("SELECT COUNT(*) FROM django_site.item WHERE id >= 7200") == ((3,),)
    mariadb.ask("DELETE FROM django_site.item WHERE id > 7000")


def test_autocommit_turned_on_within_a_transaction_commits_at_once(connection: Any, mariadb: MariaDBServer) -> None:
    transaction.set_autocommit(False, using=ALIAS)
    insert(connection, 7300)
    transaction.set_autocommit(True, using=ALIAS)
    assert mariadb.ask("SELECT id FROM django_site.item WHERE id = 7300") == ((7300,),)
    transaction.set_autocommit(False, using=ALIAS)
    insert(connection, 7301)
    end_of_request()
    assert mariadb.ask("SELECT id FROM django_site.item WHERE id >= 7300") == ((7300,),)
    mariadb.ask("DELETE FROM django_site.item WHERE id >= 7300")


def test_autocommit_that_could_not_be_turned_on_is_turned_on_with_the_query_after(
    connection: Any, mariadb: MariaDBServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with transaction.atomic(using=ALIAS):
        insert(connection, 7400)
    *_, driver = (  # the pool's own class has the name of the driver's
        each for each in type(connection.connection).__mro__
        if each.__name__ == "Connection" and each.__module__ in ("pymysql.connections", "MySQLdb.connections")
    )  # fmt: skip

    def interrupted(conn: Any, value: object) -> None:
        raise connection.Database.OperationalError(1317, "Query execution was interrupted")

    with monkeypatch.context() as patch:
        patch.setattr(driver, "autocommit", interrupted)
        with pytest.raises(django.db.OperationalError, match="interrupted"):
            insert(connection, 7401)
    sets = Sets(mariadb)
    insert(connection, 7402)
    assert sets.number() == 1
    assert mariadb.ask("SELECT id FROM django_site.item WHERE id >= 7400") == ((7400,), (7402,))
    mariadb.ask("DELETE FROM django_site.item WHERE id > 7000")


def test_autocommit_stays_due_wherever_turning_it_on_is_interrupted(connection: Any, mariadb: MariaDBServer) -> None:
    """A time limit by a signal, for example: the view may go on."""
    for number in range(1, 10):
        with transaction.atomic(using=ALIAS):
            insert(connection, 7500 + 10 * number)
        lines = 0

        def trace(frame: Any, event: str, argument: object, number: int = number) -> Any:
            nonlocal lines
            ours = frame.f_code.co_name == "catch_up"
            if ours and event == "line":
                lines += 1
                if lines == number:
                    raise KeyboardInterrupt
            return trace if ours else None

        before = sys.gettrace()
        sys.settrace(trace)
        try:
            one(connection, "SELECT 1")
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(before)
        assert connection.connection.get_autocommit(), number
        if lines < number:
            break
        connection.close()
    assert number > 2
    mariadb.ask("DELETE FROM django_site.item WHERE id > 7000")


def test_errors_of_a_closed_connection_are_djangos(connection: Any) -> None:
    for value in (False, True):
        transaction.set_autocommit(not value, using=ALIAS)
        connection.connection.close()
        with pytest.raises(django.db.Error):
            transaction.set_autocommit(value, using=ALIAS)
        connection.close()


def test_pymysql_as_mysqldb_has_one_set_of_errors() -> None:
    """Otherwise each error of a statement would cost the connection."""
    code = (
        "import pymysql; pymysql.install_as_MySQLdb(); import MySQLdb.converters\n"
        "from pooling.adapters.mysql import pymysql as ours\n"
        "assert ours.err.MySQLError is pymysql.MySQLError"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, timeout=60)


def test_threads_share_the_pool(connection: Any) -> None:
    seen = []

    def work() -> None:
        for _ in range(20):
            seen.append(one(django.db.connections[ALIAS], SESSION))
            end_of_request()

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 120
    assert len(set(seen)) <= 2


def test_savepoints_and_errors(connection: Any, item: Any) -> None:
    with transaction.atomic(using=ALIAS):
        item.filter(id=1).update(name="changed")
        with pytest.raises(django.db.IntegrityError), transaction.atomic(using=ALIAS):
            item.create(id=1, name="twice", at="2020-01-01T00:00:00Z")
        assert item.get(id=1).name == "changed"
        transaction.set_rollback(True, using=ALIAS)
    assert item.get(id=1).name == "item 1"
    with pytest.raises(django.db.ProgrammingError):
        one(connection, "SELECT * FROM nowhere")
    with pytest.raises(django.db.OperationalError):
        one(connection, "SELECT nothing")
    assert connection.is_usable()


def test_select_for_update_and_a_deadlock(connection: Any, item: Any) -> None:
    """Each of two locks one row and then the other's."""
    met, outcomes = threading.Barrier(2, timeout=30), []

    def work(first: int, second: int) -> None:
        try:
            with transaction.atomic(using=ALIAS):
                item.select_for_update().get(id=first)
                met.wait()
                item.select_for_update().get(id=second)
            outcomes.append("done")
        except django.db.OperationalError as error:
            outcomes.append(str(error.args[0]))
        finally:
            end_of_request()

    threads = [threading.Thread(target=work, args=ids) for ids in ((1, 2), (2, 1))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["1213", "done"]


def test_closing_inside_an_atomic_block_is_deferred(connection: Any) -> None:
    with pytest.raises(django.db.ProgrammingError), transaction.atomic(using=ALIAS):
        one(connection, "SELECT 1")
        django.db.close_old_connections()
        one(connection, "SELECT 1")
    connection.close()


def test_a_transaction_left_open_is_rolled_back(connection: Any) -> None:
    connection.set_autocommit(False)
    with connection.cursor() as cursor:
        cursor.execute("DELETE FROM item")
    end_of_request()
    assert one(connection, "SELECT count(*) FROM item") == 5000
    assert connection.get_autocommit()
    assert one(connection, "SELECT @@autocommit") == 1


# -- cleaning ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dirty", "look"),
    [
        ("SET @tenant = 7", "SELECT @tenant"),
        ("SET sql_mode = ''", "SELECT @@sql_mode"),
        ("SET time_zone = '+09:00'", "SELECT @@time_zone"),
        ("SET foreign_key_checks = 0", "SELECT @@foreign_key_checks"),
        ("SET sql_auto_is_null = 1", "SELECT @@sql_auto_is_null"),
        ("SET SESSION TRANSACTION ISOLATION LEVEL SERIALIZABLE", "SELECT @@tx_isolation"),
        ("SET NAMES latin1", "SELECT @@character_set_client"),
        ("USE test", "SELECT DATABASE()"),
        ("SELECT GET_LOCK('mine', 0)", "SELECT IS_USED_LOCK('mine')"),
    ],
)
def test_session_state_of_a_view_is_cleaned(connection: Any, dirty: str, look: str) -> None:
    def ask() -> Any:
        found = one(connection, SESSION), one(connection, look)
        end_of_request()
        return found

    before = ask()
    with connection.cursor() as cursor:
        cursor.execute(dirty)
        cursor.execute(look)
        assert cursor.fetchone()[0] != before[1]
    end_of_request()
    after = ask()
    assert after[1] == before[1]
    if connection.pool.driver.name == "pymysql":
        assert after == before


def test_a_temporary_table_is_cleaned(connection: Any) -> None:
    with connection.cursor() as cursor:
        cursor.execute("CREATE TEMPORARY TABLE mine (a int)")
    end_of_request()
    with pytest.raises(django.db.ProgrammingError):
        one(connection, "SELECT count(*) FROM mine")


def test_trust(connection: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the transaction is ended."""
    alter(monkeypatch, connection, OPTIONS={"pool": {"session": "trust"}})
    with connection.cursor() as cursor:
        cursor.execute("SET @tenant = 7")
    connection.set_autocommit(False)
    with connection.cursor() as cursor:
        cursor.execute("DELETE FROM item")
    end_of_request()
    assert one(connection, "SELECT @tenant") == 7
    assert one(connection, "SELECT count(*) FROM item") == 5000


@pytest.mark.parametrize(
    ("level", "expected"), [(None, "REPEATABLE-READ"), ("Serializable", "SERIALIZABLE"), ("default", "READ-COMMITTED")]
)
def test_isolation_level(
    connection: Any, monkeypatch: pytest.MonkeyPatch, level: str | None, expected: str
) -> None:
    before = connection.pool
    level_set = {} if level == "default" else {"isolation_level": level}
    alter(monkeypatch, connection, OPTIONS={"pool": {"max_size": 2, "acquire_timeout": 5}, **level_set})
    assert (connection.pool is before) == (level == "default")
    for _ in range(2):
        assert one(connection, "SELECT @@tx_isolation") == expected
        with connection.cursor() as cursor:
            cursor.execute("SET SESSION TRANSACTION ISOLATION LEVEL READ UNCOMMITTED")
        end_of_request()


def test_options_of_the_driver_outlast_the_cleaning(connection: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    alter(monkeypatch, connection, OPTIONS={
        "init_command": "SET @a = 7", "sql_mode": "STRICT_TRANS_TABLES", "charset": "latin1", "connect_timeout": 7,
    })  # fmt: skip
    for _ in range(3):
        with connection.cursor() as cursor:
            cursor.execute("SELECT @a, @@sql_mode, @@character_set_client, DATABASE()")
            assert cursor.fetchone() == (7, "STRICT_TRANS_TABLES", "latin1", "django_site")
            cursor.execute("SET @a = 8, sql_mode = ''")
        end_of_request()


def test_signal_of_a_new_connection(connection: Any) -> None:
    """Sent for each request; what a receiver sets is for that request."""
    from django.db.backends.signals import connection_created

    def receive(connection: Any, **kwargs: Any) -> None:
        if connection.alias == ALIAS:
            with connection.cursor() as cursor:
                cursor.execute("SET @tenant = coalesce(@tenant, 0) + 1")

    connection.close()
    connection_created.connect(receive)
    try:
        for _ in range(2):
            assert one(connection, "SELECT @tenant") == 1
            end_of_request()
    finally:
        connection_created.disconnect(receive)


# -- failures --------------------------------------------------------------------------------


def test_idle_sessions_that_died(connection: Any, mariadb: MariaDBServer) -> None:
    for _ in range(3):
        number = one(connection, SESSION)
        end_of_request()
        wait_until(lambda: connection.pool.stats()["idle"] > 0)
        mariadb.ask(f"KILL {number}")
        listed = f"SELECT 1 FROM information_schema.processlist WHERE id = {number}"
        wait_until(functools.partial(lambda query: not mariadb.ask(query), listed))
        assert one(connection, "SELECT 1") == 1
        end_of_request()


def test_a_session_that_dies_in_a_request(connection: Any, mariadb: MariaDBServer) -> None:
    mariadb.ask(f"KILL {one(connection, SESSION)}")
    with pytest.raises(django.db.OperationalError):
        one(connection, "SELECT 1")
    assert not connection.is_usable()
    broken = connection.pool.metrics.snapshot().closed.get("broken", 0)
    end_of_request()
    wait_until(lambda: connection.pool.metrics.snapshot().closed.get("broken", 0) == broken + 1)
    assert one(connection, "SELECT 1") == 1
    assert connection.is_usable()
    end_of_request()
    assert not connection.is_usable()


def test_a_restarted_server() -> None:
    needs_mariadb()
    settings = {**django.db.connections[ALIAS].settings_dict, "NAME": "test"}
    with MariaDBServer() as server:
        wrapper = type(django.db.connections[ALIAS])({**settings, "PORT": server.port}, "restarted")
        assert one(wrapper, "SELECT 1") == 1
        wrapper.close()
        for end in (server.stop, server.kill):
            end()
            server.start()
            assert one(wrapper, "SELECT 1") == 1
            wrapper.close()
        wrapper.close_pool()


def test_a_network_that_drops_everything(connection: Any, mariadb: MariaDBServer) -> None:
    """While a connection is idle: the next request gets another."""
    with Proxy(mariadb.port) as proxy:
        told = {**connection.settings_dict, "PORT": proxy.port}
        told["OPTIONS"] = {"pool": {"max_size": 1, "acquire_timeout": 60, "health_check_timeout": 2}}
        wrapper = type(connection)(told, "swallowed")
        assert one(wrapper, "SELECT 1") == 1
        wrapper.close()
        time.sleep(0.6)  # later than the pool's trust in a connection that was just used
        proxy.drop()
        if wrapper.pool.driver.enforces_timeouts:
            assert one(wrapper, "SELECT 1") == 1
        wrapper.close()
        wrapper.close_pool()


def test_timeout_is_djangos_error_and_ours(connection: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    alter(monkeypatch, connection, OPTIONS={"pool": {"max_size": 1}})
    one(connection, "SELECT 1")
    connection.pool.reconfigure(acquire_timeout=0.01)
    with pytest.raises(django.db.OperationalError, match=r"django_site.py:\d+ one\(\)") as caught:
        one(connection.copy(), "SELECT 1")
    assert isinstance(caught.value, pooling.PoolTimeout)
    assert SECRET not in str(caught.value)


def test_unknown_database(connection: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    alter(monkeypatch, connection, NAME="no_such_database")
    with pytest.raises(django.db.OperationalError, match="no_such_database") as caught:
        one(connection, "SELECT 1")
    assert isinstance(caught.value, pooling.CreateFailed)
    assert isinstance(caught.value.__cause__, connection.Database.Error)


def test_command_timeout(connection: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    alter(monkeypatch, connection, OPTIONS={"pool": {"command_timeout": 1}})
    began = time.monotonic()
    with pytest.raises(django.db.OperationalError):
        one(connection, "SELECT count(*) FROM test.seq_1_to_3000000 a JOIN test.seq_1_to_3000000 b")
    assert time.monotonic() - began < 20
    end_of_request()
    assert one(connection, "SELECT 1") == 1


def test_changed_settings_create_a_new_pool(connection: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    one(connection, "SELECT 1")
    end_of_request()
    before = connection.pool
    alter(monkeypatch, connection, NAME="test")
    assert one(connection, "SELECT DATABASE()") == "test"
    end_of_request()
    assert connection.pool is not before
    wait_until(lambda: before.stats()["size"] == 0)


def password_of(conn: Any) -> str:
    found = conn._place["password"] if hasattr(conn, "_place") else conn.password
    return found.decode() if isinstance(found, bytes) else str(found)


def test_a_new_password_is_used(connection: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    one(connection, "SELECT 1")
    assert password_of(connection.connection) == SECRET
    end_of_request()
    alter(monkeypatch, connection, PASSWORD="rotated")
    one(connection, "SELECT 1")
    assert password_of(connection.connection) == "rotated"


def test_an_engine_with_changing_passwords_keeps_its_pool(connection: Any) -> None:
    """Each connection uses a new token; the pool stays the same."""
    tokens = iter(range(1000))
    kind = type(connection)

    class Asking(kind):  # type: ignore[misc, valid-type]
        pools = type(kind.pools)()

        def get_connection_params(self) -> dict[str, Any]:
            return {**super().get_connection_params(), "password": f"token {next(tokens)}"}

    asking = Asking(connection.settings_dict, ALIAS)
    used = set()
    for _ in range(2):
        one(asking, "SELECT 1")
        used.add(password_of(asking.connection))
        pool = asking.pool
        asking.close()
        assert asking.pool is pool
        pool.drain()
    asking.close_pool()
    assert len(used) == 2


def test_without_a_pool(connection: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    connection.close()
    alter(monkeypatch, connection, OPTIONS={"pool": False}, CONN_MAX_AGE=60)
    assert connection.pool is None
    assert one(connection, "SELECT @@tx_isolation") == "READ-COMMITTED"
    assert connection.is_usable()
    end_of_request()
    assert connection.connection is not None  # Django's persistent connections
    connection.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_child_creates_its_own_connections(connection: Any) -> None:
    """Forked in the middle of a request, which continues in both processes."""
    number = one(connection, SESSION)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:  # pragma: no cover
        try:
            assert not connection.is_usable()
            mine = one(connection, SESSION)
            end_of_request()
            one(connection, SESSION)
            os.write(writing, json.dumps(mine).encode())
        except BaseException as error:
            os.write(writing, json.dumps(repr(error)).encode())
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    os.close(writing)
    with open(reading) as answer:
        told = json.load(answer)
    assert isinstance(told, int), told
    assert told != number
    assert one(connection, SESSION) == number


# -- settings ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pool": {"max_size": 0}}, "max_size"),
        ({"pool": {"max_sise": 3}}, "max_sise"),
        ({"pool": {"session": "watch"}}, "session must be 'clean', 'trust' or a callable"),
        ({"pool": {"command_timeout": -1}}, "command_timeout"),
        ({"pool": 7}, "must be True, a mapping or a PoolSettings"),
    ],
)
def test_errors_name_the_bad_option(
    connection: Any, monkeypatch: pytest.MonkeyPatch, options: Any, message: str
) -> None:
    connection.close()
    alter(monkeypatch, connection, OPTIONS=options)
    with pytest.raises(ImproperlyConfigured, match=message) as caught:
        one(connection, "SELECT 1")
    assert "DATABASES['mysql']" in str(caught.value)
    connection.close_pool()  # so that the check has to create one
    with pytest.raises(SystemCheckError, match="pooling.E001"):
        call_command("check")


def test_an_unknown_isolation_level(connection: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    connection.close()
    alter(monkeypatch, connection, OPTIONS={"isolation_level": "perfect"})
    with pytest.raises(ImproperlyConfigured, match="Invalid transaction isolation level 'perfect'"):
        one(connection, "SELECT 1")


def test_persistent_connections_are_refused(connection: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    connection.close()
    connection.close_pool()
    alter(monkeypatch, connection, CONN_MAX_AGE=60)
    with pytest.raises(ImproperlyConfigured, match="CONN_MAX_AGE must be 0"):
        one(connection, "SELECT 1")
    with pytest.raises(SystemCheckError, match="pooling.E002"):
        call_command("check")


def test_health_checks_are_made_each_time(connection: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    alter(monkeypatch, connection, CONN_HEALTH_CHECKS=True)
    settings = connection.pool.settings
    assert (settings.validate_on_acquire, settings.validation_interval, settings.max_size) == (True, 0, 2)


def test_arguments_of_the_pool(connection: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    one(connection, "SELECT 1")
    driver = type(connection.connection).__bases__[-1]  # the driver's own class

    class Mine(driver):  # type: ignore[misc, valid-type]
        pass

    end_of_request()
    made: list[object] = []
    alter(monkeypatch, connection, OPTIONS={"pool": {
        "connection_class": Mine, "query_statistics": True, "name": "shop", "reset": made.append, "timeout": 3,
        "kwargs": {"init_command": "SET @a = 7"},
    }})  # fmt: skip
    assert one(connection, "SELECT @a") == 7
    assert isinstance(connection.connection, Mine)
    end_of_request()
    wait_until(lambda: made)
    assert (connection.pool.name, connection.pool.settings.acquire_timeout) == ("shop", 3)
    assert connection.pool.query_statistics.to_dict()


def test_checks_of_sizes(connection: Any, monkeypatch: pytest.MonkeyPatch, mariadb: MariaDBServer) -> None:
    from pooling.web.django.checks import check_server

    with override_settings(POOLING_WORKERS=75):  # 75 x 2 of MariaDB's 151
        assert ids(check_server, databases=[ALIAS]) == []
    with override_settings(POOLING_WORKERS=76):
        assert ids(check_server, databases=[ALIAS]) == ["pooling.W002"]


def test_database_url_of_the_environment_is_ignored(
    connection: Any, monkeypatch: pytest.MonkeyPatch, mariadb: MariaDBServer
) -> None:
    """If the settings say nothing of server, user and database, the driver's defaults are used."""
    monkeypatch.setenv("DATABASE_URL", mariadb.url)
    alter(monkeypatch, connection, NAME="", USER="", HOST="", PORT="1")
    with pytest.raises(django.db.OperationalError, match=r"localhost|socket"):
        one(connection, "SELECT DATABASE()")


def test_a_file_of_options(
    connection: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, mariadb: MariaDBServer
) -> None:
    """As Django's documentation recommends for MySQL."""
    path = tmp_path / "my.cnf"
    path.write_text(
        f"[client]\nhost={LOOPBACK}\nport={mariadb.port}\nuser=root\npassword={SECRET}\ndatabase=django_site\n"
    )
    alter(monkeypatch, connection, OPTIONS={"read_default_file": str(path)}, NAME="", USER="", PASSWORD="", HOST="",
          PORT="")  # fmt: skip
    for _ in range(3):
        assert one(connection, "SELECT DATABASE()") == "django_site"
        assert one(connection, "SELECT @a") is None
        with connection.cursor() as cursor:
            cursor.execute("USE test")
            cursor.execute("SET @a = 1")
        end_of_request()


# -- commands, health, test databases ---------------------------------------------------------------


def run(*arguments: str) -> str:
    out = io.StringIO()
    call_command("pooling", *arguments, stdout=out)
    return out.getvalue()


def test_status(connection: Any, mariadb: MariaDBServer) -> None:
    other = mariadb.connect()
    try:
        other.select_db("django_site")
        told = run("status")
    finally:
        other.close()
    assert "mysql: MySQLPool, at most 2 in each process" in told
    assert "the server accepts 151;" in told
    assert "idle" in told.partition("the server accepts 151;")[2].partition("root")[0]
    assert "database:mysql" in told


def test_doctor(connection: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert re.search(r"^up +database:mysql ", run("doctor"), re.M)
    alter(monkeypatch, connection, NAME="no_such_database")
    connection.close_pool()
    with pytest.raises(CommandError, match="down"):
        run("doctor", "--timeout", "3")


def test_health(connection: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from pooling.web import _health
    from pooling.web.django.health import health

    monkeypatch.setattr(_health, "MAX_AGE", 0.0)  # reuse no answer
    route(**{"health/": health})
    with override_settings(POOLING_HEALTH_TOKEN="open sesame"):
        answer = Answer("/health/", HTTP_AUTHORIZATION="Bearer open sesame")
        details = json.loads(b"".join(answer.parts))
        answer.close()
        assert details["pools"]["database:mysql"]["status"] == "up"
        alter(monkeypatch, connection, NAME="no_such_database")
        connection.close_pool()
        down = Answer("/health/")
        assert (down.status, b"".join(down.parts)) == ("503 Service Unavailable", b"down")
        down.close()


def test_migrate_flush_and_inspect(connection: Any, mariadb: MariaDBServer) -> None:
    out = io.StringIO()
    call_command("migrate", database=ALIAS, stdout=out)
    assert "No migrations to apply" in out.getvalue()
    call_command("inspectdb", "item", database=ALIAS, stdout=out)
    assert "db_table = 'item'" in out.getvalue()
    call_command("flush", database=ALIAS, interactive=False, stdout=out)


def test_test_databases(connection: Any, mariadb: MariaDBServer) -> None:
    """What Django's test runner does; nothing stays connected to a database that was dropped."""
    name = connection.creation.create_test_db(verbosity=0, autoclobber=True)
    try:
        assert name == "test_django_site"
        assert one(connection, "SELECT DATABASE()") == name
        test_pool = connection.pool
    finally:
        connection.creation.destroy_test_db("django_site", verbosity=0)
    assert test_pool.closed
    assert one(connection, "SELECT DATABASE()") == "django_site"
    assert mariadb.ask("SHOW DATABASES LIKE 'test_django%'") == ()


# -- drivers -----------------------------------------------------------------------------------------

LOADING = """
import sys
class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name in HIDDEN:
            raise ImportError(f"{name} is hidden")
sys.meta_path.insert(0, Hidden())
try:
    import pymysql
    before = pymysql.version_info = (1, 3, 0, "final", 1)  # too old for Django, as PyMySQL 1.1 is for Django 6
except ImportError:
    pass
from django.conf import settings
settings.configure()
from pooling.web.django.mysql import base
assert base.DRIVER == "pymysql", base.DRIVER
assert base.DatabaseWrapper.Database is pymysql
assert pymysql.version_info == before
assert not [name for name in sys.modules if name.startswith("MySQLdb")]
"""


def load(hidden: set[str]) -> subprocess.CompletedProcess[str]:
    program = LOADING.replace("HIDDEN", repr(hidden))
    return subprocess.run([sys.executable, "-c", program], env=environment(), capture_output=True, text=True)


def test_all_of_this_with_pymysql() -> None:
    """A process has one driver; this one has mysqlclient."""
    from pooling.web.django.mysql._driver import DRIVER

    if PYMYSQL:
        assert DRIVER == "pymysql"
        return
    needs_mysqlclient()
    assert DRIVER == "mysqlclient"
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__], cwd=ROOT,
        env=environment(TEST_WITH_PYMYSQL="1"), capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout
    assert "skipped" not in run.stdout


def test_pymysql_is_used_without_mysqlclient() -> None:
    """Of an old version, too, and other packages do not take it for mysqlclient."""
    run = load({"MySQLdb"})
    assert run.returncode == 0, run.stderr


def test_without_a_driver() -> None:
    run = load({"MySQLdb", "pymysql"})
    assert run.returncode == 1
    assert 'no driver for MySQL: pip install mysqlclient, or "pooling[mysql]"' in run.stderr

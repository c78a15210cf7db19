"""Django's engines on our pools, as a project uses them: with real servers and real requests."""

from __future__ import annotations

import contextlib
import gc
import io
import json
import os
import re
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import psycopg_pool
import pytest

import pooling
from tests.servers import PostgresServer

django = pytest.importorskip("django")  # installed in CI: see test_django_is_installed

from django.core.exceptions import ImproperlyConfigured  # noqa: E402

from tests.integration import django_site  # noqa: E402
from tests.integration.django_site import SECRET, alter, end_of_request, one, route  # noqa: E402
from tests.integration.tools import note_cleanings  # noqa: E402


def test_django_is_installed() -> None:
    assert django.VERSION >= (5, 2)


@pytest.fixture(scope="module", autouse=True)
def site(postgres: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with django_site.running(postgres, tmp_path_factory):
        yield


@pytest.fixture(autouse=True)
def nothing_left(site: None) -> Iterator[None]:
    """Each test begins and ends without a lease in use."""
    yield
    django.db.close_old_connections()
    django_site.check_nothing_is_lent()


@pytest.fixture(scope="module")
def item(site: None) -> Any:
    """A model."""
    from django.db import models

    class Item(models.Model):
        id = models.IntegerField(primary_key=True)
        name = models.TextField()
        at = models.DateTimeField()

        class Meta:
            app_label = "pooling"
            db_table = "item"
            managed = False

    return Item


@pytest.fixture
def connection(site: None) -> Any:
    return django.db.connections["default"]


class Answer:
    """A response of the WSGI handler, as a server gets it."""

    def __init__(self, path: str = "/", **environ: Any) -> None:
        from django.core.handlers.wsgi import WSGIHandler
        from django.test import RequestFactory

        request = RequestFactory().get(path, **environ)
        self.status = ""
        self.parts = WSGIHandler()(request.environ, self._start)

    def _start(self, status: str, headers: object, exc_info: object = None) -> None:
        self.status = status

    def close(self) -> None:
        self.parts.close()


@pytest.fixture
def round_trips(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Return what cleaning sends."""
    return note_cleanings(monkeypatch)


# -- a request and its connection --------------------------------------------------


def test_acquires_at_the_first_query_and_releases_at_the_end(connection: Any) -> None:
    assert connection.pool.stats()["in_use"] == 0
    assert one(connection, "SELECT 42") == 42
    assert connection.pool.stats()["in_use"] == 1
    end_of_request()
    assert connection.pool.stats()["in_use"] == 0
    assert connection.connection is None


def test_the_same_session_serves_the_next_request(connection: Any) -> None:
    first = one(connection, "SELECT pg_backend_pid()")
    end_of_request()
    assert one(connection, "SELECT pg_backend_pid()") == first


def test_a_streamed_response_keeps_its_connection_until_the_last_piece(connection: Any, item: Any) -> None:
    from django.http import StreamingHttpResponse

    route(lambda request: StreamingHttpResponse(f"{one.id}\n" for one in item.objects.iterator(chunk_size=100)))
    answer = Answer()
    parts = iter(answer.parts)
    assert next(parts) == b"1\n"
    assert connection.pool.stats()["in_use"] == 1
    assert len(list(parts)) == 4999
    answer.close()
    assert connection.pool.stats()["in_use"] == 0


def test_a_client_that_disconnects_early(connection: Any, item: Any) -> None:
    """The server closes the response: the connection with the half-read cursor is released and cleaned."""
    from django.http import StreamingHttpResponse

    route(lambda request: StreamingHttpResponse(f"{one.id}\n" for one in item.objects.iterator(chunk_size=100)))
    for _ in range(5):  # more often than there are connections
        answer = Answer()
        assert next(iter(answer.parts)) == b"1\n"
        answer.close()
        assert connection.pool.stats()["in_use"] == 0
    assert one(connection, "SELECT count(*) FROM pg_cursors") == 0


def test_a_view_that_fails(connection: Any) -> None:
    from django.http import HttpResponse

    def view(request: Any) -> HttpResponse:
        one(connection, "SELECT 1")
        raise ValueError("a bug")

    route(view)
    import logging

    logging.getLogger("django.request").disabled = True
    answer = Answer()
    logging.getLogger("django.request").disabled = False
    assert answer.status.startswith("500")
    answer.close()
    assert connection.pool.stats()["in_use"] == 0


def test_atomic_requests(postgres: PostgresServer) -> None:
    from django.http import HttpResponse

    second = django.db.connections["second"]

    def view(request: Any) -> HttpResponse:
        with second.cursor() as cursor:
            cursor.execute("INSERT INTO item VALUES (%s, 'atomic')", [int(request.GET["id"])])
        if "fail" in request.GET:
            raise ValueError("roll back")
        return HttpResponse("done")

    route(view)
    import logging

    logging.getLogger("django.request").disabled = True
    for path in ("/?id=7001", "/?id=7002&fail=1"):
        Answer(path).close()
    logging.getLogger("django.request").disabled = False
    assert second.pool.stats()["in_use"] == 0
    with postgres.connect(dbname="django_site") as conn:
        assert conn.execute("DELETE FROM item WHERE id > 7000 RETURNING id").fetchall() == [(7001,)]


def test_each_alias_has_its_own_pool(connection: Any) -> None:
    second = django.db.connections["second"]
    assert one(connection, "SELECT current_user") == "postgres"
    assert one(second, "SELECT current_user") == "clerk"
    assert connection.pool is not second.pool
    assert (connection.pool.settings.max_size, second.pool.settings.max_size) == (2, 10)


def test_threads_share_the_pool(connection: Any) -> None:
    seen = []

    def work() -> None:
        for _ in range(20):
            seen.append(one(django.db.connections["default"], "SELECT pg_backend_pid()"))
            end_of_request()

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 120
    assert len(set(seen)) <= 2


def test_a_thread_that_ends_without_closing(connection: Any) -> None:
    """With Django's own pool that connection is lost for ever."""
    thread = threading.Thread(target=lambda: one(django.db.connections["default"], "SELECT 1"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pooling.core.events.logger.warning", lambda *args: None, raising=False)
        thread.start()
        thread.join()
        del thread
        deadline = time.monotonic() + 30
        while connection.pool.stats()["in_use"] and time.monotonic() < deadline:
            gc.collect()
            time.sleep(0.01)
    assert connection.pool.stats()["in_use"] == 0


def test_select_for_update(connection: Any, item: Any) -> None:
    from django.db import transaction

    order: list[str] = []
    locked = threading.Event()

    def second() -> None:
        locked.wait(30)
        with transaction.atomic():
            item.objects.select_for_update().get(id=1)
            order.append("second")
        end_of_request()

    thread = threading.Thread(target=second)
    thread.start()
    with transaction.atomic():
        item.objects.select_for_update().get(id=1)
        locked.set()
        other = django.db.connections["second"]
        deadline = time.monotonic() + 30
        while not one(other, "SELECT count(*) FROM pg_locks WHERE NOT granted") and time.monotonic() < deadline:
            time.sleep(0.01)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]


def test_closing_inside_an_atomic_block_is_deferred(connection: Any) -> None:
    from django.db import transaction

    with pytest.raises(django.db.ProgrammingError), transaction.atomic():
        one(connection, "SELECT 1")
        django.db.close_old_connections()
        one(connection, "SELECT 1")
    connection.close()


# -- cleaning and its cost ---------------------------------------------------------------


def test_what_django_does_costs_no_round_trip(connection: Any, item: Any, round_trips: list[bytes]) -> None:
    from django.db import transaction

    end_of_request()
    round_trips.clear()
    with transaction.atomic(), transaction.atomic():
        assert item.objects.filter(id__lt=10).count() == 9
        item.objects.filter(id=1).update(name="item 1")
    end_of_request()
    assert one(connection, "SELECT current_setting('TimeZone')") == "UTC"
    end_of_request()
    assert round_trips == []


@pytest.mark.parametrize(
    ("dirty", "look"),
    [
        ("SET statement_timeout = 77000", "SELECT current_setting('statement_timeout')"),
        ("SELECT set_config('app.tenant', 'seven', false)", "SELECT current_setting('app.tenant', true)"),
        ("SET TIME ZONE 'Asia/Tokyo'", "SELECT current_setting('TimeZone')"),
        ("CREATE TEMP TABLE mine (a int)", "SELECT count(*) FROM pg_class WHERE relname = 'mine'"),
        ("SELECT 1 AS a INTO/**/TEMP mine", "SELECT count(*) FROM pg_class WHERE relname = 'mine'"),
        ("SELECT pg_advisory_lock(77)", "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'"),
        ("LISTEN news", "SELECT count(*) FROM pg_listening_channels()"),
        ("SET ROLE clerk", "SELECT current_user"),
    ],
)
def test_session_state_of_a_view_is_cleaned(connection: Any, round_trips: list[bytes], dirty: str, look: str) -> None:
    def ask() -> Any:
        pid, value = one(connection, "SELECT pg_backend_pid()"), one(connection, look)
        end_of_request()
        return pid, value or ""

    before = ask()
    with connection.cursor() as cursor:
        cursor.execute(dirty)
    end_of_request()
    assert len(round_trips) == 1
    assert ask() == before
    assert len(round_trips) == 1


def own_cursor(connection: Any) -> None:
    psycopg.ClientCursor(connection.connection).execute("SET work_mem = '7MB'")


def own_server_cursor(connection: Any) -> None:
    with connection.connection.transaction(), psycopg.ServerCursor(connection.connection, "mine") as cursor:
        cursor.execute("SELECT set_config('work_mem', '7MB', false)")
        cursor.fetchall()


def own_cursor_class(connection: Any) -> None:
    connection.connection.cursor_factory = psycopg.RawCursor
    connection.connection.execute("SET work_mem = '7MB'")


def copy(connection: Any) -> None:
    query = "COPY (SELECT set_config('work_mem', '7MB', false)) TO STDOUT"
    with connection.cursor() as cursor, cursor.copy(query) as rows:
        list(rows)


def pipeline(connection: Any) -> None:
    with connection.connection.pipeline():
        connection.connection.execute("SET work_mem = '7MB'")


def stream(connection: Any) -> None:
    with connection.connection.cursor() as cursor:
        list(cursor.stream("SELECT set_config('work_mem', '7MB', false)"))


def many(connection: Any) -> None:
    with connection.cursor() as cursor:
        cursor.executemany("SELECT set_config('work_mem', %s, false)", [["6MB"], ["7MB"]])


def statement(text: str) -> Callable[[Any], None]:
    def execute(connection: Any) -> None:
        with connection.cursor() as cursor:
            cursor.execute(text)

    return execute


@pytest.mark.parametrize(
    "act",
    [
        own_cursor, own_server_cursor, own_cursor_class, copy, pipeline, stream, many,
        statement("UPDATE pg_settings SET setting = '7168' WHERE name = 'work_mem'"),
        statement("WITH a AS (SELECT 7168 AS n) UPDATE \"pg_settings\" SET setting = n FROM a WHERE name = 'work_mem'"),
        statement("""SELECT ts_stat('SELECT to_tsvector(set_' || 'config(''work_mem'', ''7MB'', false))')"""),
        statement("""SELECT U&"set\\005fconfig"('work_mem', '7MB', false)"""),
    ],
)  # fmt: skip
def test_watch_detects_all_kinds_of_cursors(connection: Any, act: Callable[[Any], None]) -> None:
    """Statements of cursors that are not Django's are detected, too."""
    look = "SELECT current_setting('work_mem') || pg_backend_pid()"
    connection.close_pool()  # clean what another test may have left
    before = one(connection, look)
    end_of_request()
    connection.ensure_connection()
    act(connection)
    assert one(connection, look).startswith("7MB")
    end_of_request()
    assert one(connection, look) == before


def test_a_failed_statement_costs_no_round_trip(connection: Any, round_trips: list[bytes]) -> None:
    connection.ensure_connection()
    end_of_request()
    round_trips.clear()
    with pytest.raises(django.db.DataError):
        one(connection, "SELECT 1 / 0")
    end_of_request()
    assert round_trips == []


def test_a_transaction_left_open_is_rolled_back(connection: Any) -> None:
    connection.set_autocommit(False)
    with connection.cursor() as cursor:
        cursor.execute("DELETE FROM item")
    end_of_request()
    assert one(connection, "SELECT count(*) FROM item") == 5000
    assert connection.get_autocommit()


@pytest.mark.parametrize(("session", "trips"), [("clean", 1), ("trust", 0)])
def test_other_session_modes(
    connection: Any, monkeypatch: pytest.MonkeyPatch, round_trips: list[bytes], session: str, trips: int
) -> None:
    alter(monkeypatch, connection, OPTIONS={"pool": {"session": session}})
    one(connection, "SELECT 1")
    end_of_request()
    round_trips.clear()
    one(connection, "SELECT 1")
    end_of_request()
    assert len(round_trips) == trips


def test_time_zone_of_the_database(connection: Any, monkeypatch: pytest.MonkeyPatch, item: Any) -> None:
    assert item.objects.first().at.utcoffset().total_seconds() == 0
    end_of_request()
    alter(monkeypatch, connection, TIME_ZONE="Asia/Tokyo")
    for name in ("timezone", "timezone_name"):
        vars(connection).pop(name, None)
    try:
        assert one(connection, "SELECT current_setting('TimeZone')") == "Asia/Tokyo"
        assert item.objects.first().at.utcoffset().total_seconds() == 9 * 3600
    finally:
        end_of_request()
        for name in ("timezone", "timezone_name"):
            vars(connection).pop(name, None)


def test_role_and_isolation_level(connection: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from django.db import transaction

    options = {"assume_role": "clerk", "isolation_level": psycopg.IsolationLevel.SERIALIZABLE}
    alter(monkeypatch, connection, OPTIONS=options)
    for _ in range(2):
        with transaction.atomic():
            assert one(connection, "SELECT current_user") == "clerk"
            assert one(connection, "SELECT current_setting('transaction_isolation')") == "serializable"
        with connection.cursor() as cursor:
            cursor.execute("SET ROLE postgres")  # cleaned, then restored as configured
        end_of_request()


def test_changed_settings_create_a_new_pool(connection: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Like a test runner that renames the database."""
    one(connection, "SELECT 1")
    end_of_request()
    before = connection.pool
    alter(monkeypatch, connection, NAME="postgres")
    assert one(connection, "SELECT current_database()") == "postgres"
    end_of_request()
    assert connection.pool is not before
    deadline = time.monotonic() + 30
    while before.stats()["size"] and time.monotonic() < deadline:
        time.sleep(0.01)
    assert before.stats()["size"] == 0


# -- failures --------------------------------------------------------------------------------


def test_idle_sessions_that_died(connection: Any, postgres: PostgresServer) -> None:
    """No request fails because of a death that could be detected before."""
    for _ in range(3):
        pid = one(connection, "SELECT pg_backend_pid()")
        end_of_request()
        with postgres.connect() as conn:
            conn.execute("SELECT pg_terminate_backend(%s, 30000)", [pid])
        assert one(connection, "SELECT 1") == 1
        end_of_request()


def test_a_session_that_dies_in_a_request(connection: Any, postgres: PostgresServer) -> None:
    pid = one(connection, "SELECT pg_backend_pid()")
    with postgres.connect() as conn:
        conn.execute("SELECT pg_terminate_backend(%s, 30000)", [pid])
    with pytest.raises(django.db.OperationalError):
        one(connection, "SELECT 1")
    end_of_request()
    assert one(connection, "SELECT 1") == 1
    assert connection.pool.metrics.snapshot().closed["broken"] >= 1


def test_timeout_is_djangos_error_and_ours(connection: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    alter(monkeypatch, connection, OPTIONS={"pool": {"max_size": 1}})
    one(connection, "SELECT 1")
    connection.pool.reconfigure(acquire_timeout=0.01)
    other = connection.copy()
    with pytest.raises(django.db.OperationalError, match=r"django_site.py:\d+ one\(\)") as caught:
        one(other, "SELECT 1")
    assert isinstance(caught.value, pooling.PoolTimeout)
    assert isinstance(caught.value, psycopg_pool.PoolTimeout)  # the error of Django's own pool
    assert SECRET not in str(caught.value)


def test_unreachable_server(connection: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    alter(monkeypatch, connection, NAME="no_such_database")
    with pytest.raises(django.db.OperationalError, match="no_such_database") as caught:
        one(connection, "SELECT 1")
    assert isinstance(caught.value, pooling.CreateFailed)
    assert isinstance(caught.value.__cause__, psycopg.Error)


@pytest.mark.parametrize(
    ("pool", "interval"),
    [
        (True, 0),
        ({"max_size": 3}, 0),
        (pooling.PoolSettings(max_size=3), 0),
        ({"settings": pooling.PoolSettings(validate_on_acquire=False)}, 0),
        ({"settings": pooling.PoolSettings(), "validation_interval": 3}, 3),
    ],
)
def test_health_checks_are_made_each_time(
    connection: Any, monkeypatch: pytest.MonkeyPatch, pool: Any, interval: float
) -> None:
    """Unless the mapping sets an interval."""
    alter(monkeypatch, connection, CONN_HEALTH_CHECKS=True, OPTIONS={"pool": pool})
    settings = connection.pool.settings
    assert (settings.validate_on_acquire, settings.validation_interval) == (True, interval)


def test_health_checks_of_sqlite(monkeypatch: pytest.MonkeyPatch) -> None:
    lite = django.db.connections["lite"]
    alter(monkeypatch, lite, CONN_HEALTH_CHECKS=True, OPTIONS={"pool": pooling.PoolSettings(max_size=3)})
    assert lite.pool.settings.validation_interval == 0


def test_a_new_password_is_used(connection: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    one(connection, "SELECT 1")
    assert connection.connection.info.password == SECRET
    end_of_request()
    alter(monkeypatch, connection, PASSWORD="rotated")
    one(connection, "SELECT 1")
    assert connection.connection.info.password == "rotated"


def test_an_engine_with_changing_passwords_keeps_its_pool(connection: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each connection uses a new token; the pool stays the same."""
    tokens = iter(range(1000))
    kind = type(connection)

    class Asking(kind):  # type: ignore[misc, valid-type]
        pools = type(kind.pools)()

        def get_connection_params(self) -> dict[str, Any]:
            return {**super().get_connection_params(), "password": f"token {next(tokens)}"}

    asking = Asking(connection.settings_dict, "default")
    used = set()
    for _ in range(2):
        one(asking, "SELECT 1")
        used.add(asking.connection.info.password)
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
    assert one(connection, "SELECT 1") == 1
    end_of_request()
    assert connection.connection is not None  # Django's persistent connections
    connection.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_child_creates_its_own_connections(connection: Any, recwarn: pytest.WarningsRecorder) -> None:
    """Forked in the middle of a request, which continues in both processes."""
    pid = one(connection, "SELECT pg_backend_pid()")
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:  # pragma: no cover
        try:
            mine = one(connection, "SELECT pg_backend_pid()")
            end_of_request()
            mine += one(connection, "SELECT pg_backend_pid()") - mine
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
    assert told != pid
    assert one(connection, "SELECT pg_backend_pid()") == pid


# -- settings ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pool", "message"),
    [
        ({"max_size": 0}, "max_size"),
        ({"max_sise": 3}, "max_sise"),
        ({"num_workers": 3}, "num_workers is not supported"),
        ({"session": "dirty"}, "session"),
        ({"settings": 3}, "settings must be a PoolSettings"),
        (7, "must be True, a mapping or a PoolSettings"),
    ],
)
def test_errors_name_the_bad_option(connection: Any, monkeypatch: pytest.MonkeyPatch, pool: Any, message: str) -> None:
    from django.core.management import call_command
    from django.core.management.base import SystemCheckError

    connection.close()
    alter(monkeypatch, connection, OPTIONS={"pool": pool})
    with pytest.raises(ImproperlyConfigured, match=message) as caught:
        one(connection, "SELECT 1")
    assert "DATABASES['default']" in str(caught.value)
    connection.close_pool()  # so that the check has to create one
    with pytest.raises(SystemCheckError, match="pooling.E001"):
        call_command("check")


def test_good_options(connection: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def options(wish: Any) -> pooling.PoolSettings:
        alter(monkeypatch, connection, OPTIONS={"pool": wish})
        settings: pooling.PoolSettings = connection.pool.settings
        return settings

    assert options(True) == options({}) == pooling.PoolSettings()
    assert options(pooling.PoolSettings(max_size=3)).max_size == 3
    assert options({"settings": pooling.PoolSettings(max_size=3), "min_size": 2}) == pooling.PoolSettings(
        min_size=2, max_size=3
    )
    assert options({"timeout": 3, "max_size": "7"}) == pooling.PoolSettings(acquire_timeout=3, max_size=7)


def test_persistent_connections_are_refused(connection: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from django.core.management import call_command
    from django.core.management.base import SystemCheckError

    connection.close()
    connection.close_pool()
    alter(monkeypatch, connection, CONN_MAX_AGE=60)
    words = "Pooling doesn't support persistent connections. CONN_MAX_AGE must be 0"
    with pytest.raises(ImproperlyConfigured, match=words):
        one(connection, "SELECT 1")
    with pytest.raises(SystemCheckError, match="pooling.E002"):
        call_command("check")


def ids(function: Callable[..., Any], **arguments: Any) -> list[str]:
    return [message.id for message in function(None, **arguments)]


def test_checks_of_sizes(connection: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from django.test import override_settings

    from pooling.web.django.checks import check_server, check_settings, worker_layout

    assert ids(check_settings) == []
    monkeypatch.setenv("GUNICORN_CMD_ARGS", "--workers 3 --threads=8 --bind :8000")
    assert worker_layout() == (3, 8)
    assert ids(check_settings) == ["pooling.W001"]
    with override_settings(POOLING_THREADS=2, POOLING_WORKERS=90):
        assert ids(check_settings) == []
        assert ids(check_server, databases=["default"]) == ["pooling.W002"]
        assert ids(check_server, databases=None) == []
    alter(monkeypatch, connection, OPTIONS={"pool": {"max_size": 8, "max_idle": 600}})
    assert ids(check_settings) == ["pooling.W003"]
    with override_settings(POOLING={"api": {"url": "http://localhost", "max_sise": 3}}):
        assert "pooling.E003" in ids(check_settings)


@pytest.mark.parametrize(
    ("made", "named"),
    [
        (
            "CREATE FUNCTION settenant(t text) RETURNS text LANGUAGE sql AS"
            " $$ SELECT pg_catalog.set_config('app.tenant', t, false) $$",
            "function public.settenant",
        ),
        (
            "CREATE PROCEDURE become(t text) LANGUAGE plpgsql AS"
            " $$ BEGIN PERFORM SET_CONFIG('app.tenant', t, false); END $$",
            "function public.become",
        ),
        (
            "CREATE POLICY mine ON item USING (name = current_setting('app.tenant', true))",
            "policy mine on item",
        ),
        (
            "ALTER TABLE item ADD COLUMN tenant text DEFAULT current_setting('app.tenant', true)",
            "default tenant of item",
        ),
        (
            "CREATE VIEW tenant AS SELECT set_config('app.tenant', name, false) FROM item",
            "rule \"_RETURN\" on tenant",
        ),
        (
            "CREATE FUNCTION nothing() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NEW; END $$;"
            "CREATE TRIGGER t BEFORE INSERT ON item FOR EACH ROW"
            " WHEN (current_setting('app.tenant', true) = 'x') EXECUTE FUNCTION nothing()",
            "trigger t on item",
        ),
        ("CREATE FUNCTION reset_config() RETURNS int LANGUAGE sql AS 'SELECT 1'", None),
    ],
)
def test_check_reports_what_watch_cannot_detect(
    connection: Any, monkeypatch: pytest.MonkeyPatch, made: str, named: str | None
) -> None:
    from django.db import transaction

    from pooling.web.django.checks import check_server

    assert ids(check_server, databases=["default"]) == []
    with transaction.atomic():
        with connection.cursor() as cursor:
            cursor.execute(made)
        # The check uses the open connection, so it sees what this transaction created.
        monkeypatch.setattr(connection, "temporary_connection", connection.cursor)
        messages = check_server(None, databases=["default"])
        alter(monkeypatch, connection, OPTIONS={"pool": {"session": "clean", "max_size": 2}})
        assert ids(check_server, databases=["default"]) == []
        transaction.set_rollback(True)
    assert [message.id for message in messages] == ([] if named is None else ["pooling.W004"])
    if named is not None:
        assert messages[0].msg.endswith(f": {named}") and '"clean"' in (messages[0].hint or "")


# -- the project's other pools, command, health ---------------------------------------------------


def test_named_pools(site: None) -> None:
    from django.test import override_settings

    from pooling.web.django import pools

    assert isinstance(pools["api"], pooling.HTTPPool)
    with override_settings(POOLING={"other": "http://127.0.0.1:9"}):
        assert list(pools) == ["other"]
    assert "other" not in pools


def run(*arguments: str) -> str:
    from django.core.management import call_command

    out = io.StringIO()
    call_command("pooling", *arguments, stdout=out)
    return out.getvalue()


def test_status(connection: Any, postgres: PostgresServer) -> None:
    with postgres.connect(dbname="django_site", application_name="another program"):
        told = run("status")
    assert "default: PostgresPool, at most 2 in each process" in told
    assert "another program" in told
    assert "database:default" in told
    assert "api" in told


def test_doctor(connection: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from django.core.management.base import CommandError

    told = run("doctor")
    assert re.search(r"^up +database:default +[\d.]+ .?s$", told, re.M)
    assert told.endswith("overall: up\n")
    alter(monkeypatch, connection, NAME="no_such_database")
    connection.close_pool()
    with pytest.raises(CommandError, match="down"):
        run("doctor", "--timeout", "3")


def test_health(connection: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from django.test import override_settings

    from pooling.web import _health
    from pooling.web.django._pools import all_pools
    from pooling.web.django.health import health

    monkeypatch.setattr(_health, "MAX_AGE", 0.0)  # reuse no answer
    route(**{"health/": health})
    with override_settings(POOLING_HEALTH_TOKEN="open sesame"):
        anonymous = Answer("/health/")
        assert (anonymous.status, b"".join(anonymous.parts)) == ("200 OK", b"up")
        anonymous.close()
        authenticated = Answer("/health/", HTTP_AUTHORIZATION="Bearer open sesame")
        details = json.loads(b"".join(authenticated.parts))
        authenticated.close()
        assert details["pools"]["database:default"]["status"] == "up"
        with all_pools()["database:default"].acquire():
            connection.pool.resize(1, 0)
            full = Answer("/health/", HTTP_AUTHORIZATION="Bearer open sesame")
            details = json.loads(b"".join(full.parts))
            full.close()
        assert (full.status, details["pools"]["database:default"]["status"]) == ("200 OK", "degraded")
        assert details["pools"]["database:default"]["reason"] == "exhausted: 1 of 1 in use, 0 waiting"
        alter(monkeypatch, connection, NAME="no_such_database")
        connection.close_pool()
        down = Answer("/health/")
        assert (down.status, b"".join(down.parts)) == ("503 Service Unavailable", b"down")
        down.close()


# -- SQLite -----------------------------------------------------------------------------------------


def test_sqlite(monkeypatch: pytest.MonkeyPatch) -> None:
    lite = django.db.connections["lite"]
    with lite.cursor() as cursor:
        cursor.execute("CREATE TABLE IF NOT EXISTS t (a integer)")
        cursor.execute("PRAGMA foreign_keys = OFF")
        cursor.execute("INSERT INTO t VALUES (1)")
    handle = id(lite.connection)
    end_of_request()
    assert lite.pool.stats()["in_use"] == 0
    assert one(lite, "PRAGMA foreign_keys") == 1
    assert id(lite.connection) == handle
    assert one(lite, "SELECT django_date_extract('year', '2020-01-01')") == 2020
    assert one(lite, "SELECT count(*) FROM t") == 1
    from django.db import transaction

    with pytest.raises(ValueError, match="roll back"), transaction.atomic(using="lite"):
        with lite.cursor() as cursor:
            cursor.execute("DELETE FROM t")
        raise ValueError("roll back")
    lite.set_autocommit(False)
    with lite.cursor() as cursor:
        cursor.execute("DELETE FROM t")
    end_of_request()
    assert one(lite, "SELECT count(*) FROM t") == 1
    end_of_request()


@pytest.mark.parametrize(
    "leave",
    [
        lambda lite: one(lite, "PRAGMA query_only = ON"),
        lambda lite: lite.connection.executescript("PRAGMA query_only = ON"),
        lambda lite: lite.connection.create_function("upper", 1, lambda text: "mine"),
        lambda lite: lite.connection.set_authorizer(lambda *args: sqlite3.SQLITE_DENY),
    ],
)
def test_sqlite_state_does_not_leak_into_the_next_request(leave: Callable[[Any], Any]) -> None:
    lite = django.db.connections["lite"]
    lite.ensure_connection()
    before = lite.pool.metrics.snapshot().created
    with lite.cursor() as cursor:
        cursor.execute("CREATE TABLE IF NOT EXISTS left_behind (a integer)")
        cursor.execute("INSERT INTO left_behind VALUES (%s)", [1])
        cursor.executemany("INSERT INTO left_behind VALUES (%s)", [(2,), (3,)])
        lite.introspection.get_table_description(cursor, "left_behind")  # PRAGMAs that change nothing
    end_of_request()
    lite.ensure_connection()
    assert lite.pool.metrics.snapshot().created == before
    with contextlib.suppress(TypeError):  # a PRAGMA without a row
        leave(lite)
    end_of_request()
    assert one(lite, "SELECT upper('a')") == "A"
    with lite.cursor() as cursor:
        cursor.execute("INSERT INTO left_behind VALUES (4)")
    assert lite.pool.metrics.snapshot().created == before + 1
    end_of_request()


def test_sqlite_init_command_and_journal(monkeypatch: pytest.MonkeyPatch) -> None:
    lite = django.db.connections["lite"]
    lite.close()
    assert one(lite, "PRAGMA journal_mode") == "delete"  # the file's, because none was configured
    end_of_request()
    alter(monkeypatch, lite, OPTIONS={"init_command": "PRAGMA cache_size=-4321", "pool": {"max_size": 3}})
    for _ in range(2):
        assert one(lite, "PRAGMA cache_size") == -4321
        with lite.cursor() as cursor:
            cursor.execute("PRAGMA cache_size=-1")
        end_of_request()
    assert lite.pool.settings.max_size == 3


def test_sqlite_in_memory_has_no_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    lite = django.db.connections["lite"]
    lite.close()
    alter(monkeypatch, lite, NAME=":memory:")
    lite = lite.copy("memory")
    assert lite.pool is None
    assert one(lite, "SELECT 1") == 1
    django.db.backends.base.base.BaseDatabaseWrapper.close(lite)


def test_a_child_does_not_touch_the_sqlite_file_of_its_parent(tmp_path: Path) -> None:
    lite = django.db.connections["lite"]
    assert one(lite, "SELECT 1") == 1
    child = os.fork()
    if child == 0:  # pragma: no cover
        code = 1
        try:
            code = 0 if one(lite, "SELECT 2") == 2 else 2
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    assert one(lite, "SELECT 1") == 1
    end_of_request()


def test_a_network_that_drops_everything(connection: Any, postgres: PostgresServer) -> None:
    """In the middle of a query, and while a connection is idle."""
    from tests.proxy import Proxy

    good, errors = [0] * 6, []
    stopping, resting = threading.Event(), threading.Event()

    with Proxy(postgres.port) as proxy:
        told = {**connection.settings_dict, "PORT": proxy.port}
        told["OPTIONS"] = {"pool": {"max_size": 3, "acquire_timeout": 60, "stall_timeout": 1}}

        def work(number: int) -> None:
            wrapper = type(connection)(told, "swallowed")
            while not stopping.is_set():
                try:
                    one(wrapper, "SELECT 1 FROM pg_sleep(0.02)")
                    good[number] += 1
                except django.db.Error as error:
                    errors.append(error)
                finally:
                    wrapper.close()
                while resting.is_set():
                    time.sleep(0.01)

        def all_work() -> None:
            before, deadline = list(good), time.monotonic() + 30
            while not all(now > then for now, then in zip(good, before)):
                assert time.monotonic() < deadline, (good, before, errors)
                time.sleep(0.01)

        threads = [threading.Thread(target=work, args=(number,), daemon=True) for number in range(6)]
        for thread in threads:
            thread.start()
        try:
            all_work()
            proxy.drop()
            all_work()
            assert 1 <= len(errors) <= 3 and all("stalled" in str(error) for error in errors)
            errors.clear()
            resting.set()
            time.sleep(1)
            proxy.drop()
            resting.clear()
            all_work()
            assert not errors
        finally:
            stopping.set()
            resting.clear()
            for thread in threads:
                thread.join(30)
            type(connection)(told, "swallowed").close_pool()

"""No secret is shown, whatever is wrong with an address and wherever it is given (P12)."""

from __future__ import annotations

import contextlib
import itertools
import logging
import re
import traceback
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote

import psycopg
import pytest
import redis.sentinel
from hypothesis import given
from hypothesis import strategies as st

from pooling import (
    FleetBudget,
    HTTPPool,
    Lane,
    MySQLPool,
    Pool,
    PoolManager,
    PoolSettings,
    PoolTimeout,
    PostgresPool,
    RedisPool,
    SQLitePool,
    from_url,
)
from pooling.__main__ import main
from pooling._masking import masked, without_secrets
from pooling.adapters.postgres.address import Address, Answer
from pooling.adapters.redis import RedisSentinelPool
from pooling.compat.psycopg_pool import ConnectionPool
from pooling.config import from_env, from_mapping, url_of
from pooling.fleet.budget import budget_from_env
from pooling.observe import Alerts, Webhook
from pooling.tools.demo.place import PostgresDatabase
from pooling.web.wsgi import PoolingMiddleware

SECRET = "s3cret"
ADDRESSES = [
    # well-formed
    "postgresql://u:s3cret@h/d", "postgresql+psycopg2://u:s3cret@h/d", "POSTGIS://u:s3cret@h/d?pool_size=3",
    "postgresql://h/d?password=s3cret", "host=h password=s3cret", "password='x s3cret' host=h", "https://s3cret@h/x",
    # no scheme, half a scheme
    "u:s3cret@h/d", "u:s3cret@h:5432/d?sslmode=require", "//u:s3cret@h/d", ":s3cret@h", "s3cret@h/d", "@s3cret@h",
    "postgresql:/u:s3cret@h/d", "postgresql:u:s3cret@h/d", "postgresql//u:s3cret@h/d", " postgresql://u:s3cret@h/d",
    "postgresql ://u:s3cret@h/d", "postgresql:///u:s3cret@h/d", "'postgresql://u:s3cret@h/d'",
    "DATABASE_URL=postgresql://u:s3cret@h/d", "u:s3cret@h://d", "psql://u:s3cret@h/d", "mysql+pymysql://u:s3cret@h/d",
    # what should have been percent-encoded
    "postgresql://u:x@s3cret@h/d", "postgresql://u:s3cret@x@h/d", "postgresql://u:x/s3cret@h/d",
    "postgresql://u:s3cret/x@h/d", "postgresql://u:x?s3cret@h/d", "postgresql://u:x?max_size=s3cret@h/d",
    "postgresql://u:x#s3cret@h/d", "postgresql://u:x:s3cret@h/d", "postgresql://u:x s3cret@h/d",
    "postgresql://u:%zz s3cret@h/d", "postgresql://u:[s3cret@h/d", "postgresql://u:1/s3cret@h/d",
    "postgresql://u:x&s3cret=1@h/d", "postgresql://u%3As3cret@h/d", "postgresql://u:x\ns3cret@h/d",
    "sqlite://u:s3cret@h/d", "sqlite:u:s3cret@h/d", "https://u:x?s3cret=1@h/d", "postgresql://u:s3cret\u2100@h/d",
    # no host, no @, the parameter in a wrong place or with a wrong name
    "postgresql://u:s3cret", "postgresql://u:s3cret/d", "postgresql://h/d&password=s3cret",
    "postgresql://h/d?pass%77ord=s3cret", "postgresql://h/d?password=x&s3cret", "postgresql://h/d;password=s3cret",
    "postgresql://h/d?max_size=3&PassWord=s3cret&foo=1", "postgresql://h/d?password=s3cret#x",
    # key=value texts
    "host=h password=x s3cret", "host=h password = s3cret", "password=s3cret", "host=h passwd=s3cret",
    "host=h,password=s3cret", "host=h;password=s3cret", "host=h password='s3cret", "host='u:s3cret@h'",
    "dbname=postgresql://u:s3cret@h/d", "dbname='host=h password=s3cret'", "PASSWORD=s3cret", "host=h pwd:s3cret@x",
]  # fmt: skip


def use(pool: Any) -> Iterator[str]:
    """All texts that a pool shows before it has connected."""
    yield repr(pool)
    for verb in ("stats", "get_stats", "holders"):
        if hasattr(pool, verb):
            yield repr(getattr(pool, verb)())
    yield str(getattr(pool, "name", ""))
    with contextlib.suppress(Exception):
        pool.close()


def in_manager(mapping: dict[str, Any]) -> Iterator[str]:
    manager = PoolManager.from_mapping(mapping)
    yield repr(manager)
    for name in manager:
        yield from use(manager[name])


def configured(configs: dict[str, Any]) -> Iterator[str]:
    for config in configs.values():
        yield repr(config)
        yield repr(config.lines())


def command(*arguments: str) -> Iterator[str]:
    with contextlib.suppress(SystemExit):
        main(arguments)
    yield ""


def app(environ: Any, start_response: Any) -> list[bytes]:
    return []


def shop(text: str) -> Iterator[str]:
    flask = pytest.importorskip("flask")
    from pooling.web.flask import Pooling

    one = flask.Flask("shop")
    one.config["POOLING"] = {"db": text}
    Pooling(one)
    result = one.test_cli_runner().invoke(args=["pooling", "status"])
    yield result.output


def django_options(text: str) -> Iterator[str]:
    pytest.importorskip("django")
    from pooling.web.django._options import PoolOptions

    yield repr(PoolOptions(text, set()))


def quick(conninfo: str = "", **kwargs: Any) -> PostgresPool:
    return PostgresPool(conninfo, PoolSettings(min_size=0), **kwargs)


def mysql(text: str) -> str:
    """The same address, of MySQL."""
    return re.sub("(?i)postgresql|postgis|psql", "mysql", text)


def redis_url(text: str) -> str:
    return re.sub("(?i)postgresql|postgis|psql", "redis", text)


def http_url(text: str) -> str:
    return re.sub("(?i)postgresql|postgis|psql", "https", text)


def budget(store: str) -> Iterator[str]:
    one = FleetBudget(9, store=store, name=f"b{next(_numbers)}")
    yield repr(one)
    yield repr(one.stats())
    pool: Pool[Any] = Pool(object, budget=one)
    yield from use(pool)


def sentinels(text: str) -> Iterator[str]:
    """A password of the sentinels, and of the servers."""
    sentinel = redis.sentinel.Sentinel([("127.0.0.1", 1)], sentinel_kwargs={"password": text}, password=text)
    client: Any = sentinel.master_for("orders", connection_pool_class=RedisSentinelPool)
    yield repr(client.connection_pool)
    yield from use(client.connection_pool)


def http2(text: str, argument: str) -> Iterator[str]:
    from pooling import HTTP2Pool

    return use(HTTP2Pool(**{argument: text}))


_numbers = itertools.count()

LATER_DOORS: dict[str, Callable[[str], Iterator[str]]] = {
    "from_url(mysql)": lambda text: use(from_url(mysql(text))),
    "MySQLPool": lambda text: use(MySQLPool(mysql(text), PoolSettings(min_size=0))),
    "MySQLPool(kwargs host)": lambda text: use(MySQLPool("", PoolSettings(min_size=0), kwargs={"host": text})),
    "MySQLPool(kwargs name)": lambda text: use(MySQLPool("", PoolSettings(min_size=0), kwargs={text: 1})),
    "MySQLPool(settings)": lambda text: use(MySQLPool("mysql://h", text)),  # type: ignore[arg-type]
    "MySQLPool(session)": lambda text: use(MySQLPool("mysql://h", session=text)),
    "MySQLPool(command_timeout)": lambda text: use(MySQLPool("mysql://h", command_timeout=text)),  # type: ignore[arg-type]
    "MySQLPool(driver)": lambda text: use(MySQLPool("mysql://h", driver=text)),
    "MySQLPool(budget)": lambda text: use(MySQLPool("mysql://h", budget=text)),
    "DATABASE_URL(mysql)": lambda text: configured(from_env("", {"DATABASE_URL": mysql(text)})),
    "config --url (mysql)": lambda text: command("config", f"--url={mysql(text)}"),
    "doctor --dsn (mysql)": lambda text: command("doctor", f"--dsn={mysql(text)}"),
    "from_url(redis)": lambda text: use(from_url(redis_url(text))),
    "RedisPool.from_url": lambda text: use(RedisPool.from_url(redis_url(text))),
    "RedisPool(host)": lambda text: use(RedisPool(host=text)),
    "RedisPool(max_connections)": lambda text: use(RedisPool(max_connections=text)),
    "RedisSentinelPool": sentinels,
    "from_url(https)": lambda text: use(from_url(http_url(text))),
    "HTTPPool": lambda text: use(HTTPPool(http_url(text))),  # type: ignore[arg-type]
    "HTTPPool(base_url)": lambda text: use(HTTPPool(base_url=http_url(text))),
    "HTTPPool(health_url)": lambda text: use(HTTPPool(health_url=http_url(text))),
    "HTTPPool(cookies)": lambda text: use(HTTPPool(cookies=text)),  # type: ignore[arg-type]
    "HTTPPool(warm_up)": lambda text: use(HTTPPool(warm_up=http_url(text))),  # type: ignore[call-arg]
    "HTTP2Pool": lambda text: http2(http_url(text), "settings"),
    "HTTP2Pool(base_url)": lambda text: http2(http_url(text), "base_url"),
    "HTTP2Pool(health_url)": lambda text: http2(http_url(text), "health_url"),
    "HTTP2Pool(verify)": lambda text: http2(text, "verify"),
    "FleetBudget(store)": budget,
    "FleetBudget(store redis)": lambda text: budget(redis_url(text)),
    "FleetBudget(name)": lambda text: iter([repr(FleetBudget(9, name=text))]),
    "FleetBudget(total)": lambda text: iter([repr(FleetBudget(text))]),  # type: ignore[arg-type]
    "FleetBudget.parse": lambda text: iter([repr(FleetBudget.parse(f"9,store={redis_url(text)}"))]),
    "POOLING_BUDGET": lambda text: iter([repr(budget_from_env({"POOLING_BUDGET": text}))]),
    "from_url(budget)": lambda text: use(from_url(f"postgresql://h/d?budget={quote(text)}")),
    "Webhook": lambda text: iter([repr(Webhook(http_url(text)))]),
    "Alerts(targets)": lambda text: iter([repr(Alerts(targets=[text]))]),  # type: ignore[list-item]
    "create_engine": lambda text: iter([from_url(text, engine=True).pool.status()]),
    "sqlalchemy+": lambda text: iter([from_url(f"sqlalchemy+{mysql(text)}").pool.status()]),
    "acquire(lane)": lambda text: iter([repr(Pool(object, lanes={"a": Lane()}).acquire(lane=text))]),
    "acquire(timeout)": lambda text: iter([repr(Pool(object).acquire(text))]),  # type: ignore[arg-type]
    "settings(lanes)": lambda text: use(Pool(object, lanes=text)),  # type: ignore[arg-type]
}

DOORS: dict[str, Callable[[str], Iterator[str]]] = {
    **LATER_DOORS,
    "from_url": lambda text: use(from_url(text)),
    "PostgresPool": lambda text: use(quick(text)),
    "PostgresPool(callable)": lambda text: iter([repr(Address(lambda: text, None, 30, {}).ask())]),
    "PostgresPool(kwargs host)": lambda text: use(quick(kwargs={"host": text})),
    "PostgresPool(kwargs dbname)": lambda text: use(quick(kwargs={"dbname": text})),
    "PostgresPool(kwargs port)": lambda text: use(quick(kwargs={"port": text})),
    "PostgresPool(kwargs name)": lambda text: use(quick(kwargs={text: 1})),
    "PostgresPool(settings)": lambda text: use(PostgresPool("host=h", text)),  # type: ignore[arg-type]
    "PostgresPool(session)": lambda text: use(quick("host=h", session=text)),
    "PostgresPool(check)": lambda text: use(quick("host=h", check=text)),
    "PostgresPool(command_timeout)": lambda text: use(quick("host=h", command_timeout=text)),
    "PostgresPool(name)": lambda text: use(quick("host=h", name=text)) if "://" in text else iter(()),
    "SQLitePool": lambda text: use(SQLitePool(text)),
    "SQLitePool(settings)": lambda text: use(SQLitePool("x.db", text)),  # type: ignore[arg-type]
    "SQLitePool(timeout)": lambda text: use(SQLitePool("x.db", timeout=text)),  # type: ignore[arg-type]
    "SQLitePool(configure)": lambda text: use(SQLitePool("x.db", configure=text)),  # type: ignore[arg-type]
    "SQLitePool.from_url": lambda text: use(SQLitePool.from_url(text)),
    "a sqlite URL": lambda text: use(from_url(f"sqlite:///{text}")),
    "a sqlite URL's query": lambda text: use(from_url(f"sqlite:///x.db?timeout={text}")),
    "Pool": lambda text: use(Pool(text)),  # type: ignore[arg-type]
    "Pool(adapter)": lambda text: use(Pool(adapter=text)),  # type: ignore[arg-type]
    "Pool(observers)": lambda text: use(Pool(object, observers=[text])),  # type: ignore[list-item]
    "PoolSettings": lambda text: iter([repr(PoolSettings(max_size=text))]),  # type: ignore[arg-type]
    "PoolSettings.replace": lambda text: iter([repr(PoolSettings().replace(**{text: 1}))]),
    "PoolSettings.from_mapping": lambda text: iter([repr(PoolSettings.from_mapping({"max_size": text}))]),
    "PoolSettings.from_mapping(name)": lambda text: iter([repr(PoolSettings.from_mapping({text: 1}))]),
    "PoolSettings.from_env": lambda text: iter([repr(PoolSettings.from_env("DB_", {"DB_MAX_SIZE": text}))]),
    "create_pool": lambda text: use(PoolManager().create_pool("db", text)),
    "create_pool(name)": lambda text: use(PoolManager().create_pool(text, "db")),
    "add_pool(name)": lambda text: iter([repr(PoolManager().add_pool(Pool(object), text))]),  # type: ignore[func-returns-value]
    "get_pool": lambda text: use(PoolManager().get_pool(text)),
    "a manager's mapping": lambda text: in_manager({"db": text}),
    "a manager's url": lambda text: in_manager({"db": {"url": text, "max_size": 3}}),
    "a manager's setting": lambda text: in_manager({"db": {"url": "sqlite://", "max_size": text}}),
    "a manager's kwargs": lambda text: in_manager({"db": {"url": "postgresql://h", "kwargs": {"host": text}}}),
    "a mapping's name": lambda text: in_manager({text: 3}),
    "url_of": lambda text: iter([masked(url_of(text))]),
    "DATABASE_URL": lambda text: configured(from_env("", {"DATABASE_URL": text})),
    "DB_MAX_SIZE": lambda text: configured(from_env("", {"DB_MAX_SIZE": text}, database="x.db")),
    "HTTP_BASE_URL": lambda text: configured(from_env("", {"HTTP_BASE_URL": text})),
    "HTTP_READ_TIMEOUT": lambda text: configured(from_env("", {"HTTP_READ_TIMEOUT": text})),
    "HTTP_RETRY_ATTEMPTS": lambda text: configured(from_env("", {"HTTP_RETRY_ATTEMPTS": text})),
    "ENABLE_METRICS": lambda text: configured(from_env("", {"ENABLE_METRICS": text})),
    "config's mapping": lambda text: configured(from_mapping({"db": text})),
    "config --url": lambda text: command("config", f"--url={text}"),
    "config --database": lambda text: command("config", f"--database={text}"),
    "doctor --dsn": lambda text: command("doctor", f"--dsn={text}"),
    "doctor": lambda text: command("doctor", text),
    "doctor --workers": lambda text: command("doctor", "--dsn=x", f"--workers={text}"),
    "a command": lambda text: command(text),
    "demo --dsn": lambda text: use(PostgresDatabase(text).place("pooled").pool(PoolSettings(min_size=0))),
    "ConnectionPool": lambda text: use(ConnectionPool(text, min_size=0, open=False)),
    "ConnectionPool(kwargs)": lambda text: use(ConnectionPool("", kwargs={"host": text}, min_size=0, open=False)),
    "PoolingMiddleware": lambda text: iter([repr(PoolingMiddleware(app, database_url=text).manager)]),
    "PoolingMiddleware(app)": lambda text: iter([repr(PoolingMiddleware(text))]),  # type: ignore[arg-type]
    "Flask": shop,
    "Django": django_options,
}


@pytest.fixture(autouse=True)
def no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no test connect to such addresses; the error quotes the host that libpq was given."""

    def connect(*args: Any, **given: Any) -> Any:
        raise psycopg.OperationalError(f"failed to resolve host '{given.get('host')}': no such name")

    monkeypatch.setattr(psycopg.Connection, "connect", connect)
    monkeypatch.setattr(psycopg, "connect", connect)
    monkeypatch.delenv("DATABASE_URL", raising=False)


@pytest.mark.parametrize("door", DOORS)
def test_secret_is_never_shown(
    door: str, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    out: dict[str, str] = {}
    for address in ADDRESSES:
        caplog.clear()
        with caplog.at_level(logging.DEBUG):
            try:
                texts = "\n".join(DOORS[door](address))
            except Exception as error:
                texts = "".join(line for one in chain(error) for line in traceback.format_exception_only(one))
        said = "\n".join([texts, *(record.getMessage() for record in caplog.records), *capsys.readouterr()])
        if SECRET in said:
            out[address] = said
    assert out == {}


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and all that a traceback shows with it."""
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def test_connection_error_is_shown_without_quoted_secrets(caplog: pytest.LogCaptureFixture) -> None:
    """In health, status, timeouts and the log."""

    def connect() -> Any:
        raise OSError("cannot reach 'postgresql://u:s3cret@h/d': host name \"s3cret@h\"; password=s3cret u:s3cret@h")

    with caplog.at_level(logging.DEBUG), PoolManager() as manager:
        pool = manager.create_pool("db", connect, settings=PoolSettings(acquire_timeout=0.05, min_size=0))
        with pytest.raises(PoolTimeout) as caught:
            pool.acquire()
        health = manager.health_check(0.05)
        texts = [str(caught.value), repr(pool), repr(pool.stats()), repr(health), str(health), repr(health.to_dict())]
        texts += [record.getMessage() for record in caplog.records]
    assert "cannot reach" in texts[0]
    assert [text for text in texts if SECRET in text] == []


def test_repr_of_connection_arguments_shows_no_secret() -> None:
    assert SECRET not in repr(Answer(1, 2, {"password": SECRET}))
    assert SECRET not in repr(PostgresDatabase("host=h password=s3cret").place("pooled"))


PIECES = st.lists(st.sampled_from([*"@:/?#&=%; '[]\\\n", "x", "1", "://", "max_size=", "password", "%40"]), max_size=5)


@given(before=PIECES, after=PIECES, form=st.sampled_from([
    "postgresql://u:{}@h/d", "postgresql://u:{}@h:5432/d?sslmode=require", "u:{}@h/d", "postgresql:/u:{}@h/d", "u:{}@h",
]))  # fmt: skip
def test_no_password_is_shown(before: list[str], after: list[str], form: str) -> None:
    address = form.format("".join(before) + SECRET + "".join(after))
    assert SECRET not in masked(address)
    for door in ("from_url", "PostgresPool", "create_pool", "a manager's url", "DATABASE_URL", "SQLitePool"):
        try:
            texts = "\n".join(DOORS[door](address))
        except Exception as error:
            texts = "\n".join(map(str, chain(error)))
        assert SECRET not in texts, door


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Access denied for user 'app'@'localhost' (using password: YES)", None),
        ('FATAL: password authentication failed for user "app"', None),
        ("connection to postgresql://app@h/d failed", None),
        ("no such file: /a/b.db", None),
        ("token expired; key is missing", None),
        ("failed to resolve host 'x@h': no", "failed to resolve host '***@h': no"),
        ("bad URL <https://x@h/y>, see u:x@h", "bad URL <https://***@h/y>, see ***@h"),
        ("{'password': 'x\\'y', 'host': 'h'}", "{'password': ***, 'host': 'h'}"),
        ("host=h password='x y' user=u", "host=h password=*** user=u"),
        ("http://h/?token=x&a=1", "http://h/?token=***&a=1"),
    ],
)
def test_messages_of_drivers_stay_readable(text: str, expected: str | None) -> None:
    assert without_secrets(text) == (text if expected is None else expected)


@pytest.mark.parametrize("name", ["app.db", "/a/me@home.db", "a b.db", "file:x.db?mode=ro", ":memory:", "a=b.db"])
def test_file_names_are_not_taken_for_addresses(name: str) -> None:
    SQLitePool(name).close()


def test_address_is_not_taken_for_a_file_name(tmp_path: Any) -> None:
    for text in ("u:x@h/d", "host=h dbname=d", "me@home.db", "password=x", "postgresql:/h/d"):
        with pytest.raises(ValueError, match=r"DATABASE_URL: the database is neither a URL.*sqlite:///name"):
            from_env("", {"DATABASE_URL": text})
    assert url_of(tmp_path / "me@home.db") == f"sqlite:///{tmp_path}/me%40home.db"
    for path in (tmp_path / "a:b@c.db", tmp_path / "password=x"):
        with SQLitePool(path) as db:
            assert db.execute_query("SELECT 1") == [(1,)]


@pytest.mark.parametrize(
    ("conninfo", "words"),
    [
        ("postgresql://u:x@y@h/d", "conninfo: the host contains an @; user and password must be percent-encoded, @"),
        ("postgresql://u:x/y@h/d", "conninfo: the port is not a number; user and password must be"),
        ("postgresql://u:1/y@h/d", "conninfo: dbname looks like an address, not a name; user and"),
        ("host=u:x@h", "conninfo: the host contains an @$"),
        ("dbname=postgresql://h/d", "conninfo: dbname looks like an address, not a name"),
    ],
)
def test_an_address_that_libpq_would_misread_is_refused(conninfo: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        PostgresPool(conninfo)


def test_address_that_libpq_reads_correctly_is_accepted() -> None:
    for conninfo in ("host=@abstract", "dbname=a@b", "postgresql://a:1,b:2/d", "postgresql://%2Ftmp/d", "postgresql:///d"):
        PostgresPool(conninfo).close()


@pytest.mark.parametrize(
    "text", ["db:primary", "10:30", "app.db", "/a/b.db", "file:/a/b.db?mode=ro", ":memory:", "a=b", "-c x=1"]
)
def test_text_that_is_not_an_address_is_shown(text: str) -> None:
    assert masked(text) == text


def test_json_is_neither_shown_nor_taken_for_a_file(tmp_path: Any) -> None:
    said = '{"username": "app", "password": "S3cret"}'  # as secrets managers give it
    for wrong in (
        lambda: PoolSettings.from_mapping({"max_size": said}),
        lambda: PostgresPool("host=db", configure=said),  # type: ignore[arg-type]
        lambda: from_env("", {"DATABASE_URL": said}),
    ):
        with pytest.raises((TypeError, ValueError)) as caught:
            wrong()  # type: ignore[no-untyped-call]
        assert "S3cret" not in str(caught.value)

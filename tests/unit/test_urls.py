"""Pools by URL: the kind of pool, settings and driver parameters, and error messages."""

from __future__ import annotations

import gc
import importlib.metadata
import os
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest

from pooling import CreateFailed, HTTPPool, Pool, PoolSettings, PostgresPool, SQLitePool, from_url
from pooling import _urls as urls
from pooling.adapters.http import HTTPTimeout


class Kind(Pool[Any]):
    """A pool class of another package."""

    def __init__(self, url: str, *, settings: PoolSettings | None, name: str | None, **more: Any) -> None:
        super().__init__(object, settings=settings, name=name)
        self.given = url, more


def point(name: str, load: Any) -> Any:
    return SimpleNamespace(name=name, load=load)


@pytest.fixture
def others(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The entry points of other installed packages."""
    found: list[Any] = []
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: found if group == "pooling.schemes" else [])
    return found


def arguments_of(pool: PostgresPool, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Return what a pool gives to psycopg to connect with."""
    found: dict[str, Any] = {}

    def connect(conninfo: str = "", **given: Any) -> Any:
        found.update(psycopg.conninfo.conninfo_to_dict(conninfo), **given)
        raise psycopg.OperationalError("not here")

    with monkeypatch.context() as patch, pytest.raises(psycopg.OperationalError, match="not here"):
        patch.setattr(psycopg.Connection, "connect", connect)
        pool.engine.adapter.create()
    return found


@pytest.mark.parametrize(
    ("url", "kind"),
    [
        ("postgresql://app@localhost/orders", PostgresPool),
        ("postgres://app@localhost/orders", PostgresPool),
        ("sqlite:///app.db", SQLitePool),
        ("SQLITE://", SQLitePool),
        ("http://localhost:8000/api", HTTPPool),
        ("https://api.example.com", HTTPPool),
    ],
)
def test_scheme_selects_the_pool_class(url: str, kind: type) -> None:
    pool = from_url(url, name="mine")
    assert type(pool) is kind
    assert pool.name == "mine"
    assert pool.stats()["size"] == 0  # nothing was opened


@pytest.mark.parametrize(
    "scheme",
    ["postgresql", "POSTGRESQL", "postgres", "postgresql+psycopg", "postgresql+psycopg2", "postgis", "PostGIS"],
)
def test_other_names_of_postgresql(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By URL, by the class, and in the environment."""
    url = f"{scheme}://app:x@h/orders?sslmode=require"
    monkeypatch.setenv("DATABASE_URL", url)
    for pool in (from_url(url), PostgresPool(url), PostgresPool(lambda: url), PostgresPool()):
        assert isinstance(pool, PostgresPool)
        found = arguments_of(pool, monkeypatch)
        assert (found["host"], found["dbname"], found["password"]) == ("h", "orders", "x")
        pool.close()


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("sqlite3:///app.db", "app.db"),
        ("sqlite+pysqlite:///app.db", "app.db"),
        ("SQLite:///app.db", "app.db"),
        ("sqlite:app.db", "app.db"),
        ("sqlite:/var/app.db", "/var/app.db"),
        ("sqlite3:/var/app.db", "/var/app.db"),
        ("sqlite+pysqlite:/var/app.db", "/var/app.db"),
        ("sqlite:////var/app.db", "/var/app.db"),
        ("sqlite:/var/app.db?readers=2", "/var/app.db"),
    ],
)
def test_other_names_of_sqlite(url: str, path: str) -> None:
    pool = from_url(url)
    assert isinstance(pool, SQLitePool)
    assert pool.writer.engine.adapter.path == os.path.abspath(path)  # type: ignore[attr-defined]
    assert (pool.readers is not None) == ("readers" in url)


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("pool_size=5", {"max_size": 5}),
        ("pool_size=5&max_overflow=10", {"max_size": 15, "max_idle": 5}),
        ("connection_limit=5&pool_timeout=3", {"max_size": 5, "acquire_timeout": 3.0}),
        ("pool_recycle=60&pool_pre_ping=true", {"max_lifetime": 60.0}),
        ("pool_recycle=-1", {"max_lifetime": None}),
        ("timeout=3", {"acquire_timeout": 3.0}),
    ],
)
def test_other_names_of_settings(query: str, expected: dict[str, Any]) -> None:
    assert from_url(f"postgresql://h/x?{query}").settings == PoolSettings(**expected)
    if "timeout" not in query:
        assert from_url(f"sqlite:///x.db?{query}").settings == PoolSettings(**expected)


def test_timeout_parameter_of_the_adapter_is_not_a_setting() -> None:
    pool = from_url("sqlite:///x.db?timeout=3")
    assert pool.writer.engine.adapter.timeout == 3.0  # type: ignore[attr-defined]
    assert pool.settings == PoolSettings()
    api = from_url("https://h?timeout=3&pool_timeout=4")
    assert api.settings.acquire_timeout == PoolSettings().acquire_timeout


@pytest.mark.parametrize("url", ["postgresql://h/x", "sqlite:///x.db", "https://h"])
def test_hikaricps_names_are_refused(url: str) -> None:
    with pytest.raises(ValueError, match="HikariCP's name, in milliseconds; use acquire_timeout, in seconds"):
        from_url(f"{url}?connectionTimeout=30000")


def test_hint_is_about_the_parameter_that_the_error_names() -> None:
    for url, hint in (
        ("postgresql://h/x?connect_timeout=5&max_sise=1", "did you mean 'max_size' instead of 'max_sise'.$"),
        ("postgresql://h/x?connect_timeout=5&foo=1", '"foo"$'),
        ("sqlite:///x.db?timeout=soon", "not 'soon'$"),
        ("sqlite:///x.db?pool_sise=3", "did you mean 'pool_size' instead of 'pool_sise'"),
        ("sqlit:///x.db", "did you mean 'sqlite'"),
        ("pgsql+psycopg2://h/x", "did you mean 'postgresql'"),
        ("oracle://h/x", "unknown scheme 'oracle' .known"),
        ("mysql://h/x?max_sise=1", "did you mean 'max_size' instead of 'max_sise'"),
    ):
        with pytest.raises(ValueError, match=hint):
            from_url(url)


def test_settings_are_taken_out_of_the_query() -> None:
    base = PoolSettings(max_uses=7)
    pool = from_url("sqlite:///app.db?max_connections=3&timeout=2&idle_timeout=never", settings=base)
    assert (pool.settings.max_size, pool.settings.idle_timeout, pool.settings.max_uses) == (3, None, 7)
    assert pool.writer.engine.adapter.timeout == 2.0  # type: ignore[attr-defined]


def test_parameters_of_the_driver_stay_in_the_url(others: list[Any]) -> None:
    others.append(point("mine", lambda: Kind))
    pool = from_url("mine://host/x?a=1&max_size=4&b=%26", zone="north")
    assert isinstance(pool, Kind)
    assert pool.given == ("mine://host/x?a=1&b=%26", {"zone": "north"})
    assert pool.settings.max_size == 4


def test_http_url_gives_the_base_and_its_query_the_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = from_url("https://api.example.com/v1?max_size=4&connect_timeout=2&verify=false")
    assert isinstance(pool, HTTPPool)
    requested: list[str] = []
    session = SimpleNamespace(request=lambda method, url, **given: requested.append(url))
    monkeypatch.setattr(pool, "session", lambda: session)
    pool.get("/orders")
    assert requested == ["https://api.example.com/v1/orders"]
    assert pool.settings.max_size == 4


@pytest.mark.parametrize(
    ("query", "timeout"),
    [
        ("timeout=4", HTTPTimeout(connect=4, read=4)),
        ("connect_timeout=2", HTTPTimeout(connect=2)),
        ("read_timeout=9&total_timeout=20", HTTPTimeout(read=9, total=20)),
        ("timeout=4&connect_timeout=2", HTTPTimeout(connect=2, read=4)),
    ],
)
def test_timeouts_of_an_http_url(monkeypatch: pytest.MonkeyPatch, query: str, timeout: object) -> None:
    made: list[dict[str, Any]] = []
    monkeypatch.setattr("pooling.adapters.http.HTTPPool", lambda **given: made.append(given))
    from_url(f"https://h/x?{query}&max_idle=7")
    given = made[0]
    assert HTTPTimeout.of(given["timeout"], HTTPTimeout()) == timeout
    assert given["base_url"] == "https://h/x"
    assert (given["settings"].max_size, given["settings"].max_idle) == (100, 7)  # as without a setting


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("sqlite", "must begin with a scheme"),
        ("://x", "must begin with a scheme"),
        ("sqlit:///x", "unknown scheme 'sqlit'; did you mean 'sqlite'"),
        ("ftp://x", "known: http, https, mariadb, mysql, postgres, postgresql, redis, rediss, sqlalchemy"),
        ("gopher://x", r"packages add others with an entry point 'pooling.schemes'.*create_pool.name, connect"),
        ("sqlite:///x?max_size=two", "max_size='two': max_size must be a whole number"),
        ("sqlite:///x?max_size=1&max_size=2", "max_size is given twice"),
        ("sqlite:///x?max_sise=2", "unknown parameter 'max_sise'; did you mean 'max_size' instead of 'max_sise'"),
        ("sqlite:///x?readers=many", "readers must be a whole number, not 'many'"),
        ("sqlite:///x?optimize=perhaps", "optimize must be true or false"),
        ("sqlite://host/x", "a host .'host'. is not supported"),
        ("postgresql://h/x?max_sise=2", "did you mean 'max_size'"),
        ("postgresql://a:pw@h/x?foo=1", '[*]@h/x.foo=1: conninfo: invalid URI query parameter: "foo"'),
        ("postgresql://h/x?foo", 'conninfo: missing key/value separator "=" in URI query parameter: "foo"'),
        ("https://h?tiemout=3", "unknown parameter 'tiemout'"),
        ("https://h?timeout=soon", "timeout='soon'"),
        ("https://h?timeout=0", "must be above 0"),
        ("https://h?pooled=perhaps", "pooled='perhaps'"),
    ],
)
def test_bad_url_is_explained(url: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        from_url(url)


@pytest.mark.parametrize(
    ("conninfo", "words"),
    [
        ("host=h foo=1 password=s3cret", 'conninfo: invalid connection option "foo"'),
        ("host=h password=a s3cret=1", "conninfo is neither a .* nor key=value pairs, or names a parameter"),
        ("host=h password=a s3cret", "conninfo is neither"),
        ("s3cret", "conninfo is neither"),
        ("postgresql://a:s3cret%zz@h/x", "conninfo is no well-formed postgresql:// URL"),
        ("postgresql://a:s3cret@[::1/x", "conninfo is no well-formed"),
        ("postgresql://a:s/x?s3cret=1@h", "conninfo is no well-formed"),
    ],
)
def test_error_quotes_libpq_without_passwords(conninfo: str, words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        PostgresPool(conninfo)
    assert "s3cret" not in str(caught.value)


def test_unreadable_url_parameter_fails_at_once() -> None:
    """psycopg refuses it before it connects, so the error does not take until the deadline."""
    pool = from_url("postgresql://127.0.0.1:1/x?connect_timeout=abc&min_size=0&acquire_timeout=30")
    with pytest.raises(CreateFailed, match="bad value for connect_timeout: 'abc'"):
        pool.acquire()
    pool.close()


def test_a_question_mark_in_a_password(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = from_url("postgresql://a:se?cret@h/x?max_size=3")
    assert isinstance(pool, PostgresPool)
    assert pool.settings.max_size == 3
    assert arguments_of(pool, monkeypatch)["password"] == "se?cret"


def test_bad_argument_is_named() -> None:
    with pytest.raises(TypeError, match="colour"):
        from_url("sqlite:///x", colour="blue")
    with pytest.raises(TypeError, match="url must be a string, not int"):
        from_url(3)  # type: ignore[arg-type]


def test_missing_driver_is_named(monkeypatch: pytest.MonkeyPatch, others: list[Any]) -> None:
    monkeypatch.setitem(urls.SCHEMES, "postgresql", "no_such_driver:Pool")
    with pytest.raises(ImportError, match=r'postgresql:// needs a driver.*no_such_driver.*pooling\[binary\]'):
        from_url("postgresql://h/x")

    def missing() -> Any:
        raise ImportError("no module named 'their_driver'")

    others.append(point("theirs", missing))
    with pytest.raises(ImportError, match=r"theirs:// needs a driver.*their_driver"):
        from_url("theirs://h/x")


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://app@h/x", "postgresql://app@h/x"),
        ("postgresql://app:s3cret@h/x", "postgresql://app:***@h/x"),
        ("postgresql://app:s3c@ret@h/x", "postgresql://app:***@h/x"),
        ("postgresql://:s3cret@h", "postgresql://:***@h"),
        ("postgresql://app:s3?cret@h/x", "postgresql://app:***@h/x"),
        ("postgresql://app:s3#cret@h/x?a=b@c", "postgresql://app:***@c"),
        ("postgresql://app:s3/cr?et@h/x?a=1", "postgresql://app:***@h/x?a=1"),
        ("postgresql://app:s3@c/r?et@h/x", "postgresql://app:***@h/x"),
        ("https://s3cret@h/x", "https://***@h/x"),
        ("https://s3?cret@h", "https://***@h"),
        ("HTTPS://s3cret:@h?a=1", "HTTPS://***@h?a=1"),
        ("https://h/@me?mail=a@b", "https://h/@me?mail=a@b"),
        ("https://h?mail=a@b", "https://h?mail=a@b"),
        ("https://h/?token=s3cret&a=1", "https://h/?token=***&a=1"),
        ("https://h/?a=1&API_KEY=s3cret#x", "https://h/?a=1&API_KEY=***#x"),
    ],
)
def test_secrets_are_masked(url: str, shown: str) -> None:
    assert urls.masked(url) == shown


def test_no_error_shows_a_password() -> None:
    for url in (
        "postgresql://a:s3cret@h/x?no=1", "postgresql://a:s3cret@h/x?max_size=0", "mysq://a:s3cret@h/x",
        "postgresql://a:x?s3cret@h/x?max_sise=0", "postgresql://a:x@y/z?s3cret@h/x?max_size=0",
        "https://s3cret@h?max_size=abc",
    ):  # fmt: skip
        with pytest.raises(ValueError) as caught:
            from_url(url)
        error: BaseException | None = caught.value
        while error is not None:
            assert "s3cret" not in str(error)
            error = error.__cause__ or error.__context__


@pytest.mark.parametrize(
    "url",
    ["postgresql://u@127.0.0.1:1/d", "mysql://u@127.0.0.1:1/d", "redis://127.0.0.1:1", "https://127.0.0.1:1",
     "sqlite:///{folder}/d.db", "sqlalchemy+sqlite:///{folder}/d.db"],
)  # fmt: skip
def test_a_dropped_pool_is_collected(url: str, tmp_path: Path) -> None:
    """What an adapter calls back must not keep the pool alive: the reaper has the adapter."""
    pool = from_url(url.format(folder=tmp_path), min_size=0)
    ref = weakref.ref(pool)
    del pool
    gc.collect()
    assert ref() is None

"""Configuration: exact names, any prefix, the source of each value, and what is refused."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from pooling import PoolSettings, SQLitePool, from_url
from pooling.__main__ import main
from pooling.adapters.http import HTTPTimeout
from pooling.config import DATABASE, HTTP, from_env, from_mapping, url_of

ROOT = Path(__file__).parents[2]
ALL = {
    "HTTP_MAX_CONNECTIONS": "50",
    "HTTP_MAX_CONNECTIONS_PER_HOST": "20",
    "HTTP_MAX_KEEPALIVE_CONNECTIONS": "15",
    "HTTP_KEEPALIVE_EXPIRY": "60",
    "HTTP_CONNECTION_TIMEOUT": "3",
    "HTTP_READ_TIMEOUT": "7.5",
    "HTTP_RETRY_ATTEMPTS": "2",
    "HTTP_POOLING": "off",
    "HTTP_BASE_URL": "https://api.example.com",
    "DATABASE_URL": "sqlite:///app.db",
    "DB_MAX_CONNECTIONS": "8",
    "DB_MIN_CONNECTIONS": "2",
    "DB_CONNECTION_TIMEOUT": "4",
    "DB_IDLE_TIMEOUT": "90",
    "ENABLE_METRICS": "false",
    "METRICS_EXPORT_INTERVAL": "30",
}


def check(prefix: str) -> None:
    configs = from_env(prefix, {prefix + name: text for name, text in ALL.items()})
    http, db = configs[HTTP], configs[DATABASE]
    assert http.settings is not None and db.settings is not None
    assert (http.settings.max_size, http.settings.max_idle, http.settings.idle_timeout) == (50, 15, 60.0)
    timeout = HTTPTimeout(connect=3, read=7.5)
    assert http.arguments == {"max_per_host": 20, "retry": 2, "timeout": timeout, "pooled": False}
    assert http.url == "https://api.example.com"
    assert (db.settings.max_size, db.settings.min_size) == (8, 2)
    assert (db.settings.acquire_timeout, db.settings.idle_timeout) == (4.0, 90.0)
    for one in (http.settings, db.settings):
        assert one.enable_metrics is False
        assert one.metrics_interval == PoolSettings().metrics_interval  # it is about exports, not about samples
    assert http.sources["max_size"] == prefix + "HTTP_MAX_CONNECTIONS"
    assert http.sources["timeout"] == f"{prefix}HTTP_CONNECTION_TIMEOUT, {prefix}HTTP_READ_TIMEOUT"
    assert db.sources["url"] == prefix + "DATABASE_URL"
    assert db.sources["enable_metrics"] == prefix + "ENABLE_METRICS"
    assert "max_lifetime" not in db.sources


def test_documented_variables_are_read() -> None:
    check("")


def test_variables_may_have_any_prefix() -> None:
    check("MARKET_")


def test_alternative_names_are_read() -> None:
    http = from_env("", {"HTTP_CONNECT_TIMEOUT": "2"})[HTTP]
    assert http.arguments == {"timeout": HTTPTimeout(connect=2)}
    db = from_env("", {"DATABASE_URL": "sqlite:///x", "DATABASE_MAX_POOL_SIZE": "30"})[DATABASE]
    assert db.settings is not None and db.settings.max_size == 30
    named = from_env("", {"DATABASE_URL": "sqlite:///x", "DB_BACKOFF_INITIAL": "0.2"})[DATABASE]
    assert named.settings is not None and named.settings.backoff.initial == 0.2


def test_defaults_apply_without_settings() -> None:
    configs = from_env("", {})
    assert list(configs) == [HTTP]
    settings = configs[HTTP].settings
    assert settings is not None and (settings.max_size, settings.idle_timeout) == (100, 300.0)
    db = from_env("", {}, database="app.db")[DATABASE].settings
    assert db is not None and (db.min_size, db.max_size, db.max_lifetime) == (5, 20, 3600.0)


def test_max_size_below_the_default_min_size_lowers_it() -> None:
    db = from_env("", {"DB_MAX_CONNECTIONS": "2"}, database="app.db")[DATABASE].settings
    assert db is not None and (db.min_size, db.max_size) == (2, 2)


def test_max_size_of_a_url_below_the_default_min_size_lowers_it() -> None:
    for query in ("max_size=3", "max_connections=3", "max_idle=3"):
        assert from_env("", {"DATABASE_URL": f"sqlite:///x.db?{query}"})[DATABASE].create().settings.min_size == 3
    assert from_env("", {"DB_MAX_IDLE": "4"}, database="x.db")[DATABASE].create().settings.min_size == 4
    assert main(["config", "--database", "postgresql://h/x?max_size=3"]) == 0
    said = {"DB_MIN_CONNECTIONS": "5", "DATABASE_URL": "sqlite:///x.db?max_size=3"}
    with pytest.raises(ValueError, match="min_size must be at most max_size .3., not 5"):
        from_env("", said)[DATABASE].create()


@pytest.mark.parametrize("empty", ["", " "])
def test_empty_variables_count_as_unset(empty: str) -> None:
    """Compose files pass unset variables like this."""
    names = (*ALL, "DB_URL", "HTTP_TOTAL_TIMEOUT", "HTTP_WRITE_TIMEOUT", "HTTP_MAX_LIFETIME", "DATABASE_MAX_POOL_SIZE")
    plain = from_env("", {}, database="x.db")
    assert from_env("", dict.fromkeys(names, empty), database="x.db") == plain
    assert DATABASE not in from_env("", dict.fromkeys(names, empty))
    both = from_env("", {"DATABASE_URL": empty, "DB_URL": "sqlite:///x.db"})[DATABASE]
    assert both.sources == {"url": "DB_URL"}
    shared = from_env("", {"ENABLE_METRICS": empty, "HTTP_ENABLE_METRICS": "off", "HTTP_MAX_SIZE": empty})
    assert shared[HTTP].create().settings.enable_metrics is False


YES, NO = ("1", "true", "YES", " on "), ("0", "false", "No", "off")


@pytest.mark.parametrize("text", [*YES, *NO])
def test_booleans_are_parsed_in_one_way_everywhere(text: str) -> None:
    expected = text in YES
    quoted = quote(text)
    assert from_url(f"sqlite:///x.db?validate_on_acquire={quoted}").settings.validate_on_acquire is expected
    assert from_url(f"sqlite:///x.db?optimize={quoted}").writer.engine.adapter.optimize is expected  # type: ignore[attr-defined]
    for name in ("compression", "verify", "trust_env", "pooled"):
        given: dict[str, Any] = {}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("pooling.adapters.http.HTTPPool", lambda given=given, **arguments: given.update(arguments))
            from_url(f"https://h?{name}={quoted}")
        assert given[name] is expected
    http = from_env("", {"HTTP_POOLING": text, "ENABLE_METRICS": text})[HTTP]
    assert http.arguments["pooled"] is expected
    assert http.settings is not None and http.settings.enable_metrics is expected
    db = from_env("", {"DB_VALIDATE_ON_ACQUIRE": text}, database="x.db")[DATABASE].settings
    assert db is not None and db.validate_on_acquire is expected


def test_pool_size_and_max_overflow_state_their_source() -> None:
    made = from_env("", {"DB_POOL_SIZE": "3", "DB_MAX_OVERFLOW": "2"}, database="x.db")[DATABASE]
    said = {what: (value, source) for what, value, source in made.lines()}
    assert (said["max_size"], said["max_idle"]) == (("5", "DB_POOL_SIZE"), ("3", "DB_POOL_SIZE"))
    made = from_env("", {"DATABASE_URL": "sqlite:///x.db?pool_size=3&max_overflow=2"})[DATABASE]
    said = {what: (value, source) for what, value, source in made.lines()}
    assert (said["max_size"], said["max_idle"], said["min_size"][0]) == (("5", "the URL"), ("3", "the URL"), "3")


def test_empty_database_is_not_an_in_memory_one() -> None:
    for empty in ("", " "):
        with pytest.raises(ValueError, match="the argument database: the database must not be empty; use ':memory:'"):
            from_env("", {}, database=empty)


def test_enable_metrics_with_a_prefix_overrides_the_one_without() -> None:
    said = {"ENABLE_METRICS": "no", "HTTP_ENABLE_METRICS": "yes"}
    settings = from_env("", said)[HTTP].settings
    assert settings is not None and settings.enable_metrics


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({"HTTP_MAX_CONNECTIONS": "many"}, "HTTP_MAX_CONNECTIONS='many': max_size must be a whole number"),
        ({"HTTP_MAX_CONNECTIONS_PER_HOST": "x"}, "HTTP_MAX_CONNECTIONS_PER_HOST='x': must be a whole number"),
        ({"HTTP_RETRY_ATTEMPTS": "-1"}, "HTTP_RETRY_ATTEMPTS='-1': must be a whole number, at least 0"),
        ({"HTTP_READ_TIMEOUT": "0"}, "HTTP_READ_TIMEOUT='0': must be a number of seconds above 0"),
        ({"HTTP_READ_TIMEOUT": "nan"}, "HTTP_READ_TIMEOUT='nan': must be a number"),
        ({"HTTP_CONNECT_TIMEOUT": "1", "HTTP_CONNECTION_TIMEOUT": "2"}, "both set the time to connect"),
        ({"DB_MAX_SIZE": "1", "DB_MAX_CONNECTIONS": "2"}, "DB_MAX_.* and DB_MAX_.* both set max_size"),
        ({"DB_MAX_SIZE": "1", "DATABASE_MAX_SIZE": "2"}, "DB_MAX_SIZE and DATABASE_MAX_SIZE both set"),
        ({"DB_MIN_SIZE": "9", "DB_MAX_SIZE": "8"}, "min_size must be at most max_size"),
        ({"ENABLE_METRICS": "perhaps"}, "ENABLE_METRICS='perhaps'"),
    ],
)
def test_error_names_the_variable(environ: dict[str, str], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        from_env("", environ, database="app.db")


def test_misspelled_variable_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        from_env("", {"DB_MAX_SIZ": "3", "DATABASE_URL": "sqlite:///x", "HTTP_READ_TIMEOUT": "3"})
    messages = [record.getMessage() for record in caplog.records]
    assert messages == ["DB_MAX_SIZ is not a setting; did you mean DB_MAX_SIZE?"]


@pytest.mark.parametrize(
    ("database", "url"),
    [
        ("app.db", "sqlite:///app.db"),
        ("/var/a b?.db", "sqlite:////var/a%20b%3F.db"),
        (":memory:", "sqlite:///"),
        ("postgresql://h/x", "postgresql://h/x"),
        ("POSTGRESQL://h/x", "postgresql://h/x"),
        ("postgis://h/x", "postgresql://h/x"),
        ("sqlite:/var/app.db", "sqlite:////var/app.db"),
        ("sqlite3:///app.db", "sqlite:///app.db"),
        ("file:app.db?mode=ro", "sqlite:///file%3Aapp.db%3Fmode%3Dro"),
    ],
)
def test_path_is_accepted_as_a_url(database: str, url: str) -> None:
    assert url_of(database) == url


def test_path_round_trips_unchanged() -> None:
    pool = from_env("", {}, database="/no where/a?b%.db")[DATABASE].create()
    assert isinstance(pool, SQLitePool)
    assert pool.writer.engine.adapter.path == "/no where/a?b%.db"  # type: ignore[attr-defined]


def test_mapping_configures_pools() -> None:
    configs = from_mapping({
        "db": "sqlite:///app.db?max_size=3",
        "log": {"url": "sqlite:///log.db", "max_connections": 4, "readers": 2, "critical": False},
    })  # fmt: skip
    assert configs["db"].create().settings.max_size == 3
    log = configs["log"]
    assert (log.critical, log.arguments, log.settings) == (False, {"readers": 2}, PoolSettings(max_size=4))
    assert log.sources == {"url": "log.url", "max_size": "log.max_connections", "readers": "log.readers"}
    assert isinstance(log.create(), SQLitePool)


def test_settings_override_the_defaults_of_the_scheme() -> None:
    for one in ("https://h", {"url": "https://h"}, {"url": "https://h", "max_lifetime": 60}, "https://h?max_lifetime=60"):
        settings = from_mapping({"api": one})["api"].create().settings
        assert (settings.min_size, settings.max_size) == (0, 100)


@pytest.mark.parametrize(
    ("mapping", "error", "words"),
    [
        ({"db": 3}, TypeError, "db must be a URL or a mapping, not int"),
        ({"": "sqlite://"}, TypeError, "a pool's name must be"),
        ({"db": {"max_size": 3}}, ValueError, "db: url must be a string"),
        ({"db": {"url": "sqlite://", "max_size": 0}}, ValueError, "db: max_size=0: max_size must be at least 1"),
        ({"db": {"url": "sqlite://", "critical": "so"}}, ValueError, "db: critical must be true or false, not 'so'"),
        ({"db": {"url": "sqlite://", "critical": 0}}, TypeError, "db: critical must be true or false, not 0"),
    ],
)
def test_bad_mapping_is_refused(mapping: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        from_mapping(mapping)


@pytest.mark.parametrize(("text", "value"), [("yes", True), ("ON", True), ("1", True), ("no", False), ("off", False)])
def test_booleans_are_parsed_in_the_same_way_everywhere(text: str, value: bool) -> None:
    with from_url(f"https://h?trust_env={text}&compression={text}&enable_metrics={text}") as pool:
        assert pool.settings.enable_metrics is value
    (config,) = from_mapping({"db": {"url": "sqlite://", "critical": text, "track_holders": text}}).values()
    assert (config.critical, config.create().settings.track_holders) == (value, value)
    assert from_env("", {"HTTP_POOLING": text})[HTTP].arguments["pooled"] is value
    settings = from_env("", {"DB_URL": "sqlite://", "DB_TRACK_HOLDERS": text})[DATABASE].settings
    assert settings is not None and settings.track_holders is value


# -- the command -----------------------------------------------------------------


def lines(output: str) -> dict[str, list[str]]:
    return {line.split()[0]: line.split()[1:] for line in output.splitlines() if line.startswith("  ")}


def test_config_command_shows_values_and_their_sources(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("DATABASE_URL", "DB_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DB_MAX_CONNECTIONS", "8")
    assert main(["config", "--database", "postgresql://app:s3cret@h/x?max_uses=7"]) == 0
    output = capsys.readouterr().out
    http, db = output.split("\n\n")
    assert http.startswith("http_pool\n")
    found = lines(db)
    assert found["url"] == ["postgresql://app:***@h/x?max_uses=7", "--database"]
    assert found["max_size"] == ["8", "DB_MAX_CONNECTIONS"]
    assert found["max_uses"] == ["7", "the", "URL"]
    assert found["max_lifetime"] == ["3600", "s", "default"]
    assert found["backoff_initial"] == ["0.05", "s", "default"]
    assert "s3cret" not in output


def test_config_command_says_that_there_is_no_database(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["config", "--prefix", "NOBODY_SETS_"]) == 0
    assert "no db_pool: NOBODY_SETS_DATABASE_URL is not set" in capsys.readouterr().out


def test_config_command_shows_one_url(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "--url", "sqlite:///x.db?max_size=3"]) == 0
    assert lines(capsys.readouterr().out)["max_size"] == ["3", "the", "URL"]


def test_config_command_shows_other_url_parameters(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "--url", "sqlite:///x.db?readers=3&statement_timeout=5&max_lifetime=3600"]) == 0
    found = lines(capsys.readouterr().out)
    assert (found["readers"], found["statement_timeout"]) == (["3", "the", "URL"], ["5", "the", "URL"])
    assert found["max_lifetime"] == ["3600", "s", "the", "URL"]  # which is the default, too
    assert main(["config", "--url", "postgresql://a:s?3cret@h/x?sslmode=require&sslpassword=s3cret"]) == 0
    output = capsys.readouterr().out
    assert lines(output)["sslmode"] == ["require", "the", "URL"]
    assert "3cret" not in output


def test_secrets_within_arguments_are_masked() -> None:
    kwargs = {"password": "s3cret", "application_name": "x", "options": [{"token": "s3cret"}, "https://s3cret@h"]}
    config = from_mapping({"db": {"url": "postgresql://h/x", "kwargs": kwargs}})["db"]
    shown = {what: value for what, value, _ in config.lines()}
    options = "[{'token': '***'}, 'https://***@h']"
    assert shown["kwargs"] == f"{{'password': '***', 'application_name': 'x', 'options': {options}}}"


def test_config_command_refuses_bad_values(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("X_HTTP_MAX_SIZE", "none")
    assert main(["config", "--prefix", "X_"]) == 1
    assert "error: X_HTTP_MAX_SIZE='none'" in capsys.readouterr().err


def test_closed_output_pipe_causes_no_traceback() -> None:
    """As with ``| head -1``; here the output is not read at all."""
    process = subprocess.Popen(
        [sys.executable, "-m", "pooling", "config", "--prefix", "NOBODY_SETS_"], cwd=ROOT,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    process.stdout.close()
    process.stdout = None
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (128 + 13, "")

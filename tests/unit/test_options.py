"""Every pool class takes the settings as keyword arguments, too, and type checkers know them."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import re
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pooling import (
    Backoff,
    HTTPPool,
    Pool,
    PoolManager,
    PoolSettings,
    PostgresPool,
    SQLitePool,
    from_url,
    init_http_pool,
    shutdown_http_pool,
)
from pooling.settings import PoolOptions
from pooling.testing import FakeAdapter, UnpooledPool

KINDS: dict[str, Callable[..., Pool[Any]]] = {
    "factory": lambda **given: Pool(object, **given),
    "adapter": lambda **given: Pool(adapter=FakeAdapter(), **given),
    "http": HTTPPool,
    "postgres": lambda **given: PostgresPool("postgresql://db.example.com/app", **given),
    "sqlite": lambda **given: SQLitePool(":memory:", **given),
    "unpooled": lambda **given: UnpooledPool(object, **given),
    "manager, function": lambda **given: PoolManager().create_pool("p", object, **given),
    "manager, adapter": lambda **given: PoolManager().create_pool("p", FakeAdapter(), **given),
    "manager, http": lambda **given: PoolManager().create_pool("p", "https://api.example.com", **given),
    "manager, postgres": lambda **given: PoolManager().create_pool("p", "postgresql://db.example.com/app", **given),
    "manager, sqlite": lambda **given: PoolManager().create_pool("p", "sqlite://", **given),
    "from_url": lambda **given: from_url("sqlite://", **given),
    "SQLitePool.from_url": lambda **given: SQLitePool.from_url("sqlite://", **given),
}
every_kind = pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)


@every_kind
def test_arguments_override_the_settings(make: Callable[..., Pool[Any]]) -> None:
    pool = make(settings=PoolSettings(max_size=7, acquire_timeout=3), max_size=5, backoff_initial=0.5)
    assert (pool.settings.max_size, pool.settings.acquire_timeout) == (5, 3)
    assert pool.settings.backoff == Backoff(initial=0.5)
    pool.close()


@every_kind
def test_arguments_override_the_defaults(make: Callable[..., Pool[Any]]) -> None:
    plain, pool = make(), make(idle_timeout=7)
    assert pool.settings == plain.settings.replace(idle_timeout=7)
    plain.close()
    pool.close()


@every_kind
@pytest.mark.parametrize(
    ("given", "error", "text"),
    [
        ({"max_size": 0}, ValueError, "PoolSettings.max_size must be at least 1, not 0"),
        ({"max_size": "5"}, TypeError, "PoolSettings.max_size must be a whole number, not '5'"),
        ({"max_size": None}, TypeError, "PoolSettings.max_size must be a whole number, not None"),
        ({"idle_timeout": -1}, ValueError, "PoolSettings.idle_timeout must be above 0 or None, not -1"),
        ({"max_sise": 3}, TypeError, "unknown setting 'max_sise'; did you mean 'max_size'?"),
        ({"max_connections": 3}, TypeError, "unknown setting 'max_connections'; did you mean 'max_size'?"),
    ],
    ids=repr,
)
def test_options_are_checked_as_settings_are(
    make: Callable[..., Pool[Any]], given: dict[str, Any], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=re.escape(text)):
        make(**given)


def test_options_must_be_consistent_with_the_settings() -> None:
    with pytest.raises(ValueError, match=re.escape("PoolSettings.min_size must be at most max_size (3), not 5")):
        Pool(object, settings=PoolSettings(min_size=5), max_size=3)


def test_misspelt_argument_of_the_class_gets_a_hint() -> None:
    for kind, typo, meant in (
        (lambda **given: Pool(object, **given), "validat", "validate"),
        (HTTPPool, "base_ur", "base_url"),
        (PostgresPool, "comand_timeout", "command_timeout"),
        (lambda **given: SQLitePool(":memory:", **given), "reader", "readers"),
    ):
        with pytest.raises(TypeError, match=re.escape(f"unknown setting '{typo}'; did you mean '{meant}'?")):
            kind(**{typo: 1})  # type: ignore[operator]


def test_unknown_argument_does_not_show_its_value() -> None:
    with pytest.raises(TypeError) as caught:
        PostgresPool(pasword="hunter2")  # type: ignore[call-arg]
    assert "hunter2" not in str(caught.value)


def test_http_pool_has_defaults_of_its_own() -> None:
    pool = HTTPPool(max_idle=5)
    assert (pool.settings.max_size, pool.settings.min_size, pool.settings.max_idle) == (100, 0, 5)
    pool.close()


def test_arguments_override_the_url() -> None:
    pool = from_url("sqlite:///:memory:?max_size=5&idle_timeout=9", max_size=3)
    assert (pool.settings.max_size, pool.settings.idle_timeout) == (3, 9)
    pool.close()


def test_arguments_override_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_MAX_CONNECTIONS", "50")
    monkeypatch.setenv("HTTP_KEEPALIVE_EXPIRY", "9")
    pool = init_http_pool(max_size=30)
    assert (pool.settings.max_size, pool.settings.idle_timeout) == (30, 9)
    shutdown_http_pool()


def test_pool_of_another_package_gets_settings_only(monkeypatch: pytest.MonkeyPatch) -> None:
    def build(url: str, *, settings: PoolSettings, name: str | None) -> Pool[Any]:
        return Pool(object, settings=settings, name=name)

    found = [SimpleNamespace(name="ldap", load=lambda: build)]
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: found)
    assert from_url("ldap://directory", max_size=3).settings.max_size == 3


def test_sqlite_writer_and_readers_share_options() -> None:
    pool = SQLitePool(":memory:", readers=3, acquire_timeout=2)
    assert pool.readers is not None
    assert (pool.settings.max_size, pool.readers.settings.max_size) == (1, 3)
    assert pool.settings.acquire_timeout == pool.readers.settings.acquire_timeout == 2
    pool.close()


def test_unpooled_pool_ignores_max_uses_and_min_size() -> None:
    pool = UnpooledPool(object, max_uses=5, min_size=2, max_size=3)
    assert (pool.settings.max_uses, pool.settings.min_size, pool.settings.max_size) == (1, 0, 3)


# -- types ------------------------------------------------------------------------------------


def test_option_types_are_those_of_the_fields() -> None:
    fields = {field.name: field.type for field in dataclasses.fields(PoolSettings)}
    fields |= {f"backoff_{field.name}": field.type for field in dataclasses.fields(Backoff)}
    assert {name: kind.__forward_arg__ for name, kind in PoolOptions.__annotations__.items()} == fields
    assert not PoolOptions.__required_keys__


SNIPPET = """\
    from pooling import HTTPPool, Pool, PostgresPool, SQLitePool

    Pool(object, max_size=3, idle_timeout=None)
    HTTPPool(max_size=3, backoff_initial=0.1)
    PostgresPool(max_size=3, validation_query="SELECT 1")
    SQLitePool("app.db", max_size=3)
    Pool(object, max_size="3")
    HTTPPool(max_size="3")
    PostgresPool(max_size="3")
    SQLitePool("app.db", max_size="3")
    Pool(object, max_sise=3)
    """


def test_type_checker_knows_the_options(tmp_path: Path) -> None:
    from mypy import api  # here: it takes a while

    snippet = tmp_path / "snippet.py"
    snippet.write_text(textwrap.dedent(SNIPPET))
    version = "3.10"  # the oldest, in which `typing` has no Unpack
    root = Path(__file__).parents[2]
    report, problems, _ = api.run([
        "--strict", "--python-version", version, "--config-file", str(root / "setup.cfg"), "--no-error-summary",
        "--python-executable", sys.executable, "--cache-dir", str(root / ".mypy_cache"), str(snippet),
    ])  # fmt: skip
    assert problems == ""
    lines = [int(line.split(":")[1]) for line in report.splitlines() if ": error: " in line]
    assert lines == [7, 8, 9, 10, 11], report

"""What `PostgresPool` works out without a server: texts, limits, who it is, whom it tries for how long."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from pooling import PoolSettings, PostgresPool
from pooling.adapters.postgres.address import Address, program
from pooling.adapters.postgres.limits import LEAST, Limit, pace
from pooling.adapters.postgres.statistics import text_of

TEXTS = {
    "SELECT 'a''s3cret', b": "SELECT '?', b",
    r"SELECT E'it\'s s3cret', b": "SELECT '?', b",
    r"SELECT 'c:\', b, 's3cret'": "SELECT '?', b, '?'",  # a backslash is just that where there is no E
    r"SELECT DATE'2020-02-02', 's3cret'": "SELECT DATE'?', '?'",
    "SELECT b -- don't\n, 's3cret'": "SELECT b , '?'",
    "SELECT /* don't */ b, 's3cret'": "SELECT b, '?'",
    "SELECT b /* a /* nested */ s3cret */": "SELECT b",
    """SELECT "it's", 's3cret'""": """SELECT "it's", '?'""",
    "SELECT $$it's s3cret$$, b": "SELECT '?', b",
    "SELECT $x$it's $$ s3cret$x$, b": "SELECT '?', b",
    "SELECT a$b$c, b": "SELECT a$b$c, b",  # a name
    "SELECT 's3cret": "SELECT '?'",
    "SELECT E's3cret\\": "SELECT '?'",
    "SELECT $x$s3cret": "SELECT '?'",
    "SELECT '" + "s3cret" * 1000 + "'": "SELECT '?'",
    "SELECT 4111111111111111, 1.5e3, .5 FROM t1 LIMIT 10": "SELECT ?, ?, ? FROM t1 LIMIT ?",
    "SELECT %s, $1, %(n1)s": "SELECT %s, $1, %(n1)s",
    b"SELECT 's3cret'": "SELECT '?'",
}  # fmt: skip


@pytest.mark.parametrize("query", TEXTS)
def test_a_text_is_kept_without_what_may_be_a_secret(query: str) -> None:
    assert text_of(query) == TEXTS[query]


def test_a_limit_holds_for_each_command_or_for_all() -> None:
    each = Limit(5.0)
    assert each.left() == 5.0 and str(each) == "a command took over 5 s"
    total = Limit(60.0, 3.0)
    assert 2.0 < total.left() <= 3.0
    spent = Limit(60.0, 3.0, -1.0)
    assert spent.left() == LEAST and str(spent) == "not done within 3 s"
    assert Limit(1.0, 3.0).left() == 1.0
    assert pace(0.01) == 0.001 and pace(60) == 0.125 and 4 <= 0.075 / pace(1.0) <= 8


@pytest.mark.parametrize(
    ("conninfo", "timeout", "each"),
    [
        ("host=a", 30.0, 15),
        ("host=a,b", 30.0, 10),
        ("postgresql://a:1,b:2,c:3/", 30.0, 7),
        ("host=a,b hostaddr=127.0.0.1", 30.0, 15),
        ("host=a,b", 2.0, 2),
        ("host=a,b connect_timeout=20", 30.0, "20"),
    ],
)
def test_a_silent_host_leaves_time_for_the_next(conninfo: str, timeout: float, each: Any) -> None:
    assert Address(conninfo, None, timeout, {}).ask().arguments["connect_timeout"] == each


def test_hosts_in_the_environment_count_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGHOST", "a,b,c,d")
    assert Address("", None, 30.0, {}).ask().arguments["connect_timeout"] == 6


def test_new_settings_reach_the_connections() -> None:
    pool = PostgresPool("host=a", PoolSettings())
    pool.reconfigure(validation_query="SELECT 2", create_timeout=8, reset_timeout=1.5)
    assert pool.engine.adapter.query == b"SELECT 2"  # type: ignore[attr-defined]
    assert (pool.session_rules.create_timeout, pool.session_rules.reset_timeout) == (8.0, 1.5)
    assert pool._address.ask().arguments["connect_timeout"] == 4
    pool.reconfigure(validation_query=None)
    assert pool.engine.adapter.query == b"SELECT 1"  # type: ignore[attr-defined]
    pool.close()


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/srv/shop/manage.py", "manage.py"), ("/srv/shop/__main__.py", "shop"), ("-c", "python"), ("", "python"),
        ("/srv/größe", "gr??e"), ("x" * 80, "x" * 40),
    ],
)  # fmt: skip
def test_a_program_is_known_by_its_name(monkeypatch: pytest.MonkeyPatch, path: str, name: str) -> None:
    monkeypatch.setattr(sys, "argv", [path])
    assert program() == name


def test_a_password_in_the_wrong_place_is_not_repeated() -> None:
    with pytest.raises(TypeError, match="settings must be a PoolSettings, not a str") as caught:
        PostgresPool(PoolSettings(), "postgresql://u:s3cret@h/db")  # type: ignore[arg-type]
    assert "s3cret" not in str(caught.value)

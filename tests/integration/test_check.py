"""``python -m pooling check`` against real servers: it passes, leaves nothing behind, and finds what is wrong."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pty
import select
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psycopg
import pytest

from pooling import PostgresPool
from pooling.tools.check.mysql import MySQL
from pooling.tools.check.outcome import Failed
from pooling.tools.check.postgres import Postgres
from pooling.tools.check.resource import Check, Target
from pooling.tools.check.targets import target_of
from tests.conftest import Authority
from tests.integration.tools import ROOT, environment
from tests.mariadb import MariaDBServer
from tests.pgbouncer import PgBouncer, needs_pgbouncer
from tests.redisserver import RedisServer
from tests.servers import PostgresServer
from tests.web import WebServer

COMMAND = [sys.executable, "-m", "pooling", "check"]


def check(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments], cwd=ROOT, env=environment(**variables), capture_output=True, text=True, timeout=120
    )


def results(*arguments: str, code: int = 0, **variables: str) -> dict[str, dict[str, Any]]:
    """Run it with ``--json``; return the checks of the only target by name."""
    done = check("--json", *arguments, **variables)
    assert done.returncode == code, done.stdout + done.stderr
    report = json.loads(done.stdout)
    assert report["good"] == (code == 0)
    return {one["name"]: one for one in report["targets"][0]["checks"]}


def passed(found: dict[str, dict[str, Any]]) -> set[str]:
    return {name for name, one in found.items() if one["good"]}


def failed(target: Target, name: str) -> str:
    """Run one check, which must fail; return why."""
    (one,) = [each for each in target.checks() if each.name == name]
    assert isinstance(one, Check)
    with pytest.raises(Failed) as caught:
        one.run()
    return str(caught.value)


COMMON = {"connect", "acquire", "clean", "timeout", "fairness", "transaction", "fork", "close"}


def test_all_kinds_at_once(
    postgres: PostgresServer, mariadb: MariaDBServer, redis_server: RedisServer, web: WebServer, tmp_path: Path
) -> None:
    """Everything passes, within a minute, and nothing is left behind."""
    file = tmp_path / "app.db"
    with contextlib.closing(sqlite3.connect(file)) as conn:
        conn.execute("CREATE TABLE one (n)")
        conn.commit()
    before = hashlib.sha256(file.read_bytes()).digest(), _tables(postgres), _keys(redis_server)
    began = time.monotonic()
    done = check(postgres.dsn, mariadb.url, redis_server.url, f"{web.url}/", str(file))
    assert done.returncode == 0, done.stdout + done.stderr
    assert time.monotonic() - began < 60
    assert (hashlib.sha256(file.read_bytes()).digest(), _tables(postgres), _keys(redis_server)) == before
    assert list(tmp_path.iterdir()) == [file], "the journal mode was changed"
    lines = done.stdout.splitlines()
    assert lines[0].startswith("pooling ") and "checks, about" in lines[0]
    assert lines[-1].startswith("good: 43 checks passed, 1 without a result, in ")
    assert "\x1b" not in done.stdout and done.stderr == ""
    for kind in ("PostgreSQL 1", "MariaDB 1", "Redis ", "SQLite 3"):
        assert f"  ok   connect          {kind}" in done.stdout
    assert done.stdout.count("  ok   dead connection  ") == 3


def _tables(postgres: PostgresServer) -> list[Any]:
    with postgres.connect() as conn:
        return conn.execute("SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace").fetchall()


def _keys(server: RedisServer) -> Any:
    with server.connect() as client:
        return sorted(client.keys("*"))


def test_json(postgres: PostgresServer) -> None:
    done = check("--json", postgres.dsn)
    assert done.returncode == 0
    report = json.loads(done.stdout)
    assert set(report) == {"version", "good", "seconds", "targets"} and report["good"] is True
    (target,) = report["targets"]
    assert (target["kind"], target["good"], target["target"]) == ("PostgreSQL", True, postgres.dsn)
    assert {one["name"] for one in target["checks"]} == COMMON | {"dead connection", "server"}
    assert all(set(one) == {"name", "good", "text", "seconds"} for one in target["checks"])
    assert "about" in done.stderr, "no progress"


def test_target_of_the_environment(postgres: PostgresServer) -> None:
    assert passed(results(DATABASE_URL=postgres.dsn)) >= COMMON


def test_role_with_few_rights(postgres: PostgresServer) -> None:
    """What it may not do has no result; it is no failure."""
    name = f"few_{os.getpid()}"
    with postgres.connect(autocommit=True) as conn:
        conn.execute(f"CREATE ROLE {name} LOGIN")
        conn.execute(f"CREATE DATABASE {name}")
        conn.execute(f"REVOKE TEMPORARY ON DATABASE {name} FROM PUBLIC")
    try:
        found = results(f"postgresql://{name}@127.0.0.1:{postgres.port}/{name}")
        assert found["transaction"]["good"] is None
        assert found["transaction"]["text"].startswith("not tried: permission denied")
        assert passed(found) == COMMON - {"transaction"} | {"dead connection", "server"}
    finally:
        with postgres.connect(autocommit=True) as conn:
            conn.execute(f"DROP DATABASE {name} WITH (FORCE)")
            conn.execute(f"DROP ROLE {name}")


def test_behind_a_pooler_no_connection_is_ended(postgres: PostgresServer) -> None:
    needs_pgbouncer()
    with PgBouncer(postgres, pool_mode="transaction") as bouncer, postgres.connect() as conn:
        backends = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'"
        found = results(bouncer.dsn)
        for name in ("dead connection", "transaction", "server"):
            assert found[name]["good"] is None and "behind a pooler" in found[name]["text"]
        assert "behind a pooler" in found["connect"]["text"]
        row = conn.execute(backends).fetchone()
        assert row is not None and row[0] > 1, "the pooler's connections are still there"


def test_tls_is_checked(secure_web: WebServer, authority: Authority) -> None:
    url = f"{secure_web.url}/"
    found = results(url, REQUESTS_CA_BUNDLE=authority.file)
    assert found["TLS"]["good"] is True and "the certificate is verified" in found["TLS"]["text"]
    assert passed(found) >= {"connect", "keep-alive", "acquire", "timeout", "fork", "close"}
    found = results(url, code=1)
    assert "certificate verify failed" in found["connect"]["text"]
    assert list(found) == ["connect", "others"]


def test_database_in_memory() -> None:
    assert passed(results("sqlite://")) == COMMON


def test_server_that_is_down_and_secrets() -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]
        schemes = ("postgresql", "mysql", "redis", "http")
        done = check(*(f"{scheme}://app:hunter2@127.0.0.1:{port}/x" for scheme in schemes))
    assert done.returncode == 1
    assert done.stdout.count("  BAD  connect ") == 4 and "BAD: connect of postgresql://app:***@" in done.stdout
    assert "hunter2" not in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "a target is required where DATABASE_URL and REDIS_URL are not set"),
        (["ftp://x"], "the scheme must be one of"),
        (["postgresql://app:hun@ter2@db/x"], "percent-encoded"),
        (["/nonexistent.db"], "there is no such file"),
    ],
)
def test_invalid_targets(arguments: list[str], words: str) -> None:
    done = check(*arguments, DATABASE_URL="", REDIS_URL="")
    assert (done.returncode, done.stdout) == (2, "")
    assert words in done.stderr and "ter2" not in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_prints_what_is_known(postgres: PostgresServer, number: signal.Signals) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts, and never answers
        url = f"postgresql://app@127.0.0.1:{silent.getsockname()[1]}/x"
        process = subprocess.Popen(
            [*COMMAND, "sqlite://", url], cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, start_new_session=True,
        )  # fmt: skip
        silent.settimeout(60)
        client, _ = silent.accept()
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
        client.close()
    assert process.returncode == 128 + number, out + err
    assert "interrupted" in out and "  ok   close " in out and "good" in out.splitlines()[-1]
    assert err == ""


def in_terminal(**variables: str) -> str:
    """Return what it writes on a terminal."""
    ours, theirs = pty.openpty()
    env = {**environment(), "TERM": "xterm", **variables}
    process = subprocess.Popen([*COMMAND, "sqlite://"], cwd=ROOT, env=env, stdout=theirs, stderr=theirs)
    os.close(theirs)
    seen = b""
    while True:
        ready, _, _ = select.select([ours], [], [], 60)
        assert ready
        try:
            data = os.read(ours, 65536)
        except OSError:  # Linux: the other end was closed
            break
        if not data:
            break
        seen += data
    os.close(ours)
    assert process.wait(60) == 0
    return seen.decode()


def test_colours_and_progress_of_a_terminal() -> None:
    seen = in_terminal()
    assert "  \x1b[32mok\x1b[0m   connect" in seen and "\x1b[32mgood\x1b[0m: 8 checks passed" in seen
    assert "\r" in seen and "1 of 8: connect, about" in seen and " s left" in seen


def test_no_color() -> None:
    assert "\x1b" not in in_terminal(NO_COLOR="1")


# -- what is wrong is found ---------------------------------------------------------------


class Trusting(Postgres):
    """Its pools do not clean sessions."""

    def pool(self, *, session: Any = "trust", **settings: Any) -> PostgresPool:
        return super().pool(session="trust", **settings)


class Committing(Postgres):
    """Its pools commit each statement."""

    def pool(self, *, session: Any = "clean", **settings: Any) -> PostgresPool:
        return PostgresPool(self.address, kwargs={"autocommit": True}, session=session, min_size=0, **settings)


def test_unclean_session_is_found(postgres: PostgresServer) -> None:
    assert "the next borrower finds a setting of the one before" in failed(Trusting(postgres.dsn), "clean")


def test_missing_rollback_is_found(postgres: PostgresServer) -> None:
    why = failed(Committing(postgres.dsn), "transaction")
    assert why == "the temporary table has the rows [(1,), (2,)], not the committed one alone"


def test_connection_left_at_the_server_is_found(postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pooling.tools.check.general.TIMEOUT", 0.5)
    target = Postgres(postgres.dsn)
    with psycopg.connect(postgres.dsn, application_name=target.tag):
        assert failed(target, "server") == "the server still has connections of these checks"


class TrustingMySQL(MySQL):
    """Its pools do not clean sessions."""

    def pool(self, *, session: Any = "trust", **settings: Any) -> Any:
        return super().pool(session="trust", **settings)


def test_unclean_session_of_mysql_is_found(mariadb: MariaDBServer) -> None:
    assert "the next borrower finds a variable of the one before" in failed(TrustingMySQL(mariadb.url), "clean")


def test_every_check_is_in_the_page() -> None:
    page = (ROOT / "docs" / "howto" / "check.rst").read_text(encoding="utf-8")
    for target in ("postgresql://db/x", "mysql://db/x", "redis://db", "sqlite://", "http://x/"):
        for one in target_of(target).checks():
            assert f"``{one.name}``" in page, one.name

"""The doctor at a real server, and behind a real PgBouncer."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from pooling import PoolSettings, PostgresPool
from pooling.tools.doctor.facts import read
from tests.mariadb import MariaDBServer
from tests.pgbouncer import PgBouncer, bouncers
from tests.servers import PostgresServer

ROOT = Path(__file__).parents[2]


def doctor(*arguments: str) -> tuple[int, str]:
    """Run the command; return its exit code and its output."""
    run = subprocess.run(
        [sys.executable, "-m", "pooling", "doctor", *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    return run.returncode, run.stdout + run.stderr


def role(server: PostgresServer, name: str, *settings: str) -> str:
    """Create a role with these settings; return an address with its password."""
    with server.connect(autocommit=True) as conn:
        conn.execute(f"DROP ROLE IF EXISTS {name}")  # type: ignore[arg-type]
        conn.execute(f"CREATE ROLE {name} LOGIN PASSWORD 'hidden-secret'")  # type: ignore[arg-type]
        for setting in settings:
            conn.execute(f"ALTER ROLE {name} {setting}")  # type: ignore[arg-type]
    return server.dsn.replace("postgres@", f"{name}:hidden-secret@")


def test_all_is_well(postgres: PostgresServer) -> None:
    code, text = doctor("--dsn", role(postgres, "healthy"), "--workers", "4", "--max-size", "5")
    assert code == 0, text
    assert "97 of max_connections=100 are available to ordinary roles" in text
    assert "as healthy" in text
    assert "hidden-secret" not in text


def test_plan_that_will_fail(postgres: PostgresServer) -> None:
    dsn = role(postgres, "crowd", "CONNECTION LIMIT 30")
    code, text = doctor("--dsn", dsn, "--workers", "20", "--max-size", "10")
    assert code == 1
    assert "20 workers x max_size 10 = 200 connections" in " ".join(text.split())
    assert "this role's CONNECTION LIMIT is 30" in " ".join(text.split())
    assert "hidden-secret" not in text


def test_settings_that_conflict_with_the_pool(postgres: PostgresServer) -> None:
    dsn = role(postgres, "hasty", "SET idle_session_timeout = '20s'", "SET statement_timeout = 2000")
    with PostgresPool(dsn, PoolSettings(max_size=5), command_timeout=5, name="hasty") as db:
        texts = [finding.what for finding in db.advise(workers=2).findings]
    assert any("idle_session_timeout is 20 s" in text for text in texts)
    # The pool's own setting takes precedence over the role's, so there is no finding.
    assert not any("statement_timeout" in text for text in texts)


def test_unreachable_server() -> None:
    code, text = doctor("--dsn", "postgresql://u:hidden-secret@127.0.0.1:1/app")
    assert code == 1
    assert "cannot connect to the server" in text
    assert "hidden-secret" not in text


def test_connected_clients(postgres: PostgresServer) -> None:
    with postgres.connect(application_name="a-report") as conn:
        conn.execute("SELECT 1")
        with PostgresPool(postgres.dsn, PoolSettings(min_size=3), name="not-counted") as db:
            report = db.advise(workers=1)
        clients = {client.application: client for client in report.facts.clients}
        assert (clients["a-report"].count, clients["a-report"].in_transaction) == (1, 1)
        assert "not-counted" not in clients
        assert "1 'a-report' from 127.0.0.1 as postgres, 1 idle in a transaction" in str(report)
        assert report.facts.pooler is None
        assert report.facts.connect_seconds > 0
        assert not report.breaks


def test_connected_clients_seen_by_an_ordinary_role(postgres: PostgresServer) -> None:
    """PostgreSQL shows it less about other roles' sessions, but they still use connections."""
    role(postgres, "neighbour")
    dsn = role(postgres, "tenant")
    with psycopg.connect(postgres.dsn.replace("postgres@", "neighbour@"), application_name="next-door") as conn:
        conn.execute("SELECT 1")
        code, text = doctor("--dsn", dsn, "--workers", "1")
        text = " ".join(text.split())
        assert code == 0, text
        assert "1 'next-door' from a hidden host as neighbour" in text
        assert "GRANT pg_monitor" in text
        with postgres.connect(autocommit=True) as chief:
            chief.execute("GRANT pg_monitor TO tenant")
        text = " ".join(doctor("--dsn", dsn, "--workers", "1")[1].split())
        assert "1 'next-door' from 127.0.0.1 as neighbour, 1 idle in a transaction" in text
        assert "GRANT pg_monitor" not in text


def test_too_few_free_connections_is_a_warning_that_counts_if_strict(postgres: PostgresServer) -> None:
    dsn = role(postgres, "latecomer")
    with postgres.connect(), postgres.connect():
        arguments = ("--dsn", dsn, "--workers", "96", "--max-size", "1")
        code, text = doctor(*arguments)
        assert code == 0, text
        assert "96 connections, but with the" in " ".join(text.split())
        assert doctor(*arguments, "--strict")[0] == 1


@pytest.fixture(scope="module")
def fussy(postgres: PostgresServer) -> Iterator[PostgresServer]:
    """A server with settings that conflict with pooling, and 22 connections for ordinary roles."""
    with postgres.connect() as conn:
        reserves = conn.info.server_version >= 160000
    reserved = {"reserved_connections": 5} if reserves else {"superuser_reserved_connections": 8}
    with PostgresServer(
        max_connections=30, idle_in_transaction_session_timeout="2s", tcp_keepalives_idle=7200,
        client_connection_check_interval="10s", **reserved,
    ) as server:  # fmt: skip
        yield server


def test_settings_of_a_real_server(fussy: PostgresServer) -> None:
    dsn = role(fussy, "app")
    code, text = doctor("--dsn", dsn, "--workers", "3", "--max-size", "7", "--leak-timeout", "10")
    text = " ".join(text.split())
    assert code == 0, text
    assert "22 of max_connections=30 are available to ordinary roles" in text
    assert "idle_in_transaction_session_timeout is 2 s on the server, shorter than the 10 s" in text
    assert "tcp_keepalives_idle is 7200 s on the server" in text
    assert "client_connection_check_interval" not in text  # it is set
    text = " ".join(doctor("--dsn", dsn, "--workers", "3", "--max-size", "7")[1].split())
    assert "idle_in_transaction_session_timeout is 2 s, and the pool has no limit" in text


def test_reserved_connections_are_not_available(fussy: PostgresServer) -> None:
    dsn = role(fussy, "app")
    code, text = doctor("--dsn", dsn, "--workers", "23", "--max-size", "1")
    assert code == 1, text
    assert "the server accepts only 22 from ordinary roles" in " ".join(text.split())


def test_limit_of_the_database(fussy: PostgresServer) -> None:
    dsn = role(fussy, "app")
    with fussy.connect(autocommit=True) as conn:
        conn.execute("CREATE DATABASE narrow CONNECTION LIMIT 6")
    code, text = doctor("--dsn", dsn.rpartition("/")[0] + "/narrow", "--workers", "7", "--max-size", "1")
    assert code == 1, text
    assert "this database's CONNECTION LIMIT is 6" in " ".join(text.split())


def test_no_finding_for_a_server_that_checks_its_clients(fussy: PostgresServer) -> None:
    fussy.configure(tcp_keepalives_idle=60, idle_in_transaction_session_timeout=0)
    with PostgresPool(role(fussy, "app"), PoolSettings(max_size=5), command_timeout=30) as db:
        assert db.advise(workers=2).findings == ()


def test_doctor_leaves_nothing_behind(postgres: PostgresServer) -> None:
    opened: list[psycopg.Connection[object]] = []

    def connect(**options: object) -> psycopg.Connection[object]:
        opened.append(postgres.connect(application_name="the-doctor", **options))  # type: ignore[arg-type]
        return opened[-1]

    facts = read(connect)
    assert "the-doctor" not in {client.application for client in facts.clients}
    assert opened
    assert all(conn.closed for conn in opened)


@pytest.fixture(params=["session", "transaction"])
def bouncer(request: pytest.FixtureRequest, postgres: PostgresServer) -> Iterator[PgBouncer]:
    yield from bouncers(postgres, pool_mode=request.param, default_pool_size=4)


def test_pgbouncer_is_detected(bouncer: PgBouncer) -> None:
    mode = bouncer.admin("SHOW CONFIG")
    expected = next(row["value"] for row in mode if row["key"] == "pool_mode")
    facts = read(bouncer.connect)
    assert facts.pooler is not None
    assert facts.pooler.mode == expected
    assert facts.pooler.number("default_pool_size") == 4
    assert facts.pooler.version is not None
    assert facts.pooler.version[:2] == bouncer.version


def test_mode_is_detected_without_the_console(bouncer: PgBouncer) -> None:
    expected = next(row["value"] for row in bouncer.admin("SHOW CONFIG") if row["key"] == "pool_mode")

    def connect(**options: Any) -> psycopg.Connection[Any]:
        if options.get("dbname") == "pgbouncer":
            raise psycopg.OperationalError("not allowed")
        return bouncer.connect(**options)

    facts = read(connect)
    assert facts.pooler is not None
    assert (facts.pooler.mode, facts.pooler.version) == (expected, None)


def test_command_behind_pgbouncer(bouncer: PgBouncer) -> None:
    code, text = doctor("--dsn", bouncer.dsn, "--workers", "2", "--max-size", "100", "--session", "trust")
    assert code == 1
    assert "max_client_conn is 100" in " ".join(text.split())


def test_a_missing_limit_is_reported(fussy: PostgresServer) -> None:
    fussy.configure(tcp_keepalives_idle=60, idle_in_transaction_session_timeout=0)
    with PostgresPool(role(fussy, "app"), PoolSettings(max_size=5)) as db:
        (finding,) = db.advise(workers=2).findings
    assert "there is no command_timeout" in finding.what


def test_mysql(mariadb: MariaDBServer) -> None:
    code, output = doctor("--dsn", mariadb.url, "--workers", "2", "--max-size", "5")
    assert code == 0 and "MariaDB" in output and "max_connections=" in output, output
    code, output = doctor("--dsn", mariadb.url, "--workers", "100", "--max-size", "500")
    assert code == 1 and "BREAKS" in output and "max_connections" in output, output


def test_mysql_that_does_not_answer() -> None:
    code, output = doctor("--dsn", "mysql://app:hidden-secret@127.0.0.1:1/shop")
    assert code == 1 and output.startswith("cannot connect to the server: ") and "hidden-secret" not in output
    code, output = doctor("--dsn", "mysql://app:hidden-secret@127.0.0.1:1/shop?nonsense=1")
    assert code == 2 and "nonsense" in output and "hidden-secret" not in output

"""Cleaning sessions on servers that do not execute every statement of it."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from pooling import Observer, PoolSettings, PostgresPool
from pooling.adapters.postgres import committing
from tests.servers import PostgresServer

from .tools import note_cleanings

ONE = PoolSettings(min_size=0, max_size=1, acquire_timeout=30)
ADVISORY = "SELECT pg_advisory_unlock_all()"


@pytest.fixture
def hardened(postgres: PostgresServer) -> Iterator[str]:
    """The address of a database where an ordinary role may not execute pg_advisory_unlock_all()."""
    with postgres.connect(autocommit=True) as conn:
        conn.execute("CREATE DATABASE hardened")
        conn.execute("CREATE ROLE app LOGIN")
    dsn = postgres.dsn.rpartition("/")[0].replace("postgres@", "app@") + "/hardened"
    owner = postgres.dsn.rpartition("/")[0] + "/hardened"
    try:
        with psycopg.connect(owner, autocommit=True) as conn:
            conn.execute("REVOKE EXECUTE ON FUNCTION pg_advisory_unlock_all() FROM PUBLIC")
        yield dsn
    finally:
        with postgres.connect(autocommit=True) as conn:
            conn.execute("DROP DATABASE hardened WITH (FORCE)")
            conn.execute("DROP ROLE app")


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def use(pool: PostgresPool, how: str, statement: str = "SET statement_timeout = '77s'") -> int:
    """Use a connection so that it is dirty, and return which one it was."""
    if how == "block":
        with pool.connection() as conn:
            pid = conn.info.backend_pid
            conn.execute(statement)
    elif how == "error":
        with contextlib.suppress(ValueError), pool.connection() as conn:
            pid = conn.info.backend_pid
            conn.execute(statement)
            raise ValueError
    else:
        with pool.acquire() as conn:
            pid = conn.info.backend_pid
            conn.execute(statement)
            if how == "commit":
                conn.commit()
    return pid


@pytest.mark.parametrize("how", ["block", "error", "acquire", "commit"])
def test_what_a_server_does_not_execute_is_left_out(
    hardened: str, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    with contextlib.closing(PostgresPool(hardened, ONE, name="p")) as pool:
        pids = {use(pool, how) for _ in range(50)}
        assert len(pids) == 1  # it is kept
        assert pool.execute_query("SHOW statement_timeout") == [("0",)]  # and cleaned of all else
        (text,) = warnings_of(caplog)
        assert text.startswith(f"pool 'p': this server does not execute {ADVISORY} (InsufficientPrivilege: ")
        assert text.endswith("stays for the next one: advisory locks of the session")
        report = str(pool.advise(workers=1))
        assert ADVISORY in report and "resets keep failing" not in report


@pytest.mark.skipif(not committing.AVAILABLE, reason="psycopg commits, which takes a round trip of its own")
def test_missing_steps_are_found_once_for_each_generation(
    hardened: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = note_cleanings(monkeypatch)
    with contextlib.closing(PostgresPool(hardened, ONE)) as pool:
        use(pool, "block")
        assert len(sent) == 4  # the COMMIT; the same anew; without the step; the step alone
        sent.clear()
        for _ in range(5):
            use(pool, "block")
        assert len(sent) == 5 and not any(b"advisory" in query for query in sent)
        sent.clear()
        pool.drain()
        for _ in range(2):
            use(pool, "block")
        assert sum(b"advisory" in query for query in sent) == 3
        assert len(warnings_of(caplog)) == 1


def test_an_error_of_another_kind_gives_up_no_step(
    postgres: PostgresServer, caplog: pytest.LogCaptureFixture
) -> None:
    with contextlib.closing(PostgresPool(postgres.dsn, ONE)) as pool:
        session = pool.session_rules
        session.steps = (b"SELECT 1 / 0", *session.steps)
        session.take_steps()
        before = use(pool, "block")
        assert use(pool, "block") != before
        assert not session.missing and not warnings_of(caplog)


def test_a_step_that_fails_only_among_others_is_done(
    postgres: PostgresServer, caplog: pytest.LogCaptureFixture
) -> None:
    with postgres.connect(autocommit=True) as conn:
        conn.execute("DROP ROLE IF EXISTS weak; CREATE ROLE weak; DROP TABLE IF EXISTS only_mine")
        conn.execute("CREATE TABLE only_mine (n int)")
    with contextlib.closing(PostgresPool(postgres.dsn, ONE)) as pool:
        session = pool.session_rules
        session.steps = (b"SELECT count(*) FROM only_mine", *session.steps)  # not as that role
        session.take_steps()
        assert use(pool, "block", "SET ROLE weak") == use(pool, "block", "SET ROLE weak")
        assert pool.execute_query("SELECT current_user") == [("postgres",)]
        assert not session.missing and not warnings_of(caplog)
    with postgres.connect(autocommit=True) as conn:
        conn.execute("DROP TABLE only_mine; DROP ROLE weak")


def test_every_step_may_be_missing(postgres: PostgresServer, caplog: pytest.LogCaptureFixture) -> None:
    with contextlib.closing(PostgresPool(postgres.dsn, ONE)) as pool:
        session = pool.session_rules
        session.steps = (b"SELECT nothing_of_this()",)
        session.take_steps()
        monkey = {"SELECT nothing_of_this()": "all"}
        from pooling.adapters.postgres import pool as module

        before = dict(module.STEPS)
        module.STEPS.update(monkey)
        try:
            assert use(pool, "block") == use(pool, "block") == use(pool, "error") == use(pool, "acquire")
        finally:
            module.STEPS.clear()
            module.STEPS.update(before)
        assert len(warnings_of(caplog)) == 1


def test_resets_that_keep_failing_are_reported(postgres: PostgresServer, caplog: pytest.LogCaptureFixture) -> None:
    told: list[str] = []

    class Ears(Observer):
        def resets_failed(self, pool: str, error: BaseException) -> None:
            told.append(f"{pool}: {error}")

    def reset(conn: psycopg.Connection[Any]) -> None:
        raise RuntimeError("no")

    with contextlib.closing(PostgresPool(postgres.dsn, ONE, name="p", reset=reset, observers=[Ears()])) as pool:
        assert len({use(pool, "block") for _ in range(10)}) == 10
        assert told == ["p: no"]
        assert [text for text in warnings_of(caplog) if "resets keep failing" in text] == [
            "pool 'p': resets keep failing, so connections are closed at release instead of kept: RuntimeError: no"
        ]
        assert "resets keep failing" in str(pool.advise(workers=1))

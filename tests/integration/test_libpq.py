"""Calls of libpq that do not release the GIL say the same as psycopg's own."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import psycopg
import pytest
from psycopg import pq

from pooling._plain import switched_off
from pooling.adapters.postgres import libpq
from tests.integration.tools import ROOT, environment
from tests.servers import PostgresServer, find_postgres

plain = pytest.mark.skipif(switched_off("libpq"), reason="it is switched off")


@contextlib.contextmanager
def taken() -> Iterator[list[int]]:
    """Count in another thread how often the GIL is released in this one."""
    turns, ends, before = [0], threading.Event(), sys.getswitchinterval()

    def run() -> None:
        while not ends.is_set():
            turns[0] += 1
            time.sleep(0)  # gives it back

    thread = threading.Thread(target=run)
    thread.start()
    sys.setswitchinterval(100)  # it does not ask for it
    try:
        yield turns
    finally:
        sys.setswitchinterval(before)
        ends.set()
        thread.join()


@plain
@pytest.mark.skipif(sys.platform == "win32" or pq.__impl__ == "python", reason="not used here")
def test_the_gil_is_kept(postgres: PostgresServer) -> None:
    if not getattr(sys, "_is_gil_enabled", lambda: True)():
        pytest.skip("this build has no GIL")
    assert libpq.AVAILABLE
    with postgres.connect() as conn, taken() as turns:
        pgconn = conn.pgconn
        time.sleep(0.01)
        before = turns[0]
        for _ in range(10_000):
            libpq.is_busy(pgconn)
            libpq.take_notification(pgconn)
        pgconn.enter_pipeline_mode()
        for _ in range(100):
            libpq.queue(pgconn, b"SELECT 1")
        after = turns[0]
        time.sleep(0.01)
        assert before == after < turns[0]
        conn.close()  # else the block would commit, in the pipeline


def test_is_busy_until_the_answer_has_come(postgres: PostgresServer) -> None:
    with postgres.connect(autocommit=True) as conn:
        pgconn = conn.pgconn
        assert not libpq.is_busy(pgconn)
        pgconn.send_query(b"SELECT pg_sleep(0.2)")
        assert libpq.is_busy(pgconn) and pgconn.is_busy()
        deadline = time.monotonic() + 30
        while libpq.is_busy(pgconn) and time.monotonic() < deadline:
            pgconn.consume_input()
            time.sleep(0.01)
        result = pgconn.get_result()
        assert result is not None and result.status == pq.ExecStatus.TUPLES_OK
        assert pgconn.get_result() is None and not libpq.is_busy(pgconn)


@pytest.mark.parametrize("payload", ["", "one", "täglich 日々", "x" * 7999])
def test_notifications_are_as_from_psycopg(postgres: PostgresServer, payload: str) -> None:
    with postgres.connect(autocommit=True) as conn:
        pgconn = conn.pgconn
        conn.execute('LISTEN "Kanal ä"')
        pgconn.exec_(f"NOTIFY \"Kanal ä\", '{payload}'; NOTIFY \"Kanal ä\", 'last'".encode())
        first, second = libpq.take_notification(pgconn), pgconn.notifies()
        assert first is not None and second is not None and libpq.take_notification(pgconn) is None
        assert type(first) is type(second)
        assert (first.relname, first.be_pid, first.extra) == (second.relname, pgconn.backend_pid, payload.encode())
        assert second.extra == b"last"


def test_a_closed_connection_is_not_busy(postgres: PostgresServer) -> None:
    conn = postgres.connect()
    pgconn = conn.pgconn
    conn.close()
    assert not libpq.is_busy(pgconn) and libpq.take_notification(pgconn) is None


def test_a_queued_command_is_sent_with_the_end_of_the_pipeline(postgres: PostgresServer) -> None:
    with postgres.connect(autocommit=True) as conn:
        pgconn = conn.pgconn
        pgconn.enter_pipeline_mode()
        libpq.queue(pgconn, b"BEGIN")
        libpq.queue(pgconn, b"SELECT 42")
        pgconn.pipeline_sync()
        found = []
        while len(found) < 5:
            found.append(pgconn.get_result())
        pgconn.exit_pipeline_mode()
        begin, _, row, _, end = found
        assert begin is not None and row is not None and end is not None
        assert (begin.command_status, row.get_value(0, 0)) == (b"BEGIN", b"42")
        assert end.status == pq.ExecStatus.PIPELINE_SYNC
        assert pgconn.transaction_status == pq.TransactionStatus.INTRANS


def test_a_command_for_a_closed_connection_is_an_error(postgres: PostgresServer) -> None:
    conn = postgres.connect()
    pgconn = conn.pgconn
    conn.close()
    with pytest.raises(psycopg.OperationalError):
        libpq.queue(pgconn, b"BEGIN")


OTHER = """
import ctypes, sys
other = ctypes.CDLL(sys.argv[1], mode=ctypes.RTLD_GLOBAL)
from pooling import PostgresPool
from pooling.adapters.postgres import libpq
with PostgresPool(sys.argv[2], kwargs={"autocommit": True}) as db:
    for _ in range(3):
        with db.acquire() as conn:
            conn.execute("LISTEN c; NOTIFY c, 'x'")
            assert conn.execute("SELECT 42").fetchone() == (42,)
print(libpq.AVAILABLE)
"""


@plain
@pytest.mark.skipif(sys.platform != "linux" or pq.__impl__ == "python", reason="other systems have no global scope")
def test_another_libpq_in_the_process_is_not_called(postgres: PostgresServer) -> None:
    """psycopg's extension module calls that one, if it was loaded for all, as by a module of Apache."""
    found = find_postgres()
    assert found is not None
    libraries = [*Path(found).resolve().parents[1].rglob("libpq.so.5"), *Path("/usr/lib").rglob("libpq.so.5")]
    assert libraries, "no libpq beside the server"
    done = subprocess.run(
        [sys.executable, "-c", OTHER, str(libraries[0]), postgres.dsn], cwd=ROOT, env=environment(),
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "False\n"), done.stderr


@pytest.mark.parametrize("double", [MagicMock(), MagicMock(spec=psycopg.pq.PGconn), SimpleNamespace(pgconn_ptr=1)])
def test_a_test_double_is_called_itself(double: Any) -> None:
    """What it has for a pointer would crash the process."""
    double.is_busy, double.notifies, double.send_query_params = lambda: 0, lambda: None, MagicMock()
    assert libpq.is_busy(double) == 0 and libpq.take_notification(double) is None
    libpq.queue(double, b"BEGIN")
    double.send_query_params.assert_called_once_with(b"BEGIN", None)

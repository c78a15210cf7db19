"""The example project, by its own command line, on Django's servers and its test runner."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.servers import PostgresServer, find_postgres

pytest.importorskip("django")  # CI has it: see test_django.py

ROOT = Path(__file__).parents[2]
PROJECT = ROOT / "examples" / "django_project"


@pytest.fixture(scope="module")
def database(postgres: PostgresServer) -> str:
    with postgres.connect(autocommit=True) as conn:
        conn.execute("CREATE DATABASE shop")
    return postgres.dsn.rpartition("/")[0] + "/shop"


def environment(database: str, **more: str) -> dict[str, str]:
    programs = find_postgres()
    return {
        **os.environ, "DATABASE_URL": database, "PYTHONPATH": str(ROOT),
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}", "PYTHONDONTWRITEBYTECODE": "1", **more,
    }  # fmt: skip


def manage(database: str, *arguments: str, told: str = "", code: int = 0) -> subprocess.CompletedProcess[str]:
    run = subprocess.run(
        [sys.executable, "manage.py", *arguments], cwd=PROJECT, env=environment(database), input=told,
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert run.returncode == code, run.stdout + run.stderr
    return run


@pytest.fixture(scope="module")
def migrated(database: str) -> str:
    manage(database, "migrate", "--verbosity", "0")
    return database


def test_check_migrate_and_no_migration_missing(migrated: str) -> None:
    assert "no issues" in manage(migrated, "check", "--database", "default").stdout
    assert "No changes" in manage(migrated, "makemigrations", "--check", "--dry-run").stdout


def test_dbshell(migrated: str) -> None:
    run = manage(migrated, "dbshell", "--", "-At", told="SELECT count(*) FROM shop_order;")
    assert run.stdout.strip() == "0"


def test_command(migrated: str) -> None:
    assert "default: PostgresPool, at most 8 in each process" in manage(migrated, "pooling", "status").stdout
    assert "overall: up" in manage(migrated, "pooling", "doctor").stdout
    nowhere = migrated.removesuffix("shop") + "nowhere"
    assert "nowhere" in manage(nowhere, "pooling", "doctor", "--timeout", "3", code=1).stdout


def test_parallel_test_runner(migrated: str) -> None:
    """Clones are made from a template that nobody may be connected to."""
    run = manage(migrated, "test", "--parallel", "2", "--noinput")
    assert "Cloning test database" in run.stderr
    assert "OK" in run.stderr


def test_parallel_test_runner_on_sqlite() -> None:
    assert "OK" in manage("", "test", "--parallel", "2", "--noinput").stderr


@contextlib.contextmanager
def serving(
    command: list[str], database: str, port: int, ends: signal.Signals = signal.SIGINT
) -> Iterator[subprocess.Popen[str]]:
    """Run a server until the block ends, then tell it to end: it does at once, and has said nothing."""
    process = subprocess.Popen(
        command, cwd=PROJECT, env=environment(database, BIND=f"127.0.0.1:{port}"),
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and process.poll() is None:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.05)
        yield process
    finally:
        process.send_signal(ends)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    assert process.stderr is not None
    with process.stderr as stderr:
        said = [line for line in stderr.read().splitlines() if "Traceback" in line or "Warning" in line]
    assert said == []


def ask(port: int, method: str, path: str, body: str = "") -> bytes:
    client = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    client.request(method, path, body, headers)
    answer = client.getresponse()
    text = answer.read()
    client.close()
    assert answer.status == 200, text
    return text


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.parametrize("server", ["runserver", "gunicorn"])
def test_serve(migrated: str, server: str) -> None:
    port = free_port()
    command, ends = [sys.executable, "manage.py", "runserver", f"127.0.0.1:{port}", "--noreload"], signal.SIGINT
    if server == "gunicorn":
        # Of SIGINT its worker's handler takes the lock of its thread pool, which the thread that it
        # interrupts may hold (27.0).
        command, ends = [sys.executable, "run.py"], signal.SIGTERM
    with serving(command, migrated, port, ends):
        for number in range(5):
            told = json.loads(ask(port, "POST", "/orders/", f"item=lamp+{number}"))
            assert told["orders"][0]["item"] == f"lamp {number}"
            assert "1/8 in use" in told["pool"]
        assert len(ask(port, "GET", "/export/").splitlines()) >= 5
        assert ask(port, "GET", "/health/") == b"up"

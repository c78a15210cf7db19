"""The examples, each by the one command that it names, on PostgreSQL and on SQLite."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.request import urlopen

import pytest

from tests.servers import PostgresServer

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
BIN = os.path.dirname(sys.executable)
UWSGI = shutil.which("uwsgi", path=BIN)


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, postgres: PostgresServer) -> Iterator[dict[str, str]]:
    """The environment of an example; on SQLite none, as it stands."""
    if request.param == "sqlite":
        yield {}
        return
    name = f"example_{os.getpid()}"
    with postgres.connect(autocommit=True) as conn:
        conn.execute(f"CREATE DATABASE {name}")
    yield {"DATABASE_URL": postgres.dsn.rpartition("/")[0] + f"/{name}"}
    with postgres.connect(autocommit=True) as conn:
        conn.execute(f"DROP DATABASE {name} WITH (FORCE)")


def start(command: list[str], cwd: Path, environment: dict[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command, cwd=cwd, text=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1", **environment},
    )  # fmt: skip


def end(process: subprocess.Popen[str], number: signal.Signals | None = None) -> tuple[str, str]:
    try:
        if number is not None:
            process.send_signal(number)
        return process.communicate(timeout=60)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def copy_of(name: str, place: Path) -> Path:
    """What it writes in its directory is written elsewhere."""
    shutil.copytree(EXAMPLES / name, place / name, ignore=shutil.ignore_patterns("__pycache__", "*.db*"))
    return place / name


@pytest.mark.parametrize(
    ("name", "words"),
    [("cron_script", "200 items"), ("prefork_worker", "200 tasks done by")],
)
def test_scripts(database: dict[str, str], name: str, words: str) -> None:
    process = start([sys.executable, f"examples/{name}/run.py"], ROOT, database)
    out, err = end(process)
    assert (process.returncode, err) == (0, "")
    assert out.startswith(words)
    assert "0/" in out, "something is in use in the end"


def test_statsd() -> None:
    process = start([sys.executable, "examples/statsd.py"], ROOT, {})
    out, err = end(process)
    assert (process.returncode, err) == (0, "")
    closed, created, *others = sorted(out.splitlines())  # a worker sends the creation, at any time after it
    assert closed == "pooling.db.closed.closed:1|c"
    assert created.startswith("pooling.db.created:") and created.endswith("|ms")
    assert others == ["pooling.db.exhausted:1|c", "pooling.db.timeouts:1|c"]


def test_threaded_worker(database: dict[str, str]) -> None:
    process = start([sys.executable, "examples/threaded_worker/run.py"], ROOT, database)
    time.sleep(2)  # let it work for a while; how much it does does not matter
    out, err = end(process, signal.SIGTERM)
    assert err == ""
    assert process.returncode == 128 + signal.SIGTERM
    assert "jobs done" in out


def serves(command: list[str], place: Path, database: dict[str, str]) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        bind = f"127.0.0.1:{probe.getsockname()[1]}"
    process = start(command, place, {**database, "BIND": bind})
    try:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and process.poll() is None:
            with contextlib.suppress(OSError):
                for number in range(1, 21):
                    with urlopen(f"http://{bind}/", timeout=30) as answer:
                        assert answer.read().decode().startswith(f"visit {number} to process")
                with urlopen(f"http://{bind}/health", timeout=30) as answer:
                    assert answer.read() == b"up"
                break
            time.sleep(0.1)
        else:
            pytest.fail(f"it does not serve: {end(process)}")
    finally:
        out, err = end(process, signal.SIGTERM)
    assert "Traceback" not in out + err
    assert process.returncode == 0


def test_flask_under_gunicorn(database: dict[str, str], tmp_path: Path) -> None:
    serves([sys.executable, "-m", "gunicorn"], copy_of("flask_gunicorn", tmp_path), database)


@pytest.mark.skipif(UWSGI is None and os.environ.get("UWSGI_REQUIRED") != "1", reason="uWSGI: pip install uwsgi")
def test_uwsgi(database: dict[str, str], tmp_path: Path) -> None:
    assert UWSGI is not None
    serves([UWSGI, "uwsgi.ini"], copy_of("uwsgi_forking", tmp_path), database)

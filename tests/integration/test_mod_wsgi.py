"""Apache with mod_wsgi's daemon mode: right answers, new code, killed processes, shutdown, and the metrics of all.

One Apache goes through all tests, and ends in the last one.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import sysconfig
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.integration.matrix.server import ends_of_tracebacks
from tests.integration.tools import ROOT, environment, wait_until
from tests.servers import LOOPBACK, PostgresServer, _account, _free_port, _Home, _open_to_all, requires
from tests.web import WebServer

PROCESSES, THREADS, MAX_SIZE, CLIENTS = 2, 4, 4, 10
TOKEN, NAME = "token-of-the-test", "mod_wsgi_site"
MODULES = Path("/usr/lib/apache2/modules")

CONFIGURATION = """
ServerRoot {home}
DefaultRuntimeDir {home}
Mutex file:{home}
PidFile {home}/apache.pid
ErrorLog {home}/log
LogLevel warn wsgi:info
ServerName localhost
Listen {address}
LoadModule mpm_event_module {modules}/mod_mpm_event.so
LoadModule authz_core_module {modules}/mod_authz_core.so
LoadModule wsgi_module {modules}/mod_wsgi.so
WSGISocketPrefix {home}/wsgi
WSGIRestrictEmbedded On
WSGIPassAuthorization On
WSGIDaemonProcess site processes={processes} threads={threads} home={home} python-path={path} {timeouts}
WSGIScriptAlias /signals {home}/signals.wsgi process-group=site application-group=%{{GLOBAL}}
WSGIScriptAlias / {home}/site.wsgi process-group=site application-group=%{{GLOBAL}}
"""
"""With group and interpreter behind the script, each process loads it when it starts."""


def find_apache() -> str | None:
    """Return Apache's program, if it has mod_wsgi; Debian's is often not on the path."""
    found = shutil.which("apache2") or shutil.which("apache2", path="/usr/sbin:/usr/local/sbin")
    return found if (MODULES / "mod_wsgi.so").exists() else None


def needs_mod_wsgi() -> None:
    """Skip the test without mod_wsgi, with ``CI=true`` fail it; also skip it if mod_wsgi has another Python."""
    requires("Apache with mod_wsgi", find_apache(), "apt-get install libapache2-mod-wsgi-py3")
    version = "{}.{}".format(*sys.version_info)
    if not (MODULES / f"mod_wsgi.so-{version}").exists():
        pytest.skip(f"mod_wsgi is for another Python than {version}; to run it: a venv of the system's python3")


class Apache:
    """A private Apache with two processes of mod_wsgi; not as root."""

    def __init__(self, dsn: str, url: str) -> None:
        account, packages = _account(), sysconfig.get_path("purelib")
        if account is not None:
            readable = all(_open_to_all(Path(place)) for place in (ROOT, packages))
            requires("a checkout that every user can read", readable, f"chmod a+rX {ROOT} {packages}")
        self._home, self.port = _Home("apache"), _free_port()
        home = self._home.path
        self.log, self.script, configuration = home / "log", home / "site.wsgi", home / "apache.conf"
        self.script.write_text("from tests.integration.mod_wsgi_site import application\n")
        (home / "signals.wsgi").write_text("from tests.integration.matrix.site_lifespan import application\n")
        configuration.write_text(CONFIGURATION.format(
            home=home, address=f"{LOOPBACK}:{self.port}", modules=MODULES, processes=PROCESSES, threads=THREADS,
            path=f"{ROOT}:{packages}", timeouts="graceful-timeout=1 shutdown-timeout=15",
        ))  # fmt: skip
        who: dict[str, Any] = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []} if account else {}
        self.process = subprocess.Popen(
            [find_apache() or "apache2", "-f", str(configuration), "-DFOREGROUND"],
            env=environment(
                SITE_POSTGRES=f"{dsn}?application_name={NAME}", SITE_HTTP=url, SITE_TOKEN=TOKEN,
                POOLING_METRICS_DIR=str(home / "metrics"), PYTHONDONTWRITEBYTECODE="",
                PYTHONPYCACHEPREFIX=str(home / "compiled"),  # it may not write to the checkout
            ),
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=home,
            start_new_session=True, **who,
        )  # fmt: skip
        self._home.note(-self.process.pid)  # and all its children
        self.answered = self.unsure = 0  # right answers; requests of which it is not known how far they came

    def signal(self, number: int) -> None:
        """Send a signal as ``apachectl`` does."""
        self.process.send_signal(number)

    def get(self, path: str) -> tuple[int, int, str]:
        """Return status, the process that answered (0: Apache itself), and the body."""
        conn = http.client.HTTPConnection(LOOPBACK, self.port, timeout=60)
        try:
            conn.request("GET", path, headers={"Authorization": f"Bearer {TOKEN}", "Connection": "close"})
            answer = conn.getresponse()
            return answer.status, int(answer.headers.get("X-Pid", 0)), answer.read().decode()
        finally:
            conn.close()

    def wait(self) -> None:
        """Wait until it answers."""

        def answers() -> bool:
            log = self.log.read_text() if self.log.exists() else ""
            assert self.process.poll() is None, log
            with contextlib.suppress(OSError):
                status, _, body = self.get("/answer?n=1")
                assert (status, body) == (200, '[2, "/echo?n=1"]'), (body, log)
                self.answered += 1
                return True
            return False

        wait_until(answers, patience=60)

    def figures(self) -> dict[str, float]:
        """Return what any process says about all of them: for each pool ``acquired``, ``orphans`` and ``used``."""
        status, _, page = self.get("/metrics")
        assert status == 200, page
        found: dict[str, float] = {}
        for metric in text_string_to_metric_families(page):
            for sample in metric.samples:
                if sample.name in ("pooling_acquired_total", "pooling_orphans_total"):
                    found[f"{sample.labels['pool']} {sample.name.split('_')[1]}"] = sample.value
                elif sample.name == "db_client_connection_count" and sample.labels["state"] == "used":
                    found[f"{sample.labels['pool']} used"] = sample.value
        return found

    def settle(self) -> None:
        """Wait until the metrics have the leases of all requests, of ended processes too, and none in use."""
        found: dict[str, float] = {}

        def settled() -> bool:
            found.update(self.figures())  # a process may load the script for this request
            # One lease each; "Loading" or "Reloading":
            found["loaded"] = self.log.read_text().count(f"oading Python script file '{self.script}'")
            beyond = found["db acquired"] - found["loaded"] - self.answered, found["api acquired"] - self.answered
            return all(0 <= one <= self.unsure for one in beyond) and found["db used"] == found["api used"] == 0

        try:
            wait_until(settled)
        except AssertionError as error:
            wrong = f"{found}, not {self.answered} and up to {self.unsure} more"
            raise AssertionError(f"{wrong}; the log ends with:\n{self.log.read_text()[-5000:]}") from error
        assert found["db orphans"] == found["api orphans"] == 0

    def close(self) -> None:
        """Kill what is left."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self._home.note(None)
        self._home.remove()


class Load:
    """Clients that send requests until the block ends, and know each answer.

    Attributes:
        pids: Number of right answers of each process.
        wrong: Wrong answers, and errors of the application.
        cut: Number of requests that Apache answered because the process had ended.
        most: Highest number of connections at the database server.
    """

    def __init__(self, apache: Apache, postgres: PostgresServer) -> None:
        self._apache, self._postgres = apache, postgres
        self._lock, self._stop = threading.Lock(), threading.Event()
        self.pids: Counter[int] = Counter()
        self.wrong: list[str] = []
        self.cut = self.most = 0

    def __enter__(self) -> Load:
        self._threads = [threading.Thread(target=self._run) for _ in range(CLIENTS)]
        self._threads.append(threading.Thread(target=self._watch))
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        self._apache.answered += self.pids.total()
        self._apache.unsure += self.cut  # they may have acquired a connection, or not

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self._request()
            except Exception as error:
                self.wrong.append(repr(error))

    def _request(self) -> None:
        n = random.randrange(1_000_000)
        status, pid, body = self._apache.get(f"/answer?n={n}&s={random.choice((0, 0.02, 0.02, 0.2))}")
        with self._lock:
            if status == 200 and json.loads(body) == [2 * n, f"/echo?n={n}"]:
                self.pids[pid] += 1
            elif status in (500, 503) and pid == 0:
                self.cut += 1
            else:
                self.wrong.append(f"{n}: {status} {body[:200]}")

    def _watch(self) -> None:
        with self._postgres.connect(autocommit=True) as conn:
            while not self._stop.wait(0.01):
                self.most = max(self.most, len(sessions(conn)))

    def answered(self, number: int, without: set[int] | None = None) -> None:
        """Wait until two processes (none of those given) have each answered so often."""

        def enough() -> bool:
            assert not self.wrong, self.wrong[:5]
            with self._lock:
                return sum(n >= number for pid, n in self.pids.items() if pid not in (without or ())) >= PROCESSES

        wait_until(enough, patience=60)


def sessions(conn: psycopg.Connection[Any]) -> list[int]:
    """Return the application's sessions at the database server."""
    rows = conn.execute("SELECT pid FROM pg_stat_activity WHERE application_name = %s", [NAME]).fetchall()
    return [pid for (pid,) in rows]


@pytest.fixture(scope="module")
def site() -> Iterator[WebServer]:
    needs_mod_wsgi()
    with WebServer() as web:
        yield web


@pytest.fixture(scope="module")
def apache(site: WebServer, postgres: PostgresServer) -> Iterator[Apache]:
    made = Apache(postgres.dsn, site.url)
    try:
        made.wait()
        yield made
    finally:
        made.close()


def test_each_answer_is_right(apache: Apache, site: WebServer, postgres: PostgresServer) -> None:
    with Load(apache, postgres) as load:
        load.answered(50)
    assert (load.wrong, load.cut) == ([], 0)
    assert 0 < load.most <= PROCESSES * MAX_SIZE and site.book()["most"] <= PROCESSES * MAX_SIZE
    apache.settle()


@pytest.mark.parametrize("way", ["touch the script", "SIGUSR1 to the processes", "apachectl graceful"])
def test_restart(apache: Apache, postgres: PostgresServer, way: str) -> None:
    """mod_wsgi cuts off requests at ``apachectl graceful``; at the others, no request sees an error."""
    with Load(apache, postgres) as load:
        load.answered(10)
        old = set(load.pids)
        if way == "touch the script":
            os.utime(apache.script)
        elif way == "SIGUSR1 to the processes":
            for pid in old:
                os.kill(pid, signal.SIGUSR1)
        else:
            apache.signal(signal.SIGUSR1)
        load.answered(10, without=old)
    assert load.wrong == []
    assert load.cut <= (PROCESSES * THREADS if way == "apachectl graceful" else 0)
    assert load.most <= PROCESSES * MAX_SIZE  # the old processes end before the new ones begin
    apache.settle()


def test_killed_process(apache: Apache, postgres: PostgresServer) -> None:
    before = apache.figures()["db acquired"]
    with Load(apache, postgres) as load:
        load.answered(10)
        old = set(load.pids)
        os.kill(min(old), signal.SIGKILL)
        load.answered(load.pids[min(old)] + 2 * THREADS)  # the other, and a new one
    assert load.wrong == [] and load.cut <= THREADS  # the requests that it was busy with
    assert len(set(load.pids) - old) == 1
    of_others = sum(number for pid, number in load.pids.items() if pid != min(old))
    assert load.most <= (PROCESSES + 1) * MAX_SIZE
    with postgres.connect(autocommit=True) as conn:
        assert 0 < len(sessions(conn)) <= PROCESSES * MAX_SIZE
    wait_until(lambda: apache.figures()["db used"] == 0 and apache.figures()["db acquired"] >= before + of_others)


def test_signals_are_left_to_mod_wsgi(apache: Apache) -> None:
    """`application_lifespan(signals=True)` in the main thread of each process."""
    text = apache.get("/signals")[2].splitlines()
    assert text == [
        "handlers are the same", "signal handlers not installed: mod_wsgi runs this process and handles its signals"
    ]  # fmt: skip


def test_shutdown_leaves_no_connection(apache: Apache, site: WebServer, postgres: PostgresServer) -> None:
    with Load(apache, postgres) as load:
        load.answered(1)
    with postgres.connect(autocommit=True) as conn:
        assert sessions(conn)
        apache.signal(signal.SIGTERM)
        assert apache.process.wait(30) == 0
        wait_until(lambda: not sessions(conn) and site.book()["open"] == 0)
    log = apache.log.read_text()
    assert ends_of_tracebacks(log) == [] and "Exception ignored" not in log and "dropped without release" not in log
    assert "failed to exit" not in log and "Aborting process" not in log, log  # each process ended by itself

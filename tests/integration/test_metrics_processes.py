"""One view over many processes: real servers with four workers, kills in the middle of load, many restarts."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from pooling.observe.overall import report_of
from pooling.observe.prometheus import PoolCollector
from pooling.observe.shared import INTERVAL, SharedDirectory, Totals
from pooling.observe.view import Viewer
from tests.integration.tools import ROOT, environment, wait_until
from tests.web import WebServer

WORKERS, CLIENTS = 4, 6
PARENT_LEASES, TOKEN = 3, "token-of-the-test"
LOAD = 4.0  # seconds; a worker is killed in the middle of them
REST = INTERVAL + 0.5  # seconds in which every process writes, unless the machine is busy

COMMANDS = {
    "gunicorn": ["-m", "gunicorn", "-k", "gthread", "--threads", "3", "-w", str(WORKERS), "--preload"],
    "gunicorn gevent": ["-m", "gunicorn", "-k", "gevent", "-w", str(WORKERS), "--preload"],
    "uWSGI": ["--processes", str(WORKERS)],
    "uWSGI, threads": ["--processes", str(WORKERS), "--threads", "2", "--enable-threads"],
}
"""All of them load the application in the parent; uWSGI forks in C."""

Series = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def find_uwsgi() -> str | None:
    return shutil.which("uwsgi", path=os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", "")]))


class Server:
    """A server with four workers that share their metrics."""

    def __init__(self, kind: str, home: Path) -> None:
        self.kind = kind
        self.metrics = home / "metrics"
        self.log = home / "log"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        env = environment(
            POOLING_METRICS_DIR=str(self.metrics), METRICS_SQLITE=str(home / "test.db"), METRICS_TOKEN=TOKEN,
            METRICS_PARENT_LEASES=str(PARENT_LEASES),
        )  # fmt: skip
        app, address = "tests.integration.metrics_site:application", f"127.0.0.1:{self.port}"
        if kind.startswith("uWSGI"):
            env["PYTHONPATH"] = os.pathsep.join([str(ROOT), *map(sysconfig.get_path, ("purelib", "platlib"))])
            env["VIRTUAL_ENV"] = sys.prefix
            command = [
                find_uwsgi() or "uwsgi", *COMMANDS[kind], "--http-socket", address, "--module", app, "--master",
                "--need-app", "--die-on-term", "--disable-logging", "--listen", "100",
            ]  # fmt: skip
        else:
            command = [sys.executable, *COMMANDS[kind], "-b", address, "--no-control-socket", app]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command, env=env, cwd=home, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                start_new_session=True,
            )  # fmt: skip

    def get(self, path: str) -> tuple[int, int, str]:
        """Return status, the process that answered, and the body."""
        conn = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            conn.request("GET", path, headers={"Authorization": f"Bearer {TOKEN}", "Connection": "close"})
            answer = conn.getresponse()
            return answer.status, int(answer.headers["X-Pid"]), answer.read().decode()
        finally:
            conn.close()

    def wait(self) -> None:
        def answers() -> bool:
            assert self.process.poll() is None, self.log.read_text(errors="replace")
            with contextlib.suppress(OSError, http.client.HTTPException):
                return self.get("/use")[0] == 200
            return False

        wait_until(answers, patience=60)

    def scrape(self) -> tuple[int, Series]:
        """Return which process answered, and the series."""
        status, pid, page = self.get("/metrics")
        assert status == 200, page
        return pid, {
            (sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for metric in text_string_to_metric_families(page) for sample in metric.samples
        }  # fmt: skip

    def scrapes_of_all(self) -> dict[int, Series]:
        """Return what each of the workers says."""
        found: dict[int, Series] = {}
        with ThreadPoolExecutor(2 * WORKERS) as clients:  # at the same time: one by one, the same worker may answer

            def complete() -> bool:
                found.update(job.result() for job in [clients.submit(self.scrape) for _ in range(2 * WORKERS)])
                return len(found) == WORKERS

            wait_until(complete, patience=60)
        return found

    def scrapes_at_rest(self) -> dict[int, Series]:
        """Return what each of the workers says once every process has written: nothing changes any more."""
        before: Series = {}
        found: dict[int, Series] = {}

        def unchanged() -> bool:
            nonlocal before, found
            time.sleep(REST)
            found = self.scrapes_of_all()
            last, before = before, counters_of(next(iter(found.values())))
            return all(counters_of(series) == last for series in found.values())

        wait_until(unchanged, patience=30)
        return found

    def scrape_at_rest(self) -> Series:
        """Return what any of the workers says once every process has written."""
        last: list[Series] = [{}]

        def unchanged() -> bool:
            time.sleep(REST)
            last.append(self.scrape()[1])
            return counters_of(last[-1]) == counters_of(last[-2])

        wait_until(unchanged, patience=30)
        return last[-1]

    def scrape_and_view(self, viewer: Viewer) -> tuple[Series, Any]:
        """Return what a worker says at rest, and the view of the same processes.

        A new worker may have used no pool yet, and an old one may be about to exit. So both are asked again until no
        process has come or gone meanwhile.
        """
        series, picture = self.scrape_at_rest(), viewer.view()

        def unchanged() -> bool:
            nonlocal series, picture
            before, picture = series, viewer.view()
            series = self.scrape_at_rest()
            sizes = [
                {labels: value for (name, labels), value in one.items() if name == "db_client_connection_max"}
                for one in (before, series)
            ]
            return sizes[0] == sizes[1] and 2 <= len(picture["processes"]) <= WORKERS + 1

        wait_until(unchanged, patience=30)
        return series, picture

    def files(self) -> int:
        return len(os.listdir(self.metrics))

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture(params=COMMANDS)
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Server]:
    if request.param.startswith("uWSGI") and find_uwsgi() is None:
        pytest.skip("uWSGI is not installed")
    made = Server(request.param, tmp_path)
    try:
        made.wait()
        yield made
    finally:
        made.close()


class Load:
    """Uses the pools through the server, and counts what it was answered."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.ends = time.monotonic() + LOAD
        self.answers: list[tuple[int, float, int]] = []  # process, when, leases
        self.unanswered = 0  # leases of requests without an answer: done, or not
        self.wrong: list[str] = []
        self.fallen: list[str] = []
        self.lock = threading.Lock()

    def run(self) -> None:
        jobs = [self.client] * CLIENTS + [self.scraper] * 2
        threads = [threading.Thread(target=self.guarded, args=(job,)) for job in jobs]
        for thread in threads:
            thread.start()
        self.threads = threads

    def join(self) -> None:
        for thread in self.threads:
            thread.join()

    def guarded(self, job: Any) -> None:
        try:
            job()
        except BaseException as error:
            self.wrong.append(repr(error))

    def client(self) -> None:
        while time.monotonic() < self.ends:
            times = random.randint(1, 5)
            try:
                status, pid, _ = self.server.get(f"/use?n={times}")
            except (OSError, http.client.HTTPException, TypeError):  # its worker was killed
                with self.lock:
                    self.unanswered += times
                continue
            with self.lock:
                if status == 200:
                    self.answers.append((pid, time.monotonic(), times))
                else:
                    self.wrong.append(f"status {status}")

    def scraper(self) -> None:
        """Scrape all the time, whichever worker answers; counters never decrease."""
        last: dict[Any, float] = defaultdict(float)
        while time.monotonic() < self.ends:
            try:
                _, series = self.server.scrape()
            except (OSError, http.client.HTTPException, TypeError):
                continue
            counters = {key: value for key, value in series.items() if is_counter(key[0])}
            missing = last.keys() - counters.keys()
            self.fallen += [f"{key} is gone" for key in missing]
            self.fallen += [f"{key}: {last[key]} to {value}" for key, value in counters.items() if value < last[key]]
            last.update(counters)


def is_counter(name: str) -> bool:
    return name.rpartition("_")[2] in {"total", "bucket", "count", "sum"} and name != "db_client_connection_count"


def acquired(series: Series) -> dict[str, float]:
    return {pool: series["pooling_acquired_total", (("pool", pool),)] for pool in ("db", "things")}


def counters_of(series: Series) -> Series:
    return {key: value for key, value in series.items() if is_counter(key[0])}


def test_worker_is_killed_in_the_middle_of_load(server: Server) -> None:
    load = Load(server)
    load.run()
    wait_until(lambda: len(load.answers) > 20)
    time.sleep(LOAD / 2)
    victim, killed_at = load.answers[-1][0], time.monotonic()
    os.kill(victim, signal.SIGKILL)
    load.join()
    assert (load.wrong, load.fallen) == ([], [])
    found = server.scrapes_at_rest()
    assert victim not in found
    first = counters_of(next(iter(found.values())))
    for series in found.values():
        assert counters_of(series) == first
        assert series["db_client_connection_count", (("pool", "db"), ("state", "used"))] == 0
        assert series["db_client_connection_pending_requests", (("pool", "db"),)] == 0

    # The killed worker takes along what it has counted since its last write, and a bit more where the machine is slow.
    everything = PARENT_LEASES + sum(times for _, _, times in load.answers)
    lost = sum(times for pid, at, times in load.answers if pid == victim and at > killed_at - 2 * INTERVAL)
    of_others = sum(times for pid, _, times in load.answers if pid != victim)
    assert of_others > 0 and everything - of_others > 0
    for pool, number in acquired(first).items():
        assert everything - lost <= number <= everything + load.unanswered, (pool, lost, load.unanswered)
    assert server.files() <= WORKERS + 2

    # Killed at rest, a worker takes nothing along: the sums stay what they were.
    second = next(iter(found))
    os.kill(second, signal.SIGKILL)
    time.sleep(0.2)
    for series in server.scrapes_of_all().values():
        assert acquired(series) == acquired(first)
    assert server.files() <= WORKERS + 2


def test_sums_are_what_the_load_generator_counted(server: Server) -> None:
    load = Load(server)
    load.run()
    load.join()
    assert (load.wrong, load.fallen, load.unanswered) == ([], [], 0)
    expected = float(PARENT_LEASES + sum(times for _, _, times in load.answers))
    for series in server.scrapes_at_rest().values():
        assert acquired(series) == {"db": expected, "things": expected}
        assert series["db_client_connection_wait_time_seconds_count", (("pool", "db"),)] == expected
    found = SharedDirectory(server.metrics).read()  # by another program of the same user
    assert found.pools["db"]["counters"]["acquired"] == expected and found.processes == WORKERS + 1


def test_report_over_restarts_equals_the_sum_of_the_scrapes(server: Server) -> None:
    """Workers are killed in the middle of load and replaced; scrapes, report and view all tell the same."""
    viewer = Viewer.of_directory(server.metrics)
    load = Load(server)
    load.run()
    for _ in range(3):
        wait_until(lambda: len(load.answers) > 20)
        time.sleep(LOAD / 5)
        os.kill(load.answers[-1][0], signal.SIGKILL)
        viewer.view()
    if server.kind.startswith("gunicorn"):
        server.process.send_signal(signal.SIGHUP)  # all workers are replaced
    load.join()
    assert (load.wrong, load.fallen) == ([], [])

    server.get("/use?n=1")
    series, picture = server.scrape_and_view(viewer)
    live = len(picture["processes"])
    report = report_of(SharedDirectory(server.metrics))
    view = {pool["name"]: pool for pool in picture["pools"]}
    for name, number in acquired(series).items():
        label = (("pool", name),)
        pool = report["pools"][name]
        assert pool["acquired"] == number >= PARENT_LEASES + sum(times for pid, _, times in load.answers) / 5
        for metric in ("created", "exhausted", "orphans", "leaks"):
            assert pool[metric] == series[f"pooling_{metric}_total", label], (name, metric)
        assert pool["timeouts"] == series["db_client_connection_timeouts_total", label]
        for metric in ("wait", "use", "create"):
            counted = series[f"db_client_connection_{metric}_time_seconds_count", label]
            assert pool[metric]["count"] == counted, (name, metric)
            assert pool[metric]["mean"] * counted == pytest.approx(
                series[f"db_client_connection_{metric}_time_seconds_sum", label]
            )
        closed = {
            dict(labels)["reason"]: value for (metric, labels), value in series.items()
            if metric == "pooling_closed_total" and ("pool", name) in labels
        }  # fmt: skip
        assert pool["closed"] == {reason: value for reason, value in closed.items() if value}
        assert sum(filter(None, view[name]["minutes"]["leases"])) == number
        assert view[name]["processes"] == live
        assert view[name]["in_use"] == 0 and view[name]["max_size"] == series["db_client_connection_max", label]
    command = [sys.executable, "-m", "pooling", "report", "--dir", str(server.metrics), "--format", "json"]
    done = subprocess.run(command, env=environment(), capture_output=True, check=True)
    assert json.loads(done.stdout)["pools"]["db"]["acquired"] == report["pools"]["db"]["acquired"]


RESTARTS = """
import os, signal, sys, time
import pooling
from pooling.observe import shared

directory, most = shared.current(), 0
db, api = pooling.Pool(object, name="db"), pooling.Pool(object, name="api")

def use(times):
    for _ in range(times):
        with db.acquire(), api.acquire(): pass

use(5)
alive = []
for number in range(1000):
    child = os.fork()
    if child == 0:
        use(3)
        assert directory.write()
        if number % 3 == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        if number % 50 == 0:
            time.sleep(0.05)
        os._exit(0)
    alive.append(child)
    if len(alive) == 4:
        os.waitpid(alive.pop(0), 0)
        most = max(most, len(os.listdir(directory.path)) - len(alive) - 1)
for child in alive:
    os.waitpid(child, 0)
totals = directory.read()
from pooling.observe.overall import report_of
reported = {name: pool["acquired"] for name, pool in report_of(directory)["pools"].items()}
assert reported == {name: pool["counters"]["acquired"] for name, pool in totals.pools.items()}, reported
print(most, totals.pools["db"]["counters"]["acquired"], totals.pools["api"]["counters"]["acquired"])
print(totals.processes, len(os.listdir(directory.path)))
"""


def test_1000_forked_workers(tmp_path: Path) -> None:
    """Some exit at once, some are killed; at most workers + 2 files at any time, and nothing is lost."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", RESTARTS], capture_output=True, text=True,
        env=environment(POOLING_METRICS_DIR=str(tmp_path / "metrics")), timeout=300,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    beyond, *rest = done.stdout.split()
    assert int(beyond) <= 2  # files beyond those of the live workers and their parent
    assert rest == ["3005", "3005", "1", "2"]


HTTP = """
import sys, weakref
import pooling
from pooling.observe import shared
http = pooling.HTTPPool(base_url=sys.argv[1], name="api", max_size=4)
for status in (200, 200, 503):
    assert http.get(f"/status/{status}", timeout=10).status_code == status
    http.get("/echo")
http.drain()  # closes the connection
found = shared.current().read()
assert list(found.pools) == ["api"], list(found.pools)
gone = weakref.ref(http)
del http
assert gone() is None  # what is recorded keeps no pool alive
again = shared.current().read().pools["api"]
assert again["counters"] == found.pools["api"]["counters"] and not again["gauges"], again
"""


@pytest.mark.parametrize("shared", [False, True])
def test_http_by_host(tmp_path: Path, shared: bool) -> None:
    """The pools of each host, which an HTTP pool has inside, are not exported beside it."""
    web = WebServer()
    web.start()
    try:
        env = environment(POOLING_METRICS_DIR=str(tmp_path / "metrics") if shared else "")
        subprocess.run([sys.executable, "-c", HTTP, web.url], env=env, check=True, timeout=60)
    finally:
        web.kill()
    if not shared:
        return
    found = SharedDirectory(tmp_path / "metrics").read()
    page = {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for metric in PoolCollector(source=Fixed(found)).collect() for sample in metric.samples
    }  # fmt: skip
    host = ("host", web.url), ("pool", "api")
    assert page["pooling_http_responses_total", (("code", "200"), *host)] == 5
    assert page["pooling_http_responses_total", (("code", "503"), *host)] == 1
    assert page["http_client_request_duration_seconds_count", host] == 6
    assert page["pooling_http_connections_opened_total", host] == 1
    assert page["http_client_connection_duration_seconds_count", host] == 1
    assert page["pooling_acquired_total", (("pool", "api"),)] == 6


class Fixed:
    def __init__(self, totals: Totals) -> None:
        self.totals = totals

    def read(self) -> Totals:
        return self.totals

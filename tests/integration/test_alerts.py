"""Alerts with real servers: outages, slow borrowers, leaks, webhooks, forks, the exit."""

from __future__ import annotations

import base64
import json
import os
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psycopg
import pytest

import pooling
from pooling import HTTPPool, Pool, PoolSettings, PostgresPool
from pooling.core.runtime import registry
from pooling.observe import Alert, Alerts, Rule, Webhook, usual_rules
from pooling.observe.alerts import living
from pooling.observe.delivery import MOST_QUEUED
from pooling.observe.sources import OfProcess
from tests.integration.tools import ROOT, environment, in_thread, wait_until
from tests.servers import PostgresServer

QUICK = PoolSettings(min_size=0, max_size=2, acquire_timeout=1.0, health_check_interval=None)


@pytest.fixture(autouse=True)
def no_alerts_left() -> Iterator[None]:
    yield
    for alerts in list(living.values()):
        alerts.stop()


class Receiver(ThreadingHTTPServer):
    """A webhook's server, which answers as it is told and keeps what it got."""

    daemon_threads = True

    def __init__(self, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.status, self.delay = 200, 0.0
        self.got: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/hook/s3cret-path"

    def end(self) -> None:
        self.shutdown()
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    server: Receiver
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.paths.append(self.path)
        time.sleep(self.server.delay)
        if self.server.status == 200:
            self.server.got.append(json.loads(body))
            self.server.headers.append(dict(self.headers))
        with suppress(OSError):  # the client is gone
            self.send_response(self.server.status)
            if self.server.status == 302:
                self.send_header("Location", "/elsewhere")
            self.send_header("Content-Length", "0")
            self.end_headers()

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    server = Receiver()
    yield server
    server.end()


def kinds(seen: list[Alert]) -> list[str]:
    return [f"{alert.kind} {alert.state}" for alert in seen]


def dropping(number: int) -> Rule:
    """A rule that alerts at each look, one alert for each of so many kinds; see `send`."""
    return Rule(f"kind{number}", lambda sample: "something", clear=0.0)


def send(target: Any, number: int = 1, **given: Any) -> Alerts:
    """Cause alerts at once."""
    pool: Pool[Any] = Pool(object, name="db")
    alerts = Alerts([pool], rules=[dropping(each) for each in range(number)], to=target, **given)
    kept.append(pool)
    return alerts


kept: list[Any] = []


# -- what happens to pools -------------------------------------------------------------------


def test_postgresql_is_killed_and_restarted(private_postgres: PostgresServer, receiver: Receiver) -> None:
    seen: list[Alert] = []
    with PostgresPool(private_postgres.dsn, QUICK, name="orders") as pool, Alerts(
        [pool], rules=usual_rules(outage=1.0), to=[seen.append, Webhook(receiver.url)], interval=0.1, group="shop"
    ) as alerts:
        stop = threading.Event()

        def work() -> None:
            while not stop.wait(0.02):
                with suppress(pooling.PoolError, psycopg.Error):
                    pool.execute_query("SELECT 1")

        workers = [in_thread(work) for _ in range(3)]
        try:
            time.sleep(0.5)
            assert seen == []
            private_postgres.kill()
            wait_until(lambda: "outage began" in kinds(seen))
            assert [alert.kind for alert in alerts.firing()] == ["outage"]
            private_postgres.start()
            wait_until(lambda: "outage ended" in kinds(seen), patience=60.0)
        finally:
            stop.set()
            for worker in workers:
                worker.join(30)
        wait_until(lambda: len(receiver.got) >= 2)
    outages = [alert for alert in seen if alert.kind == "outage"]
    assert kinds(outages) == ["outage began", "outage ended"]
    assert "refused" in outages[0].text and outages[0].severity == "critical"
    assert outages[1].ended is not None and outages[1].ended - outages[1].began > 1.0
    sent = [one for one in receiver.got if one["kind"] == "outage"]
    assert [one["state"] for one in sent] == ["began", "ended"]
    assert {one["key"] for one in sent} == {"shop:orders:outage"}
    assert sent[0]["text"].startswith("pool 'orders': the server is down: ")


def test_slow_borrower(postgres: PostgresServer) -> None:
    seen: list[Alert] = []
    with PostgresPool(postgres.dsn, QUICK.replace(max_size=1, acquire_timeout=60.0), name="db") as pool, Alerts(
        [pool], rules=usual_rules(exhausted=1.0), to=seen.append, interval=0.1
    ):
        def slow() -> None:
            with pool.connection() as conn:
                conn.execute("SELECT pg_sleep(2.5)")

        holder = in_thread(slow)
        wait_until(lambda: pool.stats()["in_use"] == 1)
        assert pool.execute_query("SELECT 7") == [(7,)]  # waits for the slow one
        holder.join(30)
        wait_until(lambda: seen)
    assert kinds(seen) == ["exhausted began"]
    assert seen[0].text.startswith("exhausted: 1 of 1 in use, 1 waiting, the oldest for ")
    assert "held by: test_alerts.py:" in seen[0].text and "slow() in Thread-" in seen[0].text


def test_timeouts_and_leak(postgres: PostgresServer) -> None:
    seen: list[Alert] = []
    settings = QUICK.replace(max_size=1, acquire_timeout=0.2, leak_timeout=0.5)
    with PostgresPool(postgres.dsn, settings, name="db") as pool, Alerts([pool], to=seen.append, interval=0.1):
        with pool.acquire(), pytest.raises(pooling.PoolTimeout):
            pool.acquire()
        wait_until(lambda: "timeouts began" in kinds(seen))
        with pool.acquire():
            wait_until(lambda: "leak began" in kinds(seen))
    (leak,) = [alert for alert in seen if alert.kind == "leak"]
    assert "test_alerts.py:" in leak.text and "test_timeouts_and_leak()" in leak.text


def test_health_url(receiver: Receiver) -> None:
    seen: list[Alert] = []
    site = Receiver()  # answers 501 to GET: unhealthy
    pool = HTTPPool(
        QUICK.replace(health_check_interval=0.1), base_url=f"http://127.0.0.1:{site.server_port}", health_url="/health",
        name="api",
    )
    with pool, Alerts([pool], to=seen.append, interval=0.1):
        wait_until(lambda: "unhealthy began" in kinds(seen))
    assert "501" in seen[0].text
    site.end()


# -- webhooks --------------------------------------------------------------------------------


def test_webhook(receiver: Receiver) -> None:
    url = receiver.url.replace("//", "//user:hunter2@")
    alerts = send(Webhook(url, headers={"X-Team": "payments"}), group="shop")
    wait_until(lambda: receiver.got)
    alert = receiver.got[0]
    assert (alert["key"], alert["state"], alert["text"]) == ("shop:db:kind0", "began", "pool 'db': something")
    assert (alert["pid"], alert["host"], alert["ended"]) == (os.getpid(), socket.gethostname(), None)
    assert receiver.headers[0]["Content-Type"] == "application/json"
    assert receiver.headers[0]["X-Team"] == "payments"
    assert receiver.headers[0]["Authorization"] == "Basic " + base64.b64encode(b"user:hunter2").decode()
    assert "hunter2" not in json.dumps(alert)
    assert alerts.dropped == 0


def test_its_own_pool_is_not_observed(receiver: Receiver) -> None:
    alerts = send(Webhook(receiver.url))
    wait_until(lambda: receiver.got)
    assert not [label for label, _ in OfProcess().pools() if "alerts to" in label]
    assert [pool for pool in registry.pools() if pool.engine.name.startswith("alerts to http://127.0.0.1")]
    alerts.stop()


def test_body_of_ones_own(receiver: Receiver) -> None:
    send(Webhook(receiver.url, body=lambda alert: {"text": str(alert), "channel": "#db"}))
    wait_until(lambda: receiver.got)
    assert receiver.got[0] == {"text": "pool 'db': something", "channel": "#db"}


def test_webhook_that_is_down_for_a_while(caplog: pytest.LogCaptureFixture) -> None:
    first = Receiver()
    port = first.server_port
    url = first.url
    first.end()
    send(Webhook(url, backoff=0.5))
    time.sleep(0.3)
    second = Receiver(port)
    wait_until(lambda: second.got)
    assert "delivering" not in caplog.text
    second.end()


def test_webhook_that_stays_down(caplog: pytest.LogCaptureFixture) -> None:
    gone = Receiver()
    url = gone.url.replace("//", "//user:hunter2@") + "?token=hunter3"
    gone.end()
    alerts = send(Webhook(url, backoff=0.01, retries=2), number=3)
    wait_until(lambda: alerts.dropped == 3)
    (text,) = [one.getMessage() for one in caplog.records if "delivering" in one.getMessage()]  # once
    assert text == (
        f"alerts: delivering to webhook http://127.0.0.1:{gone.server_port} failed, the alert is dropped: "
        "ConnectionRefusedError: Connection refused"
    )
    assert "hunter" not in caplog.text and "s3cret" not in caplog.text


def test_status_500_is_repeated_and_400_is_not(receiver: Receiver, caplog: pytest.LogCaptureFixture) -> None:
    receiver.status = 500
    alerts = send(Webhook(receiver.url, backoff=0.01, retries=2))
    wait_until(lambda: alerts.dropped == 1)
    assert len(receiver.paths) == 3
    assert "the alert is dropped: status 500" in caplog.text
    receiver.status, receiver.paths = 400, []
    alerts = send(Webhook(receiver.url, backoff=0.01, retries=2))
    wait_until(lambda: alerts.dropped == 1)
    assert len(receiver.paths) == 1
    receiver.status = 200
    alerts = send(Webhook(receiver.url))
    wait_until(lambda: receiver.got)


def test_redirect_is_not_followed(receiver: Receiver, caplog: pytest.LogCaptureFixture) -> None:
    receiver.status = 302
    alerts = send(Webhook(receiver.url, backoff=0.01))
    wait_until(lambda: alerts.dropped == 1)
    assert receiver.paths == ["/hook/s3cret-path"]
    assert "status 302, a redirect, which is not followed" in caplog.text


def test_slow_webhook_delays_nothing_else(receiver: Receiver) -> None:
    receiver.delay = 3.0
    seen: list[Alert] = []
    began = time.monotonic()
    alerts = send([Webhook(receiver.url, timeout=30.0), seen.append], number=2, interval=0.1)
    assert time.monotonic() - began < 2.0
    wait_until(lambda: len(seen) == 2)
    assert not receiver.got  # the first is still under way
    pool = kept[-1]
    for _ in range(100):
        with pool.acquire():
            pass
    assert time.monotonic() - began < 2.9
    wait_until(lambda: len(receiver.got) == 2, patience=60.0)
    assert [one["kind"] for one in receiver.got] == [f"kind{number}" for number in range(2)]
    assert alerts.dropped == 0


def test_slow_webhook_is_cut_off(receiver: Receiver, caplog: pytest.LogCaptureFixture) -> None:
    receiver.delay = 20.0
    alerts = send(Webhook(receiver.url, timeout=0.2, retries=1, backoff=0.01))
    began = time.monotonic()
    wait_until(lambda: alerts.dropped == 1)
    assert time.monotonic() - began < 10.0
    assert "the alert is dropped: " in caplog.text and "imeout" in caplog.text


def test_queue_of_a_callable_that_hangs(caplog: pytest.LogCaptureFixture) -> None:
    go, seen = threading.Event(), list[Alert]()
    rules = [Rule(f"kind{number}", lambda one: None if one.seconds else "first", clear=0.0) for number in range(60)]
    pool: Pool[Any] = Pool(object, name="db")
    alerts = Alerts([pool], rules=rules, to=[lambda alert: go.wait(60), seen.append], interval=0.2)
    wait_until(lambda: len(seen) == 120)  # 60 begin, and then end
    assert alerts.dropped == 120 - MOST_QUEUED - 1  # one is under way
    assert len([one for one in caplog.records if "too many are waiting" in one.getMessage()]) == 1
    go.set()


# -- processes -------------------------------------------------------------------------------


def run(code: str, *arguments: str, **environ: str) -> str:
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-c", textwrap.dedent(code), *arguments],
        cwd=ROOT, env=environment(**environ), capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout


FORKING = """
    import os, sys, time
    from pooling import Pool, PoolTimeout
    from pooling.observe import Alerts, usual_rules

    def tell(alert):
        with open(sys.argv[1], "a") as file:
            who = "child" if os.getpid() != parent else "parent"
            file.write(f"{who} {alert.kind} {alert.state} {alert.pid == os.getpid()}\\n")

    parent = os.getpid()
    pool = Pool(object, name="db", max_size=1, acquire_timeout=0.05)
    Alerts([pool], to=tell, interval=0.1)

    def cause(seconds=0.0):
        with pool.acquire(60):
            try:
                pool.acquire()
            except PoolTimeout:
                pass

    def until(text):
        deadline = time.monotonic() + 30
        while not (os.path.exists(sys.argv[1]) and text in open(sys.argv[1]).read()):
            assert time.monotonic() < deadline, text
            time.sleep(0.02)

    fork = os.fork
    if sys.argv[2] == "c":  # as uWSGI does: no hook of Python is called
        import ctypes
        fork = ctypes.PyDLL(None).fork  # with the interpreter's lock, as uWSGI
        time.sleep(1)  # without Python's hooks, a child of a fork while a thread starts would hang
    if sys.argv[3] == "used":
        cause()
        until("parent timeouts began")
    child = fork()
    if child == 0:
        cause()
        until("child timeouts began")
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert status == 0, status
    if sys.argv[3] != "used":
        cause()
    until("parent timeouts began")
"""


@pytest.mark.parametrize("how", ["python", "c"])
@pytest.mark.parametrize("used", ["used", "unused"])
def test_forked_child_begins_anew(tmp_path: Path, how: str, used: str) -> None:
    file = tmp_path / "alerts"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(FORKING), str(file), how, used],
        cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = sorted(file.read_text().splitlines())
    assert lines == ["child timeouts began True", "parent timeouts began True"]


def test_gunicorn_workers_each_send_their_own(tmp_path: Path, receiver: Receiver) -> None:
    (tmp_path / "shop.py").write_text(textwrap.dedent("""
        import os
        from pooling import Pool, PoolTimeout
        from pooling.observe import Alerts, Webhook

        pool = Pool(object, name="db", max_size=1, acquire_timeout=0.05)
        Alerts([pool], to=Webhook(os.environ["HOOK"]), interval=0.1, group="shop")

        def application(environ, start_response):
            with pool.acquire():
                try:
                    pool.acquire()
                except PoolTimeout:
                    pass
            start_response("200 OK", [])
            return [str(os.getpid()).encode()]
    """))
    log = tmp_path / "log"
    with log.open("wb") as output, socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        taken.close()
        server = subprocess.Popen(
            [sys.executable, "-m", "gunicorn", "-w", "2", "--preload", "-b", f"127.0.0.1:{port}",
             "--chdir", str(tmp_path), "shop:application"],
            env=environment(HOOK=receiver.url), stdout=output, stderr=subprocess.STDOUT,
        )  # fmt: skip
    try:
        pids: set[int] = set()

        def both() -> bool:
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), 5) as sock:
                sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
                pids.add(int(sock.makefile("rb").read().rpartition(b"\r\n\r\n")[2]))
            return len(pids) == 2

        wait_until(both)
        wait_until(lambda: {one["pid"] for one in receiver.got} == pids)
    finally:
        server.terminate()
        server.wait(60)
    assert sorted(one["kind"] for one in receiver.got) == ["timeouts"] * 2  # one for each worker
    assert {one["key"] for one in receiver.got} == {"shop:db:timeouts"}


def test_exit_does_not_wait() -> None:
    """Neither for a webhook that does not answer, nor for a callable that hangs."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        began = time.monotonic()
        run(
            """
            import sys, time
            from pooling import Pool
            from pooling.observe import Alerts, Rule, Webhook

            pool = Pool(object, name="db")
            pool.acquire().release()
            Alerts([pool], rules=[Rule("always", lambda sample: "x")],
                   to=[Webhook(sys.argv[1], timeout=60.0), lambda alert: time.sleep(60)], interval=0.1)
            time.sleep(0.5)
            """,
            f"http://127.0.0.1:{silent.getsockname()[1]}/",
            PYTHONWARNINGS="error",
        )
        assert time.monotonic() - began < 30.0


def test_gevent(receiver: Receiver) -> None:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(GEVENT), receiver.url],
        cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    wait_until(lambda: receiver.got)
    assert receiver.got[0]["kind"] == "timeouts"


GEVENT = """
    from gevent import monkey; monkey.patch_all()
    import sys, time
    from pooling import Pool, PoolTimeout
    from pooling.observe import Alerts, Webhook

    pool = Pool(object, name="db", max_size=1, acquire_timeout=0.05)
    seen = []
    hook = Webhook(sys.argv[1])
    alerts = Alerts([pool], to=[seen.append, hook], interval=0.1)
    with pool.acquire():
        try:
            pool.acquire()
        except PoolTimeout:
            pass
    deadline = time.monotonic() + 30
    delivery = alerts.process().deliveries[1]
    while not (seen and delivery.sent) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert [alert.kind for alert in seen] == ["timeouts"], seen
    assert delivery.sent == 1
"""


def test_borrowers_do_not_pay() -> None:
    """Acquire and release take the same path with alerts as without."""
    pool: Pool[Any] = Pool(object, name="db")
    before = pool.engine.fast.slow_release, pool.engine.fast.lendable_generation is pool.engine.state.generation
    alerts = Alerts([pool], to=lambda alert: None, interval=0.1)
    alerts.check()
    after = pool.engine.fast.slow_release, pool.engine.fast.lendable_generation is pool.engine.state.generation
    assert before == after == (False, True)
    assert pool.engine.events.observers == ()

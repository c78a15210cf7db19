"""The monitor with real servers, real time, forks, gevent, the exit, and a browser."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest

import pooling
from pooling import HTTPPool, PoolManager, PoolSettings, PoolTimeout, PostgresPool, SQLitePool
from pooling.observe import PerformanceMonitor, get_global_monitor
from pooling.observe.sources import OfProcess
from tests.integration.tools import wait_until
from tests.servers import PostgresServer, requires
from tests.unit.test_monitor import Page
from tests.web import WebServer

ROOT = Path(__file__).parents[2]
QUICK = PoolSettings(min_size=0, max_size=2, acquire_timeout=5.0)


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ENABLE_METRICS", "METRICS_EXPORT_INTERVAL"):
        monkeypatch.delenv(name, raising=False)


def run(code: str, *arguments: str, **environ: str) -> str:
    """Run a script of its own; return what it prints."""
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-c", textwrap.dedent(code), *arguments],
        cwd=ROOT, env={**os.environ, **environ}, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout


def test_three_kinds_of_pools_in_one_report(postgres: PostgresServer, web: WebServer, tmp_path: Path) -> None:
    with PoolManager() as manager:
        manager.add_pool(PostgresPool(postgres.dsn, QUICK, query_statistics=True, name="db"), "db_pool")
        manager.add_pool(HTTPPool(base_url=web.url, name="http"), "http_pool")
        manager.add_pool(SQLitePool(tmp_path / "cache.db", readers=2, name="cache"), "cache")
        with PerformanceMonitor(manager, interval=0.2) as monitor:
            for number in range(20):
                manager["db_pool"].execute_query("SELECT %s::text", (f"secret-{number}",))
                assert manager["http_pool"].get("/echo").status_code == 200
                manager["cache"].execute_query("SELECT ?", (number,))
            manager["db_pool"].execute_query("SELECT pg_sleep(0.05), 'hunter2'")
            manager["http_pool"].get("/status/503")
            summary = monitor.get_performance_summary()
            assert summary["status"] == "up"
            assert summary["http_pool"]["success_rate"] == 1.0
            assert summary["database_pool"]["active_connections"] == 0
            assert summary["process"]["memory_bytes"] > 1_000_000
            report = monitor.get_report()
            page = monitor.generate_report(format="html")
            text = monitor.generate_report()
            everywhere = [label for label, _ in OfProcess().pools()]
    assert {"db", "http", "cache"} <= set(everywhere)
    assert not [label for label in everywhere if label.startswith(("http ", "cache-"))]  # parts of others
    pools = report["pools"]
    assert set(pools) == {"db_pool", "http_pool", "cache", "cache-readers"}
    assert pools["db_pool"]["acquired"] >= 21 and pools["db_pool"]["queries"]["count"] >= 21
    assert "pg_sleep" in pools["db_pool"]["queries"]["slowest"][0]["query"]
    (host,) = pools["http_pool"]["hosts"]
    assert host["statuses"] == {"200": 20, "503": 1} and host["latency"]["p95"] > 0
    assert pools["cache-readers"]["acquired"] >= 20
    Page(page)
    for secret in ("hunter2", "secret-"):
        assert secret not in page and secret not in text and secret not in json.dumps(report)


def works(pool: PostgresPool) -> bool:
    try:
        pool.execute_query("SELECT 1")
    except (pooling.PoolError, psycopg.Error):
        return False
    return True


def test_outage_shows_in_the_report(private_postgres: PostgresServer) -> None:
    settings = QUICK.replace(acquire_timeout=1.0, health_check_interval=0.2, max_size=1)
    with PostgresPool(private_postgres.dsn, settings, name="db") as pool, PerformanceMonitor(
        [pool], interval=0.2
    ) as monitor:
        pool.execute_query("SELECT 1")
        private_postgres.kill()
        with pytest.raises((PoolTimeout, pooling.PoolUnavailable)):
            for _ in range(20):
                with suppress(psycopg.Error):  # of the connection that died
                    pool.execute_query("SELECT 1")
        during = monitor.get_report()
        private_postgres.start()
        wait_until(lambda: works(pool))
        wait_until(lambda: [one for one in monitor.get_report()["incidents"] if one["kind"] == "outage" and one["end"]])
        after = monitor.get_report()
        text, page = monitor.generate_report(), monitor.generate_report(format="html")
    (outage,) = [one for one in during["incidents"] if one["kind"] == "outage"]
    assert outage["end"] is None and outage["text"]
    assert any("could not be reached" in one["title"] for one in after["advice"])
    assert after["pools"]["db"]["failed"] >= 1
    assert not [one for one in after["advice"] if one["setting"] == "max_size"]
    assert "db: outage" in text and "could not be reached" in page


def test_exhaustion_gives_a_size(tmp_path: Path) -> None:
    pool = pooling.Pool(object, name="scarce", max_size=1, acquire_timeout=5.0)
    with pool, PerformanceMonitor([pool], interval=0.1) as monitor:

        def work() -> None:
            for _ in range(10):
                with pool.acquire():
                    time.sleep(0.02)

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        report = monitor.get_report()
    (advice,) = [one for one in report["advice"] if one["setting"] == "max_size"]
    assert advice["suggested"] > 1
    assert report["pools"]["scarce"]["use"]["mean"] >= 0.02


def test_foreign_pools(postgres: PostgresServer, tmp_path: Path) -> None:
    import psycopg_pool
    import sqlalchemy

    engine = sqlalchemy.create_engine(f"sqlite:///{tmp_path}/a.db", poolclass=sqlalchemy.QueuePool)
    with psycopg_pool.ConnectionPool(postgres.dsn, min_size=1, max_size=3, open=True) as foreign:
        monitor = PerformanceMonitor([foreign, engine], interval=0.2)
        for _ in range(5):
            with foreign.connection() as conn:
                conn.execute("SELECT 1")
        with engine.connect() as conn:
            conn.exec_driver_sql("SELECT 1")
            monitor.sample()
        report = monitor.get_report()
        monitor.stop()
    (label,) = [label for label, pool in report["pools"].items() if pool["kind"] == "ConnectionPool"]
    assert report["pools"][label]["acquired"] == 5 and report["pools"][label]["max_size"] == 3
    assert report["pools"]["engine-2"]["in_use"]["peak"] == 1


def test_global_monitor_sees_pools_that_are_made_later() -> None:
    out = run("""
        import pooling
        from pooling.observe import get_global_monitor
        early = pooling.Pool(object, name="early")
        monitor = get_global_monitor()
        assert monitor is get_global_monitor()
        late = pooling.Pool(object, name="late")
        for pool in (early, late):
            pool.acquire().release()
        monitor.sample()
        print({label: pool["acquired"] for label, pool in monitor.get_report()["pools"].items()})
    """)
    assert out == "{'early': 1, 'late': 1}\n"


def test_nothing_is_started_or_imported_unless_it_is_used() -> None:
    out = run("""
        import sys, threading, os
        import pooling
        print([name for name in sys.modules if name.startswith("pooling.observe") or name == "psutil"])
        import pooling.observe
        print(len(os.listdir("/proc/self/task")))
        monitor = pooling.observe.PerformanceMonitor([], interval=0.1)
        import time
        end = time.monotonic() + 20
        while monitor.current_sampler().samples < 5 and time.monotonic() < end: time.sleep(0.05)
        print(len(os.listdir("/proc/self/task")) <= 4, monitor.current_sampler().samples >= 5)
        monitor.stop()
        while len(os.listdir("/proc/self/task")) > 1 and time.monotonic() < end: time.sleep(0.05)
        print(len(os.listdir("/proc/self/task")))
    """)
    assert out == "[]\n1\nTrue True\n1\n"


FORK = """
    import ctypes, os, sys, time, json
    import pooling
    from pooling.observe import PerformanceMonitor
    fork = ctypes.PyDLL(None).fork if sys.argv[1] == "C" else os.fork
    pool = pooling.Pool(object, name="p")
    got = []
    monitor = PerformanceMonitor([pool], interval=0.1)
    monitor.export_to(sys.argv[2] + "/{pid}.json", every=0.2, keep=0)
    for _ in range(7): pool.acquire().release()
    monitor.sample()
    if sys.argv[1] == "C":
        # A fork in C while another thread may hold the interpreter's lock is broken in CPython itself.
        time.sleep(0.05)
    pid = fork()
    if pid == 0:
        code = 1
        try:
            end = time.monotonic() + 20
            if sys.argv[3] == "call":
                assert monitor.get_report()["pools"].get("p", {}).get("acquired", 0) == 0
            pool.acquire().release()
            path = f"{sys.argv[2]}/{os.getpid()}.json"
            while not os.path.exists(path) and time.monotonic() < end: time.sleep(0.05)
            with open(path) as file: summary = json.load(file)
            assert summary["process"]["pid"] == os.getpid(), summary["process"]
            report = monitor.get_report()
            assert report["pools"]["p"]["acquired"] == 1, report["pools"]["p"]["acquired"]
            assert len(pool.engine.events.observers) == 1
            code = 0
        except BaseException:
            import traceback; traceback.print_exc()
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    pool.acquire().release()
    assert monitor.get_report()["pools"]["p"]["acquired"] == 8
    goal, end = monitor.current_sampler().samples + 3, time.monotonic() + 20
    while monitor.current_sampler().samples < goal and time.monotonic() < end: time.sleep(0.05)
    assert monitor.current_sampler().samples >= goal
    print("fine")
"""


@pytest.mark.parametrize("use", ["call", "pool"])
@pytest.mark.parametrize("how", ["Python", "C"])
def test_forked_child_begins_anew(how: str, use: str, tmp_path: Path) -> None:
    assert run(FORK, how, str(tmp_path), use, PYTHONWARNINGS="error") == "fine\n"


def test_gevent() -> None:
    out = run("""
        from gevent import monkey; monkey.patch_all()
        import gevent, time
        import pooling
        from pooling.observe import PerformanceMonitor
        pool = pooling.Pool(object, name="p", max_size=1)
        got = []
        monitor = PerformanceMonitor([pool], interval=0.1)
        monitor.export_to(got.append, every=0.1)
        def work():
            for _ in range(5):
                with pool.acquire(): time.sleep(0.02)
        gevent.joinall([gevent.spawn(work) for _ in range(3)])
        end = time.monotonic() + 20
        while len(got) < 2 and time.monotonic() < end: time.sleep(0.05)
        report = monitor.get_report()
        print(report["pools"]["p"]["acquired"], len(got) >= 2, [one["kind"] for one in report["incidents"]])
    """)
    assert out == "15 True ['exhausted']\n"


def test_gevent_that_comes_late() -> None:
    out = run("""
        import pooling, time
        from pooling.observe import PerformanceMonitor
        pool = pooling.Pool(object, name="p")
        monitor = PerformanceMonitor([pool], interval=0.1)
        pool.acquire().release()
        time.sleep(0.3)
        import warnings; warnings.simplefilter("ignore")
        from gevent import monkey; monkey.patch_all()
        import gevent
        gevent.joinall([gevent.spawn(lambda: pool.acquire().release()) for _ in range(3)])
        goal, end = monitor.current_sampler().samples + 3, time.monotonic() + 20
        while monitor.current_sampler().samples < goal and time.monotonic() < end: time.sleep(0.05)
        print(monitor.current_sampler().samples >= goal, monitor.get_report()["pools"]["p"]["acquired"])
    """)
    assert out == "True 4\n"


def test_file_is_written_once_more_at_exit(tmp_path: Path) -> None:
    path = tmp_path / "m.json"
    run(
        """
        import sys, pooling
        from pooling.observe import PerformanceMonitor
        pool = pooling.Pool(object, name="p")
        monitor = PerformanceMonitor([pool], export=sys.argv[1])
        for _ in range(3): pool.acquire().release()
        """,
        str(path),
    )
    assert json.loads(path.read_text())["pools"]["p"]["acquired"] == 3


def test_exit_does_not_wait_for_an_export_that_hangs() -> None:
    began = time.monotonic()
    run("""
        import time, pooling
        from pooling.observe import PerformanceMonitor
        pool = pooling.Pool(object, name="p")
        monitor = PerformanceMonitor([pool], interval=0.1)
        monitor.export_to(lambda summary: time.sleep(3600), every=0.1)
        pool.acquire().release()
        end = time.monotonic() + 20
        while monitor.current_sampler().samples < 5 and time.monotonic() < end: time.sleep(0.05)
        assert monitor.current_sampler().samples >= 5
    """)
    assert time.monotonic() - began < 30


def test_global_monitor_of_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    from pooling.observe import monitor as module

    monkeypatch.setattr(module, "global_monitor", {})
    monitor = get_global_monitor()
    try:
        with pooling.Pool(object, name="of-this-test") as pool:
            monitor.sample()
            pool.acquire().release()
            assert monitor.get_performance_summary()["pools"]["of-this-test"]["acquired"] == 1
    finally:
        monitor.stop()


# -- in a browser ---------------------------------------------------------------------------------


@pytest.fixture
def chromium() -> str:
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    requires("Chromium", found, "apt-get install chromium")
    assert found is not None
    return found


@pytest.mark.parametrize("width", [390, 1200])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_in_a_browser(chromium: str, scheme: str, width: int, tmp_path: Path) -> None:
    """The colours follow the scheme, and nothing is wider than the screen, a phone's included."""
    pool = pooling.Pool(object, name="p" * 40, max_size=1, acquire_timeout=0.05)
    with pool, PerformanceMonitor([pool], interval=0.1) as monitor:
        lease = pool.acquire()
        thread = threading.Thread(target=lambda: pytest.raises(PoolTimeout, pool.acquire))
        thread.start()
        thread.join(20)
        lease.release()
        page = monitor.generate_report(format="html")
    probe = (
        "<script>document.title=JSON.stringify({wide:document.documentElement.scrollWidth,at:innerWidth,"
        "background:getComputedStyle(document.body).backgroundColor,charts:document.querySelectorAll('svg').length})"
        "</script>"
    )
    policy = page[page.index("<meta http-equiv") :].partition(">")[0] + ">"  # it forbids the probe
    frame = tmp_path / "frame.html"
    (tmp_path / "page.html").write_text(page.replace(policy, "").replace("</body>", probe + "</body>"), "utf-8")
    # The window of a headless browser is at least 500 pixels wide: a frame is as narrow as a phone.
    frame.write_text(
        f'<body style="margin:0"><iframe id="f" src="page.html" style="border:0;width:{width}px;height:900px"></iframe>'
        "<script>onload=()=>{document.title=f.contentDocument.title;document.body.append(f.contentDocument.title)}"
        "</script></body>",
        "utf-8",
    )
    done = subprocess.run(
        [chromium, "--headless=new", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files",
         f"--user-data-dir={tmp_path / 'profile'}", f"--blink-settings=preferredColorScheme={int(scheme == 'light')}",
         "--virtual-time-budget=5000", "--dump-dom", f"file://{frame}"],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    answer: dict[str, Any] = json.loads("{" + done.stdout.rpartition("</script>{")[2].partition("}")[0] + "}")
    assert answer["at"] == width and answer["wide"] <= width, answer
    assert answer["charts"] >= 5
    assert answer["background"] == ("rgb(245, 246, 248)" if scheme == "light" else "rgb(16, 21, 28)")

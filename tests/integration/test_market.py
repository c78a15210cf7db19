"""The sample application: its services, and all of it under gunicorn, in one piece and broken."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import requests

from examples.market.app import create_app, lifespan
from examples.market.cache import CacheConfig, PooledCache, make_cache
from examples.market.config import Config
from examples.market.fetcher import DataFetcher
from examples.market.model import SYMBOLS, Order, Quote, price_of
from examples.market.orders import OrderStore
from examples.market.progress import Progress
from examples.market.provider import Backend
from examples.market.stocks import ProviderDown, StockService, make_http
from tests.integration.tools import ROOT, environment, wait_until
from tests.servers import PostgresServer

# -- the services -------------------------------------------------------------------


@pytest.fixture
def backend() -> Iterator[Backend]:
    with Backend(1, 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def address(backend: Backend) -> str:
    return f"http://127.0.0.1:{backend.server_port}"


def cache_at(folder: Path, pooled: bool = True, fresh_for: float = 60.0) -> CacheConfig:
    return CacheConfig(str(folder / "cache.db"), use_optimized_pool=pooled, fresh_for=fresh_for)


@pytest.mark.parametrize("pooled", [True, False])
def test_cache_with_and_without_a_pool(tmp_path: Path, pooled: bool) -> None:
    cache = make_cache(cache_at(tmp_path, pooled))
    with contextlib.closing(cache.pool) if isinstance(cache, PooledCache) else contextlib.nullcontext():
        assert isinstance(cache, PooledCache) == pooled
        cache.create_table()
        assert cache.get("ALD") is None
        cache.put(Quote("ALD", 1, 100))
        cache.put(Quote("ALD", 2, 200))
        assert cache.get("ALD") == Quote("ALD", 2, 200)


def test_old_quote_is_not_returned(tmp_path: Path) -> None:
    cache = make_cache(cache_at(tmp_path, False, fresh_for=-1.0))
    cache.create_table()
    cache.put(Quote("ALD", 1, 100))
    assert cache.get("ALD") is None


def test_cache_config_is_that_of_the_pool(tmp_path: Path) -> None:
    config = CacheConfig(str(tmp_path / "cache.db"), max_connections=7, min_connections=3, pre_ping=False)
    cache = make_cache(config)
    assert isinstance(cache, PooledCache)
    settings = cache.pool.settings
    assert (settings.max_size, settings.min_size, settings.validate_on_acquire) == (7, 3, False)
    defaults = CacheConfig("x")
    assert (defaults.max_connections, defaults.min_connections, defaults.pre_ping) == (20, 5, True)


def test_quotes_come_from_the_cache_and_from_the_backend_that_answers(tmp_path: Path, backend: Backend) -> None:
    cache = make_cache(cache_at(tmp_path, False))
    cache.create_table()
    with make_http(["http://127.0.0.1:9", address(backend)]) as http:
        stocks = StockService(http, cache)
        quotes = [stocks.fetch("ALD") for _ in range(6)]
        assert len({quote.serial for quote in quotes}) == 6
        assert all(quote.price == price_of("ALD", quote.serial) for quote in quotes)
        kept = stocks.quote("ALD")
        assert stocks.quote("ALD") == kept


def test_provider_is_down(tmp_path: Path) -> None:
    cache = make_cache(cache_at(tmp_path, False))
    cache.create_table()
    with make_http(["http://127.0.0.1:9"]) as http:
        stocks = StockService(http, cache)
        with pytest.raises(ProviderDown, match="no backend answers; the last error: "):
            stocks.quote("ALD")
        assert set(DataFetcher(stocks, 2).fetch(["ALD", "ALK"])) == {"ALD", "ALK"}


def test_fetcher_shows_progress(tmp_path: Path, backend: Backend, capsys: pytest.CaptureFixture[str]) -> None:
    cache = make_cache(cache_at(tmp_path))
    assert isinstance(cache, PooledCache)
    with cache.pool, make_http([address(backend)]) as http:
        cache.create_table()
        with Progress("fetcher", len(SYMBOLS)) as progress:
            assert DataFetcher(StockService(http, cache)).fetch(SYMBOLS, progress) == {}
        assert all(cache.get(symbol) for symbol in SYMBOLS)
    assert f"of {len(SYMBOLS)} quotes, 0 failed" in capsys.readouterr().out


def test_order_that_is_sent_twice_is_stored_once(tmp_path: Path, postgres: PostgresServer) -> None:
    with postgres.connect(autocommit=True) as conn:
        conn.execute("CREATE SCHEMA market_twice")
    quotes = {"ALD": Quote("ALD", 1, 100)}
    try:
        for store in (OrderStore(str(tmp_path / "orders.db")), OrderStore(postgres.dsn, "market_twice")):
            with store.pool:
                store.create_table()
                store.place([Order("1", "ALD", 5), Order("2", "ALD", 6)], quotes)
                store.place([Order("2", "ALD", 7), Order("3", "ALD", 8)], quotes)
                rows = sorted(store.rows())
                assert rows == [("1", "ALD", 5, 1, 100), ("2", "ALD", 6, 1, 100), ("3", "ALD", 8, 1, 100)]
                with pytest.raises(KeyError):
                    store.place([Order("4", "ALD", 5), Order("5", "BOD", 6)], quotes)
                assert len(store.rows()) == 3
    finally:
        with postgres.connect(autocommit=True) as conn:
            conn.execute("DROP SCHEMA market_twice CASCADE")


def config_for(backend: str, folder: Path) -> Config:
    return Config.from_env({
        "MARKET_BACKENDS": backend, "MARKET_CACHE": str(folder / "cache.db"),
        "MARKET_ORDERS": str(folder / "orders.db"), "MARKET_ALERTS": str(folder / "alerts"),
    })  # fmt: skip


def test_routes(tmp_path: Path, backend: Backend) -> None:
    app = create_app(config_for(address(backend), tmp_path))
    with lifespan(app):
        client = app.test_client()
        quote = client.get("/quotes/ALD").get_json()
        assert quote["price"] == price_of("ALD", quote["serial"])
        assert client.get("/quotes/NONE").status_code == 404
        assert client.post("/orders", json=[{"id": "1", "symbol": "ALD", "quantity": 5}]).get_json() == {"stored": 1}
        for wrong in ({}, [], [{"id": "1"}], [{"id": "1", "symbol": "ALD", "quantity": 0}]):
            assert client.post("/orders", json=wrong).status_code == 400
        assert client.post("/refresh").get_json() == {"failed": {}}
        assert client.get("/health").get_json()["status"] == "up"
        assert "orders" in client.get("/report").get_data(as_text=True)
        assert client.post("/faults/leak").status_code == 404


def test_errors_of_pools_and_of_the_provider_are_answers(tmp_path: Path) -> None:
    app = create_app(config_for("http://127.0.0.1:9", tmp_path))
    with lifespan(app):
        answer = app.test_client().get("/quotes/ALD")
        assert (answer.status_code, answer.get_json()["error"]) == (503, "ProviderDown")
        assert answer.headers["Retry-After"] == "1"


def test_backends_are_required() -> None:
    with pytest.raises(ValueError, match="MARKET_BACKENDS must name at least one backend"):
        Config.from_env({})


# -- all of it ------------------------------------------------------------------------


class Run:
    """One ``python -m examples.market``, and what it prints."""

    def __init__(self, *options: str, **variables: str) -> None:
        self.lines: list[str] = []
        self._process = subprocess.Popen(
            [sys.executable, "-m", "examples.market", "--port", "0", *options],
            cwd=ROOT, env=environment(**variables), text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        self._family: set[int] = set()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                self.lines.append(line.rstrip("\n"))

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    def wait_for(self, pattern: str) -> re.Match[str]:
        """Wait until a line matches; return the match."""

        def found() -> re.Match[str] | None:
            return re.search(pattern, self.text, re.M)

        wait_until(lambda: found() or self._process.poll() is not None, 60)
        match = found()
        assert match is not None, self.text
        self._family |= {child.pid for child in psutil.Process(self._process.pid).children(recursive=True)}
        return match

    def end(self, number: signal.Signals | None = None) -> int:
        """Send a signal, if one is given; wait for the end, and for what was started to be gone."""
        if number is not None:
            self._process.send_signal(number)
        try:
            code = self._process.wait(120)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._reader.join()
        folder = re.search(r"SQLite: (.*)/orders.db", self.text)
        assert folder is None or not Path(folder[1]).exists()
        assert [pid for pid in self._family if lives(pid)] == []
        return code


def lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.fixture(scope="module")
def start() -> Iterator[Callable[..., Run]]:
    """Start runs; those that a failed test has left are ended."""
    runs: list[Run] = []

    def begin(*options: str, **variables: str) -> Run:
        runs.append(Run(*options, **variables))
        return runs[-1]

    yield begin
    for run in runs:
        with contextlib.suppress(ProcessLookupError):
            run.end(signal.SIGTERM)


RIGHT = r"check     [\d,]+ orders confirmed, every stored row is right, no lease is out"


def tamper(path: str) -> None:
    with contextlib.closing(sqlite3.connect(path, timeout=30)) as conn:
        wait_until(lambda: conn.execute("SELECT count(*) FROM orders").fetchone()[0])
        conn.execute("UPDATE orders SET price = price + 1 WHERE id = (SELECT min(id) FROM orders)")
        conn.commit()


def test_check(start: Callable[..., Run], postgres: PostgresServer) -> None:
    """With four workers on SQLite and PostgreSQL; with a tampered row and with a leak, it fails and says why."""
    good = start("--check", "--seconds", "4")
    on_postgres = start("--check", "--seconds", "4", "--workers", "2", "--dsn", postgres.dsn)
    tampered = start("--check", "--seconds", "4", "--workers", "2", "--clients", "4", "--legacy-cache")
    leaking = start("--check", "--seconds", "4", "--workers", "2", "--clients", "4", MARKET_FAULTS="1")
    url = leaking.wait_for(r"service   (\S+),")[1]
    assert requests.post(f"{url}/faults/leak", timeout=60).json()["leaked"] == 1
    path = tampered.wait_for(r"orders    SQLite: (.*)")[1]
    tampered.wait_for("^load ")
    tamper(path)

    assert good.end() == 0, good.text
    assert re.search(RIGHT, good.text)
    assert "gunicorn with 4 workers" in good.text and good.lines[-1] == "everything is stopped and removed"
    assert on_postgres.end() == 0, on_postgres.text
    assert re.search(RIGHT, on_postgres.text) and "in the temporary schema market_" in on_postgres.text
    with postgres.connect() as conn:
        assert conn.execute("SELECT nspname FROM pg_namespace WHERE nspname ~ '^market_'").fetchall() == []
    assert tampered.end() == 1, tampered.text
    assert re.search(r"^WRONG     order \S+ has the price \d+, but quote \d+ says \d+$", tampered.text, re.M)
    assert "still in use" not in tampered.text
    assert leaking.end() == 1, leaking.text
    assert re.search(r"^WRONG     pool 'orders': 1 still in use, acquired in .*app.py:\d+ leak\(\)", leaking.text, re.M)
    assert "has the price" not in leaking.text


def story(text: str, source: str) -> str:
    """What one source said, without the breaks of lines."""
    whole = re.sub(r"\n {21}", " ", text)
    return "\n".join(re.findall(rf"^ *[\d.]+ s  {source} +(.*)$", whole, re.M))


def test_breaks(start: Callable[..., Run], postgres: PostgresServer) -> None:
    """Each is seen by those who should see it, and no confirmed order is lost."""
    options = ("--seconds", "5", "--workers", "2", "--clients", "4")
    runs = {name: start("--break", name, *options) for name in ("backend", "leak", "kill")}
    # Eight clients: so many wait for SQLite in one worker that some time out.
    runs["database"] = start("--break", "database", *options, "--clients", "8")
    runs["postgres"] = start("--break", "database", *options, "--dsn", postgres.dsn)
    texts = {}
    for name, run in runs.items():
        assert run.end() == 0, f"{name}\n{run.text}"
        assert re.search(RIGHT, run.text), run.text
        texts[name] = run.text

    assert "OperationalError: database is locked" in story(texts["database"], "error")
    assert "pool 'orders' is exhausted" in story(texts["database"], "dashboard")
    assert "held by: orders.py" in story(texts["database"], "alert")

    assert re.search(r"no requests to http://127.0.0.1:|is left out for", story(texts["backend"], "log"))
    assert "answers again" in story(texts["backend"], "log")
    assert "the backend is started again" in story(texts["backend"], "MEND")

    assert "held for longer than leak_timeout: app.py" in story(texts["leak"], "alert")
    assert re.search("over after .* leak of pool 'orders'", story(texts["leak"], "alert"))
    assert "event 'leak' of pool 'orders': " in story(texts["leak"], "dashboard")

    killed = re.search(r"worker (\d+)", story(texts["kill"], "BREAK"))
    assert killed is not None
    assert f"Worker (pid:{killed[1]}) was sent SIGKILL" in story(texts["kill"], "log")
    assert killed[1] not in story(texts["kill"], "dashboard").splitlines()[-1]

    assert "the server is down" in story(texts["postgres"], "alert")
    assert re.search("over after .* outage of pool 'orders'", story(texts["postgres"], "alert"))
    assert "down (orders: " in story(texts["postgres"], "health")
    assert "pool 'orders' is down" in story(texts["postgres"], "dashboard")


def test_signal_ends_it_cleanly(start: Callable[..., Run]) -> None:
    for number, run in [(number, start("--workers", "2")) for number in (signal.SIGINT, signal.SIGTERM)]:
        page = run.wait_for(r"page      (\S+) is the dashboard")[1]
        run.wait_for(r"^load +[1-9][\d,]* requests")
        assert "<title>" in requests.get(page, timeout=30).text
        assert run.end(number) == 128 + number, run.text
        assert re.search(RIGHT, run.text) and run.lines[-1] == "everything is stopped and removed"


def test_signal_while_it_starts(start: Callable[..., Run]) -> None:
    run = start("--workers", "2")
    run.wait_for("^provider ")
    time.sleep(0.2)
    assert run.end(signal.SIGINT) == 128 + signal.SIGINT, run.text
    assert "Traceback" not in run.text


def test_bench(start: Callable[..., Run], postgres: PostgresServer) -> None:
    run = start("--bench", "--seconds", "1", "--dsn", postgres.dsn)
    assert run.end() == 0, run.text
    assert re.search(r"^orders    [\d,]+ a second by 16 threads", run.text, re.M)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--dsn", "postgresql://app:hunter2@127.0.0.1:1/x", "--check"], "error: PostgreSQL: "),
        (["--seconds", "0"], "must be from 1 to 86400 seconds, not 0"),
        (["--break", "nothing"], "invalid choice: 'nothing'"),
    ],
)
def test_mistakes(start: Callable[..., Run], options: list[str], words: str) -> None:
    run = start(*options)
    assert run.end() in (1, 2)
    assert words in run.text and "hunter2" not in run.text and "Traceback" not in run.text

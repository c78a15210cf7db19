"""``python -m pooling demo`` as a user runs it: real processes, databases and signals."""

from __future__ import annotations

import os
import re
import shutil
import signal
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import requests

from pooling.adapters.sqlite import SQLitePool
from pooling.tools.demo import certificates
from pooling.tools.demo.place import SQLiteDatabase
from pooling.tools.demo.quotes import Quote, compare, price_of, symbol_of
from pooling.tools.demo.service import QuoteServer
from tests.servers import PostgresServer, requires

ROOT = Path(__file__).parents[2]
SHORT = ("--seconds", "0.3", "--threads", "8")
SEED = 1


class Run:
    """A running demo: its lines as they arrive, and its leftovers."""

    def __init__(self, folder: Path, *options: str, program: tuple[str, ...] = (), **environment: str) -> None:
        folder.mkdir(exist_ok=True)
        self.folder = folder
        env = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(folder), **environment}
        self.process = subprocess.Popen(
            [sys.executable, *(program or ("-m", "pooling", "demo")), *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            cwd=folder.parent,
            env=env,
            start_new_session=True,
        )

    def read_until(self, beginning: str) -> None:
        """Read lines up to the first with this beginning."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith(beginning):
                return
        pytest.fail(f"ended without a line that begins with {beginning!r}")

    def end(self) -> tuple[int, str, str]:
        """Wait for the end; return the exit code, the rest of the output, and the errors."""
        output, errors = self.process.communicate(timeout=120)
        return self.process.returncode, output, errors

    def leftovers(self) -> list[object]:
        """Return the processes and files that still exist after a short grace period."""
        deadline = time.monotonic() + 30
        while processes := [process for process in psutil.process_iter() if self._is_ours(process)]:
            if time.monotonic() > deadline:
                break
            time.sleep(0.05)
        return [*processes, *self.folder.iterdir()]

    def _is_ours(self, process: psutil.Process) -> bool:
        try:
            return process.pid != os.getpid() and process.environ().get("TMPDIR") == str(self.folder)
        except (psutil.Error, OSError):
            return False


def schemas(server: PostgresServer) -> list[tuple[object, ...]]:
    with server.connect() as conn:
        return conn.execute("SELECT nspname FROM pg_namespace WHERE nspname LIKE 'pooling%'").fetchall()


def figures(output: str, label: str) -> tuple[float, float]:
    """Return both figures of a row of the table."""
    found = re.search(rf"^{re.escape(label)} +([\d,.]+) +([\d,.]+)", output, re.MULTILINE)
    assert found, f"no row {label!r} in:\n{output}"
    before, after = (float(text.replace(",", "")) for text in found.groups())
    return before, after


# -- a whole run ---------------------------------------------------------------


def check_success(run: Run) -> str:
    code, output, errors = run.end()
    assert (code, errors) == (0, ""), output
    assert "every row is right" in output
    assert output.count("rows are exactly as served") == 2
    for label in ("requests/s", "latency, mean, ms", "latency, p99, ms", "CPU seconds"):
        before, after = figures(output, label)
        assert before > 0 and after > 0
    figures(output, "peak memory above the start, MB")
    assert "pool 'market data'" in output and "pool 'database'" in output  # the pools' own figures
    assert run.leftovers() == []
    return output


def test_a_quick_run_stores_every_row_and_compares(tmp_path: Path) -> None:
    output = check_success(Run(tmp_path / "tmp", "--quick"))
    done = re.findall(r"^(?:un)?pooled .* ([\d,]+) quotes", output, re.MULTILINE)
    http = figures(output, "HTTP connections opened, counted by the service")
    database = figures(output, "database connections opened")
    assert f"{http[0]:,.0f}" == f"{database[0]:,.0f}" in done  # one of each for every job
    assert http[1] <= 32 and database[1] <= 4


def test_a_quick_run_with_postgresql(tmp_path: Path, postgres: PostgresServer) -> None:
    output = check_success(Run(tmp_path / "tmp", *SHORT, "--dsn", postgres.dsn))
    assert "PostgreSQL" in output
    assert schemas(postgres) == []


def test_uses_http_if_no_certificate_can_be_created(tmp_path: Path) -> None:
    stub = tmp_path / "stub"
    stub.mkdir()
    (stub / "cryptography.py").write_text("raise ImportError('hidden by the test')")
    path = f"{stub}{os.pathsep}{ROOT}"
    output = check_success(Run(tmp_path / "tmp", *SHORT, PYTHONPATH=path, PATH=str(stub)))
    assert "http://127.0.0.1" in output and "plain HTTP: neither" in output


# -- the check -------------------------------------------------------------------


def served(count: int) -> list[Quote]:
    pieces = range(count)
    return [Quote(p + 1, p, symbol_of(SEED, p), price_of(SEED, symbol_of(SEED, p), p + 1)) for p in pieces]


@pytest.fixture
def tampered(tmp_path: Path) -> Iterator[Callable[[str], str]]:
    """A function that stores ten quotes, changes them with SQL, and returns the verdict."""

    def store_and_check(spoil: str) -> str:
        place = SQLiteDatabase(tmp_path).place("pooled")
        db = SQLitePool(place.target)
        with db:
            with db.connection() as conn:
                conn.executemany(place.insert, served(10))
            if spoil:
                db.execute_query(spoil)
        verdict = compare(place.rows(), served(10), SEED)
        assert verdict.perfect == (not spoil)
        return str(verdict)

    SQLiteDatabase(tmp_path).make()
    yield store_and_check


@pytest.mark.parametrize(
    ("spoil", "verdict"),
    [
        ("", "all 10 rows are exactly as served"),
        ("UPDATE quotes SET price = price + 1 WHERE serial = 3", "9 rows as served; 1 mixed"),
        ("UPDATE quotes SET symbol = 'XXXX' WHERE serial = 3", "9 rows as served; 1 mixed"),
        ("UPDATE quotes SET piece = 11 - piece WHERE piece IN (5, 6)", "8 rows as served; 2 mixed"),
        ("DELETE FROM quotes WHERE serial < 4", "7 rows as served; 3 missing"),
        ("INSERT INTO quotes SELECT * FROM quotes WHERE serial = 7", "10 rows as served; 1 extra"),
        ("INSERT INTO quotes VALUES (11, 10, 'ABCD', 1)", "10 rows as served; 1 extra"),
        ("UPDATE quotes SET serial = 99 WHERE serial = 3", "9 rows as served; 1 missing"),
        ("DELETE FROM quotes", "0 rows as served; 10 missing"),
    ],
)
def test_a_tampered_table_is_detected(tampered: Callable[[str], str], spoil: str, verdict: str) -> None:
    assert tampered(spoil).startswith(verdict)


def test_wrong_records_and_empty_tables_fail() -> None:
    forged = [served(1)[0]._replace(price=1)]
    assert not compare(forged, forged, SEED).perfect  # the service's records are wrong
    assert not compare([], [], SEED).perfect


# -- the end ---------------------------------------------------------------------


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("moment", ["pooling ", "database ", "service ", "unpooled ", "pooled "])
def test_ctrl_c_ends_cleanly_at_any_moment(tmp_path: Path, moment: str, times: int) -> None:
    run = Run(tmp_path / "tmp", "--seconds", "2", "--threads", "8")
    run.read_until(moment)
    for _ in range(times):
        run.process.send_signal(signal.SIGINT)
    code, output, errors = run.end()
    assert (code, errors) == (130, "")
    assert output.endswith("interrupted, cleaning up\n")
    assert run.leftovers() == []


@pytest.mark.parametrize("moment", ["pooling ", "database ", "unpooled ", "pooled "])
def test_ctrl_c_drops_the_schema_in_postgresql(tmp_path: Path, postgres: PostgresServer, moment: str) -> None:
    run = Run(tmp_path / "tmp", "--seconds", "2", "--threads", "8", "--dsn", postgres.dsn)
    run.read_until(moment)
    run.process.send_signal(signal.SIGINT)
    code, _, errors = run.end()
    assert (code, errors) == (130, "")
    assert run.leftovers() == []
    assert schemas(postgres) == []


STRIKE = """
import os, runpy, signal, sys

class Strike:  # Ctrl-C comes just when the module is to be imported
    moment = sys.argv.pop(1)
    def find_spec(self, name, path=None, target=None):
        if name == self.moment:
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Strike())
runpy.run_module("pooling", run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize(
    "module", ["argparse", "pooling.tools.demo", "pooling.tools.demo.run", "pooling.tools.demo.table"]
)
def test_ctrl_c_during_the_imports(tmp_path: Path, module: str) -> None:
    run = Run(tmp_path / "tmp", module, "demo", "--quick", program=("-c", STRIKE))
    assert run.end() == (130, "", "")
    assert run.leftovers() == []


def test_a_killed_demo_leaves_no_process(tmp_path: Path) -> None:
    run = Run(tmp_path / "tmp", "--seconds", "60", "--threads", "4")
    run.read_until("unpooled ")
    run.process.kill()
    run.end()
    assert [left for left in run.leftovers() if isinstance(left, psutil.Process)] == []


def test_sigterm_cleans_up(tmp_path: Path) -> None:
    run = Run(tmp_path / "tmp", "--seconds", "60", "--threads", "4")
    run.read_until("unpooled ")
    run.process.terminate()
    assert run.end()[0] == 128 + signal.SIGTERM
    assert run.leftovers() == []


def test_closed_output_is_not_an_error(tmp_path: Path) -> None:
    run = Run(tmp_path / "tmp", *SHORT)
    run.read_until("database ")
    assert run.process.stdout is not None and run.process.stderr is not None
    run.process.stdout.close()
    assert run.process.wait(timeout=120) == 1
    assert run.process.stderr.read() == ""
    assert run.leftovers() == []
    run.process.stderr.close()


def test_a_server_that_is_down_is_reported_without_the_password(tmp_path: Path) -> None:
    run = Run(tmp_path / "tmp", *SHORT, "--dsn", "postgresql://u:s3cret@127.0.0.1:1/x")
    code, output, errors = run.end()
    assert code == 1
    assert "error: the database: " in errors and "127.0.0.1" in errors
    assert "s3cret" not in output + errors and "Traceback" not in errors
    assert run.leftovers() == []


# -- the command line ------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (("--threads", "0"), "argument --threads: must be a whole number from 1 to 512, not '0'"),
        (("--threads", "many"), "argument --threads: must be a whole number"),
        (("--seconds", "nan"), "argument --seconds: must be a number from 0.1 to 3600"),
        (("--seconds", "1", "--quick"), "not allowed with argument"),
        (("--delay-ms", "-1"), "argument --delay-ms: must be a number from 0"),
        (("--seed", "1.5"), "argument --seed: must be a whole number"),
        (("--dsn", "postgresql//u:s3cret@h/x"), "argument --dsn: "),
        (("--colour",), "unrecognized arguments: --colour"),
    ],
)
def test_a_bad_option_is_refused(tmp_path: Path, options: tuple[str, ...], complaint: str) -> None:
    code, output, errors = Run(tmp_path / "tmp", *options).end()
    assert (code, output) == (2, "")
    assert complaint in errors
    assert "s3cret" not in errors


def test_no_command_lists_the_commands(tmp_path: Path) -> None:
    code, output, errors = Run(tmp_path / "tmp", program=("-m", "pooling")).end()
    assert (code, errors) == (0, "")
    assert re.search(r"^ +demo +fetch and store", output, re.MULTILINE)


def test_the_version(tmp_path: Path) -> None:
    code, output, _ = Run(tmp_path / "tmp", program=("-m", "pooling", "--version")).end()
    assert code == 0
    assert re.fullmatch(r"pooling \d+\.\d+\.\d+\n", output)


# -- certificates ----------------------------------------------------------------


@contextmanager
def serving(made: certificates.Certificates) -> Iterator[str]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(made.certificate, made.key)
    server = QuoteServer(0.0, SEED, context)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.url
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.mark.parametrize("maker", ["cryptography", "openssl"])
def test_both_tools_create_valid_certificates(tmp_path: Path, maker: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if maker == "openssl":
        requires("openssl", shutil.which("openssl"), "apt-get install openssl")
        monkeypatch.setitem(sys.modules, "cryptography", None)
    made = certificates.make_certificates(tmp_path)
    assert made is not None and made.maker == maker
    with serving(made) as url:
        with requests.get(f"{url}/quotes/ABC", verify=str(made.authority), timeout=30) as response:
            assert response.status_code == 404
        with pytest.raises(requests.exceptions.SSLError):
            requests.get(url, verify=requests.utils.DEFAULT_CA_BUNDLE_PATH, timeout=30)

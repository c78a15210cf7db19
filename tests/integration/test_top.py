"""``python -m pooling top`` on a real terminal, with gunicorn's four workers and a real PostgreSQL."""

from __future__ import annotations

import codecs
import contextlib
import http.client
import json
import os
import re
import select
import signal
import socket
import struct
import subprocess
import sys
import sysconfig
import termios
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from fcntl import ioctl
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil
import pytest

from pooling.tools.top.run import PATIENCE
from tests.integration.test_metrics_processes import find_uwsgi
from tests.integration.tools import ROOT, environment, wait_until
from tests.servers import PostgresServer, requires

WORKERS, MAX_SIZE, THREADS = 4, 2, 6
POOL = f"orders-{os.getpid()}"  # a name of our own: `top` shows all applications of this user
TOP = [sys.executable, "-m", "pooling", "top"]
ON_TERMINAL = (  # the program controls the terminal, so that Ctrl-C and Ctrl-Z come as signals
    # A shell ignores these signals in a background job, and `nohup` does.
    "import fcntl, os, signal, sys, termios\nfcntl.ioctl(0, termios.TIOCSCTTY, 0)\n"
    "for one in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT): signal.signal(one, signal.SIG_DFL)\n"
    "os.execvp(sys.argv[1], sys.argv[1:])"
)
HOME, LEAVE = "\x1b[H", "\x1b[?1049l"


class Site:
    """The application under a server with four workers."""

    def __init__(self, home: Path, dsn: str, server: str = "gunicorn", **more: str) -> None:
        self.log = home / "log"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        app, address = "tests.integration.top_site:application", f"127.0.0.1:{self.port}"
        if server == "uWSGI":
            paths = map(sysconfig.get_path, ("purelib", "platlib"))
            more |= {"PYTHONPATH": os.pathsep.join([str(ROOT), *paths]), "VIRTUAL_ENV": sys.prefix}
            command = [
                find_uwsgi() or "uwsgi", "--http-socket", address, "--module", app, "--processes", str(WORKERS),
                "--threads", str(THREADS), "--enable-threads", "--master", "--need-app", "--die-on-term",
                "--disable-logging",
            ]  # fmt: skip
        else:
            command = [
                sys.executable, "-m", "gunicorn", "-k", "gthread", "--threads", str(THREADS), "-w", str(WORKERS),
                "-b", address, "--no-control-socket", app,
            ]  # fmt: skip
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command, env=environment(**{"TOP_DSN": dsn, "TOP_POOL": POOL, **more}), cwd=home,
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip

    def get(self, path: str) -> int:
        """Return the process that answered."""
        conn = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            conn.request("GET", path, headers={"Connection": "close"})
            return int(conn.getresponse().read())
        finally:
            conn.close()

    def use_all(self) -> int:
        """Use the pool in every worker; return the number of leases."""
        seen: set[int] = set()
        leases = 0

        def complete() -> bool:
            nonlocal leases
            with ThreadPoolExecutor(2 * WORKERS) as clients:
                answers = list(clients.map(self.get, ["/use?n=3"] * 2 * WORKERS))
            seen.update(answers)
            leases += 3 * len(answers)
            return len(seen & self.workers()) == WORKERS

        def listens() -> bool:
            assert self.process.poll() is None, self.log.read_text(errors="replace")
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", self.port), timeout=5).close()
                return True
            return False

        wait_until(listens, patience=60)
        wait_until(complete, patience=60)
        return leases

    def workers(self) -> set[int]:
        return {child.pid for child in psutil.Process(self.process.pid).children()}

    @contextlib.contextmanager
    def exhausted(self) -> Iterator[None]:
        """Have more requests hold a connection than there are in all workers together."""
        requests = WORKERS * (MAX_SIZE + 2)
        wanted = self.log.with_name("wanted")
        wanted.touch()
        with ThreadPoolExecutor(requests) as clients:
            jobs = [clients.submit(self.get, f"/hold?while={wanted}") for _ in range(requests)]
            try:
                yield
            finally:
                wanted.unlink()
            for job in jobs:
                job.result()

    def __enter__(self) -> Site:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(30)


class Terminal:
    """A command on a pseudo-terminal, and what the terminal shows."""

    def __init__(self, *command: str, width: int = 120, height: int = 40, **env: str) -> None:
        self._main, self._side = os.openpty()
        self.resize(width, height)
        self.before = self.settings()
        self.output = ""
        self._over = threading.Event()
        self.process = subprocess.Popen(
            [sys.executable, "-c", ON_TERMINAL, *command], stdin=self._side, stdout=self._side, stderr=self._side,
            start_new_session=True, env={**environment(TERM="xterm-256color", COLUMNS="", LINES=""), **env},
        )  # fmt: skip
        self._reader = threading.Thread(target=self._read, daemon=True)  # all the time: else it could not write
        self._reader.start()

    def settings(self) -> list[Any]:
        return termios.tcgetattr(self._side)

    def resize(self, width: int, height: int) -> None:
        ioctl(self._main, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))

    def press(self, keys: str) -> None:
        os.write(self._main, keys.encode())

    def _read(self) -> None:
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        while not self._over.is_set():
            if select.select([self._main], [], [], 0.05)[0]:
                self.output += decoder.decode(os.read(self._main, 65536))

    def screen(self) -> str:
        """Return what the screen shows, without colours; it is redrawn from its first line on."""
        return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]|\r", "", self.output.rpartition(HOME)[2])

    def wait_for(self, *texts: str, patience: float = 30.0) -> str:
        """Wait until the screen shows all texts; return it."""
        deadline = time.monotonic() + patience
        while True:
            screen = self.screen()
            if all(text in screen for text in texts):
                return screen
            assert time.monotonic() < deadline, f"not shown: {texts}\n{screen}\n{self.output[-2000:]}"
            assert self.process.poll() is None, self.output
            time.sleep(0.02)

    def end(self) -> int:
        """Wait for the end, and for the last output; return the exit code."""
        code = self.process.wait(30)
        self._stop_reading()
        while select.select([self._main], [], [], 0)[0]:
            self.output += os.read(self._main, 65536).decode(errors="replace")
        return code

    def hang_up(self) -> None:
        """Close the terminal."""
        self._stop_reading()
        os.close(self._side)
        os.close(self._main)
        self._main = self._side = -1

    def _stop_reading(self) -> None:
        self._over.set()
        self._reader.join(30)

    def assert_restored(self) -> None:
        assert self.settings() == self.before
        assert self.output.count("\x1b[?1049h") == self.output.count(LEAVE) > 0
        assert self.output.rindex(LEAVE) > self.output.rindex(HOME)
        assert self.output.rindex("\x1b[?25h") > self.output.rindex("\x1b[?25l")

    def __enter__(self) -> Terminal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(30)
        self._stop_reading()
        if self._main >= 0:
            os.close(self._main)
            os.close(self._side)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Variables with which application and `top` meet in a directory of this test's own."""
    runtime = tmp_path_factory.mktemp("runtime")
    return {"XDG_RUNTIME_DIR": str(runtime), "POOLING_METRICS_DIR": ""}


@pytest.fixture(scope="module")
def site(
    tmp_path_factory: pytest.TempPathFactory, postgres: PostgresServer, place: dict[str, str]
) -> Iterator[Site]:
    """An application that was started without a thought of `top`."""
    with Site(tmp_path_factory.mktemp("site"), postgres.dsn, **place) as site:
        site.use_all()
        yield site


def top_json(*arguments: str, **env: str) -> dict[str, Any]:
    run = subprocess.run(
        [*TOP, "--json", "--once", *arguments], env=environment(**env), capture_output=True, text=True, timeout=60
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    found: dict[str, Any] = json.loads(run.stdout)
    return found


def pids_on(screen: str) -> set[int]:
    return {int(pid) for pid in re.findall(r"^ *(\d+) \S*(?:python|uwsgi)", screen, re.M)}


def test_pools_and_workers_of_a_running_application(site: Site, place: dict[str, str]) -> None:
    """They are found without a change in the application; keys switch, sort, pause, help and quit."""
    with Terminal(*TOP, "--interval", "0.5", "--pool", POOL, **place) as terminal:
        screen = terminal.wait_for(POOL, "● up", "4 processes")
        wait_until(lambda: pids_on(terminal.screen()) == site.workers())
        assert terminal.settings() != terminal.before
        assert re.search(rf"{POOL} +[█▒·]+ +0 +\d+ +{WORKERS * MAX_SIZE} ", screen)
        terminal.press("3")
        terminal.wait_for("Holders", "nothing is in use")
        terminal.press("2sr")
        terminal.wait_for("by command ▼")
        terminal.press("1s")
        terminal.wait_for("1 Pools")
        terminal.press("?")
        terminal.wait_for("sort by the next column")
        terminal.press("x ")
        terminal.wait_for("PAUSED")
        terminal.press("q")
        assert terminal.end() == 0
        terminal.assert_restored()


def test_workers_of_uwsgi(tmp_path: Path, postgres: PostgresServer, place: dict[str, str]) -> None:
    """uWSGI forks in C; a killed worker is replaced, as under gunicorn."""
    requires("uWSGI", find_uwsgi(), "pip install pyuwsgi")
    with Site(tmp_path, postgres.dsn, "uWSGI", **place, TOP_POOL=f"{POOL}-uwsgi") as site:
        site.use_all()
        with Terminal(*TOP, "--interval", "0.5", "--pool", f"{POOL}-uwsgi", **place) as terminal:
            terminal.wait_for("4 processes", "● up")
            os.kill(min(site.workers()), signal.SIGKILL)
            wait_until(lambda: len(site.workers()) == WORKERS)
            site.use_all()
            wait_until(lambda: pids_on(terminal.screen()) == site.workers())
            terminal.press("q")
            assert terminal.end() == 0


def test_an_exhausted_pool_is_shown(site: Site, place: dict[str, str]) -> None:
    with Terminal(*TOP, "--interval", "0.5", "--pool", POOL, **place) as terminal:
        terminal.wait_for(POOL, "● up", "4 processes")
        with site.exhausted():
            screen = terminal.wait_for("▲ exhausted")
            assert "1 exhausted" in screen.splitlines()[0]
            terminal.press("3")
            screen = terminal.wait_for("top_site.py:", "hold()", "PoolExecutor")
            held = re.findall(rf"^ *([\d.]+m?s) {POOL} +\S*top_site.py:\d+ hold\(\)", screen, re.M)
            assert 1 <= len(held) <= WORKERS * MAX_SIZE
        terminal.wait_for("● up")
        terminal.press("4")
        terminal.wait_for("Events", "exhausted")
        terminal.press("q")
        assert terminal.end() == 0


def test_a_worker_is_killed(site: Site, place: dict[str, str]) -> None:
    """The screen goes on, and shows the worker that replaces it."""
    with Terminal(*TOP, "--interval", "0.5", "--pool", POOL, **place) as terminal:
        terminal.wait_for("4 processes")
        killed = min(site.workers())
        os.kill(killed, signal.SIGKILL)
        wait_until(lambda: killed not in site.workers() and len(site.workers()) == WORKERS)
        terminal.wait_for("3 processes")
        site.use_all()
        terminal.wait_for("4 processes", POOL)
        wait_until(lambda: pids_on(terminal.screen()) == site.workers())
        terminal.press("q")
        assert terminal.end() == 0
        terminal.assert_restored()


def test_json_equals_what_the_load_did(tmp_path: Path, postgres: PostgresServer) -> None:
    """Also after a worker was killed, once it had written what it counted."""
    metrics = tmp_path / "metrics"
    place = {"POOLING_METRICS_DIR": str(metrics)}
    with Site(tmp_path, postgres.dsn, **place) as site:
        leases = site.use_all()

        def view() -> dict[str, Any]:
            found = top_json("--dir", str(metrics), **place)
            [pool] = found["pools"]
            return {**found, "leases": sum(filter(None, pool["minutes"]["leases"])), "pool": pool}

        wait_until(lambda: view()["leases"] == leases)
        os.kill(min(site.workers()), signal.SIGKILL)
        leases += site.use_all()
        wait_until(lambda: view()["leases"] == leases)
        found = view()
        assert {one["pid"] for one in found["processes"]} == site.workers()
        assert all(one["cpu"] is not None and one["memory"] > 1 << 20 for one in found["processes"])
        assert found["pool"]["name"] == POOL and found["pool"]["max_size"] == WORKERS * MAX_SIZE
        assert found["pool"]["kind"] == "PostgresPool"
        with site.exhausted():
            wait_until(lambda: view()["pool"]["state"] == "exhausted")
            pool = view()["pool"]
            assert pool["in_use"] == sum(one["in_use"] for one in pool["by_process"]) > 0
            assert pool["waiting"] > 0 and pool["oldest_wait"] > 0
            assert pool["holders"][0]["where"].endswith("hold()")
            pid = pool["holders"][0]["pid"]
            [mine] = top_json("--dir", str(metrics), "--pid", str(pid), **place)["pools"]
            assert 1 <= mine["in_use"] == len(mine["holders"]) <= mine["max_size"] == MAX_SIZE
            assert {one["pid"] for one in mine["holders"]} == {pid}


def test_processes_are_watched_while_the_picture_stands(site: Site, place: dict[str, str]) -> None:
    """Else they would stop to tell their figures, and forget their events."""
    watch = Path(place["XDG_RUNTIME_DIR"], "pooling", "watch")

    def touched() -> None:
        before = watch.stat().st_mtime
        wait_until(lambda: watch.stat().st_mtime != before, patience=5.0)

    with Terminal(*TOP, "--interval", "600", "--pool", POOL, **place) as terminal:
        terminal.wait_for("4 processes", "every 600s")
        time.sleep(PATIENCE)  # after which the interval counts
        touched()
        terminal.press(" ")
        terminal.wait_for("PAUSED")
        touched()
        terminal.press("q")
        assert terminal.end() == 0


def test_without_a_keyboard_a_signal_ends_it(site: Site, place: dict[str, str]) -> None:
    with Terminal("sh", "-c", f"exec {' '.join(TOP)} --pool {POOL} < /dev/null", **place) as terminal:
        terminal.wait_for("4 processes")
        assert terminal.settings() == terminal.before
        terminal.press("\x03")
        assert terminal.end() == 130


def test_json_has_a_line_for_each_interval(site: Site, place: dict[str, str]) -> None:
    process = subprocess.Popen(
        [*TOP, "--json", "--interval", "0.5", "--pool", POOL], env=environment(**place), stdout=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    assert process.stdout is not None
    times = [json.loads(process.stdout.readline())["time"] for _ in range(3)]
    assert times == sorted(set(times))
    process.send_signal(signal.SIGINT)
    process.stdout.close()
    assert process.wait(30) == 128 + signal.SIGINT


def test_without_a_terminal_one_picture_is_printed(site: Site, place: dict[str, str]) -> None:
    run = subprocess.run(
        [*TOP, "--pool", POOL], env=environment(**place, COLUMNS="60"), capture_output=True, text=True, timeout=60
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert POOL in run.stdout and "\x1b" not in run.stdout
    assert pids_on(run.stdout) == site.workers()
    assert max(map(len, run.stdout.splitlines())) <= 60


@pytest.mark.parametrize(("width", "height"), [(80, 24), (60, 24), (200, 60), (20, 5)])
def test_any_size_and_a_resize(site: Site, place: dict[str, str], width: int, height: int) -> None:
    with Terminal(*TOP, "--pool", POOL, width=100, height=30, **place) as terminal:
        terminal.wait_for("1 pool")

        def fits() -> bool:
            lines = terminal.screen().splitlines()
            return len(lines) == height and {len(line) for line in lines} == {width}

        terminal.resize(width, height)
        wait_until(fits)
        terminal.press("q")
        assert terminal.end() == 0


def test_no_colour(site: Site, place: dict[str, str]) -> None:
    colours = re.compile(r"\x1b\[[0-9;]*\b(3[0-8]|4[0-8]|9[0-7])[0-9;]*m")
    with Terminal(*TOP, "--pool", POOL, **place) as terminal:
        terminal.wait_for("● up")
        assert colours.search(terminal.output)
    with Terminal(*TOP, "--pool", POOL, NO_COLOR="1", **place) as terminal:
        terminal.wait_for("● up")
        assert not colours.search(terminal.output)


# -- the terminal is as it was, however the program ends -----------------------------------------------


def nothing_here(home: Path) -> dict[str, str]:
    """Variables with which `top` finds nothing: an empty directory."""
    (home / "nothing").mkdir(mode=0o700)
    return {"POOLING_METRICS_DIR": str(home / "nothing")}


def test_nothing_found_is_said_and_is_exit_code_one(tmp_path: Path) -> None:
    with Terminal(*TOP, **nothing_here(tmp_path)) as terminal:
        terminal.wait_for("No pool was found", "POOLING_METRICS_DIR")
        terminal.press("q")
        assert terminal.end() == 1
        terminal.assert_restored()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT])
def test_a_signal_restores_the_terminal(number: signal.Signals, tmp_path: Path) -> None:
    with Terminal(*TOP, **nothing_here(tmp_path)) as terminal:
        terminal.wait_for("No pool was found")
        terminal.process.send_signal(number)
        assert terminal.end() == 128 + number
        terminal.assert_restored()


def test_ctrl_c_restores_the_terminal(tmp_path: Path) -> None:
    with Terminal(*TOP, **nothing_here(tmp_path)) as terminal:
        terminal.wait_for("No pool was found")
        terminal.press("\x03")
        assert terminal.end() == 130
        terminal.assert_restored()
        assert "Traceback" not in terminal.output


def test_a_second_signal_ends_a_program_that_hangs(tmp_path: Path) -> None:
    code = (
        "import time; from pooling.observe.view import Viewer; import pooling.__main__ as m\n"
        "def view(self, pids): print('hangs', flush=True); time.sleep(60)\n"
        "first = Viewer.view\n"
        "def once(self, pids): Viewer.view = view; return first(self, pids)\n"
        "Viewer.view = once\n"
        "m.main(['top', '--interval', '0.25'])"
    )
    with Terminal(sys.executable, "-c", code, **nothing_here(tmp_path)) as terminal:
        wait_until(lambda: "hangs" in terminal.output)
        terminal.process.send_signal(signal.SIGTERM)
        time.sleep(0.5)  # signals of one kind are merged
        terminal.process.send_signal(signal.SIGTERM)
        assert terminal.end() == 128 + signal.SIGTERM
        terminal.assert_restored()


def test_an_exception_restores_the_terminal_before_its_traceback(tmp_path: Path) -> None:
    code = (
        "import pooling.tools.top.shown as s, pooling.__main__ as m\n"
        "def press(self, key): raise RuntimeError('broken')\n"
        "s.Shown.press = press\n"
        "m.main(['top'])"
    )
    with Terminal(sys.executable, "-c", code, PYTHON_COLORS="0", **nothing_here(tmp_path)) as terminal:
        terminal.wait_for("No pool was found")
        terminal.press("x")
        assert terminal.end() == 1
        terminal.assert_restored()
        assert terminal.output.index(LEAVE) < terminal.output.index("RuntimeError: broken")


def test_a_terminal_that_is_gone_ends_the_program(tmp_path: Path) -> None:
    """Its window was closed; with SIGHUP ignored, as under nohup, it notices by itself."""
    ignoring = (
        "import os, signal, sys\nsignal.signal(signal.SIGHUP, signal.SIG_IGN)\nos.execvp(sys.argv[1], sys.argv[1:])"
    )
    with Terminal(sys.executable, "-c", ignoring, *TOP, **nothing_here(tmp_path)) as terminal:
        terminal.wait_for("No pool was found")
        terminal.hang_up()
        assert terminal.process.wait(30) in (0, 1)


def test_suspend_and_resume(tmp_path: Path) -> None:
    """Under a real shell: Ctrl-Z gives the terminal back as it was, and ``fg`` continues."""
    shell = ["bash", "--norc", "--noprofile", "-i"]
    with Terminal(*shell, PS1="ready> ", HISTFILE="", **nothing_here(tmp_path)) as terminal:
        wait_until(lambda: "ready> " in terminal.output)

        def run(line: str, until: Callable[[str], object]) -> str:
            start = len(terminal.output)
            terminal.press(line)
            wait_until(lambda: until(terminal.output[start:]))
            return terminal.output[start:]

        run(f"stty -g > {tmp_path}/before\n", lambda new: "ready> " in new)
        run(f"{' '.join(TOP)}\n", lambda new: "No pool was found" in new)
        stopped = run("\x1a", lambda new: "Stopped" in new and "ready> " in new)
        assert stopped.index(LEAVE) < stopped.index("Stopped")
        run(f"stty -g > {tmp_path}/stopped\n", lambda new: "ready> " in new)
        resumed = run("fg\n", lambda new: "No pool was found" in new)
        assert "\x1b[?1049h" in resumed
        run("?", lambda new: "sort by the next column" in new)  # keys are read again
        run("q", lambda new: "ready> " in new)
        # Started in the background, it stops before it changes the terminal.
        run(f"{' '.join(TOP)} &\n", lambda new: "ready> " in new)
        run("\n", lambda new: "Stopped" in new or terminal.press("\n"))
        run("fg\n", lambda new: "No pool was found" in new)
        run("q", lambda new: "ready> " in new)
        run(f"stty -g > {tmp_path}/after\n", lambda new: "ready> " in new)
        wait_until((tmp_path / "after").read_text)
        before, stopped_at, after = ((tmp_path / name).read_text() for name in ("before", "stopped", "after"))
        assert before == stopped_at == after
        terminal.press("exit\n")
        terminal.end()

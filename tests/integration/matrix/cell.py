"""One cell of the matrix, from the start of the server to its shutdown."""

from __future__ import annotations

import contextlib
import http.client
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from tests.mariadb import MariaDBServer
from tests.servers import PostgresServer

from .answers import MAX_SIZE, ROWS
from .database import AMOUNT, Database, MariaDB, Postgres
from .load import Load, disconnect, fetch
from .server import TIMEOUT, Mode, Prefork, Server

__all__ = ["PHASES", "Report", "database", "prepare", "run", "run_mariadb", "run_prefork"]

PHASES = ("load", "disconnect", "restart", "kill", "wait cut", "query cut", "recycled", "leases", "limit", "exit",
          "stderr")  # fmt: skip
AT_ONCE = 5.0
"""Seconds that an exit may take: gunicorn and uWSGI look around once a second, and this machine may be busy."""


@dataclass
class Report:
    """The result: for each phase nothing, or a complaint; phases that a server does not have are missing."""

    name: str
    app: str
    found: dict[str, str] = field(default_factory=dict)
    answers: int = 0
    cut: int = 0
    most: int = 0
    seconds: float = 0.0

    @property
    def good(self) -> bool:
        """Whether there are no complaints."""
        return not any(self.found.values())

    def __str__(self) -> str:
        wrong = {phase: text for phase, text in self.found.items() if text}
        return f"{self.name}, {self.app}: " + ("good" if self.good else json.dumps(wrong, indent=2))


def database() -> PostgresServer:
    """Return a server that checks its clients, so that a killed worker's query ends with the worker."""
    return PostgresServer(max_connections=200, client_connection_check_interval=100)


prepare = Postgres.prepare


def run(mode: Mode, app: str, postgres: PostgresServer, *, answers: int = 300) -> Report:
    """Run one cell.

    Args:
        mode, app: The server's mode, and the application.
        postgres: A server with `prepare`'s table.
        answers: Number of responses to wait for under load, in each phase.
    """
    name = f"matrix {mode.name} {app}".replace(" ", "_").replace(",", "")
    return _run(mode, app, Postgres(postgres, name), answers)


def run_mariadb(mode: Mode, driver: str, server: MariaDBServer, *, answers: int = 300) -> Report:
    """Run one cell with Django's MySQL engine; the server is killed and restarted in between.

    Args:
        mode: The server's mode.
        driver: ``"PyMySQL"`` or ``"mysqlclient"``.
        server: A new server, of its own.
        answers: As for `run`.
    """
    return _run(mode, "django", MariaDB(server), answers, {"MATRIX_DRIVER": driver})


def _run(mode: Mode, app: str, database: Database, answers: int, environment: dict[str, str] | None = None) -> Report:
    began = time.monotonic()
    cell = _Cell(Server(mode, app, database.dsn, environment), Report(mode.name, app), database)
    try:
        cell.run(answers)
    finally:
        cell.server.close()
    cell.report.seconds = time.monotonic() - began
    return cell.report


def run_prefork(kind: str, postgres: PostgresServer) -> Report:
    """Run the phases of forked workers without a server, see `prefork`."""
    began = time.monotonic()
    database = Postgres(postgres, f"matrix_{kind}")
    cell = _Cell(Prefork(kind, database.dsn), Report(kind, "-"), database)
    try:
        with cell.watched():
            cell.report.found.update(cell.server.told())
        cell.report.found["exit"] = "" if cell.gone() else "its connections are still there"
        cell.report.found["stderr"] = "\n".join(cell.server.complaints())
    finally:
        cell.server.close()
    cell.report.seconds = time.monotonic() - began
    return cell.report


class _Cell:
    def __init__(self, server: Any, report: Report, database: Database) -> None:
        self.server, self.report, self._database = server, report, database

    def run(self, answers: int) -> None:
        mode, found = self.server.mode, self.report.found
        try:
            self.server.wait_until_up()
        except RuntimeError as error:
            found["load"] = str(error)
            return
        with self.watched():
            pids = set(self.server.workers())
            found["load"] = self._under_load(lambda load: load.wait(answers))
            found["disconnect"] = self._disconnect()
            if mode.workers:
                found["restart"] = self._under_load(lambda load: self._with(load, self.server.restart))
                found["kill"] = self._under_load(lambda load: self._with(load, self.server.kill_one))
            if mode.kills:
                found["wait cut"] = self._cut_off("starve")
                found["query cut"] = self._cut_off("sleep")
            if mode.workers:
                before = pids | set(self.server.workers())
                found["recycled"] = self._under_load(lambda load: self._until_recycled(load, before))
            found["leases"] = self._leases() or self._money()
        if isinstance(self._database, MariaDB):  # not watched: it cannot be asked meanwhile
            found["stderr"] = "\n".join(self.server.complaints(killed=True)[:20])  # later ones may be about the server
            found["database idle"] = self._database_restarts(self._database.server)
            found["database"] = self._database_dies(self._database.server)
        with self.watched():
            seconds, code = self.server.end()
        if code is None or seconds > AT_ONCE:
            found["exit"] = f"{seconds:.1f} s, code {code}"
        else:
            found["exit"] = "" if self.gone() else "its connections are still there"
        found.setdefault("stderr", "\n".join(self.server.complaints(killed=True)[:20]))

    # -- phases ---------------------------------------------------------------------

    def _under_load(self, work: Callable[[Load], str | None]) -> str:
        load = Load(self.server.port, threads=8)
        complaint = work(load)
        tally = load.stop()
        self.report.answers += tally.right
        self.report.cut += tally.cut
        return complaint or "; ".join(tally.wrong[:3])

    @staticmethod
    def _with(load: Load, act: Callable[[], str | None]) -> str | None:
        load.wait(50)
        complaint = act()
        load.wait(50)
        return complaint

    def _disconnect(self) -> str:
        """Clients disconnect in the middle; later ones still get all connections."""
        for number in range(3 * MAX_SIZE * max(1, self.server.mode.workers)):
            with contextlib.suppress(OSError):
                disconnect(self.server.port, number % 3)
        return (
            self._under_load(lambda load: load.wait(30))
            or self._leases()
            or "\n".join(self.server.complaints(killed=False)[:20])
        )

    def _cut_off(self, what: str) -> str:
        """A worker times out in the middle: its client is cut off, the next one is served."""
        before = set(self.server.workers())
        # uWSGI has one clock for all threads of a worker: the end of any request stops it, shortly after the response.
        time.sleep(0.5)
        try:
            fetch(self.server.port, what, timeout=TIMEOUT + 30, s=TIMEOUT + 20)
            return "it was not cut off"
        except TimeoutError:
            return "neither cut off nor answered"
        except (OSError, http.client.HTTPException, ValueError):
            pass
        complaint = _eventually(lambda: bool(set(self.server.workers()) - before), "no other worker came")
        return complaint or self._under_load(lambda load: load.wait(30))

    def _until_recycled(self, load: Load, before: set[int]) -> str | None:
        return _eventually(lambda: not before & set(self.server.workers()), "workers were not recycled", 90)

    def _database_restarts(self, server: MariaDBServer) -> str:
        """It restarts, or crashes, while nothing is asked of it: no client gets an error."""
        for end in (server.kill, server.stop):
            end()
            server.start()
            complaint = self._under_load(lambda load: load.wait(100))
            if complaint:
                return complaint
        return ""

    def _database_dies(self, server: MariaDBServer) -> str:
        """It crashes under load: the clients in between get errors, those after it none."""
        load = Load(self.server.port, threads=8)
        load.wait(30)
        server.kill()
        server.start()
        load.stop()
        return self._under_load(lambda load: load.wait(100)) or self._leases() or self._money()

    # -- checks -------------------------------------------------------------------------

    def _leases(self) -> str:
        """Check that no worker has a lease in use, and that no transaction is open in the database."""
        left: dict[int, int] = {}

        def all_is_back() -> bool:
            left.update(self._lent())
            now = set(self.server.workers())
            # uWSGI pauses when it replaces workers too fast; a worker that it starts after it was
            # told to end never gets the signal.
            complete = len(now) >= self.server.mode.workers
            return complete and now <= left.keys() and not any(left[pid] for pid in now)

        complaint = _eventually(all_is_back, "leases are left")
        if complaint:
            return f"{complaint}: {left}; {self.server.state()}"
        return _eventually(lambda: not self._database.busy(), "transactions are open")

    def _lent(self) -> dict[int, int]:
        """Send several requests at once, each of which takes a moment, so that every worker is asked."""
        found: dict[int, int] = {}

        def ask() -> None:
            with contextlib.suppress(OSError, http.client.HTTPException, ValueError):
                state = json.loads(fetch(self.server.port, "state", timeout=5.0, s=0.05))
                found[state["pid"]] = state["in_use"]

        threads = [threading.Thread(target=ask) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return found

    def _money(self) -> str:
        total = self._database.total()
        return "" if total == AMOUNT * ROWS else f"the amounts add up to {total}"

    def gone(self) -> bool:
        return not _eventually(lambda: not self._database.sessions(), "connections")

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Continuously count the connections at the server, and the processes that may have them."""
        stop = threading.Event()
        excess: list[str] = []

        def watch() -> None:
            recent: list[tuple[float, int]] = []
            with self._database.counting() as count:
                while not stop.wait(0.02):
                    now = time.monotonic()
                    before, number, after = self.server.processes(), count(), self.server.processes()
                    # The server may notice the death of a process a moment later.
                    recent = [one for one in recent if one[0] > now - 3.0] + [(now, max(before, after))]
                    most = max(processes for _, processes in recent) * MAX_SIZE
                    self.report.most = max(self.report.most, number)
                    if number > most and not excess:
                        excess.append(f"{number} connections, at most {most} are right")

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            yield
        finally:
            stop.set()
            watcher.join()
            self.report.found["limit"] = self.report.found.get("limit", "") or "".join(excess)


def _eventually(condition: Callable[[], object], complaint: str, timeout: float = 30.0) -> str:
    """Wait until the condition holds; return the complaint if it never does."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if condition():
            return ""
        time.sleep(0.05)
    return complaint

"""What ``--break`` does, and how it is mended."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import time
from typing import Protocol

import requests

from .relay import Relay, target_of
from .stage import HarnessError, Stage

__all__ = ["FAULTS", "Fault", "fault_of"]

FAULTS = ("database", "backend", "leak", "kill")

_LEAKS_SQLITE, _LEAKS_POSTGRES = 4, 24  # the writer of most workers; more than half of the connections of four workers


class Fault(Protocol):
    """Something that breaks, and is mended."""

    def prepare(self) -> str | None:
        """Prepare it before the application starts; return how that reaches the orders, ``None`` for as usual."""

    def begin(self) -> str:
        """Break it; return what was done."""

    def end(self) -> str:
        """Mend it; return what was done."""


class _Fault:
    def __init__(self, stage: Stage) -> None:
        self.stage = stage

    def prepare(self) -> str | None:
        return None


class Backend(_Fault):
    """One of the provider's backends dies."""

    def begin(self) -> str:
        pid = self.stage.kill_backend(0)
        return f"kill -9 of the provider's backend {self.stage.backends[0]} (process {pid})"

    def end(self) -> str:
        self.stage.restart_backend(0)
        return "the backend is started again"


class Worker(_Fault):
    """A worker of gunicorn is killed, as by the kernel when memory runs out."""

    def begin(self) -> str:
        pid = self.stage.workers()[0]
        os.kill(pid, signal.SIGKILL)
        return f"kill -9 of gunicorn's worker {pid}, with its requests and connections"

    def end(self) -> str:
        return f"gunicorn has replaced it: workers {', '.join(map(str, self.stage.workers()))}"


class Leak(_Fault):
    """A bug: a request acquires connections and never releases them."""

    _leaked = 0

    def begin(self) -> str:
        workers = set()
        for _ in range(_LEAKS_SQLITE if self.stage.dsn is None else _LEAKS_POSTGRES):
            with contextlib.suppress(requests.Timeout):
                response = requests.post(f"{self.stage.url}/faults/leak", timeout=5)
                if response.ok:  # otherwise all connections of that worker have leaked
                    self._leaked += 1
                    workers.add(response.json()["worker"])
        return f"a bug keeps {self._leaked} connections in {len(workers)} workers, and does not release them"

    def end(self) -> str:
        released, deadline = 0, time.monotonic() + 30
        while released < self._leaked and time.monotonic() < deadline:  # each request may reach another worker
            released += requests.delete(f"{self.stage.url}/faults/leak", timeout=10).json()["released"]
        return f"the bug is mended: {released} connections are released"


class SQLiteLock(_Fault):
    """Another program keeps the database locked."""

    def begin(self) -> str:
        self._conn = sqlite3.connect(self.stage.orders, isolation_level=None)
        deadline = time.monotonic() + 10
        while True:
            try:
                self._conn.execute("BEGIN IMMEDIATE")
                return "another program begins a transaction in the orders' SQLite file, and does not end it"
            except sqlite3.OperationalError:
                if time.monotonic() > deadline:
                    raise

    def end(self) -> str:
        self._conn.close()
        return "the other program ends"


class PostgresOutage(_Fault):
    """The database cannot be reached."""

    def prepare(self) -> str:
        """Put a relay between the application and the server."""
        from psycopg.conninfo import conninfo_to_dict, make_conninfo

        assert self.stage.dsn is not None
        parameters = conninfo_to_dict(self.stage.dsn)
        self._relay = Relay(target_of(parameters))
        own = {**parameters, "hostaddr": "127.0.0.1", "port": self._relay.port}
        if str(own.get("host") or "/").startswith("/"):  # a Unix socket: the relay is reached by TCP
            own["host"] = "127.0.0.1"
        return make_conninfo(**own)

    def begin(self) -> str:
        self._relay.cut()
        return "PostgreSQL cannot be reached: all connections are cut, and new ones refused"

    def end(self) -> str:
        self._relay.mend()
        return "PostgreSQL can be reached again"


def fault_of(name: str, stage: Stage) -> Fault:
    """Return the fault with this name.

    Raises:
        HarnessError: There is none.
    """
    found = {
        "database": SQLiteLock if stage.dsn is None else PostgresOutage,
        "backend": Backend, "leak": Leak, "kill": Worker,
    }.get(name)  # fmt: skip
    if found is None:
        raise HarnessError(f"no fault {name!r}; there are {', '.join(FAULTS)}")
    return found(stage)

"""Parts of the drop-ins that need no server: reports of outages, and what a child must not touch."""

from __future__ import annotations

import gc
import os
import socket
import threading
import weakref
from types import SimpleNamespace

import pytest

from pooling.adapters.dbapi import leave_to_parent
from pooling.compat.ledger import Ledger


@pytest.mark.parametrize(
    ("failures_at", "told"), [([5], 0), ([10], 1), ([10, 15], 1), ([10, 20, 29, 30], 3), ([35], 1)]
)
def test_reconnect_failed_is_called_once_per_reconnect_timeout(failures_at: list[float], told: int) -> None:
    now = 100.0
    calls: list[float] = []
    engine = SimpleNamespace(lock=threading.RLock(), clock=SimpleNamespace(now=lambda: now))
    facade = SimpleNamespace(
        core=SimpleNamespace(engine=engine), closed=False, reconnect_timeout=10.0,
        reconnect_failed=lambda: calls.append(now),
    )  # fmt: skip
    ledger = Ledger(lambda: facade)
    ledger.outage_began("p", OSError())
    for seconds in failures_at:
        now = 100.0 + seconds
        ledger.create_failed("p", OSError())
    assert len(calls) == told
    ledger.outage_ended("p", 1.0)
    now = 1000.0
    ledger.create_failed("p", OSError())  # a full server is not an outage
    assert len(calls) == told


class Driver:
    """A driver's connection that says goodbye when it is destroyed."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def __del__(self) -> None:
        os.write(self._sock.fileno(), b"goodbye")


def test_connection_left_to_the_parent_sends_nothing_to_the_server() -> None:
    mine, server = socket.socketpair()
    server.setblocking(False)
    conn = Driver(mine)
    gone = weakref.ref(conn)
    leave_to_parent(conn)
    os.write(mine.fileno(), b"a query")
    del conn
    gc.collect()
    assert gone() is not None  # kept, for ever
    with pytest.raises(OSError):  # the end of the stream looks different on other systems
        if not server.recv(100):
            raise OSError
    server.close()

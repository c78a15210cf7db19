"""Any DB-API 2.0 driver (PEP 249): an adapter that pools what its ``connect`` makes."""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
from collections.abc import Callable
from typing import Any, TypeVar

from .._masking import shown
from ..core.adapter import Adapter

__all__ = ["DBAPIAdapter", "leave_to_parent"]

C = TypeVar("C")  # whatever the driver calls its connection


class DBAPIAdapter(Adapter[C]):
    """Makes connections with ``creator``, pings them with a query, and rolls back after each lease.

    Example::

        adapter = DBAPIAdapter(lambda: pymysql.connect(host="db", read_timeout=10, write_timeout=10), bounded=True)
        pool = Pool(adapter=adapter, settings=PoolSettings(max_size=20))
        with pool.acquire() as connection:
            ...
            connection.commit()      # what is not committed is rolled back

    After an error in a lease the connection is pinged before it is lent again.
    Session settings stay: the driver is not known well enough to undo them.

    Args:
        creator: Returns a new connection. It is used by many threads, by one at
            a time; sqlite3 wants ``check_same_thread=False`` for that.
        query: What a ping executes.
        bounded: Whether the driver limits the time of a query itself (by a
            socket timeout). Then pings and rollbacks run in the borrower's
            thread; otherwise on a worker, a thread hop dearer, so that one that
            hangs holds nobody.

    Raises:
        TypeError: ``creator`` is not callable, or ``query`` is no text.
        ValueError: ``query`` is empty.
    """

    noun = "connection"

    def __init__(self, creator: Callable[[], C], *, query: str = "SELECT 1", bounded: bool = False) -> None:
        if not callable(creator):
            raise TypeError(f"creator must be callable, not {type(creator).__name__}")
        if not isinstance(query, str):
            raise TypeError(f"query must be a text, not {shown(query)}")
        if not query.strip():
            raise ValueError("query must not be empty")
        self._creator, self._query, self.bounded = creator, query, bool(bounded)

    def create(self) -> C:
        return self._creator()

    def validate(self, resource: C, timeout: float) -> None:
        conn: Any = resource
        with contextlib.closing(conn.cursor()) as cursor:
            cursor.execute(self._query)
            cursor.fetchall()
        conn.rollback()  # the query may have begun a transaction

    def reset(self, resource: C) -> None:
        conn: Any = resource
        conn.rollback()

    def close(self, resource: C) -> None:
        conn: Any = resource
        conn.close()

    def interrupt(self, resource: C) -> None:
        fd = _descriptor(resource)
        if fd is not None:
            with contextlib.suppress(OSError), socket.socket(fileno=socket.dup(fd)) as peer:
                peer.shutdown(socket.SHUT_RDWR)

    def abandon(self, resource: C) -> None:
        leave_to_parent(resource)


def leave_to_parent(connection: object) -> None:
    """In a forked child: let nothing of an inherited connection reach the server, now or at exit.

    Its descriptor leads nowhere from now on, where the driver shows it
    (``fileno()``, or that of its ``_sock``). And a reference for ever, past the
    interpreter's end, keeps it from saying goodbye.
    """
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(connection))
    fd = _descriptor(connection)
    if fd is not None:
        sink = os.open(os.devnull, os.O_RDWR)
        os.dup2(sink, fd)
        os.close(sink)


def _descriptor(connection: object) -> int | None:
    """The descriptor of a connection's socket, if it can be known."""
    for owner in (connection, getattr(connection, "_sock", None)):
        try:
            fd = owner.fileno()  # type: ignore[union-attr]
        except Exception:  # has none, or is closed: in the driver's own way
            continue
        if isinstance(fd, int) and fd >= 0:
            return fd
    return None

"""DB-API 2.0 drivers (PEP 249): an adapter for the connections of any of them."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable
from typing import Any, TypeVar

from .._masking import shown
from ..core.adapter import Adapter
from ..core.descriptors import redirect_to_null
from ..core.runtime.immortal import keep_forever

__all__ = ["DBAPIAdapter", "leave_to_parent"]

C = TypeVar("C")  # the driver's connection


class DBAPIAdapter(Adapter[C]):
    """Opens connections with ``creator``, validates them with a query, and rolls back after each lease.

    Example::

        adapter = DBAPIAdapter(
            lambda: pymysql.connect(host="db", read_timeout=10, write_timeout=10), enforces_timeouts=True
        )
        pool = Pool(adapter=adapter, settings=PoolSettings(max_size=20))
        with pool.acquire() as connection:
            ...
            connection.commit()      # what is not committed is rolled back

    After an error in a lease the connection is validated before it is reused.
    Session settings are kept: how to reset them depends on the driver.

    Args:
        creator: Returns a new connection, which many threads use, one at a
            time; sqlite3 needs ``check_same_thread=False`` for that.
        query: The query that validates a connection.
        enforces_timeouts: Whether the driver itself limits the time of a query (by a
            socket timeout). Validation and rollback then run in the borrower's
            thread. Otherwise they run on a worker, which costs a thread
            switch, so that one that hangs blocks no borrower.

    Raises:
        TypeError: ``creator`` is not callable, or ``query`` is not a string.
        ValueError: ``query`` is empty.
    """

    noun = "connection"

    def __init__(self, creator: Callable[[], C], *, query: str = "SELECT 1", enforces_timeouts: bool = False) -> None:
        if not callable(creator):
            raise TypeError(f"creator must be callable, not {type(creator).__name__}")
        if not isinstance(query, str):
            raise TypeError(f"query must be a string, not {shown(query)}")
        if not query.strip():
            raise ValueError("query must not be empty")
        self._creator, self._query, self.enforces_timeouts = creator, query, bool(enforces_timeouts)

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
    """In a forked child: let an inherited connection send nothing to the server, now or at interpreter exit.

    The connection is never destroyed. Its descriptor leads to ``/dev/null``
    from now on, if the driver provides it (``fileno()``, or that of ``_sock``).
    """
    keep_forever(connection)
    fd = _descriptor(connection)
    if fd is not None:
        redirect_to_null(fd)


def _descriptor(connection: object) -> int | None:
    """Return the descriptor of a connection's socket, if the driver provides it."""
    for owner in (connection, getattr(connection, "_sock", None)):
        try:
            fd = owner.fileno()  # type: ignore[union-attr]
        except Exception:  # it has none, or is closed; drivers raise different errors
            continue
        if isinstance(fd, int) and fd >= 0:
            return fd
    return None

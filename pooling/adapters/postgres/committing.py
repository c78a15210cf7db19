"""COMMIT and ROLLBACK sent by the pool itself, in one message with the cleaning of the session.

Reads ``Connection._num_transactions`` and ``_tpc`` of psycopg, which say
whether a COMMIT is allowed, and clears its list of prepared statements after
a ROLLBACK, as psycopg does: they may refer to tables that are gone.

Gain: one of two round trips for each block that ends with a commit
(docs/reference/postgres.rst, "Session state": 73 µs instead of 132 µs with the server on the same machine;
more over a network).
Without (other names, or ``POOLING_PLAIN=1``) psycopg's ``commit()`` and
``rollback()`` are called, and the session is cleaned afterwards.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import psycopg

from .internals import available
from .stalls import Watch, explained
from .tracking import IDLE, Connection

__all__ = ["AVAILABLE", "forget_prepared", "in_own_transaction", "waiting"]

R = TypeVar("R")

AVAILABLE = available(
    "committing",
    "Connection._num_transactions", "Connection._tpc", "Connection._prepared.clear", "Connection._notify_handlers",
)  # fmt: skip


def in_own_transaction(conn: Connection, status: int) -> bool:
    """Return whether psycopg must commit: it is within a ``transaction()`` or a two-phase one, or that is unknown."""
    if not AVAILABLE:
        return status != IDLE
    return bool(conn._num_transactions or conn._tpc)


def waiting(conn: Connection, watch: Watch, function: Callable[..., R], *args: Any) -> R:
    """Call a function that waits for the server other than by ``conn.wait()``.

    Meanwhile ``conn.close()`` in another thread only shuts the socket down,
    and the connection is closed here: libpq is still using it.
    """
    watch.wait_number += 1
    watch.own = watch.waits = True
    try:
        return function(*args)
    except psycopg.Error as error:
        if watch.stalled is not None:
            raise explained(watch, error)  # noqa: B904
        raise
    finally:
        watch.own = watch.waits = False
        if watch.closing:
            conn.pgconn.finish()


def forget_prepared(conn: Connection) -> None:
    """Have psycopg forget what it has prepared, after a ROLLBACK that it knows nothing of."""
    conn._prepared.clear()

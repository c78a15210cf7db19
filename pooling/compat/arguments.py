"""What psycopg_pool's arguments mean to a `PostgresPool`, and what is said of what comes back."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from typing import Any

import psycopg
from psycopg.pq import TransactionStatus
from psycopg_pool.abc import CT

from ..settings import PoolSettings
from .ledger import logger

__all__ = ["complain", "leaving_idle", "not_empty", "or_never", "or_none", "seconds", "settings_of"]

Hook = Callable[[CT], None]


RESTED = 0.5
"""Seconds of rest after which a connection is asked by a round trip before it is lent, with no ``check`` either."""


def settings_of(
    *, timeout: float, checked: bool, max_lifetime: float, idle_timeout: float, **sizes: Any
) -> PoolSettings:
    """Say in our words what psycopg_pool's mean."""
    try:
        return PoolSettings(
            acquire_timeout=seconds(timeout), max_lifetime=or_none(max_lifetime), lifetime_jitter=0.05,
            idle_timeout=or_none(idle_timeout), validation_interval=0 if checked else RESTED,
            health_check_interval=None, **sizes,
        )  # fmt: skip
    except (TypeError, ValueError) as error:
        text = str(error)
        for ours, theirs in _NAMES.items():
            text = text.replace(f"PoolSettings.{ours} ", f"{theirs} ")
        raise type(error)(text) from None


_NAMES = {
    "acquire_timeout": "timeout", "idle_timeout": "max_idle", "max_lifetime": "max_lifetime",
    "min_size": "min_size", "max_size": "max_size", "max_waiting": "max_waiting",
}  # fmt: skip


def seconds(timeout: float) -> float:
    """A time to wait, of which the interpreter bears the length."""
    return min(max(0.0, timeout), threading.TIMEOUT_MAX)


def or_none(value: float) -> float | None:
    """Say infinite in our word."""
    return None if value == math.inf else value


def or_never(value: float | None) -> float:
    """And back."""
    return math.inf if value is None else value


def not_empty(conninfo: str | Callable[[], str]) -> str | Callable[[], str]:
    """An empty one means libpq's own environment here, and not ``DATABASE_URL``."""
    if callable(conninfo):
        return lambda: conninfo() or " "
    return conninfo or " "


def leaving_idle(hook: Hook[CT] | None, what: str) -> Hook[CT] | None:
    """Refuse a connection that the user's function leaves in a transaction."""
    if hook is None or not callable(hook):
        return hook

    def call(conn: CT) -> None:
        hook(conn)
        status = conn.pgconn.transaction_status
        if status != TransactionStatus.IDLE:
            name = TransactionStatus(status).name
            raise psycopg.ProgrammingError(f"{what}() left the connection in status {name}; it is discarded")

    return call


def complain(conn: psycopg.Connection[Any]) -> None:
    """Log that a connection does not come back as it should."""
    status = conn.pgconn.transaction_status
    if status == TransactionStatus.UNKNOWN:
        what = "closed when it came back"
    elif status == TransactionStatus.ACTIVE:
        what = "in the middle of a command when it came back; closing it"
    else:
        what = "in a transaction when it came back; rolling it back"
    logger.warning("connection %s: %s", conn, what)

"""Translates psycopg_pool's arguments for a `PostgresPool`, and handles connections that return in a bad state."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from typing import Any

import psycopg
from psycopg.pq import TransactionStatus
from psycopg_pool.abc import CT

from ..adapters.postgres.tracking import Notes, bare_of, notes_of
from ..settings import Backoff, PoolSettings
from .ledger import logger

__all__ = [
    "leaving_idle", "not_empty", "or_never", "or_none", "outside", "pace_of", "seconds", "settings_of", "stand_in",
    "tidy",
]  # fmt: skip

Hook = Callable[[CT], None]


RESTED = 0.5
"""Seconds idle after which a connection is checked with a round trip before it is lent, even without a ``check``."""


def settings_of(
    *, timeout: float, checked: bool, max_lifetime: float, idle_timeout: float, **sizes: Any
) -> PoolSettings:
    """Return settings for psycopg_pool's arguments; errors use psycopg_pool's names."""
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
    """Limit a timeout to what the interpreter accepts."""
    return min(max(0.0, timeout), threading.TIMEOUT_MAX)


def or_none(value: float) -> float | None:
    """Return ``None``, our word for infinite, for ``math.inf``."""
    return None if value == math.inf else value


def or_never(value: float | None) -> float:
    """The reverse of `or_none`."""
    return math.inf if value is None else value


def not_empty(conninfo: str | Callable[[], str]) -> str | Callable[[], str]:
    """Keep an empty conninfo from meaning ``DATABASE_URL``: here it means libpq's environment variables."""
    if callable(conninfo):
        return lambda: conninfo() or " "
    return conninfo or " "


def pace_of(reconnect_timeout: float) -> Backoff:
    """Return delays short enough that the end of ``reconnect_timeout`` is noticed soon, even if no thread waits."""
    return Backoff(maximum=max(0.1, min(30.0, reconnect_timeout / 10)))


_IN_HOOK = object()  # a connection's `_pool` during a hook, so that a ``with`` block there does not close it


def leaving_idle(hook: Hook[CT] | None, what: str) -> Hook[CT] | None:
    """Wrap a hook so that a connection which it leaves in a transaction is refused and logged."""
    if hook is None or not callable(hook):
        return hook

    def call(conn: CT) -> None:
        before, vars(conn)["_pool"] = vars(conn).get("_pool"), _IN_HOOK
        try:
            hook(conn)
            status = TransactionStatus.IDLE if notes_of(conn).foreign else conn.pgconn.transaction_status
            if status != TransactionStatus.IDLE:
                name = TransactionStatus(status).name
                raise psycopg.ProgrammingError(f"{what}() left the connection in status {name}; it is discarded")
        except Exception as error:
            if what == "reset":  # otherwise it is logged as a failed attempt to connect
                logger.warning("error resetting connection: %s", error)
            raise
        finally:
            vars(conn)["_pool"] = before

    return call


def outside(conn: psycopg.Connection[Any]) -> None:
    """Mark a new connection as not lent, in ``_pool``, which psycopg and subclasses read."""
    notes = getattr(conn, "_pooling", None)
    vars(conn)["_pool"] = None
    if isinstance(notes, Notes) and hasattr(notes, "client"):
        notes.client.attributes["_pool"] = notes.configuration.before.attributes["_pool"] = None


def tidy(conn: psycopg.Connection[Any]) -> None:
    """Log that a connection returns in a bad state; call its ``rollback()`` if the user has overridden it."""
    status = conn.pgconn.transaction_status
    if status == TransactionStatus.UNKNOWN:
        return  # closed: logged when it is discarded
    if status == TransactionStatus.ACTIVE:
        logger.warning("closing returned connection, which is in the middle of a command: %s", conn)
        return
    logger.warning("rolling back returned connection: %s", conn)
    if "rollback" in vars(conn) or type(bare_of(conn) or conn).rollback is not psycopg.Connection.rollback:
        try:
            conn.rollback()
        except Exception as error:
            logger.warning("rollback failed: %s: %s; discarding connection %s", type(error).__name__, error, conn)


def stand_in(conn: CT) -> CT:
    """Return another object of the same class with the same attributes.

    It works like the connection and does not keep it alive. If the class does
    not allow that, as for a proxy, the connection itself is returned.
    """
    kind = type(conn)
    try:
        other: CT = object.__new__(kind)
        object.__setattr__(other, "__dict__", vars(conn))
    except (TypeError, AttributeError):
        return conn
    return other

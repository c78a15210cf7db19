"""Connections are replaced when the connection parameters change."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, NoReturn, Protocol

from ..._fields import fields
from ...core.engine import Engine
from ...core.lease import Lease
from ...core.waiting import wait_until
from ...errors import PoolClosed, PoolTimeout

__all__ = ["Answer", "Rotation", "rotate", "try_again_now"]

logger = logging.getLogger("pooling")


class Answer(NamedTuple):
    """The parameters of one connection."""

    number: int  # of the call of `Address.ask`
    digest: int  # differs when the parameters differ
    arguments: dict[str, Any]  # of the driver's ``connect``, complete
    conninfo: str = ""  # as the user gave it
    given: Mapping[str, Any] = {}  # ``kwargs`` as the user gave them

    def without_secrets(self) -> Answer:
        """Return a copy that may be kept."""
        return self._replace(arguments={}, conninfo="", given={})

    def __repr__(self) -> str:  # the arguments hold the password
        return f"<Answer {self.number}>"


class Address(Protocol):
    """The connection parameters of a pool."""

    def ask(self) -> Answer:
        """Return the parameters of the next connection."""


class RotatingPool(Protocol):
    """The part of a pool that `rotate` needs."""

    engine: Engine[Any]

    @property
    def name(self) -> str:
        """The pool's name."""

    def fill(self, size: int | None = None) -> None:
        """Start making connections until there are so many."""

    def drain(self) -> None:
        """Replace every connection."""

    def acquire(self, timeout: float | None = None, _depth: int = 1) -> Lease[Any]:
        """Lend a connection."""


class Rotation:
    """Which parameters have proved good, and whether they have changed.

    Args:
        address: The parameters of the pool.
    """

    def __init__(self, address: Address) -> None:
        self._address = address
        self.proved = Answer(0, 0, {})  # the newest with which a connection was made
        self._changed: Answer | None = None  # it differs from the one before

    def note_locked(self, answer: Answer) -> None:
        """Note that a connection was made with these parameters. Needs the engine's lock."""
        before = self.proved
        if answer.number > before.number:
            self.proved = answer.without_secrets()
            if before.number and answer.digest != before.digest:
                self._changed = self.proved

    def take_change(self, name: str) -> bool:
        """Return whether the parameters have changed since this was asked, and not just for one connection."""
        changed, self._changed = self._changed, None
        if changed is None:
            return False
        try:
            lasting = self._address.ask().digest == changed.digest
        except Exception:
            extra = fields("hook_failed", name, hook="conninfo")
            logger.debug("pool %r: asking again failed", name, exc_info=True, extra=extra)
            return False
        if lasting:
            extra = fields("parameters_changed", name)
            logger.info("pool %r: connection parameters have changed; replacing all connections", name, extra=extra)
        return lasting


def rotate(pool: RotatingPool, rotation: Rotation, asked: Callable[[], int], limit: float) -> None:
    """See `PostgresPool.rotate`, and `MySQLPool.rotate`.

    Args:
        pool: The pool.
        rotation: What is known of its parameters.
        asked: Returns the number of the last `Answer`.
        limit: Seconds to wait for the first new connection.
    """
    engine = pool.engine
    state, began = engine.state, engine.clock.now()
    try_again_now(engine)
    mark = asked()

    def proved() -> bool:
        return rotation.proved.number > mark or state.closed or engine.outage.final

    if len(state.entries) >= state.max_size:
        pool.acquire(limit).discard()
        wait_until(engine, lambda: proved() or len(state.entries) < state.max_size, limit)
    size = state.live
    left = limit
    while not proved() and left > 0:
        pool.fill(min(size + 1, state.max_size))  # repeatedly: there may be no borrower that wants one
        left = began + limit - engine.clock.now()
        wait_until(engine, proved, max(0.0, min(left, engine.settings.backoff.probe_interval)))
    if rotation.proved.number <= mark:
        _raise_not_rotated(pool, limit)
    pool.drain()
    pool.fill(min(size, state.max_size))


def try_again_now(engine: Engine[Any]) -> None:
    """Try to connect without waiting for the end of an outage, and after a final failure: the user asks for it."""
    with engine.lock:
        engine.outage.final = False
        engine.outage.retry_at = min(engine.outage.retry_at, engine.clock.now())


def _raise_not_rotated(pool: RotatingPool, limit: float) -> NoReturn:
    engine = pool.engine
    if engine.state.closed:
        raise PoolClosed(f"pool {pool.name!r} is closed")
    if engine.outage.final:
        raise engine.outage.cannot_create(pool.name, engine.adapter.noun) from engine.outage.error
    text = f"pool {pool.name!r}: no new connection within {limit:.1f} s; the old ones are kept"
    raise PoolTimeout(text) from engine.outage.error

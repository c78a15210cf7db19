"""Request slots: an `HTTPPool` limits how many requests are in progress at once, over all hosts.

A request holds a slot until its body is read or closed. The slot refers to
the lease of the connection that the request uses, so that what happens to the
slot (a dropped response, the end of `close`) also happens to the connection.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

from ...core.adapter import Adapter
from ...core.lease import Lease
from ...settings import PoolSettings
from .wire import Wire

__all__ = ["RequestSlot", "RequestSlots", "discard_lease", "record_holder", "slot_settings"]


class RequestSlot:
    """The right to have one request in progress; a pool of slots lends it to each request."""

    __slots__ = ("connection_lease",)

    def __init__(self) -> None:
        self.connection_lease: Lease[Wire] | None = None

    def discard_connection(self, reason: str) -> None:
        """Close the connection of the request, if it still has one."""
        lease, self.connection_lease = self.connection_lease, None
        if lease is not None:
            discard_lease(lease, reason)

    def interrupt(self) -> None:
        """Make the thread that is blocked on the connection fail."""
        lease = self.connection_lease
        if lease is not None and lease._token is not None:
            lease._token.entry.resource.interrupt()


def discard_lease(lease: Lease[Wire], reason: str) -> None:
    """End a lease and close its connection, for a reason that the metrics count. Idempotent."""
    token, lease._token = lease._token, None
    if token is not None:
        lease._pool._checkin.run(token, None, reason)


class RequestSlots(Adapter[RequestSlot]):
    """Creates request slots; closing one closes the connection that is used with it.

    Args:
        describe: Returns the counts for messages, or ``None`` for the slots' own.
        renew: Called in a forked child.
    """

    noun = "connection"
    blocking = False
    enforces_timeouts = True
    close_inline = True

    def __init__(self, describe: Callable[[], str | None], renew: Callable[[], object]) -> None:
        self._describe, self._renew = describe, renew

    def create(self) -> RequestSlot:
        return RequestSlot()

    def close(self, resource: RequestSlot) -> None:
        resource.discard_connection("orphaned")

    def interrupt(self, resource: RequestSlot) -> None:
        resource.interrupt()

    def counts(self) -> str | None:
        return self._describe()

    def after_fork(self) -> None:
        self._renew()


def slot_settings(settings: PoolSettings) -> PoolSettings:
    """Return the settings for the pool of slots: a slot does not age, and needs no check.

    Raises:
        ValueError: They have lanes.
    """
    if settings.lanes is not None:
        raise ValueError(
            "lanes must be None for an HTTP pool: its requests wait for their host's connections in order of arrival"
        )
    return settings.replace(
        min_size=0, max_idle=None, max_lifetime=None, idle_timeout=None, max_uses=None,
        health_check_interval=None, keepalive_interval=None, breaker=None,
    )  # fmt: skip


_INNER = ("requests.", "urllib3.", "http.client", "pooling.adapters.http.", "contextlib")


def record_holder(*leases: Lease[Any]) -> None:
    """Record the caller of requests, or of the pool, as the holder of these leases."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None and frame.f_globals.get("__name__", "").startswith(_INNER):
        frame = frame.f_back
    if frame is None:
        return
    for lease in leases:
        entry = lease._token.entry  # type: ignore[union-attr]
        entry.code, entry.lasti = frame.f_code, frame.f_lasti

"""Requests under way: what an `HTTPPool` counts and limits, and who is under way."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

from ...core.adapter import Adapter
from ...core.lease import Lease
from ...settings import PoolSettings
from .hold import RequestSlot

__all__ = ["Places", "of_places", "record_holder"]


class Places(Adapter[Any]):
    """The places that requests take; what each holds is ended with it."""

    noun = "connection"
    blocking = False
    bounded = True
    close_inline = True

    renew: Callable[[], Callable[[], object] | None] = staticmethod(lambda: None)  # a weak method of the pool

    describe: Callable[[], Callable[[], str] | None] = staticmethod(lambda: None)  # likewise

    def counts(self) -> str | None:
        describe = self.describe()
        return None if describe is None else describe()

    def after_fork(self) -> None:
        renew = self.renew()
        if renew is not None:
            renew()

    def create(self) -> RequestSlot:
        return RequestSlot()

    def close(self, resource: RequestSlot) -> None:
        resource.give_up("orphaned")

    def interrupt(self, resource: RequestSlot) -> None:
        line = resource.line
        if line is not None and line._token is not None:
            line._token.entry.resource.interrupt()


def of_places(settings: PoolSettings) -> PoolSettings:
    """The settings for requests under way: they have no age, and nothing to prove."""
    return settings.replace(
        min_size=0, max_idle=None, max_lifetime=None, idle_timeout=None, max_uses=None,
        health_check_interval=None, keepalive_interval=None,
    )  # fmt: skip


_INNER = ("requests.", "urllib3.", "pooling.adapters.http.", "contextlib")


def record_holder(*leases: Lease[Any]) -> None:
    """Note who holds these: whoever called requests, or the pool."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None and frame.f_globals.get("__name__", "").startswith(_INNER):
        frame = frame.f_back
    if frame is None:
        return
    for lease in leases:
        entry = lease._token.entry  # type: ignore[union-attr]
        entry.code, entry.lasti = frame.f_code, frame.f_lasti

"""Requests under way: what an `HTTPPool` counts and limits, and who is under way."""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any

from ...core.adapter import Adapter
from ...core.lease import Lease
from ...settings import PoolSettings
from .hold import Place

__all__ = ["Places", "of_places", "sign"]


class Places(Adapter[Any]):
    """The places that requests take; what each holds is ended with it."""

    noun = "connection"
    blocking = False
    bounded = True
    closes_at_once = True

    def create(self) -> Place:
        return Place()

    def close(self, resource: Place) -> None:
        resource.give_up("orphaned")

    def interrupt(self, resource: Place) -> None:
        line = resource.line
        if line is not None and line._key is not None:
            line._key.entry.resource.interrupt()


def of_places(settings: PoolSettings) -> PoolSettings:
    """The settings for requests under way: they have no age, and nothing to prove."""
    return settings.replace(
        min_size=0, max_idle=None, max_lifetime=None, idle_timeout=None, max_uses=None,
        health_check_interval=None, keepalive_interval=None,
    )  # fmt: skip


_INNER = ("requests.", "urllib3.", "pooling.adapters.http.", "contextlib")


def sign(*leases: Lease[Any]) -> None:
    """Note who holds these: whoever called requests, or the pool."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None and frame.f_globals.get("__name__", "").startswith(_INNER):
        frame = frame.f_back
    if frame is None:
        return
    for lease in leases:
        entry = lease._key.entry  # type: ignore[union-attr]
        entry.code, entry.lasti = frame.f_code, frame.f_lasti

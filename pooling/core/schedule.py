"""When an entry expires, and when it needs a sweep."""

from __future__ import annotations

import math
from typing import Any

from ..settings import PoolSettings
from .adapter import Adapter
from .entry import Entry

__all__ = ["AUDIT", "LOST", "NEVER", "first_sweep", "lifetime", "prepare_random", "replace_ahead", "uniform"]

NEVER = float("inf")

AUDIT = 0.25
"""Seconds between audits while borrowers wait (P8); an audit should never find anything."""

LOST = 1.0
"""Seconds after which a sweep that is late counts as lost: the reaper was interrupted."""

REPLACE_AHEAD = 2.0
"""At most so many seconds before it expires, a resource that ``min_size`` needs is replaced."""

_random: list[Any] = []  # the module, once it is needed


def prepare_random() -> None:
    """Import what `uniform` needs: not with the package, whose import it would double."""
    if not _random:
        import random

        _random.append(random)


def uniform() -> float:
    """Return a random number, from 0 to 1."""
    number: float = _random[0].random()
    return number


def lifetime(settings: PoolSettings) -> float:
    """Seconds after which a new resource expires, with jitter, so that not all of them expire at once."""
    if settings.max_lifetime is None:
        return math.inf
    return settings.max_lifetime * (1 - settings.lifetime_jitter * uniform())


def replace_ahead(settings: PoolSettings) -> float:
    """Seconds before it expires that a resource which ``min_size`` needs is replaced."""
    return REPLACE_AHEAD if settings.max_lifetime is None else min(REPLACE_AHEAD, settings.max_lifetime / 10)


def first_sweep(entry: Entry, settings: PoolSettings, adapter: Adapter[Any], validates: bool) -> float:
    """When a new entry may need a sweep for the first time; ``validates``: it may need a round trip."""
    soonest = NEVER if adapter.stall_timeout is None else adapter.stall_timeout / 4
    limits: tuple[float | None, ...] = settings.idle_timeout, settings.leak_timeout
    if validates:
        limits += settings.keepalive_interval, settings.health_check_interval
    for limit in limits:
        if limit is not None and limit < soonest:
            soonest = limit
    return min(entry.expires - replace_ahead(settings), entry.idle_since + soonest)

"""The pools of a project: from ``POOLING``, and of its databases."""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.core.signals import setting_changed
from django.db import connections
from django.utils.functional import SimpleLazyObject, empty

from ...core.pool import Pool
from ...manager import PoolManager
from ._engine import PooledWrapper

__all__ = ["database_pools", "all_pools", "pools"]


def _make() -> PoolManager:
    return PoolManager.from_mapping(getattr(settings, "POOLING", None) or {})


pools: Any = SimpleLazyObject(_make)
"""A `PoolManager` configured by ``settings.POOLING``, see `PoolManager.from_mapping`."""


def database_pools() -> dict[str, Pool[Any]]:
    """Return the pools of the databases by alias. Opens nothing.

    Raises:
        ImproperlyConfigured: A database's options are invalid.
    """
    wrappers = {alias: connections[alias] for alias in connections}
    found = {
        alias: wrapper.pool
        for alias, wrapper in wrappers.items() if isinstance(wrapper, PooledWrapper)
    }  # fmt: skip
    return {alias: pool for alias, pool in found.items() if pool is not None}


def all_pools() -> PoolManager:
    """Return `pools` including those of the databases, as ``database:default`` and so on."""
    for alias, pool in database_pools().items():
        name = f"database:{alias}"
        if name in pools and pools[name] is not pool:
            pools.close_pool(name)  # only removes it, because the manager does not own it
        if name not in pools:
            pools.add_pool(pool, name, owned=False)
    found: PoolManager = pools
    return found


def _forget(*, setting: str, **kwargs: object) -> None:
    """Start again when a test overrides ``POOLING``."""
    if setting == "POOLING" and pools._wrapped is not empty:
        before, pools._wrapped = pools._wrapped, empty
        before.shutdown()


setting_changed.connect(_forget)

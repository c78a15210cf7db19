"""Which pools a monitor observes: those of a manager, given ones, or all of the process. All are held weakly."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from .._masking import shown
from .._members import member_of
from ..core.managed import ManagedPool
from ..core.runtime import registry
from ..manager import PoolManager

__all__ = ["Given", "Managed", "OfProcess", "Source", "source_of"]


class Source(Protocol):
    """Where the pools come from."""

    @property
    def manager(self) -> PoolManager | None:
        """The manager, if that is the source and it still exists."""

    def pools(self) -> list[tuple[str, Any]]:
        """Return the pools that exist now, by label; a label may occur twice."""


class Managed:
    """The pools of a manager, by their names there."""

    def __init__(self, manager: PoolManager) -> None:
        self._manager = weakref.ref(manager)

    @property
    def manager(self) -> PoolManager | None:
        """The manager; ``None`` once it is gone."""
        return self._manager()

    def pools(self) -> list[tuple[str, Any]]:
        """Return its pools, foreign ones included."""
        manager = self._manager()
        found = []
        for name in manager or ():
            try:
                found += _servers(name, manager[name])  # type: ignore[index]
            except KeyError:  # removed meanwhile
                continue
        return found


class Given:
    """Pools that were given one by one."""

    manager: PoolManager | None = None

    def __init__(self, pools: Iterable[Any]) -> None:
        self._pools = []
        for number, pool in enumerate(pools, 1):
            member = member_of(pool)
            self._pools.append((member.name or f"{member.kind.lower()}-{number}", weakref.ref(pool)))

    def pools(self) -> list[tuple[str, Any]]:
        """Return those that exist, by their own names."""
        found = ((label, reference()) for label, reference in self._pools)
        return [one for label, pool in found if pool is not None for one in _servers(label, pool)]


def _servers(label: str, pool: Any) -> list[tuple[str, Any]]:
    """Return the pools of its servers in place of a cluster; any other pool as it is."""
    servers = getattr(pool, "servers", None) if isinstance(pool, ManagedPool) else None
    if not isinstance(servers, Mapping):
        return [(label, pool)]
    return [(f"{label}.{name}", one) for name, one in servers.items()]


class OfProcess:
    """All pools of this library in this process; not those that are parts of another pool."""

    manager: PoolManager | None = None

    def pools(self) -> list[tuple[str, Any]]:
        """Return those that exist, by their own names."""
        found = []
        for maintained in registry.pools():
            owner = maintained.engine.owner
            pool = None if owner is None else owner()
            if pool is not None:
                found.append((pool.name, pool))
        return found


def source_of(pools: object, name: str) -> Source:
    """Return the source that the argument ``pools`` stands for; ``None`` means the process.

    Args:
        pools: The argument.
        name: What an error calls it.

    Raises:
        TypeError: It is neither a manager nor a pool nor several of these.
    """
    if pools is None:
        return OfProcess()
    if isinstance(pools, PoolManager):
        return Managed(pools)
    if isinstance(pools, ManagedPool):
        return Given([pools])
    if isinstance(pools, (str, bytes)) or not isinstance(pools, Iterable):
        raise TypeError(f"{name} must be a PoolManager, a pool or several pools, not {shown(pools)}")
    return Given(pools)

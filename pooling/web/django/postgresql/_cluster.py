"""Aliases of a `PostgresCluster`: the one for its primary, and the one for its replicas."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.db import connections
from psycopg.conninfo import make_conninfo

from ...._masking import shown
from ....cluster import PostgresCluster
from ....cluster.replicas import Replicas
from ....settings import PoolSettings

__all__ = ["cluster_of", "make_cluster", "replica_pool_of"]

_OWN = ("max_lag", "primary_reads", "replicas")
_PLACE = ("host", "hostaddr", "port")


def make_cluster(
    wish: object, params: Mapping[str, Any], kwargs: Mapping[str, Any] | Callable[[], Mapping[str, Any]],
    settings: PoolSettings, arguments: Mapping[str, Any],
) -> PostgresCluster:  # fmt: skip
    """Create the cluster of an alias.

    Args:
        wish: ``OPTIONS["pool"]["cluster"]``: ``True``, or a mapping of arguments of `PostgresCluster`.
        params: The alias's connection parameters; ``host`` may list several hosts.
        kwargs: The arguments of the driver's ``connect()``.
        settings, arguments: As for `PostgresCluster`.

    Raises:
        TypeError, ValueError: An option is invalid.
    """
    if wish is not True and not isinstance(wish, Mapping):
        raise TypeError(f"cluster must be True or a mapping, not {shown(wish)}")
    own = {} if wish is True else dict(wish)
    unknown = sorted(set(own) - {*_OWN}, key=str)
    if unknown:
        raise ValueError(f"cluster has {', '.join(_OWN)}, but not {shown(unknown[0])}")
    place = {name: str(params[name]) for name in _PLACE if params.get(name)}
    # with an encoding, so that DATABASE_URL in the environment is ignored
    return PostgresCluster(
        make_conninfo("client_encoding=UTF8", **place), settings, **own,
        **{**arguments, "kwargs": (lambda: _elsewhere(kwargs())) if callable(kwargs) else _elsewhere(kwargs)},
    )  # fmt: skip


def _elsewhere(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in kwargs.items() if name not in _PLACE}


def cluster_of(alias: object) -> PostgresCluster:
    """Return the cluster of another alias.

    Raises:
        ImproperlyConfigured: It has none.
    """
    pool = getattr(connections[alias], "pool", None) if isinstance(alias, str) and alias in connections else None
    if not isinstance(pool, PostgresCluster):
        raise ImproperlyConfigured(f"replicas_of must be an alias with the option cluster, not {shown(alias)}")
    return pool


def replica_pool_of(alias: object) -> Replicas:
    """Return the replicas of another alias's cluster, as a pool."""
    return cluster_of(alias).replicas

"""The application's settings, from the environment."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from .cache import CacheConfig

__all__ = ["Config"]


@dataclass(frozen=True)
class Config:
    """The settings.

    Attributes:
        backends: ``MARKET_BACKENDS``: addresses of the provider's backends, separated by commas.
        cache: ``MARKET_CACHE``: the SQLite file of the cache; ``MARKET_CACHE_POOLED=0`` for the legacy cache.
        orders: ``MARKET_ORDERS``: the SQLite file of the orders, or a DSN of PostgreSQL.
        schema: ``MARKET_SCHEMA``: in PostgreSQL, the schema of the orders.
        alerts: ``MARKET_ALERTS``: a file that alerts are appended to, besides the log; one JSON object per line.
        faults: ``MARKET_FAULTS=1``: whether the harness may make the application misbehave.
    """

    backends: tuple[str, ...]
    cache: CacheConfig
    orders: str
    schema: str | None = None
    alerts: str | None = None
    faults: bool = False

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> Config:
        """Read the settings.

        Raises:
            ValueError: ``MARKET_BACKENDS`` is missing.
        """
        env = os.environ if environ is None else environ
        backends = tuple(filter(None, (one.strip().rstrip("/") for one in env.get("MARKET_BACKENDS", "").split(","))))
        if not backends:
            raise ValueError("MARKET_BACKENDS must name at least one backend, such as http://127.0.0.1:8100")
        return cls(
            backends=backends,
            cache=CacheConfig(
                path=env.get("MARKET_CACHE") or "market-cache.db",
                use_optimized_pool=env.get("MARKET_CACHE_POOLED", "1") != "0",
            ),
            orders=env.get("MARKET_ORDERS") or "market-orders.db",
            schema=env.get("MARKET_SCHEMA") or None,
            alerts=env.get("MARKET_ALERTS") or None,
            faults=env.get("MARKET_FAULTS") == "1",
        )

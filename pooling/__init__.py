"""Sync, thread-safe pooling for WSGI applications and scripts.

Lends HTTP sessions, PostgreSQL connections and anything else that is expensive
to create to threads: to one at a time, in order of arrival, and never broken.
Drivers are imported on first use of the class that needs them.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

from ._attach import offer as _offer
from .core.adapter import Adapter
from .core.lease import Lease
from .core.observer import Observer
from .core.pool import Pool
from .core.report.histogram import HistogramSnapshot
from .core.report.holders import Holder
from .core.report.metrics import PoolMetrics
from .core.report.snapshot import PoolSnapshot
from .errors import (
    CircuitOpen,
    CommandTimeout,
    CommitUnknown,
    CreateFailed,
    LeaseError,
    PoolClosed,
    PoolError,
    PoolTimeout,
    PoolUnavailable,
    TooManyWaiting,
    TransactionRolledBack,
)
from .lanes import Lane, lane
from .settings import Backoff, PoolSettings

if TYPE_CHECKING:
    from .adapters.http import HTTPPool, HTTPTimeout
    from .adapters.http.balancing.policy import Balancing
    from .adapters.http.client import (
        get_http_pool,
        init_http_pool,
        make_http_request,
        shutdown_http_pool,
    )
    from .adapters.http2 import HTTP2Pool
    from .adapters.mysql import MySQLPool
    from .adapters.postgres import PostgresPool
    from .adapters.redis import RedisPool
    from .adapters.sqlite import SQLitePool
    from .breaker import CircuitBreaker
    from .cluster import PostgresCluster
    from .fleet import FleetBudget
    from .manager import PoolManager, application_lifespan, from_url

__version__ = "0.1.0"

__all__ = [
    "Adapter",
    "Backoff",
    "Balancing",
    "CircuitBreaker",
    "CircuitOpen",
    "CommandTimeout",
    "CommitUnknown",
    "CreateFailed",
    "FleetBudget",
    "HTTP2Pool",
    "HTTPPool",
    "HTTPTimeout",
    "HistogramSnapshot",
    "Holder",
    "Lane",
    "Lease",
    "LeaseError",
    "MySQLPool",
    "Observer",
    "Pool",
    "PoolClosed",
    "PoolError",
    "PoolManager",
    "PoolMetrics",
    "PoolSettings",
    "PoolSnapshot",
    "PoolTimeout",
    "PoolUnavailable",
    "PostgresCluster",
    "PostgresPool",
    "RedisPool",
    "SQLitePool",
    "TooManyWaiting",
    "TransactionRolledBack",
    "__version__",
    "application_lifespan",
    "from_url",
    "get_http_pool",
    "init_http_pool",
    "lane",
    "make_http_request",
    "shutdown_http_pool",
]

_LAZY = {  # loaded on first use, so that the import stays light
    "Balancing": ".adapters.http.balancing.policy",
    "CircuitBreaker": ".breaker",
    "HTTPPool": ".adapters.http",
    "HTTPTimeout": ".adapters.http",
    "get_http_pool": ".adapters.http.client",
    "init_http_pool": ".adapters.http.client",
    "make_http_request": ".adapters.http.client",
    "shutdown_http_pool": ".adapters.http.client",
    "HTTP2Pool": ".adapters.http2",
    "FleetBudget": ".fleet",
    "MySQLPool": ".adapters.mysql",
    "PostgresCluster": ".cluster",
    "PostgresPool": ".adapters.postgres",
    "RedisPool": ".adapters.redis",
    "SQLitePool": ".adapters.sqlite",
    "PoolManager": ".manager",
    "application_lifespan": ".manager",
    "from_url": ".manager",
}

_EXTRAS = {"HTTP2Pool": "http2", "RedisPool": "redis"}  # which has what they need

for _class in (
    Adapter, Holder, HistogramSnapshot, Lease, Observer, Pool, PoolMetrics, PoolSnapshot
):
    _class.__module__ = __name__  # where users import them from, for tracebacks


_offer()
if os.environ.get("POOLING_METRICS_DIR"):  # else nothing of `pooling.observe` is imported
    import_module(".observe.shared", __name__).share_from_env()


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        try:
            module = import_module(_LAZY[name], __name__)
        except ModuleNotFoundError as error:
            if name not in _EXTRAS:
                raise
            needs = str(error.name).partition(".")[0]
            raise ImportError(f'{name} needs {needs}; pip install "pooling[{_EXTRAS[name]}]"') from error
        found = getattr(module, name)
        globals()[name] = found
        return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)

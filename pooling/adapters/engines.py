"""SQLAlchemy engines by URL, on our pool class."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from sqlalchemy import Engine, create_engine
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from .._masking import shown, slip
from ..settings import PoolSettings
from .sqlalchemy import Pool

__all__ = ["engine_of"]

_DRIVERS = {"postgresql": "psycopg", "postgres": "psycopg", "mysql": "pymysql", "mariadb": "pymysql"}
"""The drivers of schemes without one, where SQLAlchemy would take another by default."""
_OWN = {
    "poolclass": None, "pool": None, "pool_size": "max_idle", "max_overflow": "max_size",
    "pool_timeout": "acquire_timeout", "connection_timeout": "acquire_timeout", "pool_recycle": "max_lifetime",
    "pool_pre_ping": "validate_on_acquire",
}  # fmt: skip
"""Arguments of ``create_engine`` and of other pools that this one decides, with the setting in their place."""


def engine_of(
    url: str, *, settings: PoolSettings | None = None, name: str | None = None, **arguments: Any
) -> Engine:
    """Create an engine whose connections our `Pool` lends. Connects to nothing.

    SQLAlchemy connects, pings and recycles the connections itself, when one is
    needed. So an engine uses these settings: ``max_size`` and ``max_idle``
    (``pool_size`` is ``max_idle``, ``max_overflow`` the rest),
    ``acquire_timeout`` (``pool_timeout``), ``max_lifetime`` (``pool_recycle``),
    ``validate_on_acquire`` (``pool_pre_ping``), ``max_waiting``,
    ``leak_timeout`` and ``track_holders``. The others have no effect.

    Args:
        url: ``sqlalchemy+`` and a URL of SQLAlchemy. Without a driver,
            PostgreSQL uses psycopg, and MySQL uses mysqlclient if that is
            installed, otherwise PyMySQL.
        settings: ``None`` means the defaults, with ``validate_on_acquire`` off.
        name: The pool's name in messages and metrics.
        arguments: Further arguments of ``create_engine``.

    Raises:
        ValueError: SQLAlchemy cannot read the URL, or it names a SQLite database in memory;
            or its host, port or database contains part of a password.
        TypeError: An argument is unknown, or the pool's own.
        ImportError: The driver is not installed.
    """
    settings = settings or PoolSettings(min_size=0, validate_on_acquire=False)
    if settings.lanes is not None:
        raise ValueError("lanes must be None for a SQLAlchemy engine, whose connect() names no lane")
    for own, field in _OWN.items():
        if own in arguments:
            how = f"write {field}=, or {own} in the query of the URL" if field else "its pool is ours"
            raise TypeError(f"{own} cannot be given to an engine on this pool: {how}")
    target = _target(url)
    size = settings.max_size if settings.max_idle is None else max(1, settings.max_idle)
    engine = create_engine(
        target, poolclass=Pool, pool_logging_name=name, pool_size=size, max_overflow=settings.max_size - size,
        pool_timeout=settings.acquire_timeout, pool_pre_ping=settings.validate_on_acquire,
        pool_recycle=-1 if settings.max_lifetime is None else settings.max_lifetime, pool_use_lifo=True, **arguments,
    )  # fmt: skip
    pool: Any = engine.pool
    pool.core.reconfigure(
        max_waiting=settings.max_waiting, leak_timeout=settings.leak_timeout, track_holders=settings.track_holders
    )
    return engine


def _target(url: str) -> URL:
    try:
        target = make_url(url.partition("+")[2])
    except (ArgumentError, ValueError):  # which may quote part of a password
        raise ValueError(
            "SQLAlchemy cannot read this URL: user and password must be percent-encoded, and the port be a number"
        ) from None
    if target.drivername.startswith("sqlite") and target.database in (None, "", ":memory:"):
        raise ValueError(
            "a SQLite database in memory exists once for each connection; "
            f"write sqlalchemy+sqlite:///file.db, not {shown(url)}"
        )
    if not target.drivername.startswith("sqlite"):
        wrong = slip({"host": target.host, "port": target.port, "dbname": target.database}, url=True)
        if wrong is not None:  # SQLAlchemy would show it
            raise ValueError(wrong)
    driver = _DRIVERS.get(target.drivername)
    if driver is not None and not (driver == "pymysql" and find_spec("MySQLdb")):
        backend = "postgresql" if target.drivername == "postgres" else target.drivername
        target = target.set(drivername=f"{backend}+{driver}")
    try:
        target.get_dialect()
    except ArgumentError as error:
        raise ValueError(f"SQLAlchemy has no such dialect: {error}") from None
    return target

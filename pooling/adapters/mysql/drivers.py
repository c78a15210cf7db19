"""The drivers, each imported when it is chosen."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from .driver import Driver, choose

__all__ = ["load"]


def load(name: str | None, connection_class: type[Any] | None) -> Driver:
    """Return a driver.

    Args:
        name: See `MySQLPool`; ``None`` means the first that is installed.
        connection_class: See there. Without a name, its driver is taken.

    Raises:
        ValueError, TypeError, ImportError: See `choose` and `Driver`.
    """
    if name is None and isinstance(connection_class, type):
        for base in connection_class.__mro__:
            name = name or {"pymysql": "pymysql", "mysql": "connector", "MySQLdb": "mysqlclient"}.get(
                base.__module__.partition(".")[0]
            )
    module, found = {
        "pymysql": ("pymysql", "PyMySQL"), "connector": ("connector", "Connector"),
        "mysqlclient": ("mysqlclient", "MySQLClient"),
    }[choose(name)]  # fmt: skip
    made: Driver = getattr(import_module(f".{module}", __package__), found)(connection_class)
    return made

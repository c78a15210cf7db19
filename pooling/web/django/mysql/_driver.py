"""Imports Django's MySQL engine, with PyMySQL if mysqlclient is not installed."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from django.core.exceptions import ImproperlyConfigured

__all__ = ["DRIVER", "base"]

_VERSION = (2, 2, 8, "final", 1)  # of mysqlclient, which PyMySQL 1.2 calls itself


def _import() -> Any:
    try:
        import_module("MySQLdb")
    except ImportError as error:
        with _alias(error):
            return import_module("django.db.backends.mysql.base")
    return import_module("django.db.backends.mysql.base")


@contextmanager
def _alias(missing: ImportError) -> Iterator[None]:
    """Let ``import MySQLdb`` give PyMySQL until the block ends, with a version that Django takes."""
    try:
        pymysql = import_module("pymysql")
    except ImportError:
        raise ImproperlyConfigured(
            f'no driver for MySQL: pip install mysqlclient, or "pooling[mysql]" for PyMySQL ({missing})'
        ) from missing
    version = pymysql.version_info
    names = ["", ".constants", ".constants.CLIENT", ".constants.FIELD_TYPE", ".converters"]
    try:
        pymysql.version_info = max(version, _VERSION)  # type: ignore[attr-defined]
        for name in names:
            sys.modules[f"MySQLdb{name}"] = import_module(f"pymysql{name}")
        yield
    finally:
        pymysql.version_info = version  # type: ignore[attr-defined]
        for name in names:  # for other packages, MySQLdb is still missing
            sys.modules.pop(f"MySQLdb{name}", None)


base = _import()
"""Django's module."""

DRIVER = "pymysql" if base.Database.__name__ == "pymysql" else "mysqlclient"
"""The driver that it uses, by `MySQLPool`'s name for it."""

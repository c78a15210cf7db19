"""Checks of the arguments of `SQLitePool`."""

from __future__ import annotations

import sqlite3
import threading

from ..._masking import shown

__all__ = ["check_connect", "check_number"]

LEVELS = ("DEFERRED", "IMMEDIATE", "EXCLUSIVE", "", None)


def check_connect(
    *, isolation_level: object, autocommit: object, factory: object, uri: object, detect_types: object,
    cached_statements: object,
) -> None:  # fmt: skip
    """Check the arguments that are those of ``sqlite3.connect``.

    Raises:
        TypeError: One has the wrong type, or this Python does not support it.
        ValueError: A value is out of bounds.
    """
    if isolation_level is not None and str(isolation_level).upper() not in LEVELS:
        raise ValueError(f"isolation_level must be one of {LEVELS}, not {shown(isolation_level)}")
    legacy = getattr(sqlite3, "LEGACY_TRANSACTION_CONTROL", None)
    if autocommit is not None and legacy is None:
        raise TypeError("autocommit needs CPython 3.12")
    if not (autocommit is None or isinstance(autocommit, bool) or autocommit == legacy):
        raise TypeError(f"autocommit must be true, false or LEGACY_TRANSACTION_CONTROL, not {shown(autocommit)}")
    if not (isinstance(factory, type) and issubclass(factory, sqlite3.Connection)):
        raise TypeError(f"factory must be a subclass of sqlite3.Connection, not {shown(factory)}")
    if not (uri is None or isinstance(uri, bool)):
        raise TypeError(f"uri must be true, false or None, not {shown(uri)}")
    check_number("detect_types", detect_types, least=0)
    check_number("cached_statements", cached_statements, least=0)


def check_number(name: str, value: object, *, least: float, optional: bool = False) -> None:
    """Check the type and the lower bound of a number; it must be whole if ``least`` is an ``int``.

    Raises:
        TypeError: It is not a number, or not whole.
        ValueError: It is below ``least``, or above the longest timeout of the platform.
    """
    if value is None and optional:
        return
    kinds = (int,) if isinstance(least, int) else (int, float)
    if not isinstance(value, kinds) or isinstance(value, bool):
        raise TypeError(f"{name} must be a {'whole ' if kinds == (int,) else ''}number, not {shown(value)}")
    if not least <= value <= threading.TIMEOUT_MAX:
        raise ValueError(f"{name} must be at least {least:g}, not {shown(value)}")

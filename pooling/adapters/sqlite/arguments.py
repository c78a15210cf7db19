"""What a `SQLitePool` is told: numbers and their bounds, and how they are written in a URL."""

from __future__ import annotations

import sqlite3
import threading
from urllib.parse import parse_qsl, urlencode

from ..._masking import shown
from ...settings import truth

__all__ = ["check_connect", "check_number", "parse", "split_uri"]

_URL_PARAMETERS: dict[str, type] = {
    "timeout": float, "readers": int, "writer": int, "statement_timeout": float, "optimize": bool,
    "detect_types": int, "cached_statements": int, "uri": bool, "isolation_level": str, "autocommit": bool,
}  # fmt: skip
_URI_PARAMETERS = {"mode", "cache", "immutable", "nolock", "psow", "vfs", "modeof"}
LEVELS = ("DEFERRED", "IMMEDIATE", "EXCLUSIVE", "", None)


def parse(key: str, text: str) -> object:
    """Return what a parameter of a URL means.

    Raises:
        ValueError: It is unknown, or does not parse.
    """
    if key not in _URL_PARAMETERS:
        raise ValueError(f"unknown parameter {shown(key)}")
    kind = _URL_PARAMETERS[key]
    if kind is str:
        return None if text.lower() == "none" else text
    if key == "autocommit" and text.upper() == "LEGACY":
        return None
    try:
        return truth(text) if kind is bool else kind(text)
    except ValueError:
        noun = {float: "a number of seconds", int: "a whole number", bool: "true or false"}[kind]
        raise ValueError(f"{key} must be {noun}, not {shown(text)}") from None


def split_uri(path: str, query: str) -> tuple[str, list[tuple[str, str]]]:
    """Return the path, and the parameters that are ours: those of a ``file:`` URI go with it."""
    pairs = parse_qsl(query, keep_blank_values=True)
    if not path.startswith("file:"):
        return path, pairs
    theirs = urlencode([(key, text) for key, text in pairs if key in _URI_PARAMETERS])
    mark = "&" if "?" in path else "?"
    return path + (mark + theirs if theirs else ""), [pair for pair in pairs if pair[0] not in _URI_PARAMETERS]


def check_connect(
    *, isolation_level: object, autocommit: object, factory: object, uri: object, detect_types: object,
    cached_statements: object,
) -> None:  # fmt: skip
    """Hold the arguments of ``sqlite3.connect`` to their rules.

    Raises:
        TypeError, ValueError: One breaks them.
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
    """Hold an argument to its rule; a whole ``least`` means that it must be whole, too.

    Raises:
        TypeError: It is no number.
        ValueError: It is too small, or longer than anybody can wait.
    """
    if value is None and optional:
        return
    kinds = (int,) if isinstance(least, int) else (int, float)
    if not isinstance(value, kinds) or isinstance(value, bool):
        raise TypeError(f"{name} must be a {'whole ' if kinds == (int,) else ''}number, not {shown(value)}")
    if not least <= value <= threading.TIMEOUT_MAX:
        raise ValueError(f"{name} must be at least {least:g}, not {shown(value)}")

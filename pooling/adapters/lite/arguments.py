"""What a `SQLitePool` is told: numbers and their bounds, and how they are written in a URL."""

from __future__ import annotations

import threading

from ..._masking import shown
from ...settings import truth

__all__ = ["check_number", "parse"]

_URL_PARAMETERS: dict[str, type] = {
    "timeout": float, "readers": int, "writer": int, "statement_timeout": float, "optimize": bool,
}  # fmt: skip


def parse(key: str, text: str) -> object:
    """Return what a parameter of a URL means.

    Raises:
        ValueError: It is unknown, or does not parse.
    """
    if key not in _URL_PARAMETERS:
        raise ValueError(f"unknown parameter {shown(key)}")
    kind = _URL_PARAMETERS[key]
    try:
        return truth(text) if kind is bool else kind(text)
    except ValueError:
        noun = {float: "a number of seconds", int: "a whole number", bool: "true or false"}[kind]
        raise ValueError(f"{key} must be {noun}, not {shown(text)}") from None


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

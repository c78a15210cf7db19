"""Values in a few characters, as a table has room for."""

from __future__ import annotations

import math
import time
from typing import TypeGuard

__all__ = ["UNKNOWN", "clock", "count", "duration", "is_known", "memory", "percent", "rate"]

UNKNOWN = "-"
"""What is not known."""

_DAY = 86_400


def duration(seconds: float | None) -> str:
    """Return seconds as ``420µs``, ``4.2ms``, ``42s``, ``7m12s``, ``25m``, ``3h05m`` or ``12d``."""
    if not is_known(seconds):
        return UNKNOWN
    seconds = max(seconds, 0.0)
    if seconds < 0.000_999_5:
        micros = round(seconds * 1e6)
        return f"{micros}µs" if micros else "0"
    if seconds < 0.9995:
        return f"{_digits(seconds * 1e3)}ms"
    if seconds < 59.5:
        return f"{_digits(seconds)}s"
    minutes, hours = round(seconds) // 60, round(seconds / 60) // 60
    if minutes < 10:
        return f"{minutes}m{round(seconds) % 60:02d}s"
    if hours < 1:
        return f"{round(seconds / 60)}m"
    return f"{hours}h{round(seconds / 60) % 60:02d}m" if hours < 24 else f"{_short(seconds / _DAY)}d"


def count(number: float | None) -> str:
    """Return a number as ``12345``, ``120k`` or ``1.2M``."""
    return _short(number) if is_known(number) else UNKNOWN


def rate(per_time: float | None) -> str:
    """Return a rate, with one digit after the point if it is small."""
    if not is_known(per_time):
        return UNKNOWN
    return _digits(per_time) if 0.05 <= per_time < 9.95 else _short(per_time)


def percent(share: float | None) -> str:
    """Return a share: ``12%`` for 0.12."""
    return f"{_short(share * 100)}%" if is_known(share) else UNKNOWN


def memory(size: float | None) -> str:
    """Return bytes as ``48M``: 1024 to a ``K``."""
    if not is_known(size):
        return UNKNOWN
    for unit in ("", "K", "M", "G", "T"):
        if size < 999.5:
            return f"{_digits(size)}{unit}" if unit else f"{size:.0f}"
        size /= 1024
    return f"{_short(size)}P"


def clock(moment: float | None, now: float) -> str:
    """Return a time of day; with month and day if it is not of the last 20 hours."""
    if not is_known(moment):
        return UNKNOWN
    try:
        return time.strftime("%H:%M:%S" if abs(now - moment) < 72_000 else "%m-%d %H:%M", time.localtime(moment))
    except (OverflowError, ValueError, OSError):
        return UNKNOWN


def is_known(value: float | None) -> TypeGuard[float]:
    """Return whether a value is a number."""
    return value is not None and math.isfinite(value)


def _digits(number: float) -> str:
    return f"{number:.1f}" if number < 9.95 else f"{number:.0f}"


def _short(number: float) -> str:
    if -99_999.5 < number < 99_999.5:
        return f"{number:.0f}"
    for unit in ("k", "M", "G", "T"):
        number /= 1000
        if -999.5 < number < 999.5:
            return f"{number:.1f}{unit}" if -9.95 < number < 9.95 else f"{number:.0f}{unit}"
    return f"{number * 1e12:.0e}"

"""Finds the code of the application that uses a connection (P12)."""

from __future__ import annotations

import sys
from types import FrameType

__all__ = ["frame_of_borrower"]

# Modules that are never the holder: those between the application and the pool.
_BETWEEN = (
    "redis.", "pooling.adapters.redis.", "django_redis.", "django.core.cache.", "flask_caching.", "cachelib.",
    "celery.backends.", "kombu.", "contextlib",
)  # fmt: skip
_COMMANDS = "redis.commands."
_NO, _YES, _COMMAND = 0, 1, 2
_MOST = 500  # names kept

_getframe = sys._getframe


class _Between(dict[str, int]):
    """Whether a module is between the application and the pool, by its name."""

    def __missing__(self, name: str) -> int:
        found = _COMMAND if name.startswith(_COMMANDS) else _YES if name.startswith(_BETWEEN) else _NO
        if len(self) < _MOST:
            self[name] = found
        return found


_between = _Between()


def frame_of_borrower() -> FrameType:
    """Return the innermost frame of the application, for `RedisPool.get_connection` to call."""
    try:
        # The usual case, and at a third of the cost: three frames of redis-py's client below a method for one command.
        frame = _getframe(4)
        back = frame.f_back
        if back is None or _between[frame.f_globals["__name__"]] != _COMMAND:
            back = _getframe(2)
        while _between[back.f_globals["__name__"]] and back.f_back is not None:
            back = back.f_back
        return back
    except (KeyError, ValueError):  # the code of `exec` need not have a name; there are fewer frames
        frame = _getframe(1)
        while frame.f_back is not None and _between[frame.f_globals.get("__name__", "")]:
            frame = frame.f_back
        return frame

"""Reads ``DATABASES[alias]["OPTIONS"]["pool"]``."""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Any

from ..._masking import shown
from ...settings import PoolSettings

__all__ = ["PoolOptions"]

# Options of psycopg_pool, which Django's own engine uses, that we do not have.
_NOT_OURS = {
    "open": "the pool opens by itself",
    "num_workers": "threads are started when needed",
    "reconnect_timeout": "the pool never gives up; see max_attempts",
    "reconnect_failed": "see observers",
    "configure": "use Django's signal connection_created",
    "connection_class": "set cursor_factory in OPTIONS, next to pool",
    "close_returns": "Django closes at the end of a response, which returns the connection",
}


class PoolOptions:
    """The settings of a pool, and further arguments of its class.

    Args:
        wish: ``True``, a `PoolSettings`, or a mapping with fields of it, also
            under other libraries' names, ``"settings"`` for the values to start
            from, and arguments of the pool's class.
        arguments: The names of the class's arguments.
        checks: Django's ``CONN_HEALTH_CHECKS``: a round trip for each lease.
            ``validation_interval`` and ``validate_on_acquire`` in a mapping take
            precedence; in a `PoolSettings` they cannot be told from defaults.

    Raises:
        ValueError, TypeError: It is none of these; the message names the key.
    """

    def __init__(self, wish: Any, arguments: Set[str], *, checks: bool = False) -> None:
        self.settings, self._checks = PoolSettings(), checks
        self.arguments: dict[str, Any] = {}
        if isinstance(wish, PoolSettings):
            self.settings = wish
        elif isinstance(wish, Mapping):
            self._read(wish, arguments)
        elif wish is not True:
            raise TypeError(f"must be True, a mapping or a PoolSettings, not {shown(wish)}")
        if not isinstance(wish, Mapping):
            self.settings = self._checked(self.settings)

    def _read(self, wish: Mapping[str, Any], arguments: Set[str]) -> None:
        base, fields = self.settings, {}
        for key, value in wish.items():
            if key == "settings":
                if not isinstance(value, PoolSettings):
                    raise TypeError(f"settings must be a PoolSettings, not {shown(value)}")
                base = value
            elif key in arguments:
                self.arguments[key] = value
            elif key in _NOT_OURS:
                raise ValueError(f"{key} is not supported: {_NOT_OURS[key]}")
            else:
                fields[key] = value
        self.settings = PoolSettings.from_mapping(fields, base=self._checked(base))

    def _checked(self, settings: PoolSettings) -> PoolSettings:
        return settings.replace(validate_on_acquire=True, validation_interval=0) if self._checks else settings

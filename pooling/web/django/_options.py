"""What ``DATABASES[alias]["OPTIONS"]["pool"]`` may say."""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Any

from ..._masking import shown
from ...settings import PoolSettings

__all__ = ["PoolOptions"]

# What psycopg_pool, which Django's own engine uses, has and we have not.
_NOT_OURS = {
    "open": "the pool opens itself",
    "num_workers": "threads are started as they are needed",
    "reconnect_timeout": "the pool never gives up; see max_attempts",
    "reconnect_failed": "see observers",
    "configure": "connect to Django's signal connection_created",
    "connection_class": "set cursor_factory beside pool",
    "close_returns": "Django closes at the end of a response, and that gives back",
}


class PoolOptions:
    """The settings of a pool, and the further arguments of its class.

    Args:
        wish: ``True``, a `PoolSettings`, or a mapping: its fields, or other
            libraries' names for them, with ``"settings"`` for those to begin
            with, and arguments of the pool's class.
        arguments: The names of the arguments that the class has.
        checks: Django's ``CONN_HEALTH_CHECKS``: a round trip each time. In a
            mapping ``validation_interval`` and ``validate_on_acquire`` come
            before this, in a `PoolSettings` nobody knows who has said them.

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
                raise ValueError(f"{key} is not known here: {_NOT_OURS[key]}")
            else:
                fields[key] = value
        self.settings = PoolSettings.from_mapping(fields, base=self._checked(base))

    def _checked(self, settings: PoolSettings) -> PoolSettings:
        return settings.replace(validate_on_acquire=True, validation_interval=0) if self._checks else settings

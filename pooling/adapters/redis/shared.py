"""One pool for all who ask for it with the same arguments."""

from __future__ import annotations

import os
from typing import Any

from .pool import RedisPool

__all__ = ["SharedRedisPool"]


class SharedRedisPool(RedisPool):
    """A `RedisPool` whose ``from_url`` returns the same pool for the same arguments, in any thread.

    For programs that create a pool in each thread, as Django's cache backend
    does: there ``max_size`` would be a limit for each thread.
    """

    @classmethod
    def from_url(cls, url: str, **arguments: Any) -> Any:
        """Return the pool of this process for a URL and arguments; create it at the first call.

        Args, Raises:
            As for `RedisPool.from_url`.
        """
        key = (cls, url, tuple((name, _hashable(arguments[name])) for name in sorted(arguments)))
        found = _pools.get(key)
        if found is not None and not found.closed:
            return found
        made = super().from_url(url, **arguments)  # opens nothing
        if found is not None:
            _pools.pop(key, None)
        return _pools.setdefault(key, made)  # Assumes: it is atomic. A lock could be copied by a fork while it is held.

    def reset(self) -> None:
        """Replace all connections if ``connection_kwargs`` has changed since the last call, or the process has forked.

        django-redis calls it in each thread that asks for the pool while none has got it yet.
        """
        arguments = {name: value for name, value in self.connection_kwargs.items() if value is not None}
        if arguments != self.__dict__.get("_arguments") or self.pid != os.getpid():
            self._arguments = arguments
            super().reset()


_pools: dict[object, RedisPool] = {}


def _hashable(value: Any) -> object:
    try:
        hash(value)
    except TypeError:
        return repr(value)
    return value

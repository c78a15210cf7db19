"""The leases of one request: at most one of each pool, released together."""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager
from typing import Any

from .._fields import fields
from ..errors import LeaseError
from ..manager import PoolManager

__all__ = ["Scope"]

logger = logging.getLogger("pooling")


class Scope:
    """The leases of one request.

    Only one thread at a time works on a request, so there is no lock.

    Args:
        manager: The manager of the pools.
        most: The maximum number of leases; ``None`` means one of each pool.
    """

    __slots__ = ("manager", "most", "_leases", "_ended")

    def __init__(self, manager: PoolManager, most: int | None = None) -> None:
        self.manager = manager
        self.most = most
        self._leases: dict[str, tuple[AbstractContextManager[Any], Any]] | None = None
        self._ended = False

    def lease(self, name: str, timeout: float | None = None) -> Any:
        """Return this request's resource of a pool; the first call acquires it.

        Raises:
            LeaseError: The response was closed, or the request already holds
                the maximum number of leases.
            KeyError: There is no such pool.
            PoolError: As from `Pool.acquire`.
        """
        leases = self._leases
        if leases is not None and name in leases:
            return leases[name][1]
        if self._ended:
            raise LeaseError(f"pool {name!r}: cannot acquire, because this request's response was closed")
        if leases is None:
            leases = self._leases = {}
        if self.most is not None and len(leases) >= self.most:
            held = ", ".join(map(repr, leases)) or "nothing"
            raise LeaseError(f"pool {name!r}: this request may hold at most {self.most} at once, and holds {held}")
        lease = self.manager.lease(name, timeout)
        resource = lease.__enter__()
        leases[name] = lease, resource
        return resource

    @property
    def held(self) -> bool:
        """Whether there is a lease to release."""
        return bool(self._leases)

    def end(self, error: BaseException | None = None, *, final: bool = True) -> None:
        """Release all leases, the last one first. Idempotent.

        Args:
            error: The error that ended the request, if any.
            final: Whether to refuse further leases.
        """
        self._ended = final
        leases, self._leases = self._leases, None
        try:
            while leases:
                name, (lease, _) = leases.popitem()
                kind, trace = (None, None) if error is None else (type(error), error.__traceback__)
                try:
                    lease.__exit__(kind, error, trace)
                except Exception:
                    if error is None:
                        extra = fields("release_failed", name)
                        logger.exception("pool %r: releasing at the end of a request failed", name, extra=extra)
        finally:
            if leases:  # interrupted, for instance by a signal; do not leave the others to garbage collection (P8)
                self._leases = leases
                self.end(error, final=final)

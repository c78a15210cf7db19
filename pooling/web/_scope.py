"""What one request holds: at most one lease of each pool, given back together."""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager
from typing import Any

from ..errors import LeaseError
from ..manager import PoolManager

__all__ = ["Scope"]

logger = logging.getLogger("pooling")


class Scope:
    """The leases of one request.

    One thread at a time works for a request, so there is no lock.

    Args:
        manager: Whose pools.
        most: How many leases at most; ``None`` means one of each pool.
    """

    __slots__ = ("manager", "most", "_leases", "_ended")

    def __init__(self, manager: PoolManager, most: int | None = None) -> None:
        self.manager = manager
        self.most = most
        self._leases: dict[str, tuple[AbstractContextManager[Any], Any]] | None = None
        self._ended = False

    def lease(self, name: str, timeout: float | None = None) -> Any:
        """Return this request's resource of a pool; it is taken at the first call.

        Raises:
            LeaseError: The response was closed, or the request holds as many
                as it may.
            KeyError: There is no such pool.
            PoolError: As from `Pool.acquire`.
        """
        leases = self._leases
        if leases is not None and name in leases:
            return leases[name][1]
        if self._ended:
            raise LeaseError(f"pool {name!r}: no lease any more, the response of this request was closed")
        if leases is None:
            leases = self._leases = {}
        if self.most is not None and len(leases) >= self.most:
            held = ", ".join(map(repr, leases)) or "nothing"
            raise LeaseError(f"pool {name!r}: this request may hold {self.most} at most, and holds {held}")
        lease = self.manager.lease(name, timeout)
        resource = lease.__enter__()
        leases[name] = lease, resource
        return resource

    @property
    def held(self) -> bool:
        """Whether there is anything to give back."""
        return bool(self._leases)

    def end(self, error: BaseException | None = None, *, final: bool = True) -> None:
        """Give everything back, the last one first; twice is fine.

        Args:
            error: What ended the request, if anything did.
            final: Whether no lease may be taken any more.
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
                        logger.exception("pool %r: giving back failed at the end of a request", name)
        finally:
            if leases:  # interrupted, by a signal say; the others must not wait for the collector (P8)
                self._leases = leases
                self.end(error, final=final)

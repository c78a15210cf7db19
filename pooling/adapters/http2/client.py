"""What a borrower gets: a client of its own, unusable after its lease."""

from __future__ import annotations

from typing import Any

import httpx

from ...core.lease import Lease
from ...errors import LeaseError
from .connection import Connection

__all__ = ["ClientLease", "View"]


class View(httpx.BaseTransport):
    """The transport of a borrower's client: the connection, until the lease ends.

    Args:
        connection: The connection; ``None`` if the lease has ended.
        total: Seconds for a request that has no total limit of its own.

    Attributes:
        detached: Whether the connection belongs to the client alone.
    """

    def __init__(self, connection: Connection | None, total: float | None = None) -> None:
        self._connection = connection
        self._total = total
        self.detached = False

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        if self._connection is None:
            raise LeaseError("this client's lease has ended; acquire another one")
        if self._total is not None:
            request.extensions.setdefault("total", self._total)
        return self._connection.send(request)

    def close(self) -> None:
        if self.detached and self._connection is not None:
            self._connection.close()

    def end(self) -> None:
        """Allow no further request."""
        self._connection = None


class ClientLease(Lease[httpx.Client]):
    """The right to use a client until it is released.

    The client was made for this lease, so nothing set on it (cookies, headers, credentials) reaches another borrower.
    """

    __slots__ = ("_lease", "_client", "_view")

    def __init__(self, lease: Lease[Any], client: httpx.Client, view: View) -> None:
        self._pool, self._token = lease._pool, None
        self._lease = lease
        self._client = client
        self._view = view

    @property
    def resource(self) -> httpx.Client:
        """The client.

        Raises:
            LeaseError: The lease has ended, or was inherited over a fork.
        """
        self._lease.resource  # noqa: B018
        return self._client

    @property
    def active(self) -> bool:
        """Whether the lease has not ended and belongs to this process."""
        return self._lease.active

    def __enter__(self) -> httpx.Client:
        return self.resource

    def __exit__(self, *error: Any) -> None:
        self._view.end()
        self._lease.__exit__(*error)

    def release(self) -> None:
        """Release the client.

        Raises:
            LeaseError: It was released before, or inherited over a fork.
        """
        self._view.end()
        self._lease.release()

    def discard(self) -> None:
        """End the lease and close the connection.

        Raises:
            LeaseError: It was released before, or inherited over a fork.
        """
        self._view.end()
        self._lease.discard()

    def detach(self) -> httpx.Client:
        """End the lease but keep the client, with its connection, which the pool forgets; close it yourself.

        Raises:
            LeaseError: It was released before, or inherited over a fork.
        """
        self._lease.detach()
        self._view.detached = True
        return self._client

    def __repr__(self) -> str:
        return repr(self._lease)

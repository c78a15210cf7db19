"""The HTTP methods of a pool, each on a new session."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import requests

from .arguments import joined

if TYPE_CHECKING:
    from ...core.lease import Lease

__all__ = ["Verbs"]


class Verbs:
    """`request`, `get`, `post` and the others; each makes its request with a new session."""

    _base_url: str

    if TYPE_CHECKING:

        def acquire(self, timeout: float | None = None, _depth: int = 1) -> Lease[requests.Session]: ...

        def session(self) -> requests.Session: ...

    def request(self, method: str, url: str, **kwargs: Any) -> requests.Response:
        """Make a request and return the response, with its body read.

        With ``stream=True`` the body is not read yet, and the connection is
        held until it is; `request_context` makes sure that it is closed.

        Args:
            method: ``"GET"``, ``"POST"``, ...
            url: A URL, or a path that begins with ``/`` if the pool has a
                ``base_url``. A path never leaves the ``base_url``. To a URL,
                the pool's headers and credentials are sent, whatever its host.
            kwargs: As for ``requests.request``; ``timeout`` may be an `HTTPTimeout`.

        Raises:
            PoolTimeout: No connection was free in time; also a
                ``requests.exceptions.ConnectTimeout``.
            TooManyWaiting: ``max_waiting`` requests wait already.
            PoolClosed: The pool was closed.
            requests.RequestException: As from requests.
        """
        return self._request(method, url, kwargs)

    def get(self, url: str, **kwargs: Any) -> requests.Response:
        """Make a GET request, see :meth:`request`."""
        return self._request("GET", url, kwargs)

    def options(self, url: str, **kwargs: Any) -> requests.Response:
        """Make an OPTIONS request, see :meth:`request`."""
        return self._request("OPTIONS", url, kwargs)

    def head(self, url: str, **kwargs: Any) -> requests.Response:
        """Make a HEAD request, see :meth:`request`; as in requests, it follows no redirects."""
        kwargs.setdefault("allow_redirects", False)
        return self._request("HEAD", url, kwargs)

    def post(self, url: str, data: Any = None, json: Any = None, **kw: Any) -> requests.Response:
        """Make a POST request, see :meth:`request`."""
        return self._request("POST", url, dict(kw, data=data, json=json))

    def put(self, url: str, data: Any = None, **kwargs: Any) -> requests.Response:
        """Make a PUT request, see :meth:`request`."""
        return self._request("PUT", url, dict(kwargs, data=data))

    def patch(self, url: str, data: Any = None, **kwargs: Any) -> requests.Response:
        """Make a PATCH request, see :meth:`request`."""
        return self._request("PATCH", url, dict(kwargs, data=data))

    def delete(self, url: str, **kwargs: Any) -> requests.Response:
        """Make a DELETE request, see :meth:`request`."""
        return self._request("DELETE", url, kwargs)

    @contextmanager
    def request_context(self, method: str, url: str, **kwargs: Any) -> Iterator[requests.Response]:
        """Make a request whose response is closed at the end of the block, read or not.

        Args:
            method: ``"GET"``, ``"POST"``, ...
            url: As for `request`.
            kwargs: As for `request`, such as ``stream=True``.

        Raises:
            PoolTimeout: No connection was free in time.
            requests.RequestException: As from requests.
        """
        response: requests.Response | None = None
        try:
            with self.acquire() as session:
                response = session.request(method, self._whole(url), **kwargs)
                yield response
        finally:
            if response is not None:
                response.close()  # a hook may have replaced the response that the session closes

    def _request(self, method: str, url: str, kwargs: dict[str, Any]) -> requests.Response:
        return self.session().request(method, self._whole(url), **kwargs)

    def _whole(self, url: str) -> str:
        return joined(self._base_url, url) if self._base_url and url.startswith("/") else url

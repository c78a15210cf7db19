"""Sessions whose paths go to the group."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import requests

from ..sessions import Pooled
from .bases import GroupURL
from .transport import GroupTransport, backend_of

__all__ = ["GroupSession"]

class GroupSession(Pooled):
    """What is added to a class of sessions, beside `Pooled`.

    The URL of a request to the group is that of the first server, whichever
    answers: so cookies, credentials and redirects work as with one server. The
    URL of a response is the one that was requested.
    """

    _pooling: GroupTransport

    def prepare_request(self, request: requests.Request, url: str | None = None) -> requests.PreparedRequest:
        path = request.url
        if not isinstance(path, str) or not path.startswith("/"):
            return super().prepare_request(request)
        url = self._pooling.group.url(path)
        prepared = super().prepare_request(request, url)
        prepared.url = url if prepared.url == url else GroupURL(str(prepared.url), url.first)
        return prepared

    # -- redirects ----------------------------------------------------------------

    def rebuild_method(self, prepared_request: requests.PreparedRequest, response: requests.Response) -> None:
        if backend_of(response) is not None:
            prepared_request.url = self._pooling.group.canonical(str(prepared_request.url))
        super().rebuild_method(prepared_request, response)

    def resolve_redirects(self, resp: requests.Response, *args: Any, **kwargs: Any) -> Iterator[Any]:
        for following in super().resolve_redirects(resp, *args, **kwargs):
            self._name_server(resp)  # from now on, nothing is relative to its URL
            yield following
            resp = following
        self._name_server(resp)

    def _name_server(self, response: requests.Response) -> None:
        backend = backend_of(response)
        if backend is not None and type(response.url) is GroupURL:
            _, response.url = response.url.at(backend.base)

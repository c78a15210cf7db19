"""Sessions whose paths go to the group."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator
from typing import Any

import requests

from ..arguments import joined
from ..sessions import Pooled
from .bases import GroupURL, group_url
from .transport import GroupTransport, backend_of

__all__ = ["GroupSession"]

_joined = functools.lru_cache(maxsize=256)(lambda base, path: GroupURL(joined(base, path)))


class GroupSession(Pooled):
    """What is added to a class of sessions, beside `Pooled`.

    The URL of a request to the group is that of the first server, whichever
    answers: so cookies, credentials and redirects work as with one server. The
    URL of a response is the one that was requested.
    """

    _pooling: GroupTransport

    def request(self, method: Any, url: Any, *args: Any, **kwargs: Any) -> requests.Response:
        return super().request(method, self._whole(url), *args, **kwargs)

    def prepare_request(self, request: requests.Request) -> requests.PreparedRequest:
        if type(request.url) is not GroupURL:
            whole = self._whole(request.url)
            if whole is request.url:
                return super().prepare_request(request)
            request = copy.copy(request)
            request.url = whole
        prepared = super().prepare_request(request)
        url = str(prepared.url)
        prepared.url = GroupURL(url) if "?" in url else group_url(url)  # a query is often another one each time
        return prepared

    def _whole(self, url: Any) -> Any:
        if not isinstance(url, str) or not url.startswith("/"):
            return url
        base = self._pooling.group.first.url
        return GroupURL(joined(base, url)) if "?" in url else _joined(base, url)

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
            response.url = self._pooling.group.target(backend, response.url)

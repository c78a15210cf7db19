"""Sessions whose paths go to the group."""

from __future__ import annotations

import copy
import re
from typing import Any
from urllib.parse import urljoin

import requests

from ..arguments import joined
from ..limits import Limits
from ..sessions import Pooled
from .bases import GroupURL
from .transport import GroupTransport, backend_of

__all__ = ["GroupSession"]

_ABSOLUTE = re.compile("(https?:)?//", re.IGNORECASE)


class GroupSession(Pooled):
    """What is added to a class of sessions, beside `Pooled`.

    While a request is made, its URL is that of the first server, whichever
    answers: so cookies, credentials and redirects work as with one server. In
    the end, the response has the URL that was requested.
    """

    _pooling: GroupTransport

    def prepare_request(self, request: requests.Request) -> requests.PreparedRequest:
        url = request.url
        if not isinstance(url, str) or not url.startswith("/"):
            return super().prepare_request(request)
        request = copy.copy(request)
        request.url = joined(self._pooling.group.first.url, url)
        prepared = super().prepare_request(request)
        prepared.url = GroupURL(prepared.url)
        return prepared

    def send(self, request: requests.PreparedRequest, **kwargs: Any) -> requests.Response:
        given, group = kwargs.get("timeout"), self._pooling.group
        if isinstance(given, Limits):  # this is a redirect of a request
            if given.grouped:
                request.url = group.marked(str(request.url))
            return super().send(request, **kwargs)
        response = super().send(request, **kwargs)
        for one in (response, *getattr(response, "history", ())):
            backend = backend_of(one)
            if backend is not None and one.url is not None:
                one.url = group.target(backend, str(one.url))
        return response

    def get_redirect_target(self, resp: requests.Response) -> str | None:
        location = super().get_redirect_target(resp)
        backend = backend_of(resp)
        if location is None or backend is None or not _ABSOLUTE.match(location):
            return location
        return self._pooling.group.canonical(urljoin(backend.url, location))

"""Sending a request and building its response as requests does, without the work for what most answers leave out.

requests parses the cookies of an answer twice even if it sets none, copies its
headers one by one through abstract classes, follows redirects with generators,
and reads a short body in pieces: a tenth of its work for a GET.
"""

from __future__ import annotations

import functools
from collections import OrderedDict
from datetime import timedelta
from http.cookiejar import CookieJar
from time import perf_counter
from typing import Any

import requests
import requests.adapters
from requests import exceptions
from requests.cookies import RequestsCookieJar, extract_cookies_to_jar
from requests.structures import CaseInsensitiveDict
from requests.utils import get_encoding_from_headers
from urllib3 import HTTPResponse
from urllib3.exceptions import DecodeError, ProtocolError, ReadTimeoutError, SSLError

__all__ = ["as_dict", "build_response", "copy_of", "send", "with_items"]

_Session, _Adapter = requests.Session, requests.adapters.HTTPAdapter
_BY_SESSION, _BY_ADAPTER, _CONTENT = _Session.send, _Adapter.build_response, requests.Response.content
_EXTRACT = RequestsCookieJar.extract_cookies
_NEEDED = frozenset(("stream", "verify", "cert", "proxies"))
_MOST_AT_ONCE = 1 << 20  # bytes of a body
_EMPTY_RESPONSE = vars(requests.Response())
_CONSTANT = (bool, timedelta, type(None))  # the types of values that responses may share
_RESPONSE_KNOWN = {
    name for name, value in _EMPTY_RESPONSE.items() if not isinstance(value, _CONSTANT)
} == {"headers", "history", "cookies"}


def send(session: requests.Session, request: requests.PreparedRequest, options: dict[str, Any]) -> Any:
    """Do what ``requests.Session.send`` does.

    Args:
        session: The session, of a class that does not override ``send``.
        request: The request.
        options: The arguments; all that `requests.Session.request` gives.

    Returns:
        The response; ``None``, and nothing is sent, if requests has to do it.
    """
    if (
        not options.keys() >= _NEEDED or not isinstance(request, requests.PreparedRequest)
        or (request.hooks and any(request.hooks.values()))
        or _Session.send is not _BY_SESSION  # replaced by a tool
    ):  # fmt: skip
        return None
    options = dict(options)
    follow = options.pop("allow_redirects", True)
    adapter = session.get_adapter(url=str(request.url))
    began = perf_counter()
    response = adapter.send(request, **options)
    response.elapsed = timedelta(seconds=perf_counter() - began)
    for earlier in response.history:
        _extract(session.cookies, earlier.request, earlier.raw)
    _extract(session.cookies, request, response.raw)
    if session.get_redirect_target(response):
        response = _redirected(session, request, response, follow, options)
    if not options["stream"]:
        _read(response)
    return response


def _redirected(
    session: Any, request: requests.PreparedRequest, response: requests.Response, follow: bool, options: dict[str, Any]
) -> requests.Response:
    if not follow:
        for following in session.resolve_redirects(response, request, yield_requests=True, **options):
            vars(response)["_next"] = following
            break
        return response
    history = [response, *session.resolve_redirects(response, request, **options)]
    last: requests.Response = history.pop()
    if history:
        last.history = history
    return last


def _read(response: requests.Response) -> None:
    """Read the body: at once, if it is short."""
    raw: Any = response.raw
    if (
        type(raw) is not HTTPResponse or vars(response).get("_content") is not False or raw.chunked
        or not 0 < (raw.length_remaining or 0) <= _MOST_AT_ONCE
        or type(response).content is not _CONTENT
    ):  # fmt: skip
        response.content  # noqa: B018
        return
    try:
        content = raw.read(decode_content=True)
    except ProtocolError as error:
        raise exceptions.ChunkedEncodingError(error)  # noqa: B904  # as requests does
    except DecodeError as error:
        raise exceptions.ContentDecodingError(error)  # noqa: B904
    except ReadTimeoutError as error:
        raise exceptions.ConnectionError(error)  # noqa: B904
    except SSLError as error:
        raise exceptions.SSLError(error)  # noqa: B904
    vars(response).update(_content=content, _content_consumed=True)


def build_response(adapter: Any, request: requests.PreparedRequest, answer: Any) -> requests.Response | None:
    """Do what ``requests.adapters.HTTPAdapter.build_response`` does; ``None`` if requests has to do it."""
    if (
        type(answer) is not HTTPResponse or not isinstance(request.url, str)
        or _Adapter.build_response is not _BY_ADAPTER
    ):  # fmt: skip
        return None
    merged = answer.headers.itermerged()
    headers = OrderedDict((name.lower(), (name, value)) for name, value in merged)
    response = _new_response()
    vars(response).update(
        status_code=answer.status, headers=with_items(headers), raw=answer, reason=answer.reason, url=request.url,
        encoding=_encoding(headers["content-type"][1] if "content-type" in headers else None),
        request=request, connection=adapter,
    )  # fmt: skip
    _extract(response.cookies, request, answer)
    return response


def _new_response() -> requests.Response:
    """Return what ``requests.Response()`` would, in a fifth of the time; its headers are to be set."""
    if not _RESPONSE_KNOWN:
        return requests.Response()
    response = requests.Response.__new__(requests.Response)
    vars(response).update(_EMPTY_RESPONSE, history=[], cookies=RequestsCookieJar())
    return response


def _extract(jar: CookieJar, request: requests.PreparedRequest, answer: Any) -> None:
    """Take the cookies of an answer, if it sets any."""
    if (
        type(answer) is HTTPResponse and type(jar).extract_cookies is _EXTRACT
        and "set-cookie" not in answer.headers and "set-cookie2" not in answer.headers
    ):  # fmt: skip
        return
    extract_cookies_to_jar(jar, request, answer)  # type: ignore[no-untyped-call]


@functools.lru_cache(maxsize=64)
def _encoding(content_type: str | None) -> str | None:
    headers = {} if content_type is None else {"content-type": content_type}
    return get_encoding_from_headers(CaseInsensitiveDict(headers))


def copy_of(headers: Any) -> CaseInsensitiveDict[Any]:
    """Return a copy of a dictionary of headers, as ``headers.copy()`` does."""
    return with_items(headers._store.copy())


def as_dict(headers: Any) -> dict[str, Any]:
    """Return headers as a dictionary, as ``dict(headers.items())`` does."""
    return dict(headers._store.values())


def with_items(store: OrderedDict[str, tuple[str, Any]]) -> CaseInsensitiveDict[Any]:
    """Return a dictionary of headers.

    Args:
        store: By name in lower case, the name and the value.
    """
    made: CaseInsensitiveDict[Any] = CaseInsensitiveDict.__new__(CaseInsensitiveDict)
    vars(made)["_store"] = store
    return made

"""Preparing a request as requests does, without the work for what most requests leave out.

requests merges parameters, cookies and headers even if there are none, and
parses the same URL again for each request: a third of its work for a GET.
"""

from __future__ import annotations

import functools
from http.cookiejar import CookieJar
from typing import Any

import requests
import requests.sessions
from requests.cookies import RequestsCookieJar
from requests.sessions import merge_hooks
from requests.structures import CaseInsensitiveDict

from .environment import no_password_file
from .sending import copy_of

__all__ = ["prepare"]

_Session, _Prepared = requests.Session, requests.PreparedRequest
_BY_SESSION, _BY_REQUEST = _Session.prepare_request, _Prepared.prepare
_NETRC_AUTH = requests.sessions.get_netrc_auth


def prepare(session: requests.Session, request: requests.Request, url: Any) -> requests.PreparedRequest | None:
    """Do what ``requests.Session.prepare_request`` does, for this URL instead of that of the request.

    Returns:
        The prepared request; ``None`` if it has parameters, cookies or
        anything unusual, and requests has to prepare it.
    """
    headers, cookies = session.headers, session.cookies
    if (
        request.params or session.params or request.cookies or not isinstance(cookies, CookieJar) or len(cookies)
        or not isinstance(url, str) or request.method is None
        or type(headers) is not CaseInsensitiveDict or type(request.headers) is not dict
        or _Session.prepare_request is not _BY_SESSION or _Prepared.prepare is not _BY_REQUEST  # replaced by a tool
    ):  # fmt: skip
        return None
    auth = request.auth
    if session.trust_env and not auth and not session.auth and not (
        no_password_file() and requests.sessions.get_netrc_auth is _NETRC_AUTH
    ):  # fmt: skip
        auth = requests.sessions.get_netrc_auth(url)
    prepared = _Prepared()
    prepared.prepare_method(request.method.upper())
    if "?" in url or "@" in url:  # often another one each time, and there may be secrets in it
        prepared.prepare_url(url, {})
    else:
        prepared.url = _prepared_url(url)
    if request.headers or None in headers.values():  # `None` removes a header
        headers = CaseInsensitiveDict(headers.items())
        headers.update(request.headers)
        for name in [name for name, value in headers.items() if value is None]:
            del headers[name]
        prepared.prepare_headers(headers)
    else:  # the pool's own, usually
        try:
            prepared.headers = copy_of(_prepared_headers(*vars(headers)["_store"].values()))
        except TypeError:  # a value cannot be hashed, and is wrong
            prepared.prepare_headers(headers)
    vars(prepared)["_cookies"] = RequestsCookieJar()  # there is nothing to prepare
    prepared.prepare_body(request.data, request.files, request.json)
    auth = session.auth if auth is None else auth
    if auth or "@" in url:  # else there is nothing to prepare
        prepared.prepare_auth(auth, url)
    prepared.prepare_hooks(merge_hooks(request.hooks, session.hooks))  # type: ignore[no-untyped-call]
    return prepared


@functools.lru_cache(maxsize=64)
def _prepared_headers(*headers: tuple[str, Any]) -> Any:
    prepared = _Prepared()
    prepared.prepare_headers(dict(headers))
    return prepared.headers


@functools.lru_cache(maxsize=256)
def _prepared_url(url: str) -> str:
    prepared = _Prepared()
    prepared.prepare_url(url, {})
    return str(prepared.url)

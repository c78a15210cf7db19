"""Preparing a request as requests does, without the work for what most requests leave out.

requests merges parameters, cookies and headers even if there are none, and
parses the same URL again for each request: a third of its work for a GET.
"""

from __future__ import annotations

import functools
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any

import requests
import requests.sessions
from requests.cookies import RequestsCookieJar
from requests.sessions import merge_hooks
from requests.structures import CaseInsensitiveDict

from .environment import no_password_file
from .sending import copy_of

__all__ = ["no_netrc", "prepare"]

_Session, _Prepared = requests.Session, requests.PreparedRequest
_BY_SESSION, _BY_REQUEST = _Session.prepare_request, _Prepared.prepare
_NETRC_AUTH = requests.sessions.get_netrc_auth
_POLICY = DefaultCookiePolicy()  # of the jars inside prepared requests, whose policy nothing changes


def no_netrc() -> bool:
    """Return whether requests would certainly find no ``.netrc``."""
    return requests.sessions.get_netrc_auth is _NETRC_AUTH and no_password_file()


def prepare(
    session: requests.Session, request: requests.Request, url: Any, ask_netrc: bool
) -> requests.PreparedRequest | None:
    """Do what ``requests.Session.prepare_request`` does, for this URL instead of that of the request.

    Args:
        session, request: As for requests.
        url: The URL.
        ask_netrc: Whether to look for credentials in the user's ``.netrc``, if there are no others.

    Returns:
        The prepared request; ``None`` if it has parameters, cookies or
        anything unusual, and requests has to prepare it.
    """
    headers, cookies = session.headers, session.cookies
    if (
        request.params or session.params or request.cookies or not isinstance(cookies, CookieJar)
        or (getattr(cookies, "_cookies", True) and len(cookies))
        or not isinstance(url, str) or request.method is None
        or type(headers) is not CaseInsensitiveDict or type(request.headers) is not dict
        or _Session.prepare_request is not _BY_SESSION or _Prepared.prepare is not _BY_REQUEST  # replaced by a tool
    ):  # fmt: skip
        return None
    auth = request.auth
    if ask_netrc and not auth and not session.auth:
        auth = requests.sessions.get_netrc_auth(url)
    prepared = _Prepared()
    prepared.prepare_method(request.method.upper())
    if "?" in url or "@" in url:  # often another one each time, and there may be secrets in it
        prepared.prepare_url(url, {})
    else:
        prepared.url = _prepared_url(url)
    if request.headers:
        headers = CaseInsensitiveDict(headers.items())
        headers.update(request.headers)
        _prepare_headers(prepared, headers)
    else:  # the pool's own, usually
        try:
            prepared.headers = copy_of(_prepared_headers(*vars(headers)["_store"].values()))
        except TypeError:  # a value cannot be hashed, and is wrong
            prepared.prepare_headers(headers)
    vars(prepared)["_cookies"] = RequestsCookieJar(_POLICY)  # there is nothing to prepare
    data = request.data
    if prepared.method != "GET" or type(data) is not list or data or request.files or request.json is not None:
        prepared.prepare_body(data, request.files, request.json)
    auth = session.auth if auth is None else auth
    if auth or "@" in url:  # else there is nothing to prepare
        prepared.prepare_auth(auth, url)
    if not prepared.hooks == request.hooks == session.hooks:  # those of a new request: none
        prepared.prepare_hooks(merge_hooks(request.hooks, session.hooks))  # type: ignore[no-untyped-call]
    return prepared


def _prepare_headers(prepared: requests.PreparedRequest, headers: Any) -> None:
    """Set headers without those whose value is ``None``, which removes a header."""
    for name in [name for name, value in headers.items() if value is None]:
        del headers[name]
    prepared.prepare_headers(headers)


@functools.lru_cache(maxsize=64)
def _prepared_headers(*headers: tuple[str, Any]) -> Any:
    prepared = _Prepared()
    _prepare_headers(prepared, dict(headers))
    return prepared.headers


@functools.lru_cache(maxsize=256)
def _prepared_url(url: str) -> str:
    prepared = _Prepared()
    prepared.prepare_url(url, {})
    return str(prepared.url)

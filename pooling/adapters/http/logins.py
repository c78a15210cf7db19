"""Logins that authenticate a connection: NTLM and Negotiate.

After such a login the server attributes every request on that connection to
its user. So the connection is not reused for other requests. The login takes
two or three requests, all of which have to use the same connection.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from requests.structures import CaseInsensitiveDict

__all__ = ["begins_login", "is_challenge", "is_remembered"]

_CREDENTIALS = ("Authorization", "Proxy-Authorization")
_STORED = frozenset(name.lower() for name in _CREDENTIALS)  # as requests stores them
_SCHEMES = frozenset(("ntlm", "negotiate", "nego2", "kerberos"))


def begins_login(headers: Mapping[str, Any] | None) -> bool:
    """Whether a request's headers authenticate its connection, or continue such a login."""
    if not headers:
        return False
    if type(headers) is CaseInsensitiveDict and vars(headers)["_store"].keys().isdisjoint(_STORED):
        return False  # for less than `get`, which raises an error inside
    return any(_scheme(headers.get(name)) for name in _CREDENTIALS)


def is_challenge(response: Any) -> bool:
    """Whether an answer asks for another message of the login on the same connection."""
    name = {401: "WWW-Authenticate", 407: "Proxy-Authenticate"}.get(response.status)
    if name is None:
        return False
    return any(_scheme(value) and len(value.split(None, 1)) > 1 for value in response.headers.getlist(name))


def is_remembered(response: Any) -> bool:
    """Whether the server says that the connection stays authenticated (as IIS does)."""
    headers = response.headers
    return "Persistent-Auth" in headers and headers["Persistent-Auth"].strip().lower() == "true"


def _scheme(value: Any) -> bool:
    if not value:
        return False
    text = value.decode("latin-1") if isinstance(value, bytes) else str(value)
    return text.lstrip().partition(" ")[0].lower() in _SCHEMES

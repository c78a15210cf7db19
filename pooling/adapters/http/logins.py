"""Logins that a server remembers with the connection: NTLM and Negotiate.

After such a login each request on that connection is its user's. So the
connection serves nobody else, and while the login goes on (it takes two or
three requests) these go over the same one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["begins_login", "is_challenge", "is_remembered"]

_SCHEMES = frozenset(("ntlm", "negotiate", "nego2", "kerberos"))


def begins_login(headers: Mapping[str, Any] | None) -> bool:
    """Whether a request's headers log in its connection, or go on doing so."""
    if not headers:
        return False
    return any(_scheme(headers.get(name)) for name in ("Authorization", "Proxy-Authorization"))


def is_challenge(response: Any) -> bool:
    """Whether an answer to a login expects another message on the same connection."""
    name = {401: "WWW-Authenticate", 407: "Proxy-Authenticate"}.get(response.status)
    if name is None:
        return False
    return any(_scheme(value) and len(value.split(None, 1)) > 1 for value in response.headers.getlist(name))


def is_remembered(response: Any) -> bool:
    """Whether a server says that it remembers the login (as IIS does)."""
    value: str = response.headers.get("Persistent-Auth", "")
    return value.strip().lower() == "true"


def _scheme(value: Any) -> bool:
    if not value:
        return False
    text = value.decode("latin-1") if isinstance(value, bytes) else str(value)
    return text.lstrip().partition(" ")[0].lower() in _SCHEMES

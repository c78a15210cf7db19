"""The environment, as requests reads it for each request: usually there is nothing to find.

``os.environ.get`` encodes the name and raises an error inside: eleven of them
are 5 % of the processor time of a GET. So all names are looked up at once, by
the dictionary below ``os.environ``. Where there is none, each name is looked up.
"""

from __future__ import annotations

import os
import sys
from typing import Any

__all__ = ["certificates", "no_password_file", "proxies_set"]

_SYSTEM_PROXIES = sys.platform in ("darwin", "win32")  # the system has proxies, beside those of the environment
_PROXIES = [name + "_proxy" for name in ("http", "https", "all")]
_PROXIES += [name.upper() for name in _PROXIES]
_CERTIFICATES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
if os.name == "posix":
    _ENCODED_PROXIES = frozenset(map(os.fsencode, _PROXIES))
    _ENCODED_CERTIFICATES = frozenset(map(os.fsencode, _CERTIFICATES))
    _NETRC, _HOME = b"NETRC", b"HOME"


def _stored() -> dict[Any, Any] | None:
    """Return the dictionary of encoded variables; ``None`` if it is unknown."""
    found = getattr(os.environ, "_data", None) if os.name == "posix" else None
    return found if type(found) is dict else None


def proxies_set() -> bool:
    """Return whether the environment or the system may set a proxy."""
    if _SYSTEM_PROXIES:
        return True
    stored = _stored()
    if stored is not None and stored.keys().isdisjoint(_ENCODED_PROXIES):
        return False
    return any(map(os.environ.get, _PROXIES))


def certificates() -> str | None:
    """Return the file of trusted certificates that the environment sets, if any."""
    stored = _stored()
    if stored is not None and stored.keys().isdisjoint(_ENCODED_CERTIFICATES):
        return None
    return next(filter(None, map(os.environ.get, _CERTIFICATES)), None)


def no_password_file() -> bool:
    """Return whether there is certainly no ``.netrc``; asks the file system each time."""
    stored = _stored()
    if stored is None or _NETRC in stored:
        return False
    home = stored.get(_HOME)
    if not home:
        return False
    home = home.rstrip(b"/")
    return not (os.access(home + b"/.netrc", os.F_OK) or os.access(home + b"/_netrc", os.F_OK))  # as requests.utils

"""Checks of the arguments of an `HTTPPool`, and its URLs."""

from __future__ import annotations

import os
import re
import ssl
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

import requests
from requests import exceptions
from urllib3.util import Retry

from .tls import check_own, is_context

__all__ = [
    "checked_base", "checked_number", "checked_url", "checked_verify", "joined", "public", "retries", "shown",
    "without_secrets",
]  # fmt: skip

_QUERY = re.compile(r"\?[^\s'\"<>)]+")
_CONTROL = re.compile("[\\x00-\\x1f\\x7f-\\x9f]")


def retries(retry: Retry | int | None) -> Retry:
    """Return the retry policy for an argument of `HTTPPool`."""
    if isinstance(retry, Retry):
        return retry
    if not retry:
        return Retry(0, read=False)  # as in requests
    return Retry(
        checked_number("retry", retry), backoff_factor=0.1, backoff_max=10, backoff_jitter=0.1,
        status_forcelist=(429, 502, 503, 504), raise_on_status=False,
    )  # fmt: skip


def checked_number(name: str, value: Any) -> int:
    """Return a whole number above 0, or raise."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be a whole number, not {shown(value)}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, not {value!r}")
    return value


def checked_url(name: str, value: Any) -> str:
    """Return a URL, or ``""`` for ``None``. No error shows it, because it may contain a password."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a string, not {shown(value)}")
    if not value.lower().startswith(("http://", "https://")):
        raise ValueError(f"{name} must begin with http:// or https://")
    try:
        requests.PreparedRequest().prepare_url(value, None)
        parts = urlsplit(value)
        usable = bool(parts.hostname) and parts.port != 0 and not re.search(r"\s", parts.netloc)
    except ValueError:  # also requests' InvalidURL, whose message shows the URL
        usable = False
    if not usable:
        raise ValueError(f"{name} must name a host that requests accepts, and a port only from 1 to 65535")
    return value


def checked_base(value: Any, name: str = "base_url") -> str:
    """Return a ``base_url`` without a trailing slash."""
    url = checked_url(name, value)
    if "?" in url or "#" in url:
        raise ValueError(f"{name} must have no query and no fragment: paths are appended to it")
    return url.rstrip("/")


def joined(base: str, path: str) -> str:
    """Return the URL of a path below a base. The path begins with ``/`` and may be untrusted.

    It cannot name another host, and cannot leave the path of the base: dot
    segments do not go above it.

    Raises:
        requests.exceptions.InvalidURL: A segment has ``..`` beside a semicolon,
            an escaped slash or a backslash, which some servers read as ``/../``.
    """
    if not urlsplit(base).path.strip("/"):
        return base + path  # it has no path to leave
    path, mark, rest = _split(path)
    segments: list[str] = []
    for segment in path.split("/")[1:]:
        plain = unquote(segment)
        directory = plain in (".", "..")
        if plain == "..":
            segments = segments[:-1]
        elif any(part.partition(";")[0] == ".." for part in plain.replace("\\", "/").split("/")):
            raise exceptions.InvalidURL(
                "a path below base_url must not have .. beside a semicolon, an escaped slash or a backslash"
            )
        elif plain != ".":
            segments.append(segment)
    if directory:
        segments.append("")
    return "/".join((base, *segments)) + mark + rest


def _split(path: str) -> tuple[str, str, str]:
    """Split a path from its query or fragment."""
    for index, letter in enumerate(path):
        if letter in "?#":
            return path[:index], letter, path[index + 1 :]
    return path, "", ""


def shown(value: Any) -> str:
    """Return how an error shows a wrong value: a number as it is, anything else by its type."""
    if value is None or isinstance(value, (bool, int, float)):
        return repr(value)
    return f"a {type(value).__name__}"


def public(url: str) -> str:
    """Return a URL without the parts that may be secret: user, password, query, fragment."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def without_secrets(text: str, url: str) -> str:
    """Return the text of an error without secrets (user, password, any query) and control characters."""
    user = urlsplit(url).netloc.rpartition("@")[0]
    password = user.partition(":")[2]
    for secret in (user, password, unquote(password)):
        if secret:
            text = text.replace(secret, "***")
    return _CONTROL.sub(lambda found: repr(found[0])[1:-1], _QUERY.sub("?***", text))


def checked_verify(verify: Any, context: Any, cert: Any) -> bool | str | ssl.SSLContext:
    """Return what to verify servers with: ``verify``, or ``ssl_context`` if it is given."""
    if context is not None:
        if not is_context(context):
            raise TypeError(f"ssl_context must be an ssl.SSLContext, not of {type(context).__name__}")
        if verify is not True:
            raise ValueError("verify and ssl_context exclude each other: give one of them")
        verify = context
    check_own(verify, cert)
    if isinstance(verify, bool) or is_context(verify):
        return verify  # type: ignore[no-any-return]
    if not isinstance(verify, (str, os.PathLike)):
        raise TypeError(f"verify must be a bool, a path or an ssl.SSLContext, not of {type(verify).__name__}")
    return str(verify)

"""``sqlite://`` URLs."""

from __future__ import annotations

import os
from typing import Any
from urllib.parse import parse_qsl, unquote_to_bytes, urlencode

from ..._masking import shown, suspicious
from ...settings import OTHER_SCHEMES, truth

__all__ = ["parse_url"]

_PARAMETERS: dict[str, type] = {
    "timeout": float, "readers": int, "writer": int, "statement_timeout": float, "optimize": bool,
    "detect_types": int, "cached_statements": int, "uri": bool, "isolation_level": str, "autocommit": bool,
}  # fmt: skip
_URI_PARAMETERS = {"mode", "cache", "immutable", "nolock", "psow", "vfs", "modeof"}  # SQLite's own


def parse_url(url: str) -> tuple[str, dict[str, Any]]:
    """Return the path and the arguments of `SQLitePool` that a URL contains.

    Raises:
        ValueError: It has another scheme, a host or an unknown parameter, or a
            value that does not parse.
    """
    scheme, separator, rest = url.partition("://")
    if not separator or OTHER_SCHEMES.get(scheme.lower(), scheme.lower()) != "sqlite":
        raise ValueError("url must begin with sqlite://; other schemes are for pooling.from_url")
    location, _, query = rest.partition("?")
    host, _, path = location.partition("/")
    if host:
        if suspicious(host):
            raise ValueError("a host is not supported: a relative path has three slashes, an absolute one four")
        raise ValueError(f"a host ({host!r}) is not supported; use sqlite:///{host} for a relative path")
    if "@" in query:  # probably an address with a password, of another kind of database
        raise ValueError("the path and the parameters must be percent-encoded, ? as %3F and @ as %40")
    path, pairs = _split_query(os.fsdecode(unquote_to_bytes(path)) or ":memory:", query)
    arguments: dict[str, Any] = {}
    for key, text in pairs:
        arguments.setdefault(key, _parse(key, text))
    return path, arguments


def _split_query(path: str, query: str) -> tuple[str, list[tuple[str, str]]]:
    """Return the path, with SQLite's own parameters if it is a ``file:`` URI, and the other parameters."""
    pairs = parse_qsl(query, keep_blank_values=True)
    if not path.startswith("file:"):
        return path, pairs
    uri_query = urlencode([(key, text) for key, text in pairs if key in _URI_PARAMETERS])
    mark = "&" if "?" in path else "?"
    return path + (mark + uri_query if uri_query else ""), [pair for pair in pairs if pair[0] not in _URI_PARAMETERS]


def _parse(key: str, text: str) -> object:
    if key not in _PARAMETERS:
        raise ValueError(f"unknown parameter {shown(key)}")
    kind = _PARAMETERS[key]
    if kind is str:
        return None if text.lower() == "none" else text
    if key == "autocommit" and text.upper() == "LEGACY":
        return None
    try:
        return truth(text) if kind is bool else kind(text)
    except ValueError:
        noun = {float: "a number of seconds", int: "a whole number", bool: "true or false"}[kind]
        raise ValueError(f"{key} must be {noun}, not {shown(text)}") from None

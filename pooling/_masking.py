"""What may be shown of a text that may hold a secret (P12): the one place that decides it.

An address that can be read is shown without password and tokens. One that
cannot be read may have its password anywhere, and is not shown at all.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.parse import unquote

__all__ = ["SECRETS", "is_address", "is_secret", "masked", "shown", "slip", "suspicious", "without_secrets"]

SECRETS = ("pass", "secret", "token", "key", "pwd", "credential")
"""A parameter with one of these in its name is a secret."""

_HIDDEN = "***"
_DATABASE = re.compile(r"(?i)(?:jdbc:)?(?:postgres|postgis|mysql|mariadb)")
_SCHEME = re.compile(r"(?:jdbc:)?[A-Za-z][A-Za-z0-9+.-]*")
# A password may hold what should have been escaped, and some drivers take it: it goes on to the last @ of all;
# on the web, where a query often has one, to the last @ before what looks like a query. Too much is hidden, if any.
_USER = re.compile(r"(?s)([^:@/?#]*)(:?)(.*)@")
_WEB_PASSWORD = re.compile(r"(?s)([^:@/?#]*):(?:.*@(?=[^@?]*\?[\w.-]+=)|.*@)")
_WEB_USER = re.compile(r"(?s)(?![^@/]*\?[\w.-]+=)[^/]*@")  # may be a token, without a password
_HOSTS = re.compile(r"(?:(?:\[[^\]]*\]|[^:,]*)(?::\d*)?(?:,|\Z))*")
_NAMES = "|".join(SECRETS)
_PAIR = re.compile(rf"(?i)[\w.%-]*(?:{_NAMES})[\w.%-]*(?:\s*=|['\"]\s*:)")  # or an item of JSON
# In prose: a name and its value as in key=value texts and URLs, or as in a mapping's repr or JSON.
_QUOTED = r"""'(?:[^'\\]|\\.)*'?|"(?:[^"\\]|\\.)*"?"""
_PAIR_IN_TEXT = re.compile(rf"(?is)([\w.%-]*(?:{_NAMES})[\w.%-]*\s*=\s*)({_QUOTED}|[^\s&]+)")
_ITEM_IN_TEXT = re.compile(rf"(?is)((['\"])[\w.-]*(?:{_NAMES})[\w.-]*\2\s*:\s*)b?({_QUOTED}|[^\s,}}]+)")
_ADDRESS_IN_TEXT = re.compile(r"^(\W*[A-Za-z][A-Za-z0-9+.:-]*:/{1,3})([^:/@]*)")


def is_secret(name: str) -> bool:
    """Whether a parameter of this name is a secret."""
    return any(word in unquote(name).lower() for word in SECRETS)


def suspicious(text: str) -> bool:
    """Whether a text that is no URL may be an address with a password in it."""
    if text.startswith(("file:", "sqlite:", ":memory:")):
        text = text.partition(":")[2]
    half = re.match(r"(?s)\s*[\w+.-]+\s*:\S*[:/]", text)  # of a URL: it may have lost its slashes, or its host
    return "@" in text or half is not None or _PAIR.search(text) is not None


def is_address(text: str) -> bool:
    """Whether a text that should be the name of a file is an address, perhaps one with a password in it."""
    if text.startswith(("file:", ":memory:")):
        return False
    return "://" in text or _PAIR.search(text) is not None or re.match(r"(?s)[^/]*:.*@", text) is not None


def masked(address: str) -> str:
    """Return an address as it may be shown: without password or token, and without secret parameters."""
    scheme, separator, rest = address.partition("://")
    if not separator or not _SCHEME.fullmatch(scheme):
        return _HIDDEN if suspicious(address) else address
    web = scheme.lower() in ("http", "https")
    user, host = _split_user(rest, web)
    if not _DATABASE.match(scheme) and user:  # elsewhere a user may be a token, or the scheme a user
        user = f"{_HIDDEN}@"
    authority = re.match(r"[^/?#]*", host)
    if authority is not None and not _HOSTS.fullmatch(authority[0]):  # a password where a port should be
        host = f"{authority[0].partition(':')[0]}:{_HIDDEN}"
    return f"{scheme}://{user}{_without_parameters(host, web)}"


def _split_user(rest: str, web: bool) -> tuple[str, str]:
    """Return the user as it may be shown, with its ``@``, and what follows."""
    if web:
        found = _WEB_PASSWORD.match(rest) or _WEB_USER.match(rest)
        return (f"{_HIDDEN}@", rest[found.end() :]) if found else ("", rest)
    found = _USER.match(rest)
    if found is None:
        return "", rest
    name, colon, password = found.groups()
    if "%3a" in name.lower():  # the colon, too, was encoded
        return f"{_HIDDEN}@", rest[found.end() :]
    return f"{name}{colon}{_HIDDEN}@" if colon else f"{_HIDDEN if password else name}@", rest[found.end() :]


def _without_parameters(text: str, web: bool) -> str:
    """Hide the values of secret parameters, wherever in the address they are."""
    text = re.sub(r"\s*=\s*", "=", text)
    parts = re.split(r"([?&;#\s])" if web else r"([?&;\s])", text)
    hiding = False
    for index in range(0, len(parts), 2):
        name, separator, value = parts[index].partition("=")
        if separator:
            hiding = is_secret(name) or _PAIR.search(value) is not None or (not web and suspicious(value))
            if hiding:
                parts[index] = parts[index].partition("=")[0] + "=" + _HIDDEN
        elif hiding and parts[index - 1] != "#":  # what should have been escaped
            parts[index] = _HIDDEN
    return "".join(parts)


def shown(value: object) -> str:
    """Return a value's ``repr`` for a message, in which something else may be where a number or a name should be."""
    return repr(masked(value)) if isinstance(value, str) else without_secrets(repr(value))


def without_secrets(text: str) -> str:
    """Return what a driver or a server says, without the secrets of addresses that it quotes."""
    if ":" in text or "=" in text:
        text = _ITEM_IN_TEXT.sub(rf"\1{_HIDDEN}", _PAIR_IN_TEXT.sub(rf"\1{_HIDDEN}", text))
    if "@" in text:
        text = re.sub(r"\S*@\S*", lambda found: _without_user(found[0]), text)
    return text


def _without_user(token: str) -> str:
    """Return a word with an ``@`` in it, a user's name shown and nothing else of what stands before it."""
    before, _, after = token.rpartition("@")
    address = _ADDRESS_IN_TEXT.match(before)
    if address is not None:
        prefix, user = address.groups()
        rest = before[address.end() :]
        if not rest and not prefix.lower().lstrip("'\"(<[").startswith("http"):
            return token  # a user alone
        kept = "" if prefix.lower().lstrip("'\"(<[").startswith("http") else user + ":" * rest.startswith(":")
        return f"{prefix}{kept}{_HIDDEN}@{after}"
    if ":" in before:
        return f"{_HIDDEN}@{after}"
    quote = before[:1] if before[:1] in "'\"" else ""
    if quote and quote not in before[1:]:  # a "host name", for example
        return f"{quote}{_HIDDEN}@{after}"
    return token


def slip(parameters: Mapping[str, object], *, url: bool) -> str | None:
    """Say which of libpq's parameters holds what must be a piece of a password; ``None`` if none does.

    libpq takes a URL apart at its first ``@``, or at a slash before it, and would
    quote what it then takes for a host, a port or a database.

    Args:
        parameters: As libpq reads them.
        url: Whether they come from a URL.
    """
    host, port, dbname = (str(parameters.get(name) or "") for name in ("host", "port", "dbname"))
    if any("@" in one[1:] for one in host.split(",")):  # a socket may begin with it
        return "the host has an @ in it" + _ENCODE * url
    if url and not re.fullmatch(r"[\d,]*", port):
        return "the port is not a number" + _ENCODE
    if (url and "@" in dbname) or "://" in dbname or _PAIR.search(dbname):
        return "dbname must be a name, and looks like an address" + _ENCODE * url
    return None


_ENCODE = "; user and password must be percent-encoded, @ as %40 and / as %2F"

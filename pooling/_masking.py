"""Masks secrets in everything that is shown (P12).

An address that can be parsed is shown without password and tokens. One that
cannot be parsed may have its password anywhere, and is not shown at all.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.parse import SplitResult, unquote, urlsplit

__all__ = ["SECRETS", "is_address", "is_secret", "masked", "shown", "slip", "split", "suspicious", "without_secrets"]

SECRETS = ("pass", "secret", "token", "key", "pwd", "credential")
"""A parameter whose name contains one of these is a secret."""

_HIDDEN = "***"
_DATABASE = re.compile(r"(?i)(?:jdbc:)?(?:postgres|postgis|mysql|mariadb)")
_SCHEME = re.compile(r"(?:jdbc:)?[A-Za-z][A-Za-z0-9+.-]*")
# A password may contain characters that should have been escaped, and some drivers accept them: it extends to the
# last @. In a web address, whose query often has an @, it extends to the last @ before what looks like a query.
# In doubt too much is hidden.
_USER = re.compile(r"(?s)([^:@/?#]*)(:?)(.*)@")
_WEB_PASSWORD = re.compile(r"(?s)([^:@/?#]*):(?:.*@(?=[^@?]*\?[\w.-]+=)|.*@)")
_WEB_USER = re.compile(r"(?s)(?![^@/]*\?[\w.-]+=)[^/]*@")  # may be a token, without a password
_HOSTS = re.compile(r"(?:(?:\[[^\]]*\]|[^:,]*)(?::\d*)?(?:,|\Z))*")
_NAMES = "|".join(SECRETS)
_PAIR = re.compile(rf"(?i)[\w.%-]*(?:{_NAMES})[\w.%-]*(?:\s*=|['\"]\s*:)")  # or a JSON item
# Within other text: name and value as in key=value strings and URLs, or as in a mapping's repr or JSON.
_QUOTED = r"""'(?:[^'\\]|\\.)*'?|"(?:[^"\\]|\\.)*"?"""
_PAIR_IN_TEXT = re.compile(rf"(?is)([\w.%-]*(?:{_NAMES})[\w.%-]*\s*=\s*)({_QUOTED}|[^\s&]+)")
_ITEM_IN_TEXT = re.compile(rf"(?is)((['\"])[\w.-]*(?:{_NAMES})[\w.-]*\2\s*:\s*)b?({_QUOTED}|[^\s,}}]+)")
_ADDRESS_IN_TEXT = re.compile(r"^(\W*[A-Za-z][A-Za-z0-9+.:-]*:/{1,3})([^:/@]*)")


def is_secret(name: str) -> bool:
    """Whether a parameter of this name is a secret."""
    return any(word in unquote(name).lower() for word in SECRETS)


def suspicious(text: str) -> bool:
    """Whether a string that is not a URL may be an address with a password."""
    if text.startswith(("file:", "sqlite:", ":memory:")):
        text = text.partition(":")[2]
    half = re.match(r"(?s)\s*[\w+.-]+\s*:\S*[:/]", text)  # a URL without its slashes or its host
    return "@" in text or half is not None or _PAIR.search(text) is not None


def is_address(text: str) -> bool:
    """Whether a string that should be a file name is an address, perhaps with a password."""
    if text.startswith(("file:", ":memory:")):
        return False
    return "://" in text or _PAIR.search(text) is not None or re.match(r"(?s)[^/]*:.*@", text) is not None


def masked(address: str) -> str:
    """Return an address for display: without password, token and secret parameters."""
    scheme, separator, rest = address.partition("://")
    if not separator or not _SCHEME.fullmatch(scheme):
        return _HIDDEN if suspicious(address) else address
    web = scheme.lower() in ("http", "https")
    user, host = _split_user(rest, web)
    if not _DATABASE.match(scheme) and user:  # outside databases a user may be a token, or the scheme a user
        user = f"{_HIDDEN}@"
    authority = re.match(r"[^/?#]*", host)
    if authority is not None and not _HOSTS.fullmatch(authority[0]):  # a password in place of a port
        host = f"{authority[0].partition(':')[0]}:{_HIDDEN}"
    return f"{scheme}://{user}{_without_parameters(host, web)}"


def _split_user(rest: str, web: bool) -> tuple[str, str]:
    """Return the user for display, with its ``@``, and the rest."""
    if web:
        found = _WEB_PASSWORD.match(rest) or _WEB_USER.match(rest)
        return (f"{_HIDDEN}@", rest[found.end() :]) if found else ("", rest)
    found = _USER.match(rest)
    if found is None:
        return "", rest
    name, colon, password = found.groups()
    if "%3a" in name.lower():  # the colon was encoded, too
        return f"{_HIDDEN}@", rest[found.end() :]
    return f"{name}{colon}{_HIDDEN}@" if colon else f"{_HIDDEN if password else name}@", rest[found.end() :]


def _without_parameters(text: str, web: bool) -> str:
    """Hide the values of secret parameters anywhere in the address."""
    text = re.sub(r"\s*=\s*", "=", text)
    parts = re.split(r"([?&;#\s])" if web else r"([?&;\s])", text)
    hiding = False
    for index in range(0, len(parts), 2):
        name, separator, value = parts[index].partition("=")
        if separator:
            plain = unquote(value)
            hiding = is_secret(name) or _PAIR.search(plain) is not None or (not web and suspicious(plain))
            if hiding:
                parts[index] = parts[index].partition("=")[0] + "=" + _HIDDEN
        elif hiding and parts[index - 1] != "#":  # the rest of a secret that should have been escaped
            parts[index] = _HIDDEN
    return "".join(parts)


def shown(value: object) -> str:
    """Return a value's ``repr`` for a message, masked in case it is an address or contains a secret."""
    return repr(masked(value)) if isinstance(value, str) else without_secrets(repr(value))


def without_secrets(text: str) -> str:
    """Return a message of a driver or server without the secrets of addresses that it quotes."""
    if ":" in text or "=" in text:
        text = _ITEM_IN_TEXT.sub(rf"\1{_HIDDEN}", _PAIR_IN_TEXT.sub(rf"\1{_HIDDEN}", text))
    if "@" in text:
        text = re.sub(r"\S*@\S*", lambda found: _without_user(found[0]), text)
    return text


def _without_user(token: str) -> str:
    """Return a word that contains an ``@``; of what precedes it, only a user name is kept."""
    before, _, after = token.rpartition("@")
    address = _ADDRESS_IN_TEXT.match(before)
    if address is not None:
        prefix, user = address.groups()
        rest = before[address.end() :]
        if not rest and not prefix.lower().lstrip("'\"(<[").startswith("http"):
            return token  # only a user
        kept = "" if prefix.lower().lstrip("'\"(<[").startswith("http") else user + ":" * rest.startswith(":")
        return f"{prefix}{kept}{_HIDDEN}@{after}"
    if ":" in before or "@" in before:
        return f"{_HIDDEN}@{after}"
    quote = before[:1] if before[:1] in "'\"" else ""
    if quote and quote not in before[1:]:  # a "host name", for example
        return f"{quote}{_HIDDEN}@{after}"
    return token


def slip(parameters: Mapping[str, object], *, url: bool) -> str | None:
    """Return which of libpq's parameters contains part of a password; ``None`` if none does.

    libpq splits a URL at its first ``@``, or at a slash before it, and would
    quote part of the password as a host, a port or a database.

    Args:
        parameters: As parsed by libpq.
        url: Whether they come from a URL.
    """
    host, port, dbname = (str(parameters.get(name) or "") for name in ("host", "port", "dbname"))
    if any("@" in one[1:] for one in host.split(",")):  # an abstract socket begins with @
        return "the host contains an @" + _ENCODE * url
    if url and not re.fullmatch(r"[\d,]*", port):
        return "the port is not a number" + _ENCODE
    if (url and "@" in dbname) or "://" in dbname or _PAIR.search(dbname):
        return "dbname looks like an address, not a name" + _ENCODE * url
    return None


def split(url: str, *, port: bool = True) -> SplitResult:
    """Split a URL as `urlsplit` does, whose errors may quote part of a password.

    Args:
        url: The URL.
        port: Whether to check the port.

    Raises:
        ValueError: It is malformed; the message omits it.
    """
    try:
        parts = urlsplit(url)
    except ValueError:
        raise ValueError("the host is malformed" + _ENCODE) from None
    try:
        if port:
            parts.port  # noqa: B018
    except ValueError:
        raise ValueError("the port is not a number" + _ENCODE) from None
    return parts


_ENCODE = "; user and password must be percent-encoded, @ as %40 and / as %2F"

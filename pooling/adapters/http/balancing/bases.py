"""The ``base_urls`` and ``zones`` of a pool, and the URLs of requests to the group."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import requests

from ..arguments import checked_base, joined, shown

__all__ = ["Base", "GroupURL", "MOST_SERVERS", "checked_bases", "is_path", "split_origin"]

MOST_SERVERS = 100
"""Maximum number of servers, which bounds the number of metrics."""


_DEFAULT_PORTS = {"http": ":80", "https": ":443"}


@dataclass(frozen=True)
class Base:
    """One of the ``base_urls``, as requests writes it.

    Attributes:
        url: All of it.
        zone: Where it is.
        origin: The URL without its path.
        path: The path, without a slash at the end.
    """

    url: str
    zone: str | None
    origin: str = field(init=False)
    path: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "origin", split_origin(self.url)[0])
        object.__setattr__(self, "path", urlsplit(self.url).path.rstrip("/"))

    def label(self, address: str | None) -> str:
        """Return the name of the server in metrics; ``address`` replaces the host."""
        if address is None:
            return self.url
        parts = urlsplit(self.url)
        host = f"[{address}]" if ":" in address else address
        return f"{parts.scheme}://{host}{'' if parts.port is None else f':{parts.port}'}{self.path}"


class GroupURL(str):
    """The URL of a request that any server of the group may answer; it names the first one.

    Attributes:
        first: The base URL of the first server.
        target: The path and the query.
    """

    first: Base
    target: str
    _known: dict[str, tuple[str, str]]  # by base URL

    def __new__(cls, url: str, first: Base) -> GroupURL:
        made = super().__new__(cls, url)
        made.first, made._known = first, {}
        made.target, _ = made.at(first)
        return made

    @classmethod
    def below(cls, first: Base, path: str) -> GroupURL:
        """Return the URL of a path, see `joined`."""
        return cls(joined(first.url, path), first)

    def __getnewargs__(self) -> tuple[str, Base]:  # type: ignore[override]  # of `__new__`
        return str(self), self.first

    def at(self, base: Base) -> tuple[str, str]:
        """Return what another server is asked for instead: the path and the query, and the URL."""
        known = self._known.get(base.url)
        if known is not None:
            return known
        ours = self.first.path
        target, mark, fragment = self[len(self.first.origin) :].partition("#")
        if base.path != ours and (target == ours or target.startswith((ours + "/", ours + "?"))):
            target = base.path + target[len(ours) :]
        if not target.startswith("/"):
            target = f"/{target}"
        made = self._known[base.url] = target, f"{base.origin}{target}{mark}{fragment}"
        return made


def checked_bases(base_urls: Any, zone: Any, zones: Any) -> list[Base]:
    """Return the servers for the arguments of an `HTTPPool`; none for ``base_urls=None``.

    Raises:
        TypeError, ValueError: An argument has the wrong type or value.
    """
    if base_urls is None:
        if zone is not None or zones is not None:
            raise ValueError("zone and zones need base_urls")
        return []
    if isinstance(base_urls, (str, bytes)) or not isinstance(base_urls, Iterable):
        raise TypeError(f"base_urls must be several URLs, not {shown(base_urls)}")
    given = list(base_urls)
    urls = [_checked(url) for url in given]
    if not 1 <= len(urls) <= MOST_SERVERS:
        raise ValueError(f"base_urls must have from 1 to {MOST_SERVERS} URLs, not {len(urls)}")
    if len({*urls}) < len(urls):
        raise ValueError("base_urls must not name a server twice")
    if len({urlsplit(url).scheme for url in urls}) > 1:
        raise ValueError("base_urls must be all http:// or all https://")
    return [Base(url, one) for url, one in zip(urls, _zones(given, zone, zones))]


def is_path(url: Any) -> bool:
    """Whether it is a path, which goes to the group."""
    return isinstance(url, str) and url.startswith("/")


def split_origin(url: str) -> tuple[str, str]:
    """Return scheme, host and port of a URL, without a default port, and the rest of the URL."""
    scheme, _, rest = url.partition("://")
    netloc = re.split(r"[/?#]", rest, maxsplit=1)[0]
    scheme = scheme.lower()
    return f"{scheme}://{netloc.lower().removesuffix(_DEFAULT_PORTS.get(scheme, ':'))}", rest[len(netloc) :]


def _checked(url: Any) -> str:
    if url is None:
        raise TypeError("base_urls must be strings, not None")
    url = checked_base(url, "base_urls")
    if "@" in urlsplit(url).netloc:
        raise ValueError("base_urls must have no user and password: give them as auth=")
    prepared = requests.PreparedRequest()
    prepared.prepare_url(url, {})
    return "".join(split_origin(str(prepared.url).rstrip("/")))


def _zones(urls: list[str], zone: Any, zones: Any) -> list[str | None]:
    if zone is not None and not (isinstance(zone, str) and zone):
        raise TypeError(f"zone must be a non-empty string, not {shown(zone)}")
    if (zone is None) != (zones is None):
        raise ValueError("zone and zones must be given together: where this process is, and where the servers are")
    if zones is None:
        return [None] * len(urls)
    if isinstance(zones, Mapping):
        unknown = [url for url in zones if url not in urls]
        if unknown:
            raise ValueError(f"zones must have the URLs of base_urls as keys; {len(unknown)} of its keys are not there")
        found = [zones.get(url) for url in urls]
    elif isinstance(zones, (str, bytes)) or not isinstance(zones, Iterable):
        raise TypeError(f"zones must be a mapping of URLs to zones, or as many zones as base_urls, not {shown(zones)}")
    else:
        found = list(zones)
        if len(found) != len(urls):
            raise ValueError(f"zones must have one zone for each of the {len(urls)} base_urls, not {len(found)}")
    for one in found:
        if one is not None and not (isinstance(one, str) and one):
            raise TypeError(f"zones must be non-empty strings, not {shown(one)}")
    return found

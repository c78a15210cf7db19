"""The addresses of names."""

from __future__ import annotations

import ipaddress
import socket
from urllib.parse import urlsplit

__all__ = ["addresses_of"]


def addresses_of(url: str) -> list[str]:
    """Return the addresses of the host of a URL, of the family that the system prefers; none for an address.

    A server often has an address of each family, and would count as two.

    Raises:
        OSError, UnicodeError: It has none, or none can be looked up now.
    """
    parts = urlsplit(url)
    host = parts.hostname or ""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        pass
    else:
        return []
    port = parts.port or {"http": 80, "https": 443}[parts.scheme]
    found = socket.getaddrinfo(host, port, 0, socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for family, *_, address in found if family == found[0][0]))

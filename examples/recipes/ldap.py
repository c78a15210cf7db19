"""LDAP with ldap3: threads look people up over a few connections.

``python examples/recipes/ldap.py ldap://HOST:PORT BIND_DN PASSWORD BASE UID...``
"""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # from a checkout, too
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from ldap3 import BASE, SAFE_SYNC, Connection, Server
from ldap3.core.exceptions import LDAPCommunicationError, LDAPSessionTerminatedByServerError
from ldap3.utils.conv import escape_filter_chars

from pooling import Pool


def ldap_pool(url: str, user: str, password: str, **settings: Any) -> Pool[Connection]:
    """Return a pool of bound connections. ``SAFE_SYNC`` returns each answer instead of storing it in the connection."""
    server = Server(url, connect_timeout=5, get_info="NO_INFO")

    def connect() -> Connection:
        return Connection(server, user, password, auto_bind=True, client_strategy=SAFE_SYNC, receive_timeout=10)

    def validate(connection: Connection) -> bool:
        return bool(connection.search("", "(objectClass=*)", BASE, attributes=["1.1"])[0])

    def reset(connection: Connection) -> None:
        if connection.user != user:  # a borrower has logged in as another user
            connection.rebind(user, password)

    def close(connection: Connection) -> None:
        sock = connection.socket
        try:
            connection.unbind()
        finally:
            sock.close()  # if the connection is lost, `unbind` leaves it open

    def is_broken(connection: Connection, error: BaseException) -> bool:
        return isinstance(error, (OSError, LDAPCommunicationError, LDAPSessionTerminatedByServerError))

    return Pool(
        connect, close=close, validate=validate, reset=reset, is_broken=is_broken, name="ldap", **settings
    )  # fmt: skip


def main() -> None:
    """Print the names of the people with these user ids."""
    url, user, password, base, *uids = sys.argv[1:]
    with ldap_pool(url, user, password, max_size=2) as pool, ThreadPoolExecutor(8) as threads:

        def name_of(uid: str) -> str:
            with pool.acquire() as connection:
                condition = f"(uid={escape_filter_chars(uid)})"
                _, _, found, _ = connection.search(base, condition, attributes=["cn"])
                return found[0]["attributes"]["cn"][0] if found else "nobody"

        for uid, name in zip(uids, threads.map(name_of, uids)):
            print(f"{uid}: {name}")
        print(f"{pool.metrics.snapshot().created} connections")


if __name__ == "__main__":
    main()

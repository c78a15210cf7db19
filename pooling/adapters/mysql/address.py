"""The connection parameters, evaluated for each connection where a callable gives them."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import parse_qsl, unquote

from ..._masking import shown, slip, split
from ...settings import truth, variable
from ..shared.rotation import Answer

__all__ = ["SCHEMES", "Address", "driver_of"]

Conninfo = str | Callable[[], str]
Kwargs = Mapping[str, Any] | Callable[[], Mapping[str, Any]]

_DRIVERS = {"": None, "pymysql": "pymysql", "mysqldb": "mysqlclient", "mysqlconnector": "connector"}
#: The schemes of URLs, each with the driver that it names.
SCHEMES = {
    f"{server}{'+' * bool(suffix)}{suffix}": driver
    for server in ("mysql", "mariadb") for suffix, driver in _DRIVERS.items()
}  # fmt: skip
#: If ``kwargs`` has one of these, ``DATABASE_URL`` is not read: its password may be meant for another server or user.
WHERE = {"host", "port", "database", "db", "user", "unix_socket", "read_default_file", "option_files"}
_WHOLE = {
    "connect_timeout", "connection_timeout", "read_timeout", "write_timeout", "max_allowed_packet", "client_flag",
    "client_flags",
}  # fmt: skip
_TRUTHS = {
    "autocommit", "use_unicode", "local_infile", "allow_local_infile", "compress", "use_pure", "force_ipv6",
    "ssl_disabled", "ssl_verify_cert", "ssl_verify_identity", "raise_on_warnings", "get_warnings", "buffered",
    "consume_results", "binary_prefix", "multi_statements",
}  # fmt: skip
_TEXTS = {
    "charset", "collation", "sql_mode", "init_command", "unix_socket", "bind_address", "program_name",
    "read_default_file", "read_default_group", "ssl_ca", "ssl_cert", "ssl_key", "ssl_key_password", "ssl_cipher",
    "ssl_mode", "auth_plugin", "time_zone", "server_public_key_path",
}  # fmt: skip
_SAME = {"ssl-mode": "ssl_mode", "sslmode": "ssl_mode", "socket": "unix_socket", "ssl-ca": "ssl_ca"}
_MODES = ("DISABLED", "PREFERRED", "REQUIRED", "VERIFY_CA", "VERIFY_IDENTITY")


class Address:
    """The connection parameters of a pool; see `MySQLPool` for the arguments.

    Args:
        conninfo: As for `MySQLPool`.
        kwargs: As for `MySQLPool`.
        complete: Makes the driver's arguments of the parameters.
    """

    def __init__(
        self, conninfo: Conninfo, kwargs: Kwargs | None, complete: Callable[[dict[str, Any]], dict[str, Any]]
    ) -> None:
        if not (isinstance(conninfo, str) or callable(conninfo)):
            raise TypeError(f"conninfo must be a string or a callable, not a {type(conninfo).__name__}")
        if not (kwargs is None or isinstance(kwargs, Mapping) or callable(kwargs)):
            raise TypeError(f"kwargs must be a mapping or a callable, not a {type(kwargs).__name__}")
        self.changes = callable(conninfo) or callable(kwargs)
        self._conninfo, self._kwargs, self._complete = conninfo, kwargs, complete
        self._numbers = itertools.count(1)
        self.asked = 0  # the number of the last call of `ask`
        if not self.changes:
            self.ask()

    def ask(self) -> Answer:
        """Return the parameters of the next connection.

        Raises:
            ValueError, TypeError: They are malformed; the message leaves them out,
                because they may contain a password.
        """
        self.asked = number = next(self._numbers)
        conninfo = self._conninfo() if callable(self._conninfo) else self._conninfo
        kwargs = self._kwargs() if callable(self._kwargs) else self._kwargs
        given = {name: value for name, value in (kwargs or {}).items() if value is not None}
        if not all(isinstance(name, str) and name.isidentifier() for name in given):  # the message must not repeat them
            raise ValueError("kwargs: the names must be those of the driver's arguments")
        source = "conninfo"
        if not conninfo and not _says_where(given):
            source, conninfo = "DATABASE_URL", variable(os.environ, "DATABASE_URL") or ""
        parameters = {**_parsed(conninfo, source), **given}
        digest = hash(frozenset((name, str(value)) for name, value in parameters.items()))
        return Answer(number, digest, self._complete(parameters), "", {})


def driver_of(conninfo: Conninfo, kwargs: Kwargs | None) -> str | None:
    """Return the driver that a URL's scheme names; ``None``: it names none, or the URL is not known yet."""
    if not isinstance(conninfo, str):
        return None
    text = conninfo
    if not text and not (isinstance(kwargs, Mapping) and _says_where(kwargs)):
        text = variable(os.environ, "DATABASE_URL") or ""
    return SCHEMES.get(text.partition("://")[0].lower())


def _says_where(kwargs: Mapping[str, Any]) -> bool:
    return any(kwargs.get(name) is not None for name in WHERE)


def _parsed(conninfo: str, source: str) -> dict[str, Any]:
    """Return the parameters of a URL."""
    if not isinstance(conninfo, str):
        raise TypeError(f"{source} must be a string, not a {type(conninfo).__name__}")
    if not conninfo:
        return {}
    scheme, separator, rest = conninfo.partition("://")
    if not separator or scheme.lower() not in SCHEMES:
        raise ValueError(f"{source} must be a URL that begins with {', '.join(f'{one}://' for one in SCHEMES)}")
    authority, at, tail = rest.rpartition("@")
    if "@" in tail.partition("?")[2] or re.search(r"[/?#]", authority):
        raise ValueError(f"{source}: user and password must be percent-encoded, @ as %40 and / as %2F")
    try:
        parts = split(f"//{rest}", port=False)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None
    if parts.fragment:
        raise ValueError(f"{source}: parameters must be percent-encoded, # as %23")
    place = parts.netloc.rpartition("@")[2]
    host, _, port = place.rpartition(":") if re.search(r":[^\]]*\Z", place) else (place, "", "")
    wrong = slip({"host": host, "port": port, "dbname": parts.path[1:]}, url=True)
    if wrong is None and ("," in host or "/" in parts.path[1:]):
        wrong = "it must have one host" if "," in host else "a database's name has no /, or has it as %2F"
    if wrong is None and port and not 0 < int(port) < 65_536:
        wrong = "the port must be from 1 to 65535"
    if wrong is not None:
        raise ValueError(f"{source}: {wrong}")
    found = {
        "host": host.strip("[]"), "port": int(port) if port else None, "database": unquote(parts.path[1:]),
        "user": unquote(parts.username or ""), "password": unquote(parts.password or ""),
    }  # fmt: skip
    return {name: value for name, value in found.items() if value} | _query(parts.query, source)


def _query(query: str, source: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, text in parse_qsl(query, keep_blank_values=True):
        name = _SAME.get(key, key)
        try:
            if name in _WHOLE:
                found[name] = int(text)
            elif name in _TRUTHS:
                found[name] = truth(text)
            elif name in _TEXTS:
                found[name] = text
            else:
                raise ValueError(f"{source}: unknown parameter {shown(key)}")
        except ValueError as error:
            if "unknown parameter" in str(error):
                raise
            raise ValueError(f"{source}: invalid value: {key}={shown(text)}") from None
        if name == "ssl_mode":
            found[name] = text.upper().replace("-", "_")
            if found[name] not in _MODES:
                raise ValueError(f"{source}: {key} must be one of {', '.join(_MODES)}, not {shown(text)}")
    return found

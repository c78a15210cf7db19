"""The connection parameters, evaluated for each connection where a callable gives them."""

from __future__ import annotations

import itertools
import math
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from ..._masking import slip, without_secrets
from ...settings import OTHER_SCHEMES, variable
from ..shared.rotation import Answer

__all__ = ["KEEPALIVE", "OWN", "Address", "Answer", "program"]

Conninfo = str | Callable[[], str]
Kwargs = Mapping[str, Any] | Callable[[], Mapping[str, Any]]

#: A dead peer is noticed after 10 s while data is unacknowledged (``tcp_user_timeout``, milliseconds, Linux), and
#: after 10 + 3 x 3 s while nothing is sent. The systems' defaults are more than ten minutes, and two hours.
KEEPALIVE = {
    "keepalives_idle": 10, "keepalives_interval": 3, "keepalives_count": 3, "tcp_user_timeout": 10_000,
}  # fmt: skip

#: Arguments of psycopg.connect that are not libpq's.
OWN = {"autocommit", "prepare_threshold", "context", "row_factory", "cursor_factory"}
_ENVIRONMENT = {"connect_timeout": "PGCONNECT_TIMEOUT", "options": "PGOPTIONS"}
#: If ``kwargs`` has one of these, ``DATABASE_URL`` is not read: its password and options may be meant for another
#: server or user.
WHERE = {"host", "hostaddr", "port", "dbname", "service", "servicefile", "user"}


class Address:
    """The connection parameters of a pool; see `PostgresPool` for the arguments.

    Args:
        conninfo: As for `PostgresPool`.
        kwargs: As for `PostgresPool`.
        create_timeout: Seconds for all hosts together; may be changed.
        options: Server settings by name, which the user's ``options`` override.
    """

    def __init__(
        self, conninfo: Conninfo, kwargs: Kwargs | None, create_timeout: float, options: Mapping[str, Any]
    ) -> None:
        if not (isinstance(conninfo, str) or callable(conninfo)):
            raise TypeError(f"conninfo must be a string or a callable, not a {type(conninfo).__name__}")
        if not (kwargs is None or isinstance(kwargs, Mapping) or callable(kwargs)):
            raise TypeError(f"kwargs must be a mapping or a callable, not a {type(kwargs).__name__}")
        self.changes = callable(conninfo) or callable(kwargs)
        self._conninfo, self._kwargs = conninfo, kwargs
        self.create_timeout = create_timeout
        self._defaults: dict[str, Any] = dict(KEEPALIVE)
        self._options = " ".join(f"-c {name}={value}" for name, value in options.items())
        self._numbers = itertools.count(1)
        self.asked = 0  # the number of the last call of `ask`
        if not self.changes:
            self.ask()

    def add_default(self, name: str, value: object) -> None:
        """Set a parameter of libpq that applies where the user does not set it."""
        self._defaults[name] = value

    def ask(self) -> Answer:
        """Return the parameters of the next connection.

        Raises:
            ValueError: They are malformed; the message leaves them out, because
                they may contain a password.
        """
        self.asked = number = next(self._numbers)
        conninfo = self._conninfo() if callable(self._conninfo) else self._conninfo
        kwargs = self._kwargs() if callable(self._kwargs) else self._kwargs
        own = {name: value for name, value in (kwargs or {}).items() if name in OWN}
        given = {name: value for name, value in (kwargs or {}).items() if name not in OWN}
        source = "conninfo"
        if not conninfo and not any(given.get(name) is not None for name in WHERE):
            source, conninfo = "DATABASE_URL", variable(os.environ, "DATABASE_URL") or ""
        conninfo = _normal(conninfo)  # connect() gets the same text that is parsed here
        parameters = _parameters(conninfo, given, source)
        digest = hash(frozenset((name, str(value)) for name, value in parameters.items()))
        return Answer(number, digest, {**self._completed(parameters), **own}, conninfo, dict(kwargs or {}))

    def complete(self, conninfo: str) -> str:
        """Add the defaults to the conninfo that a user's class has made."""
        given = conninfo_to_dict(conninfo)
        completed = self._completed(given)
        if "connect_timeout" not in given:
            completed.pop("connect_timeout", None)  # psycopg has read it already
        return make_conninfo("", **completed)

    def _completed(self, given: dict[str, Any]) -> dict[str, Any]:
        """Add the defaults, which the user's own parameters override."""
        # It applies to each host, and to each address of a host name.
        each = max(2, math.floor(self.create_timeout / (_hosts(given) + 1)))  # libpq takes 1 for 2
        defaults = {
            name: value for name, value in {"connect_timeout": each, **self._defaults}.items()
            if not os.environ.get(_ENVIRONMENT.get(name, ""))
        }  # fmt: skip
        if self._options:
            users = given.get("options") or os.environ.get("PGOPTIONS", "")
            given = {**given, "options": f"{self._options} {users}".rstrip()}
        return {**defaults, **given}


def program() -> str:
    """Return this program's name, of at most 40 bytes: the server takes 63 for an application name."""
    path = getattr(sys, "argv", [""])[0]
    name = os.path.basename(path)
    if name == "__main__.py":  # python -m
        name = os.path.basename(os.path.dirname(path))
    return name.encode("ascii", "replace").decode()[:40] if name not in ("", "-c") else "python"


def _hosts(given: dict[str, Any]) -> int:
    """Return how many hosts libpq may try, one after the other."""
    hosts = given.get("hostaddr") or given.get("host") or os.environ.get("PGHOSTADDR") or os.environ.get("PGHOST")
    return str(hosts or "").count(",") + 1


def _normal(conninfo: str) -> str:
    """Return a URL with the scheme that libpq knows, for the other names of it."""
    scheme, separator, rest = conninfo.partition("://") if isinstance(conninfo, str) else ("", "", "")
    known = OTHER_SCHEMES.get(scheme.lower(), scheme.lower())
    return f"{known}://{rest}" if separator and known == "postgresql" else conninfo


def _parameters(conninfo: str, kwargs: dict[str, Any], source: str = "conninfo") -> dict[str, Any]:
    complaint = None
    try:
        parameters: dict[str, Any] = conninfo_to_dict(conninfo)
    except (psycopg.ProgrammingError, TypeError, AttributeError) as error:
        from .complaint import complaint_of  # here: imported only after a mistake

        complaint = complaint_of(conninfo, error, source)
    if complaint is not None:  # raised outside the handler: libpq's message must not be its context
        raise ValueError(complaint)
    if not all(isinstance(name, str) and name.isidentifier() for name in kwargs):  # the message must not repeat them
        raise ValueError("kwargs: the names must be those of libpq's parameters")
    try:
        make_conninfo("", **kwargs)
    except (psycopg.ProgrammingError, TypeError) as error:
        raise ValueError(f"kwargs: {without_secrets(str(error))}") from None
    for given, label in ((parameters, source), (kwargs, "kwargs")):
        wrong = slip(given, url=given is parameters and "://" in conninfo)
        if wrong is not None:
            raise ValueError(f"{label}: {wrong}")
    return {**parameters, **{name: value for name, value in kwargs.items() if value is not None}}

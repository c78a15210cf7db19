"""What to connect to, and as whom: asked anew for each connection where a callable says it."""

from __future__ import annotations

import itertools
import math
import os
import sys
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from typing import Any, NamedTuple

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from ..._masking import slip, without_secrets
from ...settings import OTHER_SCHEMES

__all__ = ["KEEPALIVE", "OWN", "Address", "Answer", "completing", "program"]

Conninfo = str | Callable[[], str]
Kwargs = Mapping[str, Any] | Callable[[], Mapping[str, Any]]

#: A peer that is silently gone is noticed after this: 10 s with data on the way
#: (``tcp_user_timeout``, milliseconds, Linux), 10 + 3 x 3 s while nothing is sent.
#: The systems' own defaults are two hours and more than ten minutes.
KEEPALIVE = {
    "keepalives_idle": 10, "keepalives_interval": 3, "keepalives_count": 3, "tcp_user_timeout": 10_000,
}  # fmt: skip

#: Arguments of psycopg.connect that are not libpq's.
OWN = {"autocommit", "prepare_threshold", "context", "row_factory", "cursor_factory"}
_ENVIRONMENT = {"connect_timeout": "PGCONNECT_TIMEOUT", "options": "PGOPTIONS"}
#: One of these in ``kwargs`` says where to connect, or as whom: ``DATABASE_URL``, whose password and
#: options are meant for another server or user, is not read then.
WHERE = {"host", "hostaddr", "port", "dbname", "service", "servicefile", "user"}


#: What completes the conninfo of an attempt to connect that is under way, where the class has a connect() of its own.
completing: ContextVar[Callable[[str], str] | None] = ContextVar("completing", default=None)


class Answer(NamedTuple):
    """What one connection is made with."""

    number: int  # of the question
    digest: int  # stands for the answer: two that differ are two
    arguments: dict[str, Any]  # of ``psycopg.connect``
    conninfo: str = ""  # as it was said
    given: Mapping[str, Any] = {}  # likewise, in ``kwargs``

    def without_secrets(self) -> Answer:
        """Return what may be kept."""
        return self._replace(arguments={}, conninfo="", given={})

    def __repr__(self) -> str:  # the arguments hold the password
        return f"<Answer {self.number}>"


class Address:
    """Where and as whom; see `PostgresPool` for the arguments.

    Args:
        create_timeout: Seconds for all hosts together; may be changed.
        options: Server settings by name, for what ``options`` does not say.
    """

    def __init__(
        self, conninfo: Conninfo, kwargs: Kwargs | None, create_timeout: float, options: Mapping[str, Any]
    ) -> None:
        if not (isinstance(conninfo, str) or callable(conninfo)):
            raise TypeError(f"conninfo must be a text or a callable, not a {type(conninfo).__name__}")
        if not (kwargs is None or isinstance(kwargs, Mapping) or callable(kwargs)):
            raise TypeError(f"kwargs must be a mapping or a callable, not a {type(kwargs).__name__}")
        self.changes = callable(conninfo) or callable(kwargs)
        self._conninfo, self._kwargs = conninfo, kwargs
        self.create_timeout = create_timeout
        self._defaults: dict[str, Any] = dict(KEEPALIVE)
        self._options = " ".join(f"-c {name}={value}" for name, value in options.items())
        self._numbers = itertools.count(1)
        self.asked = 0  # the number of the last question
        if not self.changes:
            self.ask()

    def add_default(self, name: str, value: object) -> None:
        """Set a parameter of libpq's for what is said nowhere else."""
        self._defaults[name] = value

    def ask(self) -> Answer:
        """Return what the next connection is to be made with.

        Raises:
            ValueError: It is no address; the message leaves it out, because
                it may hold a password.
        """
        self.asked = number = next(self._numbers)
        conninfo = self._conninfo() if callable(self._conninfo) else self._conninfo
        kwargs = self._kwargs() if callable(self._kwargs) else self._kwargs
        own = {name: value for name, value in (kwargs or {}).items() if name in OWN}
        given = {name: value for name, value in (kwargs or {}).items() if name not in OWN}
        source = "conninfo"
        if not conninfo and not any(given.get(name) is not None for name in WHERE):
            source, conninfo = "DATABASE_URL", os.environ.get("DATABASE_URL", "")
        conninfo = _normal(conninfo)  # what is parsed is what connect() gets
        parameters = _parameters(conninfo, given, source)
        digest = hash(frozenset((name, str(value)) for name, value in parameters.items()))
        return Answer(number, digest, {**self._completed(parameters), **own}, conninfo, dict(kwargs or {}))

    def complete(self, conninfo: str) -> str:
        """Add the defaults to a conninfo that a class of the user's has made of what it was given."""
        given = conninfo_to_dict(conninfo)
        completed = self._completed(given)
        if "connect_timeout" not in given:
            completed.pop("connect_timeout", None)  # psycopg has read it already
        return make_conninfo("", **completed)

    def _completed(self, given: dict[str, Any]) -> dict[str, Any]:
        """Add the defaults. What the user says of the same comes after them, and wins."""
        # It holds for each host, and for each address that the name of one may stand for.
        each = max(2, math.floor(self.create_timeout / (_hosts(given) + 1)))  # less than 2 libpq takes for 2
        defaults = {
            name: value for name, value in {"connect_timeout": each, **self._defaults}.items()
            if not os.environ.get(_ENVIRONMENT.get(name, ""))
        }  # fmt: skip
        if self._options:
            said = given.get("options") or os.environ.get("PGOPTIONS", "")
            given = {**given, "options": f"{self._options} {said}".rstrip()}
        return {**defaults, **given}


def program() -> str:
    """Return what this program is called, short enough that the server's 63 bytes leave room for more."""
    path = getattr(sys, "argv", [""])[0]
    name = os.path.basename(path)
    if name == "__main__.py":  # python -m
        name = os.path.basename(os.path.dirname(path))
    return name.encode("ascii", "replace").decode()[:40] if name not in ("", "-c") else "python"


def _hosts(given: dict[str, Any]) -> int:
    """Return how many hosts there are to try, one after the other."""
    said = given.get("hostaddr") or given.get("host") or os.environ.get("PGHOSTADDR") or os.environ.get("PGHOST")
    return str(said or "").count(",") + 1


def _normal(conninfo: str) -> str:
    """Return a URL with the scheme that libpq knows, whatever it is called elsewhere."""
    scheme, separator, rest = conninfo.partition("://") if isinstance(conninfo, str) else ("", "", "")
    known = OTHER_SCHEMES.get(scheme.lower(), scheme.lower())
    return f"{known}://{rest}" if separator and known == "postgresql" else conninfo


def _parameters(conninfo: str, kwargs: dict[str, Any], source: str = "conninfo") -> dict[str, Any]:
    complaint = None
    try:
        parameters: dict[str, Any] = conninfo_to_dict(conninfo)
    except (psycopg.ProgrammingError, TypeError, AttributeError) as error:
        from .complaint import complaint_of  # here: only a mistake pays for it

        complaint = complaint_of(conninfo, error, source)
    if complaint is not None:  # raised here, so that libpq's own words are not its context
        raise ValueError(complaint)
    if not all(isinstance(name, str) and name.isidentifier() for name in kwargs):  # an address, perhaps
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

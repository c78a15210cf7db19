"""Which kind of target an address is."""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping

from ...config import url_of
from .resource import Target

__all__ = ["VARIABLES", "from_environment", "target_of"]

VARIABLES = ("DATABASE_URL", "REDIS_URL")
"""The environment variables that are read if no target is given."""

_KINDS = {
    "postgresql": "postgres.Postgres", "postgres": "postgres.Postgres",
    "mysql": "mysql.MySQL", "mariadb": "mysql.MySQL",
    "sqlite": "sqlite.SQLite", "redis": "redis.Redis", "rediss": "redis.Redis", "unix": "redis.Redis",
    "http": "http.HTTP", "https": "http.HTTP",
}  # fmt: skip
_PAIRS = re.compile(r"\s*\w+\s*=\s*\S")


def target_of(address: str) -> Target:
    """Return the target at an address.

    Args:
        address: A URL, libpq's ``key=value`` pairs, or the path of a SQLite file.

    Raises:
        ValueError: It is none of these; the message leaves secrets out.
        ImportError: The driver is not installed.
    """
    if "://" not in address and _PAIRS.match(address):
        kind = "postgres.Postgres"
    else:
        address = url_of(address)
        scheme = address.partition(":")[0].partition("+")[0].lower()
        if scheme not in _KINDS:
            raise ValueError(f"the scheme must be one of {', '.join(_KINDS)}, not {scheme!r}")
        kind = _KINDS[scheme]
    module, _, name = kind.partition(".")
    found: Target = getattr(importlib.import_module(f".{module}", __package__), name)(address)
    return found


def from_environment(environ: Mapping[str, str]) -> list[str]:
    """Return the addresses in the environment."""
    return [environ[name] for name in VARIABLES if environ.get(name, "").strip()]

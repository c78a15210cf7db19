"""Which private names of psycopg are used by which module, and whether the installed version has them.

A module that uses some calls `available` once, at import, and takes its plain
way if that returns false. psycopg makes no promise about these names, so
``tests/unit/test_internals.py`` compares them with the installed version.
"""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any, NamedTuple

import psycopg
from psycopg import pq

from ..._fields import fields
from ..._plain import switched_off

__all__ = ["USED", "Internals", "available"]

logger = logging.getLogger("pooling")


class Internals(NamedTuple):
    """The private names that one module uses."""

    module: str
    names: tuple[str, ...]
    missing: tuple[str, ...]

    def __str__(self) -> str:
        return (
            f"psycopg {psycopg.__version__} has no {', '.join(self.missing)}: the plain way is used; "
            f"see pooling/adapters/postgres/{self.module}.py"
        )


USED: dict[str, Internals] = {}


def available(module: str, *names: str) -> bool:
    """Note which names a module uses, and return whether it may use them.

    Args:
        module: The module's name in this package.
        names: Each with its owner, such as ``"Connection._exec_command"``.
    """
    USED[module] = internals = Internals(module, names, tuple(name for name in names if not _exists(name)))
    if internals.missing:
        logger.info("%s", internals, extra=fields("internals", what=module))
    return not (internals.missing or switched_off(module))


def _exists(name: str) -> bool:
    owner, *path = name.split(".")
    found: Any = OWNERS[owner]
    for step in path:
        if not hasattr(found, step):
            return False
        found = getattr(found, step)
    return True


# Attributes that only instances have are looked for in a connection that never connects.
OWNERS: dict[str, Any] = {
    "Connection": psycopg.Connection(SimpleNamespace(status=pq.ConnStatus.BAD)),  # type: ignore[arg-type]
    "Cursor": psycopg.Cursor, "PGconn": pq.PGconn, "psycopg": psycopg,
}  # fmt: skip

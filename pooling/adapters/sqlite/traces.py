"""Which PRAGMAs leave something behind in a connection.

There are some eighty, each SQLite brings others, and not all of them can be
read back. So nothing is set back by guess: a PRAGMA is known to be harmless,
or set back by the pool, or its connection is not lent again.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

__all__ = ["pragma_left", "pragmas_in"]

# Of these an argument only says what to tell or what to do now, or it is kept in the file, as data are.
_HARMLESS = frozenset((
    "table_info", "table_xinfo", "table_list", "index_list", "index_info", "index_xinfo", "foreign_key_list",
    "foreign_key_check", "integrity_check", "quick_check", "optimize", "wal_checkpoint", "incremental_vacuum",
    "user_version", "application_id",
))  # fmt: skip
# Without an argument a PRAGMA sets nothing. What does not look like one (a comment, a
# quoted name, another schema) has no name here, and is taken for the worst.
_PRAGMA = re.compile(r"\bPRAGMA\b(?:\s+(?:main\s*\.\s*)?(\w+)\s*(;|=|\(|$))?", re.I)
_SETS = ("=", "(")


def pragma_left(sql: str, restored: frozenset[str]) -> str | None:
    """Return which PRAGMA in these statements changes its connection for good; ``None`` if none does.

    Args:
        sql: One statement or a script.
        restored: The names of those that the pool sets back.
    """
    for name, then in _PRAGMA.findall(sql):
        if not name or (then in _SETS and name.lower() not in _HARMLESS | restored):
            return f"PRAGMA {name}".strip()  # not its value, which may be a key
    return None


def pragmas_in(statements: Iterable[str]) -> frozenset[str]:
    """Return the names of the PRAGMAs that these statements set."""
    return frozenset(name.lower() for sql in statements for name, then in _PRAGMA.findall(sql) if then in _SETS)

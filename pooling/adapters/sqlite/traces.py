"""Which PRAGMAs change a connection beyond the lease in which they are executed.

There are about eighty, new versions of SQLite add more, and not all of them can
be read back. So the pool does not guess: a PRAGMA is either known to be
harmless, or restored by the pool; otherwise its connection is not reused.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

__all__ = ["pragma_left", "pragmas_in"]

# Their arguments select what to report or to do, or are stored in the file.
_HARMLESS = frozenset((
    "table_info", "table_xinfo", "table_list", "index_list", "index_info", "index_xinfo", "foreign_key_list",
    "foreign_key_check", "integrity_check", "quick_check", "optimize", "wal_checkpoint", "incremental_vacuum",
    "user_version", "application_id",
))  # fmt: skip
# Without an argument a PRAGMA sets nothing. One in an unusual form (a comment, a quoted name,
# another schema) matches without a name, and counts as a change.
_PRAGMA = re.compile(r"\bPRAGMA\b(?:\s+(?:main\s*\.\s*)?(\w+)\s*(;|=|\(|$))?", re.I)
_SETS = ("=", "(")


def pragma_left(sql: str, restored: frozenset[str]) -> str | None:
    """Return the PRAGMA in these statements whose change cannot be undone; ``None`` if there is none.

    Args:
        sql: One statement or a script.
        restored: The names of those that the pool restores.
    """
    for name, then in _PRAGMA.findall(sql):
        if not name or (then in _SETS and name.lower() not in _HARMLESS | restored):
            return f"PRAGMA {name}".strip()  # without its value, which may be a key
    return None


def pragmas_in(statements: Iterable[str]) -> frozenset[str]:
    """Return the names of the PRAGMAs that these statements set."""
    return frozenset(name.lower() for sql in statements for name, then in _PRAGMA.findall(sql) if then in _SETS)

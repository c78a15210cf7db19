"""Which statements leave something behind in a PostgreSQL session, judged by their text."""

from __future__ import annotations

import functools
import re

__all__ = ["leaves_traces"]

# What reads and writes rows, or ends and marks transactions. All else may set something.
_ROWS = re.compile(
    r"[\s(]*(?:SELECT|INSERT|UPDATE|DELETE|MERGE|VALUES|TABLE|WITH|SAVEPOINT|RELEASE|ROLLBACK|COMMIT|BEGIN"
    r"|SET\s+(?:LOCAL|CONSTRAINTS))\b(?!\s+PREPARED)",
    re.I,
)
# What may set something all the same: by a function, one that executes a text, a view that does, a second
# statement, a table of the session's own, or anything at all whose name is spelt in escapes.
_ALL_THE_SAME = re.compile(
    r"set_config|setseed|pg_settings|_advisory_|pg_temp|dblink|_to_xml|ts_stat|\bU&\""
    r"|\bINTO\s+(?:LOCAL\s+|GLOBAL\s+)?TEMP|;.*\S",
    re.I | re.S,
)


@functools.lru_cache(maxsize=2048)
def leaves_traces(query: str) -> bool:
    """Whether what a statement does to its session may outlast its transaction.

    In doubt it does. The price of that is a round trip at the end of a request.
    """
    return _ROWS.match(query) is None or _ALL_THE_SAME.search(query) is not None

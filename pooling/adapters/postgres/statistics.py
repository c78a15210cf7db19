"""How long queries take, which ones are the slowest, and how they fail."""

from __future__ import annotations

import re
from collections.abc import Generator
from contextlib import AbstractContextManager
from typing import Any

from psycopg.sql import Composable

from ..shared import statistics as shared
from ..shared.statistics import LONGEST, pool_stats
from .steps import query_of

__all__ = ["QueryStatistics", "pool_stats", "text_of"]

# Literals, numbers and comments may be secrets: ALTER ROLE ... PASSWORD '...', the number of a card. Comments and
# names are matched so that a quote in one does not begin a literal. The text may be cut: what is not terminated
# extends to its end.
_HIDDEN = re.compile(
    r"""
    (?P<kept> "(?:[^"]|"")*(?:"|\Z) )                       # a name
    | (?P<comment>
        --[^\n]*
        | /\*(?:(?!/\*).)*?\*/
        | /\*.*                                             # one in another: to the end of the text
    )
    | (?<!\w)[eE]'(?:[^'\\]|''|\\(?:.|\Z))*(?:'|\Z)
    | '(?:[^']|'')*(?:'|\Z)
    | (?<![\w$])\$(?P<tag>(?:[^\W\d]\w*)?)\$.*?(?:\$(?P=tag)\$|\Z)
    | (?P<number> (?<![\w$.])\.?\d[\w.]* )
    """,
    re.S | re.X,
)


class QueryStatistics(shared.QueryStatistics):
    """`shared.statistics.QueryStatistics` of psycopg's cursors.

    A query is timed until its answer has arrived; a COPY until it can begin; in
    a pipeline, and by ``stream()``, until it is sent. Only errors until then are
    counted.
    """

    system = "postgresql"
    """The database's name in OpenTelemetry's conventions (``db.system.name``)."""

    def __init__(self) -> None:
        super().__init__(text_of, lambda error: getattr(error, "sqlstate", None))

    def timed(self, generator: Generator[Any, Any, Any]) -> AbstractContextManager[None] | None:
        """Return a context manager that times the query of this generator of psycopg's; ``None`` if it has none."""
        query = query_of(generator)
        return None if query is None else shared.Timer(self, query)


def text_of(query: Any) -> str:
    """Return a statement on one line, without its literals and comments, at most 500 characters."""
    if isinstance(query, Composable):
        query = query.as_string(None)
    text = query.decode("utf-8", "replace") if isinstance(query, bytes) else str(query)
    return " ".join(_HIDDEN.sub(_hidden, text[: 4 * LONGEST]).split())[:LONGEST]


def _hidden(found: re.Match[str]) -> str:
    kind = found.lastgroup if found.lastgroup != "tag" else None
    return found[0] if kind == "kept" else {"comment": " ", "number": "?"}.get(kind or "", "'?'")

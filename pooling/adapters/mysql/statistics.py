"""Texts of queries for the statistics: without literals and comments."""

from __future__ import annotations

import re
from typing import Any

from ..shared.statistics import LONGEST, QueryStatistics
from .failures import code_of

__all__ = ["query_statistics", "text_of"]

# Literals, numbers and comments may be secrets: IDENTIFIED BY '...', the number of a card. What is in double quotes
# is a literal unless ANSI_QUOTES is set, so it is hidden. The text may be cut: what is not terminated extends to its
# end.
_HIDDEN = re.compile(
    r"""
    (?P<kept> `(?:[^`]|``)*(?:`|\Z) )                       # a name
    | (?P<comment>
        --(?=\s|\Z)[^\n]*
        | \#[^\n]*
        | /\*.*?(?:\*/|\Z)
    )
    | '(?:[^'\\]|''|\\(?:.|\Z))*(?:'|\Z)
    | "(?:[^"\\]|""|\\(?:.|\Z))*(?:"|\Z)
    | (?P<number> (?<![\w$.@])\.?\d[\w.]* )
    """,
    re.S | re.X,
)


def query_statistics() -> QueryStatistics:
    """Return empty statistics; errors are counted by their number."""
    return QueryStatistics(text_of, _label, "code")


def _label(error: BaseException) -> str | None:
    code = code_of(error)
    return None if code is None else str(code)


def text_of(query: Any) -> str:
    """Return a statement on one line, without its literals and comments, at most 500 characters."""
    text = bytes(query).decode("utf-8", "replace") if isinstance(query, (bytes, bytearray)) else str(query)
    return " ".join(_HIDDEN.sub(_hidden, text[: 4 * LONGEST]).split())[:LONGEST]


def _hidden(found: re.Match[str]) -> str:
    return found[0] if found.lastgroup == "kept" else {"comment": " ", "number": "?"}.get(found.lastgroup or "", "'?'")

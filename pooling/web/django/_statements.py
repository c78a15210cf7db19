"""Detects statements that change the state of a PostgreSQL session, by their tokens.

Comments separate words like spaces, quoted words are not keywords, and a
semicolon in a string does not end a statement. Source: "Lexical Structure" in
the PostgreSQL manual.
"""

from __future__ import annotations

import functools
import re

__all__ = ["leaves_traces"]

# Statements that read and write rows, or control transactions. All others may change the session.
_ROWS = re.compile(
    r"[\s(]*(?:SELECT|INSERT|UPDATE|DELETE|MERGE|VALUES|TABLE|WITH|SAVEPOINT|RELEASE|ROLLBACK|COMMIT|BEGIN"
    r"|SET\s+(?:LOCAL|CONSTRAINTS))\b(?!\s+PREPARED)",
    re.I,
)
# Exceptions that may change it: a second statement, a temporary table;
_ALL_THE_SAME = re.compile(r"INTO\s+(?:LOCAL\s+|GLOBAL\s+)?TEMP|;.*\S", re.I | re.S)
# a function, also one that executes a string, or a view: by name, also in quotes or in such a string.
_NAMES = re.compile(
    r"set_config|setseed|pg_settings|_advisory_|pg_temp|dblink|_to_xml|ts_stat|ts_rewrite|crosstab|connectby"
    r"|xpath_table",
    re.I,
)
# The beginning of comments and quotes. E'' has escapes; U&"" spells names with escapes.
_BEGIN = re.compile(
    r"""--|/\*|'|"|(?<![\w$\x80-\U0010ffff])[eE]'|[uU]&"|"""
    r"\$(?:[A-Za-z_\x80-\U0010ffff][A-Za-z0-9_\x80-\U0010ffff]*)?\$"
)
_END = {
    "--": re.compile(r"[^\r\n]*"),
    "'": re.compile(r"[^']*'"),  # a doubled quote ends one string and begins another
    '"': re.compile(r'[^"]*"'),
    "E'": re.compile(r"[^'\\]*(?:(?:''|\\.)[^'\\]*)*'", re.S),
}
_END["e'"] = _END["E'"]
_SIMPLE, _NAME = re.compile(r"[^'$&/-]*"), re.compile(r'"[^"]*"')
_COMMENT = re.compile(r"/\*|\*/")  # comments nest
_PART_OF_A_NAME = re.compile(r"[\w$\x80-\U0010ffff]")
_FILLED_IN = re.compile(r"%[(sbt]")  # a parameter: its value has its own quotes, which end those around it


@functools.lru_cache(maxsize=2048)
def leaves_traces(query: str) -> bool:
    """Whether a statement's effects on its session may outlast its transaction.

    True in doubt, which costs a round trip at the end of the request.
    """
    try:
        words, names = _read(query)
    except ValueError:
        return True
    return _ROWS.match(words) is None or _ALL_THE_SAME.search(words) is not None or _NAMES.search(names) is not None


def _read(query: str) -> tuple[str, str]:
    """Return a statement without comments and with empty quotes, and the text with the contents of the quotes.

    Raises:
        ValueError: The server might parse it differently.
    """
    if _SIMPLE.fullmatch(query) and query.count('"') % 2 == 0:  # most of Django's statements
        return _NAME.sub('""', query), query
    words, quoted, position = [], [], 0
    while (found := _BEGIN.search(query, position)) is not None:
        begin, start = found.group(), found.end()
        words.append(query[position : found.start()])
        position = _end_of(query, begin, start)
        inside = query[start:position]
        if begin in ("--", "/*"):
            words.append(" ")
        else:
            words.append("''" if begin[-1] == "'" else '""')
            quoted.append(inside)
        if begin[-1] != '"' and _FILLED_IN.search(inside):
            raise ValueError("a parameter in quotes or in a comment")
        if begin == "'" and inside.endswith("\\'"):
            raise ValueError("the meaning of a backslash depends on standard_conforming_strings")
        if begin[0] == "$" and _PART_OF_A_NAME.match(query[found.start() - 1 : found.start()]):
            raise ValueError("a name with dollars, or a dollar quote after a number")
    words.append(query[position:])
    text = "".join(words)
    return text, "\n".join([text, *quoted])


def _end_of(query: str, begin: str, start: int) -> int:
    """Return the end of a comment or quote."""
    if begin == "/*":
        depth = 1
        while depth:
            mark = _COMMENT.search(query, start)
            if mark is None:
                raise ValueError("an unterminated comment")
            depth += 1 if mark.group() == "/*" else -1
            start = mark.end()
        return start
    if begin[0] == "$":
        return query.index(begin, start) + len(begin)  # raises
    end = _END[begin].match(query, start) if begin in _END else None
    if end is None:
        raise ValueError("unterminated, or a name spelt with escapes")
    return end.end()

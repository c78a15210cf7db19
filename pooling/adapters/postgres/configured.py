"""What a ``configure`` hook did to a new session, and which part of it a cleaning undoes.

The hook's statements are recorded. Those that a cleaning undoes, or may undo, are
executed again with each cleaning, in the same round trip. Others are not, such as
look-ups of types, whose result is kept on the client's side. After anything that
cannot be recorded (a COPY, a server-side cursor, statements that were rolled back)
the hook itself is called again after each cleaning.

A SELECT counts as a look-up if it calls only functions that are listed below.
"""

from __future__ import annotations

import re
from collections.abc import Generator
from typing import Any, Literal

import psycopg
from psycopg.sql import Composable

from . import steps

__all__ = ["Recorder", "kind_of"]

Kind = Literal["kept", "data", "undone"]

# Generators of psycopg (see `steps`) that leave nothing on the server after their transaction.
_PASSING = {
    "_enter_gen", "_commit_gen", "_set_autocommit_gen", "_set_isolation_level_gen", "_set_read_only_gen",
    "_set_deferrable_gen",
}  # fmt: skip
_LOOKUPS = {"select", "with", "values", "show"}
_DATA = {"insert", "update", "delete", "merge"}
_KEPT = {"begin", "start", "commit", "end", "savepoint", "release", "prepare", "deallocate"}
_BOUND = {"local", "transaction", "constraints"}  # to a transaction, after SET
_SIMPLE = {"set", "reset", "listen", "unlisten"}  # undone by a cleaning, and create nothing that contains data
_BEFORE_PARENTHESIS = {
    "all", "and", "any", "array", "as", "between", "by", "case", "cast", "distinct", "else", "except",
    "exists", "filter", "from", "group", "having", "ilike", "in", "intersect", "is", "join", "lateral",
    "like", "limit", "not", "offset", "on", "only", "or", "order", "over", "returning", "row", "select",
    "some", "then", "union", "using", "values", "when", "where", "with", "within",
}  # fmt: skip
_READING = {
    "array_agg", "array_length", "array_position", "array_to_string", "avg", "bool_and", "bool_or", "btrim",
    "cardinality", "char_length", "coalesce", "col_description", "concat", "concat_ws", "count",
    "current_database", "current_schema", "current_schemas", "current_setting", "format", "format_type",
    "generate_subscripts", "greatest", "has_database_privilege", "has_function_privilege",
    "has_schema_privilege", "has_table_privilege", "json_agg", "json_build_object", "json_object_agg",
    "jsonb_agg", "jsonb_build_object", "jsonb_object_agg", "least", "left", "length", "lower", "ltrim", "max",
    "min", "now", "nullif", "obj_description", "pg_backend_pid", "pg_get_constraintdef", "pg_get_expr",
    "pg_get_indexdef", "pg_get_userbyid", "pg_is_in_recovery", "pg_table_is_visible", "pg_type_is_visible",
    "quote_ident", "quote_literal", "regexp_match", "regexp_replace", "replace", "right", "row_number",
    "row_to_json", "rtrim", "split_part", "starts_with", "string_agg", "string_to_array", "substr",
    "substring", "sum", "to_json", "to_jsonb", "to_regclass", "to_regnamespace", "to_regproc",
    "to_regprocedure", "to_regrole", "to_regtype", "trim", "unnest", "upper", "version",
}  # fmt: skip
_TOKEN = re.compile(
    r"""
    \s+ | --[^\n]*(?:\n|\Z)
    | (?P<literal> '(?:[^']|'')*' )
    | (?P<name> "(?:[^"]|"")+" )
    | (?P<word> [^\W\d]\w* )
    | (?P<other> . )
    """,
    re.S | re.X,
)


class Recorder:
    """Records what is executed on a connection, while its ``wait()`` is replaced by this one's."""

    def __init__(self, conn: psycopg.Connection[Any]) -> None:
        self._conn = conn
        self._noted: list[tuple[Kind, bytes, bool]] = []  # kind, statement, whether it may create a temporary table
        self._known = steps.AVAILABLE

    def wait(self, generator: Generator[Any, Any, Any], *args: Any, **kwargs: Any) -> Any:
        """As the connection's; records what succeeded."""
        noted = self._note_of(generator)
        result = type(self._conn).wait(self._conn, generator, *args, **kwargs)
        if noted is not None:
            self._noted.append(noted)
        return result

    def undone(self) -> bytes | None:
        """Return the statements to execute again after a cleaning; ``None``: they are not known."""
        if not self._known:
            return None
        with_data = any(kind == "undone" and creates for kind, _, creates in self._noted)
        again = [text for kind, text, _ in self._noted if kind == "undone" or (kind == "data" and with_data)]
        return b"".join(b"\n;\n" + text for text in again)  # the statement before may end with a comment

    def _note_of(self, generator: Any) -> tuple[Kind, bytes, bool] | None:
        name, given = steps.name_of(generator), steps.variables_of(generator)
        if name in _PASSING or (name == "_exit_gen" and given.get("exc_type") is None):
            return None
        if name == "_execute_gen" and "query" in given:
            text = self._text_of(given["query"], given.get("params"), given.get("self"))
            if text is not None:
                return text
        if name not in ("_exit_gen", "_rollback_gen") or any(kind != "kept" for kind, _, _ in self._noted):
            self._known = False
        return None

    def _text_of(self, query: Any, params: Any, cursor: Any) -> tuple[Kind, bytes, bool] | None:
        encoding = self._conn.info.encoding
        if params is not None:
            if kind_of(_plain(query, self._conn, encoding))[0] == "kept":
                return "kept", b"", False
            if isinstance(cursor, psycopg.RawCursor):
                return None  # its placeholders are the server's
            query = psycopg.ClientCursor(self._conn).mogrify(query, params)
        text = _plain(query, self._conn, encoding).strip().rstrip(";")
        kind, creates = kind_of(text)
        return kind, text.encode(encoding), creates


def _plain(query: Any, conn: psycopg.Connection[Any], encoding: str) -> str:
    if isinstance(query, Composable):
        return query.as_string(conn)
    return query.decode(encoding) if isinstance(query, bytes) else str(query)


def kind_of(text: str) -> tuple[Kind, bool]:
    """Return what a cleaning does to the effect of a statement, and whether that may create a temporary table.

    ``"kept"``: nothing. ``"data"``: nothing, unless it is data of a temporary table.
    ``"undone"``: it undoes it, or may undo it.
    """
    if "/*" in text or "\\" in text or re.search(r"\$\w*\$", text):
        return "undone", True
    tokens: list[tuple[str | None, str]] = [
        (found.lastgroup, found[0]) for found in _TOKEN.finditer(text) if found.lastgroup is not None
    ]
    while tokens and tokens[-1][1] == ";":
        tokens.pop()
    words = [token.lower() for kind, token in tokens if kind == "word"]
    if not words or any(token == ";" for _, token in tokens):
        return "undone", True
    first, second = words[0], words[1] if len(words) > 1 else ""
    if first in _KEPT or (first == "set" and second in _BOUND) or (first == "create" and second == "extension"):
        return "kept", False
    if first in _SIMPLE:
        return "undone", False
    if first in _LOOKUPS | _DATA and _only_reads(tokens):
        writes = first in _DATA or not _DATA.isdisjoint(words)
        if not writes and "into" not in words:
            return "kept", False
        if writes and "temp" not in words and "temporary" not in words:
            return "data", False
    return "undone", "set_config" not in words or first != "select"


def _only_reads(tokens: list[tuple[str | None, str]]) -> bool:
    """Return whether all functions that are called are known to change nothing."""
    for index, (_, token) in enumerate(tokens[1:], 1):
        kind, name = tokens[index - 1]
        if token != "(" or kind not in ("word", "name"):
            continue
        name = name.lower()
        qualified = index > 1 and tokens[index - 2][1] == "."
        if kind == "name" or name not in (_READING if qualified else _READING | _BEFORE_PARENTHESIS):
            if _has_column_list(tokens, index - 1):
                continue
            return False
        if qualified and tokens[index - 3][1].lower() != "pg_catalog":
            return False
    return True


def _has_column_list(tokens: list[tuple[str | None, str]], index: int) -> bool:
    """Return whether the name there is followed by a list of columns: INSERT INTO t (...), WITH t (...) AS."""
    while index >= 2 and tokens[index - 1][1] == ".":
        index -= 2
    return index >= 1 and tokens[index - 1][1].lower() in ("into", "with", "recursive")

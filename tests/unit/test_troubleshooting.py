"""The page "symptom, cause, setting" has an entry for each error of the library and for each log record."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pooling
from pooling import errors
from tests.unit.test_logs import ELSEWHERE, PACKAGE, all_calls, is_logger

PAGE = Path(__file__).parents[2] / "docs" / "howto" / "troubleshooting.rst"
TEXT = " ".join(PAGE.read_text("utf-8").split())
LEVELS = ("debug", "info", "warning", "error", "exception", "log")
LEAST = 8  # characters; shorter pieces, such as " of ", say nothing


def pieces(node: ast.expr) -> list[str]:
    """Return what is constant in a text: between the fields of an f-string, or between those of ``%`` formatting."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return re.split(r"%[.\d]*[a-z]", node.value)
    if isinstance(node, ast.JoinedStr):
        return [one.value for one in node.values if isinstance(one, ast.Constant) and isinstance(one.value, str)]
    return []


def texts(node: ast.expr, function: ast.AST, line: int) -> list[ast.expr]:
    """Return a text, or what was last assigned to its name above a line."""
    if not isinstance(node, ast.Name):
        return [node]
    found = [
        one for one in ast.walk(function)
        if isinstance(one, ast.Assign) and ast.unparse(one.targets[0]) == node.id and one.lineno <= line
    ]  # fmt: skip
    return [max(found, key=lambda one: one.lineno).value] if found else []


def raised(tree: ast.Module) -> Iterator[tuple[int, ast.expr]]:
    """Yield the line and the text of each error of the library that a module makes."""
    for function in ast.walk(tree):
        if not isinstance(function, ast.FunctionDef):
            continue
        for node in ast.walk(function):
            if isinstance(node, ast.Call) and node.args:
                name = ast.unparse(node.func).rpartition(".")[2]
                if name in errors.__all__ or name in ("lost", "rolled_back", "commit_unknown", "TooManyRequests"):
                    for text in texts(node.args[0], function, node.lineno):
                        yield node.lineno, text


def logged(tree: ast.Module) -> Iterator[tuple[int, ast.expr]]:
    """Yield the line and the text of each record that a module logs."""
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and is_logger(node.func.value)):
            continue
        if node.func.attr in LEVELS:
            yield node.lineno, node.args[node.func.attr == "log"]


def missing(find: object, skip: tuple[str, ...]) -> list[str]:
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        place = path.relative_to(PACKAGE).as_posix()
        if place.startswith(skip):
            continue
        for line, text in find(ast.parse(path.read_text("utf-8"))):  # type: ignore[operator]
            longest = max((" ".join(one.split()).strip(" :;,()'") for one in pieces(text)), key=len, default="")
            if len(longest) >= LEAST and longest not in TEXT:
                found.append(f"{place}:{line}: {longest}")
    return found


def test_each_error_text_has_an_entry() -> None:
    assert missing(raised, ("tools/",)) == []


def test_each_log_text_has_an_entry() -> None:
    assert missing(logged, ELSEWHERE) == []


def test_each_error_class_has_an_entry() -> None:
    absent = {name for name in errors.__all__ if not re.search(rf"\([^)]*\b{name}\b[^)]*\)", TEXT)}
    assert absent == set()
    assert set(errors.__all__) <= set(pooling.__all__)


def test_each_event_has_an_entry() -> None:
    events = {call.event for call in all_calls() if call.event}
    assert {event for event in events if f"``{event}``" not in TEXT} == set()


def test_nothing_is_listed_that_does_not_exist() -> None:
    """The word in parentheses after a text is an event or an error."""
    events = {call.event for call in all_calls()}
    heads = re.findall(r"^``.*\)$", PAGE.read_text("utf-8"), re.M)
    assert len(heads) > 80
    named = {event for head in heads for event in re.findall(r"\(``(\w+)``\)", head)}
    assert named <= events

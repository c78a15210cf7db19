"""Find where tests use private names of `pooling`, instead of its public verbs and documented internal seams."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pooling

__all__ = ["defined_privates", "private_accesses"]

_MODULES = {path.stem for path in Path(pooling.__file__).parent.rglob("_*.py")}
_DOTTED = re.compile(r"[A-Za-z_][\w.]*")


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and len(name) > 1


def defined_privates(package: Path) -> set[str]:
    """Return the private names that the modules of a package define: attributes, functions, classes, variables."""
    names: set[str] = set()
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names |= set(_definitions(node))
    return {name for name in names if is_private(name)}


def _definitions(node: ast.AST) -> Iterator[str]:
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        yield node.name
    elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
        yield node.attr
    elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
        yield node.id
    elif isinstance(node, ast.Assign) and any(ast.unparse(target) == "__slots__" for target in node.targets):
        yield from (each.value for each in ast.walk(node.value) if isinstance(each, ast.Constant))


class _Finder(ast.NodeVisitor):
    """Collects the accesses of one test module."""

    def __init__(self, tree: ast.Module, known: set[str]) -> None:
        self.known = known
        self.found: list[tuple[int, str, str]] = []
        self.modules: set[str] = set()  # imported ones that are not pooling's
        self.tests: set[str] = set()  # names of classes and functions of tests
        self.own: set[str] = set()
        self.derived = False  # inside a class with a base that is not the tests'
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                self.modules |= {(one.asname or one.name).partition(".")[0] for one in node.names}
            elif isinstance(node, ast.ImportFrom) and (node.level or (node.module or "").startswith("tests")):
                self.tests |= {one.asname or one.name for one in node.names}
            elif isinstance(node, ast.ClassDef):
                self.tests.add(node.name)
            if isinstance(node, (ast.Assign, ast.AnnAssign)):
                for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                    own = isinstance(target, ast.Attribute) and ast.unparse(target.value) == "self"
                    self.own |= set(_definitions(target)) if own or isinstance(target, ast.Name) else set()
        self.modules.discard("pooling")
        self.own |= {node.name for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
        self.own |= {
            one.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and not self.is_derived(node)
            for one in node.body if isinstance(one, ast.FunctionDef)
        }  # fmt: skip

    def is_derived(self, node: ast.ClassDef) -> bool:
        return any(ast.unparse(base).partition("[")[0] not in {*self.tests, "Protocol"} for base in node.bases)

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        before, self.derived = self.derived, self.is_derived(node)
        for one in node.body if self.derived else []:
            if isinstance(one, ast.FunctionDef) and one.name in self.known:
                self.found.append((one.lineno, one.name, f"class {node.name} overrides {one.name}"))
        self.generic_visit(node)
        self.derived = before

    def visit_Attribute(self, node: ast.Attribute) -> None:
        if node.attr in self.known and node.attr not in self.own:
            receiver = ast.unparse(node.value)
            theirs = receiver in self.modules or (receiver in ("self", "cls", "super()") and not self.derived)
            self.found += [] if theirs else [(node.lineno, node.attr, f"{receiver}.{node.attr}")]
        self.generic_visit(node)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        if (node.module or "").partition(".")[0] == "pooling":
            names = {one.name for one in node.names if one.name not in _MODULES}
            self.found += [(node.lineno, name, f"{node.module}.{name}") for name in names & self.known]

    def visit_Constant(self, node: ast.Constant) -> None:
        if isinstance(node.value, str) and _DOTTED.fullmatch(node.value):
            name = node.value.rpartition(".")[2]
            if name in self.known - _MODULES and name not in self.own:
                self.found.append((node.lineno, name, repr(node.value)))

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        for one in node.values:
            if isinstance(one, ast.FormattedValue):
                self.visit(one)


def private_accesses(source: str, known: set[str]) -> list[tuple[int, str, str]]:
    """Return the accesses of a test module to private names that `pooling` defines: line, name and text.

    Counted are attributes, imports, names in strings (``monkeypatch.setattr(pool, "_name", ...)``) and methods that
    override a private one. Not counted are names that the module itself defines, attributes of other packages'
    modules, and private modules: their names without an underscore are seams.
    """
    tree = ast.parse(source)
    finder = _Finder(tree, known)
    finder.visit(tree)
    return sorted(finder.found)

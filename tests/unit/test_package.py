"""The package as a whole: light to import, layered as designed, and packed with its types."""

from __future__ import annotations

import ast
import configparser
import importlib.metadata
import importlib.resources
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import pooling

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "pooling"

# A part may import the parts of lower steps, and its own modules.
STEPS = [
    {"errors", "_masking", "_plain"},
    {"settings"},
    {"core"},
    {"tools.doctor"},
    {"adapters", "testing"},
    {"compat"},
    {"_urls", "_members", "_signals"},
    {"_reports", "config"},
    {"manager"},
    {"observe"},
    {"web"},
    {"__init__"},
    {"tools"},
    {"tools.demo"},
    {"tools.soak"},
    {"__main__"},
]
STEP = {part: number for number, parts in enumerate(STEPS) for part in parts}

# The same inside the core: each module imports from lower steps only.
CORE = [
    {"adapter", "clock", "hangup", "runtime.gevent", "report.histogram", "runtime.parking"},
    {"entry", "observer", "report.snapshot", "runtime.immortal"},
    {"waiter", "fastpath"},
    {"state", "suspicion"},
    {"report.messages", "runtime.poolref"},
    {"report.holders", "report.metrics", "outage", "runtime.workers"},
    {"events", "runtime.reaper"},
    {"runtime.registry"},
    {"runtime.fork"},
    {"runtime.shutdown"},
    {"engine"},
    {"liveness", "stalls", "waiting"},
    {"checkin", "checkout"},
    {"lease", "maintenance"},
    {"managed"},
    {"pool"},
]
CORE_STEP = {module: number for number, modules in enumerate(CORE) for module in modules}

# Only these may import what is not in the standard library (`testing`: pytest).
WITH_DRIVERS = {
    "adapters", "compat", "observe", "testing", "web", "tools.demo", "tools.doctor", "tools.soak", "__main__"
}  # fmt: skip

FOR_TYPES = "typing_extensions"  # imported by type checkers only

HEAVY = {"requests", "urllib3", "psycopg", "psycopg_pool", "sqlite3", "psutil", "ssl", "socket", FOR_TYPES}


def fresh(statement: str) -> tuple[set[str], int]:
    """Return the modules loaded and the number of threads in a new interpreter after the statement."""
    code = f"{statement}\nimport json, sys, threading\nprint(json.dumps([list(sys.modules), threading.active_count()]))"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    modules, threads = json.loads(run.stdout)
    return set(modules), threads


def test_import_is_light() -> None:
    """No driver, no socket, no thread (P11)."""
    bare, _ = fresh("import dataclasses, logging, threading")
    loaded, threads = fresh("import pooling")
    assert "pooling" in loaded
    assert (loaded - bare) & HEAVY == set()
    assert threads == 1


def test_heavy_import_is_seen() -> None:
    assert fresh("import requests")[0] >= {"requests", "urllib3", "ssl", "socket"}


def test_version_is_that_of_the_distribution() -> None:
    assert pooling.__version__ == importlib.metadata.version("pooling")


def test_types_are_packed() -> None:
    assert importlib.resources.files("pooling").joinpath("py.typed").is_file()
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    assert "py.typed" in config["options.package_data"]["pooling"].split()


def test_every_extra_has_code() -> None:
    """Who installs one gets something for it."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    extras = {*config["options.extras_require"]} - {"binary", "test", "bench"}
    used: set[str] = set()
    for path in PACKAGE.rglob("*.py"):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        used |= {name.partition(".")[0] for name in imports(path.read_text(encoding="utf-8"), module, False)}
    assert extras <= used


def test_no_package_is_forgotten() -> None:
    """A directory with modules but without ``__init__.py`` is left out of the wheel."""
    assert {path.parent for path in PACKAGE.rglob("*.py") if not (path.parent / "__init__.py").exists()} == set()


def part_of(name: str) -> str:
    """Return which part of the package a module belongs to: ``pooling.core.pool`` to ``core``."""
    parts = name.split(".")
    if parts[1:2] == ["tools"] and len(parts) > 2 and ".".join(parts[1:3]) in STEP:
        return ".".join(parts[1:3])
    known = len(parts) > 1 and (parts[1] in STEP or is_module(parts[1]))
    return parts[1] if known else "__init__"


def is_module(name: str) -> bool:
    return (PACKAGE / f"{name}.py").exists() or (PACKAGE / name).is_dir()


def imports(source: str, module: str, is_package: bool) -> Iterator[str]:
    """Yield the full name of all that a module imports, wherever in it, for types only or not."""
    package = module.split(".") if is_package else module.split(".")[:-1]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*base, *(node.module or "").split(".")]).strip(".")
            yield from (f"{origin}.{alias.name}" for alias in node.names)


def core_module(name: str) -> str:
    """Return the module of the core that a full name belongs to."""
    parts = name.split(".")[2:]
    return ".".join(parts[: 2 if parts[0] in ("report", "runtime") else 1])


def modules() -> dict[str, Path]:
    """Return every module of the package by its full name."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def cycles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Return each import circle, as the modules in their order, beginning with the first by name."""
    found = []
    for start in sorted(graph):
        ways = [[start]]
        seen = set()
        while ways:
            way = ways.pop(0)
            for name in sorted(graph[way[-1]]):
                if name == start and len(way) > 1 and min(way) == start:
                    found.append(way)
                    ways = []
                    break
                if name not in seen and name > start:
                    seen.add(name)
                    ways.append([*way, name])
    return found


def import_graph() -> dict[str, set[str]]:
    """Return which module imports which, imports for typing included."""
    known = modules()
    graph: dict[str, set[str]] = {}
    for module, path in known.items():
        names = imports(path.read_text(encoding="utf-8"), module, path.name == "__init__.py")
        targets = {name if name in known else name.rpartition(".")[0] for name in names}
        graph[module] = {name for name in targets if name in known and name != module}
    return graph


def test_no_import_circle() -> None:
    assert [" -> ".join([*circle, circle[0]]) for circle in cycles(import_graph())] == []


def test_import_circle_is_seen() -> None:
    assert cycles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c"]]


def violations(source: str, module: str, is_package: bool = False) -> list[str]:
    """Say which imports of a module the layers forbid."""
    own = part_of(module)
    found = []
    for name in imports(source, module, is_package):
        top = name.partition(".")[0]
        if top == "pooling":
            other = part_of(name)
            if other != own and STEP[other] >= STEP[own]:
                found.append(f"{module} imports {name}: an arrow upwards, or to the side")
            elif own == other == "core" and CORE_STEP[core_module(name)] >= CORE_STEP[core_module(module)]:
                found.append(f"{module} imports {name}: an arrow upwards, or to the side, inside the core")
        elif top not in {*sys.stdlib_module_names, FOR_TYPES} and own not in WITH_DRIVERS:
            found.append(f"{module} imports {name}: not for {own} to know")
    return found


def test_every_module_has_a_step() -> None:
    names = {path.stem for path in PACKAGE.glob("*.py")}
    names |= {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    names |= {f"tools.{path.parent.name}" for path in PACKAGE.glob("tools/*/__init__.py")}
    assert names <= STEP.keys(), "add it to STEPS"
    core = {core_module(name) for name, path in modules().items() if ".core." in name and path.stem != "__init__"}
    assert core == CORE_STEP.keys(), "add it to CORE"


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_arrows_point_down(path: Path) -> None:
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    is_package = parts[-1] == "__init__"
    module = ".".join(parts[:-1] if is_package else parts)
    assert violations(path.read_text(encoding="utf-8"), module, is_package) == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("pooling.core.pool", "from ..adapters import http"),
        ("pooling.core.pool", "from .. import manager"),
        ("pooling.core.pool", "import pooling.observe.monitor"),
        ("pooling.core.pool", "from pooling import Pool"),
        ("pooling.core.pool", "def later():\n    import psycopg"),
        ("pooling.core.state", "from .pool import Pool"),
        ("pooling.core.checkin", "from . import checkout"),
        ("pooling.core.runtime.registry", "from .fork import ensure_process"),
        ("pooling.core.outage", "from .report.metrics import PoolMetrics"),
        ("pooling.adapters.http", "from pooling.manager import PoolManager"),
        ("pooling.manager", "from requests import Session"),
        ("pooling.errors", "from .settings import PoolSettings"),
        ("pooling.observe.monitor", "from pooling.web import flask"),
    ],
)
def test_forbidden_arrow_is_seen(module: str, source: str) -> None:
    assert violations(source, module) != []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("pooling.core.pool", "from . import state\nfrom .lease import Lease\nimport threading"),
        ("pooling.core.pool", "from ..errors import PoolTimeout\nfrom pooling import settings"),
        ("pooling.adapters.http", "import requests\nfrom pooling.core.pool import Pool"),
        ("pooling.web.flask", "from ..manager import PoolManager\nimport flask"),
        ("pooling.__main__", "from pooling import Pool\nfrom pooling.tools import demo"),
    ],
)
def test_allowed_arrow_is_not_seen(module: str, source: str) -> None:
    assert violations(source, module) == []

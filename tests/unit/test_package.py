"""The package as a whole: light to import, layered as designed, and packed with its types."""

from __future__ import annotations

import ast
import configparser
import fnmatch
import importlib.metadata
import importlib.resources
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import pooling
from tests.privates import defined_privates, private_accesses

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "pooling"

# A part may import the parts of lower steps, and its own modules.
STEPS = [
    {"errors", "_fields", "_masking", "_plain", "_console"},
    {"breaker", "lanes"},
    {"settings", "adaptive"},
    {"core"},
    {"tools.doctor", "fleet"},
    {"adapters", "testing"},
    {"cluster", "compat"},
    {"_attach", "_urls", "_members", "_signals"},
    {"_reports", "config"},
    {"manager"},
    {"observe"},
    {"web"},
    {"__init__"},
    {"tools"},
    {"tools.demo"},
    {"tools.check", "tools.soak", "tools.top"},
    {"__main__"},
]
STEP = {part: number for number, parts in enumerate(STEPS) for part in parts}

# The same inside these packages: a module imports from lower steps of its own package only.
CORE = [
    {
        "adapter", "circuit", "clock", "descriptors", "hangup", "runtime.gevent", "report.histogram",
        "runtime.parking",
    },
    {"entry", "observer", "report.snapshot", "runtime.immortal"},
    {"waiter", "idle", "schedule"},
    {"lanes", "state", "suspicion"},
    {"lanestate"},
    {"fastpath", "report.messages", "runtime.poolref"},
    {"report.holders", "report.metrics", "outage", "runtime.workers"},
    {"events", "runtime.reaper"},
    {"runtime.registry"},
    {"runtime.fork"},
    {"runtime.shutdown"},
    {"engine"},
    {"liveness", "sizing", "stalls", "waiting"},
    {"adapting", "checkin", "checkout"},
    {"lease", "maintenance", "probe"},
    {"managed"},
    {"pool"},
]
POSTGRES = [
    {"libpq"},
    {"complaint", "failures", "greenlets", "internals", "wire"},
    {"address", "beginning", "client_state", "commands", "limits", "stalls", "steps", "trace"},
    {"configured", "connecting", "cursors", "statistics"},
    {"tracking"},
    {"committing", "foreign", "unfinished"},
    {"session"},
    {"adapter", "advice", "blocks"},
    {"executing"},
    {"pool"},
]
SHARED = [{"adapted", "blocks", "budgets", "hooks", "limits", "progress", "retrying", "rotation", "statistics"}]
MYSQL = [
    {"address", "failures", "wire"},
    {"statistics"},
    {"tracking"},
    {"driver"},
    {"stalls"},
    {"connector", "drivers", "mysqlclient", "pymysql", "session"},
    {"adapter", "blocks"},
    {"pool"},
]
SQLITE = [
    {"arguments", "limit", "memory", "paths", "queries", "split", "traces", "turns", "urls"},
    {"connection"},
    {"blocks", "upkeep"},
    {"adapter"},
    {"pool"},
]
REDIS = [
    {"arguments", "client", "errors", "holder", "packing", "replies"},
    {"lease", "marks"},
    {"connection"},
    {"adapter"},
    {"pool"},
    {"sentinel", "shared"},
]
FLEET = [
    {"model"},
    {"stores"},
    {"local", "postgres", "redis"},
    {"kinds"},
    {"membership"},
    {"budget"},
]
CLUSTER = [
    {"addresses", "history", "position"},
    {"choosing"},
    {"server"},
    {"standing"},
    {"watch"},
    {"routing"},
    {"group", "replicas"},
    {"pool"},
]
HTTP = [
    {"bodies", "environment", "errors", "listeners", "logins", "metrics", "sending", "tls"},
    {"arguments", "balancing.policy", "balancing.resolving"},
    {"balancing.bases", "balancing.model", "limits", "preparing", "verbs"},
    {"calls", "health", "wire"},
    {"slots", "template"},
    {"hosts"},
    {"hold"},
    {"connections"},
    {"balancing.group", "unpooled"},
    {"transport"},
    {"balancing.attempts", "sessions"},
    {"balancing.hedging"},
    {"balancing.transport"},
    {"balancing.sessions", "probing", "warming"},
    {"pool"},
    {"client"},
]
HTTP2 = [{"frames"}, {"connection"}, {"adapter", "client"}, {"pool"}]
LAYERS = {
    "core": CORE, "adapters.shared": SHARED, "adapters.postgres": POSTGRES, "adapters.mysql": MYSQL,
    "adapters.sqlite": SQLITE, "adapters.redis": REDIS, "adapters.http": HTTP, "adapters.http2": HTTP2,
    "cluster": CLUSTER, "fleet": FLEET,
}  # fmt: skip
LAYER = {
    f"pooling.{package}.{module}": number
    for package, layers in LAYERS.items()
    for number, modules in enumerate(layers)
    for module in modules
}

# Only these may import what is not in the standard library (`testing`: pytest).
WITH_DRIVERS = {
    "adapters", "cluster", "compat", "fleet", "observe", "testing", "web", "tools", "tools.check", "tools.demo",
    "tools.doctor",
    "tools.soak", "tools.top", "__main__",
}  # fmt: skip

FOR_TYPES = "typing_extensions"  # imported by type checkers only

# The module of an extra's package, where the name differs.
IMPORTED_AS = {
    "http2": "httpx", "mongo": "pymongo", "mysql": "pymysql", "prometheus": "prometheus_client", "top": "rich",
}  # fmt: skip

HEAVY = {"pymysql", "requests", "urllib3", "psycopg", "psycopg_pool", "sqlite3", "psutil", "ssl", "socket", FOR_TYPES}


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


def test_heavy_import_is_detected() -> None:
    assert fresh("import requests")[0] >= {"requests", "urllib3", "ssl", "socket"}


def test_version_is_that_of_the_distribution() -> None:
    assert pooling.__version__ == importlib.metadata.version("pooling")


def test_type_information_is_packed() -> None:
    assert importlib.resources.files("pooling").joinpath("py.typed").is_file()
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    assert "py.typed" in config["options.package_data"]["pooling"].split()


def test_the_parts_of_the_dashboard_are_packed() -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    patterns = config["options.package_data"]["pooling.web"].split(", ")
    parts = [f"page/{path.name}" for path in (PACKAGE / "web" / "page").iterdir()]
    assert len(parts) == 6 and all(any(fnmatch.fnmatch(part, pattern) for pattern in patterns) for part in parts)


def test_examples_are_in_the_sdist_and_not_in_the_wheel() -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    assert config["options.packages.find"]["include"].split() == ["pooling*"]
    assert "graft examples" in (ROOT / "MANIFEST.in").read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize("name", ["grafana-board.json", "prometheus-alerts.yml"])
def test_board_and_alerts_are_packed(name: str) -> None:
    assert importlib.resources.files("pooling.observe").joinpath(name).is_file()
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    patterns = config["options.package_data"]["pooling.observe"].split(", ")
    assert any(fnmatch.fnmatch(name, pattern) for pattern in patterns)


@pytest.mark.parametrize(("name", "needs", "extra"), [("HTTP2Pool", "httpx", "http2"), ("RedisPool", "redis", "redis")])
def test_a_class_without_its_driver_names_the_extra(name: str, needs: str, extra: str) -> None:
    code = f"import sys; sys.modules[{needs!r}] = None; from pooling import {name}"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stderr.splitlines()[-1] == f'ImportError: {name} needs {needs}; pip install "pooling[{extra}]"'


def test_every_extra_has_code() -> None:
    """An extra that no module imports would be useless."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    extras = {*config["options.extras_require"]} - {"binary", "docs", "test", "bench"}
    used: set[str] = set()
    for path in PACKAGE.rglob("*.py"):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        used |= {name.partition(".")[0] for name in imports(path.read_text(encoding="utf-8"), module, False)}
    assert {IMPORTED_AS.get(extra, extra) for extra in extras} <= used


def test_every_directory_with_modules_is_a_package() -> None:
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


def layered_package(name: str) -> str | None:
    """Return which of the packages with layers a module is in, if it is in one."""
    return next((package for package in LAYERS if name.startswith(f"pooling.{package}.")), None)


def layer_of(name: str) -> int | None:
    """Return the layer of the module that a full name belongs to; ``None`` if it has none."""
    while name and name not in LAYER:
        name = name.rpartition(".")[0]
    return LAYER.get(name)


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


def test_import_circle_is_detected() -> None:
    assert cycles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c"]]


def violations(source: str, module: str, is_package: bool = False) -> list[str]:
    """Say which imports of a module the layers forbid."""
    own, package, layer = part_of(module), layered_package(module), layer_of(module)
    found = []
    for name in imports(source, module, is_package):
        top = name.partition(".")[0]
        if top == "pooling":
            other = part_of(name)
            if other != own and STEP[other] >= STEP[own]:
                found.append(f"{module} imports {name}: an arrow upwards, or to the side")
            elif package is not None and layered_package(name) == package and layer is not None:
                below = layer_of(name)
                if below is None or below >= layer:  # None: the package itself, which is above all
                    found.append(f"{module} imports {name}: an arrow upwards, or to the side, in pooling.{package}")
        elif top not in {*sys.stdlib_module_names, FOR_TYPES} and own not in WITH_DRIVERS:
            found.append(f"{module} imports {name}: not for {own} to know")
    return found


def members(node: ast.ClassDef) -> Iterator[str]:
    """Yield the names that a class defines: methods, classes, variables with a value, and slots."""
    for item in node.body:
        if isinstance(item, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield item.name
        elif isinstance(item, ast.Assign):
            yield from (target.id for target in item.targets if isinstance(target, ast.Name))
            if any(ast.unparse(target) == "__slots__" for target in item.targets):
                yield from (one.value for one in ast.walk(item.value) if isinstance(one, ast.Constant))
        elif isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name) and item.value is not None:
            yield item.target.id


def private_overrides(sources: dict[str, str]) -> list[str]:
    """Say which classes override a private method or attribute of a class of another module."""
    classes: dict[tuple[str, str], tuple[list[tuple[str, str]], set[str]]] = {}
    for module, source in sources.items():
        tree, origins = ast.parse(source), {}
        package = module.rpartition(".")[0].split(".")
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                base = package[: len(package) - node.level + 1] if node.level else []
                origin = ".".join([*base, *(node.module or "").split(".")]).strip(".")
                origins.update({alias.asname or alias.name: (origin, alias.name) for alias in node.names})
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                bare = [base.value if isinstance(base, ast.Subscript) else base for base in node.bases]
                bases = [origins.get(base.id, (module, base.id)) for base in bare if isinstance(base, ast.Name)]
                for base in bare:  # `module.Class`
                    if isinstance(base, ast.Attribute) and isinstance(base.value, ast.Name):
                        bases.append((".".join(origins.get(base.value.id, (base.value.id,))), base.attr))
                private = {name for name in members(node) if name.startswith("_") and not name.endswith("__")}
                classes[module, node.name] = bases, private
    found = []
    for (module, name), (bases, private) in classes.items():
        ancestors, seen = list(bases), set(bases)
        while ancestors:
            above = ancestors.pop()
            its_bases, its_private = classes.get(above, ([], set()))
            if above[0] != module:
                both = sorted(private & its_private)
                found += [f"{module}.{name} overrides {each} of {above[0]}.{above[1]}" for each in both]
            ancestors += [base for base in its_bases if base not in seen]
            seen.update(its_bases)
    return found


def test_no_class_overrides_a_private_name_of_another_module() -> None:
    found = {module: path for module, path in modules().items() if path.stem != "__init__"}
    sources = {module: path.read_text(encoding="utf-8") for module, path in found.items()}
    assert private_overrides(sources) == []


@pytest.mark.parametrize(
    "below",
    [
        "from .above import Base\nclass Mine(Base[int]):\n    def _step(self): ...\n    def step(self): ...",
        "from . import above\nclass Mine(above.Base):\n    async def _step(self): ...",
        "from .above import Base as Above\ndef make():\n    class Mine(Above):\n        _step: int = 1",
        "from .above import Base\nclass Mine(Base):\n    __slots__ = ('_step',)",
        "from .above import Base\nclass Between(Base): ...\nclass Mine(Between):\n    class _step: ...",
    ],
)
def test_override_of_a_private_name_is_seen(below: str) -> None:
    above = "class Base:\n    def _step(self): ...\n    def step(self): ..."
    assert private_overrides({"pooling.above": above, "pooling.below": below}) == [
        "pooling.below.Mine overrides _step of pooling.above.Base"
    ]


def test_every_module_has_a_step() -> None:
    names = {path.stem for path in PACKAGE.glob("*.py")}
    names |= {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    names |= {f"tools.{path.parent.name}" for path in PACKAGE.glob("tools/*/__init__.py")}
    assert names <= STEP.keys(), "add it to STEPS"


def test_every_package_of_adapters_has_layers() -> None:
    packages = {f"adapters.{path.parent.name}" for path in PACKAGE.glob("adapters/*/__init__.py")}
    assert packages == {name for name in LAYERS if name.startswith("adapters.")}


@pytest.mark.parametrize("package", LAYERS)
def test_every_module_of_a_layered_package_has_a_layer(package: str) -> None:
    prefix = f"pooling.{package}."
    found = {name for name, path in modules().items() if name.startswith(prefix) and path.stem != "__init__"}
    listed = {name for name in LAYER if name.startswith(prefix)}
    missing, gone = sorted(found - listed), sorted(listed - found)
    assert not missing, f"add it to the list of {package}, above all that it imports: {missing}"
    assert not gone, f"remove it from the list of {package}: {gone}"


@pytest.mark.parametrize("package", LAYERS)
def test_module_is_listed_once(package: str) -> None:
    listed = [module for layer in LAYERS[package] for module in layer]
    assert len(listed) == len(set(listed))


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path: Path) -> None:
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
        ("pooling.adapters.http.hosts", "from .pool import HTTPPool"),
        ("pooling.adapters.postgres.session", "from . import pool"),
        ("pooling.adapters.postgres.session", "from . import PostgresPool"),
        ("pooling.adapters.sqlite.queries", "def later():\n    from .connection import Connection"),
        ("pooling.manager", "from requests import Session"),
        ("pooling.errors", "from .settings import PoolSettings"),
        ("pooling.observe.monitor", "from pooling.web import flask"),
    ],
)
def test_forbidden_import_is_detected(module: str, source: str) -> None:
    assert violations(source, module) != []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("pooling.core.pool", "from . import state\nfrom .lease import Lease\nimport threading"),
        ("pooling.core.pool", "from ..errors import PoolTimeout\nfrom pooling import settings"),
        ("pooling.adapters.http", "import requests\nfrom pooling.core.pool import Pool"),
        ("pooling.adapters.http.pool", "from ...core import engine\nfrom .hosts import Host"),
        ("pooling.web.flask", "from ..manager import PoolManager\nimport flask"),
        ("pooling.__main__", "from pooling import Pool\nfrom pooling.tools import demo"),
    ],
)
def test_allowed_import_is_accepted(module: str, source: str) -> None:
    assert violations(source, module) == []


# -- tests and private names ------------------------------------------------------------------

# Private names that a test module may use, and why: they are other packages'.
ALLOWED = {
    ("contenders.py", "_get_conn"): "urllib3 lends a connection by no public method",
    ("contenders.py", "_put_conn"): "urllib3 takes a connection back by no public method",
    ("test_cursors.py", "_maybe_prepare_gen"): "a method of psycopg's cursors, which a program may override",
    ("test_redis.py", "_available_connections"): "an attribute of redis-py's pools",
    ("test_redis.py", "_created_connections"): "an attribute of redis-py's pools",
    ("test_redis.py", "_in_use_connections"): "an attribute of redis-py's pools",
    ("test_redis_short_ways.py", "_sock"): "an attribute of redis-py's connections, and of its parsers",
    ("test_internals.py", "_adapters"): "an attribute of psycopg's connections, as the next three are",
    ("test_internals.py", "_autocommit"): "an attribute of psycopg's connections",
    ("test_internals.py", "_closed"): "an attribute of psycopg's connections",
    ("test_internals.py", "_isolation_level"): "an attribute of psycopg's connections",
    ("test_http.py", "_fp"): "an attribute of urllib3's responses",
    ("test_http_tools.py", "_connection"): "an attribute of urllib3's responses",
    ("test_postgres.py", "_adapters"): "an attribute of psycopg's connections",
    ("test_recipes.py", "_sock"): "an attribute of pika's connections",
    ("test_hangup.py", "_sock"): "an attribute of PyMySQL's connections",
    ("test_http2.py", "_pool"): "an attribute of httpx's transports",
    ("test_http2.py", "_connection"): "an attribute of httpcore's connections",
    ("test_psycopg_pool.py", "_pool"): "where programs for psycopg_pool < 3.3 find the pool of a connection",
    ("replicas_site.py", "_state"): "an attribute of Django's models, which routers get",
    ("test_sqlalchemy.py", "_max_overflow"): "an attribute of SQLAlchemy's pools, which `recreate` has to copy",
}
MOST_PRIVATES = 2  # other uses, all in tests of PostgreSQL, which may only become fewer


def test_tests_use_public_seams() -> None:
    """A test that reaches for a private name pins the shape of the code instead of what it does.

    Use a public verb, ``pool.engine``, `pooling.testing`, or name and document an internal seam without underscore.
    """
    known = defined_privates(PACKAGE)
    found = [
        f"{path.relative_to(ROOT)}:{line}: {text}"
        for path in sorted({*(ROOT / "tests").rglob("*.py")} - {Path(__file__)})
        for line, name, text in private_accesses(path.read_text(encoding="utf-8"), known)
        if (path.name, name) not in ALLOWED
    ]  # fmt: skip
    assert len(found) <= MOST_PRIVATES, "\n".join(found)


@pytest.mark.parametrize(
    "source",
    [
        "pool._hidden",
        "def test() -> None:\n    assert pool.engine._hidden",
        "monkeypatch.setattr(pool, '_hidden', None)",
        "monkeypatch.setattr('pooling.core.pool._hidden', None)",
        "from pooling.core.pool import _hidden",
        "from pooling import Pool\nclass Mine(Pool):\n    def _hidden(self): ...",
        "from pooling import Pool\nclass Mine(Pool):\n    def lock(self): return self._hidden",
    ],
)
def test_use_of_a_private_name_is_detected(source: str) -> None:
    assert private_accesses(source, {"_hidden"}) != []


@pytest.mark.parametrize(
    "source",
    [
        "pool._other; pool.lock",
        "import threading\nthreading._hidden",
        "class Mine:\n    def __init__(self): self._hidden = 1\nMine()._hidden",
        "from tests.web import Server\nclass Mine(Server):\n    def _hidden(self): self._hidden",
        "from pooling import _health",
        "f'{name}_hidden'",
    ],
)
def test_other_private_names_are_accepted(source: str) -> None:
    assert private_accesses(source, {"_hidden", "_health"}) == []


# -- sizes ------------------------------------------------------------------------------------

MOST_LINES, MOST_METHODS, MOST_ATTRIBUTES = 450, 25, 15
# Modules of other packages that are longer: one long list each, of arguments, fields or verbs with their docstrings.
LONGER = {"compat.psycopg_pool": 800, "settings": 700, "testing": 600, "manager": 550}


def core() -> dict[str, str]:
    """Return the source of each module of the core."""
    found = {name: path for name, path in modules().items() if name.startswith("pooling.core.")}
    return {name.removeprefix("pooling.core."): path.read_text(encoding="utf-8") for name, path in found.items()}


def sizes(source: str) -> dict[str, tuple[int, int]]:
    """Return the numbers of methods and of attributes assigned to ``self`` in each class."""
    found = {}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ClassDef):
            methods = sum(isinstance(one, ast.FunctionDef) for one in node.body)
            attributes = [one for one in ast.walk(node) if isinstance(one, ast.Attribute)]
            stored = {ast.unparse(one) for one in attributes if isinstance(one.ctx, ast.Store)}
            found[node.name] = methods, sum(name.startswith("self.") and name.count(".") == 1 for name in stored)
    return found


def test_no_module_of_the_core_is_too_long() -> None:
    lengths = {name: len(source.splitlines()) for name, source in core().items()}
    long = {name: lines for name, lines in lengths.items() if lines > MOST_LINES}
    assert long == {}, f"over {MOST_LINES} lines: split it"


def test_no_other_module_is_too_long() -> None:
    most = {f"pooling.{name}": lines for name, lines in LONGER.items()}
    lengths = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in modules().items()}
    long = {name: lines for name, lines in lengths.items() if lines > most.get(name, MOST_LINES)}
    assert long == {}, f"over {MOST_LINES} lines: split it"
    assert {name for name in most if lengths[name] <= MOST_LINES} == set(), "remove it from LONGER"


def test_no_class_of_the_core_is_too_large() -> None:
    found = {f"{module}.{name}": size for module, source in core().items() for name, size in sizes(source).items()}
    large = {name: size for name, size in found.items() if size[0] > MOST_METHODS or size[1] > MOST_ATTRIBUTES}
    assert large == {}, f"over {MOST_METHODS} methods or {MOST_ATTRIBUTES} attributes: split it"


def test_size_of_a_class_is_measured() -> None:
    source = "class Two:\n    def __init__(self): self.a = other.b = 1\n    def set(self): self.c, self.d.e = 3, 4"
    assert sizes(source) == {"Two": (2, 2)}

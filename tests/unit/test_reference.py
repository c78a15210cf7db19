"""docs/reference is complete: each setting, event, metric, error, option, variable and public name has its entry.

A failure says what to add, and where. The texts of log events are compared by test_logs.py.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import pooling
from pooling import Backoff, Observer, PoolSettings, PoolSnapshot, errors
from pooling.__main__ import main
from tests.docs import PAGES, ROOT

PACKAGE = ROOT / "pooling"
REFERENCE = ROOT / "docs" / "reference"


def page(name: str) -> str:
    return (REFERENCE / f"{name}.rst").read_text("utf-8")


def literals(text: str) -> set[str]:
    """Return what is written ``like this``."""
    return set(re.findall(r"``([^`]+)``", text))


# -- settings ---------------------------------------------------------------------------------

FIELDS = {field.name: getattr(PoolSettings(), field.name) for field in dataclasses.fields(PoolSettings)}
FIELDS |= {f"backoff_{field.name}": getattr(Backoff(), field.name) for field in dataclasses.fields(Backoff)}
del FIELDS["backoff"]
SETTINGS = {
    name: (type_, default, text)
    for name, type_, default, text in re.findall(
        r"^\.\. confval:: (\w+)\n   :type: (.+)\n   :default: ``(.+)``\n((?:\n|   .*\n)+)", page("settings"), re.M
    )
}


def test_settings_are_those_of_the_code() -> None:
    missing, gone = sorted(FIELDS.keys() - SETTINGS.keys()), sorted(SETTINGS.keys() - FIELDS.keys())
    assert not missing, f"add `.. confval:: NAME`, with :type:, :default: and when to touch, to settings.rst: {missing}"
    assert not gone, f"remove from settings.rst: {gone}"


@pytest.mark.parametrize("name", sorted(SETTINGS.keys() & FIELDS.keys()))
def test_setting_has_its_default_its_range_and_when_to_touch(name: str) -> None:
    type_, default, text = SETTINGS[name]
    assert default == repr(FIELDS[name])
    assert "*When to touch:*" in text
    for rule, wrong in (("at least 0", -1), ("at least 1", 0), ("above 0", 0)):
        if rule in type_:
            with pytest.raises(ValueError, match=rule):
                PoolSettings().replace(**{name: wrong})
            PoolSettings(min_size=0).replace(**{name: wrong + 1})
    if "or ``None``" in type_:
        PoolSettings().replace(**{name: None})
    else:
        with pytest.raises((TypeError, ValueError)):
            PoolSettings().replace(**{name: None})


def test_ranges_of_numbers_are_stated() -> None:
    numbers = sorted(name for name, value in FIELDS.items() if type(value) in (int, float))
    assert [name for name in numbers if not re.search("at least|above", SETTINGS[name][0])] == []


# -- events -----------------------------------------------------------------------------------


def test_events_are_documented() -> None:
    assert re.search(r"\.\. autoclass:: Observer\n   :members:", page("events"))
    undocumented = [name for name, method in vars(Observer).items() if callable(method) and not method.__doc__]
    assert undocumented == [], "give the method of Observer a docstring: docs/reference/events.rst shows it"


def test_kinds_of_alerts_are_listed() -> None:
    from pooling.observe import usual_rules

    listed = re.findall(r"^``(\w+)`` +(warning|critical) ", page("alerts"), re.M)
    assert listed, "no table in alerts.rst"
    wanted = {(rule.kind, rule.severity) for rule in usual_rules()}
    assert set(listed) == wanted, "correct the table of kinds in docs/reference/alerts.rst"


# -- metrics ----------------------------------------------------------------------------------


def strings(path: str) -> set[str]:
    tree = ast.parse((PACKAGE / path).read_text("utf-8"))
    return {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}


def test_metrics_of_prometheus_have_an_entry() -> None:
    names = {text for text in strings("observe/prometheus.py") if re.fullmatch(r"(pooling|db|http|hikaricp)_\w+", text)}
    assert len(names) > 40
    known = {re.sub(r"\{.*", "", text) for text in literals(page("metrics"))}
    missing = sorted(name for name in names if not known & {name, f"{name}_{'total'}"})
    assert not missing, f"add a row, with the alert that it deserves, to docs/reference/metrics.rst: {missing}"


def test_metrics_of_opentelemetry_have_an_entry() -> None:
    names = {text for text in strings("observe/conventions.py") if re.fullmatch(r"(db|http)\.client\.[a-z_.]+", text)}
    names -= {"db.client.connection.pool.name", "db.client.connection.state"}  # attributes
    assert len(names) > 10
    missing = sorted(names - literals(page("metrics")))
    assert not missing, f"add a row, with the alert that it deserves, to docs/reference/metrics.rst: {missing}"


def test_figures_of_snapshots_have_an_entry() -> None:
    from pooling.adapters.http.metrics import HostSnapshot
    from pooling.core.report.snapshot import LaneSnapshot

    names = {*PoolSnapshot._fields, *HostSnapshot._fields}
    names -= {"name", "timestamp", "duration", "lanes", "host", "requests"}
    names |= {f"lanes[...].{name}" for name in LaneSnapshot._fields[5:]}
    missing = sorted(names - literals(page("metrics")))
    assert not missing, f"add a row, with the alert that it deserves, to docs/reference/metrics.rst: {missing}"


def test_alerts_of_prometheus_are_named() -> None:
    rules = (PACKAGE / "observe" / "prometheus-alerts.yml").read_text("utf-8")
    missing = [name for name in re.findall(r"- alert: (\w+)", rules) if f"``{name}``" not in page("metrics")]
    assert not missing, f"name the alert in the row of its metric in docs/reference/metrics.rst: {missing}"


# -- errors -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", errors.__all__)
def test_error_has_an_entry(name: str) -> None:
    text = page("errors")
    assert f"   * - ``{name}``\n" in text, "add a row to the table in docs/reference/errors.rst"
    assert f".. autoexception:: {name}\n" in text, f"add `.. autoexception:: {name}` to docs/reference/errors.rst"


# -- commands ---------------------------------------------------------------------------------


def help_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit):
        main([*arguments, "--help"])
    return capsys.readouterr().out


def test_commands_and_their_options_have_an_entry(capsys: pytest.CaptureFixture[str]) -> None:
    text = page("cli")
    overview = help_of(capsys)
    commands = re.findall(r"^    (\w+)(?:  |$)", overview, re.M)
    assert {"demo", "doctor", "top"} <= set(commands)
    documented = dict(re.findall(r"^\.\. program:: python -m pooling (\w+)\n((?:(?!\.\. program).*\n)+)", text, re.M))
    differ = sorted(documented.keys() ^ set(commands))
    assert not differ, f"add a section with `.. program:: python -m pooling NAME` to docs/reference/cli.rst: {differ}"
    for command in commands:
        options = set(re.findall(r"^  (?:-\w(?: \w+)?, )?(--[\w-]+)", help_of(capsys, command), re.M)) - {"--help"}
        entries = set(re.findall(r"^\.\. option:: .*?(--[\w-]+)", documented[command], re.M))
        differ = sorted(entries ^ options)
        assert not differ, f"add or remove `.. option::` of {command} in docs/reference/cli.rst: {differ}"


def options_by_command() -> dict[str, set[str]]:
    sections = re.split(r"^\.\. program:: python -m pooling (\w+)$", page("cli"), flags=re.M)[1:]
    return {
        command: {"--help", *re.findall(r"^\.\. option:: .*?(--[\w-]+)", text, re.M)}
        for command, text in zip(sections[::2], sections[1::2])
    }


def test_commands_in_the_documentation_exist() -> None:
    known = options_by_command()
    wrong, seen = [], 0
    for path in PAGES:
        for command, rest in re.findall(r"python\s+-m\s+pooling ([a-z]+)([^`\n|;&]*)", path.read_text("utf-8")):
            seen += 1
            if command not in known:
                wrong.append(f"{path.name}: {command}")
            else:
                given = set(re.findall(r"(?<![\w-])--[\w-]+", rest))
                wrong += [f"{path.name}: {command} {option}" for option in sorted(given - known[command])]
    assert seen > 20 and wrong == []


# -- environment ------------------------------------------------------------------------------

NOT_OURS = {  # read, but with the meaning that they have everywhere; or an example of "any setting"
    "COLUMNS", "HTTP_MAX_LIFETIME", "LINES", "TERM", "TMPDIR",
    "PGHOST", "PGHOSTADDR", "PGOPTIONS", "PGTARGETSESSIONATTRS",
}  # fmt: skip


def variables() -> Iterator[tuple[str, Path]]:
    """Return the names of environment variables that the code mentions, and of settings of frameworks."""
    for path in sorted(PACKAGE.rglob("*.py")):
        source = path.read_text("utf-8")
        found = set(re.findall(r'os\.environ(?:\.get\(|\[)"([A-Z_]+)"', source))
        found |= set(re.findall(r'"(POOLING_[A-Z_]+|METRICS_EXPORT_INTERVAL|ENABLE_METRICS)"', source))
        if path.name in ("config.py", "client.py"):  # their docstrings list what they read
            found |= set(re.findall(r"``((?:HTTP|DB|DATABASE)_[A-Z_]+[A-Z])``", source))
        yield from ((name, path) for name in sorted(found - NOT_OURS))


def test_variables_have_an_entry() -> None:
    found = list(variables())
    assert len({name for name, _ in found}) > 20
    environment = literals(page("environment")) | set(re.findall(r"^\.\. envvar:: (\w+)", page("environment"), re.M))
    settings = literals(page("web"))  # of Django and Flask
    missing = sorted({
        f"{name} ({path.relative_to(ROOT)})" for name, path in found
        if name not in environment and not ("web" in path.parts and name in settings)
    })  # fmt: skip
    assert not missing, (
        "add `.. envvar:: NAME` to docs/reference/environment.rst, or a setting of Django or Flask to the table in "
        f"docs/reference/web.rst: {missing}"
    )


# -- public names -----------------------------------------------------------------------------

MODULES = ["pooling", "pooling.observe", "pooling.web.wsgi", "pooling.web.flask", "pooling.testing"]


def documented_names() -> set[str]:
    """Return the full names of what autodoc shows."""
    found = set()
    for path in REFERENCE.glob("*.rst"):
        module = ""
        for line in path.read_text("utf-8").splitlines():
            if line.startswith(".. currentmodule:: "):
                module = line.split()[-1]
            elif match := re.fullmatch(r"\.\. auto(\w+):: ([\w.]+)", line):
                kind, name = match.groups()
                found.add(name if "." in name else f"{module}.{name}")
                if kind == "module":
                    found |= {f"{name}.{one}" for one in importlib.import_module(name).__all__}
    return found


@pytest.mark.parametrize("module", MODULES)
def test_public_names_have_an_entry(module: str) -> None:
    names = {f"{module}.{name}" for name in importlib.import_module(module).__all__ if not name.startswith("__")}
    missing = sorted(names - documented_names())
    assert not missing, f"add `.. autoclass:: NAME` (or autofunction) to a page in docs/reference: {missing}"


def parameters_without_text(thing: object) -> list[str]:
    """Return the parameters of a class or function that its docstring does not explain."""
    text = inspect.getdoc(thing) or ""
    try:
        given = inspect.signature(thing).parameters  # type: ignore[arg-type]
    except ValueError:
        return []
    names = [name for name in given if not name.startswith("_")]
    return [name for name in names if not re.search(rf"(?:^|[ ,]){name}(?:, \w+)*:", text, re.M)]


@pytest.mark.parametrize("name", sorted(name for name in pooling.__all__ if not name.startswith("__")))
def test_arguments_are_explained(name: str) -> None:
    """Give each argument a line under ``Args:`` (or ``Attributes:``): effect, unit, default, range."""
    thing = getattr(pooling, name)
    if isinstance(thing, type) and issubclass(thing, (Exception, tuple)) or name in ("Adapter", "Observer", "Lease"):
        return  # made by the pool, or by nobody with arguments
    if name == "Holder" or name == "PoolMetrics":
        return  # made by the pool
    assert parameters_without_text(thing) == []

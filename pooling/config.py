"""Configuration of pools from the environment, a mapping, or a URL.

The source of each value is recorded, for ``python -m pooling config``.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import re
import sys
from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from ._console import Paint, table
from ._masking import SECRETS, masked, shown, suspicious
from ._members import member_of
from ._urls import _SQLITE, engine_url, from_url, names_of, normal, parameters, settings_for
from .settings import _ALL_NAMES, PoolSettings, _overlay, _read, _warn_of_misspelt, truth, variable

__all__ = ["DATABASE", "HTTP", "PoolConfig", "from_env", "from_mapping"]

HTTP, DATABASE = "http_pool", "db_pool"
"""The names of the pools of `from_env`."""

DATABASE_SETTINGS = PoolSettings(min_size=5, max_size=20, acquire_timeout=30.0)
"""The defaults for the database."""

_ENABLE_METRICS = "ENABLE_METRICS"
_SECRETS = (*SECRETS, "auth", "cert", "header", "prox", "cookie")
_CONNINFO = re.compile(r"\b(?:host|hostaddr|port|dbname|user|service)\s*=")  # libpq's key=value string


@dataclass(frozen=True)
class PoolConfig:
    """The configuration of one pool, and where each value came from.

    Attributes:
        name: The pool's name.
        url: Its URL, see `from_url`.
        settings: Its settings; those in the query of the URL take precedence.
        arguments: Further arguments of the pool's class.
        critical: Whether the application counts as down without it.
        sources: The source of each field, argument and the ``url``: the name of
            a variable, or a key of the mapping. A missing entry is a default.
    """

    name: str
    url: str = field(repr=False)
    settings: PoolSettings | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict, repr=False)
    critical: bool = True
    sources: Mapping[str, str] = field(default_factory=dict)

    def create(self) -> Any:
        """Create the pool, or the SQLAlchemy engine.

        Raises:
            ValueError, TypeError, ImportError: As from `from_url`.
        """
        return from_url(self.url, name=self.name, settings=self.settings, **self.arguments)

    def lines(self) -> list[tuple[str, str, str]]:
        """Return the values in force for display, with secrets masked: name, value, source."""
        made = _flat(member_of(self.create()).settings)  # opens nothing
        settings, others = parameters(self.url)
        rows = [("url", masked(self.url), self._source("url"))]
        rows += [(key, _with_unit(key, value), self._source(key)) for key, value in self.arguments.items()]
        rows += [(key, f"{_shown(key, text)}", "the URL") for key, text in others.items() if key not in self.arguments]
        for key, value in made.items():
            rows.append((key, _with_unit(key, value), "the URL" if key in settings else self._source(key)))
        return rows

    def _source(self, key: str) -> str:
        return self.sources.get(key, "default")


def _flat(settings: PoolSettings) -> dict[str, object]:
    """Settings by name, including those of the backoff."""
    found = dataclasses.asdict(settings)
    parts: dict[str, object] = found.pop("backoff")
    return {**found, **{f"backoff_{name}": value for name, value in parts.items()}}


def from_env(
    prefix: str = "",
    environ: Mapping[str, str] | None = None,
    *,
    database: str | None = None,
    source: str = "the argument database",
) -> dict[str, PoolConfig]:
    """Read the pools of an application that fetches over HTTP and stores in a database.

    ``http_pool`` is configured by ``HTTP_...`` (``HTTP_MAX_CONNECTIONS``,
    ``HTTP_MAX_CONNECTIONS_PER_HOST``, ``HTTP_MAX_KEEPALIVE_CONNECTIONS``,
    ``HTTP_KEEPALIVE_EXPIRY``, ``HTTP_CONNECTION_TIMEOUT`` or
    ``HTTP_CONNECT_TIMEOUT``, ``HTTP_READ_TIMEOUT``, ``HTTP_RETRY_ATTEMPTS``,
    ``HTTP_POOLING``, the others of `init_http_pool`, and ``HTTP_BASE_URL``),
    ``db_pool`` by ``DATABASE_URL`` and ``DB_...`` or
    ``DATABASE_...`` (``DB_MAX_CONNECTIONS``, ``DB_MIN_CONNECTIONS``,
    ``DB_CONNECTION_TIMEOUT``, ``DB_IDLE_TIMEOUT``, ``DATABASE_MAX_POOL_SIZE``),
    both by ``ENABLE_METRICS``. Every field of `PoolSettings` can be set that way.

    Args:
        prefix: A prefix of all these names, including its underscore.
        environ: The variables; ``None`` means ``os.environ``.
        database: The database's file or URL; ``None`` means ``DATABASE_URL``.
            Without either there is no ``db_pool``.
        source: The source of ``database``, for messages.

    Raises:
        ValueError: A value cannot be parsed or breaks a rule; the message
            names its variable.
    """
    environ = os.environ if environ is None else environ
    configs = {HTTP: _http(prefix, environ)}
    if database is None:
        variables = (f"{prefix}DATABASE_URL", f"{prefix}DB_URL")
        source = next((name for name in variables if variable(environ, name)), "")
        database = variable(environ, source)
    if database is not None:
        configs[DATABASE] = _database(prefix, environ, database, source)
    return configs


def from_mapping(mapping: Mapping[str, object]) -> dict[str, PoolConfig]:
    """Read pools from a framework's configuration or a parsed file.

    ::

        {"db": "postgresql://app@db/orders?max_size=20",
         "api": {"url": "https://api.example.com", "max_size": 50, "critical": False}}

    Args:
        mapping: For each pool name, its URL, or a mapping with ``url``, fields
            of `PoolSettings`, ``critical``, ``engine`` (see `from_url`) and
            further arguments of the pool's class.

    Raises:
        ValueError: A pool has no URL, or a value breaks a rule.
        TypeError: A value has the wrong type.
    """
    return {name: _one(name, value) for name, value in mapping.items()}


def url_of(database: str | os.PathLike[str]) -> str:
    """Return the URL of a database that may also be given as the path of a SQLite file.

    Raises:
        ValueError: It is not a URL, but looks like an address. The message
            omits it, because it may contain a password.
    """
    if isinstance(database, str) and not database.strip():  # SQLite would open a database in memory
        raise ValueError("the database must not be empty; use ':memory:' for a database in memory")
    if not isinstance(database, str):  # a path
        return "sqlite:///" + quote(os.fsencode(database))
    if _SQLITE.match(database) or ("://" in database and not database.startswith("file:")):
        return normal(database)
    if database != ":memory:" and (suspicious(database) or _CONNINFO.search(database)):
        raise ValueError(
            "the database is neither a URL, such as postgresql://..., nor a file name; "
            "for a file with that name write sqlite:///name"
        )
    return "sqlite:///" + ("" if database == ":memory:" else quote(os.fsencode(database)))


def _one(name: str, value: object) -> PoolConfig:
    if not isinstance(name, str) or not name:
        raise TypeError(f"a pool's name must be a non-empty string, not {shown(name)}")
    if isinstance(value, str):
        return PoolConfig(name, value, sources={"url": name})
    if not isinstance(value, Mapping):
        raise TypeError(f"{masked(name)} must be a URL or a mapping, not {type(value).__name__}")
    rest = dict(value)
    url, critical, engine = rest.pop("url", None), rest.pop("critical", True), rest.pop("engine", False)
    if not isinstance(url, str):
        raise ValueError(f"{masked(name)}: url must be a string such as postgresql://..., and is missing or none")
    critical, engine = (_truth_of(name, key, of) for key, of in (("critical", critical), ("engine", engine)))
    try:
        url = engine_url(url) if engine else url
        names = names_of(url)
        given = {key: rest.pop(key) for key in list(rest) if key in names}
        settings = settings_for(url, given) if given else None
    except (TypeError, ValueError) as error:
        raise type(error)(f"{masked(name)}: {error}") from None
    sources = {_ALL_NAMES[key]: f"{name}.{key}" for key in given}
    sources |= {key: f"{name}.{key}" for key in ("url", *rest)}
    return PoolConfig(name, url, settings, rest, critical, sources)


def _truth_of(name: str, key: str, value: object) -> bool:
    try:
        value = truth(value) if isinstance(value, str) else value
    except ValueError as rule:
        raise ValueError(f"{masked(name)}: {key} {rule}, not {shown(value)}") from None
    if not isinstance(value, bool):
        raise TypeError(f"{masked(name)}: {key} must be true or false, not {shown(value)}")
    return value


# -- environment -------------------------------------------------------------------


def _http(prefix: str, environ: Mapping[str, str]) -> PoolConfig:
    from .adapters.http.client import _NUMBERS, _TIMES, pool_arguments, without_headers  # here: it imports requests

    own = f"{prefix}HTTP_"
    environ = without_headers(own, environ)
    arguments = pool_arguments(own, {name: environ[name] for name in environ if name.startswith(own)})
    del arguments["name"]
    words = {**dict.fromkeys(_TIMES, "timeout"), **_NUMBERS, "POOLING": "pooled", "BASE_URL": "url"}
    sources: dict[str, str] = {}
    for word, argument in words.items():
        if variable(environ, own + word):
            sources[argument] = ", ".join(filter(None, [sources.get(argument), own + word]))
    settings, given = _shared(prefix, environ, arguments.pop("settings"), _set_by(own, environ, {*words, "TIMEOUT"}))
    url = variable(environ, f"{own}BASE_URL") or "http://"
    return PoolConfig(HTTP, url, settings, arguments, sources={**sources, **given})


def _database(prefix: str, environ: Mapping[str, str], database: str, source: str) -> PoolConfig:
    urls = (f"{prefix}DATABASE_URL", f"{prefix}DB_URL")
    others = {name: text for name, text in environ.items() if name not in urls}
    try:
        url = url_of(database)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None
    base = _lower_min_size(DATABASE_SETTINGS, parameters(url)[0])
    settings, sources = _settings(prefix, ("DB_", "DATABASE_"), others, base)
    return PoolConfig(DATABASE, url, settings, sources={"url": source, **sources})


def _settings(
    prefix: str, parts: tuple[str, ...], environ: Mapping[str, str], base: PoolSettings
) -> tuple[PoolSettings, dict[str, str]]:
    """Read settings whose variables begin with one of the parts; return them and the source of each."""
    given: list[tuple[str, str, object]] = []
    for part in parts:
        known = {prefix + part + name.upper(): name for name in _ALL_NAMES if name != "backoff"}
        _warn_of_misspelt(prefix + part, environ, known)
        given += [(name, _ALL_NAMES[known[name]], environ[name]) for name in known if variable(environ, name)]
    sources = {setting: variable for variable, setting, _ in reversed(given)}
    base = _lower_min_size(base, {setting: environ[variable] for setting, variable in sources.items()})
    if "max_overflow" in sources:
        sources.setdefault("max_idle", sources.get("max_size", ""))
    return _shared(prefix, environ, _overlay(base, _read(given)), sources)


def _set_by(prefix: str, environ: Mapping[str, str], except_for: Container[str]) -> dict[str, str]:
    """Return the variable that sets each setting with this prefix."""
    return {
        setting: prefix + name.upper()
        for name, setting in _ALL_NAMES.items()
        if variable(environ, prefix + name.upper()) and name.upper() not in except_for
    }


def _shared(
    prefix: str, environ: Mapping[str, str], settings: PoolSettings, sources: dict[str, str]
) -> tuple[PoolSettings, dict[str, str]]:
    """Apply the variable for both pools, unless this pool has its own value."""
    name, setting = prefix + _ENABLE_METRICS, "enable_metrics"
    if variable(environ, name) and setting not in sources:
        settings = _overlay(settings, _read([(name, setting, environ[name])]))
        sources = {**sources, setting: name}
    return settings, sources


def _lower_min_size(base: PoolSettings, given: Mapping[str, str]) -> PoolSettings:
    """Lower our default ``min_size`` to a smaller maximum that was set."""
    texts = (given.get(setting, "").strip() for setting in ("max_size", "max_idle"))
    most = min([int(text) for text in texts if text.isdecimal()], default=base.min_size)
    return base.replace(min_size=min(base.min_size, most))


# -- the command -------------------------------------------------------------------

_TIMES = ("_timeout", "_interval", "_lifetime", "_initial", "_maximum")  # ends of the names of settings in seconds

HELP = "print the settings in force and the source of each"
DESCRIPTION = """
Reads the environment like application_lifespan() and PoolManager.from_env(), and prints the
pools, their settings and the source of each value. Passwords and other secrets are masked.
Opens no connection. The exit code is 0, or 1 if a value is invalid.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument("--prefix", default="", metavar="P", help="prefix of all variables")
    parser.add_argument("--database", metavar="URL", help="the database's file or URL (default: DATABASE_URL)")
    parser.add_argument("--url", metavar="URL", help="show a single pool by its URL, instead of the environment")


def run(options: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    """Print the settings in force and return the exit code."""
    try:
        if options.url is not None:
            configs = {"pool": PoolConfig("pool", options.url, sources={"url": "--url"})}
        else:
            configs = from_env(options.prefix, database=options.database, source="--database")
        blocks = [_block(config) for config in configs.values()]
    except (ValueError, TypeError, ImportError) as error:
        print(f"python -m pooling config: error: {error}", file=sys.stderr)
        return 1
    print("\n\n".join(blocks))
    if DATABASE not in configs and options.url is None:
        print(f"\nno {DATABASE}: {options.prefix}DATABASE_URL is not set")
    return 0


def _block(config: PoolConfig) -> str:
    paint, rows = Paint(), config.lines()
    lines = [paint("title", config.name)]
    for line, (_, _, source) in zip(table(rows, texts=3), rows):
        lines.append("  " + (paint("faint", line) if source == "default" else line))
    return "\n".join(lines)


def _with_unit(name: str, value: object) -> str:
    """The value of a setting for display: as the environment takes it, times with their unit."""
    if value is None or isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and name.endswith(_TIMES):
        return f"{value:g} s"
    if dataclasses.is_dataclass(value) and not isinstance(value, type) and name == "timeout":  # an `HTTPTimeout`
        limits = dataclasses.asdict(value)
        return ", ".join(f"{key} none" if limit is None else f"{key} {limit:g} s" for key, limit in limits.items())
    return f"{_shown(name, value)}"


def _shown(name: str, value: object) -> object:
    """A value for display, also within mappings and lists."""
    if any(word in name.lower() for word in _SECRETS) and value is not None:
        return "***"
    if isinstance(value, Mapping):
        return {key: _shown(str(key), part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_shown(name, part) for part in value]
    return masked(value) if isinstance(value, str) else value

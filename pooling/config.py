"""Which pools there are and how they are set: from the environment, a mapping, or a URL.

Each value remembers where it came from, so that ``python -m pooling config``
can tell.
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

from ._masking import SECRETS, masked, shown, suspicious
from ._urls import _SQLITE, from_url, names_of, normal, parameters, settings_for
from .core.managed import ManagedPool
from .settings import _ALL_NAMES, PoolSettings, _overlay, _read, _warn_of_misspelt, variable

__all__ = ["DATABASE", "HTTP", "PoolConfig", "from_env", "from_mapping"]

HTTP, DATABASE = "http_pool", "db_pool"
"""How the pools of `from_env` are called."""

DATABASE_SETTINGS = PoolSettings(min_size=5, max_size=20, acquire_timeout=30.0)
"""What holds for the database where nothing is said."""

_SHARED = {"ENABLE_METRICS": "enable_metrics", "METRICS_EXPORT_INTERVAL": "metrics_interval"}
_SECRETS = (*SECRETS, "auth", "cert", "header", "prox", "cookie")
_CONNINFO = re.compile(r"\b(?:host|hostaddr|port|dbname|user|service)\s*=")  # libpq's key=value text


@dataclass(frozen=True)
class PoolConfig:
    """One pool: what it is made from, and where each part was said.

    Attributes:
        name: How the pool is called.
        url: Where to, see `from_url`.
        settings: Its settings; those in the query of the URL come on top.
        arguments: Further arguments of the pool's class.
        critical: Whether the application is down without it.
        sources: Where a field, an argument or the ``url`` was said: the name
            of a variable, or of the mapping's key. What is missing is a default.
    """

    name: str
    url: str = field(repr=False)
    settings: PoolSettings | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict, repr=False)
    critical: bool = True
    sources: Mapping[str, str] = field(default_factory=dict)

    def create(self) -> ManagedPool[Any]:
        """Make the pool.

        Raises:
            ValueError, TypeError, ImportError: As from `from_url`.
        """
        return from_url(self.url, name=self.name, settings=self.settings, **self.arguments)

    def lines(self) -> list[tuple[str, str, str]]:
        """Return what is in force, as it may be shown: what, the value, where it was said."""
        made = _flat(self.create().settings)  # opens nothing
        settings, others = parameters(self.url)
        rows = [("url", masked(self.url), self._source("url"))]
        rows += [(key, f"{_shown(key, value)}", self._source(key)) for key, value in self.arguments.items()]
        rows += [(key, f"{_shown(key, text)}", "the URL") for key, text in others.items() if key not in self.arguments]
        for key, value in made.items():
            rows.append((key, f"{_shown(key, value)}", "the URL" if key in settings else self._source(key)))
        return rows

    def _source(self, key: str) -> str:
        return self.sources.get(key, "default")


def _flat(settings: PoolSettings) -> dict[str, object]:
    """Settings by name, those of the backoff among them."""
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
    """Read the pools of an application that fetches by HTTP and stores in a database.

    ``http_pool`` is set by ``HTTP_...`` (``HTTP_MAX_CONNECTIONS``,
    ``HTTP_MAX_CONNECTIONS_PER_HOST``, ``HTTP_MAX_KEEPALIVE_CONNECTIONS``,
    ``HTTP_KEEPALIVE_EXPIRY``, ``HTTP_CONNECTION_TIMEOUT`` or
    ``HTTP_CONNECT_TIMEOUT``, ``HTTP_READ_TIMEOUT``, ``HTTP_RETRY_ATTEMPTS``,
    ``HTTP_POOLING``, the others of `init_http_pool`, and ``HTTP_BASE_URL``),
    ``db_pool`` by ``DATABASE_URL`` and ``DB_...`` or
    ``DATABASE_...`` (``DB_MAX_CONNECTIONS``, ``DB_MIN_CONNECTIONS``,
    ``DB_CONNECTION_TIMEOUT``, ``DB_IDLE_TIMEOUT``, ``DATABASE_MAX_POOL_SIZE``),
    both by ``ENABLE_METRICS`` and ``METRICS_EXPORT_INTERVAL``. Every field of
    `PoolSettings` can be set that way.

    Args:
        prefix: What stands before all of these names, with its underscore.
        environ: Where to look; ``None`` means ``os.environ``.
        database: The database's file or URL; ``None`` means ``DATABASE_URL``.
            Without either there is no ``db_pool``.
        source: What to call the place where ``database`` was said.

    Raises:
        ValueError: A value does not parse or breaks a rule; named by its variable.
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
        mapping: By the pool's name its URL, or a mapping with ``url``, fields
            of `PoolSettings`, ``critical`` and further arguments of the
            pool's class.

    Raises:
        ValueError: A pool has no URL, or a value breaks a rule.
        TypeError: A value is of the wrong type.
    """
    return {name: _one(name, value) for name, value in mapping.items()}


def url_of(database: str | os.PathLike[str]) -> str:
    """Return the URL of a database that may be given as the path of a SQLite file.

    Raises:
        ValueError: It is no URL, and looks like an address for all that; the
            message leaves it out, because it may hold a password.
    """
    if isinstance(database, str) and not database.strip():  # to SQLite, a database in memory
        raise ValueError("the database must not be empty; ':memory:' is one in memory")
    if not isinstance(database, str):  # a path
        return "sqlite:///" + quote(os.fsencode(database))
    if _SQLITE.match(database) or ("://" in database and not database.startswith("file:")):
        return normal(database)
    if database != ":memory:" and (suspicious(database) or _CONNINFO.search(database)):
        raise ValueError(
            "the database is neither a URL, such as postgresql://..., nor the name of a file; "
            "one that is called like that is written as sqlite:///name"
        )
    return "sqlite:///" + ("" if database == ":memory:" else quote(os.fsencode(database)))


def _one(name: str, value: object) -> PoolConfig:
    if not isinstance(name, str) or not name:
        raise TypeError(f"the name of a pool must be a non-empty string, not {shown(name)}")
    if isinstance(value, str):
        return PoolConfig(name, value, sources={"url": name})
    if not isinstance(value, Mapping):
        raise TypeError(f"{masked(name)} must be a URL or a mapping, not {type(value).__name__}")
    rest = dict(value)
    url, critical = rest.pop("url", None), rest.pop("critical", True)
    if not isinstance(url, str):
        raise ValueError(f"{masked(name)}: url must be a text such as postgresql://..., and is missing or none")
    if not isinstance(critical, bool):
        raise TypeError(f"{masked(name)}: critical must be true or false, not {shown(critical)}")
    try:
        names = names_of(url)
        given = {key: rest.pop(key) for key in list(rest) if key in names}
        settings = settings_for(url, given) if given else None
    except (TypeError, ValueError) as error:
        raise type(error)(f"{masked(name)}: {error}") from None
    sources = {_ALL_NAMES[key]: f"{name}.{key}" for key in given}
    sources |= {key: f"{name}.{key}" for key in ("url", *rest)}
    return PoolConfig(name, url, settings, rest, critical, sources)


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
    settings, said = _shared(prefix, environ, arguments.pop("settings"), _said(own, environ, {*words, "TIMEOUT"}))
    url = variable(environ, f"{own}BASE_URL") or "http://"
    return PoolConfig(HTTP, url, settings, arguments, sources={**sources, **said})


def _database(prefix: str, environ: Mapping[str, str], database: str, source: str) -> PoolConfig:
    urls = (f"{prefix}DATABASE_URL", f"{prefix}DB_URL")
    others = {name: text for name, text in environ.items() if name not in urls}
    try:
        url = url_of(database)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None
    base = _room_for(DATABASE_SETTINGS, parameters(url)[0])
    settings, sources = _settings(prefix, ("DB_", "DATABASE_"), others, base)
    return PoolConfig(DATABASE, url, settings, sources={"url": source, **sources})


def _settings(
    prefix: str, parts: tuple[str, ...], environ: Mapping[str, str], base: PoolSettings
) -> tuple[PoolSettings, dict[str, str]]:
    """Read settings whose variables begin with one of the parts; and where each was said."""
    said: list[tuple[str, str, object]] = []
    for part in parts:
        known = {prefix + part + name.upper(): name for name in _ALL_NAMES if name != "backoff"}
        _warn_of_misspelt(prefix + part, environ, known)
        said += [(name, _ALL_NAMES[known[name]], environ[name]) for name in known if variable(environ, name)]
    sources = {setting: variable for variable, setting, _ in reversed(said)}
    base = _room_for(base, {setting: environ[variable] for setting, variable in sources.items()})
    if "max_overflow" in sources:
        sources.setdefault("max_idle", sources.get("max_size", ""))
    return _shared(prefix, environ, _overlay(base, _read(said)), sources)


def _said(prefix: str, environ: Mapping[str, str], except_for: Container[str]) -> dict[str, str]:
    """Return by which variable each setting with this prefix is said."""
    return {
        setting: prefix + name.upper()
        for name, setting in _ALL_NAMES.items()
        if variable(environ, prefix + name.upper()) and name.upper() not in except_for
    }


def _shared(
    prefix: str, environ: Mapping[str, str], settings: PoolSettings, sources: dict[str, str]
) -> tuple[PoolSettings, dict[str, str]]:
    """Lay what is said for both pools below what is said for this one."""
    for name, setting in _SHARED.items():
        if variable(environ, prefix + name) and setting not in sources:
            settings = _overlay(settings, _read([(prefix + name, setting, environ[prefix + name])]))
            sources = {**sources, setting: prefix + name}
    return settings, sources


def _room_for(base: PoolSettings, said: Mapping[str, str]) -> PoolSettings:
    """Let our own ``min_size`` not stand in the way of a smaller maximum that was said."""
    texts = (said.get(setting, "").strip() for setting in ("max_size", "max_idle"))
    most = min([int(text) for text in texts if text.isdecimal()], default=base.min_size)
    return base.replace(min_size=min(base.min_size, most))


# -- the command -------------------------------------------------------------------

HELP = "print which settings are in force, and where each was said"
DESCRIPTION = """
Reads the environment as application_lifespan() and PoolManager.from_env() do, and prints the
pools, their settings and where each value comes from. Passwords and other secrets are masked.
Opens nothing. The exit code is 0, or 1 if a value is bad.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument("--prefix", default="", metavar="P", help="what stands before all names")
    parser.add_argument("--database", metavar="URL", help="a database's file or URL (default: DATABASE_URL)")
    parser.add_argument("--url", metavar="URL", help="a single pool, by its URL, instead of the environment")


def run(options: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    """Print what is in force and return the exit code."""
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
    rows = config.lines()
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    lines = [f"  {what:{widths[0]}}  {value:{widths[1]}}  {source}" for what, value, source in rows]
    return "\n".join([config.name, *lines])


def _shown(name: str, value: object) -> object:
    """A value as it may be shown, those in mappings and lists too."""
    if any(word in name.lower() for word in _SECRETS) and value is not None:
        return "***"
    if isinstance(value, Mapping):
        return {key: _shown(str(key), part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_shown(name, part) for part in value]
    return masked(value) if isinstance(value, str) else value

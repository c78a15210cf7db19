"""Pools by URL: the scheme selects the kind of pool, and other packages can add schemes.

A package adds a scheme with an entry point in the group ``pooling.schemes``,
named like the scheme. Its object is called like those in `SCHEMES`::

    build(url, *, settings, name, **arguments) -> Pool

Pool settings have been removed from the query of ``url``; the function handles
the remaining parameters.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from typing import Any
from urllib.parse import parse_qsl, unquote_plus, urlunsplit

from ._masking import masked, shown, split
from .core.managed import ManagedPool
from .settings import _ALL_NAMES, _OWN_NAMES, OTHER_SCHEMES, PoolSettings, _closest, _hikari, _meant, truth

__all__ = [
    "GROUP", "SCHEMES", "engine_url", "from_url", "masked", "parameters", "names_of", "normal", "scheme_of",
    "settings_for",
]  # fmt: skip

Build = Callable[..., ManagedPool[Any]]

GROUP = "pooling.schemes"

SCHEMES = {
    "postgresql": "pooling.adapters.postgres:PostgresPool",
    "postgres": "pooling.adapters.postgres:PostgresPool",
    "postgresql+cluster": "pooling.cluster:PostgresCluster.from_url",
    **{
        f"{server}{driver}": "pooling.adapters.mysql:MySQLPool"
        for server in ("mysql", "mariadb") for driver in ("", "+pymysql", "+mysqldb", "+mysqlconnector")
    },
    "sqlite": "pooling.adapters.sqlite:SQLitePool.from_url",
    "redis": "pooling.adapters.redis:RedisPool.from_url",
    "rediss": "pooling.adapters.redis:RedisPool.from_url",
    "unix": "pooling.adapters.redis:RedisPool.from_url",
    "http": "pooling._urls:http_pool",
    "https": "pooling._urls:http_pool",
    "sqlalchemy": "pooling.adapters.engines:engine_of",
}

# The defaults of `HTTPPool`: sockets are cheaper than database connections.
# SQLAlchemy pings only if it is told to.
_BASES = {
    **dict.fromkeys(("http", "https"), PoolSettings(min_size=0, max_size=100)),
    "sqlalchemy": PoolSettings(min_size=0, validate_on_acquire=False),
}
_EXTRAS = {  # the extra that installs the driver
    "postgresql": "binary", "postgres": "binary", "mysql": "mysql", "mariadb": "mysql", "sqlalchemy": "sqlalchemy",
    **dict.fromkeys(("redis", "rediss", "unix"), "redis"),
}  # fmt: skip
# Parameters of a kind itself, which for other kinds are another library's name for a setting.
_OWN_PARAMETERS = {
    **dict.fromkeys(("postgresql", "mysql", "mariadb"), set[str]()),
    **dict.fromkeys(("http", "https"), {"timeout", "pool_timeout"}),
    **dict.fromkeys(("redis", "rediss", "unix"), {"health_check_interval"}),
}
_BUDGETED = {"postgresql", "mysql", "mariadb", "redis", "rediss", "unix"}  # whose pools have an argument ``budget``
_ENGINE = "sqlalchemy+"
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*")
_SQLITE = re.compile(r"(?is)(sqlite|sqlite3|sqlite\+pysqlite):(?!//)(.*)")
# What precedes the query: a ? followed by an @ before the next slash is part of a user or password.
_AUTHORITY = re.compile(r"[^:/?#]*://(?:[^/?#]*@|(?![^@/?#]*\?[\w.-]+=)[^/]*@)?")


def from_url(
    url: str, *, name: str | None = None, settings: PoolSettings | None = None, engine: bool = False, **arguments: Any
) -> Any:
    """Create the pool that a URL describes. Opens nothing.

    ::

        from_url("postgresql://app@db/orders?max_size=20&sslmode=require")
        from_url("postgresql+cluster://app@db1,db2/orders?max_lag=5")
        from_url("mysql://app@db/orders?max_size=20&charset=utf8mb4")
        from_url("sqlite:///app.db?readers=4")
        from_url("https://api.example.com?max_connections=50&timeout=5")
        from_url("mysql+pymysql://app@db/orders?max_size=20", engine=True)  # a SQLAlchemy engine on this pool

    Args:
        url: The scheme selects the kind of pool. Query parameters that are
            pool settings, under any name that `PoolSettings.from_mapping`
            accepts, are applied and removed; the others go to the driver.
        name: The pool's name in messages.
        settings: Settings for what the URL leaves open; ``None`` means the defaults.
        engine: Create a SQLAlchemy engine on our pool, see `adapters.engines`.
            A URL that begins with ``sqlalchemy+`` means the same.
        arguments: Further arguments of the pool's class, and fields of
            `PoolSettings`, which take precedence over the URL.

    Raises:
        ValueError: The scheme is unknown, or a parameter is unknown or invalid.
        ImportError: The driver is not installed.
        TypeError: An argument is unknown or has the wrong type.
    """
    url = engine_url(url) if engine else normal(url)
    build = _builder(scheme_of(url))
    rest, given, others = _split(url)
    if given:
        try:
            settings = settings_for(url, given, settings)
        except ValueError as error:
            rule = str(error)
            if "@" in url.partition("?")[2]:  # the value may be a part of a password with a ? in it
                rule = f"invalid value for {' or '.join(given)}"
            raise ValueError(f"{masked(url)}: {rule}") from None
    if scheme_of(url).partition("+")[0] in _BUDGETED:
        rest, budget = _take("budget", rest)
        if budget is not None:
            arguments.setdefault("budget", budget)
    own = _OWN_PARAMETERS.get(scheme_of(url), set())
    options = {key: arguments.pop(key) for key in list(arguments) if key in _OWN_NAMES and key not in own}
    if options and (settings is None or isinstance(settings, PoolSettings)):  # other packages' kinds may not take them
        settings = (settings or settings_for(url, {})).replace(**options)
    try:
        return build(rest, settings=settings, name=name, **arguments)
    except (TypeError, ValueError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"{masked(url)}: {error}{_hint(others, str(error))}") from error


def settings_for(url: str, given: Mapping[str, object], base: PoolSettings | None = None) -> PoolSettings:
    """Return settings for a URL: the given ones over the defaults of its scheme.

    Args:
        url: The URL; its query is not read.
        given: As for `PoolSettings.from_mapping`, with the same errors.
        base: Replaces the defaults of the scheme.
    """
    return PoolSettings.from_mapping(given, base=base or _BASES.get(scheme_of(url)))


def parameters(url: str) -> tuple[dict[str, str], dict[str, str]]:
    """Return a URL's query parameters by name: the settings, under our names, and the others."""
    _, given, others = _split(normal(url))
    found = {_ALL_NAMES[name]: text for name, text in given.items()}
    if "max_overflow" in found and "max_size" in found:
        found.setdefault("max_idle", found["max_size"])
    return found, others


def scheme_of(url: str) -> str:
    """Return our name for a URL's scheme, see `OTHER_SCHEMES`.

    Raises:
        TypeError: It is not a string.
        ValueError: It is not a URL. The message omits it, because it may contain a password.
    """
    if not isinstance(url, str):
        raise TypeError(f"url must be a string, not {type(url).__name__}")
    if _SQLITE.match(url):
        return "sqlite"
    scheme, separator, _ = url.partition("://")
    if not separator or not _SCHEME.fullmatch(scheme):
        raise ValueError("url must begin with a scheme, such as postgresql:// or sqlite:///")
    if scheme.lower().startswith(_ENGINE):
        return "sqlalchemy"
    return OTHER_SCHEMES.get(scheme.lower(), scheme.lower())


def normal(url: str) -> str:
    """Return a URL with other libraries' schemes replaced by ours (`OTHER_SCHEMES`).

    ``sqlite:/abs/path`` becomes ``sqlite:////abs/path``.

    Raises:
        As for `scheme_of`.
    """
    short = _SQLITE.match(url) if isinstance(url, str) else None
    if short is not None:
        return f"sqlite:///{short[2]}"
    scheme = scheme_of(url)
    return url if scheme == "sqlalchemy" else f"{scheme}://{url.partition('://')[2]}"


def engine_url(url: str) -> str:
    """Return a URL of SQLAlchemy with ``sqlalchemy+`` before it, which `from_url` understands.

    Raises:
        As for `scheme_of`.
    """
    return url if scheme_of(url) == "sqlalchemy" else f"{_ENGINE}{url}"


def names_of(url: str) -> Mapping[str, str]:
    """Return the setting for each name that a URL's query, or a mapping with such a URL, may use."""
    own = _OWN_PARAMETERS.get(scheme_of(url).partition("+")[0], {"timeout"})
    return {name: setting for name, setting in _ALL_NAMES.items() if name not in own}


def _builder(scheme: str) -> Build:
    target = SCHEMES.get(scheme)
    try:
        if target is not None:
            return _load(target)
        for point in _entry_points():
            if point.name == scheme:
                return point.load()  # type: ignore[no-any-return]
    except (ImportError, AttributeError) as error:  # no module, or the name is not in it
        extra = _EXTRAS.get(scheme.partition("+")[0])
        advice = f'; pip install "pooling[{extra}]"' if extra else ""
        raise ImportError(
            f"{scheme}:// needs a driver that is not installed or cannot be loaded: {error}{advice}"
        ) from error
    known = sorted({*(each for each in SCHEMES if "+" not in each), *(point.name for point in _entry_points())})
    closest = _closest(scheme, [*known, *SCHEMES, *OTHER_SCHEMES], 0.75)
    closest = OTHER_SCHEMES.get(closest or "", closest)
    hint = f"; did you mean {closest!r}?" if closest else ""
    raise ValueError(
        f"unknown scheme {scheme!r}{hint} (known: {', '.join(known)}; packages add others with an entry point "
        f"{GROUP!r}; for anything else pass a factory function: create_pool(name, connect))"
    )


def _entry_points() -> Any:
    from importlib.metadata import entry_points  # here: slow, and most programs need no entry point

    return entry_points(group=GROUP)


def _load(target: str) -> Build:
    module, _, path = target.partition(":")
    found: Any = import_module(module)
    for part in path.split("."):
        found = getattr(found, part)
    return found  # type: ignore[no-any-return]


def _split(url: str) -> tuple[str, dict[str, str], dict[str, str]]:
    """Split a URL: the URL without settings, the settings, the other parameters."""
    authority = _AUTHORITY.match(url)
    start = authority.end() if authority else 0
    head, mark, query = url[start:].partition("?")
    given: dict[str, str] = {}
    others: dict[str, str] = {}
    kept: list[str] = []
    names = names_of(url)
    for token in filter(None, query.split("&")):
        key, _, text = token.partition("=")
        if key not in names:
            kept.append(token)
            if (theirs := _hikari(key)) and scheme_of(url) in SCHEMES:
                raise ValueError(f"{masked(url)}: {theirs}")
        elif key in given:
            raise ValueError(f"{masked(url)}: {key} is given twice")
        elif "@" in text:  # it may be part of a password that contains a ?, and must not be shown
            raise ValueError(f"{masked(url)}: {key} contains an @; user and password must be percent-encoded")
        if key in names:
            given[key] = unquote_plus(text)
        elif re.fullmatch(r"[\w.-]+", key) and "@" not in query:  # likewise
            others[key] = unquote_plus(text)
    return url[:start] + head + (mark + "&".join(kept) if kept else ""), given, others


def _take(name: str, url: str) -> tuple[str, str | None]:
    """Remove a query parameter that is not a setting from a URL; return the rest, and its value if it is there."""
    found = re.search(rf"(?<=[?&]){name}=([^&@]*)(?:&|$)", url)
    if found is None:
        return url, None
    rest = url[: found.start()] + url[found.end() :]
    return rest.rstrip("?&"), unquote_plus(found[1])


def _hint(parameters: Iterable[str], error: str) -> str:
    """Suggest names for the unknown parameters that an error mentions."""
    named = [name for name in parameters if re.search(rf"(?<![\w.-]){re.escape(name)}(?![\w.-])", error)]
    if not re.search(r"(?i)unknown parameter|query parameter|keyword", error):
        return ""
    near = {name: _meant(name, _ALL_NAMES) for name in named}
    return "".join(f"; did you mean {close!r} instead of {name!r}?" for name, close in near.items() if close)


# -- http ------------------------------------------------------------------------


def http_pool(
    url: str, *, settings: PoolSettings | None = None, name: str | None = None, **arguments: Any
) -> ManagedPool[Any]:
    """Create an `HTTPPool` with the URL as its ``base_url``; without a host it has none.

    Args:
        url: Its query may have ``timeout``, or ``connect_timeout``,
            ``read_timeout`` and so on as in `HTTPTimeout`, and the arguments
            in `_HTTP_PARAMETERS`.
        settings, name, arguments: As for the class.

    Raises:
        ValueError: A parameter is unknown or invalid.
    """
    from .adapters.http import HTTPPool, HTTPTimeout

    if "@" in url.partition("?")[2]:  # urlsplit ends the host at the ?
        raise ValueError("user, password and parameters must be percent-encoded, ? as %3F and @ as %40")
    parts = split(url)
    given: dict[str, Any] = {}
    times: dict[str, float] = {}
    for key, text in parse_qsl(parts.query, keep_blank_values=True):
        part = key.removesuffix("_timeout")
        if part != key and part in HTTPTimeout.__dataclass_fields__:
            times[part] = _read(float, key, text)
        elif key in _HTTP_PARAMETERS:
            given[key] = _read(_HTTP_PARAMETERS[key], key, text)
        else:
            raise ValueError(f"unknown parameter {shown(key)}")
    if times:
        given["timeout"] = dataclasses.replace(HTTPTimeout.of(given.get("timeout"), HTTPTimeout()), **times)
    base = urlunsplit((*parts[:3], "", "")) if parts.netloc else None
    return HTTPPool(settings=settings, name=name, **{"base_url": base, **given, **arguments})


def _read(kind: Callable[[str], Any], key: str, text: str) -> Any:
    try:
        return kind(text)
    except (ValueError, KeyError):
        raise ValueError(f"invalid value: {key}={shown(text)}") from None


def _trust(text: str) -> bool | str:
    """``verify``: a boolean, or a file of certificates."""
    try:
        return truth(text)
    except ValueError:
        return text


_HTTP_PARAMETERS: dict[str, Callable[[str], Any]] = {
    "timeout": float, "max_per_host": int, "retry": int, "verify": _trust, "compression": truth,
    "cookies": str, "trust_env": truth, "health_url": str, "pooled": truth,
}  # fmt: skip

"""The settings of a pool: one immutable object, validated in one place.

Code, presets, mappings and the environment all build the same
:class:`PoolSettings`. Invalid values are never adjusted silently: the error
names the field, the value and the rule. All times are seconds.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from operator import ge, gt, le, lt
from typing import Any, TypedDict

from ._fields import fields
from ._masking import shown
from .breaker import CircuitBreaker
from .lanes import Lane, Lanes

__all__ = ["Backoff", "PoolOptions", "PoolSettings", "with_options"]

#: Other libraries' names for our fields: `from_mapping` and `from_env` accept both.
OTHER_NAMES = {
    # HTTP and SQLite pools with a limit on connections; httpx
    "max_connections": "max_size",
    "min_connections": "min_size",
    "connection_timeout": "acquire_timeout",
    "max_keepalive_connections": "max_idle",
    "keepalive_expiry": "idle_timeout",
    # SQLAlchemy, and frameworks that use its names; max_overflow is added to pool_size
    "max_pool_size": "max_size",
    "min_pool_size": "min_size",
    "pool_size": "max_size",
    "max_overflow": "max_overflow",
    "pool_timeout": "acquire_timeout",
    "pool_recycle": "max_lifetime",
    "pool_pre_ping": "validate_on_acquire",
    # psycopg_pool; Prisma
    "timeout": "acquire_timeout",
    "connection_limit": "max_size",
    # pools that limit and delay the attempts to connect
    "retry_limit": "max_attempts",
    "retry_delay": "backoff_initial",
    "max_retry_attempts": "max_attempts",
    "initial_retry_delay": "backoff_initial",
    "max_retry_delay": "backoff_maximum",
    "retry_backoff_multiplier": "backoff_multiplier",
    "retry_jitter": "backoff_jitter",
    "validate_on_checkout": "validate_on_acquire",
    "enable_pool_metrics": "enable_metrics",
    "metrics_collection_interval": "metrics_interval",
}
#: HikariCP's names, which are refused because its times are milliseconds.
_HIKARI = {
    "maximumPoolSize": "max_size",
    "minimumIdle": "min_size",
    "connectionTestQuery": "validation_query",
    "poolName": "the argument name",
    "connectionTimeout": "acquire_timeout, in seconds",
    "idleTimeout": "idle_timeout, in seconds",
    "maxLifetime": "max_lifetime, in seconds",
    "keepaliveTime": "keepalive_interval, in seconds",
    "validationTimeout": "health_check_timeout, in seconds",
    "leakDetectionThreshold": "leak_timeout, in seconds",
    "initializationFailTimeout": "the argument of open(), in seconds",
}
#: Other libraries' names for URL schemes.
OTHER_SCHEMES = {
    "postgres": "postgresql",
    "postgresql+psycopg": "postgresql",
    "postgresql+psycopg2": "postgresql",
    "postgres+psycopg": "postgresql",
    "postgres+psycopg2": "postgresql",
    "postgis": "postgresql",
    "sqlite3": "sqlite",
    "sqlite+pysqlite": "sqlite",
}
# Valid variables of the HTTP pools that look like misspelt names of settings.
_NOT_MISSPELT = {"connect_timeout", "retry_attempts"}
# Names whose closest spelling among ours means something else, so a hint by spelling would mislead.
_MEANT = {
    "connect_timeout": "create_timeout", "size": "max_size", "recycle": "max_lifetime",
    "pre_ping": "validate_on_acquire",
}  # fmt: skip

_HOLDS = {"at least": ge, "above": gt, "at most": le, "below": lt}
_Bounds = tuple[tuple[str, float], ...]  # a key of _HOLDS and a number; nan satisfies none of them
# A longer wait raises OverflowError in the interpreter. This refuses inf as well.
_LONGEST = ("at most", threading.TIMEOUT_MAX)
_BOUNDS: dict[str, _Bounds] = {  # of fields whose bounds differ from those of their kind in _KINDS
    "min_size": (("at least", 0),),
    "max_idle": (("at least", 0),),
    "max_waiting": (("at least", 0),),
    "max_overflow": (("at least", 0),),
    "acquire_timeout": (("at least", 0), _LONGEST),
    "lifetime_jitter": (("at least", 0), ("below", 1)),
    "validation_interval": (("at least", 0), _LONGEST),
    "multiplier": (("at least", 1), ("below", float("inf"))),
}
_CHOICES = {"adaptive": ("off", "observe", "on")}
_TRUTH = dict.fromkeys(("1", "true", "yes", "on"), True)
_TRUTH |= dict.fromkeys(("0", "false", "no", "off"), False)


def truth(text: str) -> bool:
    """Return the boolean that a string stands for: ``1/0``, ``true/false``, ``yes/no`` or ``on/off``.

    URLs, variables and mappings all use this function.

    Raises:
        ValueError: It is none of these.
    """
    try:
        return _TRUTH[text.strip().lower()]
    except KeyError:
        raise ValueError("must be true or false") from None


def check_flag(name: str, value: object) -> bool:
    """Return an argument that is a boolean; a text such as ``"off"`` would count as true.

    Raises:
        TypeError: It is not a boolean.
    """
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be true or false, not {shown(value)}")
    return value


def variable(environ: Mapping[str, str], name: str) -> str | None:
    """Return the value of a variable; ``None`` if it is unset or empty (compose files pass unset ones as empty)."""
    text = environ.get(name)
    return text if text is not None and text.strip() else None


@dataclass(frozen=True, kw_only=True)
class Backoff:
    """Delays between attempts to reach a server that is down (P7).

    Attributes:
        initial: Seconds before the second attempt. Short, because most
            outages are short: redis-py begins with 0.01.
        maximum: The longest delay in seconds.
        multiplier: Factor by which each further failure increases the delay.
        jitter: Choose each delay at random between 0 and its full length, so
            that clients which failed together do not retry together ("full
            jitter", AWS Architecture Blog, "Exponential Backoff And Jitter").
        probe_interval: The longest delay in seconds while a thread waits for
            the server. In simulated outages of 1 to 60 s, the first success
            came 0.07 s after the recovery with 0.25, and seconds after it
            without this limit.
    """

    initial: float = 0.05
    maximum: float = 30.0
    multiplier: float = 2.0
    jitter: bool = True
    probe_interval: float = 0.25

    def __post_init__(self) -> None:
        _check(self, ("initial", "maximum"))

    def delay(self, failures: int, *, waiting: bool, random: Callable[[], float]) -> float:
        """Return the seconds to wait before the next attempt.

        Args:
            failures: Number of consecutive failed attempts, at least 1.
            waiting: Whether a thread is waiting for a resource.
            random: Returns a number from 0 to 1, as ``random.random`` does.

        Raises:
            ValueError: ``failures`` is below 1.
        """
        if failures < 1:
            raise ValueError(f"failures must be at least 1, not {failures!r}")
        try:
            delay = min(self.maximum, self.initial * self.multiplier ** (failures - 1))
        except OverflowError:  # 2.0 ** 1024: an outage of some hours
            delay = self.maximum
        if waiting:
            delay = min(delay, self.probe_interval)
        return delay * random() if self.jitter else delay


@dataclass(frozen=True, kw_only=True)
class PoolSettings:
    """The settings of a pool, validated when the object is created.

    The presets take ``changes`` as :meth:`replace` does.

    Example::

        PoolSettings(max_size=20, acquire_timeout=2.0)
        PoolSettings.conservative(max_size=3)
        PoolSettings.from_env("DB_")               # DB_MAX_SIZE, DB_IDLE_TIMEOUT, ...

    Attributes:
        min_size: Resources kept open, idle or in use; 0 keeps none.
        max_size: The maximum number of resources, in any state (P2). 10 is
            HikariCP's default.
        max_idle: The maximum number of idle resources; more are closed when
            they are released. ``None`` means ``max_size``, and so does any
            larger number. Must not be below ``min_size``, or the pool would
            close and create resources for ever.
        max_waiting: The maximum number of waiting threads; further ones are
            refused with :class:`TooManyWaiting`. ``None`` means no limit, 0
            means no waiting.
        acquire_timeout: Seconds until ``acquire`` gives up; 0 means do not wait.
        create_timeout: Seconds one creation may take before its slot is freed.
        max_lifetime: Age in seconds at which a resource is replaced, once it is
            not in use. ``None`` means never. 3600 is psycopg_pool's default.
        lifetime_jitter: A fraction of ``max_lifetime``, at least 0 and below 1.
            A random part of it is subtracted for each resource, so that
            resources created together do not expire together. Nothing is ever
            added to the maximum.
        idle_timeout: Seconds unused after which a resource above ``min_size``
            is closed. ``None`` means never.
        max_uses: Number of leases after which a resource is replaced. ``None``
            means no limit.
        validate_on_acquire: Make a round trip before lending a resource that
            was idle for longer than ``validation_interval``. The check that
            needs no round trip is always made.
        validation_interval: Seconds for which an idle resource is trusted
            without a round trip; 0 means never. 0.5 is HikariCP's
            ``aliveBypassWindowMs``.
        validation_query: The query a database adapter sends as that round trip.
            ``None`` means the cheapest one it has.
        keepalive_interval: Seconds idle after which a round trip is made in the
            background, so that firewalls do not drop the connection. ``None``
            means no keepalive.
        max_validation_failures: Number of consecutive failed round trips after
            which the other resources are replaced without a check. Each
            resource whose round trip fails is discarded.
        max_attempts: Number of consecutive failed creations after which waiting
            borrowers get the server's error. ``None`` means that they wait
            until their deadline. The pool itself never gives up.
        backoff: The delays between these attempts, a :class:`Backoff`.
        health_check_interval: Seconds between two health checks. ``None`` means
            no health check.
        health_check_timeout: Seconds until a health check counts as failed.
        reset_timeout: Seconds a release may spend on cleaning the resource (P4).
        close_timeout: Seconds until a close that hangs is abandoned (P2). 5 is
            psycopg_pool's default.
        leak_timeout: Seconds in use after which a lease is reported as a leak.
            ``None`` means never.
        track_holders: Record where each resource was acquired, for messages
            and ``pool.holders()`` (P12).
        enable_metrics: Count and time what the pool does.
        metrics_interval: Seconds between two samples of the metrics.
        adaptive: Whether the size follows the load. ``"on"`` finds the size
            with the most completed leases per second, between ``min_size`` and
            ``max_size``; it begins with 10. ``"observe"`` only says what it
            would do. ``"off"`` does neither.
        lanes: What shares the pool, by name, see :class:`Lane`. ``max_waiting``
            then holds for each lane. ``None`` means that there are none, and
            waiters are served strictly in order of arrival. A string such as
            ``"health:reserve=1,web:weight=4,batch:most=5"``, for URLs and the
            environment, or mappings with the fields of a lane mean the same.
        breaker: A :class:`CircuitBreaker`: while creations keep failing, a
            borrower that would need one gets :class:`CircuitOpen` at once, and
            the next attempt is when the breaker says. ``None`` means that
            borrowers wait. A string such as ``"failures=3,open_for=10"`` or
            ``"on"``, for URLs and the environment, means the same.

    Raises:
        TypeError: A value has the wrong type: a string or a bool for a number.
        ValueError: A value breaks its field's rule.
    """

    min_size: int = 1
    max_size: int = 10
    max_idle: int | None = None
    max_waiting: int | None = None
    acquire_timeout: float = 10.0
    create_timeout: float = 30.0
    max_lifetime: float | None = 3600.0
    lifetime_jitter: float = 0.1
    idle_timeout: float | None = 300.0
    max_uses: int | None = None
    validate_on_acquire: bool = True
    validation_interval: float = 0.5
    validation_query: str | None = None
    keepalive_interval: float | None = None
    max_validation_failures: int = 3
    max_attempts: int | None = None
    backoff: Backoff = dataclasses.field(default_factory=Backoff)
    health_check_interval: float | None = 10.0
    health_check_timeout: float = 5.0
    reset_timeout: float = 5.0
    close_timeout: float = 5.0
    leak_timeout: float | None = None
    track_holders: bool = True
    enable_metrics: bool = True
    metrics_interval: float = 5.0
    adaptive: str = "off"
    lanes: Mapping[str, Lane] | None = None
    breaker: CircuitBreaker | None = None

    def __post_init__(self) -> None:
        _check(self, ("min_size", "max_size"), ("min_size", "max_idle"))
        if isinstance(self.lanes, Lanes):
            try:
                self.lanes.check(self.max_size)
            except ValueError as rule:
                raise ValueError(f"PoolSettings.lanes {rule}") from None

    @classmethod
    def conservative(cls, **changes: object) -> PoolSettings:
        """For a small application or a shared server: few resources, kept for a long time."""
        return cls(
            min_size=1, max_size=5, max_idle=2, max_lifetime=7200, idle_timeout=1800,
            acquire_timeout=30, max_attempts=3, backoff=Backoff(initial=1.0),
        ).replace(**changes)  # fmt: skip

    @classmethod
    def balanced(cls, **changes: object) -> PoolSettings:
        """For the usual web application."""
        return cls(
            min_size=5, max_size=20, max_idle=10, max_lifetime=3600, idle_timeout=300,
            acquire_timeout=10, max_attempts=3, backoff=Backoff(initial=0.5),
        ).replace(**changes)  # fmt: skip

    @classmethod
    def aggressive(cls, **changes: object) -> PoolSettings:
        """For throughput: many resources, lent without a round trip."""
        return cls(
            min_size=10, max_size=100, max_idle=20, max_lifetime=1800, idle_timeout=600,
            acquire_timeout=5, max_attempts=5, backoff=Backoff(initial=0.1),
            validate_on_acquire=False,
        ).replace(**changes)  # fmt: skip

    @classmethod
    def trading(cls, **changes: object) -> PoolSettings:
        """For thousands of queries a second on PostgreSQL: always warm, always checked."""
        return cls(
            min_size=10, max_size=100, max_attempts=5,
            backoff=Backoff(initial=0.5, maximum=30, multiplier=2, jitter=True),
        ).replace(**changes)  # fmt: skip

    def replace(self, **changes: object) -> PoolSettings:
        """Return new, validated settings that differ in ``changes``.

        The fields of ``backoff`` can be set individually: ``backoff_initial=0.1``.

        Args:
            changes: New values by field name.

        Raises:
            TypeError: No field has that name; the message suggests the closest.
                Or a value has the wrong type.
            ValueError: A value breaks a rule, or a field is given twice.
        """
        for name in changes:
            if name not in _OWN_NAMES:
                raise TypeError(_unknown(name, _OWN_NAMES))
        return _overlay(self, ((name, _OWN_NAMES[name], changes[name]) for name in changes))

    @classmethod
    def from_mapping(
        cls, mapping: Mapping[str, object], *, base: PoolSettings | None = None
    ) -> PoolSettings:
        """Build settings from a parsed file, a framework's configuration or the like.

        Args:
            mapping: Values by name. A name is a field, a field of ``backoff``
                (``backoff_initial``), or another library's name for one
                (:data:`OTHER_NAMES`): ``pool_size`` and ``max_overflow`` together
                are ``max_size``, with ``pool_size`` as ``max_idle``; a
                ``pool_recycle`` of -1 means never. Strings are parsed: numbers,
                ``1/0/true/false/yes/no/on/off``, and ``none`` or ``never`` where
                a field may be ``None``.
            base: Settings for everything not in ``mapping``; ``None`` means the
                defaults.

        Raises:
            ValueError: A name is unknown (the message suggests the closest), a
                field is given twice, or a value cannot be parsed or breaks a rule.
            TypeError: A value that is not a string has the wrong type.
        """
        for name in mapping:
            if name not in _ALL_NAMES:
                raise ValueError(_unknown(name, _ALL_NAMES))
        given = ((name, _ALL_NAMES[name], mapping[name]) for name in mapping)
        return _overlay(base or cls(), _read(given))

    @classmethod
    def from_env(
        cls,
        prefix: str,
        environ: Mapping[str, str] | None = None,
        *,
        base: PoolSettings | None = None,
    ) -> PoolSettings:
        """Build settings from environment variables: ``DB_MAX_SIZE``, ...

        Names and values are those of :meth:`from_mapping`, with the names in
        upper case. An empty variable counts as unset. Other variables with the
        prefix are ignored; one that looks like a misspelt setting causes a
        warning in the log.

        Args:
            prefix: How the names begin, including the underscore: ``"DB_"``.
            environ: The variables; ``None`` means ``os.environ``.
            base: Settings for everything not set there; ``None`` means the defaults.

        Raises:
            ValueError: A value cannot be parsed or breaks its field's rule, or a
                field is given twice (these errors give the variable's full
                name), or two fields conflict.
        """
        environ = os.environ if environ is None else environ
        known = {prefix + name.upper(): name for name in _ALL_NAMES if name != "backoff"}
        _warn_of_misspelt(prefix, environ, known)
        given = ((var, _ALL_NAMES[known[var]], variable(environ, var)) for var in known)
        return _overlay(base or cls(), _read(one for one in given if one[2] is not None))


class _Options(TypedDict, total=False):
    # For `PostgresPool`, which has its own argument validation_query.
    min_size: int
    max_size: int
    max_idle: int | None
    max_waiting: int | None
    acquire_timeout: float
    create_timeout: float
    max_lifetime: float | None
    lifetime_jitter: float
    idle_timeout: float | None
    max_uses: int | None
    validate_on_acquire: bool
    validation_interval: float
    keepalive_interval: float | None
    max_validation_failures: int
    max_attempts: int | None
    backoff: Backoff
    backoff_initial: float
    backoff_maximum: float
    backoff_multiplier: float
    backoff_jitter: bool
    backoff_probe_interval: float
    health_check_interval: float | None
    health_check_timeout: float
    reset_timeout: float
    close_timeout: float
    leak_timeout: float | None
    track_holders: bool
    enable_metrics: bool
    metrics_interval: float
    adaptive: str
    lanes: Mapping[str, Lane] | None
    breaker: CircuitBreaker | None


class PoolOptions(_Options, total=False):
    """The fields of `PoolSettings`, which every pool class takes as keyword arguments; for type checkers."""

    validation_query: str | None


def with_options(settings: PoolSettings, options: Mapping[str, object], init: Any) -> PoolSettings:
    """Return settings with a pool's further keyword arguments applied.

    Args:
        settings: The settings to start from.
        options: Values by field name.
        init: The pool's ``__init__``, so that an error can suggest its arguments, too.

    Raises:
        TypeError: No argument and no field has that name; the message suggests
            the closest. Or a value has the wrong type.
        ValueError: A value breaks its field's rule.
    """
    if not isinstance(settings, PoolSettings):
        raise TypeError(f"settings must be a PoolSettings, not of type {type(settings).__name__}")
    for name in options:
        if name not in _OWN_NAMES:
            code = init.__code__
            own = code.co_varnames[1 : code.co_argcount + code.co_kwonlyargcount]
            raise TypeError(f"{init.__qualname__.partition('.')[0]}(): {_unknown(name, [*own, *_OWN_NAMES])}")
    return settings.replace(**options) if options else settings


# The accepted types, their name in messages, the usual bounds, the parser for strings.
_KINDS: dict[str, tuple[Any, str, _Bounds, Callable[[str], object]]] = {
    "int": (int, "a whole number", (("at least", 1),), int),
    "float": ((int, float), "a number", (("above", 0), _LONGEST), float),
    "bool": (bool, "true or false", (), truth),
    "str": (str, "a string", (), str),
    "Backoff": (Backoff, "a Backoff", (), str),
    "CircuitBreaker": ((CircuitBreaker, str), "a CircuitBreaker", (), str),
    "Mapping[str, Lane]": ((Mapping, str), "a mapping of Lane objects by name", (), str),
}
_FIELDS = {field.name: field for field in dataclasses.fields(PoolSettings)}
_FIELDS |= {f"backoff_{field.name}": field for field in dataclasses.fields(Backoff)}
_OWN_NAMES = {name: name for name in _FIELDS} | {"probe_interval": "backoff_probe_interval"}
_ALL_NAMES = _OWN_NAMES | OTHER_NAMES


@dataclass(frozen=True)
class _Elsewhere:
    """Other libraries' settings that we do not have: `_overlay` converts them."""

    max_overflow: int = 0


_FIELDS |= {field.name: field for field in dataclasses.fields(_Elsewhere)}

_Given = Iterable[tuple[str, str, object]]  # the name as the user wrote it, its name in _FIELDS, the value


def _accept(field: dataclasses.Field[Any], value: Any) -> object:
    """Return ``value`` as ``field`` stores it, or raise the rule that it breaks.

    The message is only the rule: callers prepend the name that the user wrote.
    """
    kind, _, optional = str(field.type).partition(" | ")
    if value is None and optional:
        return None
    types, noun, usual, _ = _KINDS[kind]
    or_none = " or None" if optional else ""
    if not isinstance(value, types) or (isinstance(value, bool) and kind != "bool"):
        raise TypeError(f"must be {noun}{or_none}")
    if field.name == "lanes":
        return Lanes.of(value)
    if field.name == "breaker":
        return CircuitBreaker.of(value)
    for words, bound in _BOUNDS.get(field.name, usual):
        if not _HOLDS[words](value, bound):
            raise ValueError(f"must be {words} {bound:.0f}{or_none}")
    if value not in _CHOICES.get(field.name, (value,)):
        raise ValueError("must be 'off', 'observe' or 'on'")
    if kind == "str" and not value.strip():
        raise ValueError("must not be empty")
    try:
        return float(value) if kind == "float" else value
    except OverflowError:
        raise ValueError("must be a number that a float can hold") from None


def _check(settings: Backoff | PoolSettings, *ordered: tuple[str, str]) -> None:
    """Check every field against its rule, and each pair in ``ordered``: the first must not exceed the second."""
    owner = type(settings).__name__
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        try:
            object.__setattr__(settings, field.name, _accept(field, value))
        except (TypeError, ValueError) as rule:
            raise type(rule)(f"{owner}.{field.name} {rule}, not {shown(value)}") from None
    for low, high in ordered:
        value, limit = getattr(settings, low), getattr(settings, high)
        if limit is not None and value > limit:
            raise ValueError(f"{owner}.{low} must be at most {high} ({limit!r}), not {value!r}")


def _parse(field: dataclasses.Field[Any], text: object) -> object:
    """Return the parsed value; ``text`` itself if it cannot be parsed or is not a string."""
    if not isinstance(text, str):
        return text
    if text.strip().lower() in ("none", "never"):
        return None
    try:
        return _KINDS[str(field.type).partition(" | ")[0]][3](text)
    except (ValueError, KeyError):
        return text


def _read(given: _Given) -> _Given:
    """Parse and check values from outside; errors use the names that the user wrote."""
    for label, name, value in given:
        if label.lower().endswith("pool_recycle") and str(value).strip() == "-1":  # its "never"
            value = None
        try:
            yield label, name, _accept(_FIELDS[name], _parse(_FIELDS[name], value))
        except (TypeError, ValueError) as rule:
            error = ValueError if isinstance(value, str) else type(rule)
            raise error(f"{label}={shown(value)}: {name} {rule}") from None


def _overlay(base: PoolSettings, given: _Given) -> PoolSettings:
    """Return ``base`` with the given values applied, each field at most once."""
    labels: dict[str, str] = {}
    own: dict[str, Any] = {}
    parts: dict[str, Any] = {}
    for label, name, value in given:
        if name in labels:
            raise ValueError(f"{labels[name]} and {label} both set {name}")
        labels[name] = label
        (parts if name.startswith("backoff_") else own)[name.removeprefix("backoff_")] = value
    if "max_overflow" in own:
        overflow = own.pop("max_overflow")
        if not labels.get("max_size", "").lower().endswith("pool_size"):
            raise ValueError(
                f"{labels['max_overflow']} is added to pool_size, which is missing; set max_size to the total instead"
            )
        own.setdefault("max_idle", own["max_size"])
        own["max_size"] += overflow
    if parts:
        if "backoff" in own:
            part = next(name for name in labels if name.startswith("backoff_"))
            raise ValueError(f"{labels['backoff']} and {labels[part]} both set {part}")
        own["backoff"] = dataclasses.replace(base.backoff, **parts)
    return dataclasses.replace(base, **own)


def _warn_of_misspelt(prefix: str, environ: Mapping[str, str], known: Mapping[str, str]) -> None:
    """Log a warning for each variable with the prefix that looks like a misspelt setting."""
    for variable in environ:
        rest = variable[len(prefix) :].lower()
        if not variable.startswith(prefix) or variable in known or rest in _NOT_MISSPELT:
            continue
        if theirs := _hikari(rest):
            extra = fields("misspelt", variable=variable)
            logging.getLogger(__name__).warning("%s is ignored: %s", variable, theirs, extra=extra)
        elif closest := _closest(rest, known.values(), 0.85):
            logging.getLogger(__name__).warning(
                "%s is not a setting; did you mean %s?", variable, prefix + closest.upper(),
                extra=fields("misspelt", variable=variable),
            )


def _hikari(name: str) -> str | None:
    """Return which of our names to use instead of one of HikariCP's; ``None`` if it is not one."""
    found = next((theirs for theirs in _HIKARI if theirs.lower() == name.lower().replace("_", "")), None)
    if found is None or name in _ALL_NAMES:
        return None
    unit = ", in milliseconds" if "seconds" in _HIKARI[found] else ""
    return f"{found} is HikariCP's name{unit}; use {_HIKARI[found]}"


def _closest(name: str, names: Iterable[str], cutoff: float = 0.6) -> str | None:
    import difflib  # here: only an error needs it

    return next(iter(difflib.get_close_matches(name, list(names), 1, cutoff)), None)


def _unknown(name: str, names: Iterable[str]) -> str:
    if theirs := _hikari(str(name)):
        return f"unknown setting {shown(name)}: {theirs}"
    if name == "max_overflow":
        return f"unknown setting {name!r}; max_size is the sum of pool_size and max_overflow"
    closest = _meant(str(name), names)
    return f"unknown setting {shown(name)}" + (f"; did you mean {closest!r}?" if closest else "")


def _meant(name: str, names: Iterable[str]) -> str | None:
    """Return the known name that an unknown one probably means; ``None`` if that is not clear."""
    return _MEANT.get(name) or OTHER_NAMES.get(name) or _closest(name, names, 0.8)


Backoff.__module__ = PoolSettings.__module__ = "pooling"  # where users import them from

"""Settings: every rule, preset and name, and all ways to set a value."""

from __future__ import annotations

import dataclasses
import inspect
import logging
import math
import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pooling.breaker import CircuitBreaker
from pooling.lanes import Lane
from pooling.settings import OTHER_NAMES, Backoff, PoolSettings

NAN, INF = math.nan, math.inf
DEFAULTS = {
    "min_size": 1,
    "max_size": 10,
    "max_idle": None,
    "max_waiting": None,
    "acquire_timeout": 10.0,
    "create_timeout": 30.0,
    "max_lifetime": 3600.0,
    "lifetime_jitter": 0.1,
    "idle_timeout": 300.0,
    "max_uses": None,
    "validate_on_acquire": True,
    "validation_interval": 0.5,
    "validation_query": None,
    "keepalive_interval": None,
    "max_validation_failures": 3,
    "max_attempts": None,
    "backoff": Backoff(),
    "health_check_interval": 10.0,
    "health_check_timeout": 5.0,
    "reset_timeout": 5.0,
    "close_timeout": 5.0,
    "leak_timeout": None,
    "track_holders": True,
    "enable_metrics": True,
    "metrics_interval": 5.0,
    "adaptive": "off",
    "lanes": None,
    "breaker": None,
}
BACKOFF_DEFAULTS = {
    "initial": 0.05,
    "maximum": 30.0,
    "multiplier": 2.0,
    "jitter": True,
    "probe_interval": 0.25,
}
OPTIONAL = {
    "max_idle", "max_waiting", "max_lifetime", "idle_timeout", "max_uses", "validation_query",
    "keepalive_interval", "max_attempts", "health_check_interval", "leak_timeout", "lanes", "breaker",
}  # fmt: skip
KINDS = {  # what a message calls the type, and the fields of that type
    "a whole number": {
        "min_size", "max_size", "max_idle", "max_waiting", "max_uses",
        "max_validation_failures", "max_attempts",
    },
    "true or false": {"validate_on_acquire", "track_holders", "enable_metrics", "jitter"},
    "a string": {"validation_query", "adaptive"},
    "a Backoff": {"backoff"},
    "a mapping of Lane objects by name": {"lanes"},
    "a CircuitBreaker": {"breaker"},
}  # fmt: skip
SECONDS = {
    "acquire_timeout", "create_timeout", "max_lifetime", "idle_timeout", "validation_interval",
    "keepalive_interval", "health_check_interval", "health_check_timeout", "reset_timeout",
    "close_timeout", "leak_timeout", "metrics_interval", "initial", "maximum", "probe_interval",
}  # fmt: skip
KINDS["a number"] = SECONDS | {"lifetime_jitter", "multiplier"}
FIELDS = [*DEFAULTS, *BACKOFF_DEFAULTS]
FLAT = {**{name: name for name in DEFAULTS}, **{f"backoff_{n}": n for n in BACKOFF_DEFAULTS}}


def owner(name: str) -> Any:
    return PoolSettings if name in DEFAULTS else Backoff


def refused(name: str, value: object, error: type[Exception], rule: str) -> None:
    with pytest.raises(error) as raised:
        owner(name)(**{name: value})
    assert type(raised.value) is error
    assert str(raised.value) == f"{owner(name).__name__}.{name} {rule}, not {value!r}"


def value_of(settings: PoolSettings, flat: str) -> object:
    part = settings.backoff if flat.startswith("backoff_") else settings
    return getattr(part, FLAT[flat])


# -- defaults and shape ------------------------------------------------------------------


def test_the_fields_their_order_and_their_defaults() -> None:
    shallow = {f.name: getattr(PoolSettings(), f.name) for f in dataclasses.fields(PoolSettings)}
    assert list(shallow.items()) == list(DEFAULTS.items())
    assert list(dataclasses.asdict(Backoff()).items()) == list(BACKOFF_DEFAULTS.items())


@pytest.mark.parametrize("name", FIELDS)
def test_every_field_is_documented(name: str) -> None:
    assert re.search(rf"^    {name}: [A-Z]", inspect.getdoc(owner(name)) or "", re.MULTILINE)


@pytest.mark.parametrize("name", sorted(OPTIONAL))
def test_the_docs_say_what_none_means(name: str) -> None:
    doc = re.split(r"^    (?=\w+: )", inspect.getdoc(PoolSettings) or "", flags=re.MULTILINE)
    (entry,) = [text for text in doc if text.startswith(f"{name}: ")]
    assert "``None`` means" in " ".join(entry.split())


@pytest.mark.parametrize("made", [PoolSettings(), Backoff()])
def test_frozen_hashable_keyword_only_and_public(made: Any) -> None:
    field = dataclasses.fields(made)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(made, field, 1)
    with pytest.raises(TypeError, match="positional"):
        type(made)(1)
    assert hash(made) == hash(type(made)())
    assert type(made).__module__ == "pooling"


def test_import_of_settings_is_light() -> None:
    code = "import pooling.settings, sys; print('difflib' in sys.modules)"
    root = Path(__file__).parents[2]
    out = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, check=True)
    assert out.stdout.strip() == b"False"


# -- the rules of single fields -----------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [
        ("min_size", -1, "must be at least 0"),
        ("max_size", 0, "must be at least 1"),
        ("max_idle", -1, "must be at least 0 or None"),
        ("max_waiting", -1, "must be at least 0 or None"),
        ("max_uses", 0, "must be at least 1 or None"),
        ("max_validation_failures", 0, "must be at least 1"),
        ("max_attempts", 0, "must be at least 1 or None"),
        ("acquire_timeout", -0.1, "must be at least 0"),
        ("validation_interval", -0.1, "must be at least 0"),
        ("lifetime_jitter", -0.1, "must be at least 0"),
        ("lifetime_jitter", 1, "must be below 1"),
        ("multiplier", 0.9, "must be at least 1"),
        ("multiplier", INF, "must be below inf"),
        ("multiplier", NAN, "must be at least 1"),
        ("lifetime_jitter", NAN, "must be at least 0"),
        ("adaptive", "ON", "must be 'off', 'observe' or 'on'"),
        ("validation_query", "", "must not be empty"),
        ("validation_query", " \n", "must not be empty"),
    ],
)
def test_value_out_of_bounds_is_refused(name: str, value: object, rule: str) -> None:
    refused(name, value, ValueError, rule)


@pytest.mark.parametrize("value", [0, -1, NAN, INF, -INF, 1e10, 10**400])
@pytest.mark.parametrize("name", sorted(SECONDS))
def test_seconds_are_positive_and_can_be_waited_for(name: str, value: float) -> None:
    or_none = " or None" if name in OPTIONAL else ""
    from_zero = name in {"acquire_timeout", "validation_interval"}
    if value > 1:
        rule = f"must be at most {threading.TIMEOUT_MAX:.0f}{or_none}"
    else:
        rule = "must be at least 0" if from_zero else f"must be above 0{or_none}"
    if value == 0 and from_zero:
        assert getattr(owner(name)(**{name: value}), name) == 0.0
    else:
        refused(name, value, ValueError, rule)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_idle", 1),
        ("max_idle", 11),  # above max_size: it never binds
        ("max_waiting", 0),
        ("max_size", 1),
        ("max_uses", 1),
        ("max_validation_failures", 1),
        ("max_attempts", 1),
        ("lifetime_jitter", 0.0),
        ("lifetime_jitter", 0.999),
        ("create_timeout", 0.001),
        ("acquire_timeout", threading.TIMEOUT_MAX),
        ("multiplier", 1.0),
        ("validation_query", "SELECT 1"),
        ("jitter", False),
        ("backoff", Backoff(initial=1)),
    ],
)
def test_the_edge_of_each_bound_is_accepted(name: str, value: object) -> None:
    assert getattr(owner(name)(**{name: value}), name) == value


def test_min_size_and_max_idle_may_be_zero() -> None:
    assert PoolSettings(min_size=0, max_idle=0).max_idle == 0


@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize("value", ["10", b"SELECT 1", ..., True, 1, 1.5], ids=repr)
def test_a_value_of_the_wrong_type_is_refused(kind: str, value: object) -> None:
    right = {
        "a whole number": type(value) is int,
        "a number": type(value) in (int, float),
        "true or false": type(value) is bool,
        "a string": type(value) is str,
        "a Backoff": False,
        "a mapping of Lane objects by name": type(value) is str,
        "a CircuitBreaker": type(value) is str,
    }
    for name in [] if right[kind] else KINDS[kind]:
        or_none = " or None" if name in OPTIONAL else ""
        refused(name, value, TypeError, f"must be {kind}{or_none}")


def test_every_field_has_a_kind() -> None:
    assert sorted(name for names in KINDS.values() for name in names) == sorted(FIELDS)


@pytest.mark.parametrize("name", FIELDS)
def test_none_is_for_optional_fields_only(name: str) -> None:
    if name in OPTIONAL:
        assert getattr(owner(name)(**{name: None}), name) is None
    else:
        (kind,) = (kind for kind, names in KINDS.items() if name in names)
        refused(name, None, TypeError, f"must be {kind}")


@pytest.mark.parametrize("name", sorted(SECONDS))
def test_an_int_for_a_float_is_stored_as_float(name: str) -> None:
    stored = getattr(owner(name)(**{name: 1}), name)
    assert stored == 1.0
    assert type(stored) is float


# -- fields that must go together ---------------------------------------------------------


@pytest.mark.parametrize(
    ("made", "changes", "message"),
    [
        (PoolSettings, {"min_size": 11}, "PoolSettings.min_size must be at most max_size (10)"),
        (
            PoolSettings,
            {"min_size": 3, "max_idle": 2},
            "PoolSettings.min_size must be at most max_idle (2)",
        ),
        (Backoff, {"initial": 31}, "Backoff.initial must be at most maximum (30.0)"),
    ],
)
def test_first_field_may_not_exceed_the_second(made: Any, changes: dict[str, Any], message: str) -> None:
    low = float(31) if made is Backoff else changes["min_size"]
    with pytest.raises(ValueError) as raised:
        made(**changes)
    assert str(raised.value) == f"{message}, not {low!r}"


def test_first_field_may_equal_the_second() -> None:
    assert PoolSettings(min_size=10, max_size=10, max_idle=10).min_size == 10
    assert Backoff(initial=2, maximum=2).initial == 2.0


# -- presets ------------------------------------------------------------------------------

PRESETS = {
    "conservative": (1, 5, 2, 7200.0, 1800.0, 30.0, 3, 1.0, True),
    "balanced": (5, 20, 10, 3600.0, 300.0, 10.0, 3, 0.5, True),
    "aggressive": (10, 100, 20, 1800.0, 600.0, 5.0, 5, 0.1, False),
    "trading": (10, 100, None, 3600.0, 300.0, 10.0, 5, 0.5, True),
}


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_differs_from_the_defaults_as_the_table_says(preset: str) -> None:
    columns = (
        "min_size", "max_size", "max_idle", "max_lifetime", "idle_timeout", "acquire_timeout",
        "max_attempts", "backoff_initial", "validate_on_acquire",
    )  # fmt: skip
    table = dict(zip(columns, PRESETS[preset]))
    assert getattr(PoolSettings, preset)() == PoolSettings().replace(**table)


def test_trading_preset_does_not_depend_on_defaults() -> None:
    trading = PoolSettings.trading()
    assert trading.backoff == Backoff(initial=0.5, maximum=30, multiplier=2, jitter=True)
    assert trading.max_validation_failures == 3
    assert (trading.health_check_interval, trading.health_check_timeout) == (10, 5)
    assert (trading.metrics_interval, trading.create_timeout) == (5, 30)


@pytest.mark.parametrize("preset", PRESETS)
def test_preset_accepts_changes(preset: str) -> None:
    make = getattr(PoolSettings, preset)
    assert make(max_size=50, backoff_maximum=9) == make().replace(max_size=50, backoff_maximum=9)
    assert make(max_size=50).max_size == 50
    with pytest.raises(ValueError, match="max_size must be at least 1, not 0"):
        make(max_size=0)
    with pytest.raises(TypeError, match="unknown setting 'max_sice'"):
        make(max_sice=5)


# -- replace ------------------------------------------------------------------------------


def test_replace_returns_a_new_object() -> None:
    old = PoolSettings()
    new = old.replace(max_size=20, backoff_initial=1, probe_interval=2)
    assert new == PoolSettings(max_size=20, backoff=Backoff(initial=1.0, probe_interval=2.0))
    assert old == PoolSettings()
    assert type(new) is PoolSettings


def test_replace_checks_values() -> None:
    with pytest.raises(ValueError, match=r"PoolSettings\.min_size must be at most max_size \(10\)"):
        PoolSettings().replace(min_size=20)
    with pytest.raises(ValueError, match=r"Backoff\.initial must be above 0, not 0"):
        PoolSettings().replace(backoff_initial=0)
    with pytest.raises(TypeError, match=r"PoolSettings\.max_size must be a whole number, not '5'"):
        PoolSettings().replace(max_size="5")


@pytest.mark.parametrize(
    ("name", "closest"),
    [
        ("max_sise", "max_size"),
        ("aquire_timeout", "acquire_timeout"),
        ("backoff_intial", "backoff_initial"),
        ("max_connections", "max_size"),  # only from_mapping and from_env accept other names
        ("retry_delay", "backoff_initial"),
    ],
)
def test_replace_names_the_closest_field(name: str, closest: str) -> None:
    with pytest.raises(TypeError) as raised:
        PoolSettings().replace(**{name: 5})
    assert str(raised.value) == f"unknown setting {name!r}; did you mean {closest!r}?"


def test_unknown_name_without_a_close_match_has_no_suggestion() -> None:
    with pytest.raises(TypeError) as raised:
        PoolSettings().replace(zzz=5)
    assert str(raised.value) == "unknown setting 'zzz'"


@pytest.mark.parametrize(
    "changes",
    [
        {"probe_interval": 1, "backoff_probe_interval": 1},
        {"backoff": Backoff(), "backoff_jitter": True},
        {"backoff_jitter": True, "backoff": Backoff()},
    ],
)
def test_replace_refuses_a_field_given_twice(changes: dict[str, object]) -> None:
    first, second = changes
    with pytest.raises(ValueError, match="both set backoff_") as raised:
        PoolSettings().replace(**changes)
    assert {first, second} <= set(str(raised.value).split())


# -- from_mapping -------------------------------------------------------------------------

NAMES = {  # repeated here: the table of names is a promise
    "retry_limit": "max_attempts",
    "retry_delay": "backoff_initial",
    "validate_on_checkout": "validate_on_acquire",
    "max_retry_attempts": "max_attempts",
    "initial_retry_delay": "backoff_initial",
    "max_retry_delay": "backoff_maximum",
    "retry_backoff_multiplier": "backoff_multiplier",
    "retry_jitter": "backoff_jitter",
    "enable_pool_metrics": "enable_metrics",
    "metrics_collection_interval": "metrics_interval",
    "max_connections": "max_size",
    "min_connections": "min_size",
    "connection_timeout": "acquire_timeout",
    "max_pool_size": "max_size",
    "min_pool_size": "min_size",
    "pool_recycle": "max_lifetime",
    "pool_pre_ping": "validate_on_acquire",
    "pool_size": "max_size",
    "pool_timeout": "acquire_timeout",
    "timeout": "acquire_timeout",
    "connection_limit": "max_size",
    "max_keepalive_connections": "max_idle",
    "keepalive_expiry": "idle_timeout",
    "probe_interval": "backoff_probe_interval",
}
ALL_NAMES = {**{name: name for name in FLAT if name != "backoff"}, **NAMES}
SAMPLES: dict[str, tuple[str, object]] = {
    "a whole number": ("7", 7),
    "a number": ("0.75", 0.75),
    "true or false": ("off", False),
    "a string": ("SELECT 2", "SELECT 2"),
    "a mapping of Lane objects by name": ("web:weight=2", {"web": Lane(weight=2), "default": Lane()}),
    "a CircuitBreaker": ("failures=3", CircuitBreaker(failures=3)),
}


def sample(name: str) -> tuple[str, object]:
    """A text for a field, and its value; never the default."""
    field = FLAT[ALL_NAMES[name]]
    if field in ("multiplier", "adaptive"):
        return {"multiplier": ("1.5", 1.5), "adaptive": ("observe", "observe")}[field]
    (kind,) = (kind for kind, names in KINDS.items() if field in names)
    return SAMPLES[kind]


def test_every_alternative_name_is_tested() -> None:
    assert OTHER_NAMES.keys() <= {*NAMES, "max_overflow"}  # which stands beside pool_size: below


@pytest.mark.parametrize("name", ALL_NAMES)
def test_every_name_sets_its_field_from_text_and_from_a_value(name: str) -> None:
    text, value = sample(name)
    made = PoolSettings.from_mapping({name: text})
    assert value_of(made, ALL_NAMES[name]) == value != value_of(PoolSettings(), ALL_NAMES[name])
    assert made == PoolSettings().replace(**{ALL_NAMES[name]: value})
    assert made == PoolSettings.from_mapping({name: value})


def test_backoff_can_be_given_as_one_object() -> None:
    backoff = Backoff(initial=1)
    assert PoolSettings.from_mapping({"backoff": backoff}).backoff is backoff


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("max_size", " 12 ", 12),
        ("max_lifetime", "1e3", 1000.0),
        ("max_lifetime", "60", 60.0),
        ("max_lifetime", "none", None),
        ("max_lifetime", "Never", None),
        ("max_uses", "NONE", None),
        ("validation_query", "none", None),
        *[("track_holders", t, True) for t in ("1", "true", "yes", "on", "TRUE", "Yes", " on ")],
        *[("track_holders", t, False) for t in ("0", "false", "no", "off", "False", "NO", "oFF")],
    ],
)
def test_texts_are_parsed_by_the_type_of_the_field(name: str, text: str, value: object) -> None:
    parsed = getattr(PoolSettings.from_mapping({name: text}), name)
    assert parsed == value
    assert type(parsed) is type(value)


@pytest.mark.parametrize(
    ("name", "value", "error", "message"),
    [
        ("max_size", "ten", ValueError, "max_size='ten': max_size must be a whole number"),
        ("max_size", "", ValueError, "max_size='': max_size must be a whole number"),
        ("max_size", "1.5", ValueError, "max_size='1.5': max_size must be a whole number"),
        ("max_size", "none", ValueError, "max_size='none': max_size must be a whole number"),
        ("max_size", "0", ValueError, "max_size='0': max_size must be at least 1"),
        ("max_uses", "x", ValueError, "max_uses='x': max_uses must be a whole number or None"),
        ("idle_timeout", "", ValueError, "idle_timeout='': idle_timeout must be a number or None"),
        ("reset_timeout", "nan", ValueError, "reset_timeout='nan': reset_timeout must be above 0"),
        ("jitter", "2", ValueError, "backoff_jitter='2': backoff_jitter must be true or false"),
        ("validation_query", "", ValueError, "='': validation_query must not be empty"),
        ("backoff", "fast", ValueError, "backoff='fast': backoff must be a Backoff"),
        ("max_connections", "x", ValueError, "max_connections='x': max_size must be a whole"),
        ("pool_recycle", -2, ValueError, "pool_recycle=-2: max_lifetime must be above 0 or None"),
        ("max_lifetime", -1, ValueError, "max_lifetime=-1: max_lifetime must be above 0 or None"),
        ("pool_size", "0", ValueError, "pool_size='0': max_size must be at least 1"),
        ("timeout", "soon", ValueError, "timeout='soon': acquire_timeout must be a number"),
        ("max_size", 1.5, TypeError, "max_size=1.5: max_size must be a whole number"),
        ("track_holders", 1, TypeError, "track_holders=1: track_holders must be true or false"),
        ("max_size", None, TypeError, "max_size=None: max_size must be a whole number"),
    ],
)
def test_bad_value_is_reported_under_the_given_name(
    name: str, value: object, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=re.escape(message)) as raised:
        PoolSettings.from_mapping({"backoff_jitter" if name == "jitter" else name: value})
    assert type(raised.value) is error
    assert raised.value.__suppress_context__


@pytest.mark.parametrize(
    ("name", "closest"),
    [("max_sise", "max_size"), ("max_conections", "max_connections"), (5, None)],
)
def test_unknown_key_is_refused_without_showing_its_value(name: Any, closest: str | None) -> None:
    with pytest.raises(ValueError) as raised:
        PoolSettings.from_mapping({name: "hunter2"})
    hint = f"; did you mean {closest!r}?" if closest else ""
    assert str(raised.value) == f"unknown setting {name!r}{hint}"


@pytest.mark.parametrize("again", [7, 8])
def test_field_given_under_two_names_is_refused_even_with_equal_values(again: int) -> None:
    with pytest.raises(ValueError) as raised:
        PoolSettings.from_mapping({"max_connections": 7, "max_size": again})
    assert str(raised.value) == "max_connections and max_size both set max_size"


def test_values_not_given_come_from_the_base() -> None:
    base = PoolSettings.aggressive()
    assert PoolSettings.from_mapping({}, base=base) == base
    laid = PoolSettings.from_mapping({"retry_jitter": "no", "max_size": 30}, base=base)
    assert laid == base.replace(max_size=30, backoff=Backoff(initial=0.1, jitter=False))
    with pytest.raises(ValueError, match=r"min_size must be at most max_size \(5\), not 10"):
        PoolSettings.from_mapping({"max_size": 5}, base=base)


@pytest.mark.parametrize("kind", [int, str])
def test_pool_size_and_max_overflow_are_those_of_sqlalchemy(kind: Any) -> None:
    """pool_size + max_overflow at once, and pool_size of them kept."""
    made = PoolSettings.from_mapping({"max_overflow": kind(10), "pool_size": kind(5)})
    assert made == PoolSettings(max_size=15, max_idle=5)
    assert PoolSettings.from_mapping({"pool_size": kind(5)}) == PoolSettings(max_size=5)
    assert PoolSettings.from_mapping({"pool_size": 5, "max_overflow": 0}) == PoolSettings(max_size=5, max_idle=5)
    assert PoolSettings.from_env("DB_", {"DB_POOL_SIZE": "2", "DB_MAX_OVERFLOW": "3"}).max_size == 5
    with pytest.raises(ValueError, match="max_overflow=-1: max_overflow must be at least 0"):
        PoolSettings.from_mapping({"pool_size": 5, "max_overflow": -1})
    with pytest.raises(ValueError, match="max_overflow is added to pool_size, which is missing; set max_size to the"):
        PoolSettings.from_mapping({"max_size": 5, "max_overflow": 1})


@pytest.mark.parametrize("value", [-1, "-1"])
def test_pool_recycle_of_minus_one_is_never(value: object) -> None:
    assert PoolSettings.from_mapping({"pool_recycle": value}).max_lifetime is None


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("maximumPoolSize", "maximumPoolSize is HikariCP's name; use max_size"),
        ("minimumIdle", "minimumIdle is HikariCP's name; use min_size"),
        ("connectionTimeout", "HikariCP's name, in milliseconds; use acquire_timeout, in seconds"),
        ("idleTimeout", "HikariCP's name, in milliseconds; use idle_timeout, in seconds"),
        ("maxLifetime", "HikariCP's name, in milliseconds; use max_lifetime, in seconds"),
        ("keepaliveTime", "use keepalive_interval, in seconds"),
        ("leakDetectionThreshold", "use leak_timeout, in seconds"),
    ],
)
def test_hikaricps_names_are_refused_with_our_name_and_unit(
    name: str, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        PoolSettings.from_mapping({name: 30000})
    with pytest.raises(TypeError, match=re.escape(words)):
        PoolSettings().replace(**{name: 30000})
    with caplog.at_level(logging.WARNING):
        assert PoolSettings.from_env("DB_", {f"DB_{name.upper()}": "30000"}) == PoolSettings()
    assert words in caplog.text


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("size", "; did you mean 'max_size'?"),
        ("recycle", "; did you mean 'max_lifetime'?"),
        ("connect_timeout", "; did you mean 'create_timeout'?"),
        ("pool_use_lifo", ""),
        ("time_out", "; did you mean 'timeout'?"),
        ("host", ""),
        ("reset_query", ""),
        ("max", ""),
        ("lifetime", "; did you mean 'max_lifetime'?"),
        ("out", ""),
    ],
)
def test_hint_names_a_close_match_or_is_absent(name: str, hint: str) -> None:
    with pytest.raises(ValueError) as raised:
        PoolSettings.from_mapping({name: 1})
    assert str(raised.value) == f"unknown setting {name!r}{hint}"


# -- from_env -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL_NAMES)
def test_every_name_is_read_from_the_environment(name: str) -> None:
    text, value = sample(name)
    made = PoolSettings.from_env("DB_", {f"DB_{name.upper()}": text})
    assert made == PoolSettings().replace(**{ALL_NAMES[name]: value}) != PoolSettings()


@pytest.mark.parametrize(
    ("prefix", "variable", "changes"),
    [
        ("DATABASE_", "DATABASE_MAX_POOL_SIZE", {"max_size": 7}),
        ("HTTP_", "HTTP_MAX_CONNECTIONS", {"max_size": 7}),
        ("HTTP_", "HTTP_MAX_KEEPALIVE_CONNECTIONS", {"max_idle": 7}),
        ("HTTP_", "HTTP_KEEPALIVE_EXPIRY", {"idle_timeout": 7}),
        ("DB_", "DB_CONNECTION_TIMEOUT", {"acquire_timeout": 7}),
        ("DB_", "DB_IDLE_TIMEOUT", {"idle_timeout": 7}),
        ("", "MAX_SIZE", {"max_size": 7}),
        ("DB_", "MAX_SIZE", {}),
        ("DB_", "OTHER_DB_MAX_SIZE", {}),
        ("DB_", "db_max_size", {}),
        ("DB_", "DB_BACKOFF", {}),
    ],
)
def test_variables_are_found_by_their_prefix(
    prefix: str, variable: str, changes: dict[str, object]
) -> None:
    assert PoolSettings.from_env(prefix, {variable: "7"}) == PoolSettings().replace(**changes)


def test_the_environment_of_the_process_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POOLING_TEST_MAX_SIZE", "7")
    assert PoolSettings.from_env("POOLING_TEST_") == PoolSettings(max_size=7)
    assert PoolSettings.from_env("POOLING_TEST_", {}) == PoolSettings()


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"DB_MAX_SIZE": "ten"}, "DB_MAX_SIZE='ten': max_size must be a whole number"),
        ({"DB_MAX_SIZE": "0"}, "DB_MAX_SIZE='0': max_size must be at least 1"),
        ({"DB_RETRY_DELAY": "x"}, "DB_RETRY_DELAY='x': backoff_initial must be a number"),
        (
            {"DB_MAX_CONNECTIONS": "7", "DB_MAX_SIZE": "7"},
            "DB_MAX_SIZE and DB_MAX_CONNECTIONS both set max_size",
        ),
    ],
)
def test_bad_variable_is_reported_by_its_full_name(environ: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError) as raised:
        PoolSettings.from_env("DB_", environ)
    assert str(raised.value) == message


@pytest.mark.parametrize("empty", ["", " "])
def test_an_empty_variable_counts_as_unset(empty: str) -> None:
    """Compose files pass unset variables like this."""
    for name in ALL_NAMES:
        assert PoolSettings.from_env("DB_", {f"DB_{name.upper()}": empty}) == PoolSettings()
    assert PoolSettings.from_env("DB_", {"DB_MAX_SIZE": "7", "DB_MAX_CONNECTIONS": empty}).max_size == 7


def test_environment_overrides_the_base() -> None:
    made = PoolSettings.from_env(
        "DB_", {"DB_BACKOFF_MAXIMUM": "60"}, base=PoolSettings.conservative()
    )
    assert made == PoolSettings.conservative(backoff_maximum=60)


@pytest.mark.parametrize(
    ("variable", "meant"),
    [
        ("DB_MAX_SIZ", "DB_MAX_SIZE"),
        ("DB_AQUIRE_TIMEOUT", "DB_ACQUIRE_TIMEOUT"),
        ("DB_MAX_CONECTIONS", "DB_MAX_CONNECTIONS"),
    ],
)
def test_misspelt_variable_is_logged_without_its_value(
    variable: str, meant: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert PoolSettings.from_env("DB_", {variable: "hunter2"}) == PoolSettings()
    assert caplog.record_tuples == [
        ("pooling.settings", logging.WARNING, f"{variable} is not a setting; did you mean {meant}?")
    ]


@pytest.mark.parametrize(
    "variable",
    [
        "DB_HOST", "DB_PASSWORD", "DB_", "XX_MAX_SIZ", "DB_MAX_SIZE", "DB_URL",
        "DB_CONNECT_TIMEOUT", "DB_RETRY_ATTEMPTS", "DB_READ_TIMEOUT", "DB_MAX_CONNECTIONS_PER_HOST",
        "DB_METRICS_EXPORT_INTERVAL", "DB_COMMAND_TIMEOUT", "DB_WRITE_TIMEOUT", "DB_POOL_TIMEOUT",
    ],
)  # fmt: skip
def test_unrelated_variables_are_ignored_silently(
    variable: str, caplog: pytest.LogCaptureFixture
) -> None:
    PoolSettings.from_env("DB_", {variable: "7"})
    assert caplog.records == []


# -- backoff ------------------------------------------------------------------------------

backoffs = st.builds(
    lambda first, factor, growth, jitter, probe: Backoff(
        initial=first,
        maximum=first * factor,
        multiplier=growth,
        jitter=jitter,
        probe_interval=probe,
    ),
    st.floats(0.001, 100),
    st.floats(1, 1000),
    st.floats(1, 1e300),
    st.booleans(),
    st.floats(0.001, 100),
)


@pytest.mark.parametrize(
    ("failures", "waiting", "seconds"),
    [
        (1, False, 0.05),
        (2, False, 0.1),
        (3, False, 0.2),
        (10, False, 25.6),
        (11, False, 30.0),
        (1024, False, 30.0),
        (1025, False, 30.0),
        (10**400, False, 30.0),
        (1, True, 0.05),
        (3, True, 0.2),
        (4, True, 0.25),
        (10**400, True, 0.25),
    ],
)
def test_the_delay_grows_to_its_cap(failures: int, waiting: bool, seconds: float) -> None:
    plain, full = Backoff(jitter=False), Backoff(jitter=True)
    assert plain.delay(failures, waiting=waiting, random=lambda: 0.5) == pytest.approx(seconds)
    assert full.delay(failures, waiting=waiting, random=lambda: 0.5) == pytest.approx(seconds / 2)


@pytest.mark.parametrize("failures", [0, -1])
def test_a_delay_needs_a_failure(failures: int) -> None:
    with pytest.raises(ValueError, match=f"failures must be at least 1, not {failures}"):
        Backoff().delay(failures, waiting=False, random=lambda: 1.0)


@given(backoffs, st.integers(1, 10**9), st.booleans(), st.floats(0, 1))
def test_the_delay_is_within_its_bounds(
    backoff: Backoff, failures: int, waiting: bool, drawn: float
) -> None:
    delay = backoff.delay(failures, waiting=waiting, random=lambda: drawn)
    longest = min(backoff.maximum, backoff.probe_interval) if waiting else backoff.maximum
    assert 0 <= delay <= longest
    if not backoff.jitter:
        assert delay >= min(backoff.initial, longest)


@given(backoffs, st.integers(1, 2000), st.booleans())
def test_another_failure_never_makes_the_delay_shorter(
    backoff: Backoff, failures: int, waiting: bool
) -> None:
    one, more = (
        backoff.delay(n, waiting=waiting, random=lambda: 1.0) for n in (failures, failures + 1)
    )
    assert one <= more

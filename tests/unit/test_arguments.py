"""Every argument that can be wrong is refused by name, with value and rule, before anything is opened."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import pytest

from pooling import Adapter, Backoff, Observer, Pool, PoolManager, PoolSettings, SQLitePool
from pooling.testing import FakeAdapter, Script, UnpooledPool, VirtualClock
from tests.unit.conftest import Make


def refused(error: type[Exception], text: str) -> Any:
    return pytest.raises(error, match=re.escape(text))


# -- making a pool ------------------------------------------------------------------------


class Nothing(Adapter[object]):
    """Does not override create()."""


@pytest.mark.parametrize("kind", [Pool, UnpooledPool])
@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({}, "takes either a factory or an adapter"),
        ({"factory": object, "adapter": FakeAdapter()}, "takes either a factory or an adapter"),
        ({"factory": None}, "takes either a factory or an adapter"),
        ({"factory": 5}, "factory must be callable, not 5"),
        ({"factory": "connect"}, "factory must be callable, not 'connect'"),
        ({"factory": object, "close": 5}, "close must be callable, not 5"),
        ({"factory": object, "validate": 5}, "validate must be callable, not 5"),
        ({"factory": object, "reset": "x"}, "reset must be callable, not 'x'"),
        ({"adapter": FakeAdapter(), "close": print}, "takes no close together with an adapter"),
        ({"adapter": FakeAdapter(), "validate": print}, "takes no validate together with an adapter"),
        ({"adapter": FakeAdapter(), "reset": print}, "takes no reset together with an adapter"),
        ({"adapter": object}, "adapter must be a pooling.Adapter, not <class 'object'>"),
        ({"adapter": FakeAdapter}, "adapter must be a pooling.Adapter, not <class"),
        ({"adapter": Nothing()}, "create"),
        ({"factory": object, "settings": {"max_size": 3}}, "settings must be a PoolSettings, not of type dict"),
        ({"factory": object, "settings": PoolSettings}, "settings must be a PoolSettings, not of type type"),
        ({"factory": object, "name": 5}, "name must be a non-empty string, not 5"),
        ({"factory": object, "name": ""}, "name must be a non-empty string, not ''"),
        ({"factory": object, "observers": 5}, "observers"),
        ({"factory": object, "observers": Observer()}, "observers"),
        ({"factory": object, "observers": [5]}, "observers must be of pooling.Observer, not 5"),
        ({"factory": object, "observers": [Observer]}, "observers must be of pooling.Observer, not <class"),
        ({"factory": object, "clock": 5}, "clock"),
        ({"factory": object, "max_sise": 3}, "unknown setting 'max_sise'; did you mean 'max_size'?"),
        ({"factory": object, "max_size": "3"}, "PoolSettings.max_size must be a whole number, not '3'"),
    ],
)
def test_pool_refuses_bad_arguments(kind: type[Pool[Any]], given: dict[str, Any], text: str) -> None:
    with refused(TypeError, text):
        kind(**given)


def test_settings_are_checked_when_they_are_made() -> None:
    with refused(ValueError, "PoolSettings.max_size must be at least 1, not 0"):
        PoolSettings(max_size=0)


# -- a timeout given in a call ------------------------------------------------------------


@pytest.mark.parametrize("verb", [Pool.acquire, Pool.open, Pool.close])
@pytest.mark.parametrize(
    ("timeout", "error", "text"),
    [
        ("5", TypeError, "timeout must be a number of seconds, not '5'"),
        (True, TypeError, "timeout must be a number of seconds, not True"),
        ([], TypeError, "timeout must be a number of seconds, not []"),
        ((1, 2), TypeError, "timeout must be a number of seconds, not (1, 2)"),
        (-1, ValueError, "timeout must be at least 0 seconds, not -1"),
        (-0.001, ValueError, "timeout must be at least 0 seconds, not -0.001"),
        (math.nan, ValueError, "timeout must be at least 0 seconds, not nan"),
    ],
    ids=str,
)
def test_timeout_must_be_a_number_of_seconds(
    make: Make,
    adapter: FakeAdapter,
    verb: Callable[..., object],
    timeout: Any,
    error: type[Exception],
    text: str,
) -> None:
    pool = make(min_size=1)
    with refused(error, text):
        verb(pool, timeout=timeout)
    assert adapter.made == 0
    assert not pool.closed
    assert pool.stats()["waiting"] == 0


@pytest.mark.parametrize("timeout", [0, 0.0, 1, 1e9, math.inf, None])
def test_any_number_of_seconds_is_accepted(make: Make, timeout: float | None) -> None:
    with make().acquire(timeout) as resource:
        assert resource.alive


def test_bad_timeout_is_refused_even_with_an_idle_resource(make: Make) -> None:
    pool = make(factory=object)
    pool.acquire().release()
    with refused(TypeError, "timeout must be a number of seconds, not '5'"):
        pool.acquire("5")  # type: ignore[arg-type]
    assert pool.stats()["idle"] == 1


# -- sizes and changes --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "error", "text"),
    [
        (-1, ValueError, "size must be from 0 to max_size=2, not -1"),
        (3, ValueError, "size must be from 0 to max_size=2, not 3"),
        (1.0, TypeError, "size must be a whole number, not 1.0"),
        ("1", TypeError, "size must be a whole number, not '1'"),
        (True, TypeError, "size must be a whole number, not True"),
    ],
)
def test_fill_refuses_an_impossible_size(
    make: Make, adapter: FakeAdapter, size: Any, error: type[Exception], text: str
) -> None:
    with refused(error, text):
        make().fill(size)
    assert adapter.made == 0


@pytest.mark.parametrize(
    ("sizes", "error", "text"),
    [
        ((0,), ValueError, "PoolSettings.max_size must be at least 1, not 0"),
        (("5",), TypeError, "PoolSettings.max_size must be a whole number, not '5'"),
        ((2.0,), TypeError, "PoolSettings.max_size must be a whole number, not 2.0"),
        ((None,), TypeError, "PoolSettings.max_size must be a whole number, not None"),
        ((5, -1), ValueError, "PoolSettings.min_size must be at least 0, not -1"),
        ((5, 6), ValueError, "PoolSettings.min_size must be at most max_size (5), not 6"),
        ((1,), ValueError, "PoolSettings.min_size must be at most max_size (1), not 2"),
    ],
    ids=str,
)
def test_resize_refuses_impossible_sizes(
    make: Make, adapter: FakeAdapter, sizes: tuple[Any, ...], error: type[Exception], text: str
) -> None:
    pool = make(min_size=2, max_size=4)
    before = pool.stats()
    with refused(error, text):
        pool.resize(*sizes)
    assert pool.stats() == before
    assert adapter.made == 0


@pytest.mark.parametrize(
    ("changes", "error", "text"),
    [
        ({"max_sise": 5}, TypeError, "unknown setting 'max_sise'; did you mean 'max_size'?"),
        ({"max_connections": 5}, TypeError, "unknown setting 'max_connections'; did you mean 'max_size'?"),
        ({"idle_timeout": -1}, ValueError, "PoolSettings.idle_timeout must be above 0 or None, not -1"),
        ({"max_uses": "x"}, TypeError, "PoolSettings.max_uses must be a whole number or None, not 'x'"),
        ({"backoff_initial": 0}, ValueError, "Backoff.initial must be above 0, not 0"),
        ({"backoff": None}, TypeError, "PoolSettings.backoff must be a Backoff, not None"),
    ],
    ids=str,
)
def test_reconfigure_refuses_unknown_settings(
    make: Make, changes: dict[str, Any], error: type[Exception], text: str
) -> None:
    pool = make()
    before = pool.settings
    with refused(error, text):
        pool.reconfigure(**changes)
    assert pool.settings == before


# -- observers ----------------------------------------------------------------------------


@pytest.mark.parametrize("observer", [None, 5, Observer, print])
def test_add_observer_refuses_other_objects(make: Make, observer: Any) -> None:
    pool = make()
    with refused(TypeError, f"observers must be of pooling.Observer, not {observer!r}"):
        pool.add_observer(observer)
    pool.drain()  # without a log message


# -- tools for tests ----------------------------------------------------------------------


def test_virtual_clock_refuses_unknown_workers() -> None:
    with refused(ValueError, "workers must be one of inline, manual, threads, not 'none'"):
        VirtualClock(workers="none")


def test_virtual_clock_refuses_negative_seconds(clock: VirtualClock) -> None:
    with refused(ValueError, "-1"):
        clock.advance(-1)


@pytest.mark.parametrize(
    "call",
    [
        lambda adapter: adapter.fail("craete", OSError()),
        lambda adapter: adapter.hold("craete"),
        lambda adapter: adapter.mend("craete"),
    ],
    ids=["fail", "hold", "mend"],
)
def test_fake_adapter_refuses_unknown_steps(adapter: FakeAdapter, call: Callable[[FakeAdapter], None]) -> None:
    """A misspelt step would never fail, so the test would pass."""
    with refused(ValueError, "craete"):
        call(adapter)


def test_script_refuses_unknown_steps() -> None:
    with refused(AssertionError, "no step 'C' in this script"):
        Script("A", "B").pass_by("C")


@pytest.mark.parametrize("wait", [10**400, 1e300, float("inf")], ids=["a whole number", "a float", "infinity"])
def test_very_long_timeout_is_accepted(make: Make, wait: float) -> None:
    pool = make()
    pool.open(wait)
    pool.acquire(wait).release()
    pool.close(wait)
    manager = PoolManager(startup_timeout=wait, shutdown_timeout=wait)
    manager.add_pool(make(), "test")
    assert manager.startup(wait) and manager.health_check(wait)
    manager.close_all(wait)
    with SQLitePool(":memory:") as lite:
        lite.health_check(wait)
        assert lite.check_integrity(wait) == []


def test_number_too_large_for_a_float_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"Backoff\.multiplier must be a number that a float can hold"):
        Backoff(multiplier=10**400)

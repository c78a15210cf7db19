"""``python -m pooling check``: each check passes on a sound pool, and fails on one that is not."""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from pooling import Pool
from pooling._console import Paint, Screen
from pooling.errors import PoolTimeout
from pooling.testing import FakeAdapter
from pooling.tools.check import run as command
from pooling.tools.check.general import general_checks, replaced
from pooling.tools.check.outcome import Failed, Outcome, Results, Skipped, verdict
from pooling.tools.check.resource import Check, Target
from pooling.tools.check.targets import from_environment, target_of


class Sound(Target):
    """Lends objects of a sound pool."""

    kind = "Objects"

    def __init__(self) -> None:
        super().__init__("objects://")

    def pool(self, **settings: Any) -> Any:
        return Pool(adapter=FakeAdapter(), min_size=0, **settings)

    def ping(self, resource: Any) -> None:
        assert resource is not None

    def identity(self, resource: Any) -> Any:
        return os.getpid(), id(resource)

    def describe(self, resource: Any) -> str:
        return "objects"

    def checks(self) -> list[Check]:
        return list(general_checks(self).values())


class Stub:
    """What the checks need of a pool, and wrong in some way."""

    def __init__(self) -> None:
        self.waiting = 0

    def acquire(self, timeout: float | None = None) -> Any:
        return contextlib.nullcontext("the only one")

    def stats(self) -> dict[str, int]:
        return {"waiting": self.waiting, "in_use": 0, "size": 0}

    def close(self, timeout: float | None = None) -> None:
        pass

    def __enter__(self) -> Stub:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class Unfair(Stub):
    """Serves the last waiter first."""

    def __init__(self) -> None:
        super().__init__()
        self._held = False
        self._lock = threading.Lock()
        self._waiters: list[threading.Event] = []

    @contextlib.contextmanager
    def acquire(self, timeout: float | None = None) -> Iterator[object]:
        mine = threading.Event()
        with self._lock:
            if self._held:
                self._waiters.append(mine)
                self.waiting += 1
            else:
                self._held = True
                mine.set()
        assert mine.wait(timeout)
        try:
            yield self
        finally:
            with self._lock:
                if self._waiters:
                    self._waiters.pop().set()
                else:
                    self._held = False


class Silent(Stub):
    """Times out, but does not say who holds the resource."""

    def __init__(self) -> None:
        super().__init__()
        self._count = itertools.count()

    def acquire(self, timeout: float | None = None) -> Any:
        if next(self._count):
            raise PoolTimeout("pool 'check': no connection")
        return contextlib.nullcontext()


class Leaving(Sound):
    """Its pools leave a file open."""

    left: list[Any] = []

    def pool(self, **settings: Any) -> Any:
        self.left.append(open(os.devnull))  # noqa: SIM115
        return super().pool(**settings)


def broken(pool: Callable[[], Stub]) -> Target:
    target = Sound()
    target.pool = lambda **settings: pool()  # type: ignore[method-assign]
    return target


@pytest.mark.parametrize("name", ["connect", "acquire", "timeout", "fairness", "fork", "close"])
def test_sound_pool_passes(name: str) -> None:
    assert general_checks(Sound())[name].run()


@pytest.mark.parametrize(
    ("name", "pool", "words"),
    [
        ("acquire", Stub, "two threads held one connection at once"),
        ("timeout", Stub, "a second resource was lent, although max_size is 1"),
        ("timeout", Silent, "the error does not name the holder"),
        ("fairness", Unfair, r"10 waiters were served in the order \[9, 8, 7"),
    ],
)
def test_broken_pool_fails(name: str, pool: Callable[[], Stub], words: str) -> None:
    target = broken(pool)
    target.ping = lambda resource: threading.Event().wait(0.01) and None  # type: ignore[method-assign]
    with pytest.raises(Failed, match=words):
        general_checks(target)[name].run()


def test_file_that_is_left_open_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pooling.tools.check.general.PATIENCE", 0.0)
    try:
        with pytest.raises(Failed, match=r"0 connections and \d+ open files are left"):
            general_checks(Leaving())["close"].run()
    finally:
        while Leaving.left:
            Leaving.left.pop().close()


def test_child_that_uses_its_parents_connection_is_found() -> None:
    target = Sound()
    target.identity = lambda resource: "the same"  # type: ignore[method-assign]
    with pytest.raises(Failed, match="the child used its parent's connection"):
        general_checks(target)["fork"].run()


def test_error_in_the_child_is_reported() -> None:
    parent, target = os.getpid(), Sound()

    def ping(resource: object) -> None:
        if os.getpid() != parent:
            raise OSError("wrong answer")

    target.ping = ping  # type: ignore[method-assign]
    with pytest.raises(Failed, match="in a child process: OSError: wrong answer"):
        general_checks(target)["fork"].run()


def test_ended_connection_that_is_lent_again_is_found() -> None:
    with pytest.raises(Failed, match="the connection that was ended was lent again"):
        replaced(Sound(), lambda identity, other: None)
    target = Sound()
    target.identity = lambda resource: 1  # type: ignore[method-assign]
    with pytest.raises(Skipped, match="does not tell connections apart"):
        replaced(target, lambda identity, other: None)


# -- targets --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "kind", "text"),
    [
        ("postgresql://app:hunter2@db:5433/orders", "PostgreSQL", "postgresql://app:***@db:5433/orders"),
        ("host=db dbname=orders password=hunter2", "PostgreSQL", "postgresql://db:5432/orders"),
        ("mysql://app:hunter2@db/orders", "MySQL", "mysql://app:***@db/orders"),
        ("redis://:hunter2@cache:6380/1", "Redis", "redis://***@cache:6380/1"),
        ("https://token:hunter2@api.example.com/", "HTTP", "https://***@api.example.com/"),
    ],
)
def test_kind_of_a_target(address: str, kind: str, text: str) -> None:
    target = target_of(address)
    assert (target.kind, target.text) == (kind, text)
    assert "hunter2" not in target.clean("could not log in with 'hunter2' at\n db")


def test_database_in_memory_is_a_target() -> None:
    assert target_of("sqlite://").kind == "SQLite"


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("ftp://example.com", "the scheme must be one of postgresql, .* not 'ftp'"),
        ("/nonexistent/app.db", "there is no such file"),
        ("host=db nonsense=1 password=hunter2", "neither a postgresql:// URL nor key=value pairs"),
        ("postgresql://app:hun@ter2@db/x", "percent-encoded"),
    ],
)
def test_wrong_target(address: str, words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        target_of(address)
    assert "hunter2" not in str(caught.value) and "ter2" not in str(caught.value)


def test_targets_of_the_environment() -> None:
    assert from_environment({"DATABASE_URL": "a", "REDIS_URL": " ", "OTHER": "b"}) == ["a"]
    assert from_environment({"DATABASE_URL": "a", "REDIS_URL": "b"}) == ["a", "b"]


# -- results ----------------------------------------------------------------------------


def outcomes(*good: bool | None) -> Results:
    return Results("x://y", "X", [Outcome(f"check {n}", state, "text", 0.5) for n, state in enumerate(good)])


def test_lines_and_verdict() -> None:
    plain, colours = Paint(io.StringIO()), Paint(io.StringIO())
    colours.on = True
    one = Outcome("fairness", True, "long text " * 20, 0.1)
    lines = one.line(plain).splitlines()
    assert lines[0].startswith("  ok   fairness         long text") and lines[1].startswith(" " * 24 + "text")
    assert one.line(colours).startswith("  \x1b[32mok\x1b[0m   fairness")
    assert verdict([outcomes(True, True, None)], 1.0, plain) == "good: 2 checks passed, 1 without a result, in 1 s"
    assert verdict([outcomes(True, False)], 1.0, plain) == "BAD: check 1 of x://y; 1 passed, in 1 s"


class Failing(Sound):
    def checks(self) -> list[Check]:
        def fail() -> str:
            raise ConnectionError("refused\n by the server")

        def skip() -> str:
            raise Skipped("no result")

        return [
            Check("first", 1.0, lambda: "fine"), Check("second", 1.0, fail), Check("third", 1.0, skip),
        ]  # fmt: skip


def test_all_checks_run_after_one_that_failed() -> None:
    results: list[Results] = []
    command.run_all([Failing()], results, Screen(io.StringIO()), quiet=False)
    found = [(one.name, one.good, one.text) for one in results[0].outcomes]
    assert found == [
        ("first", True, "fine"), ("second", False, "ConnectionError: refused by the server"),
        ("third", None, "no result"),
    ]  # fmt: skip
    assert results[0].bad == ["second"]


def test_nothing_runs_after_a_first_check_that_failed() -> None:
    results: list[Results] = []
    target = Failing()
    checks = target.checks()
    target.checks = lambda: [checks[1], checks[0], checks[2]]  # type: ignore[method-assign]
    out = io.StringIO()
    command.run_all([target], results, Screen(out), quiet=False)
    assert [one.name for one in results[0].outcomes] == ["second", "others"]
    assert "2 checks were not run, because the first failed" in out.getvalue()

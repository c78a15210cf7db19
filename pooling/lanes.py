"""Lanes: what shares a pool, each with reserved slots, a weight and a limit.

::

    db = PostgresPool(url, max_size=10, lanes={
        "health": Lane(reserve=1),
        "web": Lane(weight=4),
        "batch": Lane(weight=1, most=5),
    })

    with db.connection(lane="web") as conn: ...

    @lane("batch")                 # for every acquire in it that names no lane
    def report(): ...

How they share is described at `Lane`; `pooling.core.lanes` does it.
"""

from __future__ import annotations

import functools
import inspect
import math
import re
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from types import TracebackType
from typing import Any, TypeVar

from ._masking import shown

__all__ = ["DEFAULT", "Lane", "Lanes", "current_lane", "named", "lane"]

F = TypeVar("F", bound=Callable[..., Any])

DEFAULT = "default"
"""The lane of every acquire that names none."""

MOST_LANES = 32
"""Each lane has metrics of its own, so their number is bounded."""

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,40}")


@dataclass(frozen=True, kw_only=True)
class Lane:
    """The share of a pool that one kind of work may have.

    Within a lane, waiters are served in order of arrival. Between lanes:

    - A lane with fewer leases than its ``reserve`` comes first, and no other lane can take these slots.
    - All other slots are divided by ``weight`` among the lanes that have waiters: by the *time* for which connections
      are held, not by the number of leases. Otherwise a lane of long leases would get nearly all connections. A lane
      that needs less than its share leaves the rest to the others, and saves nothing up.
    - A lease is never interrupted. Only ``reserve``, and ``most`` of the other lanes, keep a slot free for a lane that
      has had nothing to do.

    Attributes:
        reserve: The number of slots that only this lane may use. The connection in a reserved slot is opened when it
            is needed first.
        weight: The lane's part of the slots that are not reserved, relative to the weights of the others.
        most: The maximum number of leases at once; ``None`` means all that the other lanes have not reserved.

    Raises:
        TypeError, ValueError: A value is of the wrong type, or breaks a rule.
    """

    reserve: int = 0
    weight: float = 1.0
    most: int | None = None

    def __post_init__(self) -> None:
        for name, least, value in (("reserve", 0, self.reserve), ("most", 1, self.most)):
            if name == "most" and value is None:
                continue
            if not isinstance(value, int) or isinstance(value, bool):
                or_none = " or None" if name == "most" else ""
                raise TypeError(f"Lane.{name} must be a whole number{or_none}, not {shown(value)}")
            if value < least:
                raise ValueError(f"Lane.{name} must be at least {least}, not {value}")
        if not isinstance(self.weight, (int, float)) or isinstance(self.weight, bool):
            raise TypeError(f"Lane.weight must be a number, not {shown(self.weight)}")
        if not 0 < self.weight < math.inf:
            raise ValueError(f"Lane.weight must be above 0, not {self.weight!r}")
        if self.most is not None and self.reserve > self.most:
            raise ValueError(f"Lane.reserve must be at most most ({self.most}), not {self.reserve}")


class Lanes(Mapping[str, Lane]):
    """The lanes of a pool by name; immutable. The lane "default" is always there."""

    __slots__ = ("_lanes",)

    def __init__(self, given: Mapping[str, Lane]) -> None:
        self._lanes = dict(given)
        self._lanes.setdefault(DEFAULT, Lane())

    @classmethod
    def of(cls, given: object) -> Lanes:
        """Return the lanes that a mapping or a string describes.

        Args:
            given: `Lane` objects by name; or mappings with their fields, from a parsed file; or all of it as a string:
                ``"health:reserve=1,web:weight=4,batch:weight=1:most=5"``.

        Raises:
            TypeError, ValueError: It is none of these. The message is the rule only: it begins with "must be".
        """
        if isinstance(given, Lanes):
            return given
        if isinstance(given, str):
            given = _parse(given)
        if not isinstance(given, Mapping) or not given:
            raise TypeError("must be a mapping of Lane objects by name, or None")
        if len(given) > MOST_LANES:
            raise ValueError(f"must be at most {MOST_LANES} lanes")
        found: dict[str, Lane] = {}
        for name, one in given.items():
            if not isinstance(name, str) or not _NAME.fullmatch(name):
                raise ValueError(f"must be named with 1 to 40 of A-Z a-z 0-9 _ . - (this is not: {shown(name)})")
            found[name] = _lane_of(name, one)
        return cls(found)

    def check(self, max_size: int) -> None:
        """Check that the reserved slots leave one for each lane.

        Raises:
            ValueError: They do not. The message is the rule only.
        """
        reserved = {name: one.reserve for name, one in self.items() if one.reserve}
        others = [name for name, one in self.items() if not one.reserve]
        total = sum(reserved.values())
        if total + bool(others) > max_size:
            listed = ", ".join(f"{name} {number}" for name, number in reserved.items())
            left = f", and leave a slot for the lanes without ({', '.join(others)})" if others else ""
            raise ValueError(f"must reserve at most max_size ({max_size}) slots together{left}: {listed}")

    def __getitem__(self, name: str) -> Lane:
        return self._lanes[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._lanes)

    def __len__(self) -> int:
        return len(self._lanes)

    def __hash__(self) -> int:
        return hash(tuple(self._lanes.items()))

    def __repr__(self) -> str:
        return repr(self._lanes)


def _lane_of(name: str, given: object) -> Lane:
    if isinstance(given, Lane):
        return given
    if not isinstance(given, Mapping):
        raise TypeError(f"must be Lane objects by name ({name} is {shown(given)})")
    unknown = [field for field in given if field not in Lane.__dataclass_fields__]
    if unknown:
        raise ValueError(f"must be lanes with reserve, weight and most ({name} has {shown(unknown[0])})")
    try:
        return Lane(**given)
    except (TypeError, ValueError) as error:
        raise type(error)(f"must be valid lanes ({name}: {error})") from None


def _parse(text: str) -> dict[str, dict[str, float | None]]:
    """Read ``"web:weight=4,batch:most=5"``."""
    found: dict[str, dict[str, float | None]] = {}
    for part in filter(None, (each.strip() for each in text.split(","))):
        name, *given = part.split(":")
        if name in found:
            raise ValueError(f"must be different lanes ({name} is given twice)")
        own: dict[str, float | None] = {}
        found[name] = own
        for each in given:
            field, _, value = each.partition("=")
            try:
                own[field] = float(value) if field == "weight" else None if value == "none" else int(value)
            except ValueError:
                raise ValueError(f"must be written as name:weight=4:reserve=1:most=5 (not as {shown(part)})") from None
    return found


# -- the lane of the current code -----------------------------------------------------

_Around = tuple[str, Any]  # a name, and the same of the block around
_current: ContextVar[_Around | None] = ContextVar("pooling_lane", default=None)


def named(lane: str | None) -> tuple[str, ...]:
    """Return the last arguments of a call of ``acquire``, which may be an override from before there were lanes."""
    return () if lane is None else (lane,)


def current_lane() -> str | None:
    """Return the lane that the innermost `lane` around the current code names; ``None`` if there is none."""
    around = _current.get()
    return None if around is None else around[0]


class lane:
    """The lane of every acquire in a block or a function that names none itself.

    ::

        with lane("batch"):
            report()

        @app.get("/report")
        @lane("batch")
        def view(): ...

    It applies to all pools that have a lane of this name, in this thread and in its context (``contextvars``); to
    coroutines too. A generator runs after its function has returned, so use a block within it.

    Args:
        name: The name of the lane.

    Raises:
        TypeError: The name is not a string.
    """

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        if not isinstance(name, str):
            raise TypeError(f"lane must be the name of a lane, not {shown(name)}")
        self.name = name

    def __enter__(self) -> None:
        _current.set((self.name, _current.get()))  # nothing is kept here: threads may share this object

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        around = _current.get()
        if around is not None:
            _current.set(around[1])

    def __call__(self, function: F) -> F:
        """Decorate a function, or a coroutine function."""
        name = self.name
        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def in_lane(*args: Any, **kwargs: Any) -> Any:
                with lane(name):
                    return await function(*args, **kwargs)

        elif inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise TypeError(f"{function.__qualname__}() is a generator: use 'with lane({name!r}):' within it")
        else:

            @functools.wraps(function)
            def in_lane(*args: Any, **kwargs: Any) -> Any:
                with lane(name):
                    return function(*args, **kwargs)

        return in_lane  # type: ignore[return-value]


Lane.__module__ = lane.__module__ = "pooling"  # where users import them from

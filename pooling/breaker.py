"""Circuit breaker: calls fail at once while a server keeps failing.

Closed: every call is made, and counted. It opens after ``failures`` failed
calls in a row, or when ``rate`` of at least ``calls`` calls in the last
``window`` seconds have failed: the first is for a server that is down, the
second for one that fails now and then.

Open: every call raises `CircuitOpen` until ``open_for`` seconds have passed.

Half-open: exactly one call is made. If it succeeds, the circuit closes; if it
fails, it opens again, for twice as long (at most ``open_for_max``). Any other
end of the call, such as a ``KeyboardInterrupt`` or a wait that timed out, says
nothing about the server: the next call is the one that is made.

The terms are those of M. Nygard, Release It! (2007); consecutive failures and
a rate over a window are the two triggers of Envoy's outlier detection and of
resilience4j.

What counts as a call: for an `HTTPPool`, a request to one host, which fails by
a connect error, a timeout, or an answer with 502, 503 or 504; for any other
pool, the creation of a resource. The server's connection limit does not count.

`core.circuit` does it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from ._masking import shown
from .errors import CircuitOpen

__all__ = ["CircuitBreaker"]


@dataclass(frozen=True, kw_only=True)
class CircuitBreaker:
    """When a circuit opens, and for how long.

    Attributes:
        failures: It opens after so many failed calls in a row.
        rate: It opens when this part of the calls of the last ``window`` seconds has failed; ``None`` for never.
        calls: The least number of calls in the window for which the ``rate`` counts.
        window: Seconds.
        open_for: Seconds before a call is made again; doubled after each that fails.
        open_for_max: The longest that it is doubled to, in seconds.
        fallback: Called instead of raising `CircuitOpen`, with what was wanted and that error; its result takes the
            place of the call's. In an `HTTPPool` it gets the request and returns an answer; in other pools it gets
            the pool and returns what ``acquire()`` would, such as a lease of another pool.

    Raises:
        TypeError, ValueError: A value has the wrong type, or is out of its range.
    """

    failures: int = 5
    rate: float | None = 0.5
    calls: int = 20
    window: float = 10.0
    open_for: float = 5.0
    open_for_max: float = 60.0
    fallback: Callable[[Any, CircuitOpen], Any] | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name == "fallback":
                if value is not None and not callable(value):
                    raise TypeError(f"fallback must be callable, not {shown(value)}")
            elif field.name in ("failures", "calls"):
                if isinstance(value, bool) or not isinstance(value, int):
                    raise TypeError(f"{field.name} must be a whole number, not {shown(value)}")
                if value < 1:
                    raise ValueError(f"{field.name} must be at least 1, not {value}")
            elif not (field.name == "rate" and value is None):
                if isinstance(value, bool) or not isinstance(value, (int, float)):
                    raise TypeError(f"{field.name} must be a number, not {shown(value)}")
                if not 0 < value < float("inf"):
                    raise ValueError(f"{field.name} must be above 0 and finite, not {value}")
        if self.rate is not None and self.rate > 1:
            raise ValueError(f"rate must be at most 1, not {self.rate}")
        if self.open_for_max < self.open_for:
            raise ValueError(f"open_for_max must be at least open_for={self.open_for}, not {self.open_for_max}")

    @classmethod
    def of(cls, value: object) -> CircuitBreaker | None:
        """Return the breaker that a string describes, such as ``"failures=3,open_for=10"``; "on" has the defaults.

        Raises:
            ValueError: A part is not a name and a number, or breaks its rule.
        """
        if isinstance(value, CircuitBreaker):
            return value
        text = str(value).strip().lower()
        if text in ("on", "off"):
            return cls() if text == "on" else None
        given: dict[str, Any] = {}
        for part in text.split(","):
            name, _, number = (piece.strip() for piece in part.partition("="))
            if name not in _NUMBERS or name in given:
                raise ValueError(f"must be on, off, or different ones of {', '.join(_NUMBERS)} with numbers")
            try:
                given[name] = None if name == "rate" and number == "none" else _NUMBERS[name](number)
            except ValueError:
                raise ValueError(f"must have a number after {name}=") from None
        return replace(cls(), **given)


_NUMBERS: Mapping[str, Callable[[str], object]] = {
    "failures": int, "rate": float, "calls": int, "window": float, "open_for": float, "open_for_max": float,
}  # fmt: skip
CircuitBreaker.__module__ = "pooling"

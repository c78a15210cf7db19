"""How requests are distributed over several servers: the settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

from ...._masking import shown

__all__ = ["Balancing", "checked_balancing"]

_WHOLE, _FLAGS = ("eject_after",), ("resolve",)
_OR_ZERO = ("slow_start", "max_ejected", "retry_budget")
_OR_NONE = ("hedge_after",)


@dataclass(frozen=True, kw_only=True)
class Balancing:
    """How an `HTTPPool` distributes requests over its ``base_urls``; times are seconds.

    The defaults of ``eject_after`` and ``eject_for`` are those of Envoy's outlier detection.

    Attributes:
        eject_after: A server is ejected, which means left out, after so many failures in a row: no connection, a
            timeout, a lost connection, or a status from 500 on.
        eject_for: How long it is left out at first; then one request tries it, and while that fails, the time grows:
            twice as long the second time, three times the third, and so on.
        eject_for_max: The longest that it grows to.
        max_ejected: The part of the servers that may be ejected at the same time, at most 0.5.
        slow_start: A server that has returned, or has been added, gets its share of the requests gradually over this
            time; ``0`` for at once.
        decay: How fast the memory of latencies and failures fades: after this time, to a third.
        retry_budget: Retries and hedges per request, at most 1. Ten are allowed before any request has been made.
        resolve: Whether each address that a name has is a server of its own. TLS still verifies the name.
        resolve_interval: How often the addresses are looked up again.
        hedge_after: Hedging: a request that its server has not begun to answer after so many seconds is also sent to
            another server, and the first answer wins. Only idempotent requests with a body of at most 16 KiB, or none,
            and within the ``retry_budget``. ``None``, the default, for no hedging.

    Raises:
        TypeError, ValueError: A value has the wrong type, or is out of its range.
    """

    eject_after: int = 5
    eject_for: float = 30.0
    eject_for_max: float = 300.0
    max_ejected: float = 0.5
    slow_start: float = 10.0
    decay: float = 5.0
    retry_budget: float = 0.2
    resolve: bool = False
    resolve_interval: float = 30.0
    hedge_after: float | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            name, value = field.name, getattr(self, field.name)
            if name in _FLAGS:
                if not isinstance(value, bool):
                    raise TypeError(f"{name} must be True or False, not {shown(value)}")
            elif name in _WHOLE:
                if isinstance(value, bool) or not isinstance(value, int):
                    raise TypeError(f"{name} must be a whole number, not {shown(value)}")
                if value < 1:
                    raise ValueError(f"{name} must be at least 1, not {value}")
            elif value is not None or name not in _OR_NONE:
                _check_number(name, value)
        if self.max_ejected > 0.5:
            raise ValueError(f"max_ejected must be at most 0.5, not {self.max_ejected}")
        if self.retry_budget > 1:
            raise ValueError(f"retry_budget must be at most 1, not {self.retry_budget}")
        if self.eject_for_max < self.eject_for:
            raise ValueError(f"eject_for_max must be at least eject_for={self.eject_for}, not {self.eject_for_max}")


def _check_number(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, not {shown(value)}")
    if not 0 <= value < float("inf") or (value == 0 and name not in _OR_ZERO):
        raise ValueError(f"{name} must be {'at least' if name in _OR_ZERO else 'above'} 0 and finite, not {value}")


def checked_balancing(bases: Sequence[object], balancing: object, base_url: object, pooled: object) -> None:
    """Raise `TypeError` or `ValueError` for arguments of an `HTTPPool` that do not go together."""
    if balancing is not None and not isinstance(balancing, Balancing):
        raise TypeError(f"balancing must be a Balancing, not {shown(balancing)}")
    if not bases and balancing is not None:
        raise ValueError("balancing needs base_urls")
    if bases and base_url is not None:
        raise ValueError("base_url and base_urls exclude each other: give one of them")
    if bases and not pooled:
        raise ValueError("pooled must be True with base_urls: requests that are not pooled are not balanced")


Balancing.__module__ = "pooling"  # where users import it from

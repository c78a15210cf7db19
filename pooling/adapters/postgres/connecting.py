"""What happens inside ``connect()`` of a connection class that the user wrote.

Overrides ``Connection._connect_gen`` of psycopg, which is called after such a
class has made its own conninfo of what it was given.

Gain: correctness, not speed. The pool's defaults (its name, keepalive, limits)
are added where that conninfo says nothing of them, and the attempt is traced
(see `trace`).
Without (another name, or ``POOLING_PLAIN=1``) the defaults are given to
``connect()`` along with the user's arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import psycopg

from . import trace
from .internals import available

__all__ = ["AVAILABLE", "Connecting", "completing"]

AVAILABLE = available("connecting", "Connection._connect_gen")

#: Completes the conninfo of the attempt to connect in this context, where the class has a connect() of its own.
completing: ContextVar[Callable[[str], str] | None] = ContextVar("completing", default=None)

if TYPE_CHECKING:
    _Base = object  # mypy would compare each method with psycopg's
else:
    _Base = psycopg.Connection  # so that an existing connection's class can be changed to a subclass of this one


class Connecting(_Base):
    """Mixed into connection classes where `AVAILABLE`."""

    @classmethod
    def _connect_gen(cls, conninfo: str = "", **options: Any) -> Generator[Any, Any, Any]:
        complete = completing.get()
        if complete is not None:
            conninfo = complete(conninfo)
        states = trace.listening()
        if states is None:
            return (yield from super()._connect_gen(conninfo, **options))  # type: ignore[misc]
        return cls((yield from trace.connect(conninfo, states, **options)))  # type: ignore[call-arg]

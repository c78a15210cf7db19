"""How long queries take, which are the slowest, and how they fail."""

from __future__ import annotations

import _thread
import heapq
import re
from collections import Counter
from collections.abc import Generator
from contextlib import AbstractContextManager
from time import monotonic
from types import TracebackType
from typing import Any

from psycopg.sql import Composable

from ...core.report.histogram import Buckets, Histogram

__all__ = ["QueryStatistics", "text_of"]

SLOWEST = 10
_LONGEST = 500  # characters of a text that are kept
# What a user says may be a secret: ALTER ROLE ... PASSWORD '...', the number of a card, the
# remark in a comment. Comments and names are known so that a quote in one begins no literal,
# and what has no end where the text was cut goes to the end.
_HIDDEN = re.compile(
    r"""
    (?P<kept> "(?:[^"]|"")*(?:"|\Z) )                       # a name
    | (?P<comment>
        --[^\n]*
        | /\*(?:(?!/\*).)*?\*/
        | /\*.*                                             # one in another: who knows where it ends
    )
    | (?<!\w)[eE]'(?:[^'\\]|''|\\(?:.|\Z))*(?:'|\Z)
    | '(?:[^']|'')*(?:'|\Z)
    | (?<![\w$])\$(?P<tag>(?:[^\W\d]\w*)?)\$.*?(?:\$(?P=tag)\$|\Z)
    | (?P<number> (?<![\w$.])\.?\d[\w.]* )
    """,
    re.S | re.X,
)


class QueryStatistics:
    """Counts and times the queries of one pool: what a cursor executes, not BEGIN and COMMIT.

    A query is timed from its sending until its answer is there. A COPY is timed
    until it can begin, what goes through a pipeline or is streamed until it is
    sent, and is an error only if it fails until then. Texts are kept without
    parameters and comments, with ``'?'`` for literals and ``?`` for numbers.
    """

    def __init__(self) -> None:
        self.renew()

    def renew(self) -> None:
        """Start anew, with a lock that nobody holds: in a forked child."""
        self._lock: Any = _thread.RLock()
        self._times = Histogram(self._lock)
        self._errors: Counter[str] = Counter()  # guarded by the lock
        self._slowest: list[tuple[float, str]] = []  # a heap, the fastest first; guarded by the lock
        self._bar = 0.0  # whoever is slower belongs to the slowest

    def timed(self, steps: Generator[Any, Any, Any]) -> AbstractContextManager[None] | None:
        """Return what times these steps of psycopg's; ``None`` if they are none of a query."""
        frame = getattr(steps, "gi_frame", None)
        given = {} if frame is None else frame.f_locals
        query = given.get("query") or given.get("statement")  # that is what a COPY calls it
        return None if query is None else _Timer(self, query)

    def count(self, query: Any, seconds: float, error: BaseException | None) -> None:
        """Count one query."""
        self._times.record(seconds)
        if error is not None:
            with self._lock:
                self._errors[getattr(error, "sqlstate", None) or type(error).__name__] += 1
        if seconds > self._bar:
            self._note_slow(seconds, text_of(query))

    def _note_slow(self, seconds: float, text: str) -> None:
        with self._lock:
            self._note_slow_locked(seconds, text)

    def _note_slow_locked(self, seconds: float, text: str) -> None:
        # Not in the block that holds the lock: CPython 3.13.0 does not release it if a
        # signal handler raises in a loop that ends in a condition.
        slowest = self._slowest
        for place, (known, other) in enumerate(slowest):
            if other == text:  # each text once, with its longest time
                slowest[place] = (max(known, seconds), text)
                heapq.heapify(slowest)
                break
        else:
            heapq.heappush(slowest, (seconds, text))
            if len(slowest) > SLOWEST:
                heapq.heappop(slowest)
        self._bar = slowest[0][0] if len(slowest) == SLOWEST else 0.0

    def reset(self) -> None:
        """Forget everything."""
        with self._lock:
            self._times.clear()
            self._errors.clear()
            self._slowest.clear()
            self._bar = 0.0

    def buckets(self) -> Buckets:
        """Return the queries by bucket."""
        with self._lock:
            return self._times.buckets()

    def to_dict(self) -> dict[str, Any]:
        """Return count, errors, seconds (mean, p50, p95, p99, max) and the slowest texts."""
        with self._lock:
            times = self._times.snapshot()
            errors, slowest = dict(self._errors), sorted(self._slowest, reverse=True)
        return {
            **times._asdict(),
            "errors": sum(errors.values()),
            "errors_by_sqlstate": errors,
            "slowest": [{"seconds": seconds, "query": text} for seconds, text in slowest],
        }


class _Timer:
    __slots__ = ("_statistics", "_query", "_began")

    def __init__(self, statistics: QueryStatistics, query: Any) -> None:
        self._statistics, self._query = statistics, query

    def __enter__(self) -> None:
        self._began = monotonic()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._statistics.count(self._query, monotonic() - self._began, error)


def text_of(query: Any) -> str:
    """Return a statement in one line, without its literals and comments."""
    if isinstance(query, Composable):
        query = query.as_string(None)
    text = query.decode("utf-8", "replace") if isinstance(query, bytes) else str(query)
    return " ".join(_HIDDEN.sub(_hidden, text[: 4 * _LONGEST]).split())[:_LONGEST]


def _hidden(found: re.Match[str]) -> str:
    kind = found.lastgroup if found.lastgroup != "tag" else None
    return found[0] if kind == "kept" else {"comment": " ", "number": "?"}.get(kind or "", "'?'")

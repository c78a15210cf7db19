"""Which statement a generator of psycopg executes.

psycopg hands each operation to ``Connection.wait()`` as a generator. Uses the
names of these generators and of their local variables (``_execute_gen`` has
``query`` and ``params``, a COPY has ``statement``), which are psycopg's own.

Gain: features, not speed. Query statistics, the statement that a
`TransactionRolledBack` names, and recording what a ``configure`` hook
executes: so that can be executed again within the round trip of a cleaning,
where calling the hook takes a round trip for each of its statements.
Without (other names, or ``POOLING_PLAIN=1``) no query is counted, messages say
"a statement", and the hook is called after each cleaning that undid something.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from types import TracebackType
from typing import Any

import psycopg

from .internals import available

__all__ = ["AVAILABLE", "name_of", "queries_in", "query_of", "variables_of"]

AVAILABLE = available("steps", "Cursor._execute_gen", "Connection._commit_gen") and {"query", "params"} <= set(
    inspect.signature(psycopg.Cursor._execute_gen).parameters
)


def name_of(steps: Any) -> str:
    """Return the name of a generator function, ``""`` if that is not known."""
    return getattr(steps, "__name__", "") if AVAILABLE else ""


def variables_of(steps: Any) -> dict[str, Any]:
    """Return the local variables of a suspended generator; none if they are not known."""
    frame = getattr(steps, "gi_frame", None) if AVAILABLE else None
    return {} if frame is None else frame.f_locals


def query_of(steps: Any) -> Any:
    """Return the statement that a generator executes, as the user gave it, or ``None``."""
    given = variables_of(steps)
    return given.get("query") or given.get("statement")


def queries_in(traceback: TracebackType | None) -> Iterator[Any]:
    """Yield the statements that were being executed where an exception was raised, outermost first."""
    while traceback is not None and AVAILABLE:
        given = traceback.tb_frame.f_locals
        query = given.get("query") or given.get("statement")
        if isinstance(query, (str, bytes, psycopg.sql.Composable)):
            yield query
        traceback = traceback.tb_next

"""Connections of other classes than the pool's own.

A program may wrap or replace ``psycopg.Connection.connect``: tracing agents, test
doubles, what injects delays and faults. What it returns is then

- a psycopg connection of another class: its class is changed to a subclass that keeps `Notes`;
- a proxy of one (with ``__wrapped__``, as wrapt's): the same, with what it stands for;
- anything else: `ForeignNotes` say that only its own ``commit()``, ``rollback()``,
  ``execute()``, ``close()`` and ``closed`` can be used. It is not cleaned on the server, and its
  commands have no time limit.
"""

from __future__ import annotations

from .session import Connection, Notes, Tracking, bare_of, notes_of, tracked

__all__ = ["ForeignNotes", "adopt"]


class ForeignNotes(Notes):
    """Of what only looks like a connection."""

    foreign = True


def adopt(conn: Connection, measuring: bool) -> bool:
    """Have a connection keep `Notes`; say whether it is one of psycopg's, or stands for one.

    Raises:
        TypeError: It is neither, and nothing can be noted of it.
    """
    bare = bare_of(conn)
    if bare is not None:
        if not isinstance(bare, Tracking):
            vars(bare)["_pooling"] = Notes()
            bare.__class__ = tracked(type(bare), measuring)  # type: ignore[arg-type]  # mypy: a class is not Hashable
        notes = notes_of(bare)
        if getattr(conn, "_pooling", None) is notes:
            notes.wrapped = bare is not conn
            return True
    try:
        conn._pooling = ForeignNotes()  # type: ignore[attr-defined]
    except AttributeError:
        raise TypeError(f"connect() returned a {type(conn).__name__}, which is no psycopg.Connection") from None
    return False


"""Connections of other classes than the pool's own.

A program may wrap or replace ``psycopg.Connection.connect``: tracing agents, test
doubles, tools that inject delays and faults. What it returns is then

- a psycopg connection of another class: its class is changed to a subclass that keeps `Notes`;
- a proxy of one (with ``__wrapped__``, as wrapt's): the same, with the connection behind it;
- anything else: `ForeignNotes` say that only its own ``commit()``, ``rollback()``,
  ``execute()``, ``close()`` and ``closed`` can be used. It is not cleaned on the server, and its
  commands have no time limit.

Changing the class of an existing object needs classes without slots of their
own, which psycopg does not promise. Gain: correctness, not speed.
Without (slots, or ``POOLING_PLAIN=1``) such a connection is treated as
"anything else", with a warning.
"""

from __future__ import annotations

import logging

from ..._fields import fields
from ..._plain import switched_off
from .tracking import Connection, Notes, Tracking, bare_of, notes_of, tracked

__all__ = ["ForeignNotes", "adopt"]

logger = logging.getLogger("pooling")


class ForeignNotes(Notes):
    """The notes of an object that is no connection of psycopg's."""

    foreign = True


def adopt(conn: Connection, measuring: bool) -> bool:
    """Have a connection keep `Notes`; return whether it is one of psycopg's, or a proxy of one.

    Raises:
        TypeError: It is neither, and has no place for notes.
    """
    bare = bare_of(conn)
    if bare is not None and (isinstance(bare, Tracking) or _change_class(bare, measuring)):
        notes = notes_of(bare)
        if getattr(conn, "_pooling", None) is notes:
            notes.wrapped = bare is not conn
            return True
    try:
        conn._pooling = ForeignNotes()  # type: ignore[attr-defined]
    except AttributeError:
        raise TypeError(f"connect() returned a {type(conn).__name__}, which is no psycopg.Connection") from None
    return False



def _change_class(conn: Connection, measuring: bool) -> bool:
    """Have an existing connection track what is done with it; return whether that is possible."""
    if not switched_off("foreign"):
        try:
            vars(conn)["_pooling"] = Notes()
            conn.__class__ = tracked(type(conn), measuring)  # type: ignore[arg-type]  # mypy: a class is not Hashable
            return True
        except TypeError:
            pass
    kind = type(conn).__qualname__
    extra = fields("untracked", what=kind)
    logger.warning("connect() returned a %s, which cannot be tracked: it is not cleaned", kind, extra=extra)
    return False

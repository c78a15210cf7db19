"""Cursors that wait for an answer with fewer turns at the GIL than psycopg's own."""

from __future__ import annotations

import functools
from collections.abc import Generator
from typing import Any

import psycopg
from psycopg._preparing import Prepare

from .wire import answers, notify, refuse_failed

__all__ = ["fast_cursor"]

_NO, _YES, _SHOULD = Prepare.NO, Prepare.YES, Prepare.SHOULD  # bound once: the cheaper look


class FastCursor:
    """Put before a cursor class: gets the answers of plain queries by `answers`, and sends them as psycopg does.

    What is to be prepared first, and what goes through a pipeline, is all psycopg's; so
    are COPY, ``stream()`` and server-side cursors.
    """

    __slots__ = ()

    def _maybe_prepare_gen(
        self: Any, pgq: Any, *, prepare: bool | None = None, binary: bool | None = None
    ) -> Generator[int, Any, None]:
        conn, pgconn = self._conn, self._pgconn
        prep, name = (_SHOULD, b"") if conn._pipeline else self._get_prepared(pgq, prepare)
        if prep is _NO:
            self._execute_send(pgq, binary=binary)
        elif prep is _YES:
            self._send_query_prepared(name, pgq, binary=binary)
        else:
            yield from super()._maybe_prepare_gen(pgq, prepare=prepare, binary=binary)  # type: ignore[misc]
            return
        key = conn._prepared.maybe_add_to_cache(pgq, prep, name)
        results: list[Any] = []
        try:
            yield from answers(pgconn, results)
        except psycopg.Error:
            refuse_failed(results)  # the server's last words tell more than that it has hung up
            raise
        if conn._notify_handlers:
            notify(conn)
        if key is not None:
            conn._prepared.validate(key, prep, name, results)
        self._check_results(results)
        self._set_results(results)


def fast_cursor(factory: Any) -> Any:
    """Return a subclass that looks like the class itself and waits so; or what has a way of its own, as it is."""
    plain = psycopg.Cursor._maybe_prepare_gen
    if not isinstance(factory, type) or getattr(factory, "_maybe_prepare_gen", None) is not plain:
        return factory
    return _subclass(factory)


@functools.cache
def _subclass(cursor_class: Any) -> Any:
    namespace = {
        "__module__": cursor_class.__module__, "__doc__": cursor_class.__doc__, "__slots__": (),
        "__qualname__": cursor_class.__qualname__,
    }  # fmt: skip
    return type(cursor_class.__name__, (FastCursor, cursor_class), namespace)

"""Cursors that wait for an answer with fewer releases of the GIL than psycopg's own.

Overrides ``Cursor._maybe_prepare_gen`` of psycopg, which sends a query and
collects its results, and calls the private methods that it consists of. Sends
the BEGIN of a transaction with the first statement, see `beginning`.

Gain: 13 to 18 % more blocks (BEGIN, ``SELECT 1``, COMMIT) a second with 20
threads on 10 connections and two free processors; 0 to 3 % when other programs
keep the processors busy, and in a single thread.
Without (other names, or ``POOLING_PLAIN=1``) cursors are those of psycopg.
"""

from __future__ import annotations

import functools
from collections.abc import Generator
from typing import Any

import psycopg

from .beginning import begin_of, begin_pipeline, end_pipeline, fits, take_begin
from .internals import available
from .wire import answers, notify, refuse_failed

__all__ = ["AVAILABLE", "FastCursor", "fast_cursor"]

AVAILABLE = available(
    "cursors",
    "Cursor._maybe_prepare_gen", "Cursor._get_prepared", "Cursor._execute_send", "Cursor._send_query_prepared",
    "Cursor._check_results", "Cursor._set_results", "Cursor._conn", "Cursor._pgconn",
    "Connection._autocommit", "Connection._pipeline", "Connection._notify_handlers",
    "Connection._prepared.maybe_add_to_cache", "Connection._prepared.validate",
    "psycopg._preparing.Prepare.NO", "psycopg._preparing.Prepare.YES", "psycopg._preparing.Prepare.SHOULD",
)  # fmt: skip
if AVAILABLE:
    from psycopg._preparing import Prepare

    _NO, _YES, _SHOULD = Prepare.NO, Prepare.YES, Prepare.SHOULD  # looking up a member takes longer


class FastCursor:
    """Put before a cursor class: collects the answers of plain queries by `wire.answers`.

    What is prepared first, what goes through a pipeline, COPY, ``stream()``
    and server-side cursors are left to psycopg.
    """

    __slots__ = ()

    def _execute_gen(self: Any, query: Any, params: Any = None, **options: Any) -> Generator[int, Any, None]:
        steps: Generator[int, Any, None] = super()._execute_gen(query, params, **options)  # type: ignore[misc]
        return steps if self._conn._autocommit else _execute_gen(self._conn, steps, query, params)

    def _maybe_prepare_gen(
        self: Any, pgq: Any, *, prepare: bool | None = None, binary: bool | None = None
    ) -> Generator[int, Any, None]:
        conn = self._conn
        begin = b"" if conn._autocommit else begin_of(conn)
        prep, name = (_SHOULD, b"") if conn._pipeline else self._get_prepared(pgq, prepare)
        if begin and not (prep is _YES or (prep is _NO and fits(pgq.query, pgq.params))):
            yield from conn._exec_command(begin)
            begin = b""
        if prep is _SHOULD:
            yield from super()._maybe_prepare_gen(pgq, prepare=prepare, binary=binary)  # type: ignore[misc]
            return
        if begin:
            begin_pipeline(self._pgconn, begin)
        try:
            if prep is _NO:
                self._execute_send(pgq, force_extended=bool(begin), binary=binary)
            else:
                self._send_query_prepared(name, pgq, binary=binary)
        except Exception:
            if begin:
                yield from self._answers(pipeline=True)  # of the BEGIN alone, as with psycopg
            raise
        key = conn._prepared.maybe_add_to_cache(pgq, prep, name)
        results = yield from self._answers(pipeline=bool(begin))
        if key is not None:
            conn._prepared.validate(key, prep, name, results)
        self._check_results(results)
        self._set_results(results)

    def _answers(self: Any, pipeline: bool) -> Generator[int, Any, list[Any]]:
        """Return the results of what was sent, in a pipeline after a BEGIN or not."""
        conn, pgconn = self._conn, self._pgconn
        results: list[Any] = []
        try:
            yield from answers(pgconn, results, pipeline=pipeline)
        except psycopg.Error:
            refuse_failed(results, pgconn)  # the server's last message says more than that it has closed the connection
            raise
        if pipeline:
            results = end_pipeline(pgconn, results)
        if conn._notify_handlers:
            notify(conn)
        return results


def _execute_gen(conn: Any, steps: Any, query: Any, params: Any) -> Generator[int, Any, None]:
    """Take the BEGIN. Looks like psycopg's generator to the module `steps`: same name, same variables."""
    take_begin(conn)
    yield from steps


def fast_cursor(factory: Any) -> Any:
    """Return a subclass that looks like the class itself and waits in this way.

    Anything but a class, and a class with a ``_maybe_prepare_gen`` of its own, is returned as it is.
    """
    if not (AVAILABLE and isinstance(factory, type)):
        return factory
    if getattr(factory, "_maybe_prepare_gen", None) is not psycopg.Cursor._maybe_prepare_gen:
        return factory
    return _subclass(factory)


@functools.cache
def _subclass(cursor_class: Any) -> Any:
    namespace = {
        "__module__": cursor_class.__module__, "__doc__": cursor_class.__doc__, "__slots__": (),
        "__qualname__": cursor_class.__qualname__,
    }  # fmt: skip
    return type(cursor_class.__name__, (FastCursor, cursor_class), namespace)

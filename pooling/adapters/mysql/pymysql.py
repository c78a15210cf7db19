"""PyMySQL.

It has no method for COM_RESET_CONNECTION, so its private names are used, which
``tests/integration/test_mysql_drivers.py`` compares with the installed version:
`NEEDED`. They also make it possible to clean a session in the round trip of the
COMMIT, to note whether a lease sent anything, and to limit the time of a command.
Gain: connections are used again at all, without a login for each lease; and a
COMMIT with its cleaning takes one round trip instead of two.
Without (other names, or ``POOLING_PLAIN=1``) each connection that was lent is
closed afterwards.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from importlib import import_module
from typing import Any

import pymysql
from pymysql import cursors

from ..._plain import switched_off
from ..shared.limits import Limit
from ..shared.statistics import Timer
from .driver import WireDriver
from .tracking import Connection, Delaying, Noted, Notes, notes_of
from .wire import Commands

__all__ = ["ATTRIBUTES", "NEEDED", "PyMySQL"]

# After ``install_as_MySQLdb()``, ``pymysql.err`` may be a copy with other classes: importing ``MySQLdb.err`` sets it.
err: Any = import_module("pymysql.err")

NEEDED = ("_execute_command", "_force_close", "_read_query_result", "_create_ssl_ctx", "_read_ok_packet", "_sock")
"""Private names of ``pymysql.connections.Connection``."""

ATTRIBUTES = ("_sock", "_rfile", "_result", "_read_timeout", "_write_timeout", "_affected_rows", "server_status", "db")
"""Attributes of its objects that are not documented."""

AVAILABLE = all(hasattr(pymysql.connections.Connection, name) for name in NEEDED) and not switched_off("pymysql")

_TLS = {"REQUIRED": False, "VERIFY_CA": True, "VERIFY_IDENTITY": True}  # whether the certificate is verified
_PARAMETERS = frozenset(inspect.signature(pymysql.connections.Connection.__init__).parameters) - {"self"}

#: What of ``vars(conn)`` is not a borrower's to change, or changes by itself.
_VOLATILE = {
    "_sock", "_rfile", "_next_seq_id", "_current_timeout", "_result", "_affected_rows", "_closed", "_secure",
    "_pooling", "server_status", "host_info",
}  # fmt: skip
_COPIED = ("encoders", "decoders")


class Tracking(Delaying):
    """Keeps `Notes`, and the time limit of each command."""

    def _execute_command(self, command: int, sql: Any) -> None:
        notes: Notes = self._pooling  # type: ignore[attr-defined]
        if isinstance(sql, str):
            sql = sql.encode(self.encoding)  # type: ignore[attr-defined]
        if notes.autocommit_due:
            self.catch_up(notes)
        notes.note_command(command, sql)
        if notes.limit is not None:
            self._read_timeout = self._write_timeout = notes.limit.left()
        super()._execute_command(command, sql)  # type: ignore[misc]

    def _read_ok_packet(self) -> Any:
        try:
            return super()._read_ok_packet()  # type: ignore[misc]
        except err.MySQLError as error:
            self._explain(error)
            raise

    def _explain(self, error: Exception) -> None:
        """Raise another error if the pool has ended the connection, or the command took too long."""
        notes: Notes = self._pooling  # type: ignore[attr-defined]
        if notes.stalled is not None:
            raise self._driver.lost(notes.stalled) from error
        if isinstance(error.__context__, TimeoutError):
            notes.unfinished = True
            if notes.limit is not None:
                raise self._driver.command_timeout(f"{notes.limit}, and the server did not answer") from error

    def _force_close(self) -> None:
        notes: Notes = self._pooling  # type: ignore[attr-defined]
        if not self._closed:  # type: ignore[attr-defined]  # after an error: `MySQLAdapter.close` waits for the server
            notes.keep_peer(self._sock)  # type: ignore[attr-defined]
        super()._force_close()  # type: ignore[misc]

    def _create_ssl_ctx(self, sslp: Any) -> Any:
        if sslp != {}:
            return super()._create_ssl_ctx(sslp)  # type: ignore[misc]
        # Without TLS arguments: PyMySQL loads the system's certificates, for 15 ms each time, and verifies none.
        if self._driver.context is None:
            self._driver.context = super()._create_ssl_ctx(sslp)  # type: ignore[misc]
        return self._driver.context

    def query(self, sql: Any, unbuffered: bool = False) -> Any:
        """As PyMySQL's, within the time limit of the command."""
        notes: Notes = self._pooling  # type: ignore[attr-defined]
        if notes.queries is None:
            return self._limited(notes, sql, unbuffered)
        with Timer(notes.queries, sql):
            return self._limited(notes, sql, unbuffered)

    def _limited(self, notes: Notes, sql: Any, unbuffered: bool) -> Any:
        notes.waits = True
        try:
            result = super().query(sql, unbuffered)  # type: ignore[misc]
        except err.MySQLError as error:
            notes.note_failure(error, sql)
            self._explain(error)
            raise
        except BaseException:
            notes.unfinished = True
            raise
        finally:
            notes.waits = False
        if notes.failed is not None:
            notes.note_success(sql)
        return result


class PyMySQL(WireDriver):
    """See `Driver`."""

    name = "pymysql"
    enforces_timeouts = pipelines = resets = notes_use = AVAILABLE
    tracking = Tracking if AVAILABLE else Noted
    limits = ("_read_timeout", "_write_timeout")
    context: Any = None  # of connections without TLS arguments

    def connection_class(self) -> type[Any]:
        found: type[Any] = pymysql.connections.Connection
        return found

    def complete(self, given: Mapping[str, Any], connect_timeout: float, name: str | None) -> dict[str, Any]:
        arguments = {**given}
        mode = arguments.pop("ssl_mode", None)
        for unknown in sorted(arguments.keys() - _PARAMETERS):
            raise ValueError(f"unknown parameter {unknown!r}: PyMySQL's connect() does not take it")
        if "db" in arguments:  # deprecated, as is passwd
            arguments.setdefault("database", arguments.pop("db"))
        if "passwd" in arguments:
            arguments.setdefault("password", arguments.pop("passwd"))
        if mode == "DISABLED":
            arguments["ssl_disabled"] = True
        elif mode in _TLS:
            arguments = _with_tls(arguments, mode)
        arguments.setdefault("connect_timeout", max(1.0, connect_timeout))
        arguments["defer_connect"] = False
        if name:
            arguments.setdefault("program_name", name)
        return arguments

    def connect(self, arguments: Mapping[str, Any]) -> Connection:
        limits = {name: arguments.get(name) for name in ("read_timeout", "write_timeout")}
        if AVAILABLE:  # PyMySQL's connect_timeout does not apply to what comes after the connection to the port
            arguments = {**arguments, **{name: limit or arguments["connect_timeout"] for name, limit in limits.items()}}
        conn = super().connect(arguments)
        if AVAILABLE:
            conn._read_timeout, conn._write_timeout = limits.values()
        wants = any(arguments.get(one) for one in ("ssl", "ssl_ca", "ssl_cert", "ssl_key", "ssl_verify_cert",
                                                   "ssl_verify_identity"))  # fmt: skip
        if wants and not arguments.get("ssl_disabled") and not hasattr(conn._sock, "getpeercert"):
            self.close(conn)  # older ones go on without TLS if the server has none
            raise self.operational(2026, "TLS is required, but the server does not support it")
        return conn

    def close(self, conn: Connection) -> None:
        if AVAILABLE and conn._sock is not None:
            _forget_results(conn)
            conn._read_timeout = conn._write_timeout = 1.0  # a peer that takes nothing must not block a worker
        if conn.open:
            conn.close()

    def socket_of(self, conn: Connection) -> Any:
        return conn._sock if AVAILABLE else None

    def is_open(self, conn: Connection) -> bool:
        return bool(conn.open)

    def thread_id(self, conn: Connection) -> int:
        return int(conn.thread_id())

    def server_version(self, conn: Connection) -> str:
        return str(conn.get_server_info())

    def perform(self, conn: Connection, commands: Commands, timeout: float | None, pipelined: bool) -> None:
        if AVAILABLE:
            super().perform(conn, commands, timeout, pipelined)
        else:
            for _, text in commands.steps:
                self.execute(conn, text.decode(), 0.0)

    def begin_raw(self, conn: Connection) -> Any:
        conn._result = None
        conn._current_timeout = -1.0  # so that it sets the socket's again
        return conn._sock

    def end_raw(self, conn: Connection, status: int) -> None:
        conn.server_status = status
        conn._current_timeout = conn._sock.gettimeout()

    def cut_off(self, conn: Connection) -> None:
        conn._force_close()

    def error_of(self, answer: bytes) -> Exception:
        try:
            err.raise_mysql_exception(answer)
        except err.MySQLError as error:
            found: Exception = error.with_traceback(None)
            return found
        return self.lost("the server has sent a malformed error")

    def ask(self, conn: Connection, sql: str, timeout: float) -> tuple[Any, ...]:
        notes = notes_of(conn)
        dirty, limit, queries = notes.dirty, notes.limit, notes.queries
        notes.limit, notes.queries = Limit(timeout), None
        before = vars(conn).get("_read_timeout"), vars(conn).get("_write_timeout")
        try:
            cursor = cursors.Cursor(conn)
            cursor.execute(sql)
            row = cursor.fetchone()
            cursor.close()
        finally:
            conn._read_timeout, conn._write_timeout = before
            notes.dirty, notes.limit, notes.queries = dirty, limit, queries
        return tuple(row or ())

    def execute(self, conn: Connection, sql: str, timeout: float) -> None:
        cursor = cursors.Cursor(conn)
        cursor.execute(sql)
        cursor.close()

    def in_autocommit(self, conn: Connection) -> bool:
        return bool(conn.get_autocommit())

    def unread(self, conn: Connection) -> str | None:
        result = conn._result if AVAILABLE else None
        if result is None:
            return None
        if result.unbuffered_active:
            return "a half-read result of an unbuffered cursor"
        return "a further result that was not read" if result.has_next else None

    def session_of(self, conn: Connection) -> tuple[str | None, list[str], list[str]]:
        names = f"NAMES {conn.charset}" + (f" COLLATE {conn.collation}" if conn.collation else "")
        assignments = [names]
        if conn.autocommit_mode is not None:
            assignments.append(f"autocommit={int(conn.autocommit_mode)}")
        if conn.sql_mode is not None:
            assignments.append(f"sql_mode={conn.escape(conn.sql_mode)}")
        database = conn.db.decode() if isinstance(conn.db, bytes) else conn.db
        return database or None, assignments, [conn.init_command] if conn.init_command else []

    def autocommit_of(self, state: Any) -> bool | None:
        mode: bool | None = state[0]["autocommit_mode"]
        return mode

    def client_state(self, conn: Connection) -> Any:
        state = {name: value for name, value in vars(conn).items() if name not in _VOLATILE}
        return state, [(name, dict(state[name])) for name in _COPIED], len(vars(conn))

    def restore(self, conn: Connection, state: Any) -> None:
        saved, copies, number = state
        mine: dict[str, Any] = conn.__dict__
        mine.update(saved)
        for name, copy in copies:  # changed in place
            if mine[name] != copy:
                mine[name].clear()
                mine[name].update(copy)
        if len(mine) != number:
            for name in mine.keys() - saved.keys() - _VOLATILE:
                del mine[name]
        mine["_result"] = None
        mine["_affected_rows"] = 0


def _forget_results(conn: Connection) -> None:
    """Let a half-read result end here: its destructor would read the rest, however long that takes."""
    result = conn._result
    if result is not None:
        result.unbuffered_active = False
        conn._result = None


def _with_tls(arguments: dict[str, Any], mode: str) -> dict[str, Any]:
    import ssl

    arguments = {**arguments}
    files = [arguments.pop(name, None) for name in ("ssl_ca", "ssl_cert", "ssl_key", "ssl_key_password")]
    if _TLS[mode]:
        context = ssl.create_default_context(cafile=files[0])
        context.check_hostname = mode == "VERIFY_IDENTITY"
    else:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # loads no certificates, which takes 15 ms
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if files[1]:
        context.load_cert_chain(files[1], files[2], files[3])
    arguments["ssl"] = context
    return arguments

"""mysql-connector-python, in its pure form: the one in C does not tell its socket.

Used are its private names in `NEEDED`, as with PyMySQL and for the same reasons;
see there. Gain: as with PyMySQL. Without (other names, or ``POOLING_PLAIN=1``)
each connection that was lent is closed afterwards.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import mysql.connector
from mysql.connector import errors
from mysql.connector.constants import DEFAULT_CONFIGURATION, ClientFlag
from mysql.connector.network import NetworkBrokerPlain

from ..._plain import switched_off
from ..shared.limits import Limit
from ..shared.statistics import Timer
from .driver import WireDriver
from .failures import LOST
from .tracking import Connection, Ending, Noted, Notes, notes_of
from .wire import QUERY, Commands

__all__ = ["ATTRIBUTES", "NEEDED", "Connector"]

NEEDED = ("_send_cmd", "_handle_server_status")
"""Private names of ``mysql.connector.MySQLConnection``."""

ATTRIBUTES = (
    "_socket", "_autocommit", "_sql_mode", "_time_zone", "_init_command", "_read_timeout", "_client_flags",
    "_unread_result", "_have_next_result", "_database",
)  # fmt: skip
"""Attributes of its objects that are not documented; ``_socket`` has ``sock`` and ``_netbroker``."""

AVAILABLE = all(hasattr(mysql.connector.MySQLConnection, name) for name in NEEDED) and not switched_off("connector")

_NAMES = {
    "connect_timeout": "connection_timeout", "client_flag": "client_flags", "local_infile": "allow_local_infile",
}  # fmt: skip
_PARAMETERS = frozenset(DEFAULT_CONFIGURATION) | {"ssl_mode"}
_IN_AUTOCOMMIT = 2  # a flag of the server's status
_VOLATILE = {
    "_pooling", "_socket", "_protocol", "_handshake", "_have_next_result", "_in_transaction", "_unread_result",
    "_columns_desc", "_query", "_local_infile_filenames", "_prepared_statements", "_span", "_status",
}  # fmt: skip


class Tracking(Ending):
    """Keeps `Notes`, and the time limit of each command."""

    def _send_cmd(self, command: int, argument: Any = None, *args: Any, **kwargs: Any) -> Any:
        notes: Notes = self._pooling  # type: ignore[attr-defined]
        text = argument or b""
        if command == QUERY and self._client_flags & ClientFlag.CLIENT_QUERY_ATTRIBUTES:  # type: ignore[attr-defined]
            text = text[2:]  # if there are attributes, it is not the statement yet
        notes.note_command(int(command), text)
        limit = notes.limit
        if limit is not None:
            kwargs["read_timeout"] = kwargs["write_timeout"] = left = limit.left()
            self._read_timeout = math.ceil(left)  # of the rows; the driver takes whole seconds only
        notes.waits = True
        try:
            return super()._send_cmd(command, argument, *args, **kwargs)  # type: ignore[misc]
        except mysql.connector.Error as error:
            if notes.stalled is not None:
                raise self._driver.lost(notes.stalled) from error
            if isinstance(error, TimeoutError) or isinstance(error.__cause__, TimeoutError):
                notes.unfinished = True
                if limit is not None:
                    raise self._driver.command_timeout(f"{limit}, and the server did not answer") from error
            raise
        except BaseException:
            notes.unfinished = True
            raise
        finally:
            notes.waits = False

    def cursor(self, *args: Any, **kwargs: Any) -> Any:
        """As the driver's, which pings the server first."""
        try:
            return super().cursor(*args, **kwargs)  # type: ignore[misc]
        except mysql.connector.OperationalError as error:
            notes: Notes = self._pooling  # type: ignore[attr-defined]
            if notes.stalled is not None:
                raise self._driver.lost(notes.stalled) from error
            if notes.unfinished and notes.limit is not None:  # the driver does not say that the ping took too long
                raise self._driver.command_timeout(f"{notes.limit}, and the server did not answer") from error
            raise

    def _handle_server_status(self, flags: int) -> None:
        self._pooling.status = flags  # type: ignore[attr-defined]
        super()._handle_server_status(flags)  # type: ignore[misc]

    def cmd_query(self, query: Any, *args: Any, **kwargs: Any) -> Any:
        """As the driver's; counts it, and notes if it ends the transaction."""
        notes: Notes = self._pooling  # type: ignore[attr-defined]
        try:
            if notes.queries is None:
                result = super().cmd_query(query, *args, **kwargs)  # type: ignore[misc]
            else:
                with Timer(notes.queries, query):
                    result = super().cmd_query(query, *args, **kwargs)  # type: ignore[misc]
        except mysql.connector.Error as error:
            notes.note_failure(error, query)
            raise
        if notes.failed is not None:
            notes.note_success(query)
        return result


class Connector(WireDriver):
    """See `Driver`."""

    name = "connector"
    connect_limit = "connection_timeout"
    enforces_timeouts = pipelines = resets = notes_use = AVAILABLE
    tracking = Tracking if AVAILABLE else Noted
    limits = ("_read_timeout",)

    def connection_class(self) -> type[Any]:
        found: type[Any] = mysql.connector.MySQLConnection
        return found

    def lost(self, text: str) -> Exception:
        return self.operational(text, LOST)

    def complete(self, given: Mapping[str, Any], connect_timeout: float, name: str | None) -> dict[str, Any]:
        arguments = {_NAMES.get(key, key): value for key, value in given.items()}
        mode = arguments.pop("ssl_mode", None)
        for unknown in sorted(arguments.keys() - _PARAMETERS):
            raise ValueError(f"unknown parameter {unknown!r}: mysql-connector-python's connect() does not take it")
        arguments.pop("use_pure", None)
        arguments.setdefault("connection_timeout", max(1, int(connect_timeout)))
        if mode == "DISABLED":
            arguments["ssl_disabled"] = True
        elif mode in ("VERIFY_CA", "VERIFY_IDENTITY"):
            if "ssl_ca" not in arguments:
                raise ValueError(f"ssl_mode={mode} needs ssl_ca with mysql-connector-python")
            arguments["ssl_verify_cert"] = True
            arguments["ssl_verify_identity"] = mode == "VERIFY_IDENTITY"
        elif mode == "REQUIRED":
            arguments["ssl_mode"] = mode  # see `connect`
        if name:
            arguments.setdefault("conn_attrs", {"program_name": name})
        return arguments

    def connect(self, arguments: Mapping[str, Any]) -> Connection:
        arguments = {**arguments}
        wants = arguments.pop("ssl_mode", None) or arguments.get("ssl_verify_cert") or arguments.get("ssl_ca")
        conn = super().connect(arguments)
        if wants and not hasattr(self.socket_of(conn), "getpeercert"):
            self.close(conn)  # it goes on without TLS if the server has none
            raise self.operational("TLS is required, but the server does not support it", 2026)
        return conn

    def close(self, conn: Connection) -> None:
        sock = self.socket_of(conn)
        if sock is not None:
            conn.unread_result = False
            sock.settimeout(1.0)  # a peer that takes nothing must not block a worker
            conn.close()
            conn._socket = None

    def query_prefix(self, conn: Connection) -> bytes:
        return b"\0\1" if conn._client_flags & ClientFlag.CLIENT_QUERY_ATTRIBUTES else b""

    def socket_of(self, conn: Connection) -> Any:
        sock = getattr(conn._socket, "sock", None)
        return sock if sock is not None and sock.fileno() >= 0 else None

    def is_open(self, conn: Connection) -> bool:
        return self.socket_of(conn) is not None

    def thread_id(self, conn: Connection) -> int:
        return int(conn.connection_id)

    def server_version(self, conn: Connection) -> str:
        return str(conn.server_info if hasattr(conn, "server_info") else conn.get_server_info())

    def perform(self, conn: Connection, commands: Commands, timeout: float | None, pipelined: bool) -> None:
        if type(conn._socket and conn._socket._netbroker) not in (NetworkBrokerPlain, type(None)):
            raise self.programming("compress=True is not supported: use the server's or a proxy's compression")
        super().perform(conn, commands, timeout, pipelined)

    def begin_raw(self, conn: Connection) -> Any:
        return conn._socket.sock

    def end_raw(self, conn: Connection, status: int) -> None:
        if conn._socket.sock.gettimeout() is not None:
            conn._socket.sock.settimeout(None)
        conn._handle_server_status(status)

    def cut_off(self, conn: Connection) -> None:
        conn._socket.shutdown()

    def error_of(self, answer: bytes) -> Exception:
        found: Exception = errors.get_exception(b"\0\0\0\0" + answer)
        return found

    def ask(self, conn: Connection, sql: str, timeout: float) -> tuple[Any, ...]:
        notes = notes_of(conn)
        dirty, limit, queries = notes.dirty, notes.limit, notes.queries
        notes.limit, notes.queries = Limit(timeout), None
        before = conn._read_timeout
        try:
            cursor = conn.cursor(buffered=True, raw=False, dictionary=False)
            cursor.execute(sql)
            row = cursor.fetchone()
            cursor.close()
        finally:
            conn._read_timeout = before
            notes.dirty, notes.limit, notes.queries = dirty, limit, queries
        return tuple(row or ())

    def execute(self, conn: Connection, sql: str, timeout: float) -> None:
        cursor = conn.cursor(buffered=True)
        cursor.execute(sql)
        cursor.close()

    def cursor(self, conn: Connection, cursor_class: type[Any] | None) -> Any:
        return conn.cursor() if cursor_class is None else conn.cursor(cursor_class=cursor_class)

    def in_autocommit(self, conn: Connection) -> bool:
        return bool(notes_of(conn).status & _IN_AUTOCOMMIT)

    def unread(self, conn: Connection) -> str | None:
        if conn.unread_result:
            return "a half-read result"
        return "a further result that was not read" if conn.have_next_result else None

    def session_of(self, conn: Connection) -> tuple[str | None, list[str], list[str]]:
        charset, collation = conn.charset, conn.collation
        assignments = [f"NAMES {charset} COLLATE {collation}", f"autocommit={int(bool(conn._autocommit))}"]
        for name, value in (("time_zone", conn._time_zone), ("sql_mode", conn._sql_mode)):
            if value:
                text = ",".join(value) if isinstance(value, (list, tuple)) else str(value)
                assignments.append("{}='{}'".format(name, text.replace("'", "''")))
        return conn._database or None, assignments, [conn._init_command] if conn._init_command else []

    def autocommit_of(self, state: Any) -> bool | None:
        return bool(state["_autocommit"])

    def client_state(self, conn: Connection) -> Any:
        return {name: value for name, value in vars(conn).items() if name not in _VOLATILE}

    def restore(self, conn: Connection, state: Any) -> None:
        mine: dict[str, Any] = conn.__dict__
        mine.update(state)
        if len(mine) > len(state) + len(_VOLATILE & mine.keys()):
            for name in mine.keys() - state.keys() - _VOLATILE:
                del mine[name]
        if mine.get("_query_attrs"):
            mine["_query_attrs"].clear()
        mine["_unread_result"] = mine["_have_next_result"] = False

"""mysqlclient, which uses the C library of MySQL or MariaDB.

It cannot reset a session, so ``change_user()`` is called with the same user: that
resets everything, and takes two round trips and the server's work of a login.
Nothing is sent together. A call of the library cannot be limited in time from
outside, so cleaning and validation run on a worker, and ``command_timeout`` is
the library's ``read_timeout``, in whole seconds.
"""

from __future__ import annotations

import configparser
import math
from collections.abc import Mapping
from time import monotonic
from typing import Any

import MySQLdb
from MySQLdb import cursors

from ..shared.statistics import Timer
from .driver import Driver
from .failures import LOST, code_of
from .tracking import Connection, Delaying, Notes, notes_of
from .wire import INIT_DB, QUERY, RESET, Commands

__all__ = ["MySQLClient"]

_PLACE = ("user", "password", "database")
_SESSION = ("collation", "sql_mode", "autocommit", "init_command")
_VOLATILE = {"_pooling", "_place", "messages"}
_COPIED = ("encoders", "converter")
_GONE = {2006, LOST, 2055}  # the library has closed the socket; its number may belong to another by now


def _noted(name: str) -> Any:
    """Return a method that calls the driver's and notes that the connection was used."""

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        notes: Notes = self._pooling
        if notes.autocommit_due and name == "send_query":
            self.catch_up(notes)
        notes.dirty = notes.moved = True
        notes.answered = notes.ended = False
        return getattr(super(Tracking, self), name)(*args, **kwargs)

    call.__name__, call.__doc__ = name, "As mysqlclient's; noted."
    return call


class Tracking(Delaying):
    """Keeps `Notes`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        vars(self)["_place"] = {name: kwargs.get(name) or "" for name in _PLACE} | {
            name: kwargs[name] for name in _SESSION if name in kwargs
        }
        super().__init__(*args, **kwargs)

    autocommit, change_user, select_db, send_query = map(
        _noted, ("autocommit", "change_user", "select_db", "send_query")
    )
    set_character_set, set_server_option = map(_noted, ("set_character_set", "set_server_option"))

    def next_result(self, *args: Any) -> Any:
        """As mysqlclient's. A cursor calls it when it is closed, and it clears ``errno()``."""
        if self.errno() in _GONE:  # type: ignore[attr-defined]
            self._pooling.gone = True  # type: ignore[attr-defined]
        return super().next_result(*args)  # type: ignore[misc]

    def query(self, query: Any) -> Any:
        """As mysqlclient's; counts it, and notes if it ends the transaction."""
        notes: Notes = self._pooling  # type: ignore[attr-defined]
        began = monotonic()
        notes.waits = True
        try:
            if notes.autocommit_due:
                self.catch_up(notes)
            notes.note_command(QUERY, query.encode() if isinstance(query, str) else query)
            if notes.queries is None:
                result = super().query(query)  # type: ignore[misc]
            else:
                with Timer(notes.queries, query):
                    result = super().query(query)  # type: ignore[misc]
        except MySQLdb.MySQLError as error:
            if notes.stalled is not None:
                raise self._driver.lost(notes.stalled) from error
            notes.note_failure(error, query)
            limit: float | None = self._driver.read_timeout
            if limit is not None and code_of(error) == LOST and monotonic() - began >= limit * 0.9:
                notes.unfinished = True
                raise self._driver.command_timeout(
                    f"a command took over {limit:g} s, and the server did not answer"
                ) from error
            raise
        except BaseException:
            notes.unfinished = True
            raise
        finally:
            notes.waits = False
        if notes.failed is not None:
            notes.note_success(query)
        return result


class MySQLClient(Driver):
    """See `Driver`."""

    name = "mysqlclient"
    tracking = Tracking
    read_timeout: int | None = None  # seconds for each command

    def connection_class(self) -> type[Any]:
        from MySQLdb.connections import Connection

        found: type[Any] = Connection
        return found

    def limit_to(self, seconds: float | None) -> None:
        self.read_timeout = None if seconds is None else math.ceil(seconds)

    def complete(self, given: Mapping[str, Any], connect_timeout: float, name: str | None) -> dict[str, Any]:
        arguments = {**given}
        for old, new in (("db", "database"), ("passwd", "password")):
            if old in arguments:
                arguments.setdefault(new, arguments.pop(old))
        if arguments.get("read_default_file"):  # change_user() needs them, and the library does not tell
            found = _options(arguments["read_default_file"], arguments.get("read_default_group"))
            arguments = {**{name: found[name] for name in _PLACE if name in found}, **arguments}
        tls = {part: arguments.pop(f"ssl_{part}") for part in ("ca", "cert", "key") if f"ssl_{part}" in arguments}
        if tls:
            arguments.setdefault("ssl", tls)
        arguments.setdefault("charset", "utf8mb4")
        arguments.setdefault("connect_timeout", max(1, int(connect_timeout)))
        if self.read_timeout is not None:
            arguments.setdefault("read_timeout", self.read_timeout)
            arguments.setdefault("write_timeout", self.read_timeout)
        return arguments

    def connect(self, arguments: Mapping[str, Any]) -> Connection:
        conn = super().connect(arguments)
        wants = arguments.get("ssl") or arguments.get("ssl_mode") in ("REQUIRED", "VERIFY_CA", "VERIFY_IDENTITY")
        if wants and not self.ask(conn, "SHOW STATUS LIKE 'Ssl_cipher'", 0.0)[1]:
            conn.close()  # MariaDB's library goes on without TLS if the server has none
            raise self.operational(2026, "TLS is required, but the server does not support it")
        return conn

    def close(self, conn: Connection) -> None:
        if conn.open:
            conn.close()

    def descriptor(self, conn: Connection) -> int | None:
        try:
            fd = int(conn.fileno()) if self.is_open(conn) else -1
        except self.programming:  # newer versions: another thread is within a call
            return notes_of(conn).fd
        return fd if fd >= 0 else None

    def is_open(self, conn: Connection) -> bool:
        return bool(conn.open) and not notes_of(conn).gone and conn.errno() not in _GONE

    def thread_id(self, conn: Connection) -> int:
        return int(conn.thread_id())

    def server_version(self, conn: Connection) -> str:
        return str(conn.get_server_info())

    def perform(self, conn: Connection, commands: Commands, timeout: float | None, pipelined: bool) -> None:
        if not self.is_open(conn):
            raise self.lost("the connection is closed")  # change_user() of the library would write into freed memory
        notes = notes_of(conn)
        for number, (command, body) in enumerate(commands.steps):
            notes.own = True
            try:
                if command == RESET:
                    place = conn._place
                    conn.change_user(place["user"], place["password"], place["database"])
                elif command == INIT_DB:
                    conn.select_db(body.decode())
                else:
                    self.execute(conn, body.decode(), 0.0)
            except self.error as error:
                vars(error)["_failed_at"] = number
                raise
            finally:
                notes.own = False

    def ask(self, conn: Connection, sql: str, timeout: float) -> tuple[Any, ...]:
        notes = notes_of(conn)
        dirty, queries = notes.dirty, notes.queries
        notes.queries = None
        try:
            cursor = cursors.Cursor(conn)
            cursor.execute(sql)
            row = cursor.fetchone()
            cursor.close()
        finally:
            notes.dirty, notes.queries = dirty, queries
        return tuple(row or ())

    def execute(self, conn: Connection, sql: str, timeout: float) -> None:
        cursor = cursors.Cursor(conn)
        cursor.execute(sql)
        cursor.close()

    def in_autocommit(self, conn: Connection) -> bool:
        return bool(conn.get_autocommit())

    def unread(self, conn: Connection) -> str | None:
        return None  # the library does not say; a cleaning fails then (2014)

    def session_of(self, conn: Connection) -> tuple[str | None, list[str], list[str]]:
        name, collation, mode = conn.character_set_name(), conn._place.get("collation"), conn._place.get("sql_mode")
        assignments = [f"NAMES {name}" + (f" COLLATE {collation}" if collation else "")]
        autocommit = conn._place.get("autocommit", False)
        if autocommit is not None:
            assignments.append(f"autocommit={int(bool(autocommit))}")
        if mode:
            assignments.append("sql_mode='{}'".format(mode.replace("'", "''")))
        command = conn._place.get("init_command")
        return conn._place["database"] or None, assignments, [command] if command else []

    def autocommit_of(self, state: Any) -> bool | None:
        value = state[2]
        return None if value is None else bool(value)

    def client_state(self, conn: Connection) -> Any:
        state = {name: value for name, value in vars(conn).items() if name not in _VOLATILE}
        return state, [dict(getattr(conn, name)) for name in _COPIED], conn._place.get("autocommit", False)

    def restore(self, conn: Connection, state: Any) -> None:
        saved, copies, _ = state
        mine: dict[str, Any] = conn.__dict__
        for name, value in saved.items():
            if mine.get(name) is not value:
                mine[name] = value
        for name, copy in zip(_COPIED, copies):  # changed in place
            if getattr(conn, name) != copy:
                getattr(conn, name).clear()
                getattr(conn, name).update(copy)
        for name in mine.keys() - saved.keys() - _VOLATILE:
            del mine[name]
        mine["messages"] = []


def _options(path: str, group: str | None) -> dict[str, str]:
    """Return the client's options in a file; those of files that it includes are not read."""
    parser = configparser.RawConfigParser(
        allow_no_value=True, strict=False, delimiters="=", inline_comment_prefixes=(" #",)
    )
    parser.read(path, encoding="utf-8")
    found: dict[str, str] = {}
    for each in ("client", "client-server", "client-mariadb", group):
        if each and parser.has_section(each):
            found |= {name: value for name, value in parser.items(each) if value}
    for name, value in found.items():
        if len(value) > 1 and value[0] == value[-1] and value[0] in "\"'":
            found[name] = value[1:-1]
    return found

"""What the pool needs of a driver; `choose` finds one that is installed."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from ... import errors
from ..._masking import shown
from .tracking import Connection, Noted, notes_of
from .wire import ERROR, Commands, exchange, status_of

__all__ = ["NAMES", "Driver", "WireDriver", "choose", "failed_at"]

NAMES = {"pymysql": "pymysql", "connector": "mysql.connector", "mysqlclient": "MySQLdb"}
"""The drivers in the order in which they are looked for, each with its module."""

_PACKAGES = {"pymysql": "PyMySQL", "connector": "mysql-connector-python", "mysqlclient": "mysqlclient"}


def _also(base: type[Exception], driver: Driver) -> type[Exception]:
    """Return a class of error that is an error of the driver, too."""
    text = f"`pooling.{base.__name__}`, of {_PACKAGES[driver.name]}."
    made: type[Exception] = type(base.__name__, (base, driver.operational), {"__module__": "pooling", "__doc__": text})
    return made


class Driver:
    """One driver. Connections are of a subclass of its own class that keeps `Notes`.

    Args:
        connection_class: The user's class of connections; ``None`` means the driver's.

    Attributes:
        name: As in `NAMES`.
        enforces_timeouts: Whether `perform` and `ask` keep their time limits.
        pipelines: Whether `perform` can send several commands in one round trip.
        resets: Whether it can reset a session.
        notes_use: Whether it notes that a lease has sent something.
        tracking: What its class of connections is extended with.
        limits: The attributes of a connection that limit a command, and are set by one with a time limit.
    """

    name = ""
    enforces_timeouts = False
    pipelines = False
    resets = True
    notes_use = True
    tracking: type[Noted]
    limits: tuple[str, ...] = ()
    connect_limit = "connect_timeout"  # the argument of ``connect()``

    def __init__(self, connection_class: type[Any] | None = None) -> None:
        self.module: Any = importlib.import_module(NAMES[self.name])
        own = self.connection_class()
        if connection_class is not None and not (
            isinstance(connection_class, type) and issubclass(connection_class, own)
        ):
            raise TypeError(
                f"connection_class must be a {own.__module__}.{own.__qualname__}, not {shown(connection_class)}"
            )
        self.error: type[Exception] = self.module.Error
        self.operational: type[Exception] = self.module.OperationalError
        self.programming: type[Exception] = self.module.ProgrammingError
        self.command_timeout = _also(errors.CommandTimeout, self)
        self.commit_unknown = _also(errors.CommitUnknown, self)
        self.rolled_back = _also(errors.TransactionRolledBack, self)
        self._class = self._tracked(connection_class or own)

    def lost(self, text: str) -> Exception:
        """Return an error of the driver that says that the connection is lost."""
        return self.operational(2013, text)

    def limit_to(self, seconds: float | None) -> None:
        """Limit each command of each new connection, if the driver cannot do so later."""

    # -- connections --------------------------------------------------------------

    def connection_class(self) -> type[Any]:
        """Return the driver's class of connections."""
        raise NotImplementedError

    def _tracked(self, connection_class: type[Any]) -> type[Any]:
        """Return a subclass that keeps `Notes`."""
        namespace = {"__module__": connection_class.__module__, "__doc__": connection_class.__doc__, "_driver": self}
        made: type[Any] = type(connection_class.__name__, (self.tracking, connection_class), namespace)
        made.__qualname__ = connection_class.__qualname__
        return made

    def complete(self, given: Mapping[str, Any], connect_timeout: float, name: str | None) -> dict[str, Any]:
        """Return the arguments of ``connect()``.

        Args:
            given: The user's, under the names of PyMySQL where they come from a URL.
            connect_timeout: Seconds for connecting, if the user does not say.
            name: What the server is to know the program as.

        Raises:
            ValueError: An argument is unknown or invalid.
        """
        raise NotImplementedError

    def time_limits(self, seconds: float) -> dict[str, Any]:
        """Return arguments of ``connect()`` that limit everything that the connection does."""
        whole = max(1, round(seconds))
        return {self.connect_limit: whole, "read_timeout": whole, "write_timeout": whole}

    def connect(self, arguments: Mapping[str, Any]) -> Connection:
        """Return a new connection."""
        return self._class(**arguments)

    def close(self, conn: Connection) -> None:
        """Close it; a closed one is left alone."""
        raise NotImplementedError

    def query_prefix(self, conn: Connection) -> bytes:
        """Return what precedes the text in the command that executes a statement."""
        return b""

    def socket_of(self, conn: Connection) -> Any:
        """Return its socket, ``None`` if it is closed or not known."""
        return None

    def descriptor(self, conn: Connection) -> int | None:
        """Return the descriptor of its socket, ``None`` if it is closed or not known."""
        sock = self.socket_of(conn)
        fd = -1 if sock is None else sock.fileno()
        return fd if fd >= 0 else None

    def is_open(self, conn: Connection) -> bool:
        """Return whether it is open, as far as this side knows."""
        raise NotImplementedError

    def thread_id(self, conn: Connection) -> int:
        """Return the number of its session on the server."""
        raise NotImplementedError

    def server_version(self, conn: Connection) -> str:
        """Return the server's version, as it states it."""
        raise NotImplementedError

    # -- commands -----------------------------------------------------------------

    def perform(self, conn: Connection, commands: Commands, timeout: float | None, pipelined: bool) -> None:
        """Execute commands that return no rows.

        Args:
            conn: The connection.
            commands: They are executed in their order.
            timeout: Seconds for all of them, if `enforces_timeouts`; ``None`` means
                the user's limit for the connection, if it has one.
            pipelined: Whether to send them all at once, if `pipelines`.

        Raises:
            Exception: An error of the driver, with the number of the command as
                ``_failed_at``. The connection is closed if it is lost.
        """
        raise NotImplementedError

    def ask(self, conn: Connection, sql: str, timeout: float) -> tuple[Any, ...]:
        """Execute a query and return its first row. Not noted as used."""
        raise NotImplementedError

    def cursor(self, conn: Connection, cursor_class: type[Any] | None) -> Any:
        """Return a cursor of this class; ``None`` means the connection's."""
        return conn.cursor() if cursor_class is None else conn.cursor(cursor_class)

    def execute(self, conn: Connection, sql: str, timeout: float) -> None:
        """Execute a statement and read whatever it returns."""
        raise NotImplementedError

    def in_autocommit(self, conn: Connection) -> bool:
        """Return whether each statement is its own transaction."""
        raise NotImplementedError

    def unread(self, conn: Connection) -> str | None:
        """Return what its borrower has left half-read, ``None`` if there is nothing."""
        raise NotImplementedError

    # -- state --------------------------------------------------------------------

    def session_of(self, conn: Connection) -> tuple[str | None, list[str], list[str]]:
        """Return what a reset undoes of what ``connect()`` did: database, assignments for SET, further statements."""
        raise NotImplementedError

    def client_state(self, conn: Connection) -> Any:
        """Return what the client's side is like."""
        raise NotImplementedError

    def autocommit_of(self, state: Any) -> bool | None:
        """Return whether connections in such a state are in autocommit; ``None`` if the server decides."""
        raise NotImplementedError

    def restore(self, conn: Connection, state: Any) -> None:
        """Make the client's side as it was."""
        raise NotImplementedError


class WireDriver(Driver):
    """A driver whose socket can be used to send several commands at once."""

    def perform(self, conn: Connection, commands: Commands, timeout: float | None, pipelined: bool) -> None:
        if not self.is_open(conn):
            raise self.lost("the connection is closed")
        if timeout is None and self.limits:
            timeout = vars(conn).get(self.limits[0]) or None
        done, problem = 0, None
        answers: list[bytes] = []
        parts = [(commands.data, len(commands))] if pipelined else [(one, 1) for one in commands.packets]
        notes = notes_of(conn)
        notes.number += 1
        notes.own = True
        try:
            sock = self.begin_raw(conn)
            for data, count in parts:
                answers, problem = exchange(sock, data, count, timeout)
                for answer in answers:
                    if answer[:1] == ERROR:
                        problem = self.error_of(answer)
                        break
                    done += 1
                if problem is not None:
                    break
        except BaseException:
            self.cut_off(conn)
            raise
        finally:
            notes.own = False
        if problem is None:
            self.end_raw(conn, status_of(answers[-1]))
            return
        if not isinstance(problem, self.error):
            self.cut_off(conn)
            problem, cause = self.lost(notes.stalled or str(problem)), problem
            problem.__cause__ = cause
        vars(problem)["_failed_at"] = done
        raise problem

    def begin_raw(self, conn: Connection) -> Any:
        """Return its socket, to be used without the driver."""
        raise NotImplementedError

    def end_raw(self, conn: Connection, status: int) -> None:
        """Tell the driver the server's status flags."""
        raise NotImplementedError

    def cut_off(self, conn: Connection) -> None:
        """Close it without telling the server."""
        raise NotImplementedError

    def error_of(self, answer: bytes) -> Exception:
        """Return the driver's error for a packet."""
        raise NotImplementedError


def failed_at(error: BaseException) -> int:
    """Return the number of the command that made `Driver.perform` raise, from 0."""
    return int(vars(error).get("_failed_at", 0))


def choose(name: str | None) -> str:
    """Return the name of a driver that is installed; without a name the first.

    Args:
        name: As in `NAMES`, or ``None``.

    Raises:
        ValueError: The name is unknown.
        ImportError: It is not installed, or none is.
    """
    if name is not None and name not in NAMES:
        raise ValueError(f"driver must be one of {', '.join(map(repr, NAMES))} or None, not {shown(name)}")
    for each in [name] if name else NAMES:
        try:
            importlib.import_module(NAMES[each])
            return each
        except ImportError as error:
            if name:
                raise ImportError(f"{_PACKAGES[each]} is not installed or cannot be loaded: {error}") from error
    raise ImportError('no driver for MySQL is installed; pip install "pooling[mysql]"')

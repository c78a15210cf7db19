"""Stalled connections: the server is asked, over another connection, whether it still works for them.

A network that drops packets, or a proxy that keeps connections open and
forwards nothing, leaves a holder waiting for ever: TCP's own timeouts end at
the proxy. The client cannot tell that from a long query; the server can.

A holder *waits* while it is within psycopg's ``wait()``, the server owes it an
answer and no bytes are transferred (known on Linux only). The connection has
*stalled* if the server does not have its backend any more, or if that has been
idle for a while. Backends are identified by process id and age, because ids are
reused. A missing backend counts only if it is the same server that answers: an
address may lead to several. In doubt (a proxy with process ids of its own, such
as PgBouncer; rows of another role) a query is left alone.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from time import monotonic
from typing import Any, NamedTuple, TypeVar

import psycopg
from psycopg import pq

from ...core.adapter import Verdicts
from ..shared.progress import bytes_transferred
from .wire import hang_up, round_trip

__all__ = [
    "Backend", "Place", "Server", "Watch", "bare_of", "command_of", "end_stalled", "explained", "server_of", "watched",
]  # fmt: skip

C = TypeVar("C", bound="psycopg.Connection[Any]")
_ACTIVE = int(pq.TransactionStatus.ACTIVE)

IDLE_FOR = 10.0
"""Seconds for which a backend must be idle, so that its answer is lost and not just on its way."""
_SLACK = 5.0  # seconds by which a backend may look younger than its connection
_DRIFT = 0.01  # and the share of its age by which clocks may differ
_SERVER = (
    b"SELECT pg_catalog.pg_backend_pid(), pg_catalog.inet_server_addr(), pg_catalog.inet_server_port(), "
    b"pg_catalog.pg_postmaster_start_time()"
)
_BACKENDS = (
    "SELECT pid, state, extract(epoch FROM pg_catalog.clock_timestamp() - state_change), "
    "extract(epoch FROM pg_catalog.clock_timestamp() - backend_start) "
    "FROM pg_catalog.pg_stat_activity WHERE pid IN ({})"
)
# Otherwise it would keep its locks and its transaction as long as the proxy keeps its side open.
_END = (
    "SELECT pg_catalog.pg_terminate_backend(pid) FROM pg_catalog.pg_stat_activity WHERE pid = {} "
    "AND state LIKE 'idle%' AND extract(epoch FROM pg_catalog.clock_timestamp() - backend_start) >= {:.3f}"
)


class Server(NamedTuple):
    """What identifies a server: its address, and when it was started."""

    address: bytes | None
    port: bytes | None
    started: bytes | None


class Place(NamedTuple):
    """Where a connection leads: which of several hosts."""

    host: str
    hostaddr: str
    port: str

    @classmethod
    def of(cls, conn: psycopg.Connection[Any]) -> Place:
        """Return where this connection leads."""
        pgconn = conn.pgconn
        parts = (pgconn.host, pgconn.hostaddr, pgconn.port)
        return cls(*((part or b"").decode("utf-8", "replace") for part in parts))

    @property
    def is_remote(self) -> bool:
        """Whether there is a network in between: no Unix socket."""
        return not self.host.startswith(("/", "@"))


class Backend(NamedTuple):
    """The server process that a connection leads to."""

    made_at: float  # when the connection was made, by `time.monotonic`
    pid: int
    place: Place
    server: Server | None = None  # if it is known
    proxied: bool = False  # the process id is one of a proxy


class Watch:
    """What is noted of a connection to tell a stall from a long query.

    Only its holder writes the first four attributes; other threads read them.
    """

    def __init__(self) -> None:
        self.wait_number = 0  # the number of the wait
        self.within = False  # its holder waits for the server, in psycopg's wait()
        self.own = False  # its holder waits for a BEGIN, COMMIT or the like, which the pool sent
        self.waits = False  # likewise, and not in wait()
        self.closing = False  # another thread has closed the connection meanwhile
        self.stalled: str | None = None  # why it was closed
        self.backend = Backend(monotonic(), 0, Place("", "", ""))

    def begin(self, conn: psycopg.Connection[Any]) -> None:
        """Note where a new connection leads."""
        self.backend = Backend(monotonic(), conn.pgconn.backend_pid, Place.of(conn))


class Command(NamedTuple):
    """A command that a holder waits for; if one of these values differs later, it is another one, or makes progress."""

    made_at: float  # when the connection was made
    number: int  # of the wait
    transferred: tuple[int, int] | None  # bytes
    own: bool  # a BEGIN or COMMIT of the pool, which does not take long


def command_of(conn: psycopg.Connection[Any], watch: Watch) -> Command | None:
    """Return what the holder of a connection waits for, ``None`` if it does not wait; for other threads."""
    own = watch.own
    if not (own or (watch.within and not watch.backend.proxied)) or conn.pgconn.transaction_status != _ACTIVE:
        return None
    number = watch.wait_number
    try:
        transferred = bytes_transferred(conn.fileno())
    except (OSError, ValueError, psycopg.Error):  # an answer has come, or the connection has just been closed
        return None
    return Command(watch.backend.made_at, number, transferred, own)


def server_of(conn: psycopg.Connection[Any], watch: Watch, timeout: float | None) -> None:
    """Ask over a new connection which server it leads to, and note it.

    Args:
        conn: The connection.
        watch: Its notes.
        timeout: Seconds for the answer; ``None`` means no limit.

    Raises:
        TimeoutError, psycopg.Error: There is no answer.
    """
    pid, server = _identity(round_trip(conn, _SERVER, timeout)[0])
    watch.backend = watch.backend._replace(server=server, proxied=pid != watch.backend.pid)


def _identity(result: pq.abc.PGresult) -> tuple[int, Server]:
    pid, address, port, started = (result.get_value(0, column) for column in range(4))
    return int(pid or 0), Server(address, port, started)


Waiting = tuple["psycopg.Connection[Any]", Watch, Command]
Connect = Callable[[Place], "psycopg.Connection[Any]"]


def end_stalled(waiting: Sequence[Waiting], waited: float, connect: Connect, timeout: float) -> Verdicts:
    """Ask the server about connections whose holders wait, and shut down those that have stalled.

    Args:
        waiting: Connections, each with the command that its holder waits for.
        waited: For how many seconds they have waited, at least.
        connect: Makes a connection to the same place, within a time limit.
        timeout: Seconds for the server's answer.

    Returns:
        Why connections were shut down, why others were left alone, and whether to ask again.
    """
    ended: list[str] = []
    unknown: list[str] = []
    again = False
    for place in {watch.backend.place for _, watch, _ in waiting}:
        ours = [each for each in waiting if each[1].backend.place == place]
        try:
            with closing(connect(place)) as asking:
                _judge(asking, ours, waited, timeout, ended, unknown)
        except Exception as error:
            why = f"the server could not be asked: {error}"
            unknown.append(why)
            _end_own(ours, waited, why, ended)
            again = True
    return Verdicts(ended, unknown, again)


def _judge(
    asking: psycopg.Connection[Any], ours: list[Waiting], waited: float, timeout: float,
    ended: list[str], unknown: list[str],
) -> None:  # fmt: skip
    if Place.of(asking) != ours[0][1].backend.place:
        raise psycopg.OperationalError("another server has answered")
    pids = ", ".join(str(watch.backend.pid) for _, watch, _ in ours)
    identity, backends = round_trip(asking, b"%s; %s" % (_SERVER, _BACKENDS.format(pids).encode()), timeout)[-2:]
    pid, server = _identity(identity)
    if pid != asking.pgconn.backend_pid:
        raise psycopg.OperationalError("a proxy has process ids of its own")
    seen = {row[0]: row[1:] for row in _rows(backends)}
    for each in ours:
        conn, watch, command = each
        verdict = verdict_on(watch.backend, server, seen.get(b"%d" % watch.backend.pid), waited)
        if verdict is None:
            continue
        stalled, why = verdict
        if not stalled:
            unknown.append(why)
            _end_own([each], waited, why, ended)
        elif _cut_off(conn, watch, command, waited, why):
            ended.append(why)
            age = monotonic() - watch.backend.made_at
            with suppress(psycopg.Error, TimeoutError):
                end = _END.format(watch.backend.pid, age - _slack(age))
                round_trip(asking, end.encode(), timeout)


def _rows(result: pq.abc.PGresult) -> list[list[bytes | None]]:
    return [[result.get_value(row, column) for column in range(result.nfields)] for row in range(result.ntuples)]


def verdict_on(
    backend: Backend, server: Server, row: list[bytes | None] | None, waited: float
) -> tuple[bool, str] | None:
    """Return whether a connection has stalled, and why that is known or not; ``None`` if the server works for it."""
    age = monotonic() - backend.made_at
    if row is not None:
        state, idle, old = row
        if old is None or state is None or state == b"disabled":
            return False, "the server does not show what this backend does (another role, or track_activities is off)"
        if float(old) >= age - _slack(age):
            if not state.startswith(b"idle") or idle is None or float(idle) < min(waited, IDLE_FOR):
                return None
            return True, f"the server says that its backend has been {state.decode()} for {float(idle):.0f} s"
    # There is none, or a later one with the same process id.
    if backend.proxied:
        return False, "a proxy has process ids of its own"
    if backend.server is None or backend.server[:2] != server[:2]:
        return False, "the server that answers has no such backend, and may be another one"
    return True, "the server does not have its backend any more"


def _slack(age: float) -> float:
    return _SLACK + age * _DRIFT


def _end_own(waiting: list[Waiting], waited: float, why: str, ended: list[str]) -> None:
    """Shut down connections that wait for a BEGIN or COMMIT which the server does not confirm to be active."""
    for conn, watch, command in waiting:
        if command.own and _cut_off(conn, watch, command, waited, why):
            ended.append(f"a BEGIN or COMMIT had no answer, and {why}")


def _cut_off(conn: psycopg.Connection[Any], watch: Watch, command: Command, waited: float, why: str) -> bool:
    """Shut a connection down, if its holder still waits for the same command; return whether it does."""
    if command_of(conn, watch) != command:
        return False
    watch.stalled = f"the connection has stalled: there was no answer for {waited:g} s or more, and {why}"
    hang_up(conn)
    return True


def explained(watch: Watch, error: psycopg.Error) -> psycopg.Error:
    """Return the error to raise: if the connection was shut down here, one that says why."""
    if watch.stalled is None:
        return error
    stalled = psycopg.OperationalError(watch.stalled)
    stalled.__cause__ = error
    vars(stalled).update({name: value for name, value in vars(error).items() if name == "_failed_at"})
    return stalled


def bare_of(conn: Any) -> psycopg.Connection[Any] | None:
    """Return the psycopg connection that this is, or is a proxy of; ``None`` if it is neither."""
    for _ in range(10):
        if issubclass(type(conn), psycopg.Connection):
            bare: psycopg.Connection[Any] = conn
            return bare
        conn = getattr(conn, "__wrapped__", None)
    return None


def watched(conn: Any) -> None:
    """Watch a psycopg connection that another pool has made, or the one behind a proxy; ignore anything else."""
    bare = bare_of(conn)
    if bare is not None and "_pooling" not in vars(bare):
        watch = Watch()
        watch.begin(bare)
        with suppress(TypeError):  # a class that cannot be changed: it is not watched
            vars(bare)["_pooling"] = watch
            bare.__class__ = _watching(type(bare))  # type: ignore[arg-type]  # mypy: a class is not Hashable


@functools.cache
def _watching(connection_class: type[C]) -> type[C]:
    """Return a subclass that looks like the class itself and notes when its holder waits.

    It has one base and no slots, so that an instance's class can be changed to it.
    """
    plain: Any = connection_class.wait

    def wait(self: Any, *args: Any, **kwargs: Any) -> Any:
        watch: Watch = self._pooling
        watch.wait_number += 1
        watch.within = True
        try:
            return plain(self, *args, **kwargs)
        except psycopg.Error as error:
            if watch.stalled is None:
                raise
            raise explained(watch, error)  # noqa: B904
        finally:
            watch.within = False

    namespace = {
        "__module__": connection_class.__module__, "__doc__": connection_class.__doc__, "__slots__": (), "wait": wait
    }  # fmt: skip
    made: type[C] = type(connection_class.__name__, (connection_class,), namespace)
    made.__qualname__ = connection_class.__qualname__
    return made

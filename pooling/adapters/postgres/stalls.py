"""Connections whose holder waits in vain: the server is asked, over another connection, whether it is at work for them.

A network that swallows packets, or a proxy that keeps connections open and
forwards nothing, leaves a holder waiting for ever: TCP's own timeouts end at
the proxy. The client cannot tell that from a long query; the server can.

A holder *waits* while it is within psycopg's ``wait()``, the server owes it an
answer and no byte passes (Linux; elsewhere that is not known). Its wait is in
vain if the server does not know its backend any more, or if that has been idle
for a while. Backends are known by process id and age, because ids are used
again. That one is missing is believed only of the same server: an address may
lead to several. Where nothing is known for certain (a proxy with process ids of
its own, such as PgBouncer; another role's rows) a query is left alone.
"""

from __future__ import annotations

import _socket
import functools
import socket
import struct
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from time import monotonic
from typing import Any, NamedTuple, TypeVar

import psycopg
from psycopg import pq

from ...core.adapter import Verdicts
from .wire import hang_up, round_trip

__all__ = ["Place", "Server", "Watch", "bare_of", "command_of", "end_stalled", "explained", "server_of", "watched"]

C = TypeVar("C", bound="psycopg.Connection[Any]")
_ACTIVE = int(pq.TransactionStatus.ACTIVE)
_TCP_INFO: int | None = getattr(socket, "TCP_INFO", None)
_PASSED = struct.Struct("=QQ")  # tcpi_bytes_acked and tcpi_bytes_received, Linux 4.2; at 120 in its struct tcp_info
_PASSED_AT = 120

IDLE_FOR = 10.0
"""Seconds after which the answer of a backend that has become idle is lost: then it is not under way any more."""
_SLACK = 5.0  # seconds by which a backend may look younger than its connection
_DRIFT = 0.01  # and the share of its age by which clocks go apart
_SERVER = (
    b"SELECT pg_catalog.pg_backend_pid(), pg_catalog.inet_server_addr(), pg_catalog.inet_server_port(), "
    b"pg_catalog.pg_postmaster_start_time()"
)
_BACKENDS = (
    "SELECT pid, state, extract(epoch FROM pg_catalog.clock_timestamp() - state_change), "
    "extract(epoch FROM pg_catalog.clock_timestamp() - backend_start) "
    "FROM pg_catalog.pg_stat_activity WHERE pid IN ({})"
)
# Its locks would stay, and its transaction open, as long as the proxy keeps its side.
_END = (
    "SELECT pg_catalog.pg_terminate_backend(pid) FROM pg_catalog.pg_stat_activity WHERE pid = {} "
    "AND state LIKE 'idle%' AND extract(epoch FROM pg_catalog.clock_timestamp() - backend_start) >= {:.3f}"
)


class Server(NamedTuple):
    """What a server says of itself: which one it is, and since when."""

    address: bytes | None
    port: bytes | None
    started: bytes | None


class Place(NamedTuple):
    """Where a connection leads: of several hosts, the one that was taken."""

    host: str
    hostaddr: str
    port: str

    @classmethod
    def of(cls, conn: psycopg.Connection[Any]) -> Place:
        pgconn = conn.pgconn
        parts = (pgconn.host, pgconn.hostaddr, pgconn.port)
        return cls(*((part or b"").decode("utf-8", "replace") for part in parts))

    @property
    def is_remote(self) -> bool:
        """Whether there is a network in between: no Unix socket."""
        return not self.host.startswith(("/", "@"))


class Watch:
    """What is noted of a connection, so that a stall can be told from a long query.

    Its holder alone writes the first three; others read them.
    """

    def __init__(self) -> None:
        self.turn = 0  # the number of the wait
        self.within = False  # its holder waits for the server, in psycopg's wait()
        self.waits = False  # likewise, within libpq: a BEGIN or COMMIT
        self.stalled: str | None = None  # why it was cut off
        self.born = monotonic()
        self.pid = 0
        self.place = Place("", "", "")
        self.server: Server | None = None  # if that is known
        self.proxied = False  # process ids are a proxy's own

    def begin(self, conn: psycopg.Connection[Any]) -> None:
        """A connection is there."""
        self.born, self.pid, self.place = monotonic(), conn.pgconn.backend_pid, Place.of(conn)


class Command(NamedTuple):
    """One that a holder waits for; another number, or other bytes, and it has moved on."""

    born: float  # of the connection
    turn: int
    passed: tuple[int, int] | None
    own: bool  # a BEGIN or COMMIT: nothing that may take long at the server's own pace


def command_of(conn: psycopg.Connection[Any], watch: Watch) -> Command | None:
    """Return what the holder of a connection waits for, called from another thread; ``None``: for nothing."""
    own = watch.waits
    if not (own or (watch.within and not watch.proxied)) or conn.pgconn.transaction_status != _ACTIVE:
        return None
    turn = watch.turn
    try:
        passed = _passed(conn.fileno())
    except (OSError, ValueError, psycopg.Error):  # there is an answer to be read, or the connection has just ended
        return None
    return Command(watch.born, turn, passed, own)


def _passed(fd: int) -> tuple[int, int] | None:
    """Return how many bytes the peer has got of a socket's and sent to it; ``None`` if that cannot be known.

    Raises:
        ValueError: Something has come in that its holder has yet to read.
        OSError: It is no socket any more.
    """
    peer = _socket.socket(fileno=fd)  # gevent's would wait, whatever the flag says
    try:
        if hasattr(socket, "MSG_DONTWAIT"):
            with suppress(BlockingIOError):
                peer.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
                raise ValueError("there is something to read")
        if _TCP_INFO is None or peer.family not in (socket.AF_INET, socket.AF_INET6):
            return None
        try:
            info = peer.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, 256)
        except OSError:
            return None
        if len(info) < _PASSED_AT + _PASSED.size:
            return None
        acked, received = _PASSED.unpack_from(info, _PASSED_AT)
        return acked, received
    finally:
        peer.detach()


def server_of(conn: psycopg.Connection[Any], watch: Watch, timeout: float | None) -> None:
    """Ask over a new connection which server it leads to; once, for a wait that may be in vain one day.

    Raises:
        TimeoutError, psycopg.Error: There is no answer.
    """
    pid, watch.server = _introduced(round_trip(conn, _SERVER, timeout)[0])
    watch.proxied = pid != watch.pid


def _introduced(result: pq.abc.PGresult) -> tuple[int, Server]:
    pid, address, port, started = (result.get_value(0, column) for column in range(4))
    return int(pid or 0), Server(address, port, started)


Waiting = tuple["psycopg.Connection[Any]", Watch, Command]
Connect = Callable[[Place], "psycopg.Connection[Any]"]


def end_stalled(waiting: Sequence[Waiting], waited: float, connect: Connect, timeout: float) -> Verdicts:
    """Ask the server about connections whose holders wait, and make those fail that wait in vain.

    Args:
        waiting: Each with what its holder waits for.
        waited: For how many seconds, at least.
        connect: Makes a connection that leads where these do, within a time limit.
        timeout: Seconds for the server's answer.
    """
    ended: list[str] = []
    unknown: list[str] = []
    again = False
    for place in {watch.place for _, watch, _ in waiting}:
        ours = [each for each in waiting if each[1].place == place]
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
    if Place.of(asking) != ours[0][1].place:
        raise psycopg.OperationalError("another server has answered")
    pids = ", ".join(str(watch.pid) for _, watch, _ in ours)
    introduction, backends = round_trip(asking, b"%s; %s" % (_SERVER, _BACKENDS.format(pids).encode()), timeout)[-2:]
    pid, server = _introduced(introduction)
    if pid != asking.pgconn.backend_pid:
        raise psycopg.OperationalError("a proxy in between has process ids of its own")
    seen = {row[0]: row[1:] for row in _rows(backends)}
    for each in ours:
        conn, watch, command = each
        verdict = _verdict(watch, server, seen.get(b"%d" % watch.pid), waited)
        if verdict is None:
            continue
        in_vain, why = verdict
        if not in_vain:
            unknown.append(why)
            _end_own([each], waited, why, ended)
        elif _cut_off(conn, watch, command, waited, why):
            ended.append(why)
            age = monotonic() - watch.born
            with suppress(psycopg.Error, TimeoutError):
                end = _END.format(watch.pid, age - _slack(age))
                round_trip(asking, end.encode(), timeout)


def _rows(result: pq.abc.PGresult) -> list[list[bytes | None]]:
    return [[result.get_value(row, column) for column in range(result.nfields)] for row in range(result.ntuples)]


def _verdict(
    watch: Watch, server: Server, row: list[bytes | None] | None, waited: float
) -> tuple[bool, str] | None:
    """Return whether a wait is in vain, and why; ``None`` if the server is at work for it."""
    age = monotonic() - watch.born
    if row is not None:
        state, idle, old = row
        if old is None or state is None or state == b"disabled":
            return False, "the server does not show what this backend does (another role, or track_activities is off)"
        if float(old) >= age - _slack(age):
            if not state.startswith(b"idle") or idle is None or float(idle) < min(waited, IDLE_FOR):
                return None
            return True, f"the server says that its backend has been {state.decode()} for {float(idle):.0f} s"
    # There is none, or one that came later and has its process id.
    if watch.proxied:
        return False, "a proxy in between has process ids of its own"
    if watch.server is None or watch.server[:2] != server[:2]:
        return False, "the server that answers does not know this backend, and may be another one"
    return True, "the server does not know its backend any more"


def _slack(age: float) -> float:
    return _SLACK + age * _DRIFT


def _end_own(waiting: list[Waiting], waited: float, why: str, ended: list[str]) -> None:
    """A BEGIN or COMMIT that takes so long without the server's word that it is active is not waited for any more."""
    for conn, watch, command in waiting:
        if command.own and _cut_off(conn, watch, command, waited, why):
            ended.append(f"a BEGIN or COMMIT had no answer, and {why}")


def _cut_off(conn: psycopg.Connection[Any], watch: Watch, command: Command, waited: float, why: str) -> bool:
    """Make a holder fail, if it still waits for the same."""
    if command_of(conn, watch) != command:
        return False
    watch.stalled = f"the connection has stalled: there was no answer for {waited:g} s or more, and {why}"
    hang_up(conn)
    return True


def explained(watch: Watch, error: psycopg.Error) -> psycopg.Error:
    """Return what a holder is told: where it was cut off, why."""
    if watch.stalled is None:
        return error
    told = psycopg.OperationalError(watch.stalled)
    told.__cause__ = error
    vars(told).update({name: value for name, value in vars(error).items() if name == "_failed_at"})
    return told


def bare_of(conn: Any) -> psycopg.Connection[Any] | None:
    """Return the connection of psycopg's that this is, or that it is a proxy of."""
    for _ in range(10):
        if issubclass(type(conn), psycopg.Connection):
            bare: psycopg.Connection[Any] = conn
            return bare
        conn = getattr(conn, "__wrapped__", None)
    return None


def watched(conn: Any) -> None:
    """Have a connection of another maker watched, or the one that it is a proxy of; what only looks like one is not."""
    bare = bare_of(conn)
    if bare is not None and "_pooling" not in vars(bare):
        watch = Watch()
        watch.begin(bare)
        with suppress(TypeError):  # a class that no other can stand for: it is not watched
            vars(bare)["_pooling"] = watch
            bare.__class__ = _watching(type(bare))  # type: ignore[arg-type]  # mypy: a class is not Hashable


@functools.cache
def _watching(connection_class: type[C]) -> type[C]:
    """Return a subclass that looks like the class itself and notes when its holder waits.

    Of one base, and without a slot of its own: instances of the class can become its own.
    """
    plain: Any = connection_class.wait

    def wait(self: Any, *args: Any, **kwargs: Any) -> Any:
        watch: Watch = self._pooling
        watch.turn += 1
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

"""Commands of MySQL's protocol that a driver has no method for, several of them in one round trip.

A server reads its commands one after the other, so a client may send several
without waiting for the answers. ``probe`` in `session` tests that with each new
connection, because a proxy may not take it.

Used are only commands that are answered with one packet: OK or an error.
"""

from __future__ import annotations

import math
import os
import socket
import struct
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from time import monotonic
from typing import Any

__all__ = [
    "ERROR", "ESTABLISHED", "INIT_DB", "OK", "PING", "QUERY", "RESET", "Commands", "exchange", "hang_up", "keep_alive",
    "spare_handle", "status_of", "tcp_state", "wait_for_end",
]  # fmt: skip

INIT_DB, QUERY, PING, RESET = 0x02, 0x03, 0x0E, 0x1F
OK, ERROR = b"\x00", b"\xff"  # the first byte of an answer
ESTABLISHED = 1  # a state of TCP: neither side has ended it
_SHORTEST = 11  # bytes of the shortest answer
LIMITS_READS = sys.platform == "linux" and sys.maxsize > 1 << 32  # a timeval there is two longs
_SMALL = 4_096  # bytes that a socket takes without waiting, while nothing that was sent before is unanswered
_WORD = 1 << 24  # the length of the longest packet, and one

#: A dead peer is noticed after 10 s while data is unacknowledged (milliseconds, Linux), and after 10 + 3 x 3 s while
#: nothing is sent. The systems' defaults are more than ten minutes, and two hours.
_KEEPALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 3, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 10_000}


class Commands:
    """Commands in their order.

    Args:
        steps: Each with its number and its text.
        prefix: See `Driver.query_prefix`.
    """

    __slots__ = ("steps", "packets", "data")

    def __init__(self, *steps: tuple[int, bytes], prefix: bytes = b"") -> None:
        self.steps = steps
        self.packets = [_packet(command, prefix * (command == QUERY) + body) for command, body in steps]
        self.data = b"".join(self.packets)

    def __len__(self) -> int:
        return len(self.steps)


def _packet(command: int, body: bytes = b"") -> bytes:
    if len(body) + 1 >= _WORD:
        raise ValueError("a statement of 16 MiB or more")
    return struct.pack("<IB", len(body) + 1, command) + body


def exchange(sock: Any, commands: bytes, count: int, timeout: float | None) -> tuple[list[bytes], Exception | None]:
    """Send commands, and return the answers, and why there are not more of them.

    Args:
        sock: A socket, perhaps with TLS, from which nothing is to be read. Its
            time limit may be another one afterwards.
        commands: As from `packet`.
        count: How many there are.
        timeout: Seconds for all of it, or 1 % more; ``None`` means no limit.
    """
    end = math.inf if timeout is None else monotonic() + timeout
    data = b""
    answers: list[bytes] = []
    blocks = sock.gettimeout() is None and timeout is not None and len(commands) <= _SMALL and _can_block(sock)
    limit: Callable[[Any], object] = partial(_limit_reads, sock) if blocks else sock.settimeout
    try:
        if sock.gettimeout() != timeout:
            limit(timeout)
        sock.sendall(commands)
        while True:
            start = 0
            while len(data) >= start + 4:
                stop = start + 4 + int.from_bytes(data[start : start + 3], "little")
                if len(data) < stop:
                    break
                answers.append(data[start + 4 : stop])
                start = stop
            data = data[start:]
            if len(answers) >= count or (answers and answers[-1][:1] not in (OK, ERROR)):
                break
            if timeout is not None:
                left = end - monotonic()
                if left <= 0:
                    raise TimeoutError
                if left < 0.99 * timeout:
                    limit(left)
            more = receive(sock, (count - len(answers)) * _SHORTEST - len(data))
            if not more:
                raise ConnectionResetError("the server has closed the connection")
            data += more
    except (TimeoutError, BlockingIOError):
        return answers, TimeoutError(f"no answer from the server within {timeout:g} s")
    except OSError as error:
        return answers, error
    finally:
        if blocks:
            with suppress(OSError):  # it was closed meanwhile
                limit(0.0)
    if data or len(answers) != count or answers[-1][:1] not in (OK, ERROR):
        return answers, ValueError("the server has sent something else than the answers")
    return answers, None


def _can_block(sock: Any) -> bool:
    """Whether a read can wait in the system with a time limit: not with TLS, not gevent's, and not in the main thread.

    After a signal Python reads again, with the whole limit, and signals go to the main thread.
    """
    if not LIMITS_READS or type(sock) is not socket.socket or socket.socket.__module__ != "socket":
        return False
    return threading.get_native_id() != os.getpid()


def _limit_reads(sock: Any, seconds: float) -> None:
    """Limit how long a blocking socket waits for data, 0 meaning no limit; then it raises `BlockingIOError`.

    ``settimeout()`` makes it non-blocking, and each later call takes a
    ``poll()``; that, and the change itself, give the interpreter's lock away.
    """
    micros = math.ceil(seconds * 1e6)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("@ll", *divmod(micros, 1_000_000)))


def receive(sock: Any, least: int) -> bytes:
    """Return what comes next: at least so many bytes, if that is possible, with one call of the system.

    A server sends each answer by itself. To wake up for the first one costs a
    switch of threads, and the interpreter's lock, for nothing.
    """
    if least > 0 and type(sock) is socket.socket and sock.gettimeout() is None:  # one with TLS takes no flags
        return sock.recv(least, socket.MSG_WAITALL)
    data: bytes = sock.recv(4096)
    return data


def status_of(answer: bytes) -> int:
    """Return the server's status flags in an OK packet."""
    at = 1
    for _ in range(2):  # affected rows, and the last inserted id
        at += {0xFC: 3, 0xFD: 4, 0xFE: 9}.get(answer[at], 1)
    return answer[at] | answer[at + 1] << 8


def tcp_state(sock: Any) -> Callable[[], bytes] | None:
    """Return a function that returns the state of a TCP connection, such as `ESTABLISHED`; ``None`` if it is none."""
    option = getattr(socket, "TCP_INFO", None)  # Linux
    if option is None or sock is None:
        return None
    ask = partial(sock.getsockopt, socket.IPPROTO_TCP, option, 1)
    with suppress(OSError):  # not TCP
        if ask()[0] == ESTABLISHED:
            return ask
    return None


def keep_alive(sock: Any) -> None:
    """Let the system notice a dead peer."""
    if getattr(sock, "family", None) not in (socket.AF_INET, socket.AF_INET6):
        return
    with suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _KEEPALIVE.items():
            if hasattr(socket, name):
                sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def spare_handle(fd: int | None) -> socket.socket | None:
    """Return a second socket for a descriptor, which outlives the first; ``None`` if there is none."""
    if fd is None:
        return None
    with suppress(OSError):
        copy = socket.dup(fd)
        try:
            return socket.socket(fileno=copy)
        except BaseException:
            socket.close(copy)
            raise
    return None


def hang_up(fd: int | None) -> None:
    """Shut a socket down, so that the thread that waits for it wakes up."""
    if fd is None:
        return
    with suppress(OSError):  # it is closed already
        handle = socket.socket(fileno=fd)
        try:
            handle.shutdown(socket.SHUT_RDWR)
        finally:
            handle.detach()


def wait_for_end(sock: socket.socket, timeout: float) -> None:
    """Close this side, and wait until the peer has closed its own."""
    end = monotonic() + timeout
    with suppress(OSError):
        sock.shutdown(socket.SHUT_WR)
        while (left := end - monotonic()) > 0:
            sock.settimeout(left)
            if not sock.recv(4096):
                return

"""A TCP proxy of the tests' own: the network between a pool and its server, with all its faults.

One thread, loopback only. Faults begin and end when the test says so; what
passes is counted. Kernel buffers belong to the network too: what was sent into
them before a fault may still arrive.
"""

from __future__ import annotations

import contextlib
import select
import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Iterator
from types import TracebackType

__all__ = ["LOOPBACK", "Proxy"]

LOOPBACK = "127.0.0.1"
_CHUNK = 1 << 16
_FULL = 1 << 20  # bytes on their way in one direction: then the sender is not read any more


class Proxy:
    """Stands before a server; refuses, cuts, holds, delays, drops.

    Example::

        with Proxy(server.port) as proxy:
            connect(proxy.port)
            with proxy.held():      # nothing passes, nothing is lost
                ...
            proxy.drop()            # the open connections receive nothing any more

    Args:
        target: The server's port on loopback.

    Attributes:
        port: Where to connect to.
    """

    def __init__(self, target: int) -> None:
        self._target = target
        self._selector = selectors.DefaultSelector()
        self._lock = threading.RLock()  # guards all below; the thread sleeps without it
        self._links: set[_Link] = set()
        self._attempts: list[float] = []
        self._most = 0
        self._holding = False
        self._swallowing = False
        self._delay = 0.0
        self._piece = _CHUNK
        self._closed = False
        self._listener: socket.socket | None = None
        self.port = 0
        self._bell, self._ear = socket.socketpair()
        self._ear.setblocking(False)
        self._selector.register(self._ear, selectors.EVENT_READ)
        self._listen()
        self._thread = threading.Thread(target=self._run, name="proxy", daemon=True)
        self._thread.start()

    # -- faults -------------------------------------------------------------------

    def refuse(self) -> None:
        """Refuse new connections until `accept`; those that are open stay."""
        with self._changing():
            if self._listener is not None:
                self._take_in()  # connections that arrived before
                self._selector.unregister(self._listener)
                self._listener.close()
                self._listener = None

    def accept(self) -> None:
        """End `refuse`, on the same port."""
        with self._changing():
            if self._listener is None:
                self._listen()

    def cut(self) -> int:
        """Close all open connections, towards both sides; return how many."""
        with self._changing():
            links = list(self._links)
            for link in links:
                self._end(link)
            return len(links)

    def hold(self) -> None:
        """Let nothing pass until `release`; new connections are taken, and hear nothing."""
        with self._changing():
            self._holding = True

    def release(self) -> None:
        """End `hold`: what was held back arrives."""
        with self._changing():
            self._holding = False

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """`hold` for the length of a block."""
        self.hold()
        try:
            yield
        finally:
            self.release()

    def drop(self, new: bool = False, keep: bool = False) -> int:
        """Swallow all that comes over the open connections, for ever, silently.

        Args:
            new: Whether new ones are swallowed as well, until `heal`.
            keep: Whether a client is not even told that its server has hung up.

        Returns:
            How many connections are dead now.
        """
        with self._changing():
            self._swallowing = new
            for link in self._links:
                link.dead, link.kept = True, keep
            return len(self._links)

    def heal(self) -> None:
        """Let new connections pass again; those that were dropped stay dead."""
        with self._changing():
            self._swallowing = False

    def delay(self, seconds: float) -> None:
        """Deliver what comes from now on so much later, in each direction."""
        with self._changing():
            self._delay = seconds

    def crumble(self, size: int) -> None:
        """Deliver from now on in pieces of so many bytes, a millisecond apart."""
        with self._changing():
            self._piece = size

    # -- counts -------------------------------------------------------------------

    @property
    def attempts(self) -> list[float]:
        """When (monotonic) each connection was asked for, those refused by `refuse` left out."""
        with self._lock:
            return list(self._attempts)

    @property
    def open(self) -> int:
        """How many connections are open now."""
        with self._lock:
            return len(self._links)

    @property
    def most_open(self) -> int:
        """The most connections that were open at once, dropped ones left out."""
        with self._lock:
            return self._most

    # -- life ---------------------------------------------------------------------

    def close(self) -> None:
        """Close everything and return when the thread has ended."""
        with self._changing():
            self._closed = True
        self._thread.join(30)

    def __enter__(self) -> Proxy:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @contextlib.contextmanager
    def _changing(self) -> Iterator[None]:
        with self._lock:
            yield
            for link in self._links:
                self._watch(link)
            self._bell.send(b"!")  # in the lock: the thread closes it when all is over

    def _listen(self) -> None:
        listener = socket.create_server((LOOPBACK, self.port), backlog=512)
        listener.setblocking(False)
        self.port = listener.getsockname()[1]
        self._selector.register(listener, selectors.EVENT_READ)
        self._listener = listener

    def _run(self) -> None:
        while not self._closed:
            events = self._selector.select(self._next_due())
            with self._lock:
                for key, mask in events:
                    self._handle(key, mask)
                for link in list(self._links):
                    self._move(link)
        with self._lock:
            for link in list(self._links):
                self._end(link)
            for sock in (self._listener, self._bell, self._ear):
                if sock is not None:
                    sock.close()
            self._selector.close()

    def _next_due(self) -> float | None:
        with self._lock:
            dues = [way.queue[0][0] for link in self._links for way in link.ways if way.queue]
            if self._holding or not dues:
                return None
            return max(0.0, min(dues) - time.monotonic())

    def _handle(self, key: selectors.SelectorKey, mask: int) -> None:
        if key.fileobj is self._ear:
            with contextlib.suppress(BlockingIOError):
                self._ear.recv(_CHUNK)
        elif key.fileobj is self._listener:
            self._take_in()
        elif key.data in self._links and mask & selectors.EVENT_READ:
            self._read(key.data, key.fileobj)  # type: ignore[arg-type]

    def _take_in(self) -> None:
        assert self._listener is not None
        with contextlib.suppress(BlockingIOError, OSError):
            while True:
                client, _ = self._listener.accept()
                self._attempts.append(time.monotonic())
                client.setblocking(False)
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                link = _Link(client, self._swallowing)
                self._links.add(link)
                self._most = max(self._most, sum(not one.dead and not one.left for one in self._links))
                self._watch(link)

    def _read(self, link: _Link, sock: socket.socket) -> None:
        way = link.ways[0] if sock is link.client else link.ways[1]
        try:
            data = sock.recv(_CHUNK)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data and link.kept and sock is link.server:
            self._selector.unregister(sock)
            sock.close()
            link.server = None
        elif not data and (link.dead or not way.queue):
            self._end(link)
        elif not data:
            way.over = True  # once the rest is through
            self._watch(link)
        elif not link.dead:
            way.queue.append((time.monotonic() + self._delay, data))
            way.size += len(data)

    def _move(self, link: _Link) -> None:
        """Pass on what is due."""
        if self._holding or link.dead or link not in self._links:
            return
        try:
            if link.server is None:
                link.server = socket.create_connection((LOOPBACK, self._target), timeout=10)
                link.server.setblocking(False)
                link.server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for way, sink in zip(link.ways, (link.server, link.client)):
                self._pour(way, sink)
        except OSError:
            self._end(link)
            return
        if any(way.over and not way.queue for way in link.ways):
            self._end(link)
        else:
            self._watch(link)

    def _pour(self, way: _Way, sink: socket.socket) -> None:
        now = time.monotonic()
        while way.queue and way.queue[0][0] <= now:
            data = way.queue[0][1]
            try:
                sent = sink.send(data[: self._piece])
            except BlockingIOError:
                way.queue[0] = (now + 0.01, data)
                return
            way.size -= sent
            if sent < len(data):
                way.queue[0] = (now + 0.001, data[sent:])
                return
            way.queue.popleft()

    def _watch(self, link: _Link) -> None:
        """Read from a side when what it says can be passed on, or is to be swallowed."""
        for way, sock in zip(link.ways, (link.client, link.server)):
            if sock is None:
                continue
            wanted = not way.over and way.size < _FULL and (link.dead or not self._holding)
            known = sock.fileno() in self._selector.get_map()
            if wanted and not known:
                self._selector.register(sock, selectors.EVENT_READ, link)
            elif known and not wanted:
                self._selector.unregister(sock)

    def _end(self, link: _Link) -> None:
        self._links.discard(link)
        for sock in (link.client, link.server):
            if sock is not None:
                with contextlib.suppress(KeyError, ValueError):
                    self._selector.unregister(sock)
                sock.close()


class _Way:
    """What is on its way in one direction."""

    def __init__(self) -> None:
        self.queue: deque[tuple[float, bytes]] = deque()  # when it is to arrive, and what
        self.size = 0
        self.over = False  # the sender has closed


class _Link:
    """One connection through the proxy."""

    def __init__(self, client: socket.socket, dead: bool) -> None:
        self.client = client
        self.server: socket.socket | None = None  # until something may pass
        self.dead = dead
        self.kept = False  # and its client's side stays open whatever the server does
        self.ways = (_Way(), _Way())  # to the server, to the client

    @property
    def left(self) -> bool:
        """Whether the client has closed it, also where the proxy has not come to reading that yet."""
        if not hasattr(select, "POLLRDHUP"):
            return False
        poll = select.poll()
        poll.register(self.client, select.POLLRDHUP)  # POLLHUP and POLLERR are always reported
        return bool(poll.poll(0))

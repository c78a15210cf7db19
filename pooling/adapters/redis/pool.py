"""`RedisPool`: the pool of redis-py's clients."""

from __future__ import annotations

import contextlib
import math
import os
import sys
import threading
from collections.abc import Iterable
from types import FrameType
from typing import Any

import redis
from redis.connection import Connection, ConnectionPool

from ...core.checkout import Checkout
from ...core.clock import SYSTEM, Clock, seconds
from ...core.entry import Token
from ...core.lease import Lease
from ...core.liveness import ANSWER_TTL
from ...core.observer import Observer
from ...core.pool import Pool
from ...core.runtime.fork import SAME_PROCESS
from ...core.sizing import Budget
from ...errors import PoolError
from ...settings import PoolSettings
from ..shared.budgets import as_budget
from .adapter import RedisAdapter
from .arguments import checked, from_query, named, settings_of
from .client import Client
from .errors import as_redis_error
from .holder import frame_of_borrower
from .lease import RedisLease, active, end

__all__ = ["RedisPool"]

_new_handle = object.__new__

try:
    from redis.maint_notifications import MaintNotificationsConfig
except ImportError:  # redis-py 6.2 and older
    _OFF: dict[str, Any] = {}
else:
    _OFF = {"maint_notifications_config": MaintNotificationsConfig(enabled=False)}

AfterConnectionReleasedEvent: Any = None  # redis-py 5.2 and older
with contextlib.suppress(ImportError):
    from redis.event import AfterConnectionReleasedEvent



class RedisPool(Pool[Client], ConnectionPool):
    """A connection pool for redis-py, and for clients on a connection of their own.

    Example::

        pool = RedisPool(host="cache", max_size=20)
        client = redis.Redis(connection_pool=pool)      # as ever: each command takes a connection for itself
        client.set("greeting", "hello")
        with pool.acquire() as own:                     # one connection for the whole block
            own.watch("stock")

    Waiting threads are served in order of arrival. A connection that died while
    it was idle is not lent, nor one that a borrower left in a state of its own:
    in MULTI, WATCH, SUBSCRIBE, MONITOR, CLIENT REPLY OFF, another database, or
    with unread replies.

    Args:
        connection_class: redis-py's class of the connections.
        settings: Size, ages and time limits; ``None`` means the defaults.
        name: The pool's name in messages and metrics.
        budget: A `FleetBudget`, or its text as for `FleetBudget.parse`.
        observers: Notified of events, see `Observer`.
        clock: The source of time; tests pass their own.
        options: Fields of `PoolSettings`, which override ``settings``;
            ``max_connections`` and ``timeout`` of redis-py's pools, which mean
            ``max_size`` and ``acquire_timeout``. All others are arguments of
            ``connection_class``: ``host``, ``port``, ``db``, ``username``,
            ``password``, ``credential_provider``, ``protocol``,
            ``decode_responses``, ``socket_timeout``, ``retry`` and so on. Of
            the two arguments ``health_check_interval``, it is redis-py's.

    Raises:
        ValueError, TypeError: An argument is invalid, or asks for client-side
            caching or maintenance notifications.
        redis.RedisError: As from ``connection_class``.
    """

    def __init__(
        self,
        *,
        connection_class: type[Any] = Connection,
        settings: PoolSettings | None = None,
        name: str | None = None,
        budget: Budget | str | None = None,
        observers: Iterable[Observer] = (),
        clock: Clock | None = None,
        **options: Any,
    ) -> None:
        settings = settings_of(settings, options, RedisPool.__init__)
        kwargs = checked(options)
        ConnectionPool.__init__(self, connection_class=connection_class, **_OFF, **kwargs)
        self.redis_adapter = self.adapter_class(connection_class, self.connection_kwargs, settings)
        """How connections are made and kept. Internal."""
        self._notifies = kwargs.get("event_dispatcher") is not None and AfterConnectionReleasedEvent is not None
        try:
            self.make_connection()  # not connected: it only checks the arguments
        except TypeError as error:
            raise named(error) from None
        Pool.__init__(
            self, adapter=self.redis_adapter, settings=settings, name=name, budget=as_budget(budget),
            observers=observers, clock=clock,
        )  # fmt: skip
        self.redis_adapter.pool_name = self.name
        self.answer_ttl = ANSWER_TTL if self.engine.clock is SYSTEM else -math.inf
        """Seconds for which a connection's last reply proves it alive; with another clock it does not. Internal."""

    adapter_class: type[RedisAdapter] = RedisAdapter
    """The class of the adapter. Internal."""

    __del__ = object.__init__  # redis-py's corrects figures that this pool does not keep

    @classmethod
    def from_url(cls, url: str, **arguments: Any) -> Any:
        """Create a pool from ``redis://``, ``rediss://`` (TLS) or ``unix://``.

        Args:
            url: As for redis-py: ``redis://user:password@host:port/db``. Its query may contain
                arguments of the class, which take precedence.
            arguments: As for the class.

        Raises:
            ValueError, TypeError: As for the class; or it is not such a URL.
        """
        given = {**arguments, **from_query(url)}
        if "connection_class" in arguments:  # as for redis-py
            given["connection_class"] = arguments["connection_class"]
        return cls(**given)

    def open(self, timeout: float | None = None) -> None:
        try:
            Pool.open(self, timeout)
        except PoolError as error:
            raise as_redis_error(error) from error.__cause__

    open.__doc__ = Pool.open.__doc__

    # -- a client on a connection of one's own ----------------------------------------

    def acquire(self, timeout: float | None = None, _depth: int = 1, lane: str | None = None) -> Lease[Client]:
        """Lend a client on a connection of its own, for commands that belong together.

        Its pipelines, locks and subscriptions use that connection, too. For a
        single command it is not needed: ``redis.Redis(connection_pool=pool)``
        takes a connection for each.

        Args, Returns, Raises:
            As for `Pool.acquire`; the errors are also redis-py's.
        """
        if timeout is not None:
            timeout = seconds(timeout)
        frame: FrameType | None = None
        if self._fast.track_holders:
            try:
                frame = sys._getframe(_depth)
            except ValueError:  # no caller in Python
                pass
        token = self._lend(timeout, frame, lane)
        del frame
        client: Client = token.entry.resource
        client.begin_lease()
        lease = RedisLease()
        lease._pool = self
        lease._token = token
        return lease

    # -- what redis-py calls ------------------------------------------------------------

    def get_connection(self, command_name: object = None, *keys: object, **options: object) -> Any:
        """Lend a connection to a client of redis-py, which gives it back to `release`.

        Raises:
            As for `acquire`.
        """
        token = self._lend(None, frame_of_borrower() if self._fast.track_holders else None)
        handle: Any = _new_handle(self.redis_adapter.handle_class)
        handle.__dict__ = token.entry.resource.own.__dict__
        handle._pool = self
        handle._token = token
        return handle

    def _lend(self, timeout: float | None, frame: FrameType | None, lane: str | None = None) -> Token:
        """Acquire a connection for a lease; the code that holds it is that of a frame."""
        # As `Pool.acquire`, and `Liveness.is_sound` for one that has just answered; see there.
        fast = self._fast
        pop, clock = fast.pop, fast.now
        token: Token | None = None
        if not fast.waiters:
            try:
                token = pop()
            except IndexError:
                pass
        now = clock()
        if token is None:
            token, now = self._take(timeout, now, None, lane)
        else:
            entry, liveness = token.entry, self._liveness
            if (
                entry.generation is not fast.lendable_generation
                or now >= entry.expires
                or not SAME_PROCESS[0]
                or not (
                    (entry.answered and entry.checked > now - liveness.answer_ttl > liveness.suspicion.since)
                    or liveness.is_sound(entry, now)
                )
            ):
                doubtful = [token]
                del token, entry
                token, now = self._take(timeout, now, doubtful, lane)
        entry = token.entry
        if frame is not None:
            entry.thread = threading.get_ident()
            entry.code = frame.f_code
            entry.lasti = frame.f_lasti
        elif fast.track_holders:
            entry.thread, entry.code = threading.get_ident(), None
        entry.since = now
        return token

    def _take(
        self, timeout: float | None, now: float, doubtful: list[Token] | None, lane: str | None
    ) -> tuple[Token, float]:
        try:
            return Checkout(self.engine, self._liveness, timeout, now, lane).run(doubtful)
        except PoolError as error:
            raise as_redis_error(error) from error.__cause__

    def release(self, connection: Any) -> None:
        """Take a connection back; one that is not of this pool, or was released before, is ignored."""
        try:
            token, pool = connection._token, connection._pool
        except AttributeError:
            return
        if token is None or pool is not self:
            return
        if self._notifies:
            dispatcher: Any = self._event_dispatcher
            dispatcher.dispatch(AfterConnectionReleasedEvent(connection))
        if not connection.lost and token.entry.resource is not None and SAME_PROCESS[0]:
            end(connection, None, None, None)
        elif not active(connection):
            connection._token = None
            connection.disconnect()  # the process has forked meanwhile
        elif connection.lost and connection._sock is None:
            connection.reported = True
            end(connection, redis.ConnectionError, redis.ConnectionError("lost"), None)
        else:
            end(connection, None, None, None)

    def owns_connection(self, connection: Any) -> bool:
        """Whether a connection is lent by this pool, in this process."""
        return getattr(connection, "_pool", None) is self and active(connection)

    def make_connection(self) -> Any:
        """Return a new connection outside of the pool, not connected yet."""
        return self.connection_class(**self.connection_kwargs)

    def disconnect(self, inuse_connections: bool = True) -> None:
        """Replace all connections, as `drain` does.

        Args:
            inuse_connections: Whether those in use are closed too. A command
                that another thread waits for fails.
        """
        self.drain()
        if inuse_connections:
            me = threading.get_ident()
            with self.engine.lock:
                lent = [(entry.resource, entry.thread) for entry in self.engine.state.lent()]
            for client, thread in lent:
                if thread == me:
                    client.own.disconnect()
                else:  # its thread may be reading
                    self.redis_adapter.interrupt(client)

    def reset(self) -> None:
        """Replace all connections, as `drain` does."""
        if hasattr(self, "pid"):  # else redis-py's constructor calls it
            self.drain()
        self.pid = os.getpid()

    def set_retry(self, retry: Any) -> None:
        """Set the ``Retry`` object of all connections."""
        self.connection_kwargs["retry"] = retry
        for entry in list(self.engine.state.entries):
            if entry.resource is not None:
                entry.resource.own.retry = retry

    def re_auth_callback(self, token: object) -> None:
        """Replace all connections after a credential provider has got new credentials."""
        self.drain()

    @property
    def max_connections(self) -> int:
        """``max_size``, under redis-py's name."""
        return self.settings.max_size

    @max_connections.setter
    def max_connections(self, size: int) -> None:
        if hasattr(self, "engine"):  # else redis-py's constructor sets it
            self.resize(size)

    @property
    def timeout(self) -> float:
        """``acquire_timeout``, under redis-py's name."""
        return self.settings.acquire_timeout

    @property
    def _available_connections(self) -> list[Any]:  # type: ignore[override]  # read by redis-py's figures, and by programs
        return [token.entry.resource.own for token in self.engine.state.idle.tokens()]

    @property
    def _in_use_connections(self) -> set[Any]:  # type: ignore[override]
        return {client.own for client in self._lent()}

    @property
    def _created_connections(self) -> int:  # type: ignore[override]
        return len(self.engine.state.entries)

    def _lent(self) -> list[Client]:
        with self.engine.lock:
            return [entry.resource for entry in self.engine.state.lent()]

    def _get_free_connections(self) -> list[Any]:
        return self._available_connections

    def _get_in_use_connections(self) -> set[Any]:
        return self._in_use_connections

"""How MySQL connections are made and kept."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from ...core.adapter import Adapter, Verdicts
from ...core.descriptors import redirect_to_null
from ...core.runtime.immortal import keep_forever
from ...settings import PoolSettings
from ..shared.rotation import Answer
from ..shared.statistics import QueryStatistics
from . import failures
from .address import Address
from .driver import Driver
from .session import Hook, NotPipelined, Session
from .stalls import command_of, end_stalled
from .tracking import Connection, Notes, notes_of
from .wire import hang_up, keep_alive, spare_handle, wait_for_end

__all__ = ["MySQLAdapter"]

logger = logging.getLogger("pooling")

# Seconds:
CLOSE_WAIT = 0.2  # for the server to end its side of a connection that is closed
KILL_WAIT = 1.0  # to connect and end a session that still executes an abandoned command


class MySQLAdapter(Adapter[Connection]):
    """How connections are made and kept.

    Args:
        driver: The driver.
        address: The connection parameters.
        session: How sessions are prepared and cleaned.
        settings: For its time limits and its validation query.
        check: Called to validate a connection, instead of a query.
        proved: Called with the `Answer` after a connection was made with it.
        on_created: Called when a new connection is available.
        unable: Called when the server turns out to be unable to do something, with a text.
        queries: The statistics of queries, which start again in a forked child.
        stall_timeout: See `MySQLPool`.
    """

    noun = "connection"

    def __init__(
        self,
        driver: Driver,
        address: Address,
        session: Session,
        settings: PoolSettings,
        *,
        check: Hook | None = None,
        proved: Callable[[Answer], object] = lambda answer: None,
        on_created: Callable[[], object] = lambda: None,
        unable: Callable[[str], object] = lambda text: None,
        queries: QueryStatistics | None = None,
        stall_timeout: float | None = None,
    ) -> None:
        self.driver, self.session_rules = driver, session
        self.enforces_timeouts = driver.enforces_timeouts
        self._address = address
        self._check = check
        self._proved, self._on_created, self._unable = proved, on_created, unable
        self._queries = queries
        self.stall_timeout = stall_timeout
        self.settings_changed(settings)

    def settings_changed(self, settings: PoolSettings) -> None:
        self._query = settings.validation_query
        self.session_rules.create_timeout = settings.create_timeout
        self.session_rules.reset_timeout = settings.reset_timeout

    def created(self) -> None:
        self._on_created()

    def after_fork(self) -> None:
        if self._queries is not None:
            self._queries.renew()

    def driver_time(self) -> float | None:
        return None if self._queries is None else self._queries.seconds

    # -- create -------------------------------------------------------------------

    def create(self) -> Connection:
        answer, rules = self._address.ask(), self.session_rules
        resets = rules.resets
        try:
            conn = self._made(answer)
        except NotPipelined:
            rules.pipelined = False
            try:
                conn = self._made(answer)
            except BaseException:
                rules.pipelined = self.driver.pipelines  # it was not that
                raise
            self._unable("does not answer several commands at once: a cleaning takes several round trips")
        if resets and not rules.resets:
            self._unable("cannot reset a session: each connection that was used is closed")
        self._proved(answer)
        return conn

    def _made(self, answer: Answer) -> Connection:
        driver = self.driver
        conn = driver.connect(answer.arguments)
        try:
            notes, fd = notes_of(conn), driver.descriptor(conn)
            notes.watch(fd, driver.socket_of(conn))
            handle = spare_handle(fd)
            if handle is not None:
                with handle:
                    keep_alive(handle)
                    notes.place = driver.thread_id(conn), _seen_from(handle)
            self.session_rules.prepare(conn)
        except BaseException:
            with suppress(Exception):
                self.close(conn)
            raise
        return conn

    # -- keep ---------------------------------------------------------------------

    def is_alive(self, resource: Connection) -> bool:
        return self.driver.is_open(resource) and notes_of(resource).silent()

    def ping(self, timeout: float) -> None:
        try:
            self.driver.connect(self._address.ask().arguments).close()
        except Exception as error:
            if not failures.is_answer(error):
                raise

    def validate(self, resource: Connection, timeout: float) -> None:
        """Make a round trip, and find out whether the server has become read-only."""
        driver, notes = self.driver, notes_of(resource)
        if self._check is not None:
            self.session_rules.call(resource, self._check, timeout)
        elif self._query is not None:
            driver.ask(resource, self._query, timeout)
            if not driver.in_autocommit(resource):
                resource.rollback()
        else:
            role = str(driver.ask(resource, "SELECT @@global.read_only", timeout)[0])
            if role != notes.role:
                raise driver.operational(
                    1836, "the server has changed its role: it became read-only, or is not any more"
                )

    def refuse(self, resource: Connection, waiting: bool) -> str | None:
        rules = self.session_rules
        return "no reset" if rules.cleans and not rules.resets and notes_of(resource).dirty else None

    def reset(self, resource: Connection) -> bool:
        return self.session_rules.clean(resource) and self._check is None  # a check may look for more than an answer

    # -- end ----------------------------------------------------------------------

    def close(self, resource: Connection) -> None:
        driver, notes = self.driver, notes_of(resource)
        if notes.unfinished and notes.place is not None:
            with suppress(Exception):  # otherwise the server would go on with it, beyond the pool's size
                self._kill(notes)
        peer = notes.peer or spare_handle(driver.descriptor(resource))
        notes.peer = None
        try:
            driver.close(resource)
        finally:
            if peer is not None:
                with peer:
                    wait_for_end(peer, CLOSE_WAIT)

    def _kill(self, notes: Notes) -> None:
        """End a session on the server, over a connection of its own.

        Only the session of this number that has this side's address: through a
        proxy, the number may be that of another client's.
        """
        driver = self.driver
        assert notes.place is not None
        number, address = notes.place
        arguments = {**self._address.ask().arguments, **driver.time_limits(KILL_WAIT)}
        conn = driver.connect(arguments)
        try:
            found = driver.ask(
                conn, f"SELECT host FROM information_schema.processlist WHERE id = {number} AND user = "
                "SUBSTRING_INDEX(USER(), '@', 1)", KILL_WAIT
            )  # fmt: skip
            if found and str(found[0]).rpartition(":")[2] == address.rpartition(":")[2]:
                driver.execute(conn, f"KILL {number}", KILL_WAIT)
        finally:
            driver.close(conn)

    def interrupt(self, resource: Connection) -> None:
        notes_of(resource).unfinished = True
        hang_up(self.driver.descriptor(resource))

    def abandon(self, resource: Connection) -> None:
        fd = self.driver.descriptor(resource)
        keep_forever(resource)  # drivers say goodbye, or shut the socket down, when a connection is destroyed
        if fd is not None:
            redirect_to_null(fd)

    def command_of(self, resource: Connection) -> object:
        return command_of(self.driver, resource)

    def end_stalled(self, waiting: Sequence[tuple[Connection, object]], seconds: float) -> Verdicts:
        return end_stalled(self.driver, self._address.ask().arguments, waiting, seconds)

    # -- errors -------------------------------------------------------------------

    def is_broken(self, resource: Connection, error: BaseException) -> bool:
        if not isinstance(error, (Exception, GeneratorExit)):
            return True  # interrupted at an unknown point
        if notes_of(resource).unfinished or not self.driver.is_open(resource):
            return True
        return failures.ended_by(error) is not None or failures.is_read_only(error)

    def is_final(self, error: BaseException) -> bool:
        return super().is_final(error) or failures.is_hopeless(error, self._address.changes)

    def is_full(self, error: BaseException) -> bool:
        return failures.is_full(error)


def _seen_from(sock: Any) -> str:
    """Return this side's address as the server's list of sessions has it."""
    with suppress(OSError):
        if sock.family in (socket.AF_INET, socket.AF_INET6):
            host, port = sock.getsockname()[:2]
            return f"{host}:{port}"
    return "localhost"

"""What a borrower leaves behind in a connection, and how it is made to be gone (P5).

- *On the client* psycopg keeps everything in the connection's own attributes,
  so a copy of them, taken when it was new, is what it is brought back to when
  one was set; what is changed in place is compared.
- *On the server* nothing that the client can see is sound: ``set_config()`` and
  ``pg_advisory_lock()`` look like a SELECT. So a session is dirty when it ran
  anything at all, which is seen where psycopg waits for the server, in
  ``Connection.wait``: connections are of a subclass that notes it, and when an
  attribute is set. What is executed on the raw ``pgconn`` is not seen.
- A dirty session is cleaned in one round trip, together with the ROLLBACK or
  COMMIT that its transaction needs anyway.

Prepared statements are kept: psycopg counts on them. So the server may say
"cached plan must not change result type" to who gives the name of another's
table to one with other columns (a temporary one, or by the search_path), once:
a connection that said it is replaced. And it may know what somebody called
PREPARE for. Nothing short of ``DISCARD ALL``, a ``session`` of one's own, helps:
whose statement it is nobody knows.
"""

from __future__ import annotations

import functools
import socket
from collections.abc import Callable, Generator, Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import psycopg
from psycopg import pq
from psycopg.adapt import AdaptersMap
from psycopg.types import TypesRegistry

from ...tools.doctor.cleaning import LACKING, STEPS
from . import failures
from .address import completing
from .configured import Recorder
from .cursors import fast_cursor
from .limits import Limit, limited, pace
from .stalls import Watch, bare_of, explained
from .statistics import QueryStatistics, text_of
from .wire import (
    Cancel,
    copying,
    exchange,
    execute,
    failed_at,
    hang_up,
    may_block,
    notify,
    refuse_failed,
    round_trip,
    spare_handle,
)

__all__ = [
    "Connection", "Hook", "Notes", "Session", "SessionMode", "Tracking", "bare_of", "cut_off", "left_open", "notes_of",
    "role_of", "rolled_back", "tracked",
]  # fmt: skip

Connection = psycopg.Connection[Any]
Hook = Callable[[Connection], object]
SessionMode = Literal["clean", "trust"] | Hook
C = TypeVar("C", bound=Connection)
_COMMIT, _ROLLBACK = psycopg.Connection.commit, psycopg.Connection.rollback
R = TypeVar("R")

_STEPS = tuple(step.encode() for step in STEPS)
# As libpq gives them: numbers, which are compared much faster than members of an enumeration.
IDLE, IN_TRANSACTION, IN_ERROR, ACTIVE = (
    int(pq.TransactionStatus[name]) for name in ("IDLE", "INTRANS", "INERROR", "ACTIVE")
)
BETWEEN = (IDLE, IN_TRANSACTION, IN_ERROR)  # nothing runs
NO_PIPELINE = int(pq.PipelineStatus.OFF)


class Notes(Watch):
    """What is noted of one connection."""

    foreign = False  # it only looks like one: see `ForeignNotes`
    wrapped = False  # what is lent is a proxy of it
    as_new: dict[str, Any]  # its attributes
    bare: dict[str, Any]  # before it was configured
    in_place: tuple[list[Any], list[Any], int | None, int]  # the content of those that are changed in place
    adapters: AdaptersMap
    adapted: bool  # something was registered with the borrowers' copy of the adapters

    def __init__(self) -> None:
        super().__init__()
        self.changed = False  # an attribute was set since it was as new
        self.dirty = False  # it ran something since it was clean
        self.needs_configure = False  # what was configured has gone with a cleaning
        self.again = b""  # what is configured again in the round trip of a cleaning
        self.reruns = False  # the hook that configures is to be called again after a cleaning
        self.answered = False  # the server has, to a COMMIT that nothing came after
        self.fatal = False  # the server has said why it is about to hang up
        self.heard = False  # it has said anything since the last look
        self.failed: str | None = None  # the statement that aborted its transaction
        self.limit: Limit | None = None  # of its commands
        self.role: tuple[bytes | None, bytes | None] | None = None  # of the server, if it matters
        self.queries: QueryStatistics | None = None
        # When it was cut off in the middle of a command:
        self.cancel: Cancel | None = None  # ends that at the server
        self.peer: socket.socket | None = None  # tells when it has

    def hear(self, diagnostic: psycopg.errors.Diagnostic) -> None:
        """Take a message that is no answer to a query: a notice, or the server's last one.

        In a crash, and when it is shut down at once, the last one is no more than a WARNING.
        """
        self.heard = True
        state = diagnostic.sqlstate or ""
        if diagnostic.severity_nonlocalized in ("FATAL", "PANIC") or state in failures.DEAD:
            self.fatal = True


if TYPE_CHECKING:
    _Base = object  # it is put before any connection class, and mypy would have it override that of psycopg exactly
else:
    _Base = psycopg.Connection  # so that the class of a connection can be changed to one with this before it


class Tracking(_Base):
    """Put before a connection class: notes what is set and that something runs, and limits its time."""

    _pooling: Notes
    _commits = _rolls_back = False  # it has a commit() or rollback() of its own, which is to be called
    _wait: Callable[..., Any]  # the class's own; by super() a call would cost twice

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        vars(self)["_pooling"] = Notes()
        super().__init__(*args, **kwargs)

    def __setattr__(self, name: str, value: Any) -> None:
        self._pooling.changed = True
        super().__setattr__(name, value)

    def __delattr__(self, name: str) -> None:
        self._pooling.changed = True
        super().__delattr__(name)

    def wait(self, gen: Generator[Any, Any, Any], *args: Any, **kwargs: Any) -> Any:
        notes = self._pooling
        notes.dirty = True
        notes.turn += 1
        notes.within = True
        try:
            if notes.limit is not None:
                left = notes.limit.left()
                gen = limited(gen, self, notes.limit, left)  # type: ignore[arg-type]
                if not args:
                    kwargs.setdefault("interval", pace(left))
            elif not (args or kwargs):
                return self._wait(gen)
            return self._wait(gen, *args, **kwargs)
        except psycopg.Error as error:
            if self.pgconn.transaction_status != IDLE:  # type: ignore[attr-defined]  # it aborts a transaction, or may
                _note_failure(notes, error)
            if notes.stalled is not None:
                raise explained(notes, error)  # noqa: B904
            raise
        finally:
            notes.within = False

    def _exec_command(self, command: Any, *args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
        """What psycopg executes of itself: BEGIN, COMMIT, savepoints; cheaper, see `may_block` and `exchange`."""
        conn: Any = self
        if type(command) is not bytes or args or kwargs or conn._pipeline:
            return (yield from super()._exec_command(command, *args, **kwargs))  # type: ignore[misc]
        conn._check_connection_ok()
        if self._pooling.limit is None and conn.pgconn.transaction_status in BETWEEN and may_block(conn.pgconn):
            result = _waiting(conn, self._pooling, execute, conn.pgconn, command)
        else:
            results: list[Any] = []
            try:
                yield from exchange(conn.pgconn, command, results)
            finally:
                refuse_failed(results)
            result = results[-1]
        if conn._notify_handlers:
            notify(conn)
        return result

    def close(self) -> None:
        """As psycopg's; but in the midst of a commit another thread only wakes its holder, who then closes it."""
        if self._pooling.waits:
            self._closed = True
            hang_up(self)  # type: ignore[arg-type]
        else:
            super().close()  # type: ignore[misc]

    def notifies(self, *args: Any, **kwargs: Any) -> Generator[psycopg.Notify, None, None]:
        notify(self)  # psycopg of those that came with what is executed above
        found: Generator[psycopg.Notify, None, None] = super().notifies(*args, **kwargs)  # type: ignore[misc]
        return found

    @classmethod
    def _connect_gen(cls, conninfo: str = "", **options: Any) -> Generator[Any, Any, Any]:
        complete = completing.get()
        if complete is not None:
            conninfo = complete(conninfo)
        told = failures.listening()
        if told is None:
            return (yield from super()._connect_gen(conninfo, **options))  # type: ignore[misc]
        return cls((yield from failures.connect(conninfo, told, **options)))


class Measuring(Tracking):
    """Does that, and times queries."""

    def wait(self, gen: Generator[Any, Any, Any], *args: Any, **kwargs: Any) -> Any:
        queries = self._pooling.queries
        timer = None if queries is None else queries.timed(gen)
        if timer is None:
            return super().wait(gen, *args, **kwargs)
        with timer:
            return super().wait(gen, *args, **kwargs)


@functools.cache
def tracked(connection_class: type[C], measuring: bool) -> type[C]:
    """Return a subclass that looks like the class itself and keeps `Notes`."""
    first = Measuring if measuring else Tracking
    namespace = {
        "__module__": connection_class.__module__, "__doc__": connection_class.__doc__, "_wait": connection_class.wait,
        "_commits": connection_class.commit is not _COMMIT, "_rolls_back": connection_class.rollback is not _ROLLBACK,
    }  # fmt: skip
    made: type[C] = type(connection_class.__name__, (first, connection_class), namespace)
    made.__qualname__ = connection_class.__qualname__
    return made


def notes_of(conn: Connection) -> Notes:
    """Return the notes of a connection that a pool has made."""
    notes: Notes = conn._pooling  # type: ignore[attr-defined]
    return notes


class Session:
    """How one pool's sessions are prepared and cleaned; see `PostgresPool` for the arguments."""

    def __init__(
        self,
        mode: SessionMode = "clean",
        configure: Hook | None = None,
        reset: Hook | None = None,
        *,
        create_timeout: float,
        reset_timeout: float,
        command_timeout: float | None = None,
        queries: QueryStatistics | None = None,
        lacks: Callable[[dict[str, psycopg.Error]], object] = lambda missing: None,
    ) -> None:
        self._steps = _STEPS if mode == "clean" else ()
        self._lacks = lacks
        self.missing: frozenset[bytes] = frozenset()  # steps that this server does not execute
        self._take_steps()
        self._configure = configure
        self._always = [] if reset is None else [reset]
        self._after_use = [mode, *self._always] if callable(mode) else self._always
        self.create_timeout = create_timeout
        self.reset_timeout = reset_timeout
        self.command_timeout = command_timeout
        self._limit = None if command_timeout is None else Limit(command_timeout)
        self._queries = queries

    def learn_anew(self) -> None:
        """Forget which steps of a cleaning the server does not execute: it may be another one now."""
        if self.missing:
            self.missing = frozenset()
            self._take_steps()

    def _take_steps(self) -> None:
        self._clean = _joined(step for step in self._steps if step not in self.missing)
        self._commit = b"COMMIT" + self._clean

    def prepare(self, conn: Connection, owner: object) -> None:
        """Configure a new connection, and note what it is like as new."""
        notes = notes_of(conn)
        if notes.foreign:
            if self._configure is not None:
                self._configure(conn)
            return
        lent, conn = conn, bare_of(conn) or conn
        conn._pool = owner  # type: ignore[assignment]  # `with conn` then ends a transaction only
        conn.add_notice_handler(notes.hear)
        conn.cursor_factory = fast_cursor(conn.cursor_factory)
        _remember(conn, notes)
        notes.bare = dict(notes.as_new)
        notes.dirty = False
        if self._configure is not None:
            recorder = Recorder(conn)
            vars(conn)["wait"] = recorder.wait
            try:
                self.call(lent, self._configure, self.create_timeout)
            finally:
                vars(conn).pop("wait", None)
            _remember(conn, notes)
            if self._steps and notes.dirty:
                again = recorder.undone()
                notes.again, notes.reruns = again or b"", again is None
        notes.limit, notes.queries = self._limit, self._queries
        notes.dirty = notes.needs_configure = False

    def clean(self, conn: Connection) -> bool:
        """Make a connection as good as new, or raise; say whether the server has answered just now."""
        notes: Notes = conn._pooling  # type: ignore[attr-defined]
        if notes.foreign:
            return self._clean_foreign(conn)
        answered, notes.answered = notes.answered, False
        status = conn.pgconn.transaction_status
        if answered and status == IDLE and not (self._after_use or notes.needs_configure):
            _restore(conn, notes)
        else:
            answered = self._clean_up(conn, notes, status) or answered
        notes.limit = self._limit
        notes.dirty = False
        notes.failed = None
        return answered and not notes.fatal and notes.role is None  # else there is more to look at

    def _clean_up(self, conn: Connection, notes: Notes, status: int) -> bool:
        """Do what a borrower that did not end with a commit of ours needs; say whether the server was asked."""
        asked = False
        used = notes.dirty or status != IDLE
        if _unfinished(conn, status):
            raise psycopg.ProgrammingError(f"it came back with {left_open(conn, 0.0) or 'a command under way'}")
        if status != IDLE and conn._rolls_back:  # type: ignore[attr-defined]
            self.call(conn, lambda conn: conn.rollback(), self.reset_timeout)
            status = conn.pgconn.transaction_status
        if status != IDLE or (used and self._clean):
            self._clean_server(conn, notes, b"" if status == IDLE else b"ROLLBACK")
            asked = True
            if status != IDLE:
                conn._prepared.clear()  # as psycopg does: they may name what is no more
            if self._clean:
                _forget_notifications(conn)
        _restore(conn, notes)
        for hook in self._after_use if used else self._always:
            self.call(conn, hook, self.reset_timeout)
            _restore(conn, notes)
        if notes.needs_configure:
            self._configure_again(conn, notes)
        return asked

    def _clean_foreign(self, conn: Connection) -> bool:
        """Do what is possible with a connection of which nothing is known."""
        conn.rollback()
        for hook in self._after_use:
            hook(conn)
        return False

    def _clean_server(self, conn: Connection, notes: Notes, first: bytes) -> None:
        """Roll back if need be, and clean, in one round trip; without the steps that this server does not execute.

        A step is left out once it has failed by itself, too, when all others were done: what
        a borrower did may be the reason that it fails among them.
        """
        steps = [step for step in self._steps if step not in self.missing]
        left = Limit(None, self.reset_timeout).left
        failed: list[bytes] = []
        while True:
            try:
                round_trip(conn, first + _joined(steps) + notes.again, left())
                notes.needs_configure = notes.reruns
                break
            except psycopg.Error as error:
                place = failed_at(error) - bool(first)
                if place >= len(steps) and notes.again and error.sqlstate and failures.ended_by(error) is None:
                    notes.again, notes.reruns, first = b"", True, b""  # not all at once, then
                    continue
                if error.sqlstate not in LACKING or not 0 <= place < len(steps):
                    raise
                failed.append(steps.pop(place))
                first = b""  # that was done; what came after it was undone
        missing: dict[str, psycopg.Error] = {}
        for step in failed:
            try:
                round_trip(conn, step, left())
            except psycopg.Error as error:
                if error.sqlstate not in LACKING:
                    raise
                missing[step.decode()] = error
        if missing:
            self.missing |= {step.encode() for step in missing}
            self._take_steps()
            self._lacks(missing)

    def _configure_again(self, conn: Connection, notes: Notes) -> None:
        """What the hook had done went with what the borrower had done."""
        assert self._configure is not None
        notes.as_new, notes.changed = dict(notes.bare), True
        _restore(conn, notes)
        self.call(conn, self._configure, self.reset_timeout)
        _remember(conn, notes)
        notes.needs_configure = False

    @staticmethod
    def call(conn: Connection, hook: Hook, limit: float) -> None:
        """Call a function of the user's, all commands of it within so many seconds; what it did holds."""
        notes = notes_of(conn)
        before, notes.limit = notes.limit, Limit(None, limit)
        try:
            hook(conn)
            status = conn.pgconn.transaction_status
            if status == IN_ERROR:
                raise rolled_back(conn, f"what {getattr(hook, '__qualname__', repr(hook))}() did")
            if status != IDLE:
                open_ = left_open(conn, 0.0)
                if open_ is not None:
                    raise psycopg.ProgrammingError(f"{hook!r} has ended with {open_}")
                conn.commit()
        finally:
            notes.limit = before

    def commit(self, conn: Connection, pipelines: bool = False) -> None:
        """Commit what a borrower did, and clean the server's side in the same round trip.

        Args:
            conn: The connection.
            pipelines: Whether one may be open, as psycopg allows it.

        Raises:
            psycopg.ProgrammingError: A stream, COPY or the like is open, for whose end psycopg would wait for ever.
        """
        notes: Notes = conn._pooling  # type: ignore[attr-defined]
        if notes.foreign:
            conn.commit()
            return
        status = conn.pgconn.transaction_status
        own: bool = conn._commits  # type: ignore[attr-defined]
        odd = own or conn._num_transactions or conn._tpc or _unfinished(conn, status)
        if status != IN_TRANSACTION or odd:
            if odd:
                self.refuse_open(conn, pipelines)
            if status != IDLE or odd:
                conn.commit()
            if odd and pipelines and conn.pgconn.pipeline_status != NO_PIPELINE:
                cut_off(conn)  # in this thread: another one's close would interrupt the pipeline's own end
            return
        try:
            if notes.limit is None and not self._clean and may_block(conn.pgconn):
                _waiting(conn, notes, execute, conn.pgconn, self._commit)
            else:
                text = self._commit + notes.again if notes.again else self._commit
                _waiting(conn, notes, round_trip, conn, text, notes.limit and notes.limit.left())
        except (psycopg.Error, TimeoutError) as error:
            if failed_at(error):
                return  # committed all the same; that it is not clean, `clean` will find
            raise
        if conn._notify_handlers:
            notify(conn)
        notes.answered = True
        if self._clean:
            _forget_notifications(conn)
            notes.dirty = False
            notes.needs_configure = notes.reruns

    def refuse_open(self, conn: Connection, pipelines: bool = False) -> None:
        """Refuse a connection on which its borrower has left something open.

        Raises:
            psycopg.ProgrammingError: What it is. Psycopg would wait for its end, perhaps for ever.
        """
        open_ = None if notes_of(conn).foreign else left_open(conn, self.reset_timeout)
        if open_ is not None and not (pipelines and open_ == _PIPELINE):
            raise psycopg.ProgrammingError(
                f"the block has ended with {open_}: its connection is closed, and its transaction rolled back"
            )


def _joined(steps: Iterable[bytes]) -> bytes:
    return b"".join(b"; " + step for step in steps)


class _Adapters(AdaptersMap):
    """A borrower's copy (on write) of the adapters, which notes that it was changed.

    A new copy for each would be simpler, and undo what psycopg has looked up.
    """

    def __init__(self, notes: Notes) -> None:
        super().__init__(notes.adapters)
        self.types = _Types(notes)
        self._notes = notes
        notes.adapted = False

    def register_dumper(self, cls: type | str | None, dumper: type[Any]) -> None:
        self._notes.adapted = True
        super().register_dumper(cls, dumper)

    def register_loader(self, oid: int | str, loader: type[Any]) -> None:
        self._notes.adapted = True
        super().register_loader(oid, loader)


class _Types(TypesRegistry):
    def __init__(self, notes: Notes) -> None:
        super().__init__(notes.adapters.types)
        self._notes = notes

    def add(self, info: Any) -> None:
        self._notes.adapted = True
        super().add(info)


def role_of(conn: Connection) -> tuple[bytes | None, bytes | None]:
    """Return what the server says of itself: a standby? read-only? Costs no round trip (PostgreSQL 14)."""
    status = conn.pgconn.parameter_status
    return status(b"in_hot_standby"), status(b"default_transaction_read_only")


def _note_failure(notes: Notes, error: psycopg.Error) -> None:
    """Keep which statement aborted a transaction: in words, because the error would keep its frames, and a lease.

    Neither parameters nor the server's words, which may repeat them. What fails only because
    the transaction is aborted already is not the cause.
    """
    if isinstance(error, (psycopg.errors.InFailedSqlTransaction, psycopg.errors.PipelineAborted)):
        return
    text, step = "", error.__traceback__
    while step is not None and not text:  # the steps of psycopg's that were waited for
        given = step.tb_frame.f_locals
        query = given.get("query") or given.get("statement")  # that is what a COPY calls it
        if isinstance(query, (str, bytes, psycopg.sql.Composable)):
            with suppress(Exception):
                text = text_of(query)
        step = step.tb_next
    notes.failed = f"{text or 'a statement'} ({type(error).__name__}, SQLSTATE {error.sqlstate})"


def rolled_back(conn: Connection, what: str) -> failures.TransactionRolledBack:
    """Return the error that says that a transaction, which was aborted, was not committed."""
    failed = notes_of(conn).failed or "a statement"
    return failures.TransactionRolledBack(
        f"{what} was rolled back: an error was caught before the end, after which nothing can be committed; "
        f"what failed: {failed}"
    )


def _unfinished(conn: Connection, status: int) -> bool:
    """Whether something is under way that only its borrower could end."""
    return status not in BETWEEN or conn.pgconn.pipeline_status != NO_PIPELINE or conn.lock.locked()


def left_open(conn: Connection, patience: float) -> str | None:
    """Return what is open on a connection, in words; ``None`` if nothing is.

    Args:
        conn: The connection.
        patience: Seconds to wait for a command of another thread.
    """
    pgconn, notes = conn.pgconn, notes_of(conn)
    if conn.closed or not _unfinished(conn, pgconn.transaction_status):
        return None
    if conn.lock.locked() and patience and conn.lock.acquire(timeout=patience if notes.within else _MOMENT):
        conn.lock.release()
        return left_open(conn, 0.0)
    if notes.within:
        return "a command of another thread under way"
    if pgconn.pipeline_status != NO_PIPELINE:
        return _PIPELINE
    if pgconn.transaction_status in BETWEEN:
        return "an open notifies()"
    if copying(pgconn):
        return "an open COPY"
    return "an open stream()" if conn.lock.locked() else "a query under way"


_PIPELINE = "an open pipeline()"
_MOMENT = 0.05  # seconds: for a thread that has a command of its own between two waits


def cut_off(conn: Connection) -> None:
    """Take a connection from a borrower who has left something open; its close cancels that at the server."""
    notes = notes_of(conn)
    with suppress(psycopg.Error):
        if conn.pgconn.transaction_status == ACTIVE:
            notes.cancel = Cancel(conn)
    if notes.within:  # it is another thread's now: that one closes it
        hang_up(conn)
    else:
        notes.peer = spare_handle(conn)
        conn.pgconn.finish()


def _waiting(conn: Connection, notes: Notes, function: Callable[..., R], *args: Any) -> R:
    """Call what waits for the server without a look at anything else; see `Tracking.close`."""
    notes.turn += 1
    notes.waits = True
    try:
        return function(*args)
    except psycopg.Error as error:
        if notes.stalled is not None:
            raise explained(notes, error)  # noqa: B904
        raise
    finally:
        notes.waits = False
        if conn._closed:  # by another thread, meanwhile
            conn.pgconn.finish()


def _forget_notifications(conn: Connection) -> None:
    """Drop those that came before the UNLISTEN."""
    while conn.pgconn.notifies():
        pass


def _remember(conn: Connection, notes: Notes) -> None:
    """Note what the client's side is like, what is changed in place by its content."""
    if notes.wrapped:
        conn = bare_of(conn) or conn
    notes.adapters = conn.adapters
    conn._adapters = _Adapters(notes)
    prepared = conn._prepared
    notes.in_place = (
        list(conn._notice_handlers), list(conn._notify_handlers), prepared.prepare_threshold, prepared.prepared_max
    )
    conn._get_tx_start_command()  # psycopg works this out once: not again for each borrower
    notes.as_new, notes.changed = dict(vars(conn)), False


def _restore(conn: Connection, notes: Notes) -> None:
    """Bring the client's side back to what was noted."""
    if notes.wrapped:
        conn = bare_of(conn) or conn
    if notes.adapted:
        notes.as_new["_adapters"], notes.changed = _Adapters(notes), True
    if notes.changed:
        notes.changed = False
        state = vars(conn)
        for name in state.keys() - notes.as_new.keys():
            del state[name]
        state.update(notes.as_new)
    prepared = conn._prepared
    if notes.in_place != (
        conn._notice_handlers, conn._notify_handlers, prepared.prepare_threshold, prepared.prepared_max
    ):
        conn._notice_handlers[:], conn._notify_handlers[:] = notes.in_place[:2]
        prepared.prepare_threshold, prepared.prepared_max = notes.in_place[2:]
    if backlog := getattr(conn, "_notifies_backlog", None):
        backlog.clear()

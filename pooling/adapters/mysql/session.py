"""How a session is prepared for its first borrower, and cleaned for each further one (P5).

COM_RESET_CONNECTION rolls back and drops temporary tables, variables, user
locks, table locks and prepared statements. It also undoes what the driver did
after connecting, and keeps the last database that was used. So it is followed by
SET for the character set, autocommit, SQL mode and time limit, by the choice of
the database if another one may have been chosen, and by the statements of
``init_command`` and of the ``configure`` hook. All of that, and the COMMIT before it, is sent at once: one round trip,
which also proves that the server is there. Whether the server takes several
commands at once is found out with each new connection.

A session is dirty when anything at all was sent, which `tracking` notes: MySQL's
text protocol does not tell what a statement changes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any, Literal

from ..shared.limits import Limit, reserve
from ..shared.statistics import QueryStatistics
from .driver import Driver, failed_at
from .failures import code_of, ended_by
from .stalls import IDENTITY, note_server
from .tracking import Connection, Notes, notes_of
from .wire import INIT_DB, PING, QUERY, RESET, Commands

__all__ = ["Hook", "NotPipelined", "Session", "SessionMode"]

Hook = Callable[[Connection], object]
SessionMode = Literal["clean", "trust"] | Hook

PROBE = 2.0  # seconds for the answer to several commands at once; a proxy that takes only the first never answers
_UNKNOWN_COMMAND = 1047
# Statements that are executed again with each cleaning: SET, USE. Others are passed over, because nothing is left of
# them after a cleaning: a COMMIT, a SELECT of variables or of functions that change nothing.
_AGAIN = re.compile(rb"(?is)\s*(?:SET|USE)\b[^;]*;?\s*\Z")
_PASSING = re.compile(
    rb"(?is)\s*(?:COMMIT|ROLLBACK|BEGIN|START\s+TRANSACTION|SHOW\b[^;]*"
    rb"|SELECT\b(?!.*\bINTO\b)(?:[^;(:]|\b(?:VERSION|DATABASE|USER|CURRENT_USER|CONNECTION_ID|NOW)\(\))*);?\s*\Z"
)
# One assignment of a plain value to a variable of the session, which does not depend on the database.
_ASSIGNMENT = re.compile(
    rb"(?is)\s*SET\s+(?:SESSION\s+)?((?!PASSWORD|ROLE|NAMES|autocommit|collation|character)\w+\s*=\s*"
    rb"(?:\d+|'[\w+:, -]*'))\s*;?\s*\Z"
)
#: Fails if a database was chosen on a connection that had none: there is no way to choose none again.
_NO_DATABASE = b"SET @_pooling = (SELECT 1 UNION SELECT 2 FROM DUAL WHERE DATABASE() IS NOT NULL)"


class NotPipelined(Exception):
    """The server, or a proxy before it, did not answer several commands that were sent at once."""


class Session:
    """How one pool's sessions are prepared and cleaned; see `MySQLPool` for the arguments."""

    def __init__(
        self,
        driver: Driver,
        mode: SessionMode = "clean",
        configure: Hook | None = None,
        reset: Hook | None = None,
        *,
        create_timeout: float,
        reset_timeout: float,
        command_timeout: float | None = None,
        queries: QueryStatistics | None = None,
    ) -> None:
        self.driver = driver
        self.cleans = mode == "clean"
        self._trusts = mode == "trust"
        self.pipelined = driver.pipelines
        """Whether several commands are sent at once; may be changed after `NotPipelined`."""
        self.resets = driver.resets
        """Whether the server can reset a session; otherwise connections that were used are closed."""
        self._configure = configure
        self._always = [] if reset is None else [reset]
        self._after_use = [mode, *self._always] if callable(mode) else self._always
        self.create_timeout = create_timeout
        self.reset_timeout = reset_timeout
        self.command_timeout = command_timeout
        self._limit = None if command_timeout is None else Limit(command_timeout)
        self._queries = queries

    # -- prepare ------------------------------------------------------------------

    def prepare(self, conn: Connection) -> None:
        """Configure a new connection, and note what it is like as new.

        Raises:
            NotPipelined: See there; the connection is useless.
        """
        driver, notes = self.driver, notes_of(conn)
        maria = "mariadb" in driver.server_version(conn).lower()
        steps, choice = self._steps(conn, maria)
        prefix = driver.query_prefix(conn)
        place = choice if self._look_up(conn, notes) else None
        notes.configuration.clean_with(*steps, place=place, prefix=prefix)
        if self._configure is not None:
            notes.configuration.recorded = []
            try:
                self.call(conn, self._configure, self.create_timeout)
            finally:
                recorded, notes.configuration.recorded = notes.configuration.recorded, None
            again = [
                (command, text) for command, text in recorded or []
                if command != PING and not (command == QUERY and _PASSING.match(text))
            ]  # fmt: skip
            notes.configuration.by_hook = not driver.pipelines or not all(
                command == INIT_DB or (command == QUERY and _AGAIN.match(text)) for command, text in again
            )
            if not notes.configuration.by_hook:
                again = _joined(steps, again)
                notes.configuration.clean_with(*steps, *again, place=place, prefix=prefix)
        notes.client = driver.client_state(conn)
        notes.failed, notes.dirty = None, True
        if self.cleans and self.resets:
            self._probe(conn, notes)
        elif self.command_timeout is not None:
            driver.execute(conn, f"SET {_server_limit(self.command_timeout, maria)}", self.create_timeout)
        if notes.configuration.lost:
            self._configure_again(conn, notes)
        notes.client = driver.client_state(conn)
        driver.restore(conn, notes.client)  # without the results of all that
        notes.limit, notes.queries = self._limit, self._queries
        notes.configuration.lost = False
        notes.dirty = not driver.notes_use

    def _steps(self, conn: Connection, maria: bool) -> tuple[list[tuple[int, bytes]], int]:
        """Return the commands of a cleaning, without those of the hook, and which of them goes back to the database."""
        database, assignments, further = self.driver.session_of(conn)
        if self.command_timeout is not None:
            assignments.append(_server_limit(self.command_timeout, maria))
        before = [] if database else [(QUERY, _NO_DATABASE)]
        steps = [*before, (RESET, b""), (QUERY, f"SET {', '.join(assignments)}".encode())]
        if database:
            steps.append((INIT_DB, database.encode()))
        place = len(steps) - 1 if database else 0
        return [*steps, *((QUERY, text.encode()) for text in further)], place

    def _look_up(self, conn: Connection, notes: Notes) -> bool:
        """Note what matters of the server's state; return whether a reset leaves what depends on the database."""
        driver, limit = self.driver, self.create_timeout
        # A reset makes the database's collation, which LOAD DATA uses, the server's.
        asked = f"SELECT @@global.read_only, @@collation_database = @@global.collation_database, {IDENTITY}"
        role, same, *identity = driver.ask(conn, asked, limit)
        note_server(driver, conn, identity)
        notes.role = str(role)
        try:
            (undoes,) = driver.ask(conn, "SELECT @@innodb_rollback_on_timeout", limit)
            notes.undoes = str(undoes) in ("1", "ON")
        except driver.error as error:
            if ended_by(error) is not None:
                raise  # otherwise this server has no InnoDB
        return str(same) == "1"

    def _probe(self, conn: Connection, notes: Notes) -> None:
        """Clean the session for the first time, and find out what the server takes."""
        driver = self.driver
        try:
            driver.perform(conn, notes.configuration.cleaning, min(PROBE, self.create_timeout), self.pipelined)
        except driver.error as error:
            number = failed_at(error)
            if ended_by(error) is not None:
                if self.pipelined and (number or isinstance(error.__cause__, TimeoutError)):
                    raise NotPipelined from error
                raise
            if code_of(error) == _UNKNOWN_COMMAND and notes.configuration.cleaning.steps[number][0] == RESET:
                self.resets = False
                return
            if notes.configuration.by_hook or number < len(self._steps(conn, True)[0]):
                raise
            # The hook's statements cannot be executed twice: the hook itself is called from now on.
            steps = notes.configuration.cleaning.steps[:number]
            notes.configuration.clean_with(*steps, place=None, prefix=driver.query_prefix(conn))
            notes.configuration.by_hook = True
            driver.perform(conn, notes.configuration.cleaning, self.create_timeout, self.pipelined)
        notes.configuration.lost = notes.configuration.by_hook
        notes.moved = False

    # -- clean --------------------------------------------------------------------

    def clean(self, conn: Connection) -> bool:
        """Make a connection as good as new, or raise; return whether the server has answered just now."""
        notes, driver = notes_of(conn), self.driver
        answered, notes.answered = notes.answered, False
        if notes.dirty:
            left = driver.unread(conn)
            if left is not None or notes.unfinished:
                raise driver.programming(f"it came back with {left or 'a command under way'}")
            if self.cleans:
                commands = notes.configuration.cleaning if notes.moved else notes.configuration.staying
                driver.perform(conn, commands, self.reset_timeout, self.pipelined)
                notes.moved, notes.configuration.lost = False, notes.configuration.by_hook
            else:
                self._end(conn)
            answered = True
        driver.restore(conn, notes.client)
        notes.limit, notes.queries = self._limit, self._queries
        used, notes.dirty = notes.dirty, False
        for hook in self._after_use if used else self._always:
            self.call(conn, hook, self.reset_timeout)
            driver.restore(conn, notes.client)
        if notes.configuration.lost:
            self._configure_again(conn, notes)
        notes.failed, notes.dirty, notes.autocommit_due = None, not driver.notes_use, False
        return answered

    def _end(self, conn: Connection) -> None:
        """End the transaction, and nothing else."""
        driver, notes = self.driver, notes_of(conn)
        steps = [(QUERY, b"ROLLBACK")]
        state = driver.autocommit_of(notes.client)
        if state is not None and driver.in_autocommit(conn) != state:
            steps.append((QUERY, b"SET autocommit=%d" % state))
        driver.perform(conn, Commands(*steps, prefix=driver.query_prefix(conn)), self.reset_timeout, self.pipelined)

    def _configure_again(self, conn: Connection, notes: Notes) -> None:
        """Call the hook again: the cleaning has undone what it did, along with what the borrower did."""
        assert self._configure is not None
        self.call(conn, self._configure, self.reset_timeout)
        notes.client = self.driver.client_state(conn)
        notes.configuration.lost = notes.dirty = False

    def call(self, conn: Connection, hook: Hook, limit: float) -> None:
        """Call a function of the user's and commit what it did, all its commands within ``limit`` seconds."""
        notes, driver = notes_of(conn), self.driver
        before, notes.limit = notes.limit, Limit(None, limit)
        attributes: dict[str, Any] = conn.__dict__
        limits = {name: attributes[name] for name in driver.limits if name in attributes}
        try:
            hook(conn)
            left = driver.unread(conn)
            if left is not None:
                raise driver.programming(f"{getattr(hook, '__qualname__', repr(hook))}() has ended with {left}")
            if notes.dirty or not driver.pipelines:
                conn.commit()
        finally:
            notes.limit = before
            attributes.update(limits)

    # -- commit -------------------------------------------------------------------

    def commit(self, conn: Connection) -> None:
        """Commit what a borrower did, and clean the server's side in the same round trip.

        Raises:
            Exception: An error of the driver: the commit failed, or its outcome is unknown.
        """
        notes, driver = notes_of(conn), self.driver
        if not notes.dirty and driver.pipelines:
            return
        cleans = self.cleans and self.resets and driver.pipelines
        commands = notes.configuration.committing if notes.moved else notes.configuration.committing_staying
        if not cleans:
            commands = Commands((QUERY, b"COMMIT"), prefix=driver.query_prefix(conn))
        try:
            driver.perform(conn, commands, notes.limit and notes.limit.left(), self.pipelined)
        except driver.error as error:
            if failed_at(error):
                return  # committed all the same; `clean` will find that the session is dirty
            raise
        notes.failed = None
        if cleans:
            notes.answered, notes.dirty, notes.moved = True, False, False
            notes.configuration.lost = notes.configuration.by_hook
        elif self._trusts and driver.pipelines:
            state = driver.autocommit_of(notes.client)
            if state is None or driver.in_autocommit(conn) == state:
                notes.answered, notes.dirty = True, False  # nothing else is reset


def _joined(steps: list[tuple[int, bytes]], again: list[tuple[int, bytes]]) -> list[tuple[int, bytes]]:
    """Add the first assignments of a hook to the SET in ``steps``, and return the other commands of the hook."""
    number = next(number for number, (command, _) in enumerate(steps) if command == RESET) + 1
    if any(command == QUERY for command, _ in steps[number + 1 :]):
        return again  # the statements of ``init_command`` come between
    for done, (command, text) in enumerate(again):
        found = _ASSIGNMENT.match(text) if command == QUERY else None
        if found is None:
            return again[done:]
        steps[number] = QUERY, steps[number][1] + b", " + found[1]
    return []


def _server_limit(limit: float, maria: bool) -> str:
    """Return the assignment that makes the server stop a command shortly before ``limit`` seconds are over."""
    seconds = limit - reserve(limit)
    return f"max_statement_time={seconds:.3f}" if maria else f"max_execution_time={math.ceil(seconds * 1000)}"

"""Named pools of an application: warm-up, health, shutdown."""

from __future__ import annotations

import logging
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from types import TracebackType
from typing import IO, Any, NoReturn

from . import config
from ._console import Paint
from ._fields import fields
from ._masking import masked, shown
from ._members import Member, in_parallel, member_of
from ._reports import Health, PoolHealth, Readiness, Startup, judge, overall, status_of, table
from ._signals import SignalWatch
from ._urls import from_url
from .core.adapter import Adapter
from .core.clock import seconds
from .core.pool import Pool
from .core.report.messages import no_copy, printable
from .errors import PoolClosed, PoolError

__all__ = [
    "Health",
    "PoolHealth",
    "PoolManager",
    "Readiness",
    "Startup",
    "application_lifespan",
    "from_url",
]

logger = logging.getLogger("pooling")

_ALIASES = {config.DATABASE: "database_pool"}  # second name in performance summaries
GRACE = 0.5
"""Seconds after the limit to wait for a pool's own error. Internal."""


class PoolManager:
    """The pools of an application, by name.

    ::

        manager = PoolManager()
        manager.create_pool("db", "postgresql://app@db/orders?max_size=20")
        manager.create_pool("ldap", connect, close=Connection.unbind, max_size=5)
        with manager:                                # warms up; closes at the end
            with manager.get_pool("db").connection() as conn: ...

    Nothing is opened before the first use or `startup`, so it can be created
    at import.

    Args:
        startup_timeout: Seconds for the warm-up at the beginning of a ``with``
            block.
        shutdown_timeout: Seconds for closing all pools at its end.
    """

    def __init__(self, *, startup_timeout: float = 10.0, shutdown_timeout: float = 10.0) -> None:
        # No lock, because a fork could copy it in the locked state. Assumes: `dict.setdefault` is atomic.
        self._members: dict[str, Member] = {}
        self._startup_timeout = seconds(startup_timeout)
        self._shutdown_timeout = seconds(shutdown_timeout)
        self._closing = False
        self._since = time.monotonic()

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, object], **limits: float) -> PoolManager:
        """Create a manager from configuration, see `pooling.config.from_mapping`.

        Args:
            mapping: As there; a value may also be an existing pool.
            limits: As for the class.

        Raises:
            ValueError, TypeError, ImportError: A pool's configuration is
                invalid, or its driver is missing.
        """
        manager = cls(**limits)
        manager.configure(mapping)
        return manager

    @classmethod
    def from_env(
        cls,
        prefix: str = "",
        environ: Mapping[str, str] | None = None,
        *,
        database: str | None = None,
        **limits: float,
    ) -> PoolManager:
        """Create a manager from the environment, see `pooling.config.from_env`.

        Args:
            prefix, environ, database: As there.
            limits: As for the class.

        Raises:
            ValueError: A variable's value is invalid.
        """
        manager = cls(**limits)
        for one in config.from_env(prefix, environ, database=database).values():
            manager._create(one)
        return manager

    def configure(self, mapping: Mapping[str, object]) -> None:
        """Add pools from configuration, see `from_mapping`."""
        pools = {name: value for name, value in mapping.items() if not isinstance(value, (str, Mapping))}
        configs = config.from_mapping({name: mapping[name] for name in mapping if name not in pools})
        for name in mapping:
            if name in pools:
                self.add_pool(pools[name], name)
            else:
                self._create(configs[name])

    def _create(self, one: config.PoolConfig) -> None:
        self.create_pool(
            one.name, one.url, settings=one.settings, critical=one.critical, **one.arguments
        )

    # -- pools ------------------------------------------------------------------------

    def create_pool(
        self, name: str, source: Any, *, critical: bool = True, **arguments: Any
    ) -> Pool[Any]:
        """Create a pool with a name, or return the existing one if it was created with the same arguments.

        Args:
            name: The pool's name, here and in messages.
            source: A URL as for `from_url`, a function that creates a
                resource, or an `Adapter`.
            critical: Whether the application counts as down without this pool.
            arguments: ``settings=``, fields of `PoolSettings`, which take
                precedence, and further arguments of the pool's class.

        Raises:
            ValueError: The name is taken by a pool with other arguments; or as
                from `from_url`.
            TypeError: ``source`` is none of these, or an argument is invalid.
            PoolError: The manager was shut down.
        """
        recipe = (source, critical, arguments)
        if isinstance(source, str):
            pool = from_url(source, name=name, **arguments)
        elif isinstance(source, Adapter):
            pool = Pool(adapter=source, name=name, **arguments)
        elif callable(source):
            pool = Pool(source, name=name, **arguments)
        else:
            raise TypeError(
                f"source must be a URL, a function or an Adapter, not {type(source).__name__}"
            )
        return self._add(name, member_of(pool, critical=critical, recipe=recipe)).pool  # type: ignore[no-any-return]

    def add_pool(
        self, pool: Any, name: str | None = None, *, critical: bool = True, owned: bool = True
    ) -> None:
        """Add an existing pool.

        Args:
            pool: A pool of this package, a ``psycopg_pool.ConnectionPool``, a
                SQLAlchemy engine, or a ``pymongo.MongoClient`` with `PoolEvents`
                (``pooling.adapters.mongo``).
            name: ``None`` means the pool's own name.
            critical: Whether the application counts as down without this pool.
            owned: Whether the manager closes it together with the others.

        Raises:
            ValueError: The name is taken by another pool, none was given and the
                pool has none, or a ``MongoClient`` is without `PoolEvents`.
            TypeError: It is not a supported pool.
            PoolError: The manager was shut down.
        """
        member = member_of(pool, critical=critical, owned=owned, recipe=(pool, critical, owned))
        name = name or member.name
        if not name:
            raise ValueError(f"name must be given: this {member.kind} has none")
        self._add(name, member)

    def _add(self, name: str, member: Member) -> Member:
        if not isinstance(name, str) or not name:
            raise TypeError(f"name must be a non-empty string, not {shown(name)}")
        if "://" in name and masked(name) != name:
            raise ValueError("name must not be an address with a password, because it appears in every message")
        if self._closing:
            raise PoolError(f"cannot add pool {shown(name)}: the manager was shut down")
        found = self._members.setdefault(name, member)
        if found is not member and found.recipe != member.recipe:
            raise ValueError(f"name {shown(name)} is already used by another pool, or by one with other settings")
        return found

    def get_pool(self, name: str) -> Any:
        """Return the pool with that name.

        Raises:
            KeyError: There is none; the message lists the existing names.
        """
        return self._member(name).pool

    def _member(self, name: str) -> Member:
        try:
            return self._members[name]
        except KeyError:
            known = ", ".join(map(shown, self._members)) or "none"
            raise KeyError(f"no pool {shown(name)}; existing pools: {known}") from None

    def lease(self, name: str, timeout: float | None = None) -> AbstractContextManager[Any]:
        """Acquire a resource from any of the pools, as a context manager.

        Args:
            name: The pool.
            timeout: Seconds to wait; ``None`` means the pool's own timeout.

        Raises:
            KeyError: There is no such pool.
            ValueError: A ``timeout`` was given for a SQLAlchemy engine or a
                ``MongoClient``, which use their own.
            PoolError: As from `Pool.acquire`; other libraries' pools raise
                their own errors.
        """
        return self._member(name).lease(timeout)

    def close_pool(self, name: str, timeout: float | None = None) -> None:
        """Close and remove a pool; its name can be used again.

        Args:
            name: The pool.
            timeout: Seconds to wait for leases in use; ``None`` means the
                manager's ``shutdown_timeout``.

        Raises:
            KeyError: There is no such pool.
        """
        member = self._member(name)
        self._members.pop(name, None)
        if member.owned:
            member.close(self._shutdown_timeout if timeout is None else timeout)

    def close_all(self, timeout: float | None = None) -> None:
        """Close and remove all pools; their names can be used again.

        They are closed in reverse order, within one deadline. Pools that are
        not ``owned`` stay.

        Args:
            timeout: Seconds for all together; ``None`` means ``shutdown_timeout``.
        """
        for name in self._close_owned(timeout):
            self._members.pop(name, None)

    def _close_owned(self, timeout: float | None) -> list[str]:
        """Close the pools that the manager owns; return their names."""
        limit = self._shutdown_timeout if timeout is None else seconds(timeout)
        deadline = time.monotonic() + limit
        names = [name for name in reversed(list(self._members)) if self._members[name].owned]
        for name in names:
            try:
                self._members[name].close(max(0.0, deadline - time.monotonic()))
            except Exception:
                logger.exception("closing pool %r failed", name, extra=fields("closing_failed", name))
        return names

    def __getitem__(self, name: str) -> Any:
        return self.get_pool(name)

    def __contains__(self, name: object) -> bool:
        return name in self._members

    def __iter__(self) -> Iterator[str]:
        return iter(list(self._members))

    def __len__(self) -> int:
        return len(self._members)

    # -- life ---------------------------------------------------------------------------

    def startup(self, timeout: float | None = None, *, strict: bool = False) -> Startup:
        """Warm up all pools in parallel, and report which are ready.

        A pool that is not ready keeps trying, and works as soon as its server does.

        Args:
            timeout: Seconds for all together; ``None`` means ``startup_timeout``.
            strict: Raise if a pool is not ready, instead of logging a warning.

        Raises:
            PoolError: ``strict``, and at least one pool is not ready; the first
                error is the cause.
        """
        limit = self._startup_timeout if timeout is None else seconds(timeout)
        jobs = {name: _opening(member, limit) for name, member in self._members.items()}
        report = Startup({
            name: Readiness(not isinstance(result, BaseException), took,
                            result if isinstance(result, BaseException) else None)
            for name, (result, took) in in_parallel(jobs, limit + GRACE).items()
        })  # fmt: skip
        if not report:
            errors = [one.error for one in report.values() if one.error is not None]
            if strict:
                raise PoolError(f"not all pools are ready: {report}") from errors[0]
            logger.warning("not all pools are ready: %s", report, extra=fields("not_ready", error=str(report)))
        return report

    def shutdown(self, timeout: float | None = None) -> None:
        """Shut down: accept no new pool, then close the pools one after the other.

        They are closed in reverse order, because a pool may depend on earlier
        ones. Each lends until it is closed, so that work in progress can finish.
        Leases that are still in use at the deadline are interrupted. The pools
        can still be inspected. Idempotent.

        Args:
            timeout: Seconds for all together; ``None`` means ``shutdown_timeout``.
        """
        self._closing = True
        self._close_owned(timeout)

    @property
    def closing(self) -> bool:
        """Whether `shutdown` has begun."""
        return self._closing

    def __enter__(self) -> PoolManager:
        self.startup()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.shutdown()

    # -- inspection ----------------------------------------------------------------------

    def health_check(self, timeout: float = 5.0) -> Health:
        """Make a round trip with a resource of every pool, all in parallel.

        It never waits behind borrowers: a pool whose resources are all in use
        is degraded, at once ("exhausted: 20 of 20 in use, 3 waiting, the oldest
        for 2.1 s"), unless its server is down as well.

        Args:
            timeout: Seconds; a pool that does not answer in time is down.
        """
        timeout = seconds(timeout)
        jobs = {name: _probing(member, timeout) for name, member in self._members.items()}
        answers = in_parallel(jobs, timeout + GRACE)
        return Health({
            name: judge(self._members[name], *answer) for name, answer in answers.items() if name in self._members
        })  # fmt: skip

    def metrics(self) -> dict[str, dict[str, Any]]:
        """Return the metrics of each pool by name, see `PoolSnapshot.to_dict`."""
        return {name: member.metrics() for name, member in list(self._members.items())}

    def get_performance_summary(self) -> dict[str, Any]:
        """Return a status and the metrics of every pool, without contacting any server.

        ``"pools"`` has the metrics by pool name. They are also at the top level,
        beside ``"status"``, where ``db_pool`` has the second name
        ``database_pool``.
        """
        figures = self.metrics()
        beside = {**figures, **{_ALIASES[name]: figures[name] for name in figures if name in _ALIASES}}
        return {
            **beside,
            "status": self._status(),
            "timestamp": time.time(),
            "uptime_seconds": time.monotonic() - self._since,
            "pools": figures,
        }

    def _status(self) -> str:
        return overall((status_of(member), member.critical) for member in list(self._members.values()))

    def print_summary(self, file: IO[str] | None = None) -> None:
        """Print a table of all pools, to standard output by default."""
        stream = file or sys.stdout
        print(table(self._members, self.metrics(), Paint(stream)), file=stream)

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        no_copy(self, "threads share one, forked processes inherit it, and other processes make their own")

    def __repr__(self) -> str:
        names = printable(", ".join(self._members)) or "no pools"
        return f"<PoolManager: {names}{', shut down' if self._closing else ''}>"


def _opening(member: Member, timeout: float) -> Callable[[], None]:
    return lambda: member.open(timeout)


def _probing(member: Member, timeout: float) -> Callable[[], str | None]:
    def probe() -> str | None:
        if member.closed:
            raise PoolClosed("closed")
        return member.probe(timeout)

    return probe


def _signals(wanted: bool | Iterable[signal.Signals]) -> tuple[signal.Signals, ...]:
    if isinstance(wanted, bool):
        return (signal.SIGTERM, signal.SIGINT) if wanted else ()
    try:
        return tuple(signal.Signals(number) for number in wanted)
    except (TypeError, ValueError):
        raise TypeError(f"signals must be True, False or signal.Signals members, not {shown(wanted)}") from None


@contextmanager
def application_lifespan(
    database: str | None = None,
    *,
    manager: PoolManager | None = None,
    pools: Mapping[str, object] | None = None,
    prefix: str = "",
    environ: Mapping[str, str] | None = None,
    startup_timeout: float = 10.0,
    shutdown_timeout: float = 10.0,
    strict: bool = False,
    signals: bool | Iterable[signal.Signals] = False,
) -> Iterator[PoolManager]:
    """Warm up an application's pools, yield their manager, and close them at the end.

    ::

        with application_lifespan("app.db") as manager:
            manager["http_pool"].get("https://api.example.com/")
            manager["db_pool"].execute_query("SELECT 1")

    Args:
        database: The file or URL of ``db_pool``.
        manager: An existing manager, used instead of the environment and
            ``database`` (see `pooling.config.from_env`).
        pools: Further pools, as for `PoolManager.from_mapping`.
        prefix, environ: As for `pooling.config.from_env`.
        startup_timeout, shutdown_timeout: Seconds for all pools together.
        strict: Raise if a pool is not ready in time.
        signals: Signals that end the block; ``True`` means SIGTERM and SIGINT.
            A handler installed before is called; where the default would end
            the process, ``SystemExit`` is raised. Works only in the main
            thread, and not under gunicorn and uWSGI, which handle signals
            themselves.

    Raises:
        PoolError: ``strict``, and a pool is not ready.
        ValueError, TypeError, ImportError: A pool's configuration is invalid,
            or its driver is missing.
    """
    if manager is None:
        manager = PoolManager.from_env(prefix, environ, database=database)
    elif database is not None:
        raise TypeError("application_lifespan() takes either a manager or a database, not both")
    if pools is not None:
        manager.configure(pools)
    numbers = _signals(signals)
    watch = SignalWatch(numbers)
    try:
        if numbers:
            watch.install()
        manager.startup(startup_timeout, strict=strict)
        yield manager
    finally:
        try:
            manager.shutdown(shutdown_timeout)
        finally:
            watch.restore()

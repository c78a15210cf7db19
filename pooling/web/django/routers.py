"""Reads on replicas, for Django: a router, and a middleware that lets each user see what they have written.

::

    DATABASES = {
        "default": {
            "ENGINE": "pooling.web.django.postgresql", "HOST": "db1,db2,db3", ...,
            "OPTIONS": {"pool": {"max_size": 8, "cluster": {"max_lag": 5}}},
        },
        "replica": {
            "ENGINE": "pooling.web.django.postgresql", "NAME": "orders",
            "OPTIONS": {"pool": {"replicas_of": "default"}}, "TEST": {"MIRROR": "default"},
        },
    }
    DATABASE_ROUTERS = ["pooling.web.django.routers.PrimaryReplicaRouter"]
    MIDDLEWARE = ["pooling.web.django.routers.sticky_middleware", ...]     # first
    POOLING_REPLICAS = {"primary": "default", "replicas": ["replica"], "sticky": 5.0}     # these are the defaults

Reads go to the primary in ``transaction.atomic``, and for ``sticky`` seconds after a write: of this user, whom the
middleware knows by a cookie, or, without it, of this thread. The aliases may be of any engine, such as MySQL's.
"""

from __future__ import annotations

import inspect
import math
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.core.signals import setting_changed
from django.db import connections
from django.utils.decorators import sync_and_async_middleware

from ..._masking import shown

__all__ = ["COOKIE", "PrimaryReplicaRouter", "mark_written", "on_primary", "sticky_middleware"]

COOKIE = "pooling_wrote"
"""The name of the cookie: its value is the time of the user's last write, in seconds since the epoch."""

_NEVER = float("-inf")


class Options(NamedTuple):
    """``POOLING_REPLICAS``."""

    primary: str
    replicas: tuple[str, ...]
    sticky: float

    @classmethod
    def read(cls) -> Options:
        """Return what the settings say.

        Raises:
            ImproperlyConfigured: They are invalid.
        """
        given = getattr(settings, "POOLING_REPLICAS", {})
        if not isinstance(given, Mapping):
            raise ImproperlyConfigured(f"POOLING_REPLICAS must be a mapping, not {shown(given)}")
        unknown = sorted(set(given) - {"primary", "replicas", "sticky"}, key=str)
        if unknown:
            names = "primary, replicas and sticky"
            raise ImproperlyConfigured(f"POOLING_REPLICAS has {names}, but not {shown(unknown[0])}")
        primary, replicas = given.get("primary", "default"), given.get("replicas", ["replica"])
        if isinstance(replicas, str) or not all(isinstance(one, str) for one in replicas) or not replicas:
            raise ImproperlyConfigured(f"POOLING_REPLICAS['replicas'] must be a list of aliases, not {shown(replicas)}")
        for alias in (primary, *replicas):
            if alias not in settings.DATABASES:
                raise ImproperlyConfigured(f"POOLING_REPLICAS: {shown(alias)} is not in DATABASES")
        if primary in replicas:
            raise ImproperlyConfigured(f"POOLING_REPLICAS: {shown(primary)} cannot be its own replica")
        sticky = given.get("sticky", 5.0)
        if isinstance(sticky, bool) or not isinstance(sticky, (int, float)) or not 0 <= sticky < math.inf:
            raise ImproperlyConfigured(f"POOLING_REPLICAS['sticky'] must be seconds from 0, not {shown(sticky)}")
        return cls(primary, tuple(replicas), float(sticky))


class State:
    """What one user, or one thread, has written, and whether it asked for the primary."""

    def __init__(self, wrote_at: float = _NEVER) -> None:
        self.wrote_at = wrote_at  # in seconds since the epoch: the clocks of all web servers
        self.wrote = False  # in this request
        self.pinned = 0

    def is_sticky(self, seconds: float) -> bool:
        """Whether reads go to the primary."""
        return self.pinned > 0 or -1.0 <= time.time() - self.wrote_at < seconds


class _OfThread(threading.local):
    def __init__(self) -> None:
        self.state = State()


_of_request: ContextVar[State | None] = ContextVar("pooling_replicas", default=None)
_of_thread = _OfThread()
_options: list[Options] = []


def _current() -> State:
    return _of_request.get() or _of_thread.state


def _read_options() -> Options:
    if not _options:
        _options.append(Options.read())
    return _options[0]


def mark_written() -> None:
    """Take that this user, or thread, has written: after raw SQL, which no router sees."""
    state = _current()
    state.wrote_at, state.wrote = time.time(), True


@contextmanager
def on_primary() -> Iterator[None]:
    """Let all reads of the block go to the primary."""
    state = _current()
    state.pinned += 1
    try:
        yield
    finally:
        state.pinned -= 1


class PrimaryReplicaRouter:
    """Sends reads to the replicas, except where the user or thread may not see its own writes there."""

    def db_for_read(self, model: Any, **hints: Any) -> str:
        """Return the alias for a read."""
        options = _read_options()
        if connections[options.primary].in_atomic_block or _current().is_sticky(options.sticky):
            return options.primary
        return options.replicas[0] if len(options.replicas) == 1 else random.choice(options.replicas)

    def db_for_write(self, model: Any, **hints: Any) -> str:
        """Return the primary's alias, and remember the write."""
        mark_written()
        return _read_options().primary

    def allow_relation(self, first: Any, second: Any, **hints: Any) -> bool | None:
        """Allow relations between objects of the primary and its replicas."""
        options = _read_options()
        ours = {options.primary, *options.replicas}
        return True if {first._state.db, second._state.db} <= ours else None

    def allow_migrate(self, db: str, app_label: str, **hints: Any) -> bool | None:
        """Refuse migrations on replicas."""
        return False if db in _read_options().replicas else None


@sync_and_async_middleware  # type: ignore[untyped-decorator]
def sticky_middleware(get_response: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Let a user's reads go to the primary for some seconds after a write, also in the requests that follow.

    Raises:
        ImproperlyConfigured: ``POOLING_REPLICAS`` is invalid.
    """
    _read_options()

    if inspect.iscoroutinefunction(get_response):

        async def sticky_async(request: Any) -> Any:
            token = _of_request.set(_begin(request))
            try:
                return _end(request, await get_response(request))
            finally:
                _of_request.reset(token)

        return sticky_async

    def sticky(request: Any) -> Any:
        token = _of_request.set(_begin(request))
        try:
            return _end(request, get_response(request))
        finally:
            _of_request.reset(token)

    return sticky


def _begin(request: Any) -> State:
    try:
        return State(float(request.COOKIES.get(COOKIE, "")))
    except ValueError:  # there is none, or somebody has changed it
        return State()


def _end(request: Any, response: Any) -> Any:
    state, seconds = _current(), _read_options().sticky
    if state.wrote and seconds:
        response.set_cookie(
            COOKIE, f"{state.wrote_at:.3f}", max_age=math.ceil(seconds), httponly=True, samesite="Lax",
            secure=request.is_secure(),
        )  # fmt: skip
    return response


def _forget(*, setting: str, **kwargs: object) -> None:
    """Read the settings again when a test overrides them."""
    if setting in ("POOLING_REPLICAS", "DATABASES"):
        _options.clear()


setting_changed.connect(_forget)

"""urllib3's connection pool for one attempt of a request, on a connection that is already acquired.

urllib3 does HTTP over a connection: tunnels, proxies, time limits, its kinds
of errors. It makes one attempt at a time, on the connection that our own pool
has lent. Where it would use its queue, to get and put a connection, it uses
the `Hold` of the request.
"""

from __future__ import annotations

import functools
import weakref
from typing import TYPE_CHECKING, Any, Protocol

from urllib3.connectionpool import HTTPConnectionPool
from urllib3.util import Retry

from .wire import Wire, with_deadline

if TYPE_CHECKING:
    _ConnectionPool = HTTPConnectionPool
else:
    _ConnectionPool = object

__all__ = ["Template", "per_request"]

_ONCE = Retry(False)


class Held(Protocol):
    """What a template uses of a `Hold`."""

    response: Any

    @property
    def wire(self) -> Wire:
        """The connection."""


class Template(_ConnectionPool):
    """What is added to urllib3's pool class; each request uses a copy with its own hold."""

    hold: Held

    def for_hold(self, hold: Held) -> Template:
        """Return a copy that uses the connection of this hold."""
        own = self.__class__.__new__(self.__class__)
        own.__dict__.update(self.__dict__)
        own.hold = hold
        return own

    def attempt(self, method: str, url: str, options: dict[str, Any]) -> Any:
        """Send a request once; return the answer, with its body unread, or raise as urllib3 does."""
        response = self.urlopen(
            method, url, retries=_ONCE, redirect=False, assert_same_host=False,
            preload_content=False, release_conn=False, **options,
        )  # fmt: skip
        self.hold.response = weakref.ref(response)
        return response

    def _get_conn(self, timeout: float | None = None) -> Any:
        return self.hold.wire

    def _put_conn(self, conn: Any) -> None:
        if conn is not None:  # else the attempt failed, and the caller decides
            conn.release()

    def _make_request(self, conn: Any, *args: Any, **kwargs: Any) -> Any:
        if kwargs.get("response_conn") is not None:
            kwargs["response_conn"] = self.hold  # so that the end of the body ends the hold
        return super()._make_request(conn, *args, **kwargs)


@functools.cache
def per_request(pool_class: type[Any]) -> type[Any]:
    """Return a pool class of urllib3 with `Template` added."""
    added = {"ConnectionCls": with_deadline(pool_class.ConnectionCls)}
    return type(pool_class.__name__, (Template, pool_class), added)

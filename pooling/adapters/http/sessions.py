"""The sessions that are lent: light, private, and over with their lease.

A session costs microseconds; what is dear are sockets, and those it shares
with all others. So each borrower has a new one, and nothing that one sets
can reach the next (P5): not even by a reference that was kept.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import os
import sys
import threading
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from http.cookiejar import Cookie
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import requests
import requests.adapters
from requests import exceptions
from requests.auth import HTTPBasicAuth
from requests.cookies import RequestsCookieJar
from requests.structures import CaseInsensitiveDict
from requests.utils import get_auth_from_url

from ...core.lease import Lease
from ...core.runtime import fork
from ...core.runtime.fork import SAME_PROCESS
from ...errors import LeaseError
from .arguments import shown
from .bodies import cut_off, is_unread
from .interfaces import Client
from .limits import Limits
from .transport import SameConnection, Transport, translate_error
from .unpooled import Unpooled

if TYPE_CHECKING:
    _Session = requests.Session
else:
    _Session = object

__all__ = ["SessionLease", "Sessions", "SharedJar"]


class Pooled(_Session):
    """What is added to the sessions' class: time limits over redirects, and whose word counts."""

    _pooling: Transport
    _plain: bool  # its class leaves to requests what comes from the environment
    _plain_auth: bool  # and what becomes of credentials in a redirect

    def send(self, request: requests.PreparedRequest, **kwargs: Any) -> requests.Response:
        given = kwargs.get("timeout")
        limits = kwargs["timeout"] = self._pooling.limits(given)
        if limits is given:  # a redirect of it
            return self._send(request, limits, kwargs)
        calls, thread = self._pooling._pool._calls, threading.get_ident()  # late: gevent replaces it
        limits.outer = calls.get(thread)
        try:
            calls[thread] = limits
            return self._send(request, limits, kwargs)
        finally:
            if limits.outer is None:
                calls.pop(thread, None)
            else:
                calls[thread] = limits.outer
            if limits.login is not None:
                limits.login.end_login()

    def _send(self, request: requests.PreparedRequest, limits: Limits, kwargs: dict[str, Any]) -> requests.Response:
        first = len(limits.answers)
        try:
            return super().send(request, **kwargs)
        except BaseException as error:
            for answer, streamed in limits.answers[first:]:
                self._pooling.let_go(answer(), streamed, error)
            if not limits.over or not isinstance(error, exceptions.ConnectionError):
                raise
            told_of = translate_error(error, limits)  # amid the body
            if told_of is error:
                raise
            raise told_of from error

    def prepare_request(self, request: requests.Request) -> requests.PreparedRequest:
        # requests lets .netrc beat a header, and credentials in the URL (psf/requests#3929).
        if self.trust_env and not request.auth and not self.auth and self._has_credentials(request):
            request = copy.copy(request)
            request.auth = _by_url
        return super().prepare_request(request)

    def _has_credentials(self, request: requests.Request) -> bool:
        """Whether the program has said who it is in a header or in the URL."""
        own = request.headers or {}
        return (
            "@" in str(request.url)
            or any(name.lower() in ("authorization", b"authorization") for name in own)
            or "Authorization" in self.headers
        )

    def rebuild_auth(self, prepared_request: requests.PreparedRequest, response: requests.Response) -> None:
        headers, url = prepared_request.headers, str(prepared_request.url)
        if not self._plain_auth:
            super().rebuild_auth(prepared_request, response)  # type: ignore[no-untyped-call]
        elif "Authorization" in headers and not self.should_strip_auth(response.request.url, url):  # type: ignore[no-untyped-call]
            return  # requests would ask .netrc, and let it win
        elif "@" in urlsplit(url).netloc:
            headers.pop("Authorization", None)  # .netrc knows hosts; before requests 2.32.4 this would be another
        else:
            super().rebuild_auth(prepared_request, response)  # type: ignore[no-untyped-call]

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickle as a session of its own class, which has sockets of its own where it is unpickled."""
        state: dict[str, Any] = super().__getstate__()  # type: ignore[misc]
        plain = requests.adapters.HTTPAdapter(max_retries=self._pooling.max_retries)
        pairs = state["adapters"].items()
        state["adapters"] = OrderedDict((prefix, plain if _is_ours(one) else one) for prefix, one in pairs)
        return _unpickled, (type(self).__mro__[2],), state

    def __copy__(self) -> requests.Session:
        other = self.__class__.__new__(self.__class__)
        other.__dict__.update(self.__dict__)
        return other

    def __deepcopy__(self, memo: dict[int, Any]) -> requests.Session:
        """Copy what is the session's, not the pool that it is of."""
        for shared in (self._pooling, self.verify, *filter(_is_ours, self.adapters.values())):
            memo[id(shared)] = shared
        other = self.__class__.__new__(self.__class__)
        other.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return other

    def merge_environment_settings(self, url: Any, proxies: Any, stream: Any, verify: Any, cert: Any) -> Any:
        # requests lets the environment beat a session's own verify, even verify=False
        # (psf/requests#3829), and its proxies (psf/requests#2018). What the program
        # says beats the environment, here.
        if verify is None and self.verify is not True:
            verify = self.verify
        if self.proxies:
            proxies = {**self.proxies, **(proxies or {})}
        if not self._plain or not self.trust_env or _proxies_in_environment():
            return super().merge_environment_settings(url, proxies, stream, verify, cert)
        # requests goes through all variables twice, a fifth of its work for a request.
        if verify is True or verify is None:
            verify = os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("CURL_CA_BUNDLE") or verify
        return {
            "proxies": proxies or {},
            "stream": self.stream if stream is None else stream,
            "verify": self.verify if verify is None else verify,
            "cert": self.cert if cert is None else cert,
        }


_ELSEWHERE = sys.platform in ("darwin", "win32")  # where the system has proxies, beside the environment's
_PROXIES = [name + "_proxy" for name in ("http", "https", "all")]
_PROXIES += [name.upper() for name in _PROXIES]


def _proxies_in_environment() -> bool:
    return _ELSEWHERE or any(map(os.environ.get, _PROXIES))


def _is_ours(adapter: Any) -> bool:
    return isinstance(adapter, (Transport, Unpooled, View))


def _unpickled(kind: type[requests.Session]) -> requests.Session:
    return kind.__new__(kind)


def _by_url(request: requests.PreparedRequest) -> requests.PreparedRequest:
    """Use the credentials in the URL, if there are any: what requests does without ``auth``."""
    user, password = get_auth_from_url(str(request.url))
    return HTTPBasicAuth(user, password)(request) if user or password else request


@functools.cache
def _pooled(kind: type[requests.Session]) -> type[requests.Session]:
    changes = _changes(kind)
    own = {
        "__module__": kind.__module__,
        "_plain": "merge_environment_settings" not in changes,
        "_plain_auth": "rebuild_auth" not in changes,
    }
    return type(kind.__name__, (Pooled, kind), own)


def _changes(kind: type[requests.Session]) -> set[str]:
    """What a class of sessions does in its own way."""
    return {name for one in kind.__mro__[: kind.__mro__.index(requests.Session)] for name in vars(one)}


class Sessions:
    """Makes sessions with a pool's defaults."""

    def __init__(
        self, factory: Callable[[], requests.Session], defaults: Mapping[str, Any],
        headers: Mapping[str, str], cookies: str,
    ) -> None:  # fmt: skip
        is_class = isinstance(factory, type) and issubclass(factory, requests.Session)
        self._make = _pooled(factory) if is_class else functools.partial(_made_by, factory)
        if factory is requests.Session:
            self._make = functools.partial(_copy, self._make())
        self._defaults, self._headers = dict(defaults), dict(headers)
        self._jar = SharedJar() if cookies == "shared" else None

    def make(self, transport: Transport, mounted: requests.adapters.BaseAdapter) -> requests.Session:
        """Return a new session."""
        session = self._make()
        if session.adapters:
            for prefix in ("https://", "http://"):
                session.mount(prefix, mounted)  # the others are the factory's
        else:
            session.adapters["https://"] = session.adapters["http://"] = mounted
        for name, value in self._defaults.items():
            setattr(session, name, dict(value) if isinstance(value, dict) else value)
        if self._headers:
            session.headers.update(self._headers)
        if self._jar is not None:
            session.cookies = self._jar
        session._pooling = transport  # type: ignore[attr-defined]
        return session

    def renew(self) -> None:
        """In a child: another thread of the parent may have held the jar's lock."""
        if self._jar is not None:
            self._jar = self._jar.renewed()


def _made_by(factory: Callable[[], requests.Session]) -> requests.Session:
    """Return what a function makes, as one of ours: else a total would not hold over redirects."""
    session = factory()
    if not isinstance(session, requests.Session):
        raise TypeError(f"session_factory must make a requests.Session, and made {shown(session)}")
    if not isinstance(session, Pooled):
        session.__class__ = _pooled(type(session))  # type: ignore[arg-type]
    return session


def _copy(pattern: requests.Session) -> requests.Session:
    """Return what ``type(pattern)()`` would, without the transport adapters that nobody wants."""
    session = pattern.__class__.__new__(pattern.__class__)
    session.__dict__.update(
        pattern.__dict__, headers=CaseInsensitiveDict(pattern.headers), hooks={name: [] for name in pattern.hooks},
        params={}, proxies={}, cookies=RequestsCookieJar(), adapters=OrderedDict(),
    )  # fmt: skip
    return session


class SharedJar(RequestsCookieJar):
    """A cookie jar for all sessions of a pool, and so for all threads."""

    def __iter__(self) -> Any:
        with self._cookies_lock:  # type: ignore[attr-defined]
            return iter(list(super().__iter__()))

    def renewed(self) -> SharedJar:
        """Return a copy, without asking for the lock."""
        copy = SharedJar(self._policy)  # type: ignore[attr-defined]
        copy._cookies = {  # type: ignore[attr-defined]
            domain: {path: dict(cookies) for path, cookies in paths.items()}
            for domain, paths in dict[str, dict[str, dict[str, Cookie]]](self._cookies).items()  # type: ignore[attr-defined]
        }
        return copy


class View(requests.adapters.BaseAdapter):
    """The transport as one lent session sees it, for as long as it is lent.

    Assumes: to append to a deque, and to pop from it, is atomic.
    """

    def __init__(self, pool: Client, below: requests.adapters.BaseAdapter) -> None:
        super().__init__()
        self._pool, self._below = pool, below
        self._process: object = pool.engine.state
        self._ended = False
        self._answers: deque[weakref.ref[requests.Response]] = deque()

    def send(self, request: requests.PreparedRequest, *args: Any, **kwargs: Any) -> requests.Response:
        self.check()
        response = self._below.send(request, *args, **kwargs)
        if not isinstance(getattr(response, "connection", None), SameConnection):
            response.connection = self  # type: ignore[assignment]  # hooks ask again over it, as for a digest
        if len(self._answers) >= 32:
            self._forget_read()
        self._answers.append(weakref.ref(response))
        if self._ended:  # by another thread, meanwhile
            self.close()
        return response

    def _forget_read(self) -> None:
        """One by one: another thread may add to them."""
        with contextlib.suppress(IndexError):  # or do the same
            for _ in range(len(self._answers)):
                one = self._answers.popleft()
                if is_unread(one()):
                    self._answers.append(one)

    def check(self) -> None:
        """Raise `LeaseError` if the lease has ended, or was made by another process."""
        if self._ended:
            raise LeaseError(f"pool {self._pool.name!r}: this session was released before")
        if not SAME_PROCESS[0]:
            fork.ensure_process()
        if self._process is not self._pool.engine.state:
            raise LeaseError(
                f"pool {self._pool.name!r}: this session belongs to the process that forked "
                "this one; acquire a new one here"
            )

    def close(self) -> None:
        """Close what this session has not read to its end; the sockets are the pool's."""
        while self._answers:
            try:
                response = self._answers.popleft()()
            except IndexError:
                return  # another thread does the same
            if is_unread(response):
                text = f"pool {self._pool.name!r}: this response was released before its body was read to the end"
                cut_off(response, LeaseError(text))  # type: ignore[arg-type]

    def end(self) -> None:
        """Be of no use any more."""
        self._ended = True
        self.close()


class SessionLease(Lease[requests.Session]):
    """The right to use a session of one's own.

    It never waits and never runs out: what is limited are connections, and
    those are taken by each request. At its end the bodies that were not read
    are closed, and the session refuses to be used.
    """

    __slots__ = ("_session", "_view")

    def __init__(self, pool: Client, session: requests.Session, view: View) -> None:
        self._pool, self._token = pool, None
        self._session: requests.Session | None = session
        self._view = view

    @property
    def resource(self) -> requests.Session:
        """The session.

        Raises:
            LeaseError: The lease has ended, or was inherited over a fork.
        """
        if self._session is None:
            raise LeaseError(f"pool {self._pool.name!r}: this lease was released before")
        self._view.check()
        return self._session

    def __enter__(self) -> requests.Session:
        return self.resource

    def __exit__(self, *error: object) -> None:
        session, self._session = self._session, None
        if session is not None:
            for prefix, adapter in list(session.adapters.items()):
                if adapter is not self._view:  # another's: if it has no other user its sockets are closed by this
                    session.adapters.pop(prefix, None)
            self._view.end()

    def release(self) -> None:
        """Give the session back.

        Raises:
            LeaseError: It was released before, or inherited over a fork.
        """
        self.resource  # noqa: B018
        self.__exit__()

    discard = release

    def detach(self) -> requests.Session:
        """Keep the session for good, on the pool's sockets; see `HTTPPool.session`.

        Raises:
            LeaseError: It was released before, or inherited over a fork.
        """
        session, self._session = self.resource, None
        for prefix, adapter in session.adapters.items():
            if adapter is self._view:
                session.adapters[prefix] = self._view._below
        return session

    def __repr__(self) -> str:
        what = "ended" if self._session is None else repr(self._session)
        return f"<{type(self).__name__} of pool {self._pool.name!r}: {what}>"

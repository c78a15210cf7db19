"""The sessions that a pool lends: a new one for each borrower, unusable after its lease.

A session takes microseconds to make. The expensive part are sockets, which
all sessions share. So nothing that one borrower sets reaches the next (P5),
not even through a reference that was kept.
"""

from __future__ import annotations

import contextlib
import copy
import functools
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
from requests.utils import get_auth_from_url

from ...core.lease import Lease
from ...core.runtime import fork
from ...core.runtime.fork import SAME_PROCESS
from ...errors import LeaseError
from .arguments import shown
from .bodies import cut_off, is_unread
from .connections import Connections
from .environment import certificates, proxies_set
from .limits import Limits
from .preparing import no_netrc, prepare
from .sending import copy_of, send
from .transport import SameConnection, Transport, translate_error
from .unpooled import Unpooled

if TYPE_CHECKING:
    _Session = requests.Session
else:
    _Session = object

__all__ = ["Pooled", "SessionLease", "Sessions", "SharedJar"]


class Pooled(_Session):
    """What is added to a class of sessions: time limits over redirects, and the precedence of settings."""

    _pooling: Transport
    _plain: bool  # its class does not override `merge_environment_settings`
    _plain_auth: bool  # nor `rebuild_auth`
    _plain_preparing: bool  # nor `prepare_request`
    _plain_sending: bool  # nor `send`

    def send(self, request: requests.PreparedRequest, **kwargs: Any) -> requests.Response:
        given = kwargs.get("timeout")
        limits = kwargs["timeout"] = self._pooling.limits(given)
        if limits is given:  # this is a redirect of a request
            return self._send(request, limits, kwargs)
        calls = self._pooling.connections.calls
        try:
            calls.begin(limits)
            return self._send(request, limits, kwargs)
        finally:
            calls.end(limits)
            if limits.login is not None:
                limits.login.end_login()

    def _send(self, request: requests.PreparedRequest, limits: Limits, kwargs: dict[str, Any]) -> requests.Response:
        first = len(limits.answers)
        try:
            response = send(self, request, kwargs) if self._plain_sending else None
            return super().send(request, **kwargs) if response is None else response
        except BaseException as error:
            for answer, streamed in limits.answers[first:]:
                self._pooling.end_answer(answer(), streamed, error)
            if not limits.over or not isinstance(error, exceptions.ConnectionError):
                raise
            translated = translate_error(error, limits)  # while the body was read
            if translated is error:
                raise
            raise translated from error

    def prepare_request(self, request: requests.Request, url: str | None = None) -> requests.PreparedRequest:
        """Prepare a request; for another ``url``, if that is given."""
        ask_netrc = self.trust_env and not no_netrc()
        # In requests, .netrc overrides a header, and credentials in the URL (psf/requests#3929).
        if ask_netrc and not request.auth and not self.auth and self._has_credentials(request):
            request = copy.copy(request)
            request.auth = _auth_of_url
        prepared = prepare(self, request, url or request.url, ask_netrc) if self._plain_preparing else None
        if prepared is None and url is not None:
            request = copy.copy(request)
            request.url = url
        return prepared or super().prepare_request(request)

    def _has_credentials(self, request: requests.Request) -> bool:
        """Whether the program has given credentials in a header or in the URL."""
        own = request.headers
        return (
            "@" in str(request.url)
            or bool(own and any(name.lower() in ("authorization", b"authorization") for name in own))
            or "Authorization" in self.headers
        )

    def rebuild_auth(self, prepared_request: requests.PreparedRequest, response: requests.Response) -> None:
        headers, url = prepared_request.headers, str(prepared_request.url)
        if not self._plain_auth:
            super().rebuild_auth(prepared_request, response)  # type: ignore[no-untyped-call]
        elif "Authorization" in headers and not self.should_strip_auth(response.request.url, url):  # type: ignore[no-untyped-call]
            return  # requests would read .netrc, which would override it
        elif "@" in urlsplit(url).netloc:
            # Before requests 2.32.4, .netrc would be read for another host than this one.
            headers.pop("Authorization", None)
        else:
            super().rebuild_auth(prepared_request, response)  # type: ignore[no-untyped-call]

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickle as a session of its original class, which opens its own sockets."""
        state: dict[str, Any] = super().__getstate__()  # type: ignore[misc]
        plain = requests.adapters.HTTPAdapter(max_retries=self._pooling.max_retries)
        pairs = state["adapters"].items()
        state["adapters"] = OrderedDict((prefix, plain if _is_pooled(one) else one) for prefix, one in pairs)
        mro = type(self).__mro__
        return _new_session, (mro[mro.index(Pooled) + 1],), state

    def __copy__(self) -> requests.Session:
        other = self.__class__.__new__(self.__class__)
        other.__dict__.update(self.__dict__)
        return other

    def __deepcopy__(self, memo: dict[int, Any]) -> requests.Session:
        """Copy what belongs to the session, but not the pool's transport."""
        for shared in (self._pooling, self.verify, *filter(_is_pooled, self.adapters.values())):
            memo[id(shared)] = shared
        other = self.__class__.__new__(self.__class__)
        other.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return other

    def merge_environment_settings(self, url: Any, proxies: Any, stream: Any, verify: Any, cert: Any) -> Any:
        # In requests, the environment overrides a session's own verify, even verify=False
        # (psf/requests#3829), and its proxies (psf/requests#2018). Here the session's
        # settings override the environment.
        if verify is None and self.verify is not True:
            verify = self.verify
        if self.proxies:
            proxies = {**self.proxies, **(proxies or {})}
        if not self._plain or not self.trust_env or proxies_set():
            return super().merge_environment_settings(url, proxies, stream, verify, cert)
        # requests searches all variables twice, which is a fifth of its work for a request.
        if verify is True or verify is None:
            verify = certificates() or verify
        return {
            "proxies": proxies or {},
            "stream": self.stream if stream is None else stream,
            "verify": self.verify if verify is None else verify,
            "cert": self.cert if cert is None else cert,
        }


def _is_pooled(adapter: Any) -> bool:
    return isinstance(adapter, (Transport, Unpooled, View))


def _new_session(session_class: type[requests.Session]) -> requests.Session:
    return session_class.__new__(session_class)


def _auth_of_url(request: requests.PreparedRequest) -> requests.PreparedRequest:
    """Use the credentials in the URL, if there are any, as requests does without ``auth``."""
    user, password = get_auth_from_url(str(request.url))
    return HTTPBasicAuth(user, password)(request) if user or password else request


@functools.cache
def _pooled(session_class: type[requests.Session], added: Any) -> type[requests.Session]:
    """Return a class of sessions with `Pooled` added, or a subclass of that."""
    overridden = _overridden(session_class)
    own = {
        "__module__": session_class.__module__,
        "_plain": "merge_environment_settings" not in overridden,
        "_plain_auth": "rebuild_auth" not in overridden,
        "_plain_preparing": "prepare_request" not in overridden,
        "_plain_sending": "send" not in overridden,
    }
    return type(session_class.__name__, (added, session_class), own)


def _overridden(session_class: type[requests.Session]) -> set[str]:
    """Return what a class defines below ``requests.Session``."""
    classes = session_class.__mro__[: session_class.__mro__.index(requests.Session)]
    return {name for one in classes for name in vars(one)}


class Sessions:
    """Makes sessions with the defaults of a pool.

    Args:
        factory: A class of sessions, or a function that makes one.
        defaults: Attributes to set on each session.
        headers: Sent with every request, beside those of requests.
        cookies: ``"shared"`` for one jar in all sessions, else each has its own.
        added: What is added to the class: `Pooled` or a subclass of that.
    """

    def __init__(
        self, factory: Callable[[], requests.Session], defaults: Mapping[str, Any],
        headers: Mapping[str, str], cookies: str, added: Any = Pooled,
    ) -> None:  # fmt: skip
        is_class = isinstance(factory, type) and issubclass(factory, requests.Session)
        self._make = _pooled(factory, added) if is_class else functools.partial(_made_by, factory, added)
        self._defaults, self._headers = dict(defaults), dict(headers)
        if factory is requests.Session:
            pattern = self._make()
            pattern.headers.update(self._headers)
            vars(pattern).update(self._defaults)
            self._make, self._headers, self._defaults = functools.partial(_copy, pattern), {}, {}
        self._jar = SharedJar() if cookies == "shared" else None

    def make(self, transport: Transport, mounted: requests.adapters.BaseAdapter) -> requests.Session:
        """Return a new session.

        Args:
            transport: The pool's.
            mounted: What it mounts: `Transport.mounted`, or a `View` of that.
        """
        session = self._make()
        if session.adapters:
            for prefix in ("https://", "http://"):
                session.mount(prefix, mounted)  # others are kept, as the factory has mounted them
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
        """In a forked child: replace the jar, whose lock another thread may have held."""
        if self._jar is not None:
            self._jar = self._jar.renewed()


def _made_by(factory: Callable[[], requests.Session], added: Any) -> requests.Session:
    """Return the session of a factory, with `Pooled` added to its class."""
    session = factory()
    if not isinstance(session, requests.Session):
        raise TypeError(f"session_factory must make a requests.Session, not {shown(session)}")
    if not isinstance(session, Pooled):
        session.__class__ = _pooled(type(session), added)  # type: ignore[arg-type]
    return session


def _copy(pattern: requests.Session) -> requests.Session:
    """Return what ``type(pattern)()`` would, without transport adapters, which are replaced anyway."""
    session = pattern.__class__.__new__(pattern.__class__)
    session.__dict__.update(
        pattern.__dict__, headers=copy_of(pattern.headers), hooks={name: [] for name in pattern.hooks},
        params={}, proxies=dict(pattern.proxies), cookies=RequestsCookieJar(), adapters=OrderedDict(),
    )  # fmt: skip
    return session


class SharedJar(RequestsCookieJar):
    """A cookie jar that all sessions of a pool share, in any thread."""

    def __iter__(self) -> Any:
        with self._cookies_lock:  # type: ignore[attr-defined]
            return iter(list(super().__iter__()))

    def renewed(self) -> SharedJar:
        """Return a copy, made without the lock."""
        copy = SharedJar(self._policy)  # type: ignore[attr-defined]
        copy._cookies = {  # type: ignore[attr-defined]
            domain: {path: dict(cookies) for path, cookies in paths.items()}
            for domain, paths in dict[str, dict[str, dict[str, Cookie]]](self._cookies).items()  # type: ignore[attr-defined]
        }
        return copy


class View(requests.adapters.BaseAdapter):
    """The adapter that a lent session mounts; it works until the lease ends.

    Assumes: appending to a deque and popping from it are atomic.
    """

    def __init__(self, connections: Connections, below: requests.adapters.BaseAdapter) -> None:
        super().__init__()
        self._connections, self._below = connections, below
        self._hosts: object = connections.hosts  # replaced in a forked child
        self._ended = False
        self._answers: deque[weakref.ref[requests.Response]] = deque()

    def send(self, request: requests.PreparedRequest, *args: Any, **kwargs: Any) -> requests.Response:
        self.check()
        response = self._below.send(request, *args, **kwargs)
        if not isinstance(getattr(response, "connection", None), SameConnection):
            # Hooks may use it to repeat the request, as for digest authentication.
            response.connection = self  # type: ignore[assignment]
        if len(self._answers) >= 32:
            self._drop_read()
        self._answers.append(weakref.ref(response))
        if self._ended:  # by another thread in the meantime
            self.close()
        return response

    def _drop_read(self) -> None:
        """Drop the answers that were read, one by one: another thread may append meanwhile."""
        with contextlib.suppress(IndexError):  # another thread does the same
            for _ in range(len(self._answers)):
                one = self._answers.popleft()
                if is_unread(one()):
                    self._answers.append(one)

    def check(self) -> None:
        """Raise `LeaseError` if the lease has ended, or was made by another process."""
        if self._ended:
            raise LeaseError(f"pool {self._connections.name!r}: this session was released before")
        if not SAME_PROCESS[0]:
            fork.ensure_process()
        if self._hosts is not self._connections.hosts:
            raise LeaseError(
                f"pool {self._connections.name!r}: this session belongs to the process that forked "
                "this one; acquire a new one here"
            )

    def close(self) -> None:
        """Close the answers that were not read to their end; sockets belong to the pool."""
        while self._answers:
            try:
                response = self._answers.popleft()()
            except IndexError:
                return  # another thread does the same
            if is_unread(response):
                name = self._connections.name
                error = LeaseError(f"pool {name!r}: this response was released before its body was read to the end")
                cut_off(response, error)  # type: ignore[arg-type]

    def end(self) -> None:
        """End the lease: close unread answers, and refuse further requests."""
        self._ended = True
        self.close()


class SessionLease(Lease[requests.Session]):
    """The right to use a session until it is released.

    Acquiring one never waits: only connections are limited, and each request
    takes its own. The release closes the bodies that were not read. The
    session cannot be used any more then.
    """

    __slots__ = ("_session", "_view")

    def __init__(self, connections: Connections, session: requests.Session, view: View) -> None:
        self._pool, self._token = connections.slots, None
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

    @property
    def active(self) -> bool:
        """Whether the lease belongs to this process and has not ended."""
        try:
            return self.resource is not None
        except LeaseError:
            return False

    def __enter__(self) -> requests.Session:
        return self.resource

    def __exit__(self, *error: object) -> None:
        session, self._session = self._session, None
        if session is not None:
            for prefix, adapter in list(session.adapters.items()):
                if adapter is not self._view:  # mounted by the borrower; its sockets are closed if it has no other user
                    session.adapters.pop(prefix, None)
            self._view.end()

    def release(self) -> None:
        """Release the session.

        Raises:
            LeaseError: It was released before, or inherited over a fork.
        """
        self.resource  # noqa: B018
        self.__exit__()

    discard = release

    def detach(self) -> requests.Session:
        """End the lease but keep the session, on the pool's sockets; see `HTTPPool.session`.

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

"""HTTPPool against servers that send anything: each response is for its request, each identity for its borrower."""

from __future__ import annotations

import base64
import contextlib
import gc
import socket
import ssl
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from urllib3.util import Retry

from pooling import HTTPPool, LeaseError, PoolSettings, config
from pooling.adapters.http.client import pool_arguments
from pooling.adapters.http.wire import Answer
from tests.conftest import Authority
from tests.integration.test_http import in_thread, wait_until
from tests.raw import Asked, RawServer, ok
from tests.web import ForwardProxy, WebServer

ONE = PoolSettings(max_size=1, acquire_timeout=30)
HINTS = b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\n\r\n"


# -- one response for each request --------------------------------------------------------------


@pytest.mark.parametrize(
    "interim",
    [
        HINTS,
        HINTS * 3,
        b"HTTP/1.1 102 Processing\r\n\r\n",
        b"HTTP/1.1 199 Whatever\r\n\r\n" + HINTS,
        b"HTTP/1.1 100 Continue\r\n\r\n" + HINTS + b"HTTP/1.1 100 Continue\r\n\r\n",
    ],
)
@pytest.mark.parametrize("pieces", [1, 2])
@pytest.mark.parametrize("pooled", [True, False])
def test_interim_responses_are_skipped(interim: bytes, pieces: int, pooled: bool) -> None:
    def answer(asked: Asked) -> list[bytes]:
        final = ok(asked.target)
        return [interim + final] if pieces == 1 else [interim, final]

    with RawServer(answer) as server, HTTPPool(ONE, base_url=server.url, pooled=pooled) as http:
        for number in range(3):
            response = http.get(f"/{number}")
            assert (response.status_code, response.text) == (200, f"/{number}")
            assert "Link" not in response.headers
        assert server.accepted == (1 if pooled else 3)


def test_socket_can_be_evicted_while_urllib3_closes_its_last_response_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """urllib3 does so after the connection has been released, so two threads close one response."""
    evicted: list[str] = []

    def flush(answer: Any) -> None:  # the first step of a close
        if not evicted:
            evicted.append("now")
            [host] = http.connections.hosts.all()
            thread = in_thread(host.evict_oldest, "room")
            thread.join()
        super(Answer, answer).flush()

    monkeypatch.setattr(Answer, "flush", flush)
    with RawServer(lambda asked: ok(asked.target)) as server, HTTPPool(ONE, base_url=server.url) as http:
        assert http.get("/", stream=True).text == "/"  # read by urllib3 in pieces
        assert evicted and http.metrics.snapshot().closed == {"room": 1}
        assert http.get("/again").text == "/again"


def test_endless_interim_responses_raise() -> None:
    with RawServer(lambda asked: HINTS * 1000) as server, HTTPPool(ONE, base_url=server.url) as http:
        with pytest.raises(requests.ConnectionError, match="interim"):
            http.get("/")
        assert http.stats()["in_use"] == 0


def test_socket_is_closed_after_a_switch_of_protocols() -> None:
    def answer(asked: Asked) -> bytes:
        if asked.target == "/ws":
            return b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n"
        return ok(asked.target)

    with RawServer(answer) as server, HTTPPool(ONE, base_url=server.url) as http:
        assert http.get("/ws").status_code == 101
        assert http.get("/a").text == "/a"
        assert [one.connection for one in server.asked] == [1, 2]


def surplus(kind: str, asked: Asked) -> tuple[bytes, bytes]:
    """Return a response, and bytes that must not follow it."""
    stolen = ok("STOLEN")
    if asked.nth > 0 or asked.target != "/bad":
        return ok(asked.target), b""
    if kind == "two answers":
        return ok("/bad"), stolen
    if kind == "one byte":
        return ok("/bad"), b"x"
    if kind == "a byte after chunks":
        return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\n/bad\r\n0\r\n\r\n", b"x"
    if kind == "a body after 204":
        return b"HTTP/1.1 204 No Content\r\nContent-Length: 6\r\n\r\n", b"STOLEN"
    if kind == "a body after 304":
        return b"HTTP/1.1 304 Not Modified\r\nContent-Length: 45\r\n\r\n", stolen
    if kind == "a body after HEAD":
        return b"HTTP/1.1 200 OK\r\nContent-Length: 45\r\n\r\n", stolen
    assert kind == "a body after 103"
    return HINTS + ok("/bad"), stolen


KINDS = [
    "two answers", "one byte", "a byte after chunks", "a body after 204", "a body after 304", "a body after HEAD",
    "a body after 103",
]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("together", [True, False], ids=["in one piece", "in two pieces"])
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_socket_with_surplus_bytes_is_not_reused(kind: str, together: bool, tls: bool, authority: Authority) -> None:
    sent = threading.Event()

    def answer(asked: Asked) -> Iterator[bytes]:
        right, wrong = surplus(kind, asked)
        if together:
            yield right + wrong
        else:
            yield right
            yield wrong
        sent.set()

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority.server)
    context.num_tickets = 0  # otherwise the bytes that arrive may be tickets

    def wrap(sock: socket.socket) -> socket.socket:
        return context.wrap_socket(sock, server_side=True) if tls else sock

    with RawServer(answer, wrap) as server:
        url = server.url.replace("http:", "https:") if tls else server.url
        with HTTPPool(ONE, base_url=url, verify=authority.file) as http:
            first = http.request("HEAD" if kind == "a body after HEAD" else "GET", "/bad")
            assert first.text in ("", "/bad")
            assert sent.wait(30)
            if not together:
                wait_until(lambda: http.stats()["idle"] == 0 or _arrived(http))
            for number in range(3):
                response = http.get(f"/{number}")
                assert (response.status_code, response.text) == (200, f"/{number}")
            assert server.accepted == 2


def _arrived(http: HTTPPool) -> bool:
    """Whether bytes have arrived for the idle socket."""
    [host] = http.connections.hosts.all()
    [key] = host.pool.engine.state.idle
    try:
        return bool(socket.socket.recv(key.entry.resource.sock, 1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
    except BlockingIOError:
        return False


def test_socket_released_before_the_end_of_a_body_is_not_reused() -> None:
    """urllib3's `release_conn` claims that the body was read, but it was not."""
    with RawServer(lambda asked: ok(asked.target * 10)) as server, HTTPPool(ONE, base_url=server.url) as http:
        response = http.get("/first", stream=True)
        response.raw.release_conn()
        assert http.stats()["in_use"] == 0
        assert http.get("/second").text == "/second" * 10
        assert [one.connection for one in server.asked] == [1, 2]


# -- one borrower's identity ---------------------------------------------------------------------


class Login(requests.auth.AuthBase):
    """Logs in as the libraries for NTLM do: three messages over one connection."""

    def __init__(self, user: str, where: str = "", scheme: str = "NTLM") -> None:
        self.user, self.where, self.scheme = user, where, scheme

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.register_hook("response", self.hook)
        return request

    def hook(self, first: requests.Response, **kwargs: Any) -> requests.Response:
        name = self.where + "Authorization"
        if first.status_code not in (401, 407) or name in first.request.headers:
            return first
        second = self.send(first, f"{self.scheme} hello", **kwargs)
        challenge = second.headers["Proxy-Authenticate" if self.where else "WWW-Authenticate"]
        third = self.send(second, f"{challenge} {self.user}", **kwargs)
        third.history += [first, second]
        return third

    def send(self, response: requests.Response, value: str, **kwargs: Any) -> requests.Response:
        response.content  # noqa: B018
        response.raw.release_conn()
        request = response.request.copy()
        request.headers[self.where + "Authorization"] = value
        return response.connection.send(request, **kwargs)  # type: ignore[attr-defined,no-any-return]


class Guard:
    """A server that authenticates connections: it remembers the user of each."""

    def __init__(self, proxy: bool = False) -> None:
        self.users: dict[int, str] = {}
        self.field = "proxy-authorization" if proxy else "authorization"
        self.status = "407 Unauthorized" if proxy else "401 Unauthorized"
        self.challenge = "Proxy-Authenticate" if proxy else "WWW-Authenticate"
        self.hellos = threading.Barrier(1)

    def __call__(self, asked: Asked) -> bytes:
        scheme, _, message = asked.fields.get(self.field, "").partition(" ")
        if message == "hello":
            self.hellos.wait(30)
            return ok("more", f"{self.challenge}: {scheme} {asked.connection}", status=self.status)
        if scheme in ("NTLM", "Negotiate"):
            number, _, user = message.partition(" ")
            if number != str(asked.connection) or user == "wrong":
                return ok("no", f"{self.challenge}: {scheme}", status=self.status)
            self.users[asked.connection] = user
        if scheme == "Kerberos-once":
            self.users[asked.connection] = message
            return ok(message, "Persistent-Auth: true")
        if scheme in ("Basic", "Bearer"):
            return ok("stateless")
        if asked.connection in self.users:
            return ok(self.users[asked.connection])
        return ok("unknown", f"{self.challenge}: NTLM", status=self.status)


def foreign(http: HTTPPool) -> requests.Session:
    session = requests.Session()
    session.mount("http://", http.adapter)
    return session


@pytest.mark.parametrize("scheme", ["NTLM", "Negotiate"])
@pytest.mark.parametrize("way", ["verb", "lent", "own", "foreign"])
@pytest.mark.parametrize("through_proxy", [False, True])
def test_authenticated_connection_is_not_reused(scheme: str, way: str, through_proxy: bool) -> None:
    guard = Guard(through_proxy)
    with RawServer(guard) as server:
        proxies = {"http": server.url} if through_proxy else {}
        url = "http://a.test/" if through_proxy else server.url + "/"
        with HTTPPool(ONE) as http:
            auth = Login("alice", "Proxy-" if through_proxy else "", scheme)
            arguments: dict[str, Any] = {"auth": auth, "proxies": proxies}
            if way == "lent":
                with http.acquire() as session:
                    assert [session.get(url, **arguments).text for _ in range(2)] == ["alice", "alice"]
            else:
                get = {"verb": http, "own": http.session(), "foreign": foreign(http)}[way].get
                assert get(url, **arguments).text == "alice"
            assert http.stats()["in_use"] == 0
            other = http.get(url, proxies=proxies)
            assert (other.text, other.status_code) == ("unknown", 407 if through_proxy else 401)
            assert guard.users


def test_connection_with_persistent_auth_is_not_reused() -> None:
    with RawServer(Guard()) as server, HTTPPool(ONE, base_url=server.url) as http:
        assert http.get("/", headers={"Authorization": "Kerberos-once alice"}).text == "alice"
        assert http.get("/").text == "unknown"
        assert http.metrics.snapshot().closed == {"authenticated": 1}


@pytest.mark.parametrize("value", ["Basic YTpi", "Bearer token", b"Bearer token"])
def test_connection_is_reused_after_stateless_authentication(value: str | bytes) -> None:
    with RawServer(Guard()) as server, HTTPPool(ONE, base_url=server.url) as http:
        for _ in range(3):
            assert http.get("/", headers={"Authorization": value}).text == "stateless"
        assert server.accepted == 1


def test_simultaneous_logins_keep_their_connections() -> None:
    guard = Guard()
    guard.hellos = threading.Barrier(4)  # the server answers when all have sent hello
    seen: dict[str, str] = {}
    with RawServer(guard) as server, HTTPPool(PoolSettings(max_size=4, acquire_timeout=30)) as http:

        def work(user: str, session: requests.Session) -> None:
            seen[user] = session.get(server.url, auth=Login(user)).text

        sessions = [http.session(), http.session(), foreign(http), foreign(http)]
        threads = [
            threading.Thread(target=work, args=(f"user{number}", session)) for number, session in enumerate(sessions)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert seen == {f"user{number}": f"user{number}" for number in range(4)}
        assert http.stats()["in_use"] == 0


@pytest.mark.parametrize("way", ["verb", "lent", "own", "foreign"])
@pytest.mark.parametrize("how", ["wrong", "given up", "raised"])
def test_failed_login_releases_its_slot(way: str, how: str) -> None:
    class Stops(Login):
        def send(self, response: requests.Response, value: str, **kwargs: Any) -> requests.Response:
            if "hello" not in value and how == "given up":
                response.content  # noqa: B018
                return response
            if "hello" not in value and how == "raised":
                raise KeyError("no ticket")
            return super().send(response, value, **kwargs)

    with RawServer(Guard()) as server, HTTPPool(ONE) as http:
        with http.acquire() as lent:
            get = {"verb": http, "lent": lent, "own": http.session(), "foreign": foreign(http)}[way].get
            if how == "raised":
                with pytest.raises(KeyError):
                    get(server.url, auth=Stops("alice"))
            else:
                assert get(server.url, auth=Stops("wrong")).status_code == 401
            if way != "foreign":  # of a foreign session, the pool sees separate requests
                assert http.stats()["in_use"] == 0
        gc.collect()  # this response refers to itself in its history
        wait_until(lambda: http.stats()["in_use"] == 0)
        assert http.get(server.url).text == "unknown"


# -- slots that are released at once -----------------------------------------------------------------


def raises_for_status(response: requests.Response, **kwargs: Any) -> None:
    response.raise_for_status()


@pytest.mark.parametrize("way", ["verb", "lent", "own"])
@pytest.mark.parametrize("stream", [False, True])
def test_hook_that_raises_releases_the_slot(way: str, stream: bool) -> None:
    def answer(asked: Asked) -> bytes:
        return ok("not here", status="404 Not Found") if "404" in asked.target else ok("x" * 100_000)

    settings = PoolSettings(max_size=1, acquire_timeout=0)
    with RawServer(answer) as server, HTTPPool(settings, base_url=server.url) as http:
        with http.acquire() as lent:
            request = {"verb": http.request, "lent": lent.request, "own": http.session().request}[way]
            kept = []  # as a future keeps its error
            for number in range(20):
                url = server.url + ("/404" if number % 3 == 0 else "/")
                try:
                    response = request("GET", url, hooks={"response": raises_for_status}, stream=stream)
                    assert len(response.content) == 100_000
                except requests.HTTPError as error:
                    kept.append(error)
                assert http.stats()["in_use"] == 0
            assert len(kept) == 7
            assert kept[0].response.text == "not here"  # requests reads the body for the handler
        assert server.accepted == 1


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_large_stream_whose_hook_raises_is_closed(error: type[BaseException]) -> None:
    kept: list[requests.Response] = []

    def hook(response: requests.Response, **kwargs: Any) -> None:
        kept.append(response)
        raise error

    with RawServer(lambda asked: ok("x" * 100_000)) as server, HTTPPool(ONE, base_url=server.url) as http:
        with pytest.raises(error):
            http.get("/", hooks={"response": hook}, stream=True)
        assert http.stats()["in_use"] == 0
        with pytest.raises(LeaseError, match="failed before its response was read"):
            kept[0].content  # noqa: B018


RETRY_AFTER = ["5, 5", "-1", "", "Fri, 31 Dec 99999 23:59:59 GMT", "9" * 5000, "Fri, 99 Foo 2020", "soon", "1e3", "٣"]


@pytest.mark.parametrize("value", RETRY_AFTER)
@pytest.mark.parametrize("retry", [3, Retry(3, status_forcelist=(503,), raise_on_status=False)])
def test_invalid_retry_after_is_ignored(value: str, retry: Any) -> None:
    def answer(asked: Asked) -> bytes:
        if len(server.asked) % 2:
            return ok("busy", f"Retry-After: {value}".encode().decode("latin-1"), status="503 Busy")
        return ok("fine")

    with RawServer(answer) as server, HTTPPool(ONE, base_url=server.url, retry=retry) as http:
        assert http.get("/").text == "fine"
        assert http.stats()["in_use"] == 0
        server.asked.clear()
        assert HTTPPool(ONE).get(server.url).status_code == 503  # without retries, the 503 is returned


def test_retry_policy_that_raises_releases_the_slot() -> None:
    class Broken(Retry):
        def is_retry(self, *args: Any, **kwargs: Any) -> bool:
            raise ZeroDivisionError

    with RawServer(lambda asked: ok("x")) as server, HTTPPool(ONE, base_url=server.url, retry=Broken(1)) as http:
        with pytest.raises(ZeroDivisionError) as kept:
            http.get("/")
        assert http.stats()["in_use"] == 0
        assert kept


@pytest.mark.parametrize(
    ("way", "stream", "own"),
    [
        *((way, stream, True) for way in ("session", "connection", "pool") for stream in (False, True)),
        *((way, False, False) for way in ("session", "connection", "pool")),
    ],
)
def test_a_hook_that_sends_a_request_does_not_wait_for_its_own_slot(way: str, stream: bool, own: bool) -> None:
    """There are as many threads as slots, and each has an unread response when it requests its token."""
    count = 2
    all_hold = threading.Barrier(count)

    def answer(asked: Asked) -> bytes:
        if asked.target == "/token":
            return ok("secret")
        if asked.fields.get("authorization") == "secret":
            return ok("fine")
        return ok("unknown", status="401 Unauthorized")

    seen: list[object] = []
    settings = PoolSettings(max_size=count, acquire_timeout=5)
    with RawServer(answer) as server, HTTPPool(settings, max_per_host=count, base_url=server.url) as http:

        def work() -> None:
            session = http.session() if own else foreign(http)

            def hook(response: requests.Response, **kwargs: Any) -> requests.Response:
                if response.status_code != 401:
                    return response
                all_hold.wait(30)
                token = session.get(server.url + "/token") if way == "session" else http.get("/token")
                request = response.request.copy()
                request.headers["Authorization"] = token.text
                if way == "connection":
                    return response.connection.send(request, **kwargs)  # type: ignore[attr-defined,no-any-return]
                return session.send(request, **kwargs)

            try:
                seen.append(session.get(server.url + "/", hooks={"response": hook}, stream=stream).text)
            except Exception as error:
                seen.append(error)

        threads = [threading.Thread(target=work) for _ in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert seen == ["fine"] * count
        assert (http.stats()["in_use"], http.connections.calls.requests) == (0, {})
        seen.clear()
        gc.collect()
        assert http.connections.calls.answers == {}


def test_response_is_complete_after_its_hook_sent_another_request() -> None:
    def hook(response: requests.Response, **kwargs: Any) -> requests.Response:
        if response.url.endswith("/"):
            http.get("/other")
        return response

    with RawServer(lambda asked: ok(asked.target * 3)) as server, HTTPPool(ONE, base_url=server.url) as http:
        response = http.get("/", hooks={"response": hook})
        assert (response.text, list(response.iter_content(2))) == ("///", [b"//", b"/"])


def test_error_of_a_body_that_is_read_ahead_is_raised_to_its_reader() -> None:
    def hook(response: requests.Response, **kwargs: Any) -> requests.Response:
        if response.url.endswith("/cut"):
            assert http.get("/other").text == "/other"
        return response

    def answer(asked: Asked) -> bytes:
        if asked.target == "/cut":
            return b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\nConnection: close\r\n\r\nonly this"
        return ok(asked.target)

    class Cuts(RawServer):
        def _serve(self, number: int, plain: socket.socket) -> None:
            if number > 1:
                super()._serve(number, plain)
                return
            with plain, plain.makefile("rb") as file:
                asked = self._read(number, 0, file)
                assert asked is not None
                plain.sendall(answer(asked))

    with Cuts(answer) as server, HTTPPool(ONE, base_url=server.url) as http:
        with pytest.raises(requests.exceptions.ChunkedEncodingError):
            http.get("/cut", hooks={"response": hook})
        assert http.stats()["in_use"] == 0


# -- bodies that were cut off ------------------------------------------------------------------------


FRAMES = {
    "length": (b"HTTP/1.1 200 OK\r\nContent-Length: 200000\r\n\r\n", b"x" * 100_000),
    "chunked": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"186a0\r\n" + b"x" * 100_000 + b"\r\n"),
    "until close": (b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n", b"x" * 100_000),
}


class Half(RawServer):
    """Sends half of a body, and never the rest."""

    def __init__(self, frame: str) -> None:
        super().__init__(lambda asked: self.pieces(frame))
        self.over = threading.Event()

    def pieces(self, frame: str) -> Iterator[bytes]:
        yield from FRAMES[frame]
        self.over.wait(30)

    def __exit__(self, *error: Any) -> None:
        self.over.set()
        super().__exit__(*error)


@pytest.mark.parametrize("frame", FRAMES)
@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize("way", ["lease", "context", "whole lease"])
@pytest.mark.parametrize("pooled", [True, False])
def test_reading_a_body_after_the_lease_raises(frame: str, begun: bool, way: str, pooled: bool) -> None:
    with Half(frame) as server, HTTPPool(ONE, base_url=server.url, pooled=pooled) as http:
        with contextlib.ExitStack() as block:
            if way == "context":
                response = block.enter_context(http.request_context("GET", "/", stream=True))
            elif way == "lease":
                response = block.enter_context(http.acquire()).get(server.url, stream=True)
            else:
                lease = http.acquire()
                block.callback(lease.release)
                response = lease.resource.get(server.url, stream=True)
            pieces = response.iter_content(1000)
            if begun:
                assert next(pieces) == b"x" * 1000
        assert http.stats()["in_use"] == 0
        for read in (lambda: list(pieces), lambda: response.content, lambda: response.text,
                     lambda: list(response.iter_lines()), response.raw.read, lambda: list(response.raw.stream())):
            with pytest.raises(LeaseError, match="this response was released before"):
                read()
        assert response.raw.closed
        response.close()


def test_body_that_was_read_stays_readable_after_the_lease() -> None:
    with RawServer(lambda asked: ok("x" * 100_000)) as server, HTTPPool() as http:
        with http.acquire() as session:
            whole, streamed = session.get(server.url), session.get(server.url, stream=True)
            raw = session.get(server.url, stream=True)
            closed = session.get(server.url + "/closed", stream=True)
            assert len(streamed.content) == len(raw.raw.read()) == 100_000
            closed.close()
        assert len(whole.content) == len(b"".join(streamed.iter_content(1000))) == 100_000
        assert raw.raw.read() == b""  # as in requests after the end
        assert closed.raw.read() == b""  # and after the caller's own close()


@pytest.mark.parametrize("frame", FRAMES)
def test_reading_a_body_that_close_interrupts_raises(frame: str) -> None:
    with Half(frame) as server:
        http = HTTPPool(ONE, base_url=server.url)
        response = http.get("/", stream=True)
        pieces = response.iter_content(1000)
        next(pieces)
        closing = threading.Thread(target=http.close, args=(0,))
        closing.start()
        with pytest.raises(requests.RequestException):
            for _ in pieces:
                pass
        closing.join()


def test_lease_that_ends_during_a_request_of_another_thread_raises_there() -> None:
    arrived, ended = threading.Event(), threading.Event()

    def answer(asked: Asked) -> Iterator[bytes]:
        arrived.set()
        ended.wait(30)
        yield ok("x" * 100_000)

    seen: list[object] = []
    with RawServer(answer) as server, HTTPPool(ONE, base_url=server.url) as http:
        lease = http.acquire()
        session = lease.resource

        def work() -> None:
            try:
                seen.append(len(session.get(server.url).content))
            except LeaseError as error:
                seen.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        arrived.wait(30)
        lease.release()
        ended.set()
        thread.join()
        assert isinstance(seen[0], LeaseError)


# -- the environment --------------------------------------------------------------------------------


@pytest.fixture
def netrc(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A .netrc with an entry for 127.0.0.1 only."""
    file = tmp_path / "netrc"
    file.write_text("machine 127.0.0.1 login net password rc\n")
    monkeypatch.setenv("NETRC", str(file))


def basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def shows_identity(asked: Asked) -> bytes:
    if asked.target.startswith("/to/"):
        return ok("", f"Location: http://{asked.target[4:]}", status="302 Found")
    return ok(asked.fields.get("authorization", "none"))


@pytest.mark.usefixtures("netrc")
@pytest.mark.parametrize("redirect", [False, True])
def test_credentials_of_the_program_override_netrc(redirect: bool) -> None:
    with RawServer(shows_identity) as server:
        path = f"/to/127.0.0.1:{server.port}/" if redirect else "/"
        url = server.url + path
        token = {"Authorization": "Bearer mine"}
        with HTTPPool(headers=token) as http:
            assert http.get(url).text == "Bearer mine"
            with http.acquire() as session:
                assert session.get(url).text == "Bearer mine"
        with HTTPPool() as http:
            assert http.get(url).text == basic("net", "rc")
            assert http.get(url, headers={"authorization": "Bearer mine"}).text == "Bearer mine"
            assert http.get(url, auth=("a", "b")).text == basic("a", "b")
            with http.acquire() as session:
                session.headers.update(token)
                assert session.get(url).text == "Bearer mine"
            if not redirect:
                assert http.get(url.replace("//", "//u:p@")).text == basic("u", "p")
        with HTTPPool(auth=("a", "b")) as http:
            assert http.get(url).text == basic("a", "b")


@pytest.mark.usefixtures("netrc")
def test_credentials_are_not_sent_to_other_hosts() -> None:
    """Neither after a redirect, nor to a host in the user part of a URL."""
    with RawServer(shows_identity) as server:
        other = f"localhost:{server.port}/"
        with HTTPPool(headers={"Authorization": "Bearer mine"}) as http:
            assert http.get(f"{server.url}/to/{other}").text == "none"
        with HTTPPool(auth=("a", "b"), base_url=server.url) as http:
            assert http.get(f"/to/{other}").text == "none"
        with HTTPPool(base_url=server.url.replace("//", "//u:p@")) as http:
            assert http.get("/").text == basic("u", "p")
            assert http.get(f"/to/{other}").text == "none"
        with HTTPPool() as http:
            assert http.get(f"{server.url}/to/{other}").text == "none"
            assert http.get(f"http://127.0.0.1:@{other}").text == basic("127.0.0.1", "")
            assert http.get(f"{server.url}/to/127.0.0.1:@{other}").text == "none"


def test_credentials_of_a_proxy_are_sent_to_the_proxy_only(monkeypatch: pytest.MonkeyPatch) -> None:
    def fields(asked: Asked) -> bytes:
        return ok(" ".join(sorted(asked.fields)))

    with RawServer(fields) as proxy, RawServer(fields) as server:
        monkeypatch.setenv("http_proxy", proxy.url.replace("//", "//user:s3cret@"))
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        with HTTPPool() as http:
            for _ in range(2):
                assert "proxy-authorization" in http.get("http://far.test/").text
                assert "authorization" not in http.get(server.url + "/").text


@pytest.mark.parametrize("target", ["http", "https"])
def test_verify_applies_to_a_proxy_with_tls(
    target: str, web: WebServer, secure_web: WebServer, authority: Authority
) -> None:
    url = {"http": web, "https": secure_web}[target].url + "/echo"
    with ForwardProxy(authority.server) as proxy:
        proxies = {"http": proxy.url, "https": proxy.url}
        for verify in (authority.file, False):
            with HTTPPool(verify=verify, proxies=proxies) as http, warnings.catch_warnings():
                warnings.simplefilter("ignore")  # urllib3 warns about a request without verification
                for _ in range(2):
                    assert http.get(url).ok
                assert http.metrics.snapshot().created == 1
        with HTTPPool(proxies=proxies) as http, pytest.raises(requests.exceptions.RequestException):
            http.get(url)
        with HTTPPool(proxies=proxies) as http, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert http.get(url, verify=False).ok
            with pytest.raises(requests.exceptions.RequestException):  # a verified request does not use that socket
                http.get(url)


def test_headers_of_a_cgi_request_are_not_the_environment() -> None:
    """A CGI server sets a variable HTTP_... for each header of a request, and clients choose the headers."""
    headers = {"HTTP_READ_TIMEOUT": "1", "HTTP_MAX_CONNECTIONS": "x", "HTTP_RETRY_ATTEMPTS": "9", "HTTP_POOLING": "off"}
    found = pool_arguments("HTTP_", {**headers, "REQUEST_METHOD": "GET"})
    assert (found["timeout"].read, "retry" in found, "pooled" in found) == (30, False, False)
    headers["HTTP_BASE_URL"] = "http://evil.test"
    assert config.from_env(environ={**headers, "REQUEST_METHOD": "GET"})["http_pool"].url == "http://"
    assert pool_arguments("APP_HTTP_", {"APP_HTTP_READ_TIMEOUT": "1", "REQUEST_METHOD": "GET"})["timeout"].read == 1


# -- ssl_context ----------------------------------------------------------------------------------


def trusting(authority: Authority) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=authority.file)


@pytest.mark.parametrize("pooled", [True, False])
def test_ssl_context(
    secure_web: WebServer, authority: Authority, pooled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/not/there")
    context = trusting(authority)
    reads: list[object] = []
    load = ssl.SSLContext.load_verify_locations
    monkeypatch.setattr(
        ssl.SSLContext, "load_verify_locations", lambda *args, **kwargs: (reads.append(args), load(*args, **kwargs))
    )
    for arguments in ({"ssl_context": context}, {"verify": context}):
        with HTTPPool(base_url=secure_web.url, pooled=pooled, **arguments) as http:  # type: ignore[arg-type]
            for _ in range(3):
                assert http.get("/echo").ok
            with http.acquire() as session:
                assert session.verify is context
                assert session.get(secure_web.url + "/echo").ok
            if pooled:
                http.drain()
                http.warm_up()
                assert http.get("/echo").ok
    with HTTPPool(base_url=secure_web.url, pooled=pooled) as http:
        for _ in range(2):
            assert http.get("/echo", verify=context).ok
    assert not reads and (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, True)
    assert secure_web.book()["accepted"] == (5 if pooled else 10)


def test_requests_with_another_ssl_context_share_no_socket(secure_web: WebServer, authority: Authority) -> None:
    lax = ssl.create_default_context()
    lax.check_hostname, lax.verify_mode = False, ssl.CERT_NONE
    with HTTPPool(base_url=secure_web.url, trust_env=False) as http, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # urllib3 warns about the lax one
        for context in (lax, trusting(authority), trusting(authority)):
            for _ in range(2):
                assert http.get("/echo", verify=context).ok
            with pytest.raises(requests.exceptions.SSLError):
                http.get("/echo")
        assert http.metrics.snapshot().idle == 3
        assert lax.verify_mode == ssl.CERT_NONE


def test_ssl_context_applies_to_a_proxy_with_tls(web: WebServer, secure_web: WebServer, authority: Authority) -> None:
    with ForwardProxy(authority.server) as proxy:
        proxies = {"http": proxy.url, "https": proxy.url}
        with HTTPPool(ssl_context=trusting(authority), proxies=proxies) as http:
            assert http.get(secure_web.url + "/echo").ok
            assert http.get(web.url + "/echo").json()["fields"]["via"] == "1.1 tests"


def test_encrypted_client_key(authority: Authority, tmp_path: Path) -> None:
    from cryptography.hazmat.primitives import serialization  # trustme depends on it

    pem = Path(authority.client).read_bytes()
    key = serialization.load_pem_private_key(pem, None)
    form = serialization.BestAvailableEncryption(b"word")
    file = tmp_path / "client.pem"
    file.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, form)
        + pem[pem.index(b"-----BEGIN CERT") :]
    )
    server_side = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=authority.file)
    server_side.load_cert_chain(authority.server)
    server_side.verify_mode = ssl.CERT_REQUIRED
    with RawServer(lambda asked: ok("in"), lambda sock: server_side.wrap_socket(sock, server_side=True)) as server:
        context = trusting(authority)
        context.load_cert_chain(str(file), password="word")
        with HTTPPool(ssl_context=context, base_url=server.url.replace("http", "https")) as http:
            assert http.get("/").text == "in"


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"ssl_context": "x"}, TypeError, "ssl_context must be an ssl.SSLContext, not of str"),
        ({"ssl_context": ssl.create_default_context(), "verify": False}, ValueError, "give one of them"),
        ({"ssl_context": ssl.create_default_context(), "cert": "c.pem"}, ValueError, "load_cert_chain"),
        ({"verify": ssl.create_default_context(), "cert": "c.pem"}, ValueError, "load_cert_chain"),
        ({"verify": 5}, TypeError, "verify must be a bool, a path or an ssl.SSLContext, not of int"),
    ],
)
def test_bad_tls_arguments(wrong: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        HTTPPool(**wrong)


@pytest.mark.parametrize("pooled", [True, False])
def test_request_with_cert_and_ssl_context_raises(pooled: bool, authority: Authority) -> None:
    with HTTPPool(ssl_context=trusting(authority), pooled=pooled) as http:
        with pytest.raises(ValueError, match="load_cert_chain"):
            http.get("https://127.0.0.1:1/", cert=authority.client)
        assert http.stats()["in_use"] == 0


@pytest.mark.parametrize("own", [True, False])
def test_login_cannot_be_continued_twice(own: bool) -> None:
    with RawServer(Guard()) as server, HTTPPool() as http:
        session = http.session() if own else foreign(http)
        second: list[requests.Response] = []

        class Keeps(Login):
            def send(self, response: requests.Response, value: str, **kwargs: Any) -> requests.Response:
                second.append(response)
                return super().send(response, value, **kwargs)

        third = session.get(server.url, auth=Keeps("alice"), stream=True)
        again = second[1].request.copy()
        again.headers["Authorization"] = "NTLM 1 alice"
        late = second[1].connection.send(again)  # type: ignore[attr-defined]
        assert late.status_code == 401
        assert third.text == "alice"
        late.close()
        assert http.stats()["in_use"] == 0

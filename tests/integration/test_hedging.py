"""Hedging over several servers, against real servers that answer when a test lets them."""

from __future__ import annotations

import contextlib
import gc
import select
import socket
import ssl
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
import requests

from pooling import Balancing, CircuitBreaker, HTTPPool, HTTPTimeout, Observer
from pooling.adapters.http.balancing import hedging
from pooling.adapters.http.balancing.model import RESERVE
from tests.conftest import Authority
from tests.integration.tools import wait_until
from tests.raw import Answer, Asked, RawServer, ok
from tests.web import ForwardProxy, WebServer

SOON = Balancing(hedge_after=0.05)
PATIENCE = 20.0


class Told:
    """A server that answers a request when it is told to, and otherwise as the test says.

    Attributes:
        answer: What it sends, or how it finds out; ``None`` closes the connection.
        go: Set when it may answer; it is at first.
        asked: Set once there was a request since `hold`.
    """

    def __init__(self, name: str, wrap: Callable[[socket.socket], socket.socket] | None = None) -> None:
        self.name = name
        self.answer: bytes | Iterable[bytes] | Answer | None = ok(name)
        self.go, self.asked = threading.Event(), threading.Event()
        self.go.set()
        self.server = RawServer(self._answer, wrap)

    def _answer(self, asked: Asked) -> Any:
        self.asked.set()
        self.go.wait(PATIENCE)
        return self.answer(asked) if callable(self.answer) else self.answer

    def hold(self) -> None:
        """Answer nothing until `go` is set."""
        self.go.clear()
        self.asked.clear()

    @property
    def url(self) -> str:
        return self.server.url

    @property
    def requests(self) -> int:
        """How many it has been sent."""
        return len(self.server.asked)


@pytest.fixture
def two() -> Iterator[tuple[Told, Told]]:
    """Two servers, of which `grouped` prefers the first."""
    with serving() as both:
        yield both


@contextlib.contextmanager
def serving(wrap: Callable[[socket.socket], socket.socket] | None = None) -> Iterator[tuple[Told, Told]]:
    slow, other = Told("slow", wrap), Told("other", wrap)
    with slow.server, other.server:
        try:
            yield slow, other
        finally:
            slow.go.set()
            other.go.set()


@contextlib.contextmanager
def grouped(two: tuple[Told, Told], balancing: Balancing = SOON, **arguments: Any) -> Iterator[HTTPPool]:
    """A pool whose next requests go to the first server; in the end it has lost nothing."""
    with HTTPPool(base_urls=[one.url for one in two], balancing=balancing, **arguments) as pool:
        prefer_first(pool)
        yield pool
        wait_until(lambda: nothing_in_use(pool))


def prefer_first(pool: HTTPPool) -> None:
    group = pool.group
    assert group is not None
    for _ in range(20):
        group.succeeded(group.servers[0], pool, time.monotonic() - 0.02)
        group.succeeded(group.servers[1], pool, time.monotonic() - 10.0)


def nothing_in_use(pool: HTTPPool) -> bool:
    stats = pool.stats()
    hosts = sum(one["in_use"] for one in stats["hosts"].values())
    return (stats["in_use"], hosts, stats["waiting"]) == (0, 0, 0)


def hedges(pool: HTTPPool) -> tuple[int, int]:
    """Return how many requests were hedged, and how many of these answers have won."""
    hosts = pool.metrics.hosts()
    return sum(host.hedges for host in hosts), sum(host.hedges_won for host in hosts)


def failures(pool: HTTPPool) -> list[int]:
    return [one["failures"] for one in pool.stats()["backends"].values()]


# -- which answer wins ------------------------------------------------------------------------


def test_the_other_server_answers_first(two: tuple[Told, Told]) -> None:
    slow, other = two
    slow.hold()
    with grouped(two) as pool:
        response = pool.get("/x?y=1")
        assert (response.text, response.url) == ("other", f"{other.url}/x?y=1")
        assert (slow.requests, other.requests, hedges(pool)) == (1, 1, (1, 1))
        assert nothing_in_use(pool)
        assert pool.metrics.snapshot().closed == {"hedged": 1}  # the connection to the slow one
        assert failures(pool) == [0, 0] and pool.metrics.snapshot().errors == {}
        assert pool.stats()["backends"][slow.url]["latency"] > 0.025  # it was 0.02
        hosts = {host.host: host for host in pool.metrics.hosts()}
        assert hosts[other.url].statuses == {200: 1} and hosts[other.url].hedges == hosts[other.url].hedges_won == 1
        assert (hosts[slow.url].requests, hosts[slow.url].hedges) == (0, 0) and hosts[slow.url].bytes_sent > 0


def test_the_first_server_answers_first(two: tuple[Told, Told]) -> None:
    slow, other = two
    with grouped(two) as pool:
        pool.warm_up()
        slow.hold()
        other.hold()
        other_is_asked(two)
        response = pool.get("/")
        assert (response.text, response.url) == ("slow", f"{slow.url}/")
        assert (slow.requests, other.requests, hedges(pool)) == (1, 1, (1, 0))
        assert nothing_in_use(pool) and failures(pool) == [0, 0]
        assert pool.metrics.snapshot().closed == {"hedged": 1}
        assert [host.idle for host in pool.connections.hosts.all()] == [1, 0]
        assert pool.get("/").text == "slow"  # on the same connection
        assert slow.server.accepted == 1


def other_is_asked(two: tuple[Told, Told], seconds: float = 0.0) -> None:
    """Let the first server answer so long after the other one was asked."""
    slow, other = two

    def answer() -> None:
        assert other.asked.wait(PATIENCE)
        time.sleep(seconds)
        slow.go.set()

    threading.Thread(target=answer, daemon=True).start()


def test_a_server_that_answers_in_time_is_the_only_one(two: tuple[Told, Told]) -> None:
    with grouped(two, Balancing(hedge_after=PATIENCE)) as pool:
        assert {pool.get("/").text for _ in range(10)} == {"slow"}
        assert two[1].requests == 0 and hedges(pool) == (0, 0)


def test_it_is_off_by_default(two: tuple[Told, Told]) -> None:
    slow, other = two
    assert Balancing().hedge_after is None
    slow.hold()
    threading.Timer(0.3, slow.go.set).start()
    with grouped(two, Balancing()) as pool:
        assert pool.get("/").text == "slow" and other.requests == 0


@pytest.mark.parametrize("stream", [False, True])
def test_the_body_of_the_winner(two: tuple[Told, Told], stream: bool) -> None:
    slow, other = two
    slow.hold()

    def pieces() -> Iterator[bytes]:
        yield b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        for _ in range(20):
            time.sleep(0.02)
            yield b"3e8\r\n" + b"x" * 1000 + b"\r\n"
        yield b"0\r\n\r\n"

    other.answer = lambda asked: pieces()
    with grouped(two) as pool:
        for _ in range(2):  # the second time on kept connections
            prefer_first(pool)
            with pool.request_context("GET", "/", stream=stream) as response:
                if stream:
                    assert pool.stats()["in_use"] == 1
                assert b"".join(response.iter_content(700)) == b"x" * 20_000
            assert nothing_in_use(pool)
        assert other.server.accepted == 1 and hedges(pool) == (2, 2)


def test_the_winner_is_read_within_the_time_limits(two: tuple[Told, Told]) -> None:
    slow, other = two
    slow.hold()

    def half() -> Iterator[bytes]:
        yield b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf"
        time.sleep(3.0)

    other.answer = lambda asked: half()
    for limits in (HTTPTimeout(read=0.4), HTTPTimeout(total=0.4)):
        with grouped(two, timeout=limits, retry=0) as pool:
            with pytest.raises(requests.RequestException, match="timed out|total of 0.4"):
                pool.get("/")
            assert pool.metrics.snapshot().closed == {"hedged": 1, "failed": 1}


def test_a_status_from_500_on_is_an_answer(two: tuple[Told, Told]) -> None:
    slow, other = two
    slow.hold()
    other.answer = ok("down", status="503 Down")
    with grouped(two, retry=0) as pool:
        assert (pool.get("/").text, failures(pool)) == ("down", [0, 1])
    with grouped(two, retry=1) as pool:
        threading.Timer(0.5, slow.go.set).start()
        before = slow.requests, other.requests
        assert pool.get("/").text in ("down", "slow")  # both were tried, so the retry may go to either
        assert slow.requests + other.requests - sum(before) == 3 and hedges(pool) == (1, 1)


def test_hooks_cookies_redirects_and_challenges(two: tuple[Told, Told]) -> None:
    slow, other = two
    slow.hold()

    def answer(asked: Asked) -> bytes:
        if asked.target == "/set":
            return ok("", "Set-Cookie: a=1", "Location: /end", status="302 Found")
        return ok(asked.fields.get("cookie", ""))

    seen: list[int] = []
    other.answer = answer
    with grouped(two) as pool, pool.acquire() as session:
        response = session.get("/set", hooks={"response": lambda response, **_: seen.append(response.status_code)})
        assert (response.text, response.url) == ("a=1", f"{other.url}/end") and seen == [302, 200]
        assert [one.url for one in response.history] == [f"{other.url}/set"]


# -- failures ---------------------------------------------------------------------------------


def test_the_other_server_fails(two: tuple[Told, Told]) -> None:
    slow, other = two
    slow.hold()
    other.answer = None
    other_is_asked(two, 0.3)
    with grouped(two) as pool:
        assert pool.get("/").text == "slow"
        assert hedges(pool) == (1, 0) and failures(pool) == [0, 1]
        assert pool.metrics.snapshot().errors == {"connection": 1}
        assert pool.metrics.snapshot().closed == {"failed": 1}


def test_the_other_server_cannot_be_reached(two: tuple[Told, Told]) -> None:
    slow, other = two
    other.server.__exit__(None, None, None)
    slow.hold()
    threading.Timer(0.3, slow.go.set).start()
    with grouped(two) as pool:
        assert pool.get("/").text == "slow"
        assert hedges(pool) == (1, 0) and failures(pool) == [0, 1]
        assert pool.metrics.snapshot().errors == {"connect": 1} and pool.metrics.snapshot().closed == {}


@pytest.mark.parametrize("how", ["closed", "reset"])
def test_the_first_server_dies_and_the_other_answers(two: tuple[Told, Told], how: str) -> None:
    slow, other = two
    slow.hold()
    slow.answer = None
    other.hold()

    def lose() -> None:
        assert other.asked.wait(PATIENCE)
        if how == "reset":
            slow.server.reset()
        slow.go.set()
        time.sleep(0.3)
        other.go.set()

    threading.Thread(target=lose, daemon=True).start()
    with grouped(two) as pool:
        assert pool.get("/").text == "other"
        assert hedges(pool) == (1, 1) and failures(pool) == [1, 0]
        assert pool.metrics.snapshot().errors == {"connection": 1}
        assert pool.metrics.snapshot().closed == {"failed": 1}


def test_both_die(two: tuple[Told, Told]) -> None:
    slow, other = two
    slow.hold()
    slow.answer = other.answer = None
    other_is_asked(two)
    with grouped(two, retry=0) as pool:
        with pytest.raises(requests.ConnectionError, match="RemoteDisconnected"):
            pool.get("/")
        assert nothing_in_use(pool)
        assert failures(pool) == [1, 1] and pool.metrics.snapshot().errors == {"connection": 2}
        assert (slow.requests, other.requests) == (1, 1)


def test_both_die_on_kept_connections(two: tuple[Told, Told]) -> None:
    """As without hedging, the request is sent again on a new connection."""
    slow, other = two
    with grouped(two, retry=0) as pool:
        pool.get("/")
        slow.hold()
        slow.answer = lambda asked: None if asked.connection == 1 else ok("again")
        other.answer = None
        other_is_asked(two, 0.3)
        assert pool.get("/").text == "again"
        assert failures(pool) == [0, 1] and hedges(pool) == (1, 0)
        assert sum(host.resent for host in pool.metrics.hosts()) == 1


@pytest.mark.parametrize("limits", [HTTPTimeout(read=0.4), HTTPTimeout(read=30, total=0.4)])
@pytest.mark.parametrize("dead", [False, True])
def test_time_limits_hold_for_both(two: tuple[Told, Told], limits: HTTPTimeout, dead: bool) -> None:
    slow, other = two
    slow.hold()
    other.hold()
    if dead:
        slow.answer = None
        other_is_asked(two)
    with grouped(two, timeout=limits, retry=0) as pool:
        began = time.monotonic()
        with pytest.raises(requests.RequestException) as caught:
            pool.get("/")
        assert 0.35 < time.monotonic() - began < 5.0
        if dead and limits.total is None:
            assert "RemoteDisconnected" in str(caught.value)
        else:
            assert isinstance(caught.value, requests.ReadTimeout)
        assert nothing_in_use(pool) and other.requests == 1 and failures(pool) == [1, 0]


def test_a_read_timeout_below_it_leaves_no_time(two: tuple[Told, Told]) -> None:
    two[0].hold()
    with grouped(two, timeout=HTTPTimeout(read=0.05), retry=0) as pool:
        with pytest.raises(requests.ReadTimeout):
            pool.get("/")
        assert two[1].requests == 0


# -- when there is none -------------------------------------------------------------------------


@pytest.fixture
def late(two: tuple[Told, Told]) -> Callable[[], None]:
    """Returns what makes the first server answer its next request after 0.3 s."""

    def begin() -> None:
        two[0].hold()
        threading.Timer(0.3, two[0].go.set).start()

    return begin


@pytest.mark.parametrize(
    ("method", "body", "hedged"),
    [
        ("POST", None, False), ("PATCH", b"x", False), ("PUT", iter([b"x"]), False), ("PUT", b"x" * 16385, False),
        ("PUT", b"x" * 16384, True), ("DELETE", None, True), ("HEAD", None, True),
        ("get", None, True),
    ],
)  # fmt: skip
def test_what_is_hedged(
    two: tuple[Told, Told], late: Callable[[], None], method: str, body: Any, hedged: bool
) -> None:
    late()
    with grouped(two) as pool:
        assert pool.request(method, "/", data=body).ok
        assert two[1].requests == hedged and hedges(pool) == (hedged, hedged)
        if hedged:
            assert two[1].server.asked[0].body == two[0].server.asked[0].body == (body or b"")


def test_a_login_is_not_hedged(two: tuple[Told, Told], late: Callable[[], None]) -> None:
    late()
    with grouped(two) as pool:
        assert pool.get("/", headers={"Authorization": "NTLM hello"}).text == "slow"
        late()
        prefer_first(pool)
        assert pool.get(two[0].url).text == "slow"  # it is for this server
        assert two[1].requests == 0


def test_retries_are_not_hedged(two: tuple[Told, Told]) -> None:
    slow, other = two
    other.hold()
    slow.answer = None
    threading.Timer(0.4, other.go.set).start()
    with grouped(two) as pool:
        assert pool.get("/").text == "other"
        assert (slow.requests, other.requests, hedges(pool)) == (1, 1, (0, 0))


@pytest.mark.parametrize("state", ["alone", "resting", "ejected", "open circuit", "half-open circuit"])
def test_only_a_server_in_service_is_asked(two: tuple[Told, Told], late: Callable[[], None], state: str) -> None:
    slow, other = two
    urls = [slow.url] if state == "alone" else [slow.url, other.url]
    policy = Balancing(hedge_after=0.05, eject_for=600, eject_for_max=600)
    breaker = CircuitBreaker(failures=3, open_for=0.1 if "half" in state else 60)
    with HTTPPool(base_urls=urls, balancing=policy, breaker=breaker, retry=0) as pool:
        group = pool.group
        assert group is not None
        if state == "resting":
            group.rest(group.servers[1], 60)
        elif state == "ejected":
            for _ in range(5):
                group.failed(group.servers[1], pool, time.monotonic(), "test")
        elif "circuit" in state:
            pool.get(other.url)
            circuit = pool.connections.hosts.circuits[other.url]
            for _ in range(3):
                circuit.failed(circuit.enter(), "test")
            prefer_first(pool)
            time.sleep(0.2)
        before = other.requests
        late()
        assert pool.get("/").text == "slow"
        assert other.requests == before and hedges(pool) == (0, 0)


def test_a_circuit_is_told(two: tuple[Told, Told]) -> None:
    slow, other = two
    slow.hold()
    other.answer = ok("down", status="502 Down")
    with grouped(two, breaker=CircuitBreaker(failures=1, open_for=60), retry=0) as pool:
        assert pool.get("/").text == "down"
        circuits = pool.connections.hosts.circuits
        assert (circuits[slow.url].state, circuits[other.url].state) == ("closed", "open")
        prefer_first(pool)
        threading.Timer(0.3, slow.go.set).start()
        assert pool.get("/").text == "slow"
        assert other.requests == 1


@pytest.mark.parametrize("settings", [{"max_per_host": 1}, {"max_size": 2}])
def test_no_place_no_hedge(two: tuple[Told, Told], late: Callable[[], None], settings: dict[str, int]) -> None:
    slow, other = two
    with grouped(two, **settings) as pool:
        with pool.request_context("GET", other.url, stream=True):  # takes a place
            before = pool.metrics.snapshot()
            late()
            assert pool.get("/").text == "slow"
            assert other.requests == 1 and hedges(pool) == (0, 0)
            after = pool.metrics.snapshot()
            assert (after.timeouts, after.exhausted) == (before.timeouts, before.exhausted)
        prefer_first(pool)
        late()
        assert pool.get("/").text == "other"


def test_a_name_is_not_looked_up_for_it(
    two: tuple[Told, Told], late: Callable[[], None]
) -> None:
    slow, other = two
    bases = [slow.url, other.url.replace("127.0.0.1", "localhost")]
    with HTTPPool(base_urls=bases, balancing=SOON) as pool:
        prefer_first(pool)
        late()
        assert pool.get("/").text == "slow"
        assert hedges(pool) == (0, 0)
        pool.warm_up()
        prefer_first(pool)
        late()
        assert pool.get("/").text == "other"


def test_the_budget_limits_hedges() -> None:
    """All servers are slow: a hedge helps nobody."""
    with WebServer(delay=0.06) as one, WebServer(delay=0.06) as other:
        policy = Balancing(hedge_after=0.01)
        with HTTPPool(base_urls=[one.url, other.url], balancing=policy, max_per_host=50) as pool:
            def work() -> None:
                for _ in range(30):
                    assert pool.get("/echo").ok

            threads = [threading.Thread(target=work) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            sent, _ = hedges(pool)
            assert RESERVE <= sent <= 0.2 * 120
            assert sum(server.book()["requests"] for server in (one, other)) == 120 + sent
        none = Balancing(hedge_after=0.01, retry_budget=0.0)
        with HTTPPool(base_urls=[one.url, other.url], balancing=none) as pool:
            assert pool.get("/echo").ok and hedges(pool) == (0, 0)


# -- ends ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["wait_for", "receive", "has_place"])
def test_an_interrupted_hedge_closes_both(two: tuple[Told, Told], monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    def interrupt(*args: Any) -> None:
        raise KeyboardInterrupt

    slow, other = two
    slow.hold()
    other.hold()
    with grouped(two) as pool:
        pool.warm_up()
        with monkeypatch.context() as patched:
            patched.setattr(hedging, where, interrupt)
            with pytest.raises(KeyboardInterrupt):
                pool.get("/")
        assert nothing_in_use(pool)
        closed = pool.metrics.snapshot().closed
        assert closed == {"interrupted": 1 if where == "has_place" else 2} and failures(pool) == [0, 0]


def test_an_answer_that_nobody_gets_is_closed(two: tuple[Told, Told], monkeypatch: pytest.MonkeyPatch) -> None:
    """The interruption comes when the second server has won."""
    slow, other = two
    slow.hold()
    with grouped(two) as pool:
        def interrupt(*args: Any) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(type(pool.group), "slow", interrupt)
        with pytest.raises(KeyboardInterrupt) as caught:
            pool.get("/")
        assert nothing_in_use(pool) and caught.value.__context__ is not None  # which refers to the answer
        assert pool.metrics.snapshot().closed == {"hedged": 1, "unread": 1}


def test_closing_the_pool_interrupts_both(two: tuple[Told, Told]) -> None:
    slow, other = two
    slow.hold()
    other.hold()
    errors: list[BaseException] = []

    def ask() -> None:
        try:
            pool.get("/")
        except BaseException as error:
            errors.append(error)

    with HTTPPool(base_urls=[slow.url, other.url], balancing=SOON, retry=0) as pool:
        prefer_first(pool)
        thread = threading.Thread(target=ask, daemon=True)
        thread.start()
        assert other.asked.wait(PATIENCE)
        pool.close(0.1)
        thread.join(PATIENCE)
        assert isinstance(errors[0], requests.ConnectionError) and "was closed" in str(errors[0])
        wait_until(lambda: nothing_in_use(pool))


@pytest.mark.parametrize("dies", [False, True])  # the first server
def test_the_pool_is_freed_at_once(two: tuple[Told, Told], dies: bool) -> None:
    slow, other = two
    slow.hold()
    if dies:
        slow.answer = None
        other.hold()
        other_is_asked(two)
        threading.Timer(0.5, other.go.set).start()
    pool = HTTPPool(base_urls=[slow.url, other.url], balancing=SOON, retry=0)
    prefer_first(pool)
    gc.collect()
    gc.disable()
    try:
        assert pool.get("/").text == "other" and hedges(pool) == (1, 1)
        refs = [weakref.ref(pool.connections), weakref.ref(pool.group)]
        del pool
        assert [ref() for ref in refs] == [None, None]
    finally:
        gc.enable()


def test_observers_and_holders(two: tuple[Told, Told]) -> None:
    class Seen(Observer):
        def __init__(self) -> None:
            self.outcomes: list[tuple[str, object]] = []

        def responded(self, pool: str, method: str, host: str, outcome: object, seconds: float) -> None:
            self.outcomes.append((host, outcome))

    slow, other = two
    slow.hold()
    seen = Seen()
    with grouped(two, observers=[seen], track_holders=True) as pool:
        with pool.request_context("GET", "/", stream=True):
            (holder,) = pool.holders()
            assert str(holder).startswith("test_hedging.py:")
        assert seen.outcomes == [(other.url, 200)]


# -- kinds of sockets -----------------------------------------------------------------------------


@pytest.fixture
def secure(authority: Authority) -> Callable[[socket.socket], socket.socket]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority.server)
    return lambda sock: context.wrap_socket(sock, server_side=True)


@pytest.mark.parametrize("warm", [False, True])
def test_over_tls(secure: Callable[[socket.socket], socket.socket], authority: Authority, warm: bool) -> None:
    with serving(secure) as two:
        slow, other = two
        for one in two:
            one.server.url = one.server.url.replace("http:", "https:")
        slow.hold()
        with grouped(two, Balancing(hedge_after=0.2), verify=authority.file) as pool:
            if warm:
                pool.warm_up()
            assert pool.get("/").text == "other" and hedges(pool) == (1, 1)
            prefer_first(pool)
            slow.hold()
            other.hold()
            other_is_asked(two)
            assert pool.get("/").text == "slow" and hedges(pool) == (2, 1)
            prefer_first(pool)
            slow.hold()
            other.hold()
            slow.answer = None
            other_is_asked(two)
            threading.Timer(1.5, other.go.set).start()
            assert pool.get("/").text == "other" and hedges(pool) == (3, 2) and failures(pool) == [1, 0]


def test_session_tickets_are_no_answer(
    secure: Callable[[socket.socket], socket.socket], authority: Authority
) -> None:
    """They arrive on a new connection of TLS 1.3 before the answer, and make it readable."""
    with serving(secure) as two:
        slow, other = two
        for one in two:
            one.server.url = one.server.url.replace("http:", "https:")
        slow.hold()
        other.hold()
        threading.Timer(1.0, slow.go.set).start()
        with grouped(two, Balancing(hedge_after=0.2), verify=authority.file) as pool:
            assert pool.get("/").text == "slow" and hedges(pool) == (1, 0)


def test_without_poll(two: tuple[Told, Told], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(select, "poll")
    slow, other = two
    slow.hold()
    other.hold()
    threading.Timer(0.3, other.go.set).start()
    with grouped(two) as pool:
        assert pool.get("/").text == "other" and hedges(pool) == (1, 1)


def test_through_a_proxy() -> None:
    with (
        WebServer() as one, WebServer() as other, ForwardProxy() as proxy,
        HTTPPool(base_urls=[one.url, other.url], balancing=SOON, proxies={"http": proxy.url}) as pool,
    ):  # fmt: skip
        pool.get("/echo")
        wait_until(lambda: pool.get("/echo").ok and len(pool.connections.hosts.all()) == 2)
        one.be_slow(0.5)
        prefer_first(pool)
        assert pool.get("/echo").url == f"{other.url}/echo" and hedges(pool) == (1, 1)

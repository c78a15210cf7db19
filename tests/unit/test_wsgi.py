"""The middleware releases a request's leases when its response is closed, whatever happens."""

from __future__ import annotations

import io
import json
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from types import SimpleNamespace
from typing import Any
from wsgiref.util import FileWrapper, setup_testing_defaults
from wsgiref.validate import validator

import pytest

from pooling import LeaseError, PoolManager, PoolSettings, PoolTimeout
from pooling.manager import Health
from pooling.testing import FakeAdapter
from pooling.web import _health
from pooling.web._health import HealthEndpoint
from pooling.web.wsgi import PoolingMiddleware, lease

NONE = PoolSettings(min_size=0, max_size=2, health_check_interval=None, acquire_timeout=0.0)
PLAIN = [("Content-Type", "text/plain")]


@pytest.fixture
def adapter() -> FakeAdapter:
    return FakeAdapter(blocking=False)


@pytest.fixture
def manager(adapter: FakeAdapter) -> PoolManager:
    manager = PoolManager()
    manager.create_pool("a", adapter, settings=NONE)
    manager.create_pool("b", FakeAdapter(blocking=False), settings=NONE)
    return manager


def in_use(manager: PoolManager) -> int:
    return sum(manager[name].stats()["in_use"] for name in manager)


class Call:
    """A request that has been made; its response is still open."""

    def __init__(self, app: Callable[..., Any], path: str = "/", method: str = "GET", **headers: str) -> None:
        self.environ: dict[str, Any] = {"PATH_INFO": path, "SCRIPT_NAME": "", "REQUEST_METHOD": method, **headers}
        setup_testing_defaults(self.environ)
        self.environ["wsgi.errors"] = io.StringIO()
        self.body: Any = app(self.environ, self._start)

    def _start(self, status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Callable[[bytes], None]:
        self.status, self.headers = status, dict(headers)
        return lambda data: None

    def close(self) -> None:
        close = getattr(self.body, "close", None)
        if close is not None:
            close()

    def read(self) -> bytes:
        try:
            return b"".join(self.body)
        finally:
            self.close()


def listed(environ: Any, start_response: Any) -> list[bytes]:
    first = lease(environ, "a")
    assert lease(environ, "a") is first
    start_response("200 OK", PLAIN)
    return [str(first).encode()]


def streamed(environ: Any, start_response: Any) -> Iterator[bytes]:
    start_response("200 OK", PLAIN)
    yield b"first"
    yield str(lease(environ, "a")).encode()
    yield b"last"


# -- a request -------------------------------------------------------------------


def test_every_request_sees_the_manager(manager: PoolManager) -> None:
    def app(environ: Any, start_response: Any) -> list[bytes]:
        assert environ["pooling.manager"] is manager
        start_response("200 OK", PLAIN)
        return [b"x"]

    assert Call(PoolingMiddleware(app, manager)).read() == b"x"


def test_list_response_releases_before_it_is_sent(manager: PoolManager) -> None:
    call = Call(PoolingMiddleware(listed, manager))
    assert in_use(manager) == 0
    assert type(call.body) is list  # so that the server knows its length
    assert call.read().startswith(b"<FakeResource")
    assert manager["a"].metrics.snapshot().acquired == 1


def test_streamed_response_keeps_its_lease_until_closed(manager: PoolManager) -> None:
    call = Call(PoolingMiddleware(streamed, manager))
    assert next(call.body) == b"first" and in_use(manager) == 0
    next(call.body)
    assert in_use(manager) == 1
    assert list(call.body) == [b"last"]
    assert in_use(manager) == 1
    call.close()
    assert in_use(manager) == 0


def test_client_that_disconnects(manager: PoolManager) -> None:
    call = Call(PoolingMiddleware(streamed, manager))
    next(call.body), next(call.body)
    call.close()  # what a server does then
    assert in_use(manager) == 0
    call.close()


def test_response_that_is_never_read(manager: PoolManager) -> None:
    def app(environ: Any, start_response: Any) -> Iterator[bytes]:
        lease(environ, "a")
        start_response("200 OK", PLAIN)
        return (piece for piece in [b"x"])

    call = Call(PoolingMiddleware(app, manager))
    assert in_use(manager) == 1
    call.close()
    assert in_use(manager) == 0


def test_file_wrapper_is_passed_to_the_server_unchanged(manager: PoolManager) -> None:
    def app(environ: Any, start_response: Any) -> Any:
        lease(environ, "a")
        start_response("200 OK", PLAIN)
        return environ["wsgi.file_wrapper"](io.BytesIO(b"file"))

    call = Call(PoolingMiddleware(app, manager), **{"wsgi.file_wrapper": FileWrapper})  # type: ignore[arg-type]
    assert type(call.body) is FileWrapper and in_use(manager) == 0
    assert call.read() == b"file"


def test_app_is_closed_before_its_leases_end(manager: PoolManager) -> None:
    seen: list[int] = []

    class Body:
        def __init__(self, environ: Any) -> None:
            self.environ = environ

        def __iter__(self) -> Iterator[bytes]:
            yield b"x"

        def close(self) -> None:
            lease(self.environ, "a")
            seen.append(in_use(manager))

    def app(environ: Any, start_response: Any) -> Body:
        start_response("200 OK", PLAIN)
        return Body(environ)

    assert Call(PoolingMiddleware(app, manager)).read() == b"x"
    assert (seen, in_use(manager)) == ([1], 0)


def test_no_lease_after_the_response_was_closed(manager: PoolManager) -> None:
    for app in (listed, streamed):
        call = Call(PoolingMiddleware(app, manager))
        call.read()
        with pytest.raises(LeaseError, match="pool 'a': cannot acquire, because this request's response was closed"):
            lease(call.environ, "a")
        assert in_use(manager) == 0


# -- nested middleware -----------------------------------------------------------


def others() -> PoolManager:
    manager = PoolManager()
    manager.create_pool("a", FakeAdapter(blocking=False), settings=NONE)
    return manager


def test_leases_of_an_outer_middleware_are_released(manager: PoolManager) -> None:
    inner = PoolingMiddleware(listed, others())

    def shell(environ: Any, start_response: Any) -> list[bytes]:
        mine = lease(environ, "a")
        body = list(inner(environ, start_response))
        assert (lease(environ, "a"), environ["pooling.manager"]) == (mine, manager)
        lease(environ, "b")  # which the inner one does not know
        return body

    assert Call(PoolingMiddleware(shell, manager)).read().startswith(b"<FakeResource")
    assert (in_use(manager), in_use(inner.manager)) == (0, 0)


def test_a_middleware_around_one_that_fails(manager: PoolManager) -> None:
    def fail(environ: Any, start_response: Any) -> list[bytes]:
        lease(environ, "a")
        raise RuntimeError("mine")

    inner = PoolingMiddleware(fail, others())

    def shell(environ: Any, start_response: Any) -> list[bytes]:
        with pytest.raises(RuntimeError, match="mine"):
            inner(environ, start_response)
        lease(environ, "b")
        start_response("500 Oh", PLAIN)
        return [b"x"]

    assert Call(PoolingMiddleware(shell, manager)).read() == b"x"
    assert (in_use(manager), in_use(inner.manager)) == (0, 0)


def test_a_stream_within_another_middleware(manager: PoolManager) -> None:
    """The outer middleware's code runs between its pieces."""
    seen: list[object] = []

    class Body:
        def __init__(self, environ: Any) -> None:
            self.environ = environ

        def __iter__(self) -> Iterator[bytes]:
            for _ in range(3):
                seen.append(self.environ["pooling.manager"])
                lease(self.environ, "a")
                yield b"x"

        def close(self) -> None:
            seen.append(self.environ["pooling.manager"])

    def streams(environ: Any, start_response: Any) -> Body:
        start_response("200 OK", PLAIN)
        return Body(environ)

    inner = PoolingMiddleware(streams, others())

    def shell(environ: Any, start_response: Any) -> Iterator[bytes]:
        body: Any = inner(environ, start_response)
        for piece in body:
            lease(environ, "b")
            yield piece
            assert (in_use(manager), in_use(inner.manager)) == (1, 1)
        body.close()
        assert (in_use(inner.manager), environ["pooling.manager"]) == (0, manager)

    assert Call(PoolingMiddleware(shell, manager)).read() == b"xxx"
    assert seen == [inner.manager] * 4
    assert in_use(manager) == 0


# -- errors ----------------------------------------------------------------------


def test_an_error_before_the_response(manager: PoolManager, adapter: FakeAdapter) -> None:
    def app(environ: Any, start_response: Any) -> list[bytes]:
        lease(environ, "a"), lease(environ, "b")
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        Call(PoolingMiddleware(app, manager))
    assert in_use(manager) == 0
    assert adapter.closed == 0


def test_is_broken_receives_the_error_of_the_block(manager: PoolManager, adapter: FakeAdapter) -> None:
    def app(environ: Any, start_response: Any) -> list[bytes]:
        lease(environ, "a")
        raise ConnectionError("gone")

    def stream(environ: Any, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", PLAIN)
        yield str(lease(environ, "a")).encode()
        raise ConnectionError("gone")

    with pytest.raises(ConnectionError):
        Call(PoolingMiddleware(app, manager))
    assert manager["a"].metrics.snapshot().closed == {"broken": 1} or manager["a"].stats()["closing"]
    with pytest.raises(ConnectionError):
        Call(PoolingMiddleware(stream, manager)).read()
    assert in_use(manager) == 0
    assert manager["a"].stats()["idle"] == 0


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_an_error_in_the_middle_of_a_stream(manager: PoolManager, error: type[BaseException]) -> None:
    def app(environ: Any, start_response: Any) -> Iterator[bytes]:
        lease(environ, "a")
        start_response("200 OK", PLAIN)
        yield b"x"
        raise error

    call = Call(PoolingMiddleware(app, manager))
    with pytest.raises(error):
        call.read()
    assert in_use(manager) == 0


def test_an_error_of_the_apps_close(manager: PoolManager) -> None:
    class Body(list[bytes]):
        def close(self) -> None:
            raise RuntimeError("mine")

    def app(environ: Any, start_response: Any) -> Body:
        lease(environ, "a")
        start_response("200 OK", PLAIN)
        return Body([b"x"])

    with pytest.raises(RuntimeError, match="mine"):
        Call(PoolingMiddleware(app, manager)).read()
    assert in_use(manager) == 0


def test_failing_release_does_not_prevent_the_other_releases(
    manager: PoolManager, caplog: pytest.LogCaptureFixture
) -> None:
    class Stubborn:
        def __enter__(self) -> int:
            return 1

        def __exit__(self, *args: object) -> None:
            raise OSError("no")

    real = manager.lease
    manager.lease = lambda name, timeout=None: Stubborn() if name == "b" else real(name, timeout)  # type: ignore[method-assign,assignment,return-value]

    def app(environ: Any, start_response: Any) -> list[bytes]:
        lease(environ, "a"), lease(environ, "b")
        start_response("200 OK", PLAIN)
        return [b"x"]

    assert Call(PoolingMiddleware(app, manager)).read() == b"x"
    assert in_use(manager) == 0
    assert "pool 'b': releasing at the end of a request failed" in caplog.text


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("stream", [False, True])
def test_interrupted_release_does_not_prevent_the_other_releases(
    manager: PoolManager, error: type[BaseException], stream: bool
) -> None:
    """P8: for example a worker's time limit that ends during the rollback of the last one."""

    class Interrupted:
        def __enter__(self) -> int:
            return 1

        def __exit__(self, *args: object) -> None:
            raise error

    real = manager.lease
    manager.lease = lambda name, timeout=None: Interrupted() if name == "c" else real(name, timeout)  # type: ignore[method-assign,assignment,return-value]
    held: list[object] = []  # as a traceback would

    def app(environ: Any, start_response: Any) -> Any:
        held.extend(lease(environ, name) for name in "abc")
        held.append(environ["pooling.scope"])
        start_response("200 OK", PLAIN)
        return iter([b"x"]) if stream else [b"x"]

    with pytest.raises(error) as raised:
        Call(PoolingMiddleware(app, manager)).read()
    assert in_use(manager) == 0
    assert [manager[name].stats()["idle"] for name in "ab"] == [1, 1]  # released, not found by the garbage collector
    del raised


def test_holder_is_the_applications_code(manager: PoolManager) -> None:
    """P12."""

    def wanting(environ: Any, start_response: Any) -> Iterator[bytes]:
        lease(environ, "a")
        start_response("200 OK", PLAIN)
        yield b"x"

    call = Call(PoolingMiddleware(wanting, manager))
    assert next(call.body) == b"x"
    with manager.lease("b"):
        held = [manager[name].holders()[0] for name in "ab"]
    assert [(os.path.basename(one.file), one.function) for one in held] == [
        ("test_wsgi.py", "wanting"), ("test_wsgi.py", "test_holder_is_the_applications_code"),
    ]  # fmt: skip
    call.close()


# -- limits ----------------------------------------------------------------------


def test_max_leases_bounds_each_request(manager: PoolManager) -> None:
    def app(environ: Any, start_response: Any) -> list[bytes]:
        lease(environ, "a"), lease(environ, "a")
        with pytest.raises(LeaseError, match="pool 'b': this request may hold at most 1 at once, and holds 'a'"):
            lease(environ, "b")
        start_response("200 OK", PLAIN)
        return [b"x"]

    middleware = PoolingMiddleware(app, manager, max_leases=1)
    assert Call(middleware).read() == Call(middleware).read() == b"x"


def test_exhausted_pool_raises_in_the_application(manager: PoolManager) -> None:
    def app(environ: Any, start_response: Any) -> list[bytes]:
        with pytest.raises(PoolTimeout):
            lease(environ, "a", timeout=0.0)
        start_response("200 OK", PLAIN)
        return [b"x"]

    with manager["a"].acquire(), manager["a"].acquire():
        assert Call(PoolingMiddleware(app, manager)).read() == b"x"


def test_lease_without_the_middleware_is_refused() -> None:
    with pytest.raises(LookupError, match="did not come through pooling's PoolingMiddleware"):
        lease({}, "a")


# -- construction ----------------------------------------------------------------


def test_pools_of_urls() -> None:
    middleware = PoolingMiddleware(
        listed, None, "sqlite:///x.db", urls={"api": "https://h", "log": "log.db"},
        settings=PoolSettings(max_uses=5), pool_recycle=1800, pool_pre_ping=True, connection_timeout=3,
    )  # fmt: skip
    manager = middleware.manager
    assert [type(manager[name]).__name__ for name in manager] == ["SQLitePool", "HTTPPool", "SQLitePool"]
    settings = manager["db"].settings
    assert (settings.max_lifetime, settings.acquire_timeout, settings.max_uses) == (1800.0, 3.0, 5)


def test_options_override_the_defaults_of_the_scheme() -> None:
    settings = PoolingMiddleware(listed, urls={"api": "https://h"}, pool_recycle=1800).manager["api"].settings
    assert (settings.min_size, settings.max_size, settings.max_lifetime) == (0, 100, 1800.0)
    settings = PoolingMiddleware(listed, urls={"api": "https://h"}, min_size=50).manager["api"].settings
    assert (settings.min_size, settings.max_size) == (50, 100)
    settings = PoolingMiddleware(
        listed, database_url="sqlite://", settings=PoolSettings(max_size=7), max_uses=5
    ).manager["db"].settings
    assert (settings.max_size, settings.max_uses) == (7, 5)


def test_redis_by_url() -> None:
    manager = PoolingMiddleware(listed, redis_url="redis://h/0").manager
    assert type(manager.get_pool("redis")).__name__ == "RedisPool"
    words = "unknown scheme 'radis'.*packages add others with an entry point.*create_pool.name, connect"
    with pytest.raises(ValueError, match=words):
        PoolingMiddleware(listed, redis_url="radis://h/0")
    assert "redis" not in PoolingMiddleware(listed).manager


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"app": 3}, TypeError, "app must be a WSGI application"),
        ({"manager": 3}, TypeError, "manager must be a PoolManager, not int"),
        ({"max_leases": 0}, ValueError, "max_leases must be at least 1"),
        ({"max_leases": True}, TypeError, "max_leases must be a whole number"),
        ({"health_path": "health"}, ValueError, "health_path must be a string that begins with a slash"),
        ({"health_token": "x"}, ValueError, "need a health_path"),
        ({"health_path": "/h", "health_token": ""}, ValueError, "health token must not be empty"),
        ({"health_path": "/h", "health_token": 3}, TypeError, "health token must be a string"),
        ({"health_path": "/h", "health_admit": 3}, TypeError, "health admit must be callable"),
        ({"database_url": "mysq://h"}, ValueError, "unknown scheme"),
        ({"pool_recicle": 3}, ValueError, "did you mean 'pool_recycle'"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        PoolingMiddleware(**{"app": listed, **arguments})


# -- health ----------------------------------------------------------------------


def test_health_is_off_by_default(manager: PoolManager) -> None:
    call = Call(PoolingMiddleware(listed, manager), "/health")
    assert call.read().startswith(b"<FakeResource")


def test_unauthenticated_callers_see_only_up_or_down(
    manager: PoolManager, adapter: FakeAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_health, "MAX_AGE", 0.0)
    middleware = PoolingMiddleware(listed, manager, health_path="/health", health_token="s3cret")
    call = Call(middleware, "/health", HTTP_AUTHORIZATION="Bearer wr0ng")
    assert (call.status, call.read(), call.headers["Content-Length"]) == ("200 OK", b"up", "2")
    assert Call(middleware, "/other").read().startswith(b"<FakeResource")
    adapter.final = (ConnectionRefusedError,)
    adapter.fail("create", ConnectionRefusedError("internal-host:5432"), times=1000)
    manager["a"].drain()
    call = Call(middleware, "/health")
    assert (call.status, call.read()) == ("503 Service Unavailable", b"down")


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_admitted_callers_see_details(manager: PoolManager, method: str) -> None:
    middleware = PoolingMiddleware(
        listed, manager, health_path="/health", health_token="s3cret",
        health_admit=lambda environ: environ["REMOTE_ADDR"] == "10.0.0.1",
    )  # fmt: skip
    for given in ({"HTTP_AUTHORIZATION": "bearer s3cret"}, {"REMOTE_ADDR": "10.0.0.1"}):
        call = Call(middleware, "/health", method, **{"REMOTE_ADDR": "10.0.0.2", **given})
        body = call.read()
        if method == "HEAD":
            assert body == b"" and int(call.headers["Content-Length"]) > 2
        else:
            assert json.loads(body)["pools"]["a"]["status"] == "up"


def test_token_may_be_non_ascii(manager: PoolManager) -> None:
    """Servers decode what a client sends byte by byte (PEP 3333)."""
    middleware = PoolingMiddleware(listed, manager, health_path="/health", health_token="größe€")
    sent = "größe€".encode().decode("latin-1")
    assert Call(middleware, "/health", HTTP_AUTHORIZATION=f"Bearer {sent}").read().startswith(b"{")
    for wrong in ("größe", "größe€", "gr\udcff", sent[:-1]):
        assert Call(middleware, "/health", HTTP_AUTHORIZATION=f"Bearer {wrong}").read() == b"up"


def test_other_methods_are_refused(manager: PoolManager) -> None:
    call = Call(PoolingMiddleware(listed, manager, health_path="/health"), "/health", "POST")
    assert (call.status, call.headers["Allow"]) == ("405 Method Not Allowed", "GET, HEAD")


def test_repeated_health_request_uses_the_last_result(
    manager: PoolManager, adapter: FakeAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_health, "MAX_AGE", 1000.0)
    middleware = PoolingMiddleware(listed, manager, health_path="/health")
    for _ in range(5):
        assert Call(middleware, "/health").read() == b"up"
    assert adapter.calls["validate"] == 1
    manager.shutdown()
    assert Call(middleware, "/health").read() == b"down"


def test_concurrent_health_requests_use_the_last_result(
    manager: PoolManager, adapter: FakeAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_health, "MAX_AGE", 0.0)
    endpoint = HealthEndpoint(lambda: manager, timeout=1000.0)
    assert ask_at_once(endpoint, 1) == ["up"]
    adapter.hold("validate")
    asking = threading.Thread(target=ask_at_once, args=(endpoint, 1))
    asking.start()
    adapter.until_held("validate")
    assert ask_at_once(endpoint, 1) == ["up"]
    adapter.let_go("validate")
    asking.join()
    assert adapter.calls["validate"] == 2


class Asked(PoolManager):
    """Counts its checks, and signals when all concurrent requests wait for the first of them."""

    def __init__(self, others: int) -> None:
        super().__init__()
        self.others, self.checks, self.waiting = others, 0, threading.Semaphore(0)

    def health_check(self, timeout: float = 5.0) -> Health:
        self.checks += 1
        for _ in range(self.others if self.checks == 1 else 0):
            if not self.waiting.acquire(timeout=30):  # they run a check of their own, instead
                break
        return super().health_check(timeout)


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[Callable[[], object]]:
    """Functions that are called when a request begins to wait for another one's check."""
    found: list[Callable[[], object]] = []

    class Telling(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            for tell in found:
                tell()
            return super().wait(timeout)

    monkeypatch.setattr(_health, "threading", SimpleNamespace(Event=Telling))
    return found


def ask_at_once(endpoint: HealthEndpoint, count: int) -> list[str]:
    found: list[str] = []
    threads = [
        threading.Thread(target=lambda: found.append(endpoint.answer({"REQUEST_METHOD": "GET"})[2].decode()))
        for _ in range(count)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def test_many_unauthenticated_requests_cost_one_check(
    waits: list[Callable[[], object]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also before the first result: requests that arrive meanwhile wait for the check in progress."""
    manager = Asked(19)
    manager.create_pool("a", FakeAdapter(blocking=False), settings=NONE)
    waits.append(manager.waiting.release)
    endpoint = HealthEndpoint(lambda: manager, timeout=60.0)
    assert ask_at_once(endpoint, 20) == ["up"] * 20
    assert manager.checks == 1
    monkeypatch.setattr(_health, "MAX_AGE", 0.0)
    assert ask_at_once(endpoint, 1) == ["up"] and manager.checks == 2  # that check is not in progress any more


def test_waiter_for_a_failed_health_check_runs_its_own(waits: list[Callable[[], object]]) -> None:
    class Failing(Asked):
        def health_check(self, timeout: float = 5.0) -> Health:
            found = super().health_check(timeout)
            if self.checks == 1:
                raise RuntimeError("mine")
            return found

    manager = Failing(1)
    waits.append(manager.waiting.release)
    endpoint = HealthEndpoint(lambda: manager, timeout=60.0)
    failed: list[str] = []

    def first() -> None:
        with pytest.raises(RuntimeError, match="mine"):
            endpoint.answer({"REQUEST_METHOD": "GET"})
        failed.append("yes")

    thread = threading.Thread(target=first)
    thread.start()
    while not manager.checks and thread.is_alive():
        pass
    assert ask_at_once(endpoint, 1) == ["up"]
    thread.join()
    assert (failed, manager.checks) == (["yes"], 2)


def test_health_check_that_never_ends_reports_down(
    manager: PoolManager, adapter: FakeAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_health, "GRACE", 0.0)
    endpoint = HealthEndpoint(lambda: manager, timeout=0.0)
    hung, end = threading.Event(), threading.Event()

    def never_ends(timeout: float) -> Health:
        hung.set()
        assert end.wait(30)
        raise RuntimeError("too late")

    def ask() -> None:
        with pytest.raises(RuntimeError, match="too late"):
            endpoint.answer({"REQUEST_METHOD": "GET"})

    with monkeypatch.context() as patch:
        patch.setattr(manager, "health_check", never_ends)
        thread = threading.Thread(target=ask)
        thread.start()
        assert hung.wait(30)
    assert endpoint.answer({"REQUEST_METHOD": "GET"})[2] == b"down"
    assert endpoint.answer({"REQUEST_METHOD": "GET"})[2] == b"up"
    end.set()
    thread.join()


# -- the protocol ----------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::wsgiref.validate.WSGIWarning")
@pytest.mark.parametrize("app", [listed, streamed])
@pytest.mark.parametrize("path", ["/", "/health"])
def test_middleware_conforms_to_wsgi_on_both_sides(
    manager: PoolManager, app: Callable[..., Iterable[bytes]], path: str
) -> None:
    """``validator`` complains of whatever PEP 3333 forbids, here above and below."""
    middleware = PoolingMiddleware(validator(app), manager, health_path="/health")
    call = Call(validator(middleware), path)
    assert call.read()
    del call
    assert in_use(manager) == 0



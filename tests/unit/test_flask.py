"""The Flask extension: several applications, proxies, streams, commands, and nothing left behind."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from flask import Flask, Response, g, request, stream_with_context
from flask.testing import FlaskClient

from pooling import LeaseError, Pool, PoolManager, PoolSettings
from pooling.testing import FakeAdapter, no_leaked_leases  # noqa: F401
from pooling.web import _health
from pooling.web.flask import Pooling

NONE = PoolSettings(min_size=0, max_size=2, health_check_interval=None, acquire_timeout=0.0)

pytestmark = pytest.mark.usefixtures("no_leaked_leases")


@pytest.fixture
def adapter() -> FakeAdapter:
    return FakeAdapter(blocking=False)


@pytest.fixture
def manager(adapter: FakeAdapter) -> PoolManager:
    manager = PoolManager()
    manager.create_pool("a", adapter, settings=NONE)
    manager.create_pool("b", FakeAdapter(blocking=False), settings=NONE)
    return manager


@pytest.fixture
def app(manager: PoolManager) -> Flask:
    app = Flask("test")
    pools = Pooling(app, manager=manager)
    thing = pools.proxy("a")

    @app.get("/")
    def index() -> str:
        assert pools.lease("a") is pools.lease("a")
        return str(thing.number)

    @app.get("/nothing")
    def nothing() -> str:
        return "nothing"

    @app.get("/stream")
    def stream() -> Response:
        held = pools.lease("a")
        return Response(str(held.number) for _ in range(3))

    @app.get("/context")
    def context() -> Response:
        def pieces() -> Iterator[str]:
            for _ in range(3):
                yield str(thing.number)

        return Response(stream_with_context(pieces()))

    @app.get("/broken")
    def broken() -> str:
        pools.lease("a")
        raise RuntimeError("mine")

    @app.get("/broken-stream")
    def broken_stream() -> Response:
        held = pools.lease("a")

        def pieces() -> Iterator[str]:
            yield str(held.number)
            raise RuntimeError("mine")

        return Response(pieces())

    @app.get("/dead")
    def dead() -> str:
        pools.lease("a")
        raise ConnectionError("gone")

    return app


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    return app.test_client()


def in_use(manager: PoolManager) -> int:
    return sum(manager[name].stats()["in_use"] for name in manager)


# -- requests --------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/", "/nothing", "/stream", "/context"])
@pytest.mark.parametrize("outer", [False, True])
def test_nothing_is_held_after_a_response(
    app: Flask, client: FlaskClient, manager: PoolManager, path: str, outer: bool
) -> None:
    """Also where a test has an application context open around the requests."""
    expected = {"/": b"1", "/nothing": b"nothing"}.get(path, b"111")
    for _ in range(3):
        if outer:
            with app.app_context():
                assert client.get(path).data == expected
                assert in_use(manager) == 0
        else:
            assert client.get(path).data == expected
            assert in_use(manager) == 0


@pytest.mark.parametrize("path", ["/stream", "/context"])
def test_stream_holds_its_lease_until_it_ends(client: FlaskClient, manager: PoolManager, path: str) -> None:
    response = client.get(path)
    pieces = response.iter_encoded()
    next(pieces)
    assert in_use(manager) == 1
    assert list(pieces) == [b"1", b"1"]
    assert in_use(manager) == 0
    response.close()


@pytest.mark.parametrize("path", ["/stream", "/context"])
def test_client_that_disconnects(client: FlaskClient, manager: PoolManager, path: str) -> None:
    response = client.get(path)
    next(response.iter_encoded())
    response.close()
    assert in_use(manager) == 0


@pytest.mark.parametrize("path", ["/", "/stream", "/context"])
def test_a_head_request(client: FlaskClient, manager: PoolManager, path: str) -> None:
    assert client.head(path).data == b""
    assert in_use(manager) == 0


def test_holder_is_the_applications_code(app: Flask, manager: PoolManager) -> None:
    """P12, also where the first use is that of a proxy."""
    thing = Pooling(manager=manager).proxy("a")

    @app.get("/holder")
    def wanting() -> str:
        assert thing.number
        return manager["a"].holders()[0].function

    @app.get("/lease")
    def leasing() -> str:
        Pooling(manager=manager).lease("a")
        return manager["a"].holders()[0].function

    client = app.test_client()
    assert client.get("/holder").text == "wanting"
    assert client.get("/lease").text == "leasing"
    with app.app_context():
        assert thing.number
        assert manager["a"].holders()[0].function == "test_holder_is_the_applications_code"


@pytest.mark.parametrize("propagate", [True, False])
def test_an_error_in_the_view(app: Flask, client: FlaskClient, manager: PoolManager, propagate: bool) -> None:
    app.config["PROPAGATE_EXCEPTIONS"] = propagate
    if propagate:
        with pytest.raises(RuntimeError, match="mine"):
            client.get("/broken")
    else:
        assert client.get("/broken").status_code == 500
    assert in_use(manager) == 0


def test_an_error_in_a_stream(client: FlaskClient, manager: PoolManager) -> None:
    response = client.get("/broken-stream")
    with pytest.raises(RuntimeError, match="mine"):
        list(response.iter_encoded())
    assert in_use(manager) == 0
    response.close()


def test_is_broken_receives_the_error_of_the_block(client: FlaskClient, manager: PoolManager) -> None:
    client.application.config["PROPAGATE_EXCEPTIONS"] = False
    assert client.get("/dead").status_code == 500
    assert (in_use(manager), manager["a"].stats()["idle"]) == (0, 0)


def test_preserved_context_in_a_test(client: FlaskClient, manager: PoolManager) -> None:
    with client:
        assert client.get("/").data == b"1"
        assert in_use(manager) == 0  # the context is preserved, but its teardown was done
    assert client.get("/").data == b"1"


def test_max_leases_bounds_each_request(manager: PoolManager) -> None:
    app = Flask("test")
    pools = Pooling(app, manager=manager, max_leases=1)
    with app.test_request_context():
        pools.lease("a")
        with pytest.raises(LeaseError, match="may hold at most 1 at once, and holds 'a'"):
            pools.lease("b")


# -- outside of requests ---------------------------------------------------------


def test_application_context_is_enough(app: Flask, manager: PoolManager) -> None:
    pools = Pooling(manager=manager)
    with app.app_context():
        assert pools.lease("a") is pools.lease("a")
        assert in_use(manager) == 1
    assert in_use(manager) == 0


def test_use_without_a_context_is_refused(manager: PoolManager) -> None:
    pools = Pooling(manager=manager)
    thing = pools.proxy("a")
    with pytest.raises(RuntimeError, match="application context"):
        pools.lease("a")
    with pytest.raises(RuntimeError, match="application context"):
        thing.number  # noqa: B018


def test_application_without_the_extension_is_refused() -> None:
    with Flask("other").app_context(), pytest.raises(RuntimeError, match="has no pools; call Pooling"):
        Pooling().lease("a")


# -- applications ----------------------------------------------------------------


def test_several_applications_have_their_own_pools() -> None:
    pools = Pooling()
    name = pools.proxy("db")
    apps = []
    for size in (1, 2):
        app = Flask(f"app{size}")
        app.config["POOLING"] = {"db": f"sqlite://?max_size={size}&min_size=0"}
        pools.init_app(app)
        apps.append(app)
    for size, app in enumerate(apps, 1):
        with app.app_context():
            assert pools.manager["db"].settings.max_size == size
            assert name.execute("SELECT 1").fetchone() == (1,)
            name.execute("CREATE TABLE mine (n)")  # each has a database of its own
    for app in apps:
        app.extensions["pooling"].shutdown()


def of(name: str, pools: Pooling) -> Flask:
    """An application with one pool of texts."""
    app = Flask(name)
    app.testing = True
    app.config["POOLING"] = {"db": Pool(lambda: [name], settings=NONE.replace(acquire_timeout=30.0), name=name)}
    pools.init_app(app)
    return app


def lent_by(app: Flask) -> int:
    return int(app.extensions["pooling"]["db"].stats()["in_use"])


@pytest.mark.parametrize("buffered", [True, False])
def test_an_application_within_a_request_of_another(buffered: bool) -> None:
    """Both see the same environment; each has its own leases and releases them itself."""
    pools = Pooling()
    outer, inner = of("outer", pools), of("inner", pools)

    @inner.get("/")
    def inside() -> Response:
        return Response(piece for piece in [pools.lease("db")[0], " ", pools.lease("db")[0]])

    @outer.get("/")
    def around() -> str:
        mine = pools.lease("db")
        answer = Response.from_app(inner, request.environ, buffered)
        assert pools.lease("db") is mine
        text = answer.get_data(as_text=True)
        answer.close()
        assert (pools.lease("db") is mine, lent_by(outer), lent_by(inner)) == (True, 1, 0)
        return f"{mine[0]} {text}"

    assert outer.test_client().get("/").text == "outer inner inner"
    assert (lent_by(outer), lent_by(inner)) == (0, 0)


def test_environment_that_is_served_twice() -> None:
    """Some middleware retries a failed request."""
    pools = Pooling()
    app = of("app", pools)
    codes = [503, 200]

    @app.get("/")
    def index() -> tuple[str, int]:
        return str(pools.lease("db")[0]), codes.pop(0)

    once = app.wsgi_app

    def twice(environ: Any, start_response: Any) -> Any:
        first = once(environ, lambda *args: None)
        b"".join(first)
        first.close()  # type: ignore[attr-defined]
        return once(environ, start_response)

    app.wsgi_app = twice  # type: ignore[method-assign]
    response = app.test_client().get("/")
    assert (response.status_code, response.text, lent_by(app)) == (200, "app", 0)


def test_a_pool_in_the_configuration(manager: PoolManager) -> None:
    app = Flask("test")
    app.config["POOLING"] = {"own": manager["a"]}
    Pooling(app)
    assert app.extensions["pooling"]["own"] is manager["a"]


def test_bad_configuration_is_reported(app: Flask) -> None:
    with pytest.raises(RuntimeError, match="already has the extension pooling"):
        Pooling(app)
    bad = Flask("bad")
    for said, error, words in (
        ("sqlite://", TypeError, r'app.config\["POOLING"\] must be a mapping, not str'),
        ({"db": "mysq://x"}, ValueError, "unknown scheme 'mysq'"),
        ({"db": 3}, TypeError, "not int"),
    ):
        bad.config["POOLING"] = said
        with pytest.raises(error, match=words):  # type: ignore[arg-type]
            Pooling(bad)


def test_g_is_left_alone(app: Flask) -> None:
    with app.test_request_context():
        Pooling().lease("a")
        assert list(g) == []


# -- health and commands ---------------------------------------------------------


def test_the_blueprint(
    app: Flask, adapter: FakeAdapter, manager: PoolManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_health, "MAX_AGE", 1000.0)
    pools = Pooling(manager=manager)
    app.register_blueprint(pools.health_blueprint("/healthz", token="s3cret"), url_prefix="/ops")
    app.register_blueprint(pools.health_blueprint("/other", name="other"))
    client = app.test_client()
    response = client.get("/ops/healthz")
    assert (response.status_code, response.text, response.headers["Cache-Control"]) == (200, "up", "no-store")
    found: Any = client.get("/ops/healthz", headers={"Authorization": "Bearer s3cret"}).json
    assert found["pools"]["a"]["status"] == "up"
    assert client.head("/ops/healthz").status_code == 200
    assert client.post("/ops/healthz").status_code == 405
    assert adapter.calls["validate"] == 1  # the other requests got the last result
    manager["a"].close()
    response = client.get("/other")
    assert (response.status_code, response.text) == (503, "down")


def test_status(app: Flask, manager: PoolManager) -> None:
    result = app.test_cli_runner().invoke(args=["pooling", "status"])
    assert result.exit_code == 0
    assert [line.split()[0] for line in result.output.splitlines()] == ["pool", "a", "b"]


def test_doctor(app: Flask, adapter: FakeAdapter, manager: PoolManager) -> None:
    runner = app.test_cli_runner()
    result = runner.invoke(args=["pooling", "doctor"])
    assert (result.exit_code, result.output.splitlines()[-1]) == (0, "overall: up")
    adapter.fail("create", ConnectionRefusedError("nobody there"), times=1000)
    manager["a"].drain()
    result = runner.invoke(args=["pooling", "doctor", "--timeout", "0"])
    assert result.exit_code == 1
    assert re.search(r"^down +a +.*nobody there", result.output, re.M)


def test_doctor_of_nothing() -> None:
    app = Flask("empty")
    Pooling(app)
    result = app.test_cli_runner().invoke(args=["pooling", "doctor"])
    assert (result.exit_code, 'no pools: app.config["POOLING"] is empty' in result.output) == (1, True)

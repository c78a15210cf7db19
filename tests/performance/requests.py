"""What does a request cost more under the middleware, and in Flask with the extension?"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from time import thread_time
from typing import Any, NamedTuple
from wsgiref.util import setup_testing_defaults

from pooling import PoolManager
from pooling.web.wsgi import PoolingMiddleware, lease

from . import figures
from .harness import Plan, calibrate, interleave
from .table import Column, Table, Target

__all__ = ["NAME", "run"]

NAME = "requests"
WITHOUT, WITH = 15.0, 25.0  # microseconds that a request may cost more, without a lease and with one
PLAIN = [("Content-Type", "text/plain")]

App = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


class Served(NamedTuple):
    """One application, and the one beside which its cost is measured."""

    name: str
    app: App
    bare: str | None = None
    limit: float | None = None

    def loop(self, times: int) -> None:
        """Serve so many requests, as a server does."""
        for _ in range(times):
            environ = dict(_ENVIRON)
            body = self.app(environ, _start_response)
            for _piece in body:
                pass
            close = getattr(body, "close", None)
            if close is not None:
                close()


def _start_response(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Callable[[bytes], None]:
    return lambda data: None


_ENVIRON: dict[str, Any] = {}
setup_testing_defaults(_ENVIRON)


def plain(environ: Any, start_response: Any) -> list[bytes]:
    """The least that an application does."""
    start_response("200 OK", PLAIN)
    return [b"x"]


def streaming(environ: Any, start_response: Any) -> Iterator[bytes]:
    """The least that one does whose body is made while it is sent."""
    start_response("200 OK", PLAIN)
    yield b"x"


def with_lease(app: App) -> App:
    """The same, and a connection is taken."""

    def leasing(environ: Any, start_response: Any) -> Iterable[bytes]:
        lease(environ, "db")
        return app(environ, start_response)

    return leasing


def _flask(manager: PoolManager | None, leasing: bool = False) -> App:
    from flask import Flask

    from pooling.web.flask import Pooling

    app = Flask(__name__)
    pools = Pooling(manager=manager)
    if manager is not None:
        pools.init_app(app)

    @app.get("/")
    def index() -> str:
        if leasing:
            pools.lease("db")
        return "x"

    return app


def _served(manager: PoolManager) -> list[Served]:
    apps = [
        Served("WSGI, bare", plain),
        Served("middleware", PoolingMiddleware(plain, manager), "WSGI, bare", WITHOUT),
        Served("middleware, a lease", PoolingMiddleware(with_lease(plain), manager), "WSGI, bare", WITH),
        Served("WSGI, streaming", streaming),
        Served("middleware, streaming", PoolingMiddleware(streaming, manager), "WSGI, streaming", WITHOUT),
        Served(
            "middleware, streaming, a lease", PoolingMiddleware(with_lease(streaming), manager),
            "WSGI, streaming", WITH,
        ),
    ]  # fmt: skip
    try:
        apps += [
            Served("Flask, bare", _flask(None)),
            Served("extension", _flask(manager), "Flask, bare", WITHOUT),
            Served("extension, a lease", _flask(manager, leasing=True), "Flask, bare", WITH),
        ]
    except ImportError:
        pass  # Flask is not installed
    return apps


def run(plan: Plan) -> Table:
    """Time requests without a server, each beside the bare application."""
    seconds = plan.choose(full=0.05, quick=0.02)
    count = plan.count(full=51, quick=11)
    with tempfile.TemporaryDirectory() as folder:
        manager = PoolManager()
        manager.create_pool("db", f"sqlite:///{Path(folder).as_posix()}/x.db")
        apps = _served(manager)
        manager.startup()
        times = {served.name: calibrate(served.loop, seconds) for served in apps}

        def measure(served: Served) -> float:
            began = thread_time()  # this thread's own: what others do meanwhile is not counted
            served.loop(times[served.name])
            return (thread_time() - began) / times[served.name] * 1e6

        rounds = interleave(apps, count, measure)
        manager.shutdown()
    samples = rounds.samples

    def more(served: Served) -> float | None:
        if served.bare is None or served.name not in samples or served.bare not in samples:
            return None
        return figures.median([one - bare for one, bare in zip(samples[served.name], samples[served.bare])])

    return Table(
        name=NAME,
        title=f"CPU time of a request without a server, {count} rounds",
        columns=(
            Column("name", "application"),
            Column("us", "µs", ",.2f"),
            Column("more", "more than bare", ",.2f"),
            Column("spread", "spread", ".0%"),
        ),
        rows=[
            {
                "name": served.name,
                "us": figures.median(samples[served.name]),
                "more": more(served),
                "spread": figures.spread(samples[served.name]),
            }
            for served in apps
            if served.name in samples
        ],
        targets=[Target(served.name, more(served), "<=", served.limit, " µs") for served in apps if served.limit],
        notes=("a lease is one of a SQLite connection, looked at and reset",),
        failures=rounds.failures,
    )

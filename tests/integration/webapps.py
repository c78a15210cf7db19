"""Two applications with the same pages, for real WSGI servers: with the middleware, and in Flask.

``python -m tests.integration.webapps NAME`` serves one with waitress and prints
its port. The pools' URLs come from ``WEBAPP_SQLITE`` and ``WEBAPP_POSTGRES``.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import parse_qs

from pooling import PoolManager
from pooling._signals import server_around
from pooling.web.wsgi import PoolingMiddleware, lease

PIECES = 20
PLAIN = [("Content-Type", "text/plain")]

Lend = Callable[[str], Any]


def urls() -> dict[str, str]:
    """Fewer connections than threads, so that requests queue for them."""
    query = "min_size=0&max_size=3&acquire_timeout=60"
    return {
        "lite": f"{os.environ['WEBAPP_SQLITE']}?{query}",
        "pg": f"{os.environ['WEBAPP_POSTGRES']}?{query}",
    }


def answer(lend: Lend, n: int) -> str:
    """Two facts about a number, one from each database."""
    (one,) = lend("pg").execute("SELECT %s::int * 2", (n,)).fetchone()
    (two,) = lend("lite").execute("SELECT ? * 3", (n,)).fetchone()
    return f"{one} {two}\n"


def pieces(lend: Lend, n: int) -> Iterator[bytes]:
    """A response whose pieces are produced while they are sent."""
    for number in range(PIECES):
        yield answer(lend, n + number).encode()


def endless(lend: Lend) -> Iterator[bytes]:
    """A response longer than any client reads."""
    while True:
        yield answer(lend, 1).encode() * 10_000


def state(manager: PoolManager) -> str:
    """The holders in this process."""
    names = ("lite", "pg")
    figures = {name: manager[name].metrics.snapshot() for name in names}
    return json.dumps({
        "pid": os.getpid(),
        "server": server_around(),
        "in_use": sum(one.in_use for one in figures.values()),
        "orphans": sum(one.orphans for one in figures.values()),
        "peak": max(one.peak_in_use for one in figures.values()),
        "acquired": sum(one.acquired for one in figures.values()),
    })  # fmt: skip


def pages(environ: dict[str, Any], start_response: Any) -> Any:
    """The bare application, to be wrapped in the middleware."""
    page, n = environ["PATH_INFO"], int(parse_qs(environ["QUERY_STRING"]).get("n", ["0"])[0])

    def lend(name: str) -> Any:
        return lease(environ, name)

    if page == "/before":
        lend("pg").execute("SELECT 1")
        raise RuntimeError("before start_response")
    start_response("200 OK", PLAIN)
    if page == "/answer":
        return [answer(lend, n).encode()]
    if page in ("/stream", "/context"):
        return pieces(lend, n)
    if page == "/endless":
        return endless(lend)
    if page == "/file":
        return environ["wsgi.file_wrapper"](open(__file__, "rb"))  # noqa: SIM115  # the server closes it
    if page == "/state":
        return [state(environ["pooling.manager"]).encode()]
    if page == "/after":
        lend("pg").execute("SELECT 1")
        raise RuntimeError("after start_response")
    return broken(lend)


def broken(lend: Lend) -> Iterator[bytes]:
    """A body that fails in the middle."""
    yield answer(lend, 1).encode()
    raise RuntimeError("in the middle")


def middleware() -> Any:
    """The pages with the middleware."""
    return PoolingMiddleware(pages, urls=urls(), health_path="/health")


def flask() -> Any:
    """The same pages in Flask."""
    from flask import Flask, Response, abort, request, send_file, stream_with_context

    from pooling.web.flask import Pooling

    app = Flask(__name__)
    app.config["POOLING"] = urls()
    pools = Pooling(app)
    app.register_blueprint(pools.health_blueprint("/health"))

    @app.get("/<page>")
    def show(page: str) -> Any:
        n = int(request.args.get("n", 0))
        if page == "answer":
            return answer(pools.lease, n)
        if page == "stream":  # without a context: acquire everything beforehand
            held = {name: pools.lease(name) for name in ("pg", "lite")}
            return Response(pieces(held.__getitem__, n), content_type="text/plain")
        if page == "context":
            return Response(stream_with_context(pieces(pools.lease, n)), content_type="text/plain")
        if page == "endless":
            return Response(stream_with_context(endless(pools.lease)), content_type="text/plain")
        if page == "broken":
            return Response(stream_with_context(broken(pools.lease)), content_type="text/plain")
        if page == "file":
            return send_file(__file__, mimetype="text/plain")
        if page == "state":
            return state(pools.manager)
        if page in ("before", "after"):
            pools.lease("pg").execute("SELECT 1")
            raise RuntimeError(page)
        return abort(404)

    return app


def application(environ: Any, start_response: Any) -> Any:
    """For gunicorn: the application named by ``WEBAPP``, created at each worker's first request."""
    global _made
    if _made is None:
        _made = globals()[os.environ["WEBAPP"]]()
    return _made(environ, start_response)


_made: Any = None


if __name__ == "__main__":
    import waitress

    server = waitress.create_server(globals()[sys.argv[1]](), host="127.0.0.1", port=0, threads=6)
    print(server.effective_port, flush=True)  # type: ignore[union-attr]
    server.run()

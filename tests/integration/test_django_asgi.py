"""Django's engine under ASGI: views that are coroutines, and those that run in a thread pool."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Coroutine, Iterator
from typing import Any, TypeVar

import pytest

from tests.servers import PostgresServer

django = pytest.importorskip("django")  # installed in CI: see test_django.py

from asgiref.sync import sync_to_async  # noqa: E402
from asgiref.testing import ApplicationCommunicator  # noqa: E402
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse  # noqa: E402

from tests.integration import django_site  # noqa: E402
from tests.integration.django_site import alter, one, route  # noqa: E402

PATIENCE = 60.0
T = TypeVar("T")


@pytest.fixture(scope="module", autouse=True)
def site(postgres: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with django_site.running(postgres, tmp_path_factory):
        yield


@pytest.fixture(autouse=True)
def coroutines_allowed(site: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Django refuses them if any database has ATOMIC_REQUESTS."""
    alter(monkeypatch, django.db.connections["second"], ATOMIC_REQUESTS=False)


class Client:
    """One request, step by step."""

    def __init__(self, path: str, query: str = "") -> None:
        from django.core.handlers.asgi import ASGIHandler

        self._app = ApplicationCommunicator(ASGIHandler(), {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "GET", "path": f"/{path}",
            "raw_path": path.encode(), "query_string": query.encode(), "headers": [], "scheme": "http",
        })  # fmt: skip

    async def ask(self) -> None:
        await self._app.send_input({"type": "http.request", "body": b"", "more_body": False})

    async def piece(self) -> Any:
        return await self._app.receive_output(PATIENCE)

    async def text(self) -> str:
        """Return the whole answer."""
        status, body, more = (await self.piece())["status"], b"", True
        while more:
            piece = await self.piece()
            body, more = body + piece.get("body", b""), piece.get("more_body", False)
        await self._app.wait(PATIENCE)
        assert status == 200
        return body.decode()

    async def leave(self) -> None:
        await self._app.send_input({"type": "http.disconnect"})

    async def over(self) -> None:
        """Wait until the application has finished with this request."""
        await self._app.wait(PATIENCE)


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run it; afterwards no lease is in use, no connection was lost, and none was created beyond the limit."""
    answer = asyncio.run(work)
    django_site.check_nothing_is_lent()
    stats = django.db.connections["default"].pool.stats()
    assert stats["size"] <= 2
    assert stats["size"] == stats["idle"]
    return answer


def ask(number: str) -> str:
    """Query the database on this thread's connection."""
    return str(one(django.db.connections["default"], "SELECT %s::int", number))


def view(request: HttpRequest) -> HttpResponse:
    return HttpResponse(ask(request.GET["n"]))


async def coroutine(request: HttpRequest) -> HttpResponse:
    return HttpResponse(await sync_to_async(ask)(request.GET["n"]))


def stream(request: HttpRequest) -> StreamingHttpResponse:
    return StreamingHttpResponse(f"{ask(request.GET['n'])}," for _ in range(3))


async def pieces(request: HttpRequest) -> StreamingHttpResponse:
    async def found() -> AsyncIterator[str]:
        for _ in range(3):
            yield f"{await sync_to_async(ask)(request.GET['n'])},"

    return StreamingHttpResponse(found())


@pytest.mark.filterwarnings("ignore:StreamingHttpResponse must consume:Warning")  # Django's warning about `stream`
def test_views_and_streams_of_both_kinds(site: None) -> None:
    """More requests at once than connections: each gets its own answer."""
    route(view=view, coroutine=coroutine, stream=stream, pieces=pieces)

    async def one_of_them(kind: str, number: int) -> str:
        client = Client(kind, f"n={number}")
        await client.ask()
        return await client.text()

    async def all_of_them() -> list[str]:
        return await asyncio.gather(*(one_of_them(kind, number) for kind, number in asked))

    asked = [(kind, number) for number in range(6) for kind in ("view", "coroutine", "stream", "pieces")]
    plain = {"view", "coroutine"}
    assert run(all_of_them()) == [str(n) if kind in plain else f"{n}," * 3 for kind, n in asked]


async def endless(request: HttpRequest) -> StreamingHttpResponse:
    """Read with a server-side cursor."""

    def open_cursor() -> Any:
        cursor = django.db.connections["default"].chunked_cursor()
        cursor.execute("SELECT n FROM generate_series(1, 1000000) n")
        return cursor

    async def found() -> AsyncIterator[str]:
        cursor = await sync_to_async(open_cursor)()
        try:
            while True:
                yield str((await sync_to_async(cursor.fetchone)())[0])
        finally:
            await sync_to_async(cursor.close)()

    return StreamingHttpResponse(found())


def test_a_client_that_disconnects_during_a_stream(site: None) -> None:
    route(endless=endless, view=view)

    async def leave() -> None:
        client = Client("endless")
        await client.ask()
        assert (await client.piece())["status"] == 200
        assert (await client.piece())["body"] == b"1"
        assert django.db.connections["default"].pool.stats()["in_use"] >= 1
        await client.leave()
        await client.over()

    async def more_often_than_there_are_connections() -> str:
        await asyncio.gather(*(leave() for _ in range(5)))
        client = Client("view", "n=7")
        await client.ask()
        return await client.text()

    assert run(more_often_than_there_are_connections()) == "7"


def test_a_client_that_disconnects_during_a_view(site: None) -> None:
    """The view's thread cannot be stopped: it continues with its query, and then releases its connection."""
    began, may_go_on = threading.Event(), threading.Event()
    told = []

    def slow(request: HttpRequest) -> HttpResponse:
        ask("1")
        began.set()
        assert may_go_on.wait(PATIENCE)
        told.append(ask("2"))
        return HttpResponse()

    route(slow=slow)

    async def leave() -> None:
        client = Client("slow")
        await client.ask()
        await asyncio.to_thread(began.wait, PATIENCE)
        await client.leave()
        await asyncio.sleep(0)  # so that the application notices it before the view continues
        may_go_on.set()
        await client.over()

    run(leave())
    assert told == ["2"]

"""The lane of a request by its path; the real thing is in `tests/integration/test_lanes`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from pooling import Lane, Pool, PoolTimeout
from pooling.lanes import current_lane, lane
from pooling.web._lanes import ByPath, LanePaths
from pooling.web.wsgi import PoolingMiddleware


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/", "web"), ("", "web"), ("/orders", "web"), ("/admin", "batch"), ("/admin/", "batch"),
        ("/admin/users", "batch"), ("/administrator", "web"), ("/admin/now", "urgent"), ("/admin/now/1", "urgent"),
        ("/admin/nowhere", "batch"),
    ],
)  # fmt: skip
def test_longest_prefix_of_whole_segments(path: str, name: str) -> None:
    assert LanePaths({"/admin": "batch", "/": "web", "/admin/now/": "urgent"}).of(path) == name


def test_path_without_a_lane() -> None:
    assert LanePaths({"/admin": "batch"}).of("/orders") is None


@pytest.mark.parametrize(
    ("paths", "kind", "rule"),
    [
        ("/admin", TypeError, r"lane_paths must be a mapping such as .*, not '/admin'"),
        ({"admin": "batch"}, ValueError, "lane_paths must have prefixes that begin with a slash, not 'admin'"),
        ({"/admin": ""}, ValueError, r"lane_paths\['/admin'\] must be the name of a lane, not ''"),
        ({"/admin": None}, ValueError, "must be the name of a lane, not None"),
    ],
)
def test_bad_paths(paths: Any, kind: type[Exception], rule: str) -> None:
    with pytest.raises(kind, match=rule):
        PoolingMiddleware(lambda environ, start: [], lane_paths=paths)


class Body:
    """A response body that records the lane of each of its calls."""

    def __init__(self) -> None:
        self.seen: list[str | None] = []

    def __iter__(self) -> Iterator[bytes]:
        self.seen.append(current_lane())
        yield b"piece"
        self.seen.append(current_lane())

    def close(self) -> None:
        self.seen.append(current_lane())


def test_streamed_body_is_produced_in_the_lane_and_nothing_else() -> None:
    body = Body()
    app = ByPath(lambda environ, start: body, LanePaths({"/": "batch"}))
    sent: Any = app({"PATH_INFO": "/x"}, lambda *args: None)
    assert current_lane() is None
    with lane("server"):
        for piece in sent:
            assert piece == b"piece" and current_lane() == "server"
        sent.close()
    assert body.seen == ["batch", "batch", "batch"] and current_lane() is None


def test_lane_ends_with_an_error() -> None:
    def app(environ: Any, start: Any) -> Any:
        assert current_lane() == "batch"
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        ByPath(app, LanePaths({"/": "batch"}))({"PATH_INFO": "/x"}, None)  # type: ignore[arg-type]
    assert current_lane() is None


def test_finished_body_is_passed_on_as_it_is() -> None:
    """So that the server sees its length."""
    body = [b"done"]
    assert ByPath(lambda environ, start: body, LanePaths({"/": "batch"}))({}, lambda *args: None) is body


def test_without_lane_paths_nothing_is_between() -> None:
    def app(environ: Any, start: Any) -> Any:
        return []

    assert not any(isinstance(each, ByPath) for each in vars(PoolingMiddleware(app)).values())
    assert any(isinstance(each, ByPath) for each in vars(PoolingMiddleware(app, lane_paths={"/": "web"})).values())


def test_prometheus_counts_by_lane(monkeypatch: pytest.MonkeyPatch) -> None:
    client = pytest.importorskip("prometheus_client")  # installed in CI
    from pooling.observe import figures
    from pooling.observe.prometheus import PoolCollector

    monkeypatch.setattr(figures, "MOST_POOLS", 1 << 20)  # other tests have pools, too

    def page() -> str:
        registry = client.CollectorRegistry()
        registry.register(PoolCollector())
        text: str = client.generate_latest(registry).decode()
        return text

    with Pool(object, name="plain", health_check_interval=None) as plain:
        plain.acquire().release()
        assert not [line for line in page().splitlines() if line.startswith("pooling_lane") and 'pool="plain"' in line]
        with Pool(object, name="laned", max_size=1, health_check_interval=None, lanes={"batch": Lane()}) as pool:
            with pool.acquire(lane="batch"), pytest.raises(PoolTimeout):
                pool.acquire(lane="batch", timeout=0.01)
            seen = page()
    assert 'pooling_lane_acquired_total{lane="batch",pool="laned"} 1.0' in seen
    assert 'pooling_lane_timeouts_total{lane="batch",pool="laned"} 1.0' in seen

"""The lane of a request, by its path."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from .._masking import shown
from ..lanes import lane

__all__ = ["ByPath", "LanePaths", "pieces"]

WSGIApp = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


class LanePaths:
    """Which lane the requests of a path are in.

    Args:
        paths: Names of lanes by prefix: ``{"/admin": "batch"}`` is for ``/admin`` and all below it. The longest prefix
            that fits counts; ``"/"`` fits all.

    Raises:
        TypeError, ValueError: It is not such a mapping.
    """

    def __init__(self, paths: Mapping[str, str]) -> None:
        if not isinstance(paths, Mapping):
            raise TypeError(f'lane_paths must be a mapping such as {{"/admin": "batch"}}, not {shown(paths)}')
        for prefix, name in paths.items():
            if not isinstance(prefix, str) or not prefix.startswith("/"):
                raise ValueError(f"lane_paths must have prefixes that begin with a slash, not {shown(prefix)}")
            if not isinstance(name, str) or not name:
                raise ValueError(f"lane_paths[{prefix!r}] must be the name of a lane, not {shown(name)}")
        bare = {prefix.rstrip("/"): name for prefix, name in paths.items()}
        self._paths = sorted(bare.items(), key=lambda item: -len(item[0]))

    def of(self, path: str) -> str | None:
        """Return the lane of a path; ``None`` if no prefix fits."""
        for prefix, name in self._paths:
            if path.startswith(prefix) and path[len(prefix) : len(prefix) + 1] in ("", "/"):
                return name
        return None


class ByPath:
    """A WSGI application within the lane of each request's path, also while its response is produced."""

    def __init__(self, app: WSGIApp, paths: LanePaths) -> None:
        self._app = app
        self._paths = paths

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        name = self._paths.of(environ.get("PATH_INFO", ""))
        if name is None:
            return self._app(environ, start_response)
        with lane(name):
            body = self._app(environ, start_response)
        kind = type(body)
        if kind is list or kind is tuple or kind is environ.get("wsgi.file_wrapper"):
            return body
        return _Body(body, name)


class _Body:
    __slots__ = ("_body", "_name", "_pieces")

    def __init__(self, body: Iterable[bytes], name: str) -> None:
        self._body, self._name = body, name
        self._pieces = pieces(body, name)

    def __iter__(self) -> Iterator[bytes]:
        return self._pieces

    def close(self) -> None:
        close = getattr(self._body, "close", None)
        if close is not None:
            with lane(self._name):
                close()


def pieces(body: Iterable[bytes], name: str) -> Iterator[bytes]:
    """Produce each piece of a body within a lane; between them, the caller's code is not in it."""
    with lane(name):
        left = iter(body)
    while True:
        with lane(name):
            try:
                piece = next(left)
            except StopIteration:
                return
        yield piece

"""The lane of each request by its path.

::

    MIDDLEWARE = ["pooling.web.django.lanes.lane_middleware", ...]   # first: others query the database, too
    POOLING_LANE_PATHS = {"/": "web", "/admin": "batch"}
    DATABASES = {"default": {..., "OPTIONS": {"pool": {"lanes": {"web": {"weight": 4}, "batch": {"most": 2}}}}}}

A connection is in the lane in which it was acquired: with Django's engines that is at the first query of a request. So
the decorator `pooling.lane` suits views whose middleware makes no queries, and `transaction.atomic` blocks.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Callable
from typing import Any

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured, MiddlewareNotUsed
from django.utils.decorators import sync_and_async_middleware

from ...lanes import lane
from .._lanes import LanePaths, pieces

__all__ = ["lane_middleware"]


@sync_and_async_middleware  # type: ignore[untyped-decorator]
def lane_middleware(get_response: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Run each request in the lane that ``POOLING_LANE_PATHS`` names for its path.

    Raises:
        ImproperlyConfigured: The setting is not a mapping of lanes by prefix.
    """
    given = getattr(settings, "POOLING_LANE_PATHS", None)
    if not given:
        raise MiddlewareNotUsed("POOLING_LANE_PATHS is empty")
    try:
        paths = LanePaths(given)
    except (TypeError, ValueError) as error:
        raise ImproperlyConfigured(str(error).replace("lane_paths", "POOLING_LANE_PATHS")) from None

    if inspect.iscoroutinefunction(get_response):

        async def in_lane(request: Any) -> Any:
            name = paths.of(request.path_info)
            if name is None:
                return await get_response(request)
            with lane(name):
                response = await get_response(request)
            return _streamed(response, name)

        return in_lane

    def in_lane_of_path(request: Any) -> Any:
        name = paths.of(request.path_info)
        if name is None:
            return get_response(request)
        with lane(name):
            response = get_response(request)
        return _streamed(response, name)

    return in_lane_of_path


def _streamed(response: Any, name: str) -> Any:
    """Let the content that is produced while it is sent be produced in the lane, too."""
    if getattr(response, "streaming", False) and not hasattr(response, "file_to_stream"):
        content = response.streaming_content
        response.streaming_content = _async_pieces(content, name) if response.is_async else pieces(content, name)
    return response


async def _async_pieces(content: Any, name: str) -> AsyncIterator[bytes]:
    left = content.__aiter__()
    while True:
        with lane(name):
            try:
                piece = await left.__anext__()
            except StopAsyncIteration:
                return
        yield piece

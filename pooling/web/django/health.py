"""A health view.

::

    urlpatterns = [path("health/", health), ...]
"""

from __future__ import annotations

import functools

from django.conf import settings
from django.db import transaction
from django.http import HttpRequest, HttpResponse

from .._health import HealthEndpoint
from ._pools import all_pools

__all__ = ["health"]


@functools.lru_cache(maxsize=4)
def _endpoint(token: str | None) -> HealthEndpoint:
    return HealthEndpoint(all_pools, token=token)


@transaction.non_atomic_requests  # type: ignore[untyped-decorator]
def health(request: HttpRequest) -> HttpResponse:
    """Answer 200 while the databases and the pools are up or degraded, 503 when one is down.

    Unauthenticated callers see only up or down. Callers that send
    ``settings.POOLING_HEALTH_TOKEN`` as ``Authorization: Bearer ...`` see details.
    """
    status, headers, body = _endpoint(getattr(settings, "POOLING_HEALTH_TOKEN", None)).answer(request.META)
    return HttpResponse(body, status=int(status.partition(" ")[0]), headers=dict(headers))

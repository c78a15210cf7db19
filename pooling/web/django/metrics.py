"""The metrics of all pools over HTTP, for Prometheus.

::

    urlpatterns = [path("metrics/", metrics), ...]
"""

from __future__ import annotations

import functools

from django.conf import settings
from django.db import transaction
from django.http import HttpRequest, HttpResponse

from .._metrics import MetricsEndpoint

__all__ = ["metrics"]


@functools.lru_cache(maxsize=4)
def _endpoint(token: str | None, names: str) -> MetricsEndpoint:
    return MetricsEndpoint(token=token, admit=_admit_none, names=names)


def _admit_none(environ: object) -> bool:
    return False


@transaction.non_atomic_requests  # type: ignore[untyped-decorator]
def metrics(request: HttpRequest) -> HttpResponse:
    """Answer with the metrics of this process's pools, or of all processes that share ``POOLING_METRICS_DIR``.

    Only a client that sends ``settings.POOLING_METRICS_TOKEN``, or where that
    is not set ``POOLING_HEALTH_TOKEN``, as ``Authorization: Bearer ...`` sees
    them; without such a setting, no client. ``settings.POOLING_METRICS_NAMES``
    may be ``"hikari"``, see `pooling.observe.prometheus`.
    """
    token = getattr(settings, "POOLING_METRICS_TOKEN", None) or getattr(settings, "POOLING_HEALTH_TOKEN", None)
    names = getattr(settings, "POOLING_METRICS_NAMES", "otel")
    status, headers, body = _endpoint(token, names).answer(request.META)
    return HttpResponse(body, status=int(status.partition(" ")[0]), headers=dict(headers))

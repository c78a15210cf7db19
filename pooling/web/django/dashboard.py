"""A page that shows all pools live, see `pooling.web.dashboard`.

::

    urlpatterns = [path("pools/", dashboard), ...]
"""

from __future__ import annotations

import functools

from django.conf import settings
from django.db import transaction
from django.http import HttpRequest, HttpResponse
from django.utils.module_loading import import_string

from ..dashboard import DashboardEndpoint

__all__ = ["dashboard"]


@functools.lru_cache(maxsize=4)
def _endpoint(token: str | None) -> DashboardEndpoint:
    return DashboardEndpoint(token=token, admit=_admit_none)


def _admit_none(environ: object) -> bool:
    return False


def _admits(request: HttpRequest) -> bool:
    admit = getattr(settings, "POOLING_DASHBOARD_ADMIT", None)
    if isinstance(admit, str):
        admit = import_string(admit)
    return admit is not None and bool(admit(request))


@transaction.non_atomic_requests  # type: ignore[untyped-decorator]
def dashboard(request: HttpRequest) -> HttpResponse:
    """Answer with the page, or with what it shows as JSON if the client accepts only that.

    A client is admitted if it sends ``settings.POOLING_DASHBOARD_TOKEN``, or
    where that is not set ``POOLING_HEALTH_TOKEN``, as ``Authorization: Bearer
    ...``, for which the page has a form; or if ``POOLING_DASHBOARD_ADMIT``, a
    function or its dotted path, returns true for the request, as ``lambda
    request: request.user.is_staff`` does. Without such a setting, no client is.
    """
    token = getattr(settings, "POOLING_DASHBOARD_TOKEN", None) or getattr(settings, "POOLING_HEALTH_TOKEN", None)
    status, headers, body = _endpoint(token).answer(request.META, _admits(request))
    return HttpResponse(body, status=int(status.partition(" ")[0]), headers=dict(headers))

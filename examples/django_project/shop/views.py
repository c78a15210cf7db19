"""Views; they need no change for pooling."""

from django.db import connection, transaction
from django.http import HttpRequest, HttpResponseBase, JsonResponse, StreamingHttpResponse
from django.views.decorators.csrf import csrf_exempt

from .models import Order


@csrf_exempt
@transaction.atomic
def orders(request: HttpRequest) -> HttpResponseBase:
    """List the last orders; add one."""
    if request.method == "POST":
        Order.objects.create(item=request.POST.get("item", "lamp"))
    last = Order.objects.order_by("-id").values("id", "item")[:10]
    return JsonResponse({"orders": list(last), "pool": repr(connection.pool)})


def export(request: HttpRequest) -> HttpResponseBase:
    """Stream all orders; the connection is released when the last one was sent."""
    lines = (f"{order.pk};{order.item}\n" for order in Order.objects.order_by("id").iterator())
    return StreamingHttpResponse(lines, content_type="text/csv")

"""The URLs of the views."""

from django.urls import path

from pooling.web.django.health import health

from . import views

urlpatterns = [
    path("", views.orders),
    path("orders/", views.orders),
    path("export/", views.export),
    path("health/", health),  # <-- 200 or 503
]

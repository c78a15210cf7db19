"""The app, for ``INSTALLED_APPS``."""

from __future__ import annotations

from django.apps import AppConfig
from django.core import checks

__all__ = ["PoolingConfig"]


class PoolingConfig(AppConfig):
    """System checks and the command ``pooling``. Opens nothing."""

    name = "pooling.web.django"
    label = "pooling"
    verbose_name = "Pooling"

    def ready(self) -> None:
        from . import checks as ours

        checks.register(ours.check_settings, "pooling")
        checks.register(ours.check_server, checks.Tags.database)

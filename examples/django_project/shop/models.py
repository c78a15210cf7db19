"""One table."""

from django.db import models


class Order(models.Model):
    """Something that somebody wants."""

    item = models.CharField(max_length=100)
    made = models.DateTimeField(auto_now_add=True)

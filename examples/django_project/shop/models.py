"""One table."""

from django.db import models


class Order(models.Model):
    """An order for one item."""

    item = models.CharField(max_length=100)
    made = models.DateTimeField(auto_now_add=True)

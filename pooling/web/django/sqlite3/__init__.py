"""``ENGINE = "pooling.web.django.sqlite3"``: Django's SQLite engine on a pool."""

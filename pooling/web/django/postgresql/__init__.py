"""``ENGINE = "pooling.web.django.postgresql"``: Django's PostgreSQL engine on a `PostgresPool`."""

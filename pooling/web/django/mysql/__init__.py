"""``ENGINE = "pooling.web.django.mysql"``: Django's engine for MySQL and MariaDB on a pool."""

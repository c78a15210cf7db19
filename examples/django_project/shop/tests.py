"""``python manage.py test --parallel``: each process has its own database and its own pool."""

import threading

from django.db import close_old_connections, connection
from django.test import LiveServerTestCase, TestCase, TransactionTestCase, skipUnlessDBFeature

from .models import Order


class OrdersTest(TestCase):
    def test_post(self) -> None:
        self.client.post("/orders/", {"item": "chair"})
        self.assertEqual(self.client.get("/orders/").json()["orders"][0]["item"], "chair")

    def test_isolated_from_other_tests(self) -> None:
        self.assertEqual(Order.objects.count(), 0)


class ExportTest(TransactionTestCase):
    def test_exports_all_orders(self) -> None:
        Order.objects.bulk_create(Order(item=f"item {n}") for n in range(5000))
        answer = self.client.get("/export/")
        self.assertEqual(len(b"".join(answer).splitlines()), 5000)

    @skipUnlessDBFeature("test_db_allows_multiple_connections")
    def test_threads(self) -> None:
        def work() -> None:
            Order.objects.create(item="lamp")
            close_old_connections()

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(Order.objects.count(), 8)


class LiveTest(LiveServerTestCase):
    def test_over_http(self) -> None:
        from urllib.request import urlopen

        with urlopen(f"{self.live_server_url}/health/") as answer:
            self.assertEqual(answer.read(), b"up")
        self.assertEqual(connection.vendor in ("sqlite", "postgresql"), True)

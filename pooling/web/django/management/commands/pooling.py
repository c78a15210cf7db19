"""``manage.py pooling status`` and ``manage.py pooling doctor``."""

from __future__ import annotations

import argparse
import io
from typing import Any

from django.core.checks import CheckMessage
from django.core.management.base import BaseCommand, CommandError
from django.db import Error, connections

from ....._console import Paint
from ....._reports import health_lines
from .....core.report.messages import format_error, printable
from ..._pools import all_pools, database_pools
from ..._servers import SERVERS, activity, clients_allowed
from ...checks import check_server, check_settings, worker_layout

__all__ = ["Command"]


class Command(BaseCommand):  # noqa: D101
    help = "Show the pools of this project and their servers' connections, or report problems."
    requires_system_checks: list[str] = []  # `doctor` runs ours, with more detail

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        actions = parser.add_subparsers(dest="action", required=True)
        actions.add_parser("status", help="Print the limits of each pool and its server's connections.")
        doctor = actions.add_parser("doctor", help="Acquire a connection from every pool and report problems.")
        doctor.add_argument("--timeout", type=float, default=5.0, help="seconds for all pools together")

    def handle(self, *args: object, **options: Any) -> None:
        if options["action"] == "status":
            self._status()
        else:
            self._doctor(options["timeout"])

    def _status(self) -> None:
        workers = worker_layout().workers
        for alias, pool in database_pools().items():
            most = pool.settings.max_size
            all_of_them = "" if workers is None else f", {workers} workers: {workers * most}"
            self.stdout.write(f"{alias}: {type(pool).__name__}, at most {most} in each process{all_of_them}")
            if connections[alias].vendor in SERVERS:
                self._activity(alias)
        self.stdout.write("")
        table = io.StringIO()  # Django's stdout ends a line of its own after each write
        all_pools().print_summary(table)
        heading, newline, rest = table.getvalue().partition("\n")
        self.stdout.write(Paint(self.stdout)("title", heading) + newline + rest)

    def _activity(self, alias: str) -> None:
        try:
            allowed = clients_allowed(connections[alias])
            rows = activity(connections[alias])
        except Error as error:
            self.stdout.write(f"  cannot query the server: {format_error(error)}")
            return
        self.stdout.write(f"  the server accepts {allowed}; connected now, besides this command:")
        for name, state, count in rows:
            self.stdout.write(f"  {count:5} {state:<20} {printable(name)}")

    def _doctor(self, timeout: float) -> None:
        messages = check_settings(None)
        if any(message.is_serious() for message in messages):
            self._report(messages)
            raise CommandError("the settings are invalid")
        manager = all_pools()
        if not len(manager):
            raise CommandError("no pools: no database uses an engine of pooling.web.django, and POOLING is empty")
        health = manager.health_check(timeout)
        lines = health_lines(health, Paint(self.stdout))
        for line in lines[:-1]:
            self.stdout.write(line)
        up = [alias for alias in database_pools() if health[f"database:{alias}"]]
        self._report(messages + check_server(None, databases=up))
        if not health:
            raise CommandError(f"overall: {health.status}")
        self.stdout.write(lines[-1])

    def _report(self, messages: list[CheckMessage]) -> None:
        for message in messages:
            self.stdout.write(f"{message.id}: {message.msg}" + (f". {message.hint}" if message.hint else ""))

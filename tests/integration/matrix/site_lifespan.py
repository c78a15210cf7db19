"""An application that requests signal handling under any server; its page shows the handlers of SIGTERM and SIGINT."""

from __future__ import annotations

import logging
import signal
from typing import Any

from pooling.manager import PoolManager, application_lifespan

heard: list[str] = []


class Hear(logging.Handler):
    """Keeps the library's log messages."""

    def emit(self, record: logging.LogRecord) -> None:
        heard.append(record.getMessage())


logger = logging.getLogger("pooling")
logger.addHandler(Hear())
logger.setLevel(logging.INFO)

NUMBERS = (signal.SIGTERM, signal.SIGINT)
before = [signal.getsignal(number) for number in NUMBERS]
manager = PoolManager()
manager.create_pool("a", object)
life = application_lifespan(manager=manager, signals=True)  # in the main thread of each worker
life.__enter__()


def application(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    same = [signal.getsignal(number) for number in NUMBERS] == before
    start_response("200 OK", [("Content-Type", "text/plain")])
    return ["\n".join([f"handlers are {'the same' if same else 'others'}", *heard]).encode()]

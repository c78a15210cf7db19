"""Child processes of the demo, and their protocol: one JSON object per line.

A child reads its orders from standard input and ends when that ends, so it dies
with its parent even if the parent is killed. It has its own process group, so
that Ctrl-C in a terminal reaches only the parent.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

__all__ = ["Child", "DemoError", "Message", "answer", "requests_of_parent", "die_with_parent"]

Message = dict[str, Any]

_GROUP: dict[str, Any] = {"start_new_session": True}
if sys.platform == "win32":
    _GROUP = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}


# The child imports from the same places as the parent.
_PROGRAM = "import sys; sys.path[:] = {path!r}; from {module} import main; main()"


class DemoError(Exception):
    """Something the demo needs does not work; the text is for the user."""


class Child:
    """A child process, seen from the parent.

    Args:
        module: The module with the child's ``main()``.
    """

    def __init__(self, module: str) -> None:
        self._name = module.rpartition(".")[2]
        self._process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM.format(path=sys.path, module=module)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            encoding="utf-8",
            **_GROUP,
        )

    def send(self, **order: Any) -> None:
        """Send an order.

        Raises:
            DemoError: The child has ended.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(order) + "\n")
            self._process.stdin.flush()
        except OSError:
            raise self._gone() from None

    def hear(self) -> Message:
        """Wait for the child's next line.

        Raises:
            DemoError: The child has ended, or reports an error.
        """
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise self._gone()
        message: Message = json.loads(line)
        if "error" in message:
            raise DemoError(message["error"])
        return message

    def ask(self, **order: Any) -> Message:
        """Send an order and wait for its answer; raises the errors of both."""
        self.send(**order)
        return self.hear()

    def kill(self) -> None:
        """Kill the child, if it has not ended, and wait for its end."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            with suppress(OSError):  # an order that it did not read
                pipe and pipe.close()

    def _gone(self) -> DemoError:
        return DemoError(f"the {self._name} process ended with code {self._process.wait()}")


def requests_of_parent() -> Iterator[Message]:
    """Yield the parent's orders until there are no more, or it is gone."""
    for line in sys.stdin:
        yield json.loads(line)


def answer(**message: Any) -> None:
    """Send a line to the parent."""
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def die_with_parent() -> None:
    """From now on, end this process at once when the parent closes the pipe or is gone.

    For a child that reads no further orders.
    """

    def watch() -> None:
        while os.read(0, 1024):
            pass
        os._exit(1)

    threading.Thread(target=watch, name="watch", daemon=True).start()

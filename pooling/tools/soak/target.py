"""The resources of the soak's pool: creation, use, and an independent count."""

from __future__ import annotations

import importlib
import threading
from collections.abc import Callable
from typing import Any

from ...core.adapter import Adapter, FunctionAdapter
from .echo import Connection, EchoAdapter

__all__ = ["BadOption", "Ledger", "Target", "WrongReply", "echo_target", "load", "user_target"]

Use = Callable[[Any, str], object]


class BadOption(Exception):
    """An option is invalid; the arguments are its name and the reason."""


class WrongReply(Exception):
    """A reply belongs to another request."""


class Target:
    """The resources to lend.

    Attributes:
        adapter: The adapter, which counts in `ledger`.
        ledger: An independent count of resources created and closed.
        use: Uses a resource. The second argument is a unique request.
        asks: Whether `use` checks that the reply belongs to its request.
        text: A description for people.
    """

    def __init__(self, adapter: Adapter[Any], use: Use, asks: bool, text: str) -> None:
        self.adapter, self.use, self.asks, self.text = adapter, use, asks, text
        self.ledger = Ledger(adapter)


class Ledger:
    """Counts at the adapter, independently of the pool, by wrapping its functions."""

    def __init__(self, adapter: Adapter[Any]) -> None:
        self._lock = threading.Lock()
        self.made = self.closed = self.open = self.most = 0  # guarded by _lock
        self._create, self._close = adapter.create, adapter.close
        adapter.create = self._counted_create  # type: ignore[method-assign]
        adapter.close = self._counted_close  # type: ignore[method-assign]

    def _counted_create(self) -> Any:
        with self._lock:
            self.open += 1  # counts from the start of its creation (P2)
            self.most = max(self.most, self.open)
        try:
            resource = self._create()
        except BaseException:
            with self._lock:
                self.open -= 1
            raise
        with self._lock:
            self.made += 1
        return resource

    def _counted_close(self, resource: Any) -> None:
        try:
            self._close(resource)
        finally:
            self._note_closed()

    def close_detached(self, detach: Callable[[], Any]) -> None:
        """Detach a resource from the pool and close it; the pool no longer counts it."""
        self._note_closed()
        self._close(detach())

    def _note_closed(self) -> None:
        with self._lock:
            self.closed += 1
            self.open -= 1


def echo_target(port: int) -> Target:
    """Return connections to the echo server."""

    def ask(connection: Connection, request: str) -> None:
        reply = connection.ask(request.encode())
        if reply != request.encode():
            raise WrongReply(f"sent {request!r}, got the reply {reply!r}")

    return Target(EchoAdapter(port), ask, True, f"connections to an echo server on port {port}")


def user_target(factory: str, **others: str | None) -> Target:
    """Return the user's resources, from the names of functions.

    Args:
        factory: ``package.module:callable``.
        others: ``close``, ``validate``, ``use``: likewise, or the name of a
            method of the resource. ``None`` means none, except for ``close``,
            where it means the resource's ``close()``, if it has one.

    Raises:
        BadOption: A name does not refer to something callable.
        Exception: Any error of the factory, which is called once to get a sample.
    """
    make = load("--factory", factory)
    functions = {name: None if text is None else load(f"--{name}", text) for name, text in others.items()}
    sample = make()
    close = functions["close"]
    if close is None and callable(getattr(sample, "close", None)):
        others, close = {**others, "close": "close"}, load("--close", "close")
    for name, text in others.items():
        if text is not None and ":" not in text and not callable(getattr(sample, text, None)):
            raise BadOption(f"--{name}", f"a {type(sample).__name__} has no method {text!r}")
    if close is not None:
        close(sample)
    use = functions["use"]
    named = ", ".join(f"{name} {text}" for name, text in others.items() if text is not None)
    return Target(
        FunctionAdapter(make, close, functions["validate"]),
        lambda resource, request: _use(use, resource),
        False,
        f"{type(sample).__name__} objects made by {factory}" + (f" ({named})" if named else ""),
    )


def _use(use: Callable[[Any], object] | None, resource: Any) -> None:
    if use is not None and use(resource) is False:
        raise WrongReply("--use returned False")


def load(option: str, text: str) -> Callable[..., Any]:
    """Return the function that ``package.module:callable`` names, or one that calls a method.

    Raises:
        BadOption: There is none.
    """
    module, colon, path = text.partition(":")
    if not colon and option != "--factory" and text.isidentifier():
        return lambda resource: getattr(resource, text)()
    if not (module and path):
        methods = "" if option == "--factory" else ", or the name of a method"
        raise BadOption(option, f"must be package.module:callable{methods}, not {text!r}")
    try:
        found: Any = importlib.import_module(module)
    except Exception as error:
        raise BadOption(option, f"cannot import {module!r}: {type(error).__name__}: {error}") from error
    for name in path.split("."):
        try:
            found = getattr(found, name)
        except AttributeError:
            raise BadOption(option, f"there is no {path!r} in {module!r}") from None
    if not callable(found):
        raise BadOption(option, f"{text!r} is not callable")
    function: Callable[..., Any] = found
    return function

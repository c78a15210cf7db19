"""What the checks need to know of a kind of target."""

from __future__ import annotations

import contextlib
import re
import secrets
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

from ..._masking import masked, without_secrets

__all__ = ["Check", "Target", "TIMEOUT"]

TIMEOUT = 10.0
"""Seconds to connect, and to wait for a resource where none is expected to be missing."""


class Check(NamedTuple):
    """One check.

    Attributes:
        name: As shown.
        seconds: How long it takes about, for the estimate.
        run: Returns what was seen.
    """

    name: str
    seconds: float
    run: Callable[[], str]


class Target:
    """A server, a file or a service to check; subclasses say how.

    Args:
        address: As the user gave it. It may contain a password, so it is never shown.

    Attributes:
        kind: What it is called.
        text: The address for display.
        secrets: What no message may show.
        tag: A random name, by which the target's own logs tell these connections apart.
    """

    kind = ""

    def __init__(self, address: str) -> None:
        self.address = address
        self.text = masked(address)
        self.secrets = {"", *_passwords(address)}
        self.tag = f"pooling-check-{secrets.token_hex(4)}"

    def pool(self, **settings: Any) -> Any:
        """Return a new pool of the target."""
        raise NotImplementedError

    def ping(self, resource: Any) -> None:
        """Make a round trip; raise if the answer is wrong."""
        raise NotImplementedError

    def identity(self, resource: Any) -> Any:
        """Return what the server calls this connection; ``None`` if it has no name."""
        return None

    def link(self, resource: Any) -> Any:
        """Return what this side knows the connection by, which a pooler in between does not change."""
        return self.identity(resource)

    def describe(self, resource: Any) -> str:
        """Return what the target is, such as ``PostgreSQL 18.1``."""
        raise NotImplementedError

    def checks(self) -> list[Check]:
        """Return all checks, in their order; if the first fails, the others are not run."""
        raise NotImplementedError

    def clean(self, text: str) -> str:
        """Return a message of a driver or a server in one line, without secrets."""
        for secret in self.secrets - {""}:
            text = text.replace(secret, "***")
        return re.sub(r"\s+", " ", without_secrets(text)).strip()


def _passwords(address: str) -> Iterator[str]:
    """Yield the password of a URL, as it is there and decoded."""
    with contextlib.suppress(ValueError):
        found = urlsplit(address).password or ""
        yield from (found, unquote(found))

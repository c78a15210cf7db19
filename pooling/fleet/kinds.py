"""Which store a text means."""

from __future__ import annotations

from .._masking import masked, shown
from .stores import Store

__all__ = ["open_store"]


def open_store(text: str, name: str) -> Store:
    """Return the store that a text means; nothing is opened before its first use.

    Args:
        text: ``"local:"``, ``"local:/path/of/a/file"``, ``"postgresql:"`` or a ``redis://`` URL.
        name: Of the budget.

    Raises:
        ValueError: It means none.
        TypeError: It is not a string.
    """
    if not isinstance(text, str):
        raise TypeError(f"store must be a string such as 'local:', not {shown(text)}")
    scheme, _, rest = text.partition(":")
    if scheme == "local":
        from .local import LocalStore

        return LocalStore(rest, name)
    if text in ("postgresql:", "postgresql", "postgres:", "postgres"):
        from .postgres import PostgresStore

        return PostgresStore(name)
    if scheme in ("redis", "rediss", "unix"):
        from .redis import RedisStore

        return RedisStore(text, name)
    raise ValueError(f"store must be 'local:', 'postgresql:' or begin with redis://, not {masked(text)!r}")

"""The structured fields of log records, for formatters that print ``extra=``."""

from __future__ import annotations

__all__ = ["fields"]


def fields(event: str, pool: str | None = None, **values: object) -> dict[str, object]:
    """Return the ``extra=`` of a log record.

    Every name has a prefix, because logging raises an error if a field clashes with an attribute of the record, also
    one that the application's own record factory sets.

    Args:
        event: The name of the event, as docs/reference/events.rst lists it: ``pooling_event``.
        pool: The name of the pool: ``pooling_pool``; ``None`` if it concerns no pool.
        values: Figures and texts of the message, without secrets: ``seconds`` becomes ``pooling_seconds``.
    """
    found: dict[str, object] = {"pooling_event": event}
    if pool is not None:
        found["pooling_pool"] = pool
    for name, value in values.items():
        found[f"pooling_{name}"] = value
    return found

"""Our errors as Django's, too: code that catches ``django.db.OperationalError`` goes on to work."""

from __future__ import annotations

from typing import Any

from django.db import OperationalError

from ... import errors

__all__ = ["as_django"]


def _with_django(kind: type[errors.PoolError]) -> type[errors.PoolError]:
    both: Any = type(kind.__name__, (kind, OperationalError), {"__doc__": kind.__doc__})
    both.__module__ = kind.__module__
    return both  # type: ignore[no-any-return]


_BOTH: dict[type[errors.PoolError], type[errors.PoolError]] = {
    kind: _with_django(kind)
    for kind in (
        errors.PoolTimeout, errors.PoolUnavailable, errors.TooManyWaiting,
        errors.PoolClosed, errors.CreateFailed,
    )
}  # fmt: skip


def as_django(error: errors.PoolError) -> errors.PoolError:
    """Return an error of the same class that is a ``django.db.OperationalError`` as well."""
    kind = _BOTH.get(type(error))
    if kind is None:
        return error
    both = kind(*error.args)
    both.__cause__ = error.__cause__
    both.__traceback__ = error.__traceback__
    return both

"""Makes our errors Django errors, too: code that catches ``django.db.OperationalError`` keeps working."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from django.db import OperationalError

from ... import errors

__all__ = ["as_django"]


_made: dict[tuple[type, ...], Any] = {}  # by their bases


def _class_of(*bases: type[Exception]) -> type[errors.PoolError]:
    kind = bases[0]
    made = _made.get(bases)
    if made is None:
        made = _made[bases] = type(kind.__name__, bases, {"__doc__": kind.__doc__, "__module__": kind.__module__})
    result: type[errors.PoolError] = made
    return result


_CONCERNED = {
    errors.PoolTimeout, errors.PoolUnavailable, errors.TooManyWaiting, errors.PoolClosed, errors.CreateFailed,
    errors.CircuitOpen,
}  # fmt: skip


def as_django(
    error: errors.PoolError, others: Mapping[type[errors.PoolError], type[Exception]]
) -> errors.PoolError:
    """Return an error of the same class that is a ``django.db.OperationalError`` as well.

    Args:
        error: The error.
        others: A further base class, by the error's class.
    """
    kind = type(error)
    if kind not in _CONCERNED:
        return error
    further = [others[kind]] if kind in others else []
    both = _class_of(kind, OperationalError, *further)(*error.args)
    vars(both).update(vars(error))  # `CircuitOpen.retry_after`
    both.__cause__ = error.__cause__
    both.__traceback__ = error.__traceback__
    return both

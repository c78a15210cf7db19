"""What can go wrong, as a tree::

    PoolError
    ├── PoolTimeout (TimeoutError)   none in time: exhausted (who holds them) or down (the cause chained)
    ├── PoolUnavailable              the server is down and the caller should not wait (cause chained)
    ├── TooManyWaiting               max_waiting reached
    ├── PoolClosed                   the pool was closed before or during the call
    ├── CreateFailed                 final: wrong password, unknown database (cause chained)
    ├── TransactionRolledBack        a block ended well, and its transaction was rolled back all the same
    └── LeaseError                   released twice, used after release or after a fork: a bug, so loud

Every message names the pool and its counts (P12).
"""

__all__ = [
    "PoolError",
    "PoolTimeout",
    "PoolUnavailable",
    "TooManyWaiting",
    "PoolClosed",
    "CreateFailed",
    "TransactionRolledBack",
    "LeaseError",
]


class PoolError(Exception):
    """Any failure of a pool itself; catching it catches all the others."""


class PoolTimeout(PoolError, TimeoutError):
    """No resource came within the time the caller was ready to wait.

    Either all are in use, and the message says who holds them since when, or
    the server is down, and the last real error is the ``__cause__``.
    """


class PoolUnavailable(PoolError):
    """The server is down and the caller asked not to wait for it.

    The last real error is the ``__cause__``.
    """


class TooManyWaiting(PoolError):
    """``max_waiting`` threads are in line already, so this one was refused."""


class PoolClosed(PoolError):
    """The pool was closed before the call or while it waited."""


class CreateFailed(PoolError):
    """A resource cannot be made, and trying again would not help.

    A wrong password, an unknown database: the driver's error is the
    ``__cause__``.
    """


class TransactionRolledBack(PoolError):
    """A block ended without an error, and yet nothing that it did was stored.

    A statement failed in it, the block caught the error and went on, and the
    database had already rolled the transaction back. The message names the
    statement. What a pool raises is an error of its driver as well
    (``psycopg.Error``, ``sqlite3.Error``).
    """


class LeaseError(PoolError):
    """A lease was released twice, or used after its release or after a fork."""


for _name in __all__:  # users import from `pooling`; say so in tracebacks
    globals()[_name].__module__ = "pooling"

"""The exceptions::

    PoolError
    ├── PoolTimeout (TimeoutError)   no resource in time: exhausted (names the holders) or down (cause chained)
    ├── PoolUnavailable              the server is down and the caller did not want to wait (cause chained)
    │   └── CircuitOpen              the server keeps failing, so the call was not made
    ├── TooManyWaiting               max_waiting reached
    ├── PoolClosed                   the pool was closed before or during the call
    ├── CreateFailed                 final: wrong password, unknown database (cause chained)
    ├── TransactionRolledBack        a block ended without an error, but its transaction was rolled back
    ├── CommandTimeout (TimeoutError) a command took longer than its limit, and its connection was closed
    ├── CommitUnknown                the connection was lost during a commit
    └── LeaseError                   released twice, used after release or after a fork: a bug in the caller

Every message gives the pool's name and counts (P12).
"""

__all__ = [
    "PoolError",
    "PoolTimeout",
    "PoolUnavailable",
    "CircuitOpen",
    "TooManyWaiting",
    "PoolClosed",
    "CreateFailed",
    "TransactionRolledBack",
    "CommandTimeout",
    "CommitUnknown",
    "LeaseError",
]


class PoolError(Exception):
    """Base class of all errors raised by a pool."""


class PoolTimeout(PoolError, TimeoutError):
    """No resource became available within the timeout.

    Either all are in use, and the message gives the holders and how long they
    have held them, or the server is down, and the last real error is the
    ``__cause__``.
    """


class PoolUnavailable(PoolError):
    """The server is down, and the caller does not wait for it any longer.

    That is so for ``acquire(timeout=0)``, after ``max_attempts`` failed
    creations in a row, and while a circuit breaker is open (`CircuitOpen`).
    The last real error is the ``__cause__``.
    """


class CircuitOpen(PoolUnavailable):
    """The server keeps failing, so this call was not made; see `CircuitBreaker`.

    Attributes:
        retry_after: Seconds until a call is made again.
    """

    def __init__(self, text: str, retry_after: float = 0.0) -> None:
        super().__init__(text)
        self.retry_after = retry_after


class TooManyWaiting(PoolError):
    """The wait queue is full: ``max_waiting`` threads are already waiting."""


class PoolClosed(PoolError):
    """The pool was closed before the call or while it was waiting."""


class CreateFailed(PoolError):
    """A resource cannot be created, and another attempt would not help.

    Examples are a wrong password and an unknown database. The driver's error
    is the ``__cause__``.
    """


class TransactionRolledBack(PoolError):
    """A block ended without an error, but none of its changes were stored.

    A statement in the block failed, the block caught the error and continued,
    and the database had already rolled the transaction back. The message names
    the statement. The error that a pool raises is also an error of its driver
    (``psycopg.Error``, ``sqlite3.Error``).
    """


class CommandTimeout(PoolError, TimeoutError):
    """A command took longer than its limit and the server could not be made to stop it.

    The connection was closed, and the outcome of the command is unknown. The
    error that a pool raises is also an error of its driver.
    """


class CommitUnknown(PoolError):
    """The connection was lost during a commit, whose outcome is unknown.

    The driver's error is the ``__cause__``. Only the data can tell whether it
    was committed; running the work again could do it twice. The error that a
    pool raises is also an error of its driver.
    """


class LeaseError(PoolError):
    """A lease was released twice, used after its release, or used after a fork."""


for _name in __all__:  # where users import them from, for tracebacks
    globals()[_name].__module__ = "pooling"

"""`SQLitePool`, and a map of its parts:

`pool`        the pool that users call: statements, transactions, health checks
`split`       a pool of writers and a pool of readers, with the interface of one
`blocks`      ``with db.connection()``
`adapter`     how connections are created, checked, reset and closed
`connection`  the connections that are lent; they record what a reset must undo
`traces`      which PRAGMAs a reset cannot undo
`limit`       the time limit of statements
`queries`     durations of statements, and the slowest of them
`upkeep`      size, statistics and integrity of the file
`memory`      databases in memory
`paths`       paths and ``file:`` URIs
`urls`        ``sqlite://`` URLs
`arguments`   checks of arguments
`turns`       readers that let a waiting writer run
"""

from .adapter import SQLiteAdapter
from .pool import SQLitePool

__all__ = ["SQLiteAdapter", "SQLitePool"]

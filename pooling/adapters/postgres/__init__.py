"""`PostgresPool`: psycopg 3 connections in a pool.

A connection is made in `adapter`, with the parameters from `address`. It is of
a class from `tracking`, which notes in `Notes` what a borrower does with it.
`session` configures it once, and cleans it for each borrower. `blocks` commit
at the end of ``with db.connection()``. `adapter` validates and closes it.

The pool:

`pool`          `PostgresPool` and its verbs
`blocks`        ``with db.connection()`` and ``with db.transaction()``
`executing`     statements of the verbs
`advice`        `PostgresPool.advise`
`adapter`       `PostgresAdapter`: how connections are made, checked and closed
`address`       the connection parameters; `complaint` about malformed ones

A connection and its session:

`tracking`      the connection classes, and `Notes` about each connection
`session`       configuring and cleaning; `configured`: what a hook did
`unfinished`    what a borrower has left open, such as a COPY
`foreign`       connections of other classes
`limits`        time limits of commands
`stalls`        connections for which the server does not work any more
`statistics`    how long queries take
`failures`      what an error means
`wire`          round trips with a time limit, and sockets
`greenlets`     psycopg under gevent

Internals of psycopg, each in one module, with a way to do without (``POOLING_PLAIN``):

`internals`     which names are used where, and whether they exist
`client_state`  the attributes of a connection, restored for each borrower
`committing`    COMMIT in one round trip with the cleaning
`beginning`     BEGIN in one round trip with the first statement
`commands`      BEGIN, COMMIT and savepoints
`cursors`       cursors
`connecting`    ``connect()`` of a class that the user wrote
`trace`         SQLSTATEs of failed attempts to connect, by ``PQtrace``
`steps`         the statement that is being executed

Private: users import from `pooling`.
"""

from .adapter import PostgresAdapter
from .blocks import CommitUnknown
from .limits import CommandTimeout
from .pool import PostgresPool

__all__ = ["CommandTimeout", "CommitUnknown", "PostgresAdapter", "PostgresPool"]

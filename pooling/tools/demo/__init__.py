"""``python -m pooling demo``: the same work without a pool and with one, checked and measured.

A local service of market data, in a process of its own, answers each request
with a quote that it makes up and writes down. Thirty-two threads fetch quotes
and store them in a database: first as code without a pool does, with a new
session and a new database connection for each piece of work, then through an
``HTTPPool`` and a database pool. At the end every row in the database must be
exactly one that the service wrote down::

    run.py            the parent: starts the others, shows progress, decides the exit code
     ├─ stage.py      what must be gone at the end, however it comes: processes, files, tables
     ├─ child.py      a process of ours that dies with its parent, and how to talk with it
     │   ├─ service.py     the HTTP service      (certificates.py makes its certificate)
     │   └─ work.py        one phase: the threads (naive.py, pooled.py: the two ways to work)
     ├─ place.py      the table that a phase fills: made, read back and dropped
     ├─ quotes.py     what is served and stored, and the check
     └─ table.py      the figures, side by side

Each phase has a process of its own as well, so that neither inherits the
memory or the warm caches of the other.
"""

"""``python -m pooling demo``: the same work without a pool and with one, checked and measured.

A local market-data service, in its own process, answers each request with an
invented quote and records it. Thirty-two threads fetch quotes and store them in
a database: first without a pool, with a new session and a new database
connection for each job, then through an ``HTTPPool`` and a database pool. At the
end every row in the database must match a quote that the service recorded::

    run.py            the parent: starts the others, shows progress, decides the exit code
     ├─ stage.py      cleans up at the end, however it comes: processes, files, tables
     ├─ child.py      a child process that dies with its parent, and how to talk to it
     │   ├─ service.py     the HTTP service      (certificates.py creates its certificate)
     │   └─ work.py        one phase: the threads (naive.py, pooled.py: without and with pools)
     ├─ place.py      the table of a phase: created, read back and dropped
     ├─ quotes.py     the quotes, and the check
     └─ table.py      the figures, side by side

Each phase also has its own process, so that neither inherits the memory or the
warm caches of the other.
"""

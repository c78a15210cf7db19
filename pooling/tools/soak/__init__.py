"""``python -m pooling soak``: runs a pool under load and faults for any length of time, and gives a verdict.

Threads borrow from one pool and check its guarantees, while resources are
drained, discarded, leaked and detached, and the pool is resized. By default it
lends TCP connections to its own server, in a separate process, that sometimes
refuses, hangs up, stalls and breaks down; with ``--factory`` it lends your own
resources::

    run.py            the command: options, signals, the sequence of steps
     ├─ load.py       the pool, the borrowing threads, the operations on the pool
     ├─ target.py     the resources: the user's functions, or echo.py; and their count
     │   └─ echo.py   the default: connections, and the server that answers them
     └─ verdict.py    memory, descriptors and threads of the process; the checks
"""

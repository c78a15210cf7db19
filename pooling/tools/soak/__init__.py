"""``python -m pooling soak``: a pool under load and faults for as long as you like, and a verdict.

Threads borrow from one pool and put its promises to the test, while resources
are drained, discarded, forgotten and taken out, and the pool is resized. By
default it lends TCP connections to a server of the soak's own, in a process of
its own, that refuses, hangs up, stalls and breaks down now and then; with
``--factory`` it lends whatever you make::

    run.py            the command: options, signals, the order of events
     ├─ load.py       the pool, the threads that borrow, what is done to the pool meanwhile
     ├─ target.py     what is lent: the user's functions, or echo.py; and how many there are
     │   └─ echo.py   the default: connections, and the server that answers them
     └─ verdict.py    what the machine says of memory, descriptors and threads; the checks
"""

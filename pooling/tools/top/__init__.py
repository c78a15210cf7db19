"""``python -m pooling top``: the pools of running applications, live in a terminal.

::

    run.py            the command: options, one picture, JSON, or the loop of the live screen
     ├─ shown.py      what is shown: rows, filters, order, and what each key changes
     ├─ screen.py     the picture: title, lists that share the height, help, footer
     │   ├─ lists.py  the columns of pools, workers, holders and events
     │   ├─ grid.py   rows and columns as lines that fit a width
     │   └─ units.py  seconds, bytes and counts in a few characters
     └─ terminal.py   the terminal from start to restore: screen, signals, suspend
         └─ keys.py   keys from POSIX and Windows terminals

`pooling.observe.view` reads the figures. Only `screen`, `lists`, `grid` and `terminal` need rich.
"""

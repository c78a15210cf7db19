"""``python -m pooling check``: the essential checks of a pool against the user's own servers, in a minute.

It writes nothing that lasts: temporary tables, and in Redis a key with a random name that expires::

    run.py              the command: targets, progress, signals, exit code
     ├─ outcome.py      what a check found, as text and as JSON
     └─ targets.py      which kind of target an address is
         ├─ postgres.py, mysql.py, sqlite.py, redis.py, http.py    the checks of each kind
         └─ general.py  checks of any pool; resource.py: what they need to know of a kind
"""

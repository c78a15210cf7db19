"""Whole applications on every WSGI server in every mode: ``python -m tests.integration.matrix``.

A *cell* is one server in one mode with one kind of application, whose pools
are made, opened and used at import: before the fork where the mode forks. It
goes through load, clients that disconnect in the middle of a stream, a rolling
restart, a worker that is killed, workers that time out in the middle of a wait
and of a query, recycling after so many requests, and its end. In all of this
no answer may be wrong, no lease may be left, the server may not have more
connections than the processes that are there may open, and nothing may be said
on standard error.
"""

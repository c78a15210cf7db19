"""Whole applications on every WSGI server in every mode: ``python -m tests.integration.matrix``.

A *cell* is one server in one mode with one kind of application, whose pools
are created, opened and used at import: before the fork, if the mode forks. It
goes through load, clients that disconnect in the middle of a stream, a rolling
restart, a killed worker, workers that time out in the middle of a wait
and of a query, recycling after a number of requests, and shutdown. Throughout,
no answer may be wrong, no lease may be left, the database server may not have more
connections than the existing processes may open, and there may be no output
on standard error.
"""

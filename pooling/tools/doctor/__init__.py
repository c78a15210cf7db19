"""The doctor: checks a server for use with pools, and reports problems and the settings that fix them.

`facts.read` queries the server, `rules.examine` compares the facts with the
plan, `sizing.size_for` computes the size for recorded waits. It uses psycopg
to connect, and no pool.
"""

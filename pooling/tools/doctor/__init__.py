"""The doctor: looks at a server through a pool's eyes, and says what is wrong and what to set.

`facts.read` asks the server, `rules.examine` judges what it answered against
what is planned, `sizing.size_for` finds the size that recorded waits ask for.
Knows psycopg, where it connects, and nothing of the pools.
"""

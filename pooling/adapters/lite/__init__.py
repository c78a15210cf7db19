"""The parts of a `SQLitePool`.

`adapter` makes, looks at and cleans connections; `connection` is what is lent,
and notes what is done with it; `queries` counts and times its statements.
"""

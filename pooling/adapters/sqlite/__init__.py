"""The parts of a `SQLitePool`.

`adapter` makes, looks at and cleans connections; `connection` is what is lent,
and notes what is done with it; `traces` knows which PRAGMAs stay in it;
`queries` counts and times its statements; `own` is for those of the pool.
"""

from .adapter import SQLiteAdapter
from .pool import SQLitePool

__all__ = ["SQLiteAdapter", "SQLitePool"]

"""The parts of `PostgresPool`, each of which knows one thing about PostgreSQL.

``address`` what to connect to, ``failures`` what an error means, ``wire`` round
trips with a time limit, ``session`` what a borrower leaves behind, ``limits``
commands that take too long, ``statistics`` how long queries take, ``adapter``
how a connection is made and kept. Private: users import from `pooling`.
"""

from .adapter import PostgresAdapter
from .blocks import CommitUnknown
from .limits import CommandTimeout
from .pool import PostgresPool

__all__ = ["CommandTimeout", "CommitUnknown", "PostgresAdapter", "PostgresPool"]

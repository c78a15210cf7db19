"""`MySQLPool`: connections to MySQL and MariaDB in a pool.

A connection is made in `adapter`, with the parameters from `address`, by a
driver. It is of a subclass of the driver's class that keeps `Notes` of what a
borrower does with it. `session` configures it once, and cleans it for each
borrower. `blocks` commit at the end of ``with db.connection()``. `adapter`
validates and closes it.

`pool`         `MySQLPool` and its verbs
`blocks`       ``with db.connection()`` and ``with db.transaction()``
`adapter`      `MySQLAdapter`: how connections are made, checked and closed
`session`      configuring and cleaning
`address`      the connection parameters: URLs, and callables that return them
`tracking`     `Notes` about each connection
`failures`     what an error means
`statistics`   texts of queries
`wire`         several commands in one round trip, and sockets

`driver`       `Driver`: what the pool needs of a driver
`drivers`      which one is taken
`pymysql`      PyMySQL, with its private names (``POOLING_PLAIN``)
`connector`    mysql-connector-python
`mysqlclient`  mysqlclient

What it shares with other pools of database servers is in ``adapters/shared``.
Private: users import from `pooling`.
"""

from .adapter import MySQLAdapter
from .pool import MySQLPool

__all__ = ["MySQLAdapter", "MySQLPool"]

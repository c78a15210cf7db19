"""MongoDB with pymongo, which pools its connections itself: a manager checks and shows them beside the other pools.

``python examples/recipes/mongo.py mongodb://HOST:PORT/ DATABASE TEXT...``
"""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # from a checkout, too
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from pymongo import MongoClient

from pooling import PoolManager
from pooling.adapters.mongo import PoolEvents


def mongo_client(url: str, **options: Any) -> MongoClient[dict[str, Any]]:
    """Return a client whose connections a manager can show."""
    return MongoClient(url, event_listeners=[PoolEvents()], **{"waitQueueTimeoutMS": 10_000, **options})


def main() -> None:
    """Insert the texts, and print how many there are, and what the manager knows of the client."""
    url, database, *texts = sys.argv[1:]
    manager = PoolManager()
    manager.add_pool(mongo_client(url, maxPoolSize=2), "mongo")
    with manager:  # reports a server that is down; closes the client at the end
        notes = manager.get_pool("mongo")[database]["notes"]
        with ThreadPoolExecutor(8) as threads:
            list(threads.map(lambda text: notes.insert_one({"text": text}), texts))
        print(f"{notes.count_documents({})} notes")
        health, figures = manager.health_check()["mongo"], manager.metrics()["mongo"]
        print(f"{health.status}, {figures['active_connections']} in use, {figures['connection_requests']} requests")
        print(f"{figures['total_connections_created']} connections")


if __name__ == "__main__":
    main()

"""RabbitMQ with pika: threads publish over a few connections, each with one channel.

``python examples/recipes/rabbitmq.py amqp://USER:PASSWORD@HOST:PORT/ QUEUE TEXT...``
"""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # from a checkout, too
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import pika
from pika.adapters.blocking_connection import BlockingChannel
from pika.exceptions import AMQPError

from pooling import Pool

HEARTBEAT = 60
"""Seconds. pika answers heartbeats only while it is called, so the pool calls it for idle connections, too."""


def channel_pool(url: str, **settings: Any) -> Pool[BlockingChannel]:
    """Return a pool of channels, each on a connection of its own, because pika's are not thread-safe."""
    parameters = pika.URLParameters(url)
    parameters.heartbeat = HEARTBEAT

    def connect() -> BlockingChannel:
        channel = pika.BlockingConnection(parameters).channel()
        channel.confirm_delivery()
        return channel

    def validate(channel: BlockingChannel) -> bool:
        channel.connection.process_data_events()  # sends and answers heartbeats, and notices a closed connection
        return bool(channel.is_open)

    def is_broken(channel: BlockingChannel, error: BaseException) -> bool:
        return isinstance(error, AMQPError) and not (channel.is_open and channel.connection.is_open)

    return Pool(
        connect, close=lambda channel: channel.connection.close(), validate=validate,
        reset=lambda channel: bool(channel.is_open), is_broken=is_broken, name="rabbitmq",
        **{"keepalive_interval": HEARTBEAT / 3, **settings},
    )  # fmt: skip


def main() -> None:
    """Publish the texts, and print how many the queue has."""
    url, queue, *texts = sys.argv[1:]
    with channel_pool(url, max_size=2) as pool, ThreadPoolExecutor(8) as threads:
        with pool.acquire() as channel:
            channel.queue_declare(queue, durable=True)

        def publish(text: str) -> None:
            with pool.acquire() as channel:
                channel.basic_publish("", queue, text.encode(), mandatory=True)  # raises unless it is stored

        list(threads.map(publish, texts))
        with pool.acquire() as channel:
            print(f"{channel.queue_declare(queue, passive=True).method.message_count} messages in {queue}")
        print(f"{pool.metrics.snapshot().created} connections")


if __name__ == "__main__":
    main()

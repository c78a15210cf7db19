"""The checks of Redis and Valkey."""

from __future__ import annotations

import contextlib
import secrets
from typing import Any

import redis

from ...adapters.redis import RedisPool
from .general import general_checks, replaced
from .outcome import Failed, Skipped
from .resource import TIMEOUT, Check, Target

__all__ = ["Redis"]

_EXPIRES = 60  # seconds, if something prevents the key's deletion


class Redis(Target):
    """A server, by its URL.

    Raises:
        ValueError: The URL is invalid.
    """

    kind = "Redis"

    def __init__(self, address: str) -> None:
        super().__init__(address)
        self.pool().close()  # nothing is opened; it only checks the address

    def pool(self, **settings: Any) -> Any:
        return RedisPool.from_url(
            self.address, name="check", client_name=self.tag,
            **{"min_size": 0, "acquire_timeout": TIMEOUT, "create_timeout": TIMEOUT, **settings},
        )  # fmt: skip

    def ping(self, resource: Any) -> None:
        nonce = secrets.token_hex(4)
        answer = resource.execute_command("ECHO", nonce)
        if answer not in (nonce, nonce.encode()):
            raise Failed(f"the server answered {answer!r} to {nonce!r}")

    def identity(self, resource: Any) -> Any:
        return resource.execute_command("CLIENT ID")

    def describe(self, resource: Any) -> str:
        try:
            info = resource.info("server")
        except redis.ResponseError:
            return "Redis"
        self.kind = "Valkey" if "valkey_version" in info else "Redis"
        tls = "TLS" if self.address.startswith("rediss:") else "not encrypted"
        return f"{self.kind} {info.get('valkey_version') or info['redis_version']}, {tls}"

    def checks(self) -> list[Check]:
        general = general_checks(self)
        return [
            general["connect"], general["acquire"], Check("clean", 0.1, self._clean), general["timeout"],
            general["fairness"], Check("dead connection", 0.3, self._dead),
            Check("transaction", 0.1, self._transaction), general["fork"], general["close"],
        ]  # fmt: skip

    def _clean(self) -> str:
        key = self._key()
        with self.pool(max_size=1) as pool:
            with pool.acquire() as client:
                client.execute_command("WATCH", key)
                client.execute_command("MULTI")
            with pool.acquire() as client:
                self.ping(client)  # within MULTI the answer would be QUEUED
            with pool.acquire() as client:
                listener = client.pubsub()
                listener.subscribe(key)
            with pool.acquire() as client:
                self.ping(client)
        return "the next borrower sees nothing of these: WATCH, MULTI, SUBSCRIBE"

    def _dead(self) -> str:
        def end(number: Any, client: Any) -> None:
            try:
                client.execute_command("CLIENT KILL", "ID", number)
            except redis.ResponseError as error:
                raise Skipped(f"not tried: {self.clean(str(error))}") from None

        return replaced(self, end)

    def _transaction(self) -> str:
        key = self._key()
        with self.pool(max_size=1) as pool:
            with pool.acquire() as client:
                try:
                    with client.pipeline(transaction=True) as pipe:
                        pipe.set(key, 1, ex=_EXPIRES, nx=True)
                        pipe.incr(key)
                        done = pipe.execute()
                except redis.ResponseError as error:
                    raise Skipped(f"not tried: {self.clean(str(error))}") from None
                with contextlib.suppress(_Intended), client.pipeline(transaction=True) as pipe:
                    pipe.incr(key)
                    raise _Intended
            with pool.acquire() as client:
                value = int(client.get(key) or 0)
                client.delete(key)
        if done != [True, 2] or value != 2:
            raise Failed(f"MULTI and EXEC returned {done}, and the key has the value {value}, not 2")
        return "MULTI and EXEC take effect as one, a pipeline that is left does not, with a temporary key"

    def _key(self) -> str:
        return f"pooling:check:{secrets.token_hex(12)}"


class _Intended(Exception):
    pass

"""Separates redis-py's arguments from the pool's, and refuses what this pool does not have."""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qs, urlsplit

import redis.connection

from ..._masking import shown, split
from ...settings import _OWN_NAMES, PoolSettings, _unknown, truth, with_options

__all__ = ["checked", "from_query", "named", "settings_of"]

_REFUSED = {
    "cache": "client-side caching needs redis-py's own pool",
    "cache_config": "client-side caching needs redis-py's own pool",
    "cache_factory": "client-side caching needs redis-py's own pool",
    "maint_notifications_pool_handler": "maintenance notifications need redis-py's own pool",
    "oss_cluster_maint_notifications_handler": "maintenance notifications need redis-py's own pool",
    "queue_class": "waiting threads are always served in order of arrival",
}
# Arguments that redis-py's connections and `PoolSettings` both have; the former is meant.
_THEIRS = {"health_check_interval"}
# redis-py takes "off" for true, and leaves some as texts.
_TRUTHS = {
    "decode_responses", "legacy_responses", "retry_on_timeout", "socket_keepalive", "ssl_check_hostname",
    "ssl_validate_ocsp", "ssl_validate_ocsp_stapled",
}  # fmt: skip
OWN = frozenset(_OWN_NAMES) - _THEIRS
"""The fields of `PoolSettings` that are arguments of a `RedisPool`."""


def checked(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments for connections.

    Raises:
        ValueError: One asks for what this pool does not have.
    """
    kwargs = dict(kwargs)
    for name, reason in _REFUSED.items():
        if kwargs.pop(name, None) is not None:
            raise ValueError(f"{name} is not supported by RedisPool: {reason}")
    config = kwargs.pop("maint_notifications_config", None)
    if config is not None and getattr(config, "enabled", True) not in (False, "auto"):  # auto: where it is possible
        raise ValueError(
            "maint_notifications_config is not supported by RedisPool: maintenance notifications need redis-py's own "
            "pool; pass MaintNotificationsConfig(enabled=False) or nothing"
        )
    return kwargs


def named(error: TypeError) -> TypeError:
    """Return redis-py's error about an unknown argument as one of `RedisPool`, with a hint; others unchanged."""
    unknown = re.search(r"unexpected keyword argument '(\w+)'", str(error))
    return error if unknown is None else TypeError(f"RedisPool(): {_unknown(unknown[1], OWN)}")


def settings_of(settings: PoolSettings | None, options: dict[str, Any], class_init: Any) -> PoolSettings:
    """Return the settings of a pool.

    Args:
        settings: The settings to begin with; ``None`` means the defaults.
        options: Arguments of the pool; those for its settings are removed: our names, and
            ``max_connections`` and ``timeout`` of redis-py's pools.
        class_init: The constructor that is named in errors.

    Raises:
        TypeError, ValueError: As for `PoolSettings`; or one is given under two names.
    """
    if settings is not None and not isinstance(settings, PoolSettings):
        raise TypeError(f"settings must be a PoolSettings, not {shown(settings)}")
    own = {name: options.pop(name) for name in list(options) if name in OWN}
    most = options.pop("max_connections", None)
    if most is not None:
        _once(own, "max_size", "max_connections")
        own["max_size"] = most
    if "timeout" in options:
        _once(own, "acquire_timeout", "timeout")
        timeout = options.pop("timeout")
        own["acquire_timeout"] = threading.TIMEOUT_MAX if timeout is None else timeout
    return with_options(settings or PoolSettings(), own, class_init)


def _once(own: Mapping[str, Any], ours: str, theirs: str) -> None:
    if ours in own:
        raise TypeError(f"{ours} and {theirs} mean the same: give one of them")


def from_query(url: str) -> dict[str, Any]:
    """Return the arguments that a URL contains.

    Raises:
        ValueError: It is not a URL of Redis, or a value is invalid.
    """
    split(url)  # redis-py would quote what it takes for the port
    parse: Any = redis.connection.parse_url
    found: dict[str, Any] = dict(parse(url))
    own = {name: text for name, text in found.items() if name in OWN and isinstance(text, str)}
    if own:
        settings = PoolSettings.from_mapping(own)
        for name in own:
            found[name] = getattr(settings.backoff, name.removeprefix("backoff_"), None)
            if not name.startswith("backoff_"):
                found[name] = getattr(settings, name)
    for name, (text, *_) in parse_qs(urlsplit(url).query).items():
        if name in _TRUTHS:
            try:
                found[name] = truth(text)
            except ValueError as rule:
                raise ValueError(f"{name}={shown(text)}: {rule}") from None
    if isinstance(found.get("timeout"), str):  # redis-py 5 leaves it a string
        found["timeout"] = float(found["timeout"])
    return found

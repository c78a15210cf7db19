"""The servers of a cluster, from what a user gives."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from psycopg.conninfo import conninfo_to_dict, make_conninfo

from .._masking import shown
from ..adapters.postgres.address import Address

__all__ = ["Place", "places_of", "split_url"]

#: Parameters that choose one of several hosts, which the cluster does itself.
_CHOOSING = ("target_session_attrs", "load_balance_hosts")
_LISTS = ("host", "hostaddr", "port")
_PORT = "5432"


class Place(NamedTuple):
    """One server.

    Attributes:
        label: Its name within the cluster: the host, with the port where that is not 5432 or the host occurs twice.
        conninfo: How to connect to it.
    """

    label: str
    conninfo: str


def places_of(primary: str, replicas: Iterable[str] | Mapping[str, str]) -> list[Place]:
    """Return the servers, in the order given.

    Args:
        primary: A URL or ``key=value`` text; it may list several hosts.
        replicas: The same for others, perhaps by name.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An address is malformed, or one server is given twice. The message leaves addresses out, because
            they may contain a password.
    """
    if isinstance(replicas, (str, bytes)) or not isinstance(replicas, Iterable):
        raise TypeError(f"replicas must be several addresses, not a {type(replicas).__name__}")
    given = list(replicas.items()) if isinstance(replicas, Mapping) else [(None, one) for one in replicas]
    found: list[tuple[str | None, str, str, dict[str, Any]]] = []
    for what, label, conninfo in [("primary", None, primary), *(("replicas", *one) for one in given)]:
        if not isinstance(conninfo, str):
            raise TypeError(f"{what} must be given as text, not as a {type(conninfo).__name__}")
        if label is not None and not (isinstance(label, str) and label):
            raise TypeError(f"replicas: a name must be a non-empty string, not {shown(label)}")
        servers = _split(conninfo, what)
        if label is not None and len(servers) > 1:
            raise ValueError(f"replicas: {shown(label)} names {len(servers)} hosts; a name is for one")
        found += [(label, *server) for server in servers]
    hosts = [host for _, host, _, _ in found]
    places: dict[str, Place] = {}
    seen: set[tuple[str, str]] = set()
    for label, host, port, parameters in found:
        if (host, port) in seen:
            raise ValueError(f"server {host}:{port} is given twice")
        seen.add((host, port))
        own = label or (host if port == _PORT and hosts.count(host) == 1 else f"{host}:{port}")
        if own in places:
            raise ValueError(f"replicas: the name {shown(own)} is given twice")
        places[own] = Place(own, make_conninfo("", **parameters))
    return list(places.values())


def split_url(url: str) -> tuple[str, dict[str, Any]]:
    """Return a URL for libpq, and the arguments of the cluster that were in its query.

    Raises:
        ValueError: One of these is no number.
    """
    rest, given = f"postgresql://{url.partition('://')[2]}", dict[str, Any]()
    for name, kind in (("max_lag", float), ("primary_reads", _number)):
        found = re.search(rf"(?<=[?&]){name}=([^&@]*)(?:&|$)", rest)
        if found is not None:
            rest = (rest[: found.start()] + rest[found.end() :]).rstrip("?&")
            try:
                given[name] = kind(found[1])
            except ValueError:
                raise ValueError(f"invalid value: {name}={shown(found[1])}") from None
    return rest, given


def _number(text: str) -> float | None:
    """Return a number of reads, a part of the size if there is a point in it, or ``None``."""
    if text.lower() in ("none", "never"):
        return None
    return float(text) if "." in text else int(text)


def _split(conninfo: str, what: str) -> list[tuple[str, str, dict[str, Any]]]:
    """Return host, port and parameters of each server that one address lists."""
    try:
        answer = Address(conninfo, None, 10.0, {}).ask()
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from None
    parameters = conninfo_to_dict(answer.conninfo)
    lists = {name: str(parameters.pop(name)).split(",") for name in _LISTS if parameters.get(name)}
    for name in _CHOOSING:
        parameters.pop(name, None)
    number = max(len(lists.get("host", [""])), len(lists.get("hostaddr", [""])))
    for name, values in lists.items():
        if len(values) not in ((1, number) if name == "port" else (number,)):
            raise ValueError(f"{what}: {number} hosts, but {len(values)} values of {name}")
    servers = []
    for place in range(number):
        own = {name: values[place % len(values)] for name, values in lists.items() if values[place % len(values)]}
        host = own.get("host") or own.get("hostaddr") or "local"
        # "any", because PGTARGETSESSIONATTRS in the environment must not refuse the replicas
        servers.append((host, own.get("port", _PORT), {**parameters, **own, "target_session_attrs": "any"}))
    return servers

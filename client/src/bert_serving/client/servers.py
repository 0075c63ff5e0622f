"""Which servers a client has: their addresses and keys, and what each says of itself."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, TypeAlias

from .calls import StatusCall
from .endpoint import Endpoint
from .keys import connection_keys

ServerKey: TypeAlias = str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None


def server_endpoints(
    addresses: Sequence[str], server_key: ServerKey, client_cert: str | os.PathLike[str] | None
) -> list[Endpoint]:
    """Return where servers are, with the keys to speak to them: one `server_key`, or one each."""
    if server_key is None or isinstance(server_key, (str, os.PathLike)):
        keys = connection_keys(server_key, client_cert)
        return [Endpoint(address, keys) for address in addresses]
    if len(server_key) != len(addresses):
        raise ValueError(f"{len(server_key)} server_key for {len(addresses)} servers: one each")
    return [
        Endpoint(address, connection_keys(key, client_cert))
        for address, key in zip(addresses, server_key, strict=True)
    ]


def server_addresses(servers: Sequence[str] | None, ip: str, port: int) -> list[str]:
    """Return the ZeroMQ addresses of a client's servers: one, or several `HOST:PORT`."""
    if servers is None:
        return [server_address(ip, port)]
    if isinstance(servers, (str, bytes)) or not servers:
        raise ValueError(f'servers={servers!r}: expected a list such as ["gpu1:5555", "gpu2:5555"]')
    addresses = []
    for server in servers:
        host, _, number = str(server).removeprefix("tcp://").rpartition(":")
        if not host or not number.isdecimal():
            raise ValueError(f"servers has {server!r}: expected HOST:PORT")
        addresses.append(server_address(host.strip("[]"), int(number)))
    if len(set(addresses)) < len(addresses):
        raise ValueError(f"servers={servers!r} has one of them twice")
    return addresses


def server_address(ip: str, port: int) -> str:
    """Return the ZeroMQ address of a server; an IPv6 address is put in brackets."""
    if type(port) is not int or not 0 < port < 65536:
        raise ValueError(f"port={port!r}: expected an int between 1 and 65535")
    if not isinstance(ip, str) or not ip or any(c.isspace() for c in ip):
        raise ValueError(f"ip={ip!r}: expected a host name or an address")
    host = f"[{ip}]" if ":" in ip and not ip.startswith("[") else ip
    return f"tcp://{host}:{port}"


def check_one_server(endpoints: Sequence[Endpoint]) -> None:
    """Refuse a group to a client of several servers: each server has groups of its own."""
    if len(endpoints) > 1:
        raise ValueError("groups are one server's: use a client with one server, not servers=[…]")


def statuses(endpoints: Sequence[Endpoint], calls: Sequence[StatusCall]) -> list[dict[str, Any]]:
    """Return each server's status, or that it has not answered."""
    found = []
    for endpoint, call in zip(endpoints, calls, strict=True):
        status = dict(call.status)
        if call.error is not None:
            status = {"state": "unreachable", "workers": [], "error": str(call.error)}
        found.append({**status, "address": str(endpoint)})
    return found

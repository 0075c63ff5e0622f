"""The ports a server is to listen on: which, whether they go together, whether each is free."""

from __future__ import annotations

import errno
import socket as sockets
from collections.abc import Mapping

from .config import ServerConfig

HIGHEST = 65535
ADVICE = "give each a port of its own; -legacy_port_out is, by default, the one after -legacy_port"


def listening_ports(config: ServerConfig) -> dict[str, int]:
    """Return the ports that are named, by option; any free one is none of them."""
    named = {
        "port": config.port,
        "backend_port": config.backend_port,
        "legacy_port": config.legacy_port,
        "legacy_port_out": legacy_port_out(config),
    }
    return {option: port for option, port in named.items() if port}


def legacy_port_out(config: ServerConfig) -> int:
    """Return the port that clients of bert-as-service get results from; 0 is any free one."""
    if config.legacy_port_out is not None:
        return config.legacy_port_out
    return config.legacy_port + 1 if config.legacy_port else 0


def contradiction(ports: Mapping[str, int]) -> str | None:
    """Return why ports cannot be listened on together, in words; None if they can."""
    taken: dict[int, str] = {}
    for option, port in ports.items():
        if port > HIGHEST:
            return f"-{option} {port} is above {HIGHEST}"
        if port in taken:
            return f"-{taken[port]} and -{option} are both {port}"
        taken[port] = option
    return None


def bind_error(host: str, port: int) -> int | None:
    """Return the `errno` of an attempt to have a port; None if it is free.

    It does not listen: a client that waits for a server there must not meet this.
    """
    family = sockets.AF_INET6 if ":" in host else sockets.AF_INET
    with sockets.socket(family, sockets.SOCK_STREAM) as socket:
        socket.setsockopt(sockets.SOL_SOCKET, sockets.SO_REUSEADDR, 1)  # as libzmq does
        try:
            socket.bind((host, port))
        except OSError as error:  # a name that is none has numbers of its own
            return error.errno if error.errno and error.errno > 0 else errno.EADDRNOTAVAIL
    return None

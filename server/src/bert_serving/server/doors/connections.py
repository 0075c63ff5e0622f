"""The TCP connections beneath ZeroMQ's sockets, by their file descriptors.

ZeroMQ can neither name a connection's peer nor end one connection. Its thread may close a
descriptor at any time, and the number may then be another connection's; so each look is at a
duplicate, which stays what it is, and whose peer tells whether it is the one that was meant.
"""

from __future__ import annotations

import os
import socket as sockets
from ipaddress import IPv6Address
from typing import Any


def peer_of(descriptor: int) -> Any:
    """Return the address and port at the other end; None if it is gone."""
    try:
        with _duplicate(descriptor) as copy:
            return _peer(copy)
    except OSError:
        return None


def address_of(descriptor: int) -> str | None:
    """Return the address at the other end; None if it is gone, or is on this machine's own."""
    peer = peer_of(descriptor)
    return str(peer[0]) if isinstance(peer, tuple) else None


def hang_up(descriptor: int, peer: Any) -> bool:
    """End a connection if it is still the one with this peer; ZeroMQ sees that it has ended.

    Returns whether there was one to end.
    """
    try:
        with _duplicate(descriptor) as copy:
            if peer is None or _peer(copy) != peer:
                return False
            copy.shutdown(sockets.SHUT_RDWR)
            return True
    except OSError:  # it has ended already
        return False


def plain_address(address: str) -> str:
    """Return an address as it is known: one of IPv4 as such, also at a socket of IPv6."""
    try:
        mapped = IPv6Address(address).ipv4_mapped
    except ValueError:
        return address
    return address if mapped is None else str(mapped)


def _duplicate(descriptor: int) -> sockets.socket:
    """Return another socket of the same connection, of whichever family that is."""
    copy = os.dup(descriptor)
    try:
        return sockets.socket(fileno=copy)
    except OSError:  # the number may be a file's by now
        os.close(copy)
        raise


def _peer(connection: sockets.socket) -> Any:
    peer = connection.getpeername()
    if connection.family != sockets.AF_INET6:
        return peer
    return (plain_address(peer[0]), *peer[1:])

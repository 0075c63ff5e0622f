"""The TCP connections beneath ZeroMQ's sockets, by their file descriptors.

ZeroMQ can neither name a connection's peer nor end one connection. Its thread may close a
descriptor at any time, and the number may then be another connection's; so each look is at a
duplicate, which stays what it is, and whose peer tells whether it is the one that was meant.
"""

from __future__ import annotations

import socket as sockets
from typing import Any


def peer_of(descriptor: int) -> Any:
    """Return the address and port at the other end; None if it is gone."""
    try:
        with sockets.fromfd(descriptor, sockets.AF_INET, sockets.SOCK_STREAM) as copy:
            return copy.getpeername()
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
        with sockets.fromfd(descriptor, sockets.AF_INET, sockets.SOCK_STREAM) as copy:
            if peer is None or copy.getpeername() != peer:
                return False
            copy.shutdown(sockets.SHUT_RDWR)
            return True
    except OSError:  # it has ended already
        return False

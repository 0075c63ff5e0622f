"""Which clients were heard on which file descriptor, and so whose connections have ended.

Without keys, ZeroMQ does not say that a client has gone. While its connection lasts it has a
descriptor, so that there are never more of them than of these; when the number is another
socket's, its connection has ended. What it had sent may be read even later: then it is taken
for one of that other socket, beside the one whose it is, as nothing tells which is which.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field


def socket_of(descriptor: int) -> int | None:
    """Return what tells a socket from every other one; None if there is none any more."""
    try:
        return os.fstat(descriptor).st_ino
    except OSError:
        return None


@dataclass(slots=True)
class _Socket:
    number: int
    routes: set[bytes] = field(default_factory=set)


class Holders:
    """Clients by the descriptor of their connection, as many as there are descriptors.

    Args:
        socket_of: the number of the socket that a descriptor is now, None for none.

    """

    def __init__(self, socket_of: Callable[[int], int | None] = socket_of) -> None:
        self._socket_of = socket_of
        self._sockets: dict[int, _Socket] = {}

    def add(self, descriptor: int, route: bytes) -> set[bytes] | None:
        """Note a client that was heard on a descriptor.

        Returns:
            Those whose connection has ended, as another one has their descriptor now; None if
            the client's own has ended, which is not noted then.

        """
        number = self._socket_of(descriptor)
        if number is None:
            return None
        before = self._sockets.get(descriptor)
        if before is not None and before.number == number:
            before.routes.add(route)
            return set()
        self._sockets[descriptor] = _Socket(number, {route})
        return set() if before is None else before.routes - {route}

    def remove(self, descriptor: int, route: bytes) -> None:
        """Forget a client."""
        socket = self._sockets.get(descriptor)
        if socket is not None:
            socket.routes.discard(route)
            if not socket.routes:
                del self._sockets[descriptor]

    def is_alone(self, descriptor: int, route: bytes) -> bool:
        """Whether a connection is still there, and certainly this client's."""
        socket = self._sockets.get(descriptor)
        if socket is None or socket.number != self._socket_of(descriptor):
            return False
        return socket.routes == {route}

    def ended(self) -> list[bytes]:
        """Return all whose connection has ended."""
        return [
            route
            for descriptor, socket in self._sockets.items()
            if self._socket_of(descriptor) != socket.number
            for route in socket.routes
        ]

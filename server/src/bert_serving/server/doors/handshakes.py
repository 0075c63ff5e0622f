"""Peers that fail before ZeroMQ asks who they are, from the events of a socket's monitor.

The monitor names no peer: its address is asked of the connection when that is accepted, and
the failure of a connection is followed by the event that it is closed, with its number.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import zmq

EVENTS = zmq.EVENT_ACCEPTED | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_DISCONNECTED
NO_KEY, WRONG_KEY = 0x11000002, 0x11000001  # ZMQ_PROTOCOL_ERROR_ZMTP_…: mechanism, cryptographic
WORDS = {
    NO_KEY: "it uses no key: it needs one that is allowed here, and this server's public key",
    WRONG_KEY: "it does not have this server's public key (server_key)",
}
OTHER = "it does not speak this protocol"
UNKNOWN = "a peer that hung up at once"


def monitored(context: zmq.Context[Any], socket: zmq.Socket[Any], name: str) -> zmq.Socket[Any]:
    """Return the socket that a socket's monitor reports to."""
    address = f"inproc://monitor-{name}"
    monitor: zmq.Socket[Any] = context.socket(zmq.PAIR)
    monitor.linger = 0
    monitor.rcvhwm = 0  # with a bound, ZeroMQ's own thread would wait for this process to read
    socket.monitor(address, EVENTS)
    monitor.connect(address)
    return monitor


class Handshakes:
    """The open connections of one listening socket, and what went wrong with the last.

    Args:
        address_of: the address of the peer of a connection, by its file descriptor.

    """

    def __init__(self, address_of: Callable[[int], str | None]) -> None:
        self._address_of = address_of
        self._addresses: dict[int, str] = {}  # as many as there are file descriptors
        self._failure: int | None = None

    def on(self, event: int, value: int) -> tuple[str, str] | None:
        """Take in an event; returns the address of a peer that has failed, and why."""
        if event == zmq.EVENT_ACCEPTED:
            self._addresses[value] = self._address_of(value) or UNKNOWN
        elif event == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL:
            self._failure = value
        elif event == zmq.EVENT_DISCONNECTED:
            address, failure = self._addresses.pop(value, UNKNOWN), self._failure
            self._failure = None
            if failure is not None:
                return address, WORDS.get(failure, OTHER)
        return None

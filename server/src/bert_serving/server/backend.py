"""A worker's connection to the broker, which may be another broker than a moment ago.

A broker that died is replaced at the same address, and ZeroMQ connects again by itself. The
new broker knows no worker, so each announces itself again: the connection's own events say
when, and whatever is sent after one of them goes to the new broker.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import zmq
from zmq.backend import zmq_poll
from zmq.utils.monitor import recv_monitor_message

from bert_serving.client.endpoint import Endpoint, Keys
from bert_serving.client.sockets import is_shut_out, send_frames, use_keys
from bert_serving.client.unreachable import unreachable

FLUSH_MS = 2_000
RECONNECT_MS = 2_000
HEARTBEAT_MS = 2_000, 6_000  # between two, and until one that is not answered ends the connection


class Backend:
    """The socket that a worker's batches come by.

    Args:
        context: the ZeroMQ context of this process.
        address: where the broker listens for workers.
        route: the routing id of this life of the worker.
        keys: of a broker on another machine; None for one on this.

    Attributes:
        socket: for receiving, and for polling together with `monitor`.
        monitor: has something to read when the socket has connected again.

    """

    def __init__(
        self, context: zmq.Context[Any], address: str, route: bytes, keys: Keys | None = None
    ) -> None:
        self._endpoint = Endpoint(address, keys)
        self.socket: zmq.Socket[Any] = context.socket(zmq.DEALER)
        self.socket.linger = FLUSH_MS
        self.socket.sndhwm = self.socket.rcvhwm = 0  # two batches at most are on their way
        self.socket.routing_id = route
        self.monitor = self.socket.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED)
        self._monitored = [(self.monitor, int(zmq.POLLIN))]
        self._connections = 0
        if keys is not None:
            self.socket.ipv6 = "[" in address
            self.socket.reconnect_ivl_max = RECONNECT_MS
            self.socket.heartbeat_ivl, self.socket.heartbeat_timeout = HEARTBEAT_MS
            use_keys(self.socket, keys)
        self.socket.connect(address)

    def send(self, frames: Sequence[Any]) -> None:
        """Send a message; one that finds no broker waits for the next.

        Raises:
            ServerUnreachable: the broker does not let this worker in, or not any more.

        """
        try:
            send_frames(self.socket, frames)
        except zmq.Again:
            raise unreachable([self._endpoint]) from None

    def check(self) -> None:
        """Raise ServerUnreachable if the broker does not let this worker in any more."""
        if is_shut_out(self.socket):
            raise unreachable([self._endpoint])

    def has_new_broker(self) -> bool:
        """Whether the socket has connected again since this was last asked."""
        before = self._connections
        while zmq_poll(self._monitored, 0):
            recv_monitor_message(self.monitor)
            self._connections += 1
        return self._connections > max(before, 1)

    def close(self) -> None:
        """Close the socket, when what was sent is on its way."""
        self.socket.disable_monitor()
        self.monitor.close(linger=0)
        self.socket.close()

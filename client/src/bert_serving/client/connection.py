"""One socket to one server and the session over it, for one thread at a time."""

from __future__ import annotations

import math
import socket as sockets
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import zmq

from .calls import Call
from .endpoint import Endpoint
from .errors import RequestTimeout, ServerUnreachable
from .session import Session
from .sockets import received_messages, send_frames

MAX_RECEIVED_AT_ONCE = 64
PROBE_TIMEOUT_S = 1.0


def open_socket(context: zmq.Context[Any], endpoint: Endpoint) -> zmq.Socket[Any]:
    """Return a DEALER that connects, and reconnects, to a server."""
    socket: zmq.Socket[Any] = context.socket(zmq.DEALER)
    socket.linger = 0
    socket.ipv6 = "[" in endpoint.address  # or a name with both addresses is tried on IPv6 alone
    socket.reconnect_ivl = 100  # ms
    socket.reconnect_ivl_max = 2_000
    socket.heartbeat_ivl = 10_000  # a dead peer is noticed, whatever the network says
    socket.heartbeat_timeout = 30_000
    socket.sndhwm = socket.rcvhwm = 0  # the session's window bounds both
    if endpoint.keys is not None:
        socket.curve_serverkey = endpoint.keys.server
        socket.curve_publickey = endpoint.keys.public
        socket.curve_secretkey = endpoint.keys.secret
    try:
        socket.connect(endpoint.address)
    except zmq.ZMQError as error:
        socket.close()
        raise ValueError(f"{endpoint} is no address to connect to: {error}") from None
    return socket


def unreachable(endpoint: Endpoint, timeout_s: float) -> ServerUnreachable:
    """Return the error for a server that did not answer a hello, with what can be seen of it."""
    parts = urlsplit(endpoint.address)
    try:
        with sockets.create_connection((parts.hostname, parts.port or 0), PROBE_TIMEOUT_S):
            seen = (
                "something listens there, but does not speak this protocol: is it the right port?"
            )
    except ConnectionRefusedError:
        seen = "nothing listens there: is bert-serving-start running, and on this port?"
    except OSError as error:
        seen = f"it cannot be connected to ({error})"
    return ServerUnreachable(
        f"no bert-serving server answered at {endpoint} within {timeout_s * 1000:.0f} ms "
        f"(connect_timeout): {seen}"
    )


class Connection:
    """A blocking shell around a session.

    Args:
        context: the ZeroMQ context of this process.
        endpoint: where the server is.
        client: how the session introduces itself.

    """

    def __init__(self, context: zmq.Context[Any], endpoint: Endpoint, client: str) -> None:
        self.session = Session(client, endpoint.address)
        self._endpoint = endpoint
        self._socket = open_socket(context, endpoint)

    def close(self) -> None:
        """Close the socket; what was not sent is dropped."""
        self._socket.close()

    def handshake(self, timeout_s: float) -> None:
        """Say hello and wait for the answer, which the session keeps as its `welcome`.

        Raises:
            ServerUnreachable: none came within `timeout_s`.
            ProtocolError: one came that cannot be understood.

        """
        call = Call(timeout_s)
        self.session.hello(call, time.monotonic())
        self.wait_for(call)
        if isinstance(call.error, RequestTimeout):
            raise unreachable(self._endpoint, timeout_s)
        call.raise_error()

    def wait_for(self, call: Call) -> None:
        """Move messages until a call is done."""
        try:
            self._send_all()  # which may already end it: an iterator without rows, a wrong row
            while not call.is_done:
                self._turn()
        except BaseException:  # an interrupt: tell the server, and let the caller see it
            self.session.abandon(call)
            self._send_all()
            raise

    def wait_ms(self) -> int | None:
        """Return how long there is nothing to do if nothing arrives; None for ever."""
        wakeup = self.session.next_wakeup()
        if wakeup is None:
            return None
        return max(math.ceil((wakeup - time.monotonic()) * 1000), 0)

    def register(self, poller: zmq.Poller) -> None:
        """Let a poller tell when something has arrived."""
        poller.register(self._socket, zmq.POLLIN)

    def move(self) -> None:
        """Take in what has arrived, send what there is to send."""
        receive_all(self._socket, self.session.receive)
        self.session.advance(time.monotonic())
        self._send_all()

    def _turn(self) -> None:
        """Wait for something to happen, and do what follows from it."""
        self._socket.poll(self.wait_ms())
        self.move()

    def _send_all(self) -> None:
        while frames := self.session.next_message(time.monotonic()):
            send_frames(self._socket, frames)


def receive_all(socket: zmq.Socket[Any], receive: Callable[[list[memoryview], float], None]) -> int:
    """Hand over the messages that have arrived, a bounded number; return how many."""
    received = 0
    for frames in received_messages(socket, MAX_RECEIVED_AT_ONCE):
        receive([frame.buffer for frame in frames], time.monotonic())
        received += 1
    return received

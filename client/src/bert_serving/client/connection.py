"""One socket to one server and the session over it, for one thread at a time."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import zmq

from .calls import Call
from .endpoint import Endpoint
from .errors import RequestTimeout
from .messages import Cancel
from .session import Session
from .sockets import is_shut_out, new_socket, received_messages, send_frames
from .unreachable import unreachable

MAX_RECEIVED_AT_ONCE = 64
LOOK_MS = 1_000  # how soon a call notices that the server does not let it in any more
FAREWELL_MS = 200  # longest delay of a close to tell the server what need not be computed


def open_socket(context: zmq.Context[Any], endpoint: Endpoint) -> zmq.Socket[Any]:
    """Return a DEALER that connects, and reconnects, to a server."""
    socket = new_socket(context, endpoint)
    try:
        socket.connect(endpoint.address)
    except zmq.ZMQError as error:
        socket.close()
        raise ValueError(f"{endpoint} is no address to connect to: {error}") from None
    return socket


class Connection:
    """A blocking shell around a session.

    Args:
        context: the ZeroMQ context of this process.
        endpoint: where the server is.
        client: how the session introduces itself.

    Attributes:
        is_idle: no call is under way, and none was left in its middle: an interrupt may come
            between any two steps, so that nothing is known of the session and the socket then.

    """

    def __init__(self, context: zmq.Context[Any], endpoint: Endpoint, client: str) -> None:
        self.session = Session(client, endpoint.address)
        self.is_idle = True
        self._endpoint = endpoint
        self._is_sending = False
        self._socket = open_socket(context, endpoint)

    def close(self) -> None:
        """Close the socket; if a call was left in its middle, the server is told."""
        try:
            if not self.is_idle:
                self._cancel_all()
        finally:
            self._socket.close()

    def handshake(self, timeout_s: float) -> None:
        """Say hello and wait for the answer, which the session keeps as its `welcome`.

        Raises:
            ServerUnreachable: none came within `timeout_s`.
            ProtocolError: one came that cannot be understood.

        """
        call = Call(timeout_s)
        self.wait_for(call, lambda session, now: session.hello(call, now))
        if isinstance(call.error, RequestTimeout):
            raise unreachable(self._endpoint, timeout_s)
        call.raise_error()

    def wait_for(self, call: Call, start: Callable[[Session, float], None]) -> None:
        """Start a call (`start(session, now)` hands it to the session) and wait until it is done.

        If this is interrupted, the connection can only be closed.
        """
        self.is_idle = False
        start(self.session, time.monotonic())
        self._send_all()  # which may already end it: an iterator without rows, a wrong row
        while not call.is_done:
            self._turn()
        self.is_idle = True

    def wait_ms(self) -> int:
        """Return how long there is nothing to do if nothing arrives."""
        wakeup = self.session.next_wakeup()
        if wakeup is None:
            return LOOK_MS
        return min(max(math.ceil((wakeup - time.monotonic()) * 1000), 0), LOOK_MS)

    def register(self, poller: zmq.Poller) -> None:
        """Let a poller tell when something has arrived."""
        poller.register(self._socket, zmq.POLLIN)

    def move(self) -> None:
        """Take in what has arrived, send what there is to send.

        Raises:
            ServerUnreachable: the server does not let this client in, or not any more.

        """
        if not receive_all(self._socket, self.session.receive) and is_shut_out(self._socket):
            raise unreachable(self._endpoint)
        self.session.advance(time.monotonic())
        self._send_all()

    def _turn(self) -> None:
        """Wait for something to happen, and do what follows from it."""
        self._socket.poll(self.wait_ms())
        self.move()

    def _send_all(self) -> None:
        while frames := self.session.next_message(time.monotonic()):
            self._is_sending = True
            try:
                send_frames(self._socket, frames)
            except zmq.Again:
                raise unreachable(self._endpoint) from None
            self._is_sending = False

    def _cancel_all(self) -> None:
        """Tell the server not to compute what is open: it does not see who has gone."""
        ids = self.session.open_ids
        with suppress(zmq.ZMQError):
            if self._is_sending:  # what has begun is ended, as a message that will be refused
                send_frames(self._socket, [b""])
            if ids:
                send_frames(self._socket, Cancel(ids).to_frames())
                self._socket.linger = FAREWELL_MS


def receive_all(socket: zmq.Socket[Any], receive: Callable[[list[memoryview], float], None]) -> int:
    """Hand over the messages that have arrived, a bounded number; return how many."""
    received = 0
    for frames in received_messages(socket, MAX_RECEIVED_AT_ONCE):
        receive([frame.buffer for frame in frames], time.monotonic())
        received += 1
    return received

"""One socket to each server and the fleet over them, for one thread at a time."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import zmq
from zmq.backend import zmq_poll

from .calls import Call
from .endpoint import Endpoint
from .errors import RequestTimeout
from .fleet import Fleet
from .messages import Cancel
from .sockets import NoDescriptors, is_shut_out, new_socket, received_messages, send_frames
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


def open_sockets(context: zmq.Context[Any], endpoints: Sequence[Endpoint]) -> list[zmq.Socket[Any]]:
    """Return a socket for each server."""
    sockets: list[zmq.Socket[Any]] = []
    try:
        sockets.extend(open_socket(context, endpoint) for endpoint in endpoints)
    except BaseException:
        for socket in sockets:
            socket.close()
        raise
    return sockets


def _open_patiently(
    context: zmq.Context[Any], endpoints: Sequence[Endpoint]
) -> list[zmq.Socket[Any]]:
    deadline = time.monotonic() + NoDescriptors.RELEASE_S
    while True:
        try:
            return open_sockets(context, endpoints)
        except NoDescriptors:
            if time.monotonic() >= deadline:
                raise
        time.sleep(NoDescriptors.RETRY_S)


class Connection:
    """A blocking shell around a fleet: a socket for each server.

    Args:
        context: the ZeroMQ context of this process.
        endpoints: where the servers are.
        client: how the client introduces itself.
        hedge_after_s: see `Fleet`.

    Attributes:
        is_idle: no call is under way, and none was left in its middle: an interrupt may come
            between any two steps, so that nothing is known of the fleet and the sockets then.

    """

    def __init__(
        self,
        context: zmq.Context[Any],
        endpoints: Sequence[Endpoint],
        client: str,
        hedge_after_s: float = math.inf,
    ) -> None:
        addresses = [endpoint.address for endpoint in endpoints]
        self.fleet = Fleet(client, addresses, hedge_after_s=hedge_after_s, jitter=random.random)
        self.is_idle = True
        self._endpoints = endpoints
        self._sending: int | None = None
        self._sockets = _open_patiently(context, endpoints)
        self._polled = [(socket, zmq.POLLIN) for socket in self._sockets]
        self._receivers = [
            (socket, partial(self.fleet.receive, number))
            for number, socket in enumerate(self._sockets)
        ]

    def close(self) -> None:
        """Close the sockets; the servers are told what need not be computed."""
        try:
            if self.is_idle:
                send_farewell(self.fleet, self._sockets)
            else:
                self._cancel_all()
        finally:
            for socket in self._sockets:
                socket.close()

    def handshake(self, timeout_s: float) -> None:
        """Say hello and wait for an answer, which the fleet keeps as its `welcome`.

        Raises:
            ServerUnreachable: none came within `timeout_s`.
            ModelMismatch: servers have answered that do not serve the same.
            ProtocolError: one came that cannot be understood.

        """
        call = Call(timeout_s)
        self.wait_for(call, lambda fleet, now: fleet.hello(call, now))
        if isinstance(call.error, RequestTimeout):
            raise unreachable(self._endpoints, timeout_s)
        call.raise_error()

    def wait_for(self, call: Call, start: Callable[[Fleet, float], None]) -> None:
        """Start a call (`start(fleet, now)` hands it to the fleet) and wait until it is done.

        If this is interrupted, the connection can only be closed.
        """
        self.is_idle = False
        start(self.fleet, time.monotonic())
        self._send_all()  # which may already end it: an iterator without rows, a wrong row
        while not call.is_done:
            self._turn()
        self.is_idle = True

    def wait_for_all(self, calls: Sequence[Call], start: Callable[[Fleet, float], None]) -> None:
        """Start several calls at once, and wait until all are done."""
        self.is_idle = False
        start(self.fleet, time.monotonic())
        self._send_all()
        while not all(call.is_done for call in calls):
            self._turn()
        self.is_idle = True

    def wait_ms(self) -> int:
        """Return how long there is nothing to do if nothing arrives."""
        wakeup = self.fleet.next_wakeup()
        if wakeup is None:
            return LOOK_MS
        return min(max(math.ceil((wakeup - time.monotonic()) * 1000), 0), LOOK_MS)

    def register(self, poller: zmq.Poller) -> None:
        """Let a poller tell when something has arrived."""
        for socket in self._sockets:
            poller.register(socket, zmq.POLLIN)

    def move(self) -> None:
        """Take in what has arrived, send what there is to send.

        Raises:
            ServerUnreachable: no server lets this client in, or not any more.

        """
        for number, (socket, receive) in enumerate(self._receivers):
            if not receive_all(socket, receive) and is_shut_out(socket):
                self._shut_out(number)
        self.fleet.advance(time.monotonic())
        self._send_all()

    def _turn(self) -> None:
        """Wait for something to happen, and do what follows from it."""
        zmq_poll(self._polled, self.wait_ms())
        self.move()

    def _send_all(self) -> None:
        while message := self.fleet.next_message(time.monotonic()):
            self._sending, frames = message
            try:
                send_frames(self._sockets[self._sending], frames)
            except zmq.Again:
                self._shut_out(self._sending)
            self._sending = None

    def _shut_out(self, number: int) -> None:
        self.fleet.shut_out(number)
        if self.fleet.is_shut_out:
            raise unreachable(self._endpoints)

    def _cancel_all(self) -> None:
        """Tell the servers not to compute what is open: they do not see who has gone."""
        for session, socket in zip(self.fleet.sessions, self._sockets, strict=True):
            ids = session.open_ids
            with suppress(zmq.ZMQError):
                if self._sending == session.number:  # end what has begun: it will be refused
                    send_frames(socket, [b""])
                if ids:
                    send_frames(socket, Cancel(ids).to_frames())
                    socket.linger = FAREWELL_MS


def send_farewell(fleet: Fleet, sockets: Sequence[zmq.Socket[Any]]) -> None:
    """Send what a fleet without calls has left to say, by sockets that are closed next."""
    while message := fleet.next_message(time.monotonic()):
        number, frames = message
        with suppress(zmq.ZMQError):
            send_frames(sockets[number], frames)
        sockets[number].linger = FAREWELL_MS


def receive_all(socket: zmq.Socket[Any], receive: Callable[[list[memoryview], float], None]) -> int:
    """Hand over the messages that have arrived, a bounded number; return how many."""
    received = 0
    for frames in received_messages(socket, MAX_RECEIVED_AT_ONCE):
        receive([frame.buffer for frame in frames], time.monotonic())
        received += 1
    return received

"""A client's ZeroMQ socket; whole messages in and out, at a fraction of `send_multipart`'s cost.

pyzmq's own multipart calls check every part and combine enum flags for each; for small
messages that costs two to three times the sending itself (measured), and every request
passes through here four times. The methods used are those that pyzmq's are made of.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import Any

import zmq
from zmq.backend import Socket as RawSocket
from zmq.backend import zmq_poll

from .endpoint import Endpoint, Keys
from .errors import ServerUnreachable

_NOBLOCK = int(zmq.NOBLOCK)
_SNDMORE = int(zmq.SNDMORE)
_POLLIN = int(zmq.POLLIN)
_send = RawSocket.send
_recv = RawSocket.recv

COPY_BELOW_BYTES = 16 << 10  # sending without a copy costs a callback from ZeroMQ's thread


class NoDescriptors(ServerUnreachable):
    """No descriptors are left to this process; closed sockets give theirs back a moment later."""

    RELEASE_S = 1.0  # in which they do
    RETRY_S = 0.01


def new_socket(context: zmq.Context[Any], endpoint: Endpoint) -> zmq.Socket[Any]:
    """Return a DEALER that is to be connected to a server, and will reconnect.

    Raises:
        NoDescriptors: this process has none left.

    """
    try:
        socket: zmq.Socket[Any] = context.socket(zmq.DEALER)
    except zmq.ZMQError as error:
        raise NoDescriptors(
            f"this process cannot open a connection: {error.strerror}: share one BertClient, "
            "close those that are done with, or allow more descriptors (ulimit -n)"
        ) from None
    socket.linger = 0
    socket.ipv6 = "[" in endpoint.address  # or a name with both addresses is tried on IPv6 alone
    socket.reconnect_ivl = 100  # ms
    socket.reconnect_ivl_max = 2_000
    socket.heartbeat_ivl = 10_000  # a dead peer is noticed, whatever the network says
    socket.heartbeat_timeout = 30_000
    # TCP waits longer from try to try: a network that was cut for a while would be back long before
    socket.connect_timeout = 5_000
    socket.tcp_maxrt = 10_000
    socket.handshake_ivl = 10_000
    socket.sndhwm = socket.rcvhwm = 0  # the session's window bounds both
    if endpoint.keys is not None:
        use_keys(socket, endpoint.keys)
    return socket


def use_keys(socket: zmq.Socket[Any], keys: Keys) -> None:
    """Have a socket encrypt the connections that it makes from now on."""
    socket.curve_serverkey = keys.server
    socket.curve_publickey = keys.public
    socket.curve_secretkey = keys.secret


def is_shut_out(socket: zmq.Socket[Any]) -> bool:
    """Whether a client's socket has no connection, and tries none any more.

    ZeroMQ tries again after all that may pass, but not after a handshake that was refused. As
    its queue has no bound, that is the only reason for which it cannot be sent to.
    """
    return not int(socket.getsockopt(zmq.EVENTS)) & zmq.POLLOUT


def send_frames(socket: zmq.Socket[Any], frames: Sequence[Any]) -> None:
    """Send one message, without waiting.

    Raises:
        zmq.Again: the queue is full; nothing of the message was sent.
        zmq.ZMQError: a ROUTER has no such route; nothing of the message was sent.

    """
    last = len(frames) - 1
    for number, frame in enumerate(frames):
        flags = _NOBLOCK if number == last else _NOBLOCK | _SNDMORE
        _send(socket, frame, flags, len(frame) < COPY_BELOW_BYTES)


def received_messages(
    socket: zmq.Socket[Any], most: int, max_frames: int = sys.maxsize
) -> Iterator[list[zmq.Frame]]:
    """Yield the messages that have arrived, at most so many, each a list of frames.

    Of a message with more than `max_frames` it yields so many: the last one says that there are
    more, and whoever has it must take these before the next message.
    """
    for number in range(most):
        if number == 1 and not zmq_poll([(socket, _POLLIN)], 0):  # sooner than by an Again
            return
        try:
            frame = _recv(socket, _NOBLOCK, False)
        except zmq.Again:
            return
        frames = [frame]
        while frame.more and len(frames) < max_frames:
            frame = _recv(socket, _NOBLOCK, False)
            frames.append(frame)
        yield frames

"""The two sockets of bert-as-service's protocol: what they bound, and where they listen."""

from __future__ import annotations

from typing import Any

import zmq

from .requests import MAX_BODY_BYTES, MAX_IDENTITY_BYTES

MAX_UNREAD_REQUESTS = 8  # of one client, beside what its own socket holds
MAX_UNREAD_ANSWERS = 64  # likewise
MAX_MESSAGE_BYTES = 2 * MAX_BODY_BYTES  # a client that sends more is disconnected, not answered
FLUSH_MS = 2_000
HEARTBEAT_MS, HEARTBEAT_TIMEOUT_MS = 10_000, 30_000  # as the native protocol's


class CannotListen(Exception):
    """A port cannot be had; the message says which and why."""


def inbound_socket(context: zmq.Context[Any]) -> zmq.Socket[Any]:
    """Return the socket that clients push to."""
    socket: zmq.Socket[Any] = context.socket(zmq.PULL)
    socket.rcvhwm = MAX_UNREAD_REQUESTS
    socket.maxmsgsize = MAX_MESSAGE_BYTES
    return socket


def outbound_socket(context: zmq.Context[Any]) -> zmq.Socket[Any]:
    """Return the socket that clients subscribe to: an XPUB, which sees their subscriptions."""
    socket: zmq.Socket[Any] = context.socket(zmq.XPUB)
    socket.sndhwm = MAX_UNREAD_ANSWERS
    socket.maxmsgsize = MAX_IDENTITY_BYTES + 1  # subscriptions are all that comes in
    socket.xpub_nodrop = 1  # say so when a subscriber has no room
    socket.xpub_verboser = 1  # tell of every subscriber of a topic, not of the first and last
    socket.linger = FLUSH_MS
    return socket


def listen(socket: zmq.Socket[Any], host: str, port: int, option: str) -> str:
    """Bind a socket to a port, 0 for any free one; returns the address.

    Raises:
        CannotListen: the port or the host cannot be had.

    """
    socket.ipv6 = ":" in host
    socket.heartbeat_ivl = HEARTBEAT_MS
    socket.heartbeat_timeout = HEARTBEAT_TIMEOUT_MS
    try:
        socket.bind(f"tcp://{f'[{host}]' if ':' in host else host}:{port or '*'}")
    except zmq.ZMQError as error:
        raise CannotListen(f"cannot listen on {host}, -{option} {port}: {error.strerror}") from None
    return socket.get_string(zmq.LAST_ENDPOINT)

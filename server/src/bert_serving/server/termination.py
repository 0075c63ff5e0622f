"""Telling a server of this user on this machine to stop, and waiting until it has."""

from __future__ import annotations

import time
from typing import Any

import zmq

from bert_serving.client.frames import decode_message

from . import control
from .worker_protocol import message

LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")
ANSWER_TIMEOUT_S = 5.0


class TerminationError(Exception):
    """The server could not be stopped; the message says why."""


def check_local(ip: str) -> None:
    """Raise TerminationError unless an address is this machine's own."""
    if ip not in LOCAL_NAMES:
        raise TerminationError(
            f"-ip {ip}: a server can only be stopped on its own machine, by the user who "
            "started it; log in there"
        )


def terminate(port: int, timeout_s: float) -> None:
    """Stop the server with this native port; it works off what it has accepted first.

    Raises:
        TerminationError: this user has no such server, or it has not ended in time.
        ControlError: the folder with the control sockets cannot be used.

    """
    address = control.port_address(port)
    if not control.socket_file(address).exists():
        raise TerminationError(f"this user has no server with port {port} on this machine")
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.linger = 0
        socket.connect(address)
        socket.send_multipart(message("terminate"))
        deadline = time.monotonic() + timeout_s
        answer = _receive(socket, min(deadline, time.monotonic() + ANSWER_TIMEOUT_S))
        if answer.get("type") != "terminating":
            raise TerminationError(f"the server with port {port} does not answer: it may be gone")
        if _receive(socket, deadline).get("type") != "terminated":
            raise TerminationError(
                f"the server (process {answer['pid']}) is stopping, but has not ended within "
                f"{timeout_s * 1000:.0f} ms"
            )


def _receive(socket: zmq.Socket[Any], deadline: float) -> dict[str, Any]:
    if not socket.poll(max(int((deadline - time.monotonic()) * 1000), 0)):
        return {}
    header, _ = decode_message(socket.recv_multipart())
    return header

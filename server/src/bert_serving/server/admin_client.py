"""Asking a server of this user on this machine for something, over its control socket."""

from __future__ import annotations

from typing import Any

import zmq

from bert_serving.client.errors import ProtocolError
from bert_serving.client.frames import Header

from . import control
from .worker_protocol import message, read_message

ANSWER_TIMEOUT_S = 5.0


class AdminError(Exception):
    """The server has not done what it was asked for; the message says why."""


def ask_status(port: int) -> dict[str, Any]:
    """Return what the server with this native port says of itself.

    Raises:
        AdminError: this user has no such server, or it does not answer.
        ControlError: the folder with the control sockets cannot be used.

    """
    with _Talk(port) as talk:
        talk.say("status")
        kind, header = talk.hear(ANSWER_TIMEOUT_S)
        if kind != "status":
            raise talk.silence
        status: dict[str, Any] = header["status"]
        return status


def change_workers(port: int, kind: str, timeout_s: float, **fields: Any) -> int:
    """Have a server change its workers and wait until it has; returns how many were changed.

    Args:
        port: the server's native port.
        kind: `reload` or `scale`.
        timeout_s: how long it may take.
        fields: the command's own.

    Raises:
        AdminError: there is no such server, it refused or failed, or is not done in time.
        ControlError: the folder with the control sockets cannot be used.

    """
    with _Talk(port) as talk:
        talk.say(kind, **fields)
        answered, header = talk.hear(ANSWER_TIMEOUT_S)
        if answered == "refused":
            raise AdminError(header["cause"])
        if answered != "accepted":
            raise talk.silence
        steps: int = header["steps"]
        answered, header = talk.hear(timeout_s)
        if answered == "failed":
            raise AdminError(header["cause"])
        if answered != "changed":
            raise AdminError(f"the server is still at it after {timeout_s:g} s; ask for its status")
        return steps


class _Talk:
    """A conversation with one supervisor."""

    def __init__(self, port: int) -> None:
        address = control.port_address(port)
        if not control.socket_file(address).exists():
            raise AdminError(f"this user has no server with port {port} on this machine")
        self.silence = AdminError(f"the server with port {port} does not answer: it may be gone")
        self._context: zmq.Context[Any] = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.linger = 0
        self._socket.connect(address)

    def __enter__(self) -> _Talk:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()
        self._context.term()

    def say(self, kind: str, **fields: Any) -> None:
        self._socket.send_multipart(message(kind, **fields))

    def hear(self, timeout_s: float) -> tuple[str, Header]:
        """Return the kind and header of the next answer; no kind if none comes in time."""
        if not self._socket.poll(int(timeout_s * 1000)):
            return "", {}
        try:
            kind, header, _ = read_message(self._socket.recv_multipart())
        except ProtocolError:
            raise self.silence from None
        return kind, header

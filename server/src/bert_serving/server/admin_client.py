"""Asking a server for something: one of this user's by its control socket, any other by its port.

Commands and answers are the same by both ways. What comes by the native port is spoken with keys,
and greets the server again and again: a broker that was started anew knows of no command.
"""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

import zmq

from bert_serving.client.admin_messages import Admin, AdminAnswer
from bert_serving.client.endpoint import Endpoint
from bert_serving.client.errors import ProtocolError
from bert_serving.client.frames import Header
from bert_serving.client.messages import ErrorAnswer, Hello, Welcome
from bert_serving.client.protocol import parse_answer
from bert_serving.client.sockets import is_shut_out, new_socket, send_frames
from bert_serving.client.unreachable import unreachable

from . import control
from .version import __version__
from .worker_protocol import message, read_message

ANSWER_TIMEOUT_S = 5.0
UNKNOWN = "what became of the command is not known; ask for its status"
HELLO_S = 1.0  # how soon a server that knows nothing of a command any more is noticed
COMMAND_ID = 1  # a connection for each


class AdminError(Exception):
    """The server has not done what it was asked for; the message says why."""


class ServerEnded(AdminError):
    """The server has ended while it was asked."""


class Talk(Protocol):
    """A conversation with one server about one command."""

    silence: AdminError

    def __enter__(self) -> Talk: ...
    def __exit__(self, *_: object) -> None: ...

    def say(self, kind: str, **fields: Any) -> None:
        """Send the command."""

    def hear(self, timeout_s: float) -> tuple[str, Header]:
        """Return the kind and header of the next answer; no kind if none comes in time.

        Raises:
            ServerEnded: a server of this user's is gone, and has left no answer.
            AdminError: it refuses, or cannot be reached any more.

        """


@dataclass(frozen=True)
class Server:
    """A server to ask.

    Attributes:
        port: its native port.
        endpoint: where to reach it with an administrator's keys; None if it is this user's.

    """

    port: int
    endpoint: Endpoint | None = None

    def talk(self) -> Talk:
        """Begin a conversation.

        Raises:
            AdminError: this user has no such server.
            ControlError: the folder with the control sockets cannot be used.

        """
        return _LocalTalk(self.port) if self.endpoint is None else _RemoteTalk(self.endpoint)


def ask_status(server: Server) -> dict[str, Any]:
    """Return what a server says of itself.

    Raises:
        AdminError: there is no such server, it refuses, or does not answer.
        ControlError: the folder with the control sockets cannot be used.

    """
    with server.talk() as talk:
        talk.say("status")
        kind, header = talk.hear(ANSWER_TIMEOUT_S)
        if kind != "status":
            raise talk.silence
        status: dict[str, Any] = header["status"]
        return status


def change_workers(server: Server, kind: str, timeout_s: float, **fields: Any) -> int:
    """Have a server change its workers and wait until it has; returns how many were changed.

    Args:
        server: which.
        kind: `reload` or `scale`.
        timeout_s: how long it may take.
        fields: the command's own.

    Raises:
        AdminError: there is no such server, it refused or failed, or is not done in time.
        ControlError: the folder with the control sockets cannot be used.

    """
    with server.talk() as talk:
        talk.say(kind, **fields)
        answered, header = talk.hear(ANSWER_TIMEOUT_S)
        if answered == "refused":
            raise AdminError(header["cause"])
        if answered != "accepted":
            raise AdminError(f"{talk.silence}; {UNKNOWN}")
        steps: int = header["steps"]
        answered, header = talk.hear(timeout_s)
        if answered == "failed":
            raise AdminError(header["cause"])
        if answered != "changed":
            raise AdminError(f"the server is still at it after {timeout_s:g} s; ask for its status")
        return steps


class _LocalTalk:
    """With a supervisor of this user's, by its control socket."""

    def __init__(self, port: int) -> None:
        address = control.port_address(port)
        if not control.socket_file(address).exists():
            raise AdminError(f"this user has no server with port {port} on this machine")
        self.silence = AdminError(f"the server with port {port} does not answer: it may be gone")
        self._end = ServerEnded(
            f"the server with port {port} has ended meanwhile, and the command with it"
        )
        self._context: zmq.Context[Any] = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.linger = 0
        self._lost = self._socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        self._poller = zmq.Poller()
        for socket in (self._socket, self._lost):
            self._poller.register(socket, zmq.POLLIN)
        self._socket.connect(address)

    def __enter__(self) -> _LocalTalk:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.disable_monitor()
        self._lost.close(linger=0)
        self._socket.close()
        self._context.term()

    def say(self, kind: str, **fields: Any) -> None:
        self._socket.send_multipart(message(kind, **fields))

    def hear(self, timeout_s: float) -> tuple[str, Header]:
        self._poller.poll(int(max(timeout_s, 0.0) * 1000))
        is_lost = self._lost.poll(0)  # asked first: what was said before has then arrived
        if not self._socket.poll(0):
            if is_lost:
                raise self._end
            return "", {}
        try:
            kind, header, _ = read_message(self._socket.recv_multipart())
        except ProtocolError:
            raise self.silence from None
        return kind, header


class _RemoteTalk:
    """With a broker, which passes on to its supervisor what an administrator says."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.silence = AdminError(f"the server at {endpoint} does not answer this command")
        self._endpoint = endpoint
        self._connection = ""
        self._context: zmq.Context[Any] = zmq.Context()
        self._socket = new_socket(self._context, endpoint)
        self._socket.connect(endpoint.address)

    def __enter__(self) -> _RemoteTalk:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()
        self._context.term()

    def say(self, kind: str, **fields: Any) -> None:
        self._greet()
        self._send(Admin(COMMAND_ID, kind, **fields).to_frames())

    def hear(self, timeout_s: float) -> tuple[str, Header]:
        deadline = time.monotonic() + timeout_s
        while (left_s := deadline - time.monotonic()) > 0:
            if is_shut_out(self._socket):
                raise AdminError(str(unreachable([self._endpoint])))
            if not self._socket.poll(int(min(left_s, HELLO_S) * 1000) + 1):
                self._greet()
            elif (answer := self._receive()) is not None:
                return answer.answer, answer.told()
        if not self._connection:
            raise AdminError(str(unreachable([self._endpoint], timeout_s)))
        return "", {}

    def _receive(self) -> AdminAnswer | None:
        """Return the answer that has come, if it is one to the command."""
        try:
            answer = parse_answer(self._socket.recv_multipart())
        except ProtocolError:
            raise self.silence from None
        if isinstance(answer, ErrorAnswer):
            raise AdminError(answer.message)
        if isinstance(answer, Welcome):
            if self._connection not in ("", answer.connection):
                raise AdminError(
                    f"the connection to {self._endpoint} was lost meanwhile; {UNKNOWN}"
                )
            self._connection = answer.connection
        return answer if isinstance(answer, AdminAnswer) else None

    def _greet(self) -> None:
        self._send(Hello(f"bert-serving-admin/{__version__}").to_frames())

    def _send(self, frames: list[Any]) -> None:
        with suppress(zmq.Again):  # shut out, which is seen where an answer is waited for
            send_frames(self._socket, frames)

"""Where the processes of one server meet: sockets in a folder that only this user may open.

The supervisor's control socket is bound twice: under the server's own folder, for its
children, and under the native port's number, where `bert-serving-terminate` finds it.
"""

from __future__ import annotations

import logging
import os
import secrets
import socket as sockets
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zmq

from bert_serving.client.errors import ProtocolError
from bert_serving.client.frames import Header

from .worker_protocol import message, read_message

log = logging.getLogger("bert_serving.supervisor")

FLUSH_MS = 1_000
LOOK_S = 1.0
LONGEST_NAME = "1234567-123456.frontend"  # of a socket here
LONGEST_PATH = 107  # of any socket


class ControlError(Exception):
    """The folder for the control sockets cannot be used; the message says why."""


@dataclass(frozen=True)
class Addresses:
    """The local addresses of one server's processes.

    Attributes:
        supervisor: where broker and commands reach the supervisor.
        backend: where workers reach the broker.
        frontend: where gateways reach it, as clients that need no key.

    """

    supervisor: str
    backend: str
    frontend: str


NOWHERE = Addresses("", "", "")
"""Of a role that runs without a server."""


def control_folder() -> Path:
    """Return this user's folder for sockets, made if need be.

    Raises:
        ControlError: it belongs to somebody else, others may enter it, or its path is too long.

    """
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    parent = Path(runtime) if runtime and Path(runtime).is_dir() else Path(tempfile.gettempdir())
    folder = parent / f"bert-serving-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()
    except OSError as error:
        raise ControlError(
            f"cannot make the folder {folder} for control sockets: {error}"
        ) from None
    private = stat.S_ISDIR(status.st_mode) and not status.st_mode & 0o077
    if not private or status.st_uid != os.getuid():
        raise ControlError(
            f"{folder} must be a folder of this user's that nobody else may enter: "
            "remove it, or set XDG_RUNTIME_DIR to a folder of your own"
        )
    if is_too_long(folder):
        raise ControlError(
            f"{folder}: too long for the path of a socket, which has at most {LONGEST_PATH} bytes: "
            "set XDG_RUNTIME_DIR to a folder of your own, with a short name"
        )
    return folder


def is_too_long(folder: Path) -> bool:
    """Whether a socket in a folder would have a path that the system does not take."""
    return len(os.fsencode(folder / LONGEST_NAME)) > LONGEST_PATH


def addresses(pid: int) -> Addresses:
    """Return addresses for the server whose supervisor has this process id.

    In containers that share the folder, others may have the same one.
    """
    place = f"ipc://{control_folder()}/{pid}-{secrets.token_hex(3)}"
    return Addresses(f"{place}.control", f"{place}.backend", f"{place}.frontend")


def port_address(port: int) -> str:
    """Return the control address of the server with this native port."""
    return f"ipc://{control_folder()}/port-{port}.control"


def socket_file(address: str) -> Path:
    """Return the file behind an ipc address."""
    return Path(address.removeprefix("ipc://"))


def check_free(address: str) -> None:
    """Refuse an address at which a process listens; a file that was left behind is none.

    Raises:
        ControlError: another server of this user has the port, on another host or until its end.

    """
    with sockets.socket(sockets.AF_UNIX, sockets.SOCK_STREAM) as socket:
        socket.settimeout(LOOK_S)
        try:
            socket.connect(str(socket_file(address)))
        except TimeoutError:  # it is there, and does not get round to it
            pass
        except OSError:
            return
    raise ControlError(
        f"{socket_file(address)} is in use: a server of this user has this port already, on "
        "another -host or as it is about to end: give another -port, or end it"
    )


class ControlSocket:
    """The supervisor's socket: a ROUTER at one address for its children, one for commands."""

    def __init__(self, context: zmq.Context[Any]) -> None:
        self._socket = context.socket(zmq.ROUTER)
        self._files: list[Path] = []

    def bind(self, address: str) -> None:
        """Listen at an address as well; its file goes when the socket is closed.

        Raises:
            ControlError: another server has it.

        """
        check_free(address)  # ZeroMQ would take its file away
        self._socket.bind(address)
        self._files.append(socket_file(address))

    def tell(self, route: bytes, kind: str, **fields: Any) -> None:
        """Send a message; one to somebody who is not there is dropped."""
        self._socket.send_multipart([route, *message(kind, **fields)])

    def receive(self, wait_ms: int) -> tuple[bytes, str, Header] | None:
        """Return the route, kind and header of the next message, if one comes in time."""
        if not self._socket.poll(wait_ms):
            return None
        route, *frames = self._socket.recv_multipart()
        try:
            kind, header, _ = read_message(frames)
        except ProtocolError as error:
            log.warning("the control socket got what cannot be read: %s", error)
            return None
        return route, kind, header

    def close(self) -> None:
        """Close the socket, when what was said is on its way, and remove its files."""
        self._socket.close(linger=FLUSH_MS)
        for file in self._files:
            file.unlink(missing_ok=True)

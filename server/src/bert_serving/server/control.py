"""Where the processes of one server meet: sockets in a folder that only this user may open.

The supervisor's control socket is bound twice: under the server's own folder, for its
children, and under the native port's number, where `bert-serving-terminate` finds it.
"""

from __future__ import annotations

import os
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path


class ControlError(Exception):
    """The folder for the control sockets cannot be used; the message says why."""


@dataclass(frozen=True)
class Addresses:
    """The local addresses of one server's processes.

    Attributes:
        supervisor: where broker and commands reach the supervisor.
        backend: where workers reach the broker.

    """

    supervisor: str
    backend: str


def control_folder() -> Path:
    """Return this user's folder for sockets, made if need be.

    Raises:
        ControlError: it belongs to somebody else, or others may enter it.

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
    return folder


def addresses(pid: int) -> Addresses:
    """Return the addresses of the server whose supervisor has this process id."""
    folder = control_folder()
    return Addresses(f"ipc://{folder}/{pid}.control", f"ipc://{folder}/{pid}.backend")


def port_address(port: int) -> str:
    """Return the control address of the server with this native port."""
    return f"ipc://{control_folder()}/port-{port}.control"


def socket_file(address: str) -> Path:
    """Return the file behind an ipc address."""
    return Path(address.removeprefix("ipc://"))

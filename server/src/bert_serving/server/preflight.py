"""What a server's options are checked for before anything is started or measured."""

from __future__ import annotations

import errno
import logging
import os
from pathlib import Path

from bert_serving.client.keys import KeyFileError, read_secret

from . import control, ready
from .config import ServerConfig, option_fields
from .devices import PlacementError, place_workers
from .exposure import ExposureError, check_exposure
from .listening_ports import ADVICE, bind_error, contradiction, listening_ports

log = logging.getLogger("bert_serving.supervisor")

_KEY_FOLDERS = ("client_keys", "worker_keys", "admin_keys")


class StartError(Exception):
    """The server cannot start; the message is one line that names the cause."""


CAUSES = (StartError, PlacementError, control.ControlError, ready.ReadyFileError)
"""Everything that a server which cannot start says why with."""


def check(config: ServerConfig) -> None:
    """Refuse what cannot be served or is not meant, and log what does nothing or is dangerous.

    Raises:
        StartError: options contradict each other, or a port is taken or would be open to others.
        PlacementError: the devices asked for are not there.
        ControlError: another server of this user has the port, or there is no place for sockets.

    """
    for entry in option_fields():
        why = entry.metadata["ignored"]
        if why is not None and getattr(config, entry.name) != entry.default:
            log.warning("-%s does nothing: %s", entry.name, why)
    if config.legacy_port_out is not None and config.legacy_port is None:
        raise StartError(
            f"-legacy_port_out {config.legacy_port_out} is one of the two ports of "
            "bert-as-service: give -legacy_port as well, or neither"
        )
    _check_doors(config)
    place_workers(config)
    _check_ports(config)


def _check_ports(config: ServerConfig) -> None:
    """Refuse ports that cannot be had; what else is wrong with the host, the broker says."""
    ports = listening_ports(config)
    if (why := contradiction(ports)) is not None:
        raise StartError(f"{why}: {ADVICE}")
    for option, port in ports.items():
        error = bind_error(config.host, port)
        if error in (errno.EADDRINUSE, errno.EACCES):
            raise StartError(
                f"cannot listen on {config.host}, -{option} {port}: {os.strerror(error)}"
            )
    if config.port:
        control.check_free(control.port_address(config.port))


def _check_doors(config: ServerConfig) -> None:
    """Refuse to open what nobody has said may be open, and say loudly what will be."""
    try:
        warnings = check_exposure(config)
        if config.server_key is not None:
            read_secret(config.server_key)  # the broker's to use; what is wrong is said here
    except ExposureError as error:
        raise StartError(str(error)) from None
    except KeyFileError as error:
        raise StartError(f"-server_key: {error}") from None
    for name in _KEY_FOLDERS:
        folder = getattr(config, name)
        if folder is not None:
            _check_folder(name, folder)
    for warning in warnings:
        log.warning("%s", warning)


def _check_folder(option: str, folder: str) -> None:
    try:
        is_folder = Path(folder).is_dir()
    except OSError as error:
        raise StartError(f"-{option} {folder} cannot be looked at: {error.strerror}") from None
    if not is_folder:
        raise StartError(f"-{option} {folder} is no folder")

"""What a server's options are checked for before anything is started or measured."""

from __future__ import annotations

import logging
from pathlib import Path

from bert_serving.client.keys import KeyFileError, read_secret

from . import control, ready
from .config import ServerConfig, option_fields
from .devices import PlacementError, place_workers
from .exposure import ExposureError, check_exposure

log = logging.getLogger("bert_serving.supervisor")

_KEY_FOLDERS = ("client_keys", "worker_keys", "admin_keys")


class StartError(Exception):
    """The server cannot start; the message is one line that names the cause."""


CAUSES = (StartError, PlacementError, control.ControlError, ready.ReadyFileError)
"""Everything that a server which cannot start says why with."""


def check(config: ServerConfig) -> None:
    """Refuse what cannot be served or is not meant, and log what does nothing or is dangerous.

    Raises:
        StartError: options contradict each other, or a port would be open to others.
        PlacementError: the devices asked for are not there.

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
        if folder is not None and not Path(folder).is_dir():
            raise StartError(f"-{name} {folder} is no folder")
    for warning in warnings:
        log.warning("%s", warning)

"""Who can reach the ports that a server is told to open, and whether that is meant: pure."""

from __future__ import annotations

import ipaddress

from .config import ServerConfig

HOW_TO_ENCRYPT = (
    "give -server_key and -client_keys (bert-serving-keygen makes the keys), or "
    "-allow_insecure if everybody who can reach that address may read, change and ask everything"
)


class ExposureError(Exception):
    """A port would be open to more than is meant; the message says what to type."""


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address; a name may be anybody's, but one."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def check_exposure(config: ServerConfig) -> list[str]:
    """Return what the log must say of ports that anybody can use.

    Raises:
        ExposureError: they would be open to others and nobody has said that they may.

    """
    _check_keys(config)
    if is_loopback(config.host):
        return []
    open_ports = []
    if config.client_keys is None:
        open_ports.append(f"the native port on {config.host}")
        if not config.allow_insecure:
            raise ExposureError(
                f"-host {config.host} can be reached from other machines: {HOW_TO_ENCRYPT}"
            )
    if config.legacy_port is not None:
        open_ports.append(f"the ports of bert-as-service on {config.host}")
        if not config.allow_insecure:
            raise ExposureError(
                f"-legacy_port on -host {config.host} cannot be encrypted, as bert-as-service's "
                "clients know no keys: leave it out, listen on 127.0.0.1, or give -allow_insecure "
                "if everybody who can reach that address may read, change and ask everything"
            )
    return [
        f"INSECURE: {port} is open to everybody who can reach it: nothing there is encrypted, "
        "and anybody may ask and listen (-allow_insecure)"
        for port in open_ports
    ]


def _check_keys(config: ServerConfig) -> None:
    """Refuse keys of which the other half is missing; workers have no way in without."""
    if (config.backend_port is None) != (config.worker_keys is None):
        raise ExposureError(
            "-backend_port and -worker_keys, the folder with the public keys of the workers that "
            "may come in by it, go together: bert-serving-keygen worker makes them"
        )
    if config.server_key is None:
        for name in ("client_keys", "worker_keys", "admin_keys"):
            if getattr(config, name) is not None:
                raise ExposureError(
                    f"-{name} needs -server_key, the file with the server's own secret key: "
                    "bert-serving-keygen server makes it"
                )
    elif config.client_keys is None and config.worker_keys is None:
        raise ExposureError(
            "-server_key needs -client_keys, the folder with the public keys of those who may "
            "come in: bert-serving-keygen client makes them"
        )
    elif config.admin_keys is not None and config.client_keys is None:
        raise ExposureError(
            "-admin_keys needs -client_keys: without that, nobody shows a key at the native port"
        )

"""Every check by name; run as a module, it makes one of them and prints what it has found.

python -m bert_serving.server.doctor.checks NAME < SETTINGS    (both as JSON)
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass

from bert_serving.server.config import ServerConfig

from . import gpus, installation, key_files, machine, model_files, places, ports, running
from .finding import Finding


@dataclass(frozen=True)
class Settings:
    """What is to be examined.

    Attributes:
        config: of the server that is, or would be, started.
        ip: where a running server is; None if there is none to look at.
        client_cert: the file with the key to ask it with, if it asks for keys.

    """

    config: ServerConfig
    ip: str | None = None
    client_cert: str | None = None

    def to_json(self) -> str:
        """Return it as one line."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Settings:
        """Return what `to_json` wrote."""
        values = json.loads(text)
        lists = {name: tuple(v) for name, v in values["config"].items() if isinstance(v, list)}
        config = ServerConfig(**{**values["config"], **lists})
        return cls(config, values["ip"], values["client_cert"])


@dataclass(frozen=True)
class Check:
    """One check.

    Attributes:
        look: makes it.
        limit_s: how long it may take.
        measures_time: it is to be made alone.

    """

    look: Callable[[Settings], list[Finding]]
    limit_s: float = 10.0
    measures_time: bool = False


CHECKS: Mapping[str, Check] = {
    "packages": Check(lambda _: installation.look_at_packages()),
    "libzmq": Check(lambda _: installation.look_at_libzmq()),
    "processor": Check(lambda _: machine.look_at_processor()),
    "cores": Check(lambda _: machine.look_at_cores()),
    "kernels": Check(lambda _: installation.look_at_kernels(), limit_s=60.0),
    "devices": Check(lambda settings: gpus.look_at_devices(settings.config), limit_s=60.0),
    "model": Check(lambda settings: model_files.look_at_model(settings.config), limit_s=300.0),
    "descriptors": Check(lambda _: machine.look_at_descriptors()),
    "control folder": Check(lambda _: places.look_at_control_folder()),
    "cache folder": Check(lambda _: places.look_at_cache()),
    "disk": Check(lambda _: places.look_at_disk()),
    "clock": Check(lambda _: machine.look_at_clock()),
    "keys": Check(lambda settings: key_files.look_at_keys(settings.config)),
    "ports": Check(lambda settings: ports.look_at_ports(settings.config)),
    "server": Check(
        lambda settings: running.look_at_server(
            str(settings.ip),
            settings.config.port,
            settings.config.server_key,
            settings.client_cert,
        ),
        limit_s=60.0,
        measures_time=True,
    ),
    "speed": Check(
        lambda settings: model_files.look_at_speed(settings.config),
        limit_s=300.0,
        measures_time=True,
    ),
}


def main() -> int:
    """Make the check that the argument names; its exit status says only that it could."""
    out = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what libraries print is no finding
    found = CHECKS[sys.argv[1]].look(Settings.from_json(sys.stdin.read()))
    with os.fdopen(out, "w") as file:
        json.dump([asdict(finding) for finding in found], file)
    return 0


if __name__ == "__main__":
    sys.exit(main())

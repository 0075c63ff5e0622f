"""`bert-serving-worker`: compute for a server on another machine.

The worker is a process of its own, started again when it has ended: what it computed then is
computed by another one, as the server sees that its connection has ended.
"""

from __future__ import annotations

import argparse
import logging
import random
import secrets
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from types import FrameType

from bert_serving.client.keys import KeyFileError, connection_keys
from bert_serving.server import exit_codes, logs
from bert_serving.server.cli.options import (
    SettingError,
    add_options,
    to_config,
)
from bert_serving.server.cli.output import printing
from bert_serving.server.config import ServerConfig
from bert_serving.server.control import NOWHERE
from bert_serving.server.devices import PlacementError, place_workers
from bert_serving.server.processes import Child
from bert_serving.server.roles import RemoteConfig, WorkerConfig, worker_config
from bert_serving.server.version import __version__

log = logging.getLogger("bert_serving.remote")

GROUPS = ("model", "default view (a request may ask for another)", "devices", "logging")
FIRST_NUMBER = 1_000  # a server's own workers are numbered from 0
POLL_S = 0.1


def get_parser() -> argparse.ArgumentParser:
    """Return the parser of `bert-serving-worker`."""
    parser = argparse.ArgumentParser(
        prog="bert-serving-worker",
        description="Compute for a bert-serving server on another machine, which was started with "
        "-backend_port and -worker_keys. The options of the model and the default view must be "
        "the server's.",
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument("-version", "--version", action="version", version=__version__)
    parser.add_argument(
        "-server",
        "--server",
        required=True,
        metavar="tcp://HOST:PORT",
        help="the server's backend port, as its ready line says it",
    )
    parser.add_argument(
        *("-server_key", "--server-key"),
        required=True,
        metavar="FILE",
        help="the server's public key (NAME.key), or its 40 characters",
    )
    parser.add_argument(
        *("-worker_cert", "--worker-cert"),
        required=True,
        metavar="FILE",
        help="file with this worker's own secret key (bert-serving-keygen worker)",
    )
    add_options(parser, GROUPS, left_out=["num_worker"])
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Keep a worker running until told to stop; returns the exit status."""
    parser = get_parser()
    with printing():  # the help
        args = parser.parse_args(argv)
    remote = RemoteConfig(server_key=args.server_key, worker_cert=args.worker_cert)
    server = args.server
    for name in ("server", "server_key", "worker_cert"):
        delattr(args, name)
    try:
        connection_keys(remote.server_key, remote.worker_cert)
        config = to_config(args)
        told = _told(config, server, remote)
    except (SettingError, KeyFileError, PlacementError) as error:
        parser.error(str(error))
    logs.set_up("remote", verbose=config.verbose, log_format=config.log_format)
    return _keep_running(told)


def _told(config: ServerConfig, server: str, remote: RemoteConfig) -> WorkerConfig:
    if not server.startswith("tcp://"):
        raise SettingError(f"-server {server}: expected tcp://HOST:PORT")
    if len(config.device_map) > 1:
        raise SettingError(
            f"-device_map {' '.join(map(str, config.device_map))}: this is one worker, with one "
            "GPU: start another for each"
        )
    placement = place_workers(replace(config, num_worker=1))[0]
    number = FIRST_NUMBER + secrets.randbelow(1_000_000)
    told = worker_config(config, NOWHERE, number, placement)
    return replace(told, backend=server, remote=remote)


def _keep_running(told: WorkerConfig) -> int:
    stopped: list[int] = []

    def note(number: int, _: FrameType | None) -> None:
        stopped.append(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, note)
    worker = Child("the worker", "worker", told)
    while not stopped:
        worker.start()
        worker.mark_ready(time.monotonic())
        process = worker.process
        assert process is not None  # as it has just been started
        while process.poll() is None and not stopped:
            time.sleep(POLL_S)
        if stopped:
            process.kill()  # nothing of it is lost: the server has another compute it
            process.wait()
            break
        ended = exit_codes.describe(process.returncode)
        if process.returncode == exit_codes.BOOT_FAILED:
            log.error("the worker %s: it would again", ended)
            return exit_codes.BOOT_FAILED
        delay_s = worker.policy.on_exit(time.monotonic(), random.random())  # noqa: S311  # jitter
        log.warning("the worker %s: starting it again in %.1f s", ended, delay_s)
        deadline = time.monotonic() + delay_s
        while time.monotonic() < deadline and not stopped:
            time.sleep(POLL_S)
    return exit_codes.OK


if __name__ == "__main__":
    sys.exit(main())

"""`bert-serving-doctor`: check what a server needs, and a server that runs."""

from __future__ import annotations

import argparse
import socket as sockets
import sys
from collections.abc import Sequence

from bert_serving.server import exit_codes
from bert_serving.server.cli.options import SettingError, get_args_parser, to_config
from bert_serving.server.cli.output import printing
from bert_serving.server.config import ServerConfig
from bert_serving.server.control import ControlError, port_address, socket_file
from bert_serving.server.doctor import report
from bert_serving.server.doctor.checks import CHECKS, Settings
from bert_serving.server.doctor.examination import examine

DESCRIPTION = (
    "Check whether a server can run here with these options, which are those of "
    "bert-serving-start, and the server of this user that has the -port, if it runs. Exit status: "
    "0 if there is no problem, 1 if there is one."
)
LOOK_S = 1.0
OWN = ("ip", "client_cert", "json", "quick")
REMOTE = ("packages", "libzmq", "server")


def get_parser() -> argparse.ArgumentParser:
    """Return the parser of `bert-serving-doctor`."""
    parser = get_args_parser()
    parser.prog, parser.description = "bert-serving-doctor", DESCRIPTION
    own = parser.add_argument_group("examination")
    own.add_argument(
        "-ip", "--ip", help="look only at the server there, on -port, and at what a client needs"
    )
    own.add_argument(
        *("-client_cert", "--client-cert"),
        dest="client_cert",
        help="file with a client's secret key, for a server with -server_key",
    )
    own.add_argument("-json", "--json", action="store_true", help="write JSON")
    own.add_argument(
        "-quick", "--quick", action="store_true", help="measure no speed, load no model"
    )
    return parser


@printing()
def main(argv: Sequence[str] | None = None) -> int:
    """Make the checks and tell what they have found; returns the exit status."""
    parser = get_parser()
    args = parser.parse_args(argv)
    own = {name: vars(args).pop(name, None) for name in OWN}
    try:
        config = to_config(args)
    except SettingError as error:
        parser.error(str(error))
    settings = Settings(config, own["ip"] or running_server(config), own["client_cert"])
    names = chosen(settings, is_remote=own["ip"] is not None, is_quick=bool(own["quick"]))
    found = []
    for finding in examine(settings, names):
        found.append(finding)
        if not own["json"]:
            print(report.as_line(finding), flush=True)
    print(report.as_json(found) if own["json"] else report.summary(found))
    return exit_codes.FAILED if report.has_problem(found) else exit_codes.OK


def chosen(settings: Settings, *, is_remote: bool, is_quick: bool) -> list[str]:
    """Return which checks are to be made.

    Where a server runs, its port is taken as it should be, and a second model beside its own
    could cost it its memory.
    """
    if is_remote:
        return list(REMOTE)
    left_out = {"server"} if settings.ip is None else {"ports", "speed"}
    left_out |= {"speed"} if is_quick else set()
    return [name for name in CHECKS if name not in left_out]


def running_server(config: ServerConfig) -> str | None:
    """Return the address of this user's server with the port; None if there is none."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(config.host, config.host)  # noqa: S104
    try:
        if not socket_file(port_address(config.port)).exists():
            return None
        sockets.create_connection((host, config.port), LOOK_S).close()
    except (OSError, ControlError):
        return None
    return host


if __name__ == "__main__":
    sys.exit(main())

"""`bert-serving-terminate`: stop a server of this user on this machine."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from bert_serving.server import exit_codes
from bert_serving.server.control import ControlError
from bert_serving.server.termination import TerminationError, check_local, terminate
from bert_serving.server.version import __version__


def get_parser() -> argparse.ArgumentParser:
    """Return the parser of `bert-serving-terminate`."""
    parser = argparse.ArgumentParser(
        prog="bert-serving-terminate",
        description="Stop a bert-serving server on this machine that this user started: it works "
        "off what it has accepted, then ends.",
        allow_abbrev=False,
    )
    parser.add_argument("-version", "--version", action="version", version=__version__)
    parser.add_argument(
        "-ip", "--ip", default="localhost", help="only this machine's own (default: localhost)"
    )
    parser.add_argument(
        *("-port", "--port", "-port_in", "--port-in", "-port_data", "--port-data"),
        dest="port",
        type=int,
        default=5555,
        help="the server's native port (default: 5555)",
    )
    parser.add_argument(
        "-timeout",
        "--timeout",
        type=int,
        default=60_000,
        metavar="MS",
        help="how long to wait for its end (default: 60000)",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Tell a server to stop and wait until it has; returns the exit status."""
    parser = get_parser()
    args = parser.parse_args(argv)
    try:
        check_local(args.ip)
    except TerminationError as error:
        parser.error(str(error))
    try:
        terminate(args.port, args.timeout / 1000)
    except (TerminationError, ControlError) as error:
        print(error, file=sys.stderr)
        return exit_codes.FAILED
    print(f"the server with port {args.port} has ended")
    return exit_codes.OK


if __name__ == "__main__":
    sys.exit(main())

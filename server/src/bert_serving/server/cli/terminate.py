"""`bert-serving-terminate`: stop a server of this user, or with a key any other."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Sequence

from bert_serving.server import exit_codes
from bert_serving.server.cli.addressing import add_server_options, chosen_server
from bert_serving.server.cli.output import printing
from bert_serving.server.control import ControlError
from bert_serving.server.termination import TerminationError, terminate
from bert_serving.server.version import __version__

LONGEST_MS = 1_000_000_000


def get_parser() -> argparse.ArgumentParser:
    """Return the parser of `bert-serving-terminate`."""
    parser = argparse.ArgumentParser(
        prog="bert-serving-terminate",
        description="Stop a bert-serving server on this machine that this user started, or with an "
        "administrator's key any other: it works off what it has accepted, then ends.",
        allow_abbrev=False,
    )
    parser.add_argument("-version", "--version", action="version", version=__version__)
    add_server_options(parser, "-port_in", "--port-in", "-port_data", "--port-data")
    parser.add_argument(
        "-timeout",
        "--timeout",
        type=_milliseconds,
        default=60_000,
        metavar="MS",
        help="how long to wait for its end (default: 60000)",
    )
    return parser


@printing()
def main(argv: Sequence[str] | None = None) -> int:
    """Tell a server to stop and wait until it has; returns the exit status."""
    parser = get_parser()
    args = parser.parse_args(argv)
    server = chosen_server(parser, args)
    try:
        terminate(server, args.timeout / 1000)
    except (TerminationError, ControlError) as error:
        print(error, file=sys.stderr)
        return exit_codes.FAILED
    print(f"the server with port {args.port} has ended")
    return exit_codes.OK


def _milliseconds(text: str) -> int:
    with contextlib.suppress(ValueError):
        if 0 < int(text) < LONGEST_MS:
            return int(text)
    raise argparse.ArgumentTypeError(
        f"{text!r}: expected milliseconds, at least 1 and below {LONGEST_MS}"
    )


if __name__ == "__main__":
    sys.exit(main())

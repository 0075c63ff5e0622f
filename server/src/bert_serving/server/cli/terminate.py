"""`bert-serving-terminate`: stop a server of this user on this machine."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from typing import Any

import zmq

from bert_serving.client.frames import decode_message
from bert_serving.server import control, exit_codes
from bert_serving.server.version import __version__
from bert_serving.server.worker_protocol import message

LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")


def main(argv: Sequence[str] | None = None) -> int:
    """Tell a server to stop and wait until it has; returns the exit status."""
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
        "-port", "--port", type=int, default=5555, help="the server's native port (default: 5555)"
    )
    parser.add_argument(
        "-timeout",
        "--timeout",
        type=int,
        default=60_000,
        metavar="MS",
        help="how long to wait for its end (default: 60000)",
    )
    args = parser.parse_args(argv)
    if args.ip not in LOCAL_NAMES:
        parser.error(
            f"-ip {args.ip}: a server can only be stopped on its own machine, by the user who "
            "started it; log in there"
        )
    try:
        return terminate(args.port, args.timeout / 1000)
    except control.ControlError as error:
        print(error, file=sys.stderr)
        return exit_codes.FAILED


def terminate(port: int, timeout_s: float) -> int:
    """Stop the server with this native port; prints what happened, returns the exit status."""
    address = control.port_address(port)
    if not control.socket_file(address).exists():
        print(f"this user has no server with port {port} on this machine", file=sys.stderr)
        return exit_codes.FAILED
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.linger = 0
        socket.connect(address)
        socket.send_multipart(message("terminate"))
        deadline = time.monotonic() + timeout_s
        answer = _receive(socket, min(deadline, time.monotonic() + 5))
        if answer.get("type") != "terminating":
            print(f"the server with port {port} does not answer: it may be gone", file=sys.stderr)
            return exit_codes.FAILED
        if _receive(socket, deadline).get("type") != "terminated":
            print(
                f"the server (process {answer['pid']}) is stopping, but has not ended within "
                f"{timeout_s * 1000:.0f} ms",
                file=sys.stderr,
            )
            return exit_codes.FAILED
    print(f"the server with port {port} has ended")
    return exit_codes.OK


def _receive(socket: zmq.Socket[Any], deadline: float) -> dict[str, Any]:
    if not socket.poll(max(int((deadline - time.monotonic()) * 1000), 0)):
        return {}
    header, _ = decode_message(socket.recv_multipart())
    return header


if __name__ == "__main__":
    sys.exit(main())

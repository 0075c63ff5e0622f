"""`bert-serving-admin`: the status of a running server, other workers, another model; its end."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bert_serving.server import exit_codes
from bert_serving.server.admin_client import AdminError, Server, ask_status, change_workers
from bert_serving.server.cli.addressing import add_server_options, chosen_server
from bert_serving.server.cli.output import printing
from bert_serving.server.control import ControlError
from bert_serving.server.termination import TerminationError, terminate
from bert_serving.server.version import __version__

DESCRIPTION = (
    "Ask something of a bert-serving server on this machine that this user started, or with an "
    "administrator's key of any other. Workers are changed one by one, each when its successor is "
    "ready: no request fails."
)
TIMEOUT_S = 1_800


def get_parser() -> argparse.ArgumentParser:
    """Return the parser of `bert-serving-admin`."""
    parser = argparse.ArgumentParser(
        prog="bert-serving-admin", description=DESCRIPTION, allow_abbrev=False
    )
    parser.add_argument("-version", "--version", action="version", version=__version__)
    shared = argparse.ArgumentParser(add_help=False)
    add_server_options(shared)
    waits = argparse.ArgumentParser(add_help=False)
    waits.add_argument(
        *("-timeout", "--timeout"),
        type=_seconds,
        default=TIMEOUT_S,
        metavar="SECONDS",
        help=f"how long to wait for the end of it (default: {TIMEOUT_S})",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    status = commands.add_parser("status", parents=[shared], help="say what it is doing")
    status.add_argument("-json", "--json", action="store_true", help="all that it says, as JSON")
    reload = commands.add_parser(
        "reload", parents=[shared, waits], help="load the model anew, or another of the same shape"
    )
    reload.add_argument(
        "-model_dir", "--model-dir", metavar="DIR", help="as bert-serving-start's; default: as now"
    )
    scale = commands.add_parser("scale", parents=[shared, waits], help="have so many workers")
    scale.add_argument("num_worker", type=_count, metavar="N")
    commands.add_parser(
        "terminate", parents=[shared, waits], help="work off what it has accepted, then end"
    )
    return parser


@printing()
def main(argv: Sequence[str] | None = None) -> int:
    """Ask a server for something; returns the exit status."""
    parser = get_parser()
    args = parser.parse_args(argv)
    try:
        print(_ask(chosen_server(parser, args), args))
    except (AdminError, TerminationError, ControlError) as error:
        print(f"bert-serving-admin {args.command}: {error}", file=sys.stderr)
        return exit_codes.FAILED
    return exit_codes.OK


def _ask(server: Server, args: argparse.Namespace) -> str:
    """Have a server do what a command asks for; returns what there is to say of it."""
    if args.command == "status":
        status = ask_status(server)
        return json.dumps(status) if args.json else status_text(status)
    if args.command == "terminate":
        terminate(server, args.timeout)
        return f"the server with port {args.port} has ended"
    fields = _fields(args, is_local=server.endpoint is None)
    return f"done: {change_workers(server, args.command, args.timeout, **fields)} workers changed"


def status_text(status: dict[str, Any]) -> str:
    """Return a status for people."""
    broker = status["broker"]
    lines = [f"supervisor: process {status['pid']}, up {status['uptime_s']:.0f} s"]
    if status["change"] is not None:
        lines.append(f"change: {status['change']}")
    lines += [_process_text(process) for process in status["processes"]]
    if broker is None:
        return "\n".join([*lines, "the broker does not answer"])
    lines += [_worker_text(worker) for worker in broker["workers"]]
    counts = broker["statistic"]
    lines.append(
        f"{broker['state']}: {counts['queued_requests']} requests queued ({counts['queued_rows']} "
        f"rows, {counts['queued_bytes']} bytes), {counts['requests_in_hand']} in workers' hands"
    )
    return "\n".join(lines)


def _worker_text(worker: dict[str, Any]) -> str:
    return (
        f"worker {worker['id']} on {worker['device']}: {worker['state']}, process {worker['pid']}, "
        f"{worker['max_batch_tokens']} tokens at a time"
    )


def _process_text(process: dict[str, Any]) -> str:
    state = "ready" if process["is_ready"] else "not ready"
    pid = "no process" if process["pid"] is None else f"process {process['pid']}"
    text = f"{process['name']}: {state}, {pid}"
    if process["last_exit_status"] is not None:
        ended = exit_codes.describe(process["last_exit_status"])
        text += f", started anew {process['restarts']} times; the last one {ended}"
    return text


def _fields(args: argparse.Namespace, *, is_local: bool) -> dict[str, Any]:
    if args.command == "scale":
        return {"num_worker": args.num_worker}
    if is_local and args.model_dir is not None and Path(args.model_dir).exists():
        return {"model_dir": str(Path(args.model_dir).resolve())}  # its folder is another one
    return {"model_dir": args.model_dir}


def _count(text: str) -> int:
    count = int(text)
    if count < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number, at least 1")
    return count


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 < seconds < 1e6:
        raise argparse.ArgumentTypeError(f"{text!r}: expected seconds above 0")
    return seconds


if __name__ == "__main__":
    sys.exit(main())

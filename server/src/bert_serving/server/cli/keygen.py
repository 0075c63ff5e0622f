"""`bert-serving-keygen`: make the key pair of a server or a client, and say what goes where."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from bert_serving.server import exit_codes
from bert_serving.server.certificates import CertificateError, Pair, pair_files, write_pair
from bert_serving.server.version import __version__

CLIENTS = "clients"
"""The folder beside the server's keys that `-client_keys` is to name."""

SERVER_ADVICE = """\
{secret}  stays here, for the server alone
{public}  goes to every client, which knows the server by it

next: bert-serving-keygen -dir {folder} client alice
      bert-serving-start -host 0.0.0.0 -server_key {secret} -client_keys {clients}"""

CLIENT_ADVICE = """\
{secret}  goes to the client, for nobody else (by scp, say), and is then removed here
{public}  stays in the server's -client_keys folder: that lets the client in, within a second,
  and removing it there shuts the client out

the client: BertClient(ip=…, server_key="server.key", client_cert="{secret_name}")"""


def get_parser() -> argparse.ArgumentParser:
    """Return the parser of `bert-serving-keygen`."""
    parser = argparse.ArgumentParser(
        prog="bert-serving-keygen",
        description="Make the key pair of a server, or of a client, for encrypted connections "
        "(CURVE). A file that is there already is never replaced.",
        allow_abbrev=False,
    )
    parser.add_argument("-version", "--version", action="version", version=__version__)
    parser.add_argument("kind", choices=("server", "client"), help="whose keys")
    parser.add_argument("name", nargs="?", help="a name for the files (default: the kind)")
    parser.add_argument(
        "-dir",
        "--dir",
        type=Path,
        default=Path("keys"),
        metavar="DIR",
        help="where the files go; made if need be (default: keys)",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Write a key pair and say what to do with it; returns the exit status."""
    args = get_parser().parse_args(argv)
    name = args.name or args.kind
    clients = args.dir / CLIENTS
    try:
        files = pair_files(name, args.dir, args.dir if args.kind == "server" else clients)
        write_pair(name, files)
        clients.mkdir(mode=0o700, exist_ok=True)  # empty, it lets nobody in
    except (CertificateError, OSError) as error:
        print(error, file=sys.stderr)
        return exit_codes.FAILED
    print(_advice(args.kind, files, args.dir))
    return exit_codes.OK


def _advice(kind: str, files: Pair, folder: Path) -> str:
    text = SERVER_ADVICE if kind == "server" else CLIENT_ADVICE
    return text.format(
        secret=files.secret,
        secret_name=files.secret.name,
        public=files.public,
        folder=folder,
        clients=folder / CLIENTS,
    )


if __name__ == "__main__":
    sys.exit(main())

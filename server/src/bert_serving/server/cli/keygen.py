"""`bert-serving-keygen`: make a key pair of a server or of who may come in; say what goes where."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from bert_serving.server import exit_codes
from bert_serving.server.certificates import CertificateError, Pair, pair_files, write_pair
from bert_serving.server.cli.output import printing
from bert_serving.server.version import __version__

FOLDERS = {"client": "clients", "worker": "workers", "admin": "admins"}
"""The folders beside the server's keys that `-client_keys` and the others are to name."""

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

WORKER_ADVICE = """\
{secret}  goes to the worker's machine, for nobody else, and is then removed here
{public}  stays in the server's -worker_keys folder: that lets the worker in

the server: bert-serving-start -backend_port 5560 -worker_keys {workers} -server_key …
the worker: bert-serving-worker -server tcp://…:5560 -server_key server.key \\
                -worker_cert {secret_name} -model_dir …"""

ADMIN_ADVICE = """\
{secret}  goes to the administrator, for nobody else, and is then removed here
{public}  stays in the server's -admin_keys folder: that lets the administrator in, to change
  and to end the server

the server: bert-serving-start -admin_keys {admins} -client_keys {clients} -server_key …
there:      bert-serving-admin status -ip … -server_key server.key -client_cert {secret_name}"""

ADVICE = {
    "server": SERVER_ADVICE,
    "client": CLIENT_ADVICE,
    "worker": WORKER_ADVICE,
    "admin": ADMIN_ADVICE,
}


def get_parser() -> argparse.ArgumentParser:
    """Return the parser of `bert-serving-keygen`."""
    parser = argparse.ArgumentParser(
        prog="bert-serving-keygen",
        description="Make the key pair of a server, a client, a worker on another machine, or "
        "an administrator (CURVE). A file that is there already is never replaced.",
        allow_abbrev=False,
    )
    parser.add_argument("-version", "--version", action="version", version=__version__)
    parser.add_argument("kind", choices=tuple(ADVICE), help="whose keys")
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


@printing()
def main(argv: Sequence[str] | None = None) -> int:
    """Write a key pair and say what to do with it; returns the exit status."""
    args = get_parser().parse_args(argv)
    name = args.name or args.kind
    folder = args.dir / FOLDERS.get(args.kind, "")
    try:
        files = pair_files(name, args.dir, folder)
        write_pair(name, files)
        (args.dir / FOLDERS["client"]).mkdir(mode=0o700, exist_ok=True)  # empty: lets nobody in
    except (CertificateError, OSError) as error:
        print(error, file=sys.stderr)
        return exit_codes.FAILED
    print(_advice(args.kind, files, args.dir))
    return exit_codes.OK


def _advice(kind: str, files: Pair, folder: Path) -> str:
    return ADVICE[kind].format(
        secret=files.secret,
        secret_name=files.secret.name,
        public=files.public,
        folder=folder,
        clients=folder / FOLDERS["client"],
        workers=folder / FOLDERS["worker"],
        admins=folder / FOLDERS["admin"],
    )


if __name__ == "__main__":
    sys.exit(main())

"""The options that say which server a command is for: this user's, or any with a key."""

from __future__ import annotations

import argparse

from bert_serving.client.endpoint import Endpoint
from bert_serving.client.keys import connection_keys
from bert_serving.client.servers import server_address
from bert_serving.server.admin_client import Server
from bert_serving.server.termination import LOCAL_NAMES


def add_server_options(parser: argparse.ArgumentParser, *port_aliases: str) -> None:
    """Add -ip, -port, and the keys."""
    parser.add_argument(
        *("-ip", "--ip"),
        default="localhost",
        help="where the server is (default: localhost); another machine's needs keys",
    )
    parser.add_argument(
        *("-port", "--port", *port_aliases),
        dest="port",
        type=int,
        default=5555,
        help="the server's native port (default: 5555)",
    )
    parser.add_argument(
        *("-server_key", "--server-key"),
        metavar="FILE",
        help="the server's public key (NAME.key), or its 40 characters",
    )
    parser.add_argument(
        *("-client_cert", "--client-cert"),
        metavar="FILE",
        help="file with an administrator's secret key, whose public half is in -admin_keys",
    )


def chosen_server(parser: argparse.ArgumentParser, args: argparse.Namespace) -> Server:
    """Return the server that the options name; ends the program if there can be none."""
    try:
        keys = connection_keys(args.server_key, args.client_cert)
        if keys is not None:
            return Server(args.port, Endpoint(server_address(args.ip, args.port), keys))
    except ValueError as error:
        parser.error(str(error))
    if args.ip not in LOCAL_NAMES:
        parser.error(
            f"-ip {args.ip}: without -server_key and -client_cert, only a server of this user on "
            "this machine can be asked"
        )
    return Server(args.port)

"""What can be seen of a server that has not answered, in words that say what to do.

Looking again, at a connection made for that, costs the calls that succeed nothing; a monitor
on each connection would.
"""

from __future__ import annotations

import socket as sockets
import time
from urllib.parse import urlsplit

import zmq
from zmq.utils.monitor import parse_monitor_message

from .endpoint import Endpoint
from .errors import ServerUnreachable
from .sockets import new_socket

PROBE_TIMEOUT_S = 1.0
MECHANISM_MISMATCH = 0x11000002  # ZMQ_PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH
_END = (
    zmq.EVENT_HANDSHAKE_SUCCEEDED
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
)

NOT_OURS = "something listens there, but does not speak this protocol: is it the right port?"
SILENT = "it lets this client in and then says nothing: is it the right port, and not hung?"
ASKS_FOR_KEYS = (
    "it lets in only clients with a key: give server_key= and client_cert=, see docs/security.md"
)
HAS_NO_KEYS = (
    "it does not encrypt: start it with -server_key and -client_keys, or leave out server_key= "
    "and client_cert="
)
UNKNOWN_KEY = (
    "it refuses this client's key: the public half of client_cert must be in the server's "
    "-client_keys folder"
)
WRONG_SERVER_KEY = (
    "the CURVE handshake failed: server_key is not the key of this server; what it is has to be "
    "compared with the NAME.key that bert-serving-keygen wrote for it"
)


def unreachable(endpoint: Endpoint, timeout_s: float) -> ServerUnreachable:
    """Return the error for a server that did not answer a hello, with what can be seen of it."""
    return ServerUnreachable(
        f"no bert-serving server answered at {endpoint} within {timeout_s * 1000:.0f} ms "
        f"(connect_timeout): {_seen(endpoint)}"
    )


def explain_handshake(event: int, value: int, *, has_keys: bool) -> str:
    """Return what the end of a ZeroMQ handshake says of the server; pure.

    Args:
        event: of the socket's monitor; 0 if there was none.
        value: what the monitor says of it.
        has_keys: whether this client uses keys.

    """
    if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
        return SILENT
    if event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
        return UNKNOWN_KEY
    if event == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL and value == MECHANISM_MISMATCH:
        return HAS_NO_KEYS if has_keys else ASKS_FOR_KEYS
    # a server that cannot read the first message hangs up
    return WRONG_SERVER_KEY if event and has_keys else NOT_OURS


def _seen(endpoint: Endpoint) -> str:
    parts = urlsplit(endpoint.address)
    try:
        with sockets.create_connection((parts.hostname, parts.port or 0), PROBE_TIMEOUT_S):
            pass
    except ConnectionRefusedError:
        return "nothing listens there: is bert-serving-start running, and on this port?"
    except OSError as error:
        return f"it cannot be connected to ({error})"
    event, value = _handshake(endpoint)
    return explain_handshake(event, value, has_keys=endpoint.keys is not None)


def _handshake(endpoint: Endpoint) -> tuple[int, int]:
    """Connect, and return the event and value that the handshake ends with; 0, 0 for none."""
    address = f"inproc://probe-{time.monotonic_ns()}"
    with zmq.Context() as context, context.socket(zmq.PAIR) as monitor:
        monitor.linger = 0
        socket = new_socket(context, endpoint)
        socket.monitor(address, _END)
        monitor.connect(address)
        socket.connect(endpoint.address)
        try:
            if not monitor.poll(int(PROBE_TIMEOUT_S * 1000)):
                return 0, 0
            seen = parse_monitor_message(monitor.recv_multipart())
            return int(seen["event"]), int(seen["value"])
        finally:
            socket.disable_monitor()
            socket.close()

"""What can be seen of a server that has not answered, in words that say what to do.

Looking again, at a connection made for that, costs the calls that succeed nothing; a monitor
on each connection would.
"""

from __future__ import annotations

import socket as sockets
import time
from collections.abc import Sequence
from contextlib import suppress
from urllib.parse import urlsplit

import zmq
from zmq.utils.monitor import parse_monitor_message

from .endpoint import Endpoint
from .errors import ServerUnreachable
from .sockets import new_socket

PROBE_TIMEOUT_S = 1.0
SIGNATURE_AND_VERSION = b"\xff" + bytes(8) + b"\x7f\x03"
MECHANISM_AT, GREETING_BYTES = 12, 32
_END = (
    zmq.EVENT_HANDSHAKE_SUCCEEDED
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
)

NOT_OURS = "something listens there, but does not speak this protocol: is it the right port?"
LET_IN_AGAIN = "it did not let this client in, and does again: try once more"
SILENT = "it lets this client in and then says nothing: is it the right port, and not hung?"
ASKS_FOR_KEYS = (
    "it lets in only clients with a key: give server_key= and client_cert=, see docs/security.md"
)
HAS_NO_KEYS = (
    "it does not encrypt: start it with -server_key and -client_keys, or leave out server_key= "
    "and client_cert="
)
UNKNOWN_KEY = (
    "it refuses this client's key: the public half must be in the folder of those that it allows "
    "(-client_keys; a worker's in -worker_keys)"
)
WRONG_SERVER_KEY = (
    "the CURVE handshake failed: server_key is not the key of this server; what it is has to be "
    "compared with the NAME.key that bert-serving-keygen wrote for it"
)


def unreachable(endpoints: Sequence[Endpoint], timeout_s: float | None = None) -> ServerUnreachable:
    """Return the error for servers that have not answered, with what can be seen of them.

    Args:
        endpoints: where they should be.
        timeout_s: how long they had for a first word; None if the handshake was refused.

    """
    where = " or ".join(map(str, endpoints))
    seen = [_seen(endpoint) for endpoint in endpoints]
    if timeout_s is None:
        seen = [LET_IN_AGAIN if words == SILENT else words for words in seen]
    if len(endpoints) > 1:
        seen = [f"{endpoint}: {words}" for endpoint, words in zip(endpoints, seen, strict=True)]
    if timeout_s is None:
        return ServerUnreachable(f"{where} refused the connection: {'; '.join(seen)}")
    return ServerUnreachable(
        f"no bert-serving server answered at {where} within {timeout_s * 1000:.0f} ms "
        f"(connect_timeout): {'; '.join(seen)}"
    )


def explain_mechanism(greeting: bytes, *, has_keys: bool) -> str | None:
    """Return what a server's greeting says of it, if that is why it cannot be spoken to; pure.

    Args:
        greeting: the beginning of ZMTP 3: signature, version, and name of the mechanism.
        has_keys: whether this client uses keys.

    """
    mechanism = greeting[MECHANISM_AT:GREETING_BYTES].rstrip(b"\0")
    if not greeting.startswith(b"\xff") or mechanism not in (b"NULL", b"CURVE"):
        return NOT_OURS
    if (mechanism == b"CURVE") == has_keys:
        return None
    return HAS_NO_KEYS if has_keys else ASKS_FOR_KEYS


def explain_handshake(event: int, *, has_keys: bool) -> str:
    """Return what the end of a ZeroMQ handshake says of a server that greets as it should; pure.

    Args:
        event: of the socket's monitor; 0 if there was none.
        has_keys: whether this client uses keys.

    """
    if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
        return SILENT
    if event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
        return UNKNOWN_KEY
    # a server that cannot read the first message hangs up
    return WRONG_SERVER_KEY if event and has_keys else NOT_OURS


def _seen(endpoint: Endpoint) -> str:
    parts = urlsplit(endpoint.address)
    has_keys = endpoint.keys is not None
    try:
        with sockets.create_connection((parts.hostname, parts.port or 0), PROBE_TIMEOUT_S) as probe:
            greeting = _greeting(probe)
    except ConnectionRefusedError:
        return "nothing listens there: is bert-serving-start running, and on this port?"
    except OSError as error:
        return f"it cannot be connected to ({error})"
    explained = explain_mechanism(greeting, has_keys=has_keys)
    return explained or explain_handshake(_handshake(endpoint), has_keys=has_keys)


def _greeting(probe: sockets.socket) -> bytes:
    """Return the beginning of what a server says to one that speaks ZMTP 3.

    It is not told our mechanism: it would hang up on the wrong one, and its own be lost.
    """
    greeting = b""
    with suppress(OSError):
        probe.sendall(SIGNATURE_AND_VERSION)
        while len(greeting) < GREETING_BYTES and (more := probe.recv(GREETING_BYTES)):
            greeting += more
    return greeting


def _handshake(endpoint: Endpoint) -> int:
    """Connect, and return the event that the handshake ends with; 0 for none."""
    address = f"inproc://probe-{time.monotonic_ns()}"
    with zmq.Context() as context, context.socket(zmq.PAIR) as monitor:
        monitor.linger = 0
        socket = new_socket(context, endpoint)
        socket.monitor(address, _END)
        monitor.connect(address)
        socket.connect(endpoint.address)
        try:
            if not monitor.poll(int(PROBE_TIMEOUT_S * 1000)):
                return 0
            return int(parse_monitor_message(monitor.recv_multipart())["event"])
        finally:
            socket.disable_monitor()
            socket.close()

"""Telling a server to stop, and waiting until it has."""

from __future__ import annotations

import time

from .admin_client import ANSWER_TIMEOUT_S, AdminError, Server, ServerEnded

LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")


class TerminationError(Exception):
    """The server could not be stopped; the message says why."""


def check_local(ip: str) -> None:
    """Raise TerminationError unless an address is this machine's own."""
    if ip not in LOCAL_NAMES:
        raise TerminationError(
            f"-ip {ip}: a server can only be stopped on its own machine, by the user who "
            "started it, or with bert-serving-terminate and a key in its -admin_keys"
        )


def terminate(server: Server, timeout_s: float) -> None:
    """Stop a server; it works off what it has accepted first.

    Raises:
        TerminationError: there is no such server, it refuses, or has not ended in time.
        ControlError: the folder with the control sockets cannot be used.

    """
    deadline = time.monotonic() + timeout_s
    try:
        with server.talk() as talk:
            talk.say("terminate")
            answered, header = talk.hear(min(timeout_s, ANSWER_TIMEOUT_S))
            if answered != "terminating":
                raise talk.silence
            answered, _ = talk.hear(max(deadline - time.monotonic(), 0.0))
    except ServerEnded:
        return
    except AdminError as error:
        raise TerminationError(str(error)) from None
    if answered != "terminated":
        raise TerminationError(
            f"the server (process {header['pid']}) is stopping, but has not ended within "
            f"{timeout_s * 1000:.0f} ms"
        )

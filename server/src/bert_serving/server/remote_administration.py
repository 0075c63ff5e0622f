"""Commands of administrators on other machines, as the broker passes them on.

They come by the native port, where a key says who asks. The broker checks it and passes the
command on; the supervisor obeys as if it had come by the control socket. What is open is known to
one life of the broker: after another has taken its place nobody gets an answer any more, which
the one who asks sees by the name of its connection.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, TypeAlias

import zmq

from bert_serving.client.admin_messages import Admin, AdminAnswer
from bert_serving.client.messages import ErrorAnswer

from .broker_sockets import BrokerSockets
from .doors.refusals import Refusals

log = logging.getLogger("bert_serving.doors")

MAX_OPEN = 64  # commands of all administrators: a change and some that look at it
NEEDS_KEY = "administration needs a key in -admin_keys"
LAST_ANSWERS = frozenset({"status", "refused", "changed", "failed", "terminated"})

Addressed: TypeAlias = tuple[bytes, AdminAnswer]
"""An answer, and the route of who gets it."""


@dataclass(frozen=True)
class _Open:
    """A command that is not fully answered."""

    route: bytes
    id: int
    command: str


class OpenCommands:
    """Who waits for an answer to what: pure."""

    def __init__(self, first: int) -> None:
        self._numbers = count(first)
        self._open: dict[int, _Open] = {}

    @property
    def is_full(self) -> bool:
        """Whether no more are taken."""
        return len(self._open) >= MAX_OPEN

    def add(self, route: bytes, admin: Admin) -> int:
        """Note a command; returns its number."""
        number = next(self._numbers)
        self._open[number] = _Open(route, admin.id, admin.command)
        return number

    def take(self, number: int, answer: str, told: Mapping[str, Any]) -> Addressed | None:
        """Return who gets an answer to the command with a number; None if nobody does."""
        asked = self._open.get(number)
        if asked is None:
            return None
        if answer in LAST_ANSWERS:
            del self._open[number]
        return asked.route, AdminAnswer(asked.id, answer, **told)

    def ended(self) -> list[Addressed]:
        """Return the answers to those who wait for the server's end, which has come."""
        waiting = [number for number, asked in self._open.items() if asked.command == "terminate"]
        answers = (self.take(number, "terminated", {}) for number in waiting)
        return [answer for answer in answers if answer is not None]

    def forget(self, route: bytes) -> None:
        """Forget the commands of a client that is gone."""
        self._open = {n: asked for n, asked in self._open.items() if asked.route != route}


class RemoteAdministration:
    """Who may ask for what, and whose an answer is.

    Args:
        sockets: with the door, which knows the keys.
        tell_supervisor: sends it a message.
        answer: sends a client frames, by its route.

    """

    def __init__(
        self,
        sockets: BrokerSockets,
        tell_supervisor: Callable[..., None],
        answer: Callable[[bytes, Sequence[Any]], None],
    ) -> None:
        self._sockets = sockets
        self._tell_supervisor = tell_supervisor
        self._answer = answer
        # another life of the broker must not take an answer for one to a command of its own
        self._open = OpenCommands(secrets.randbits(48))
        self._refusals = Refusals()

    def on_admin(self, first: zmq.Frame, admin: Admin) -> None:
        """Pass a command on, or answer why not.

        Args:
            first: the message's first frame: its route, and whose key its connection has shown.
            admin: the command.

        """
        route, door = first.bytes, self._sockets.door
        if door is None or not door.is_administrator(first):
            self._log_refusal("a client without keys" if door is None else door.name_of(first))
            self._answer(route, ErrorAnswer(admin.id, "invalid_request", NEEDS_KEY).to_frames())
        elif self._open.is_full:
            full = f"{MAX_OPEN} commands are open already"
            self._answer(route, ErrorAnswer(admin.id, "overloaded", full).to_frames())
        else:
            if admin.command != "status":
                log.info("%s asks for %s", door.name_of(first), admin.command)
            number = self._open.add(route, admin)
            arguments = admin.arguments()
            self._tell_supervisor("admin", asked=number, command=admin.command, fields=arguments)

    def on_answer(self, header: Mapping[str, Any]) -> None:
        """Send on what the supervisor answers."""
        addressed = self._open.take(header["asked"], header["answer"], header["fields"])
        if addressed is not None:
            self._answer(addressed[0], addressed[1].to_frames())

    def forget(self, route: bytes) -> None:
        """Forget a client that is gone."""
        self._open.forget(route)

    def close(self) -> None:
        """Tell those who have the server ended that it has: the supervisor has no way to."""
        for route, answer in self._open.ended():
            self._answer(route, answer.to_frames())

    def _log_refusal(self, who: str) -> None:
        line = self._refusals.line(who, NEEDS_KEY, NEEDS_KEY, time.monotonic())
        if line is not None:
            log.warning("%s", line)

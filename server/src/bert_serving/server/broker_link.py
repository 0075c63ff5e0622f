"""What the supervisor says to the broker, whichever life of it is the present one.

Nothing is said to a broker before it has told that it is there: what comes up until then is
kept, as ZeroMQ would drop it. A broker that is there answers a ping at once; one that leaves
several unanswered hangs. They are counted, not timed: a supervisor that was itself stopped for
a while must not take that for the broker's silence.
"""

from __future__ import annotations

from typing import Any

from .control import ControlSocket
from .worker_protocol import broker_route

PING_S = 1.0
LATELY = 2  # pings: one may be on its way
MAX_UNANSWERED = 10


class BrokerLink:
    """One end of the talk between supervisor and broker."""

    def __init__(self, control: ControlSocket) -> None:
        self._control = control
        self._route = b""
        self._kept: list[tuple[str, dict[str, Any]]] = []
        self._next_ping = 0.0
        self._unanswered = 0
        self.is_bound = False

    def expect(self, pid: int) -> None:
        """Wait for a new life of the broker, which knows nothing of what was said before."""
        self.on_lost()
        self._route = broker_route(pid)
        self._kept.clear()

    def on_lost(self) -> None:
        """Note that the broker is gone, or soon will be."""
        self.is_bound, self._unanswered = False, 0

    def is_from(self, route: bytes) -> bool:
        """Whether a message that came by a route is the present broker's."""
        return route == self._route

    def on_bound(self) -> None:
        """Note that the broker is there: what was kept for it is said now."""
        self.is_bound = True
        for kind, fields in self._kept:
            self._control.tell(self._route, kind, **fields)
        self._kept.clear()

    def tell(self, kind: str, **fields: Any) -> None:
        """Say something to the broker, now or when it is there."""
        if self.is_bound:
            self._control.tell(self._route, kind, **fields)
        else:
            self._kept.append((kind, fields))

    def answer(self, asked: int, kind: str, **told: Any) -> None:
        """Have the broker send on the answer to a command that came by it.

        Args:
            asked: the broker's number for the command.
            kind: of the answer.
            told: its fields.

        """
        self.tell("admin_answer", asked=asked, answer=kind, fields=told)

    def ping(self, now: float) -> None:
        """Ask the broker for a sign of life, if it is time to."""
        if self.is_bound and now >= self._next_ping:
            self._next_ping = now + PING_S
            self._unanswered += 1
            self._control.tell(self._route, "ping")

    def on_pong(self) -> None:
        """Note a sign of life."""
        self._unanswered = 0

    @property
    def answers(self) -> bool:
        """Whether the broker is there and has answered lately."""
        return self.is_bound and self._unanswered <= LATELY

    @property
    def hangs(self) -> bool:
        """Whether the broker has left too many pings unanswered."""
        return self._unanswered > MAX_UNANSWERED

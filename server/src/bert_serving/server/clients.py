"""The clients of a broker: when each was heard of, its connection, and what it has not read."""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import zmq

from .doors.connections import hang_up, peer_of
from .holders import Holders
from .unread import Unread

log = logging.getLogger("bert_serving.broker")

LOOK_S = 1.0  # between two looks at all connections
ACTIVE_S = 60.0  # a client that was heard of in that time is active
HOPELESS_S = 60.0  # a client that is held and reads nothing for so long is given up


@dataclass(slots=True)
class _Client:
    heard_at: float
    descriptor: int
    peer: Any
    is_listening: bool = False


@dataclass(slots=True)
class _Hold:
    """What a client had to read when it last read something, and when that was."""

    nbytes: int
    since: float


class Clients:
    """Every client that was heard of lately, or has something to read.

    Args:
        max_unread_bytes: of the answers that wait for clients to read them, of all together.
        has_open: whether a client will get an answer.

    Attributes:
        heard_at: when some client was heard last.

    """

    def __init__(self, max_unread_bytes: int, has_open: Callable[[bytes], bool]) -> None:
        self.heard_at = 0.0
        self._has_open = has_open
        self._clients: dict[bytes, _Client] = {}
        self._holders = Holders()
        self._unread = Unread(max_unread_bytes)
        self._held: dict[bytes, _Hold] = {}
        self._key = os.urandom(16)
        self._next_look = 0.0

    @property
    def unread_bytes(self) -> int:
        """Bytes of the answers that wait to be read."""
        self._unread.settle()
        return self._unread.nbytes

    def heard(self, first: zmq.Frame) -> Collection[bytes] | None:
        """Note that a client has sent a message, by its first frame, which is its route.

        Returns the clients that are thereby known to be gone; None if this one cannot be
        answered: its connection has ended, or speaks a version of ZeroMQ's protocol before 3.0,
        in which a message does not tell where it came from.
        """
        try:
            descriptor = int(first.get(zmq.SRCFD))
        except zmq.ZMQError:
            return None
        self.heard_at = now = time.monotonic()
        route = first.bytes
        client = self._clients.get(route)
        if client is not None and client.descriptor == descriptor:
            client.heard_at = now
            return ()
        gone = self._holders.add(descriptor, route)
        if gone is None:
            return None
        if client is not None:
            self._holders.remove(client.descriptor, route)
        self._clients[route] = _Client(now, descriptor, peer_of(descriptor))
        return gone

    def ended(self) -> Sequence[bytes]:
        """Return clients whose connection has ended: all, if nobody has asked a moment ago."""
        now = time.monotonic()
        if now < self._next_look:
            return ()
        self._next_look = now + LOOK_S
        return self._holders.ended()

    def set_listening(self, route: bytes, *, is_listening: bool) -> None:
        """Note whether a client gets what it has not asked for: it is kept, however silent."""
        client = self._clients.get(route)
        if client is not None:
            client.is_listening = is_listening

    def count(self) -> int:
        """Return how many clients are active; forgets the others unless they will have to read."""
        since = time.monotonic() - ACTIVE_S
        idle = [item for item in self._clients.items() if item[1].heard_at < since]
        num_active = len(self._clients) - len(idle)
        self._unread.settle()
        for route, client in idle:
            is_held = route in self._held  # until the scheduler is told otherwise
            will_read = client.is_listening or is_held or self._has_open(route)
            if not (will_read or self._unread.of(route)):
                self.forget(route)
        return num_active

    def name_of(self, route: bytes) -> str:
        """Return a connection's name, which is another one after a reconnect or restart."""
        return hashlib.blake2b(route, digest_size=8, key=self._key).hexdigest()

    def account(self, route: bytes, frames: Sequence[Any]) -> Sequence[Any]:
        """Count an answer that is to be sent; returns the frames to send."""
        return self._unread.add(route, frames) if route in self._clients else frames

    def is_to_be_held(self, route: bytes) -> bool:
        """Whether a client is to get no more answers now, as too many wait for it already.

        It is held until `released` has returned it, or it is forgotten.
        """
        if route in self._held or not self._unread.is_too_much(route):
            return False
        self._held[route] = _Hold(self._unread.of(route), time.monotonic())
        return True

    def is_held(self, route: bytes) -> bool:
        """Whether a client is to get no more answers until it has read."""
        return route in self._held

    @property
    def are_held(self) -> bool:
        """Whether some client is held: how it does is to be looked at every few milliseconds."""
        return bool(self._held)

    def released(self) -> list[bytes]:
        """Return the clients that were held and have read enough; they are held no more."""
        released = [route for route in self._held if not self._unread.is_too_much(route)]
        for route in released:
            del self._held[route]
        return released

    def hopeless(self) -> list[bytes]:
        """Return the clients that have read nothing for so long that they are to be given up."""
        now = time.monotonic()
        for route, hold in self._held.items():
            unread = self._unread.of(route)
            if unread != hold.nbytes:
                hold.nbytes, hold.since = unread, now
        return [route for route, hold in self._held.items() if now - hold.since > HOPELESS_S]

    def hang_up(self, route: bytes) -> None:
        """End the connection of a client that does not read: what waits for it is let go."""
        client = self._clients.get(route)
        if client is None:
            return
        if client.peer is None:  # there was no descriptor to look with
            client.peer = peer_of(client.descriptor)
        is_its_own = self._holders.is_alone(client.descriptor, route)
        if is_its_own and hang_up(client.descriptor, client.peer):
            address = client.peer[0] if client.peer else "this machine"
            log.warning(
                "a client from %s reads no answers: its connection is ended, with %.1f MB to read",
                *(address, self._unread.of(route) / 1e6),
            )

    def forget(self, route: bytes) -> None:
        """Forget a client that is gone."""
        client = self._clients.pop(route, None)
        if client is not None:
            self._holders.remove(client.descriptor, route)
        self._held.pop(route, None)
        self._unread.forget(route)

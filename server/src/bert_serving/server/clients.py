"""The clients of a broker: when each was heard of, its connection, and what it has not read."""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import zmq

from .doors.connections import hang_up, peer_of

log = logging.getLogger("bert_serving.broker")

MAX_COUNTED = 10_000
ACTIVE_S = 60.0  # a client that was heard of in that time is active
HOPELESS_S = 60.0  # a client that is held and reads nothing for so long is given up
FRAME_BYTES = 128  # of ZeroMQ's own for each frame
STRETCH_BYTES = 1 << 20  # of a client's answers, of which the last one is tracked


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

    """

    def __init__(self, max_unread_bytes: int) -> None:
        self._clients: dict[bytes, _Client] = {}
        self._unread = Unread(max_unread_bytes)
        self._held: dict[bytes, _Hold] = {}
        self._key = os.urandom(16)
        self._next_count = 0.0

    @property
    def unread_bytes(self) -> int:
        """Bytes of the answers that wait to be read."""
        self._unread.settle()
        return self._unread.nbytes

    def heard(self, first: zmq.Frame) -> None:
        """Note that a client has sent a message, by its first frame, which is its route."""
        now, route, descriptor = time.monotonic(), first.bytes, int(first.get(zmq.SRCFD))
        client = self._clients.get(route)
        if client is not None and client.descriptor == descriptor:
            client.heard_at = now
        elif client is not None or self._has_room(now):
            self._clients[route] = _Client(now, descriptor, peer_of(descriptor))

    def set_listening(self, route: bytes, *, is_listening: bool) -> None:
        """Note whether a client gets what it has not asked for: it is kept, however silent."""
        client = self._clients.get(route)
        if client is not None:
            client.is_listening = is_listening

    def _has_room(self, now: float) -> bool:
        """Whether one more can be counted; forgets those that are idle if not, now and then."""
        if len(self._clients) >= MAX_COUNTED and now >= self._next_count:
            self._next_count = now + 1.0
            self.count()
        return len(self._clients) < MAX_COUNTED

    def count(self) -> int:
        """Return how many clients are active; forgets the others unless they have to read."""
        since = time.monotonic() - ACTIVE_S
        idle = [item for item in self._clients.items() if item[1].heard_at < since]
        num_active = len(self._clients) - len(idle)
        self._unread.settle()
        for route, client in idle:
            is_held = route in self._held  # until the scheduler is told otherwise
            if not (client.is_listening or is_held or self._unread.of(route)):
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
        if client is not None and hang_up(client.descriptor, client.peer):
            address = client.peer[0] if client.peer else "this machine"
            log.warning(
                "a client from %s reads no answers: its connection is ended, with %.1f MB to read",
                *(address, self._unread.of(route) / 1e6),
            )

    def forget(self, route: bytes) -> None:
        """Forget a client that is gone."""
        self._clients.pop(route, None)
        self._held.pop(route, None)
        self._unread.forget(route)


@dataclass(slots=True)
class _Backlog:
    """What of one client's ZeroMQ still holds: stretches of answers, the oldest first."""

    stretches: deque[tuple[zmq.MessageTracker, int]] = field(default_factory=deque)
    nbytes: int = 0


class Unread:
    """How many bytes of answers ZeroMQ holds for whom, with what it takes for their frames.

    A tracker tells when ZeroMQ has let go of a frame, but costs ten times what sending a small
    answer does. A client's answers leave in order, so one tracker speaks for all before it:
    there is one in every stretch of a mebibyte.

    Args:
        max_bytes: of all clients together.

    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._begun: dict[bytes, int] = {}  # bytes of each client's stretch that is not full
        self._backlogs: dict[bytes, _Backlog] = {}  # of those that have full ones
        self._nbytes = 0

    @property
    def nbytes(self) -> int:
        """Bytes that wait, of all clients; what is less than a stretch of a client is left out."""
        return self._nbytes

    def of(self, route: bytes) -> int:
        """Return the bytes that wait for one client."""
        backlog = self._backlogs.get(route)
        return 0 if backlog is None else backlog.nbytes

    def add(self, route: bytes, frames: Sequence[Any]) -> Sequence[Any]:
        """Count an answer; returns its frames, of which the last one may now be tracked."""
        nbytes = self._begun.get(route, 0) + sum(map(len, frames)) + FRAME_BYTES * len(frames)
        if nbytes < STRETCH_BYTES:
            self._begun[route] = nbytes
            return frames
        last = frames[-1]
        content = last.buffer if isinstance(last, zmq.Frame) else last
        tracked = zmq.Frame(content, track=True, copy=False)
        assert tracked.tracker is not None
        backlog = self._backlogs.setdefault(route, _Backlog())
        backlog.stretches.append((tracked.tracker, nbytes))
        backlog.nbytes += nbytes
        self._nbytes += nbytes
        self._begun[route] = 0
        return [*frames[:-1], tracked]

    def is_too_much(self, route: bytes) -> bool:
        """Whether a client has more than is left for all others: half alone, a third each of two.

        One that has less than a stretch to read never has too much.
        """
        backlog = self._backlogs.get(route)
        if backlog is None or backlog.nbytes <= max(self._max_bytes - self._nbytes, 0):
            return False
        self.settle()
        return backlog.nbytes > max(self._max_bytes - self._nbytes, 0)

    def forget(self, route: bytes) -> None:
        """Count a client's answers no more."""
        self._begun.pop(route, None)
        backlog = self._backlogs.pop(route, None)
        if backlog is not None:
            self._nbytes -= backlog.nbytes

    def settle(self) -> None:
        """Take off what has been sent."""
        for route, backlog in list(self._backlogs.items()):
            stretches = backlog.stretches
            while stretches and stretches[0][0].done:
                _, nbytes = stretches.popleft()
                backlog.nbytes -= nbytes
                self._nbytes -= nbytes
            if not stretches:
                del self._backlogs[route]

"""What clients have not read: the answers that ZeroMQ still holds."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import zmq

FRAME_BYTES = 128  # of ZeroMQ's own for each frame
STRETCH_BYTES = 1 << 20  # of a client's answers, of which the last one is tracked


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

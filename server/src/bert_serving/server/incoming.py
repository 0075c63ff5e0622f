"""Clients' messages as they come in: so much of them a turn, and no more of each than is looked at.

A client may send a message of millions of empty frames in a few megabytes, and each would be an
object here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import zmq
from zmq.backend import Socket as RawSocket

from bert_serving.client.errors import ProtocolError, VersionMismatch
from bert_serving.client.frames import MAX_FRAMES
from bert_serving.client.sockets import received_messages

MAX_KEPT_FRAMES = MAX_FRAMES + 2  # the route, and one too many
MAX_SKIPPED_FRAMES = 20_000  # a turn: some ten milliseconds

_NOBLOCK = int(zmq.NOBLOCK)
_recv = RawSocket.recv


class Incoming:
    """The messages that come in by a socket; nothing else may read from it."""

    def __init__(self, socket: zmq.Socket[Any]) -> None:
        self._socket = socket
        self._is_skipping = False

    def messages(self, most: int) -> Iterator[list[zmq.Frame]]:
        """Yield those that have arrived, at most so many, each a list of frames.

        The last frames of a message with too many are left out.
        """
        if self._is_skipping and not self._skip():
            return
        for frames in received_messages(self._socket, most, MAX_KEPT_FRAMES):
            self._is_skipping = frames[-1].more
            yield frames
            if self._is_skipping and not self._skip():
                return

    def _skip(self) -> bool:
        """Drop what is left of a message, or the next part of it; returns whether it was all."""
        for _ in range(MAX_SKIPPED_FRAMES):
            if not _recv(self._socket, _NOBLOCK, False).more:
                self._is_skipping = False
                return True
        return False


def described(error: ProtocolError, frames: Sequence[Any]) -> str:
    """Return for the log what is wrong: the error's own words may quote what the client sent."""
    if isinstance(error, VersionMismatch):
        return str(error)
    sizes = ", ".join(str(len(frame)) for frame in frames[1:9])
    more = " and more" if len(frames) > 9 else ""
    return f"{type(error).__name__}, in frames of {sizes or 'no'} bytes{more}"

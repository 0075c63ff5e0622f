"""Whole messages in and out of a ZeroMQ socket, at a fraction of `send_multipart`'s cost.

pyzmq's own multipart calls check every part and combine enum flags for each; for small
messages that costs two to three times the sending itself (measured), and every request
passes through here four times. The methods used are those that pyzmq's are made of.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import zmq
from zmq.backend import Socket as RawSocket

_NOBLOCK = int(zmq.NOBLOCK)
_SNDMORE = int(zmq.SNDMORE)
_send = RawSocket.send
_recv = RawSocket.recv

COPY_BELOW_BYTES = 16 << 10  # sending without a copy costs a callback from ZeroMQ's thread


def send_frames(socket: zmq.Socket[Any], frames: Sequence[Any]) -> None:
    """Send one message, without waiting.

    Raises:
        zmq.Again: the queue is full; nothing of the message was sent.
        zmq.ZMQError: a ROUTER has no such route; nothing of the message was sent.

    """
    last = len(frames) - 1
    for number, frame in enumerate(frames):
        flags = _NOBLOCK if number == last else _NOBLOCK | _SNDMORE
        _send(socket, frame, flags, len(frame) < COPY_BELOW_BYTES)


def received_messages(socket: zmq.Socket[Any], most: int) -> Iterator[list[zmq.Frame]]:
    """Yield the messages that have arrived, at most so many, each a list of frames."""
    for _ in range(most):
        try:
            frame = _recv(socket, _NOBLOCK, False)
        except zmq.Again:
            return
        frames = [frame]
        while frame.more:
            frame = _recv(socket, _NOBLOCK, False)
            frames.append(frame)
        yield frames

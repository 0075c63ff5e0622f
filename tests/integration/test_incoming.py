"""Reading clients' messages: one with too many frames is cut, and holds nobody up."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import zmq

from bert_serving.server.incoming import MAX_KEPT_FRAMES, MAX_SKIPPED_FRAMES, Incoming

Sockets = tuple[zmq.Socket[Any], Incoming]


@pytest.fixture
def sockets() -> Iterator[Sockets]:
    """One to send with, and what comes out of the other."""
    with (
        zmq.Context() as context,
        context.socket(zmq.PAIR) as sending,
        context.socket(zmq.PAIR) as receiving,
    ):
        sending.linger = sending.sndhwm = receiving.rcvhwm = 0
        receiving.bind("inproc://incoming")
        sending.connect("inproc://incoming")
        yield sending, Incoming(receiving)


def turn(incoming: Incoming, most: int = 64) -> list[list[bytes]]:
    return [[frame.bytes for frame in frames] for frames in incoming.messages(most)]


def test_messages_come_whole_and_in_order(sockets: Sockets) -> None:
    sending, incoming = sockets
    sent = [[b"route", str(number).encode(), *[b"x"] * number] for number in range(70)]
    for frames in sent:
        sending.send_multipart(frames)
    assert turn(incoming) == sent[:64]
    assert turn(incoming, 2) == sent[64:66]
    assert turn(incoming) == sent[66:]
    assert turn(incoming) == []


@pytest.mark.parametrize("left", [-1, 0, 1, MAX_SKIPPED_FRAMES])
def test_of_a_message_with_too_many_frames_the_rest_is_dropped(sockets: Sockets, left: int) -> None:
    sending, incoming = sockets
    frames = [b"route", *[b""] * (MAX_KEPT_FRAMES - 1 + left)]
    for message in (frames, [b"next"]):
        sending.send_multipart(message)
    assert turn(incoming) == [frames[:MAX_KEPT_FRAMES], [b"next"]]


def test_the_rest_of_a_very_long_message_is_dropped_in_turns(sockets: Sockets) -> None:
    sending, incoming = sockets
    frames = [b"route", *[b""] * (MAX_KEPT_FRAMES - 1 + 2 * MAX_SKIPPED_FRAMES + 1)]
    for message in (frames, [b"next"]):
        sending.send_multipart(message)
    assert turn(incoming) == [frames[:MAX_KEPT_FRAMES]]
    assert turn(incoming) == []
    assert turn(incoming) == [[b"next"]]

"""Copies for the members of groups: so many at a time, in order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import zmq

from bert_serving.client.frames import decode_message
from bert_serving.client.messages import ErrorAnswer, GroupPart, Result
from bert_serving.server.copies import Copies
from bert_serving.server.groups import Groups
from bert_serving.server.scheduling.events import Deliver

MEMBERS = [b"a", b"b", b"c"]


@pytest.fixture
def groups() -> Groups:
    groups = Groups()
    for route in MEMBERS:
        groups.set(route, ["readers"])
    return groups


def delivered(number: int, answer: Any = None, sender: bytes = b"sender") -> Deliver:
    group = GroupPart(name="readers", sender="x", call=number, start=0, total=1)
    frames = (answer or Result(number, {}, [1])).to_frames()[1:]
    return Deliver(sender, number, [zmq.Frame(frame) for frame in frames], group)


def taken(copies: Copies, most: int) -> list[tuple[bytes, int]]:
    return [(member, call(frames)) for member, frames in copies.take(most)]


def call(frames: Sequence[Any]) -> int:
    header, _ = decode_message([bytes(frame) for frame in frames])
    return int(header["group"]["call"])


def test_many_copies_are_sent_a_few_at_a_time(groups: Groups) -> None:
    copies = Copies(groups)
    for number in range(2):
        copies.add(delivered(number), "connection")
    assert taken(copies, 2) == [(b"a", 0), (b"b", 0)]
    assert copies
    assert taken(copies, 2) == [(b"c", 0), (b"a", 1)]
    assert taken(copies, 5) == [(b"b", 1), (b"c", 1)]
    assert not copies
    assert taken(copies, 5) == []


def test_the_sender_and_who_has_left_meanwhile_get_none(groups: Groups) -> None:
    copies = Copies(groups)
    copies.add(delivered(0, sender=b"a"), "connection")
    groups.remove(b"b")
    assert taken(copies, 5) == [(b"c", 0)]


def test_an_error_is_not_copied(groups: Groups) -> None:
    copies = Copies(groups)
    copies.add(delivered(0, ErrorAnswer(0, "overloaded", "later")), "connection")
    groups.set(b"a", [])
    groups.remove(b"b")
    groups.remove(b"c")
    copies.add(delivered(0), "connection")
    assert not copies

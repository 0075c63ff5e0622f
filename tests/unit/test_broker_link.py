"""What is said to a broker that comes and goes, and how its silence is judged."""

from __future__ import annotations

from typing import Any

import pytest

from bert_serving.server.broker_link import MAX_UNANSWERED, PING_S, BrokerLink
from bert_serving.server.worker_protocol import broker_route


class Recorder:
    """A control socket that keeps what is said."""

    def __init__(self) -> None:
        self.said: list[tuple[bytes, str, dict[str, Any]]] = []

    def tell(self, route: bytes, kind: str, **fields: Any) -> None:
        self.said.append((route, kind, fields))


@pytest.fixture
def control() -> Recorder:
    return Recorder()


def link_to(control: Recorder, pid: int) -> BrokerLink:
    link = BrokerLink(control)
    link.expect(pid)
    return link


def test_what_is_said_before_the_broker_is_there_reaches_it_in_order(control: Recorder) -> None:
    link = link_to(control, 7)
    link.tell("worker_lost", pid=1)
    link.tell("worker_lost", pid=2)
    assert not control.said
    link.on_bound()
    link.tell("drain")
    assert control.said == [
        (broker_route(7), "worker_lost", {"pid": 1}),
        (broker_route(7), "worker_lost", {"pid": 2}),
        (broker_route(7), "drain", {}),
    ]


def test_a_new_broker_is_not_told_what_was_for_the_old_one(control: Recorder) -> None:
    link = link_to(control, 7)
    link.tell("worker_lost", pid=1)
    link.expect(8)
    link.on_bound()
    assert not control.said
    assert link.is_from(broker_route(8))
    assert not link.is_from(broker_route(7))


def test_a_broker_that_answers_its_pings_does_not_hang(control: Recorder) -> None:
    link = link_to(control, 7)
    link.on_bound()
    for turn in range(100):
        link.ping(turn * PING_S)
        link.on_pong()
    assert len(control.said) == 100
    assert not link.hangs


def test_a_broker_that_leaves_pings_unanswered_hangs_however_late_they_are_asked(
    control: Recorder,
) -> None:
    link = link_to(control, 7)
    link.on_bound()
    for turn in range(MAX_UNANSWERED):
        link.ping(1_000.0 * turn)
        link.ping(1_000.0 * turn + PING_S / 2)  # no time for another
    assert not link.hangs
    link.ping(1_000.0 * MAX_UNANSWERED)
    assert link.hangs
    link.expect(8)
    assert not link.hangs


def test_a_broker_that_is_not_there_yet_is_not_asked(control: Recorder) -> None:
    link = link_to(control, 7)
    for turn in range(2 * MAX_UNANSWERED):
        link.ping(float(turn))
    assert not link.hangs
    link.on_lost()
    link.ping(1_000.0)
    assert not control.said

"""Commands of administrators: how they are read, and whose an answer is."""

from __future__ import annotations

from typing import Any

import pytest

from bert_serving.client.admin_messages import MAX_PATH_CHARS, MAX_WORKERS, Admin, AdminAnswer
from bert_serving.client.errors import MalformedMessage
from bert_serving.client.frames import encode_message
from bert_serving.client.protocol import parse_answer, parse_request
from bert_serving.server.remote_administration import MAX_OPEN, OpenCommands

SCALE = Admin(7, "scale", num_worker=2)


@pytest.mark.parametrize(
    "fields",
    [
        {"command": "shell"},
        {"command": ""},
        {"command": "x" * 5000},
        {"command": ["status"]},
        {"command": "scale"},
        {"command": "scale", "num_worker": 0},
        {"command": "scale", "num_worker": MAX_WORKERS + 1},
        {"command": "scale", "num_worker": True},
        {"command": "reload", "model_dir": ""},
        {"command": "reload", "model_dir": b"/m"},
        {"command": "reload", "model_dir": "d" * (MAX_PATH_CHARS + 1)},
    ],
)
def test_a_command_that_is_none_is_refused_under_its_id(fields: dict[str, Any]) -> None:
    with pytest.raises(MalformedMessage) as caught:
        parse_request(encode_message({"type": "admin", "id": 3, **fields}))
    assert caught.value.request_id == 3


def test_a_field_of_another_command_means_nothing() -> None:
    header = {"type": "admin", "id": 3, "command": "status", "num_worker": "many"}
    assert parse_request(encode_message(header)) == Admin(3, "status")


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"answer": ""},
        {"answer": "status"},
        {"answer": "refused"},
        {"answer": "accepted", "steps": -1},
        {"answer": "terminating"},
    ],
)
def test_an_answer_without_what_belongs_to_it_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(MalformedMessage):
        parse_answer(encode_message({"type": "admin", "id": 3, **fields}))


def test_answers_go_to_who_has_asked_until_the_last() -> None:
    commands = OpenCommands(first=40)
    ours, other = commands.add(b"a", SCALE), commands.add(b"b", Admin(7, "status"))
    assert commands.take(ours, "accepted", {"steps": 2}) == (
        b"a", AdminAnswer(7, "accepted", steps=2)
    )  # fmt: skip
    assert commands.take(other, "status", {"status": {}}) == (
        b"b", AdminAnswer(7, "status", status={})
    )  # fmt: skip
    assert commands.take(ours, "changed", {}) == (b"a", AdminAnswer(7, "changed"))
    assert commands.take(ours, "changed", {}) is None
    assert commands.take(other, "status", {"status": {}}) is None


def test_what_another_life_of_the_broker_was_asked_is_nobodys() -> None:
    earlier, later = OpenCommands(first=40), OpenCommands(first=90)
    number = earlier.add(b"a", SCALE)
    later.add(b"b", SCALE)
    assert later.take(number, "changed", {}) is None


def test_a_client_that_is_gone_gets_no_answer_and_takes_no_place() -> None:
    commands = OpenCommands(first=0)
    for _ in range(MAX_OPEN):
        last = commands.add(b"a", SCALE)
    assert commands.is_full
    commands.forget(b"a")
    assert not commands.is_full
    assert commands.take(last, "changed", {}) is None


def test_only_those_who_ended_the_server_are_told_of_its_end() -> None:
    commands = OpenCommands(first=0)
    commands.add(b"a", SCALE)
    number = commands.add(b"b", Admin(8, "terminate"))
    assert commands.take(number, "terminating", {"pid": 5})
    assert commands.ended() == [(b"b", AdminAnswer(8, "terminated"))]
    assert commands.ended() == []

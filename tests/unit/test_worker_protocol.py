"""Messages between our own processes: larger than those of strangers, and read as strictly."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st
from message_strategies import odd_values, random_frames

from bert_serving.client.errors import MalformedMessage, ProtocolError
from bert_serving.client.frames import MAX_FRAMES, decode_message
from bert_serving.server import worker_protocol
from bert_serving.server.worker_protocol import (
    MAX_BATCH_ROWS,
    Answers,
    Batch,
    message,
    read_from_worker,
    read_message,
)

parts = st.lists(st.lists(st.binary(max_size=4), min_size=1, max_size=4), max_size=5)
numbers = st.integers(0, 2**63 - 1)
BATCH = Batch(7, [[b"a", b"b"], [b"c", b"d"]], [0.5, 2], 12.5, is_express=True).to_frames()
ANSWERS = Answers(7, [[b"a"], [b"c", b"d", b"e"]], [3, 0]).to_frames()


def parse(frames: Any) -> Batch | Answers | str:
    kind, header, buffers = read_message(frames)
    readers: Any = {"batch": Batch.parse, "answers": Answers.parse}
    return readers[kind](header, buffers) if kind in readers else kind


@given(parts, numbers, st.floats(0, 1e12), st.booleans(), st.booleans())
def test_a_batch_comes_back_as_it_was(
    requests: list[list[bytes]], number: int, at: float, is_express: bool, is_interruptible: bool
) -> None:
    waited = [0.25] * len(requests)
    batch = Batch(number, requests, waited, at, is_express, is_interruptible)
    assert parse(batch.to_frames()) == batch


@given(parts, numbers, numbers)
def test_answers_come_back_as_they_were(
    answers: list[list[bytes]], number: int, tokens: int
) -> None:
    message = Answers(number, answers, [tokens] * len(answers))
    assert parse(message.to_frames()) == message


@pytest.mark.parametrize("size", [2, worker_protocol.MAX_ANSWER_FRAMES])
def test_the_largest_batch_and_its_largest_answers_can_be_read(size: int) -> None:
    requests = [[b""] * size] * MAX_BATCH_ROWS
    batch = Batch(1, requests, [1.5] * MAX_BATCH_ROWS, 1.0)
    answers = Answers(1, requests, [1 << 40] * MAX_BATCH_ROWS)
    assert parse(batch.to_frames()) == batch
    assert parse(answers.to_frames()) == answers
    with pytest.raises(MalformedMessage, match=f"at most {MAX_FRAMES} are allowed"):
        decode_message(batch.to_frames())  # for a stranger it is too much


def test_more_frames_than_any_batch_has_are_refused() -> None:
    frames = [*BATCH, *[b""] * worker_protocol.MAX_FRAMES]
    with pytest.raises(MalformedMessage, match="frames, at most"):
        read_message(frames)


@pytest.mark.parametrize("frames", [BATCH, ANSWERS], ids=["batch", "answers"])
@given(data=st.data())
def test_a_damaged_message_is_read_or_refused(frames: list[bytes], data: st.DataObject) -> None:
    header = msgpack.unpackb(frames[1])
    del header[data.draw(st.sampled_from(sorted(header)))]
    fields = st.dictionaries(st.sampled_from(sorted(header)), odd_values, max_size=2)
    header.update(data.draw(fields))
    buffers = data.draw(st.permutations(frames[2:]))[data.draw(st.integers(0, 1)) :]
    try:
        read = parse([frames[0], msgpack.packb(header), *buffers])
    except ProtocolError:
        return
    assert read == parse(read.to_frames()) if not isinstance(read, str) else True


IDENTITY = {"worker": 0, "pid": 12, "host": "here", "device": "cpu"}
OF_A_WORKER: dict[str, dict[str, Any]] = {
    "starting": IDENTITY,
    "ready": {
        **IDENTITY,
        "max_batch_tokens": 512,
        "max_batch_rows": 8192,
        "takes_express": True,
        "model": {"max_length": 512},
    },
    "boot_failed": {"cause": "there is no such file"},
}
WRONG = {
    int: [None, -1, 1.5, "1", True, 1 << 63, []],
    str: [None, 1, b"raw", ["a"], "x" * (worker_protocol.MAX_WORDS_CHARS + 1)],
    bool: [None, 1, "yes"],
    dict: [None, [], "model", {}, {"max_length": 0}, {"max_length": "512"}],
}


@pytest.mark.parametrize("kind", OF_A_WORKER)
def test_what_a_worker_says_of_itself_is_whole_and_of_the_right_types(kind: str) -> None:
    fields = OF_A_WORKER[kind]
    assert read_from_worker(message(kind, **fields))[:2] == (kind, {"type": kind, **fields})
    for name, value in fields.items():
        without = {key: other for key, other in fields.items() if key != name}
        for damaged in (without, *({**fields, name: wrong} for wrong in WRONG[type(value)])):
            with pytest.raises(MalformedMessage, match=name if name != "model" else "m"):
                read_from_worker(message(kind, **damaged))


@given(random_frames)
def test_random_frames_are_read_or_refused(frames: list[bytes]) -> None:
    try:
        kind, _, _ = read_message(frames)
    except ProtocolError:
        return
    assert kind


@pytest.mark.parametrize("sizes", [[4], [2, 2, 0], [3, 0, 1], [2, 3], [1, 2], [-2, 6], ["2", "2"]])
def test_sizes_that_do_not_cut_the_frames_are_malformed(sizes: Any) -> None:
    header = {**msgpack.unpackb(BATCH[1]), "sizes": sizes}
    with pytest.raises(MalformedMessage):
        Batch.parse(header, BATCH[2:])

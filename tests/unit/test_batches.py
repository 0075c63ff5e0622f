"""A worker's batch with the fake replica: every request gets its own answer, right or an error."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import msgpack
import numpy as np
import pytest

from bert_serving.client.frames import VERSION_FRAME
from bert_serving.client.messages import MAX_VIEWS
from bert_serving.client.protocol import Encode, ErrorAnswer, Result, parse_answer
from bert_serving.client.rows import pack_rows
from bert_serving.client.view import DEFAULT_VIEW, MAX_LAYERS, View
from bert_serving.server import answer_sizes
from bert_serving.server.answer_sizes import MAX_ANSWER_BYTES, answer_bytes
from bert_serving.server.batches import BatchReader, compute, word
from bert_serving.server.model.fake import (
    FakeReplica,
    fake_embedding,
    fake_token_embeddings,
    fake_tokens,
)
from bert_serving.server.model.replica import EncodeRequest
from bert_serving.server.worker_protocol import Answers, Batch

DIM = 8
REPLICA = FakeReplica(DIM)


def a_request(request_id: int, rows: list[Any], **fields: Any) -> list[Any]:
    known: dict[str, Any] = {"views": {"e": View()}, "ttl_ms": 1000}
    message = Encode(id=request_id, rows=len(rows), buffer=pack_rows(rows), **{**known, **fields})
    return message.to_frames()[1:]


def with_header(frames: list[Any], **fields: Any) -> list[Any]:
    return [msgpack.packb({**msgpack.unpackb(frames[0]), **fields}), *frames[1:]]


def answered(reader: BatchReader, batch: Batch) -> Answers:
    prepared = reader.prepare(batch)
    return word(REPLICA, prepared, compute(REPLICA, prepared))


def computed(*requests: list[Any]) -> Answers:
    batch = Batch(5, requests, [1.5] * len(requests), time.monotonic())
    return answered(BatchReader(REPLICA, DEFAULT_VIEW), batch)


def answers(*requests: list[Any]) -> list[Any]:
    return [parse_answer([VERSION_FRAME, *map(bytes, a)]) for a in computed(*requests).answers]


def is_right(answer: Any, rows: list[Any]) -> bool:
    values = answer.views["e"].values
    return np.array_equal(values, np.stack([fake_embedding(row, DIM) for row in rows]))


def test_each_request_gets_its_own_rows() -> None:
    texts, pairs, tokens = ["a", "b c"], [("d", "e"), "f"], [["g", "h"], []]
    got = answers(a_request(1, texts), a_request(2, pairs), a_request(3, tokens, is_tokenized=True))
    assert [answer.id for answer in got] == [1, 2, 3]
    assert all(map(is_right, got, [texts, pairs, tokens]))
    assert [list(answer.n_tokens) for answer in got] == [
        [len(fake_tokens(row)) for row in rows] for rows in (texts, pairs, tokens)
    ]


def test_requests_of_unlike_options_share_a_batch() -> None:
    rows = ["one two three four"]
    short, long, tokens = answers(
        a_request(1, rows, max_length=4),
        a_request(2, rows),
        a_request(3, rows, views={}, show_tokens=True),
    )
    assert (short.n_tokens, short.truncated) == ([4], [0])
    assert (long.n_tokens, long.truncated) == ([6], [])
    assert tokens.views == {} and tokens.tokens.texts == fake_tokens(rows[0])


def test_an_open_field_is_the_servers_default() -> None:
    default = View(layers=(-1,), layer_reduce="concat", pooling="none", normalize=False, dims=2)
    reader = BatchReader(REPLICA, default)
    batch = Batch(1, [a_request(1, ["a b"], views={"e": View(dtype="float16")})], [0.0], 0.0)
    (frames,) = answered(reader, batch).answers
    view = parse_answer([VERSION_FRAME, *map(bytes, frames)]).views["e"]  # type: ignore[union-attr]
    expected = fake_token_embeddings("a b", DIM)[:, :2].astype(np.float16)
    assert np.array_equal(view.values, expected)


def test_the_number_of_tokens_is_told_for_each_request() -> None:
    assert computed(a_request(1, ["a", "b"]), a_request(2, ["c d e"])).tokens == [6, 5]


def test_an_answer_tells_where_its_time_went() -> None:
    (answer,) = answers(a_request(1, ["a"]))
    assert answer.queue_ms >= 1.5
    assert answer.tokenize_ms >= 0 and answer.compute_ms >= 0


BAD: dict[str, list[Any]] = {
    "layer": a_request(9, ["a"], views={"e": View(layers=(13,))}),
    "length": a_request(9, ["a"], max_length=2),
    "pooling": with_header(a_request(9, ["a"]), views={"e": {"pooling": "median"}}),
    "views": with_header(a_request(9, ["a"]), views=3),
    "rows": [a_request(9, ["a"])[0], b"\xc1"],
    "row": [a_request(9, ["a"])[0], msgpack.packb([5])],
    "count": with_header(a_request(9, ["a"]), rows=2),
}


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
def test_what_is_wrong_with_a_request_is_its_own_error(bad: list[Any]) -> None:
    before, refused, after = answers(a_request(1, ["a"]), bad, a_request(2, ["b"]))
    assert isinstance(refused, ErrorAnswer)
    assert (refused.id, refused.code) == (9, "invalid_request")
    assert is_right(before, ["a"]) and is_right(after, ["b"])


WIDE = {str(n): View(layers=(-1,) * MAX_LAYERS, pooling="none") for n in range(MAX_VIEWS)}
A_TOKEN = MAX_VIEWS * MAX_LAYERS * DIM * 4  # bytes


def test_an_answer_that_would_be_too_large_is_refused_and_no_other_one() -> None:
    rows = ["word " * 509] * (MAX_ANSWER_BYTES // (512 * A_TOKEN) + 1)
    before, refused, after = answers(
        a_request(1, ["a"]), a_request(9, rows, views=WIDE), a_request(2, ["b"])
    )
    assert (refused.id, refused.code) == (9, "too_large")
    assert f"the answer would have {len(rows) * 512 * A_TOKEN} bytes" in refused.message
    assert is_right(before, ["a"]) and is_right(after, ["b"])


def test_answers_that_are_too_large_together_are_to_be_asked_for_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(answer_sizes, "MAX_ANSWER_BYTES", 11 * A_TOKEN)
    large = [a_request(n, ["three more tokens"], views=WIDE) for n in (1, 2, 3)]
    got = answers(*large, a_request(4, ["a"]))
    assert [type(answer) for answer in got] == [Result, Result, ErrorAnswer, Result]
    assert (got[2].code, got[2].retry_after_ms) == ("overloaded", answer_sizes.RETRY_MS)


@pytest.mark.parametrize(
    ("view", "numbers"),
    [
        (View(), 2 * DIM),
        (View(layers=(-1, -2)), 4 * DIM),
        (View(layers=(-1, -2), layer_reduce="sum", pooling="mean_max"), 4 * DIM),
        (View(pooling="none"), 7 * DIM),
        (View(pooling="none", dims=3), 7 * 3),
    ],
)
@pytest.mark.parametrize(("dtype", "itemsize"), [("float32", 4), ("float16", 2)])
def test_the_size_of_an_answer_is_known_before(
    view: View, numbers: int, dtype: str, itemsize: int
) -> None:
    rows = REPLICA.tokenize(["a", "b c"], is_tokenized=False, max_length=None)
    filled = replace(view, dtype=dtype).filled_from(DEFAULT_VIEW)
    request = EncodeRequest(rows, {"e": filled})
    (views,) = REPLICA.encode([request])
    assert views["e"].values.nbytes == numbers * itemsize
    assert answer_bytes(request, REPLICA.info) == numbers * itemsize


def test_a_batch_of_nothing_but_errors_is_answered() -> None:
    got = answers(BAD["layer"], BAD["rows"])
    assert [answer.code for answer in got] == ["invalid_request"] * 2


def test_a_request_on_which_the_model_fails_fails_alone() -> None:
    got = answers(
        a_request(1, ["a"]), a_request(2, ["fake:raise", "b"]), a_request(3, ["c"], max_length=9)
    )
    assert isinstance(got[1], ErrorAnswer)
    assert (got[1].id, got[1].code) == (2, "worker_failed")
    assert "RuntimeError: fake:raise" in got[1].message
    assert is_right(got[0], ["a"]) and is_right(got[2], ["c"])


def test_answers_stand_in_the_order_of_their_requests() -> None:
    requests = [BAD["layer"] if n % 3 == 0 else a_request(n, [f"row {n}"]) for n in range(30)]
    for number, answer in enumerate(answers(*requests)):
        if number % 3:
            assert isinstance(answer, Result)
            assert answer.id == number and is_right(answer, [f"row {number}"])
        else:
            assert isinstance(answer, ErrorAnswer)

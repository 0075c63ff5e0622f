from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
from example_messages import ANSWERS, MODEL, REQUESTS
from hypothesis import given
from message_strategies import answers, encodes, requests, results

from bert_serving.client import protocol
from bert_serving.client.errors import MalformedMessage, Overloaded, ServerError
from bert_serving.client.frames import MAX_HEADER_BYTES, decode_message, encode_message
from bert_serving.client.group_messages import MAX_GROUPS, BroadcastPart, Membership
from bert_serving.client.messages import (
    Cancel,
    Encode,
    EncodeEnvelope,
    ErrorAnswer,
    Hello,
    Result,
    RowTokens,
    StatusRequest,
    ViewArray,
    Welcome,
)
from bert_serving.client.protocol import parse_answer, parse_encode, parse_request
from bert_serving.client.rows import unpack_rows
from bert_serving.client.view import View

GOLDEN = json.loads((Path(__file__).parent / "golden" / "protocol_v1.json").read_text("utf-8"))
GOLDEN_REQUESTS = {name: golden["frames"] for name, golden in GOLDEN["requests"].items()}
GOLDEN_ANSWERS = {name: golden["frames"] for name, golden in GOLDEN["answers"].items()}


def as_bytes(frames: list[Any]) -> list[bytes]:
    return [bytes(frame) for frame in frames]


def from_hex(frames: list[str]) -> list[memoryview]:
    return [memoryview(bytes.fromhex(frame)) for frame in frames]


def parse_request_whole(frames: list[Any]) -> Any:
    request = parse_request(frames)
    return parse_encode(*decode_message(frames)) if type(request) is EncodeEnvelope else request


# --- the bytes of version 1


def test_every_message_has_golden_frames() -> None:
    assert list(GOLDEN_REQUESTS) == list(REQUESTS)
    assert list(GOLDEN_ANSWERS) == list(ANSWERS)
    kinds = {type(message) for message in (*REQUESTS.values(), *ANSWERS.values())}
    sent = {kind for kind in vars(protocol).values() if hasattr(kind, "to_frames")}
    assert kinds == sent


@pytest.mark.parametrize("name", REQUESTS)
def test_a_request_has_exactly_the_golden_bytes_and_is_read_back_from_them(name: str) -> None:
    golden = from_hex(GOLDEN_REQUESTS[name])
    assert as_bytes(REQUESTS[name].to_frames()) == golden
    assert parse_request_whole(golden) == REQUESTS[name]


@pytest.mark.parametrize("name", ANSWERS)
def test_an_answer_has_exactly_the_golden_bytes_and_is_read_back_from_them(name: str) -> None:
    golden = from_hex(GOLDEN_ANSWERS[name])
    assert as_bytes(ANSWERS[name].to_frames()) == golden
    assert_same_answer(parse_answer(golden), ANSWERS[name])


@pytest.mark.parametrize("golden", [*GOLDEN["requests"].values(), *GOLDEN["answers"].values()])
def test_the_readable_header_beside_golden_frames_is_theirs(golden: Any) -> None:
    assert msgpack.unpackb(bytes.fromhex(golden["frames"][1])) == golden["header"]


# --- there and back


@given(requests)
def test_a_request_comes_back_as_it_was_sent(request: Any) -> None:
    assert parse_request_whole(as_bytes(request.to_frames())) == request


@given(answers)
def test_an_answer_comes_back_as_it_was_sent(answer: Any) -> None:
    if type(answer) is ErrorAnswer:
        answer = ErrorAnswer(answer.id, answer.code, answer.message[:4000], answer.retry_after_ms)
    assert_same_answer(parse_answer(as_bytes(answer.to_frames())), answer)


@given(encodes())
def test_the_broker_reads_of_an_encode_what_scheduling_needs(encode: Encode) -> None:
    assert parse_request(encode.to_frames()) == EncodeEnvelope(
        encode.id, encode.rows, encode.ttl_ms, len(encode.buffer), encode.group
    )


@given(encodes())
def test_the_rows_of_an_encode_come_back(encode: Encode) -> None:
    back = parse_encode(*decode_message(encode.to_frames()))
    rows = unpack_rows(back.buffer, back.rows, is_tokenized=back.is_tokenized)
    assert len(rows) == encode.rows


@given(results())
def test_the_arrays_of_a_result_are_not_copied_on_the_way_in(result: Result) -> None:
    frames = as_bytes(result.to_frames())
    back = parse_answer(frames)
    assert isinstance(back, Result)
    for view, frame in zip(back.views.values(), frames[2:], strict=False):
        assert not frame or np.shares_memory(view.values, np.frombuffer(frame, np.uint8))


def assert_same_answer(back: Any, sent: Any) -> None:
    assert type(back) is type(sent)
    if type(sent) is BroadcastPart:
        assert (back.group, back.connection) == (sent.group, sent.connection)
        assert_same_answer(back.result, sent.result)
        return
    if type(sent) is not Result:
        assert repr(back) == repr(sent)  # a NaN in a status equals nothing
        return
    for field in ("id", "queue_ms", "tokenize_ms", "compute_ms"):
        assert getattr(back, field) == getattr(sent, field)
    assert (list(back.n_tokens), list(back.truncated)) == (
        list(sent.n_tokens),
        list(sent.truncated),
    )
    assert list(back.views) == list(sent.views)
    for name, view in sent.views.items():
        np.testing.assert_array_equal(back.views[name].values, view.values)
        assert back.views[name].row_splits == view.row_splits
    assert (back.tokens is None) == (sent.tokens is None)
    if sent.tokens is not None:
        assert back.tokens.texts == sent.tokens.texts
        np.testing.assert_array_equal(back.tokens.ids, sent.tokens.ids)
        np.testing.assert_array_equal(back.tokens.segment_ids, sent.tokens.segment_ids)


# --- what is refused


def changed(message: Any, path: str, value: Any) -> list[Any]:
    """Return a message's frames with one field (`views/0/name`) set, or removed: `...`."""
    header, buffers = decode_message(as_bytes(message.to_frames()))
    *parents, last = [int(key) if key.isdigit() else key for key in path.split("/")]
    place: Any = header
    for key in parents:
        place = place[key]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return encode_message(header, buffers)


WRONG_REQUESTS = [
    ("hello", "type", [..., None, 1, "bye", "welcome", "HELLO"]),
    ("hello", "client", [..., None, 1, "x" * 65, b"raw"]),
    ("encode", "id", [..., None, -1, 2**63, 1.0, True, "1"]),
    ("encode", "rows", [..., None, 0, -1, protocol.MAX_ROWS + 1, True, "2"]),
    ("encode", "ttl_ms", [..., None, -1, protocol.MAX_TTL_MS + 1, 1.5, True]),
    ("cancel", "ids", [..., None, 1, {}, [-1], [2**63], [True], ["1"], [0] * 65538]),
    ("status", "id", [..., None, -1, 2**63, "5"]),
    ("membership", "id", [..., None, -1, 2**63, "5"]),
    ("membership", "groups", [..., None, "a", {}, [""], [1], ["x" * 65], ["a"] * (MAX_GROUPS + 1)]),
    ("encode_for_a_group", "group", [None, 1, [], "readers", {}]),
    ("encode_for_a_group", "group/name", [..., None, 1, "", "x" * 65]),
    ("encode_for_a_group", "group/sender", [..., None, 1, "x" * 65]),
    ("encode_for_a_group", "group/call", [..., None, -1, 2**63, "7"]),
    ("encode_for_a_group", "group/start", [..., None, -1, 2**63, 1.0]),
    ("encode_for_a_group", "group/total", [..., None, 0, -1, 2**63, True]),
]


@pytest.mark.parametrize(
    ("name", "path", "value"),
    [(name, path, value) for name, path, values in WRONG_REQUESTS for value in values],
)
def test_a_request_with_a_wrong_field_is_malformed(name: str, path: str, value: Any) -> None:
    with pytest.raises(MalformedMessage):
        parse_request(changed(REQUESTS[name], path, value))


WRONG_ENCODES = [
    ("views", [..., None, [], "a", {"x" * 65: {}}, {str(n): {} for n in range(17)}]),
    ("views/b", [None, 1, [], "mean"]),
    ("max_length", [0, -1, True, 1.5, "64"]),
    ("is_tokenized", [None, 1, 0, "yes"]),
    ("show_tokens", [None, 1, 0, "yes"]),
]


@pytest.mark.parametrize(
    ("path", "value"), [(path, value) for path, values in WRONG_ENCODES for value in values]
)
def test_an_encode_with_a_wrong_field_is_malformed_to_the_worker(path: str, value: Any) -> None:
    frames = changed(REQUESTS["encode_everything"], path, value)
    assert type(parse_request(frames)) is EncodeEnvelope
    with pytest.raises(MalformedMessage):
        parse_encode(*decode_message(frames))


def test_a_view_name_that_is_no_string_is_malformed() -> None:
    header, buffers = decode_message(REQUESTS["encode"].to_frames())
    with pytest.raises(MalformedMessage, match="short names"):
        parse_encode({**header, "views": {b"raw": {}}}, buffers)


def test_a_view_that_does_not_exist_is_malformed() -> None:
    frames = changed(REQUESTS["encode"], "views/embedding", {"pooling": "median"})
    with pytest.raises(MalformedMessage, match="pooling='median'"):
        parse_encode(*decode_message(frames))


WRONG_ANSWERS = [
    ("welcome", "type", [..., None, 1, "hello", "encode", "cancel"]),
    ("welcome", "server", [..., None, 1, "x" * 65]),
    ("welcome", "state", [..., None, True]),
    ("welcome", "max_rows", [..., 0, protocol.MAX_ROWS + 1, 1.0]),
    ("welcome", "max_bytes", [..., 0, -1, 2**28 + 1]),
    ("welcome", "window", [..., 0, protocol.MAX_ROWS + 1]),
    ("welcome", "default_view", [..., None, [], {"pooling": "median"}, {"colour": "red"}]),
    *[
        ("welcome", f"default_view/{name}", [..., None])
        for name in ("layers", "layer_reduce", "pooling", "normalize", "dtype")
    ],
    ("welcome", "model", [..., None, [], "bert"]),
    ("status", "id", [..., None, -1]),
    ("status", "status", [..., None, [], "fine"]),
    ("membership", "id", [..., None, -1]),
    ("membership", "groups", [..., None, [""], [1]]),
    ("broadcast", "group", [..., None, 1, {}]),
    ("broadcast", "group/total", [..., 0, "2"]),
    ("broadcast", "connection", [..., None, 1, "x" * 65]),
    ("error", "id", [-1, "1", True, 2**63]),
    ("error", "code", [..., None, 429, "x" * 65]),
    ("error", "message", [..., None, "x" * 4001]),
    ("error", "retry_after_ms", [-1, 1.5, protocol.MAX_TTL_MS + 1, "soon"]),
    ("result", "id", [..., None, -1, "1"]),
    ("result", "n_tokens", [..., None, {}, [3], [3, 4, 5], [3, -1], [3, 4.0], [3, True]]),
    ("result", "truncated", [..., None, [2], [-1], ["0"], 1]),
    *[
        ("result", name, [..., None, "1", True, -1, -0.5, float("nan"), float("inf"), [1.0]])
        for name in ("queue_ms", "tokenize_ms", "compute_ms")
    ],
    ("result", "views", [..., None, {}, "ab", [], [None], [{}] * 17]),
    ("result", "views/0", [None, [], "embedding"]),
    ("result", "views/0/name", [..., None, 1, "x" * 65]),
    ("result", "views/0/dtype", [..., None, "<f8", "<i4", "<f2"]),
    ("result", "views/0/shape", [..., None, [4], [2, 2, 1], [2, 3], [1, 4], [-2, -2], [4, 1]]),
    ("result", "views/0/row_splits", [None, [0, 1], [0, 1, 1], [0, 1, 3]]),
    ("result_with_tokens", "views/1/row_splits", [..., [], [0], [0, 2], [1, 3], [0, 4], [3, 0]]),
    ("result_with_tokens", "views/1/row_splits", [[0, 1, 3], [0, 3.0], {}, 3]),
    ("result_with_tokens", "views/1/name", ["a"]),
    ("result_with_tokens", "n_tokens", [[2], [4], [], [1, 2]]),
    ("result_with_tokens", "tokens", [..., None, [], True, {}]),
    ("result_with_tokens", "tokens/ids", [..., None, {"dtype": "<f4", "shape": [3]}]),
    ("result_with_tokens", "tokens/ids", [{"dtype": "<i4", "shape": [3, 1]}]),
    ("result_with_tokens", "tokens/segment_ids", [..., None, {"dtype": "|u1", "shape": [1, 3]}]),
]


@pytest.mark.parametrize(
    ("name", "path", "value"),
    [(name, path, value) for name, path, values in WRONG_ANSWERS for value in values],
)
def test_an_answer_with_a_wrong_field_is_malformed(name: str, path: str, value: Any) -> None:
    with pytest.raises(MalformedMessage):
        parse_answer(changed(ANSWERS[name], path, value))


def test_row_splits_that_go_back_are_malformed() -> None:
    view = ViewArray(np.zeros((3, 1), np.float32), [0, 2, 1, 3])
    with pytest.raises(MalformedMessage, match="row_splits"):
        parse_answer(Result(id=1, views={"a": view}, n_tokens=[1, 1, 1]).to_frames())


@pytest.mark.parametrize("dtype", ["<i4", "<i8", "|u1"])
def test_a_view_of_integers_is_malformed(dtype: str) -> None:
    view = ViewArray(np.zeros((1, 2), dtype))
    with pytest.raises(MalformedMessage, match="dtype"):
        parse_answer(Result(id=1, views={"a": view}, n_tokens=[1]).to_frames())


@pytest.mark.parametrize(
    ("ids", "segment_ids"), [("<i8", "|u1"), ("<f4", "|u1"), ("<i4", "<i4"), ("|u1", "|u1")]
)
def test_token_ids_are_int32_and_segment_ids_uint8(ids: str, segment_ids: str) -> None:
    tokens = RowTokens(["a"], np.zeros(1, ids), np.zeros(1, segment_ids))
    with pytest.raises(MalformedMessage, match="int32"):
        parse_answer(Result(id=1, views={}, n_tokens=[1], tokens=tokens).to_frames())


@pytest.mark.parametrize("packed", [b"\x92\xa1a\xa1b", b"\x94\xa1a\xa1b\xa1c\xa1d", b"\x90"])
def test_more_or_fewer_token_strings_than_ids_are_malformed(packed: bytes) -> None:
    frames = ANSWERS["result_with_tokens"].to_frames()
    frames[4] = packed
    with pytest.raises(MalformedMessage, match=r"not 3, as n_tokens says|more items"):
        parse_answer(frames)


@pytest.mark.parametrize("packed", [b"\xc0", b"\x93\x01\x02\x03", b"\xa1a", b"", b"\x93\xa1a"])
def test_a_tokens_buffer_that_is_no_list_of_strings_is_malformed(packed: bytes) -> None:
    frames = ANSWERS["result_with_tokens"].to_frames()
    frames[4] = packed
    with pytest.raises(MalformedMessage):
        parse_answer(frames)


@pytest.mark.parametrize("name", REQUESTS)
def test_a_request_with_a_buffer_too_many_or_too_few_is_malformed(name: str) -> None:
    frames = REQUESTS[name].to_frames()
    with pytest.raises(MalformedMessage, match="buffer"):
        parse_request([*frames, b""])
    if len(frames) > 2:
        with pytest.raises(MalformedMessage, match="buffer"):
            parse_request(frames[:-1])


@pytest.mark.parametrize("name", ANSWERS)
def test_an_answer_with_a_buffer_too_many_or_too_few_is_malformed(name: str) -> None:
    frames = ANSWERS[name].to_frames()
    with pytest.raises(MalformedMessage, match="buffer"):
        parse_answer([*frames, b""])
    if len(frames) > 2:
        with pytest.raises(MalformedMessage, match="buffer"):
            parse_answer(frames[:-1])


def test_a_broadcast_holds_a_whole_result() -> None:
    frames = ANSWERS["broadcast"].to_frames()
    for broken in (frames[:2], [*frames[:2], b"\x80"], [*frames[:2], b"junk", frames[3]]):
        with pytest.raises(MalformedMessage):
            parse_answer(broken)


@pytest.mark.parametrize("name", REQUESTS)
def test_a_request_is_no_answer(name: str) -> None:
    if name == "membership":  # asks and answers alike
        assert parse_answer(REQUESTS[name].to_frames()) == REQUESTS[name]
        return
    with pytest.raises(MalformedMessage):
        parse_answer(REQUESTS[name].to_frames())


@pytest.mark.parametrize("name", ANSWERS)
def test_an_answer_is_no_request(name: str) -> None:
    if name == "status":  # asks and answers by one name: the other fields are unknown ones
        assert parse_request(ANSWERS[name].to_frames()) == StatusRequest(5)
        return
    if name == "membership":
        assert parse_request(ANSWERS[name].to_frames()) == Membership(6, [])
        return
    with pytest.raises(MalformedMessage):
        parse_request(ANSWERS[name].to_frames())


# --- what is allowed


@pytest.mark.parametrize("name", [*REQUESTS, *ANSWERS])
def test_a_field_of_a_later_revision_is_ignored(name: str) -> None:
    for messages, parse in ((REQUESTS, parse_request_whole), (ANSWERS, parse_answer)):
        if name in messages:
            frames = changed(messages[name], "colour", {"red": [1]})
            assert as_bytes(parse(frames).to_frames()) == as_bytes(messages[name].to_frames())


@pytest.mark.parametrize("field", ["id", "retry_after_ms"])
def test_a_field_of_an_error_that_is_nil_or_missing_is_none(field: str) -> None:
    for value in (None, ...):
        answer = parse_answer(changed(ANSWERS["error"], field, value))
        assert getattr(answer, field) is None


def test_a_maximum_length_of_nil_is_the_models_own() -> None:
    frames = changed(REQUESTS["encode_everything"], "max_length", None)
    assert parse_encode(*decode_message(frames)).max_length is None


def test_times_may_be_whole_numbers() -> None:
    answer = parse_answer(changed(ANSWERS["result"], "queue_ms", 3))
    assert isinstance(answer, Result)
    assert answer.queue_ms == 3.0


def test_a_state_of_a_later_revision_is_no_error() -> None:
    answer = parse_answer(changed(ANSWERS["welcome"], "state", "warming"))
    assert isinstance(answer, Welcome)
    assert answer.state == "warming"


def test_every_pooling_name_of_1_10_is_understood_on_the_wire() -> None:
    frames = changed(
        REQUESTS["encode"], "views/embedding", {"pooling": "REDUCE_MEAN", "layers": -2}
    )
    views = parse_encode(*decode_message(frames)).views
    assert views == {"embedding": View(layers=(-2,), pooling="mean")}


def test_a_message_that_is_too_long_is_cut_by_its_sender() -> None:
    answer = parse_answer(ErrorAnswer(1, "invalid_request", "x" * 5000).to_frames())
    assert isinstance(answer, ErrorAnswer)
    assert answer.message == "x" * 4000


def test_an_error_answer_is_the_exception_that_a_client_raises() -> None:
    error = ANSWERS["error"].exception()
    assert type(error) is Overloaded
    assert (str(error), error.request_id, error.retry_after_ms) == ("the queue is full", 1, 50)
    assert type(ErrorAnswer(None, "later", "x").exception()) is ServerError


def test_the_header_of_the_largest_result_is_within_its_limit() -> None:
    rows, tokens = protocol.MAX_ROWS, protocol.MAX_ROWS * 512
    values = np.lib.stride_tricks.as_strided(
        np.zeros(1, np.float32), (tokens, 0), (0, 0)
    )  # its own header is what counts
    splits = [0] + [tokens] * rows
    views = {f"{number:064}": ViewArray(values, splits) for number in range(protocol.MAX_VIEWS)}
    frames = Result(1, views, n_tokens=[512] * rows, truncated=range(rows)).to_frames()
    assert len(frames[1]) <= MAX_HEADER_BYTES


def test_the_example_model_is_what_a_welcome_tells() -> None:
    answer = parse_answer(from_hex(GOLDEN_ANSWERS["welcome"]))
    assert isinstance(answer, Welcome)
    assert answer.model == MODEL


def test_bounds_are_part_of_what_is_allowed() -> None:
    assert parse_request(Hello("x" * 64).to_frames()) == Hello("x" * 64)
    assert parse_request(Cancel([]).to_frames()) == Cancel([])
    most = Encode(protocol.MAX_ID, protocol.MAX_ROWS, protocol.MAX_TTL_MS, {}, b"")
    assert parse_encode(*decode_message(most.to_frames())) == most


@pytest.mark.parametrize("kind", ["encode", "membership"])
@pytest.mark.parametrize(("request_id", "readable"), [(5, 5), ("5", None), (-1, None)])
def test_a_bad_request_is_refused_by_its_id_where_that_can_be_read(
    kind: str, request_id: Any, readable: int | None
) -> None:
    buffers = [b""] if kind == "encode" else []
    frames = encode_message({"type": kind, "id": request_id, "rows": 0}, buffers)
    with pytest.raises(MalformedMessage) as caught:
        parse_request(frames)
    assert caught.value.request_id == readable

"""Whatever a peer sends parses, or is a ProtocolError: never another exception."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from message_strategies import answers, broken_messages, nested, random_frames, requests

from bert_serving.client.errors import MalformedMessage, ProtocolError
from bert_serving.client.frames import VERSION_FRAME, decode_message
from bert_serving.client.messages import EncodeEnvelope
from bert_serving.client.protocol import parse_answer, parse_encode, parse_request
from bert_serving.client.rows import unpack_rows


def read_as_broker_and_worker(frames: list[Any]) -> None:
    try:
        request = parse_request(frames)
    except ProtocolError:
        return
    if type(request) is not EncodeEnvelope:
        assert request.to_frames()
        return
    try:
        encode = parse_encode(*decode_message(frames))
    except ProtocolError:
        return
    assert (encode.id, encode.rows, encode.ttl_ms) == (request.id, request.rows, request.ttl_ms)
    assert parse_encode(*decode_message(encode.to_frames())) == encode
    try:
        rows = unpack_rows(encode.buffer, encode.rows, is_tokenized=encode.is_tokenized)
    except ProtocolError:
        return
    assert len(rows) == encode.rows


def read_as_client(frames: list[Any]) -> None:
    try:
        answer = parse_answer(frames)
    except ProtocolError:
        return
    assert parse_answer([bytes(frame) for frame in answer.to_frames()])


@given(random_frames)
def test_random_frames_are_parsed_or_refused(frames: list[bytes]) -> None:
    read_as_broker_and_worker(frames)
    read_as_client(frames)


@settings(max_examples=150)
@given(broken_messages(requests))
def test_damaged_requests_are_parsed_or_refused(frames: list[Any]) -> None:
    read_as_broker_and_worker(frames)


@settings(max_examples=150)
@given(broken_messages(answers))
def test_damaged_answers_are_parsed_or_refused(frames: list[Any]) -> None:
    read_as_client(frames)


@pytest.mark.parametrize("buffers", [[], [b""]])
@pytest.mark.parametrize("kind", [nested(400), "x" * 100_000, {"a": nested(400)}])
def test_a_type_too_deep_or_too_long_to_print_is_malformed(kind: Any, buffers: list[bytes]) -> None:
    deepest = b"\x81\xa4type" + b"\x91" * 1000 + b"\xc0"
    for header in (msgpack.packb({"type": kind}), deepest):
        for parse in (parse_request, parse_answer):
            with pytest.raises(MalformedMessage) as caught:
                parse([VERSION_FRAME, header, *buffers])
            assert len(str(caught.value)) < 200

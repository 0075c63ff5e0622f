"""What is fuzzed: every reader of bytes that come from a socket, by name.

A target takes bytes and either reads them or refuses them: it returns, or raises one of
`REFUSALS`. Anything else is a defect. The bytes are the frames of a message: how many there are
but for the last, the length of each in two bytes, then all of them. So that inputs need not find
the native protocol's first frame, its targets put it in front.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from bert_serving.client.errors import ProtocolError
from bert_serving.client.frames import VERSION_FRAME, decode_message
from bert_serving.client.messages import EncodeEnvelope
from bert_serving.client.protocol import parse_answer, parse_encode, parse_request
from bert_serving.client.rows import pack_rows, unpack_rows
from bert_serving.client.view import DEFAULT_VIEW
from bert_serving.server.batches import BatchReader, compute, word
from bert_serving.server.gateway.legacy.answers import error_answer
from bert_serving.server.gateway.legacy.mailbox import Mailbox
from bert_serving.server.gateway.legacy.requests import Unanswerable, parse_rows
from bert_serving.server.gateway.legacy.requests import parse_request as parse_legacy_request
from bert_serving.server.model.fake import FakeReplica
from bert_serving.server.worker_protocol import Answers, Batch, read_from_worker

REPLICA = FakeReplica(4)
LENGTH_BYTES = 2
MAX_FRAMES = 32


class Refused(Exception):
    """What a target's own refusal is made into, where it is no `ProtocolError`."""


REFUSALS = (ProtocolError, Refused)


def to_bytes(frames: Sequence[Any]) -> bytes:
    """Return frames as the input of a target."""
    *first, last = map(bytes, frames)
    lengths = [len(frame).to_bytes(LENGTH_BYTES, "little") for frame in first]
    return bytes([len(first)]) + b"".join([*lengths, *first, last])


def to_frames(data: bytes) -> list[memoryview]:
    """Return the frames that an input stands for."""
    count = min(data[0], MAX_FRAMES) if data else 0
    rest, frames = memoryview(data)[1 + count * LENGTH_BYTES :], []
    for start in range(1, 1 + count * LENGTH_BYTES, LENGTH_BYTES):
        end = int.from_bytes(data[start : start + LENGTH_BYTES], "little")
        frames.append(rest[:end])
        rest = rest[end:]
    return [*frames, rest]


def any_frames(data: bytes) -> None:
    """Read frames of which even the first is a stranger's."""
    decode_message(to_frames(data))


def request(data: bytes) -> None:
    """Read what a client sends as the broker does, and an encode as a worker does then."""
    frames = [VERSION_FRAME, *to_frames(data)]
    message = parse_request(frames)
    if not isinstance(message, EncodeEnvelope):
        assert parse_request([*map(bytes, message.to_frames())]) == message
        return
    encode = parse_encode(*decode_message(frames))
    assert (encode.id, encode.rows, encode.ttl_ms) == (message.id, message.rows, message.ttl_ms)
    rows = unpack_rows(encode.buffer, encode.rows, is_tokenized=encode.is_tokenized)
    assert len(rows) == encode.rows


def answer(data: bytes) -> None:
    """Read what a broker sends as a client does; it can be sent on."""
    message = parse_answer([VERSION_FRAME, *to_frames(data)])
    assert parse_answer([*map(bytes, message.to_frames())])


def rows(data: bytes) -> None:
    """Read the rows of a request; they can be packed again."""
    number, is_tokenized = (data[0] >> 1, bool(data[0] & 1)) if data else (0, False)
    read = unpack_rows(memoryview(data)[1:], number, is_tokenized=is_tokenized)
    assert unpack_rows(pack_rows(read), number, is_tokenized=is_tokenized) == read


def worker(data: bytes) -> None:
    """Read what goes between a broker and a worker, and what our other processes say."""
    kind, header, buffers = read_from_worker([VERSION_FRAME, *to_frames(data)])
    readers: dict[str, Callable[..., Batch | Answers]] = {
        "batch": Batch.parse,
        "answers": Answers.parse,
    }
    if kind in readers:
        assert readers[kind](header, buffers).to_frames()


def batch(data: bytes) -> None:
    """Answer a request as a worker does, whatever it is: its answer can be read."""
    requests = [to_frames(data)]
    reader = BatchReader(REPLICA, DEFAULT_VIEW)
    prepared = reader.prepare(Batch(1, requests, [0.0], time.monotonic()))
    (frames,) = word(REPLICA, prepared, compute(REPLICA, prepared)).answers
    parse_answer([VERSION_FRAME, *map(bytes, frames)])


def legacy(data: bytes) -> None:
    """Read what a client of bert-as-service sends; a refusal can be sent as an answer."""
    try:
        message = parse_legacy_request([bytes(frame) for frame in to_frames(data)])
    except Unanswerable as error:
        raise Refused from error
    try:
        parse_rows(message.body)
    except ValueError as error:
        error_answer(message, str(error))
        raise Refused from error


def subscription(data: bytes) -> None:
    """Take in what a subscriber of bert-as-service's port sends."""
    mailbox = Mailbox(hold_s=1.0, max_answers=2, max_bytes=100)
    for frame in to_frames(data):
        mailbox.on_subscription(bytes(frame))
    mailbox.is_subscribed(data[:255])


TARGETS: dict[str, Callable[[bytes], None]] = {
    target.__name__: target
    for target in (any_frames, request, answer, rows, worker, batch, legacy, subscription)
}


def run(name: str, data: bytes) -> None:
    """Give a target an input; raises what it should not have."""
    try:
        TARGETS[name](data)
    except REFUSALS:
        return

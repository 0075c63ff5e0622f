"""Hypothesis strategies for every message of the protocol, and for broken ones."""

from __future__ import annotations

from itertools import accumulate
from typing import Any

import msgpack
import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from bert_serving.client import protocol, view
from bert_serving.client.admin_messages import MAX_PATH_CHARS, MAX_WORKERS, Admin, AdminAnswer
from bert_serving.client.frames import VERSION_FRAME
from bert_serving.client.group_messages import MAX_GROUPS, BroadcastPart, Membership
from bert_serving.client.messages import (
    Cancel,
    Encode,
    ErrorAnswer,
    GroupPart,
    Hello,
    Limits,
    Result,
    RowTokens,
    Status,
    StatusRequest,
    ViewArray,
    Welcome,
)
from bert_serving.client.rows import pack_rows
from bert_serving.client.view import View

ids = st.integers(0, protocol.MAX_ID)
names = st.text(max_size=protocol.MAX_NAME_CHARS)
texts = st.text(max_size=20)
full_names = st.text(min_size=1, max_size=protocol.MAX_NAME_CHARS)
group_parts = st.builds(
    GroupPart,
    name=full_names,
    sender=names,
    call=ids,
    start=ids,
    total=st.integers(1, protocol.MAX_ID),
)
memberships = st.builds(
    Membership, id=ids, groups=st.lists(full_names, max_size=4) | st.just(["a"] * MAX_GROUPS)
)
commands = st.one_of(
    st.builds(Admin, id=ids, command=st.sampled_from(["status", "terminate"])),
    st.builds(Admin, id=ids, command=st.just("scale"), num_worker=st.integers(1, MAX_WORKERS)),
    st.builds(
        Admin,
        id=ids,
        command=st.just("reload"),
        model_dir=st.none() | st.text(min_size=1, max_size=20) | st.just("d" * MAX_PATH_CHARS),
    ),
)
token_lists = st.lists(texts, max_size=4)
milliseconds = st.floats(0, 1e9)
scalars = (
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=8)
)
maps = st.dictionaries(st.text(max_size=8), scalars, max_size=3)
text_rows = st.lists(texts | st.tuples(texts, texts), min_size=1, max_size=5)
token_rows = st.lists(token_lists | st.tuples(token_lists, token_lists), min_size=1, max_size=5)

layers = st.integers(-view.MAX_LAYERS, view.MAX_LAYERS)
filled_views = st.builds(
    View,
    layers=st.lists(layers, min_size=1, max_size=3).map(tuple),
    layer_reduce=st.sampled_from(view.LAYER_REDUCTIONS),
    pooling=st.sampled_from(view.POOLINGS),
    normalize=st.booleans(),
    dims=st.none() | st.integers(1, view.MAX_DIMS),
    dtype=st.sampled_from(view.OUTPUT_DTYPES),
)
views = st.builds(
    View,
    layers=st.none() | st.lists(layers, min_size=1, max_size=3).map(tuple),
    layer_reduce=st.none() | st.sampled_from(view.LAYER_REDUCTIONS),
    pooling=st.none() | st.sampled_from(view.POOLINGS),
    normalize=st.none() | st.booleans(),
    dims=st.none() | st.integers(1, view.MAX_DIMS),
    dtype=st.none() | st.sampled_from(view.OUTPUT_DTYPES),
)


@st.composite
def encodes(draw: st.DrawFn) -> Encode:
    is_tokenized = draw(st.booleans())
    rows: Any = draw(token_rows if is_tokenized else text_rows)
    return Encode(
        id=draw(ids),
        rows=len(rows),
        ttl_ms=draw(st.integers(0, protocol.MAX_TTL_MS)),
        views=draw(st.dictionaries(names, views, max_size=3)),
        buffer=pack_rows(rows),
        is_tokenized=is_tokenized,
        max_length=draw(st.none() | st.integers(1, protocol.MAX_ID)),
        show_tokens=draw(st.booleans()),
        group=draw(st.none() | group_parts),
    )


@st.composite
def results(draw: st.DrawFn) -> Result:
    n_tokens = draw(st.lists(st.integers(0, 4), max_size=4))
    tokens = RowTokens(
        texts=[draw(texts) for _ in range(sum(n_tokens))],
        ids=np.arange(sum(n_tokens), dtype=np.int32),
        segment_ids=np.ones(sum(n_tokens), dtype=np.uint8),
    )
    return Result(
        id=draw(ids),
        views={name: draw(view_arrays(n_tokens)) for name in draw(st.sets(names, max_size=3))},
        n_tokens=n_tokens,
        truncated=[row for row in range(len(n_tokens)) if draw(st.booleans())],
        tokens=draw(st.sampled_from([None, tokens])),
        queue_ms=draw(milliseconds),
        tokenize_ms=draw(milliseconds),
        compute_ms=draw(milliseconds),
    )


@st.composite
def view_arrays(draw: st.DrawFn, n_tokens: list[int]) -> ViewArray:
    dtype = draw(st.sampled_from(["<f4", "<f2", ">f4"]))
    is_pooled = draw(st.booleans())
    vectors = len(n_tokens) if is_pooled else sum(n_tokens)
    values = draw(hnp.arrays(dtype, (vectors, draw(st.integers(0, 3)))))
    return ViewArray(values, None if is_pooled else list(accumulate(n_tokens, initial=0)))


command_answers = st.one_of(
    st.builds(AdminAnswer, id=ids, answer=st.sampled_from(["changed", "terminated"])),
    st.builds(AdminAnswer, id=ids, answer=st.just("status"), status=maps),
    st.builds(AdminAnswer, id=ids, answer=st.sampled_from(["refused", "failed"]), cause=st.text()),
    st.builds(AdminAnswer, id=ids, answer=st.just("accepted"), steps=ids),
    st.builds(AdminAnswer, id=ids, answer=st.just("terminating"), pid=ids),
)

requests = st.one_of(
    st.builds(Hello, client=names),
    st.builds(Cancel, ids=st.lists(ids, max_size=5)),
    st.builds(StatusRequest, id=ids),
    memberships,
    commands,
    encodes(),
)

answers = st.one_of(
    st.builds(
        Welcome,
        server=names,
        state=st.sampled_from(["starting", "ready", "draining"]),
        limits=st.builds(
            Limits,
            max_rows=st.integers(1, protocol.MAX_ROWS),
            max_bytes=st.integers(1, 1 << 20),
            window=st.integers(1, protocol.MAX_ROWS),
            workers=st.integers(2, protocol.MAX_ROWS),
            min_rows=st.integers(1, protocol.MAX_ROWS),
        ),
        default_view=filled_views,
        model=maps,
        connection=names | st.just(""),
    ),
    results(),
    st.builds(
        ErrorAnswer,
        id=st.none() | ids,
        code=names,
        message=st.text(),
        retry_after_ms=st.none() | st.integers(0, protocol.MAX_TTL_MS),
    ),
    st.builds(Status, id=ids, status=maps),
    memberships,
    command_answers,
    st.builds(BroadcastPart, group=group_parts, connection=names, result=results()),
)

# values that some check must have thought of: wrong types, bounds, and what repr chokes on
odd_values = st.one_of(
    scalars,
    st.sampled_from(
        [
            -1,
            2**31,
            2**63,
            2**64 - 1,
            float("nan"),
            float("inf"),
            1e308,
            "",
            "x" * 5000,
            b"",
            b"\x01",
        ]
    ),
    st.builds(msgpack.ExtType, st.integers(0, 127), st.binary(max_size=4)),
    st.builds(msgpack.Timestamp, st.integers(0, 2**33)),
    st.integers(1, 400).map(lambda depth: nested(depth)),
    st.lists(scalars, max_size=3),
    st.dictionaries(st.text(max_size=6) | st.binary(max_size=3), scalars, max_size=3),
    st.lists(st.sampled_from([0, 1, 2, 3, 2**40, 2**63]), max_size=5),
)


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


@st.composite
def broken_messages(draw: st.DrawFn, messages: st.SearchStrategy[Any]) -> list[Any]:
    """Return the frames of a valid message after one to three accidents."""
    frames = [bytes(frame) for frame in draw(messages).to_frames()]
    for _ in range(draw(st.integers(1, 3))):
        frames = draw(st.sampled_from([_lose, _cut, _flip, _add, _alter, _alter, _alter]))(
            draw, frames
        )
    return [memoryview(frame) for frame in frames]


def _position(draw: st.DrawFn, frames: list[bytes]) -> int:
    return draw(st.integers(0, len(frames) - 1))


def _lose(draw: st.DrawFn, frames: list[bytes]) -> list[bytes]:
    if not frames:
        return frames
    lost = _position(draw, frames)
    return frames[:lost] + frames[lost + 1 :]


def _cut(draw: st.DrawFn, frames: list[bytes]) -> list[bytes]:
    if not frames:
        return frames
    where = _position(draw, frames)
    return [
        frame[: draw(st.integers(0, len(frame)))] if number == where else frame
        for number, frame in enumerate(frames)
    ]


def _flip(draw: st.DrawFn, frames: list[bytes]) -> list[bytes]:
    if not frames:
        return frames
    where = _position(draw, frames)
    damaged = bytearray(frames[where])
    if damaged:
        damaged[draw(st.integers(0, len(damaged) - 1))] ^= draw(st.integers(1, 255))
    return [*frames[:where], bytes(damaged), *frames[where + 1 :]]


def _add(draw: st.DrawFn, frames: list[bytes]) -> list[bytes]:
    return [*frames, draw(st.binary(max_size=8))]


def _alter(draw: st.DrawFn, frames: list[bytes]) -> list[bytes]:
    """Set, replace or remove a field at any depth of the header."""
    try:
        header = msgpack.unpackb(frames[1])
    except (IndexError, ValueError):
        return frames
    place: Any = header
    while isinstance(place, dict | list) and place:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        key = draw(st.sampled_from(keys))
        if isinstance(place[key], dict | list) and place[key] and draw(st.booleans()):
            place = place[key]
            continue
        if draw(st.integers(0, 4)) == 0:
            del place[key]
        else:
            place[key] = draw(odd_values)
        break
    return [frames[0], msgpack.packb(header), *frames[2:]]


random_frames = st.lists(st.binary(max_size=40) | st.just(VERSION_FRAME), max_size=4) | st.builds(
    lambda header, buffers: [VERSION_FRAME, header, *buffers],
    st.binary(max_size=40) | odd_values.map(msgpack.packb),
    st.lists(st.binary(max_size=8), max_size=2),
)

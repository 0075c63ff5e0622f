"""What a peer has packed takes memory in proportion to its bytes, or is refused before."""

from __future__ import annotations

import tracemalloc
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st
from message_strategies import nested, odd_values

from bert_serving.client.errors import MalformedMessage
from bert_serving.client.frames import MAX_HEADER_BYTES, MAX_HEADER_DEPTH, decode_header, unpack
from bert_serving.client.rows import MAX_ROWS_BYTES, unpack_rows
from bert_serving.client.structure import COPY_BELOW_BYTES, MAX_UNSEEN_BYTES, check_structure

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text(max_size=40)
    | st.sampled_from(["x" * 31, "x" * 32, "x" * 255, "x" * 256, "x" * 70_000])
    | st.binary(max_size=300)
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=20)
        | st.dictionaries(st.text(max_size=5), inner, max_size=20)
        | inner.map(lambda value: [value] * 70_000 if isinstance(value, int) else value)
    ),
    max_leaves=10,
)


def check(data: Any, max_depth: int = 16, max_items: int = 1 << 20) -> None:
    check_structure(data, "value", max_depth=max_depth, max_items=max_items)


def depth(value: Any) -> int:
    if not isinstance(value, list | dict):
        return 0
    inner = value.values() if isinstance(value, dict) else value
    return 1 + max(map(depth, inner), default=0)


def items(value: Any) -> int:
    if not isinstance(value, list | dict):
        return 0
    inner = value.values() if isinstance(value, dict) else value
    return len(value) * (2 if isinstance(value, dict) else 1) + sum(map(items, inner))


@given(VALUES)
def test_a_value_passes_at_its_own_depth_and_size_and_not_below(value: Any) -> None:
    data = memoryview(msgpack.packb(value))
    check(data, depth(value), items(value))
    if depth(value):
        with pytest.raises(MalformedMessage, match="deeper than"):
            check(data, depth(value) - 1, items(value))
    if items(value):
        with pytest.raises(MalformedMessage, match="more items"):
            check(data, depth(value), items(value) - 1)


@given(st.binary(max_size=50) | odd_values.map(msgpack.packb))
def test_whatever_msgpack_reads_is_measured_right_or_refused(data: bytes) -> None:
    try:
        value = unpack(data, "value", max_bytes=1000, max_depth=5, max_items=50)
    except MalformedMessage:
        return
    assert depth(value) <= 5
    assert items(value) <= 50 or isinstance(value, dict)  # of two like keys one is left


@pytest.mark.parametrize(
    "packed",
    [msgpack.packb(msgpack.ExtType(5, b"x")), msgpack.packb(msgpack.Timestamp(1)), b"\xc1"],
    ids=["an extension", "a timestamp", "a byte that is never used"],
)
def test_types_that_the_protocol_does_not_use_are_refused(packed: bytes) -> None:
    with pytest.raises(MalformedMessage, match="not valid msgpack"):
        check(b"\xdd\x00\x00\xff\xff" + packed * 0xFFFF)


GREEDY = {
    "lists that announce more than there is": b"\xdd\x00\x00\xff\xff" * 500,
    "maps that announce more than there is": b"\xdf\x00\x00\xff\xff" * 500,
    "one list of four billion": b"\xdd\xff\xff\xff\xff",
    "one map of four billion": b"\xdf\xff\xff\xff\xff",
    "a list in a list, and so on": b"\x91" * 1_000_000,
    "empty lists": b"\xdd\x00\x0f\xff\xf0" + b"\x90" * 0x0FFFF0,
    "empty maps": b"\xdd\x00\x0f\xff\xf0" + b"\x80" * 0x0FFFF0,
    "a long string that is not there": b"\xdb\xff\xff\xff\xff",
    "lists in a few bytes": b"\xdd\x00\x00\xff\xff" * 16 + b"\x00" * 100,
    "a list whose length is cut": b"\xdd\x00",
}


@pytest.mark.parametrize("packed", GREEDY.values(), ids=GREEDY)
def test_what_would_take_memory_out_of_proportion_is_refused_without_taking_it(
    packed: bytes,
) -> None:
    assert len(packed) < MAX_HEADER_BYTES
    tracemalloc.start()
    try:
        with pytest.raises(MalformedMessage):
            decode_header(b"\x81\xa1x" + packed)
        with pytest.raises(MalformedMessage):
            unpack_rows(packed, 64, is_tokenized=False)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 3 * len(packed) + MAX_UNSEEN_BYTES + (64 << 10)


@pytest.mark.parametrize("item", [b"\x80", b"\x90", b"\xa2ab", b"\xcf" + b"\xff" * 8])
def test_what_is_read_takes_some_bytes_an_item(item: bytes) -> None:
    packed = b"\xdc\xff\x00" + item * 0xFF00
    tracemalloc.start()
    try:
        with pytest.raises(MalformedMessage, match="the 64 rows"):
            unpack_rows(packed, 64, is_tokenized=True)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 100 * 0xFF00


def test_the_depth_of_a_header_is_bounded() -> None:
    fits = msgpack.packb({"a": nested(MAX_HEADER_DEPTH - 2)})
    assert decode_header(fits)
    with pytest.raises(MalformedMessage, match="deeper than the 16 allowed"):
        decode_header(msgpack.packb({"a": nested(MAX_HEADER_DEPTH - 1)}))


@pytest.mark.parametrize("size", [COPY_BELOW_BYTES - 10, COPY_BELOW_BYTES + 10])
def test_rows_are_read_from_buffers_of_any_size(size: int) -> None:
    rows = ["x" * size, ("a", "b")]
    assert unpack_rows(memoryview(msgpack.packb(rows)), 2, is_tokenized=False) == rows
    assert size < MAX_ROWS_BYTES

from __future__ import annotations

import reprlib
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from message_strategies import nested, odd_values, random_frames

from bert_serving.client.errors import MalformedMessage, ProtocolError, VersionMismatch
from bert_serving.client.frames import (
    DTYPES,
    MAX_FRAMES,
    MAX_HEADER_BYTES,
    VERSION_FRAME,
    array_buffer,
    decode_array,
    decode_header,
    decode_message,
    describe_array,
    encode_message,
    unpack,
)

EMPTY_MAP = b"\x80"


def test_a_message_is_the_version_the_header_and_the_buffers_as_they_are() -> None:
    buffer = memoryview(b"\x01\x02")
    frames = encode_message({"a": 1}, [buffer])
    assert frames[:2] == [b"BERT\x01", b"\x81\xa1a\x01"]
    assert frames[2] is buffer


@given(
    st.dictionaries(st.text(max_size=5), st.integers(0, 9) | st.text(max_size=5), max_size=4),
    st.lists(st.binary(max_size=9), max_size=3),
    st.sampled_from([bytes, bytearray, memoryview]),
)
def test_a_message_comes_back_as_it_was_sent(
    header: dict[str, Any], buffers: list[bytes], received_as: Any
) -> None:
    frames = [received_as(frame) for frame in encode_message(header, buffers)]
    assert decode_message(frames) == (header, frames[2:])


@pytest.mark.parametrize("frames", [[], [VERSION_FRAME], [EMPTY_MAP]])
def test_fewer_than_two_frames_are_no_message(frames: list[bytes]) -> None:
    with pytest.raises(MalformedMessage, match="at least 2"):
        decode_message(frames)


def test_another_version_is_named_in_the_error() -> None:
    with pytest.raises(VersionMismatch, match="version 7, this side speaks 1"):
        decode_message([b"BERT\x07", b"not even msgpack of version 1"])


@pytest.mark.parametrize("first", [b"", b"BERT", b"bert\x01", b"BERT\x01\x00", b"GET / HTTP/1.1"])
def test_a_first_frame_of_something_else_is_malformed(first: bytes) -> None:
    with pytest.raises(MalformedMessage, match="first frame"):
        decode_message([first, EMPTY_MAP])


def test_the_number_of_frames_is_limited() -> None:
    most = [VERSION_FRAME, EMPTY_MAP] + [b""] * (MAX_FRAMES - 2)
    assert decode_message(most)[0] == {}
    with pytest.raises(MalformedMessage, match="frames"):
        decode_message([*most, b""])


def test_the_size_of_the_header_is_limited() -> None:
    fits = msgpack.packb({"a": "x" * (MAX_HEADER_BYTES - 8)})
    assert len(fits) == MAX_HEADER_BYTES
    assert decode_header(fits)
    with pytest.raises(MalformedMessage, match="at most"):
        decode_header(msgpack.packb({"a": "x" * (MAX_HEADER_BYTES - 7)}))


@pytest.mark.parametrize(
    "value", [None, 1, "a", [["a", 1]], {1: 2}, {b"a": 1}, msgpack.Timestamp(1)], ids=repr
)
def test_a_header_that_is_no_map_with_string_keys_is_malformed(value: Any) -> None:
    with pytest.raises(MalformedMessage):
        decode_header(msgpack.packb(value))


@pytest.mark.parametrize(
    "packed",
    [
        b"",
        b"\xc1",
        b"\x81",
        b"\x80\x80",
        b"\xa1\xff",
        b"\xa3\xed\xa0\x80",
        b"\xc7\x0c\xff" + b"\xff" * 12,
        b"\x81\x91\x01\x01",
    ],
    ids=reprlib.repr,
)
def test_what_is_no_single_msgpack_value_is_malformed(packed: bytes) -> None:
    with pytest.raises(MalformedMessage, match="valid msgpack"):
        unpack(packed, "header", max_bytes=1 << 20, max_depth=16, max_items=1 << 10)


@given(
    hnp.arrays(
        st.sampled_from([*DTYPES, ">f4", ">f2", ">i4", ">i8"]),
        hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=3),
    ),
    st.booleans(),
)
def test_an_array_comes_back_with_its_shape_its_type_and_its_values(
    array: np.ndarray[Any, Any], transposed: bool
) -> None:
    array = array.T if transposed else array
    description, buffer = describe_array(array), array_buffer(array)
    back = decode_array(description, buffer)
    assert description["dtype"] in DTYPES
    assert (back.shape, back.dtype) == (array.shape, array.dtype.newbyteorder("<"))
    np.testing.assert_array_equal(back, array)


def test_an_array_that_is_already_as_it_travels_is_not_copied() -> None:
    array = np.ones((2, 3), np.float32)
    buffer = array_buffer(array)
    back = decode_array(describe_array(array), buffer)
    assert np.shares_memory(array, np.frombuffer(buffer, np.uint8))
    assert np.shares_memory(array, back)


def test_a_received_array_is_read_only_whatever_it_came_in() -> None:
    for buffer in (b"\0" * 4, bytearray(4), memoryview(bytearray(4))):
        array = decode_array({"dtype": "<f4", "shape": [1]}, buffer)
        assert not array.flags.writeable


@pytest.mark.parametrize("shape", [[0], [0, 384], [3, 0], [0, 0, 0, 0]])
@pytest.mark.parametrize("empty", [b"", bytearray(), memoryview(b"")], ids=["b", "ba", "mv"])
def test_an_empty_buffer_is_an_empty_array(shape: list[int], empty: Any) -> None:
    assert decode_array({"dtype": "<f4", "shape": shape}, empty).shape == tuple(shape)


@pytest.mark.parametrize("dtype", ["float64", "object", "bool", "complex64", "S3", "datetime64[s]"])
def test_an_array_of_another_type_does_not_travel(dtype: str) -> None:
    with pytest.raises(ValueError, match="does not travel"):
        describe_array(np.zeros(1, dtype))


@pytest.mark.parametrize("dtype", ["|O", "<f8", ">f4", "f4", "<U4", "", None, 4, ["<f4"], {}])
def test_a_received_dtype_outside_the_list_is_malformed(dtype: Any) -> None:
    with pytest.raises(MalformedMessage, match="dtype"):
        decode_array({"dtype": dtype, "shape": [0]}, b"")


@pytest.mark.parametrize(
    "shape",
    [
        None,
        4,
        "1",
        {},
        [1, 1, 1, 1, 1],
        [-1],
        [-1, -1],
        [1.0],
        [True],
        ["1"],
        [2],
        [2**62, 4],
        [2**32, 2**32],
        [2**64 - 1, 2**64 - 1],
        [0, 2**63],
        [0, 2**64 - 1],
        [2**62, 0],
        [0, 2**40, 2**40],
    ],
    ids=repr,
)
def test_a_shape_that_does_not_fit_its_buffer_is_malformed(shape: Any) -> None:
    with pytest.raises(MalformedMessage):
        decode_array({"dtype": "<f4", "shape": shape}, b"\0" * 4 if shape != [0] else b"")
    with pytest.raises(MalformedMessage):
        decode_array({"dtype": "<f4", "shape": shape}, b"")


@pytest.mark.parametrize("field", ["dtype", "shape"])
def test_a_value_too_deep_to_print_is_malformed_too(field: str) -> None:
    with pytest.raises(MalformedMessage):
        decode_array({"dtype": "<f4", "shape": [1], field: nested(1000)}, b"\0" * 4)


@given(
    odd_values
    | st.fixed_dictionaries({"dtype": st.sampled_from(DTYPES) | odd_values, "shape": odd_values}),
    st.binary(max_size=16).map(memoryview),
)
def test_any_description_gives_an_array_of_its_buffer_or_a_protocol_error(
    description: Any, buffer: memoryview
) -> None:
    try:
        array = decode_array(description, buffer)
    except ProtocolError:
        return
    assert array.nbytes == len(buffer)


@given(random_frames)
def test_any_frames_give_a_message_or_a_protocol_error(frames: list[bytes]) -> None:
    try:
        header, buffers = decode_message(frames)
    except ProtocolError:
        return
    assert all(type(key) is str for key in header)
    assert len(buffers) == len(frames) - 2

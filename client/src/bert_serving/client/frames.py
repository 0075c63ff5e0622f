"""Messages and arrays to ZeroMQ frames and back: every check of size, type and dtype.

A message is `[version, header, *buffers]`: a constant that names the protocol, a
msgpack map, and raw buffers that are never copied here. This module knows how
frames look, not which messages there are.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import msgpack
import numpy as np
import numpy.typing as npt

from .errors import MalformedMessage, VersionMismatch
from .structure import check_structure

Buffer: TypeAlias = bytes | bytearray | memoryview
Header: TypeAlias = dict[str, Any]

PROTOCOL_NAME = b"BERT"
PROTOCOL_VERSION = 1
VERSION_FRAME = PROTOCOL_NAME + bytes([PROTOCOL_VERSION])

MAX_FRAMES = 4096
MAX_HEADER_BYTES = 1 << 20
MAX_HEADER_DEPTH = 16
MAX_HEADER_ITEMS = 1 << 18  # the largest result has 150,000: row splits of 16 views
MAX_ARRAY_DIMENSIONS = 4

DTYPES = ("<f4", "<f2", "<i4", "<i8", "|u1")
"""The only dtypes that travel: little-endian, fixed size, no objects."""

_ITEM_BYTES = {dtype: np.dtype(dtype).itemsize for dtype in DTYPES}


def encode_message(header: Mapping[str, Any], buffers: Sequence[Any] = ()) -> list[Any]:
    """Return the frames of a message; the buffers go out as they are."""
    return [VERSION_FRAME, msgpack.packb(header), *buffers]


def decode_message(
    frames: Sequence[Buffer], max_frames: int = MAX_FRAMES
) -> tuple[Header, Sequence[Buffer]]:
    """Split frames into a header and its buffers.

    Raises:
        VersionMismatch: the peer speaks another version.
        MalformedMessage: these frames are no message of this protocol.

    """
    check_version(frames)
    if len(frames) > max_frames:
        raise MalformedMessage(f"got {len(frames)} frames, at most {max_frames} are allowed")
    return decode_header(frames[1]), frames[2:]


def check_version(frames: Sequence[Buffer]) -> None:
    """Raise unless the first of at least two frames names this version of the protocol."""
    if len(frames) < 2:
        raise MalformedMessage(f"got {len(frames)} frame(s), a message has at least 2")
    version = bytes(frames[0][:16])
    if version == VERSION_FRAME:
        return
    if len(version) == len(VERSION_FRAME) and version.startswith(PROTOCOL_NAME):
        raise VersionMismatch(
            f"the peer speaks protocol version {version[-1]}, this side speaks {PROTOCOL_VERSION}: "
            "install matching versions of bert-serving-client and bert-serving-server"
        )
    raise MalformedMessage(f"the first frame is {version!r}, expected {VERSION_FRAME!r}")


def decode_header(frame: Buffer) -> Header:
    """Unpack a header frame: a msgpack map with string keys."""
    header = unpack(
        frame,
        "header",
        max_bytes=MAX_HEADER_BYTES,
        max_depth=MAX_HEADER_DEPTH,
        max_items=MAX_HEADER_ITEMS,
    )
    if type(header) is not dict:
        raise MalformedMessage(f"the header is a {type(header).__name__}, expected a map")
    if not set(map(type, header)) <= {str}:
        raise MalformedMessage("a key of the header is no string")
    return header


def unpack(
    frame: Buffer,
    what: str,
    *,
    max_bytes: int,
    max_depth: int,
    max_items: int,
    is_typed: bool = False,
) -> Any:
    """Unpack one msgpack value within bounds (see `structure`) or raise `MalformedMessage`."""
    if len(frame) > max_bytes:
        raise MalformedMessage(
            f"the {what} has {len(frame)} bytes, at most {max_bytes} are allowed"
        )
    check_structure(frame, what, max_depth=max_depth, max_items=max_items, is_typed=is_typed)
    try:
        return msgpack.unpackb(frame)
    except (ValueError, TypeError, OverflowError, msgpack.UnpackException) as error:
        raise MalformedMessage(f"the {what} is not valid msgpack: {error}") from None


def describe_array(array: npt.NDArray[Any]) -> Header:
    """Return the description that travels beside an array's buffer."""
    dtype = array.dtype.newbyteorder("<").str
    if dtype not in DTYPES:
        raise ValueError(f"dtype {array.dtype} does not travel, only {', '.join(DTYPES)} do")
    return {"dtype": dtype, "shape": list(array.shape)}


def array_buffer(array: npt.NDArray[Any]) -> memoryview:
    """Return an array's values as one flat little-endian C-order buffer, copied only if needed."""
    little = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    return little.reshape(-1).view(np.uint8).data


def decode_array(description: Any, buffer: Buffer) -> npt.NDArray[Any]:
    """Return a read-only view of a buffer as the described array, without a copy.

    Raises:
        MalformedMessage: dtype not allowed, shape no list of sizes, or a size that does
            not match the buffer.

    """
    if type(description) is not dict:
        raise MalformedMessage("an array's description must be a map with dtype and shape")
    dtype, shape = description.get("dtype"), description.get("shape")
    if dtype not in DTYPES:
        got = reprlib.repr(dtype)  # repr fails on what a peer can nest
        raise MalformedMessage(f"dtype {got} is not allowed, only {', '.join(DTYPES)} are")
    if type(shape) is not list or len(shape) > MAX_ARRAY_DIMENSIONS:
        raise MalformedMessage(
            f"shape {reprlib.repr(shape)} is no list of at most {MAX_ARRAY_DIMENSIONS} sizes"
        )
    for size in shape:
        if type(size) is not int or size < 0:
            raise MalformedMessage(f"shape {reprlib.repr(shape)} holds something that is no size")
    itemsize = _ITEM_BYTES[dtype]
    if math.prod(shape) * itemsize != len(buffer):
        raise MalformedMessage(
            f"a buffer of {len(buffer)} bytes cannot be shape {shape} of {itemsize}-byte items"
        )
    try:
        array = np.frombuffer(buffer, dtype=dtype).reshape(shape)
    except (ValueError, OverflowError):  # a size of 0 beside one that no array can have
        raise MalformedMessage(f"shape {shape} is larger than an array can be") from None
    array.flags.writeable = False
    return array

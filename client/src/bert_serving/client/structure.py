"""How a msgpack value is built, looked at before anything of it is made.

msgpack makes room for a list as soon as it reads how long it says it is, and lists may be 500
deep: two kilobytes that announce list in list took gigabytes. Here a value is walked by the
first byte of each item, which says where the next one begins, and nothing is made of it; what
passes takes memory in proportion to its bytes.
"""

from __future__ import annotations

from typing import TypeAlias

from .errors import MalformedMessage

Data: TypeAlias = bytes | bytearray | memoryview

COPY_BELOW_BYTES = 1 << 16  # reading a byte of a memoryview takes twice as long
POINTER_BYTES = 8  # what msgpack makes room for, for each item that is announced
MAX_UNSEEN_BYTES = 4 << 20  # of room, as none of it is kept


def check_structure(
    data: Data, what: str, *, max_depth: int, max_items: int, is_typed: bool = False
) -> None:
    """Raise unless data begins with a msgpack value neither too deep nor of too many items.

    What has too few bytes for too many items, and opens so few lists and maps that they can
    take no memory to speak of, passes without being walked: nearly everything, at a tenth of
    the time.

    Args:
        data: the bytes; what follows the value is not looked at.
        what: they are, for the error.
        max_depth: how many lists and maps may be inside each other.
        max_items: how many items all lists and maps may have together, keys of maps included.
        is_typed: whoever reads the value looks at the type of each item, which bounds the depth.

    Raises:
        MalformedMessage: it is too deep, has too many items, ends too early, or has an item of
            a type that this protocol does not use.

    """
    if len(data) < COPY_BELOW_BYTES:
        data = bytes(data)
        openings = len(data) - len(data.translate(None, _OPENINGS))  # at most
        is_flat = is_typed or openings <= max_depth
        room = openings * len(data) * POINTER_BYTES  # msgpack reads no length above that of data
        if is_flat and len(data) <= max_items and room <= MAX_UNSEEN_BYTES:
            return
    try:
        _walk(data, what, max_depth, max_items)
    except IndexError:
        raise MalformedMessage(f"the {what} is not valid msgpack: it ends too early") from None


def _walk(data: Data, what: str, max_depth: int, max_items: int) -> None:
    at, left = 0, 1
    around: list[int] = []  # items left in each list and map around
    while True:
        while not left:
            if not around:
                return
            left = around.pop()
        left -= 1
        first = data[at]
        if size := _SIZES[first]:
            at += size
            continue
        if first == _SHORT_STRING:  # nearly every sentence
            at += 2 + data[at + 1]
            continue
        if first not in _LENGTHS:
            raise MalformedMessage(f"the {what} is not valid msgpack of this protocol")
        start, length_bytes, items_each = _LENGTHS[first]
        length = start + int.from_bytes(data[at + 1 : at + 1 + length_bytes], "big")
        at += 1 + length_bytes
        if not items_each:
            at += length
            continue
        around.append(left)
        left = length * items_each
        max_items -= left
        if max_items < 0:
            raise MalformedMessage(f"the {what} has more items than are allowed")
        if len(around) > max_depth:
            raise MalformedMessage(
                f"the {what} has lists and maps in each other, deeper than the {max_depth} allowed"
            )


def _sizes() -> list[int]:
    """Return for each first byte how long the item is; 0 where more than that must be read."""
    sizes = [0] * 256
    for first in (*range(0x80), *range(0xE0, 0x100), 0xC0, 0xC2, 0xC3):  # small ints, nil, bools
        sizes[first] = 1
    for length in range(32):
        sizes[0xA0 + length] = 1 + length  # short strings
    for number, nbytes in enumerate([4, 8, 1, 2, 4, 8, 1, 2, 4, 8]):  # floats, ints of either kind
        sizes[0xCA + number] = 1 + nbytes
    return sizes


_SIZES = _sizes()
_SHORT_STRING = 0xD9
_OPENINGS = bytes([*range(0x80, 0xA0), *range(0xDC, 0xE0)])

_LENGTHS = {
    # what is added to the length, in how many bytes it stands, and how many items each unit is
    **{0x80 + length: (length, 0, 2) for length in range(16)},
    **{0x90 + length: (length, 0, 1) for length in range(16)},
    **{first: (0, nbytes, 0) for first, nbytes in [(0xC4, 1), (0xC5, 2), (0xC6, 4)]},  # bytes
    **{first: (0, nbytes, 0) for first, nbytes in [(0xDA, 2), (0xDB, 4)]},  # strings
    **{first: (0, nbytes, 1) for first, nbytes in [(0xDC, 2), (0xDD, 4)]},
    **{first: (0, nbytes, 2) for first, nbytes in [(0xDE, 2), (0xDF, 4)]},
}

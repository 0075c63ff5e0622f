"""Rows as the fake replica reads them: hashes, so that no vocabulary is needed.

Ids carry all that the fake's `encode` must know of a row, since it sees nothing else: an
even id above 0 is a [CLS] with the hash of its whole row, an odd one is a word (of that
row, at that place), 0 is [SEP], and a negative one is a [SEP] that tells the replica to
misbehave. A text has a word more than it has spaces, a blank one has none.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from zlib import crc32

import numpy as np
import numpy.typing as npt

from bert_serving.client.rows import Row

from .replica import TokenRows

SEP = 0
CRASH, RAISE, HANG, FREEZE, LOSE_DEVICE, SLEEP = -1, -2, -3, -4, -5, -6
_COMMANDS = {
    "fake:crash": CRASH,
    "fake:raise": RAISE,
    "fake:hang": HANG,
    "fake:freeze": FREEZE,
    "fake:lose_device": LOSE_DEVICE,
}

MAX_ID = (1 << 31) - 1
_STEP = 0x01000193
_NO_SIDE = -1


def rows_to_ids(rows: Sequence[Row], limit: int) -> TokenRows:
    """Return rows as ids, each cut to `limit` tokens; of a pair, the longer side loses."""
    first, second, crcs, commands = _measure(rows)
    is_pair = second != _NO_SIDE
    first_kept, second_kept = _cut(first, np.maximum(second, 0), limit - 2 - is_pair)
    lengths = first_kept + second_kept + 2 + is_pair
    ends = np.cumsum(lengths)
    starts = ends - lengths
    middles = (starts + first_kept + 1)[is_pair]
    place = np.arange(ends[-1] if len(ends) else 0) - np.repeat(starts, lengths)
    cls = cls_ids(crcs)
    ids = (((np.repeat(cls, lengths) + place * _STEP) & MAX_ID) | 1).astype(np.int32)
    ids[starts], ids[middles] = cls, SEP
    ids[ends - 1] = SEP
    for number, command in commands.items():
        ids[ends[number] - 1] = command
    special = np.zeros(len(ids), np.bool_)
    special[starts] = special[middles] = special[ends - 1] = True
    segments = np.zeros(len(ids), np.uint8)
    if len(middles):
        segments[np.repeat(is_pair, lengths) & (place > np.repeat(first_kept + 1, lengths))] = 1
    cut = (first_kept < first) | (second_kept < second)
    return TokenRows(ids, segments, special, lengths.astype(np.int32), cut)


def _measure(
    rows: Sequence[Row],
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.uint32], dict[int, int]]:
    """Return the words of each row's first and second side, its CRC, and the misbehaving rows."""
    if set(map(type, rows)) <= {str}:  # by far the most: half a microsecond a row counts
        texts: Sequence[str] = rows  # type: ignore[assignment]
        spaces = np.array([text.count(" ") for text in texts], np.int64)
        first = np.where(spaces == np.fromiter(map(len, texts), np.int64), 0, spaces + 1)
        crcs = np.array([crc32(text.encode()) for text in texts], np.uint32)
        commands = _commands(texts) if "fake:" in "".join(texts) else {}
        return first, np.full(len(rows), _NO_SIDE), crcs, commands
    sides = [row if isinstance(row, tuple) else (row,) for row in rows]
    first = np.array([_count(side[0]) for side in sides])
    second = np.array([_count(side[1]) if len(side) == 2 else _NO_SIDE for side in sides])
    crcs = np.array([row_crc(row) for row in rows], np.uint32)
    return first, second, crcs, _commands(rows)


def row_crc(row: Row) -> int:
    """Return the CRC-32 of a row: a text, a pair and a list of the same words differ."""
    if isinstance(row, str):
        return crc32(row.encode())
    if isinstance(row, tuple):
        return crc32(b"".join(row_crc(side).to_bytes(4, "little") for side in row), 1)
    return crc32(b"\0".join(token.encode() for token in row), 2)


def cls_ids(crcs: npt.NDArray[np.uint32]) -> npt.NDArray[np.int32]:
    """Return the [CLS] ids of rows with these CRCs: even, and above 0."""
    ids = (crcs & np.uint32(MAX_ID - 1)).astype(np.int32)
    return np.maximum(ids, np.int32(2))


def token_text(token: int) -> str:
    """Return the string of a token: `[CLS]`, `[SEP]`, or `wHASH`."""
    if token <= SEP:
        return "[SEP]"
    return f"w{token:08x}" if token % 2 else "[CLS]"


def _count(side: str | list[str]) -> int:
    if isinstance(side, list):
        return len(side)
    spaces = side.count(" ")
    return 0 if spaces == len(side) else spaces + 1


def _cut(
    first: npt.NDArray[np.int64], second: npt.NDArray[np.int64], room: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return what is kept of both sides: the longer one is cut first, then both alike."""
    first_kept = np.minimum(first, np.maximum(room - second, (room + 1) // 2))
    return first_kept, np.minimum(second, np.maximum(room - first, room // 2))


def _commands(rows: Sequence[Row]) -> dict[int, int]:
    """Return the [SEP] of each row that misbehaves, which says how."""
    return {
        number: _command(row)
        for number, row in enumerate(rows)
        if isinstance(row, str) and row.startswith("fake:")
    }


def _command(text: str) -> int:
    if text.startswith("fake:sleep "):
        with contextlib.suppress(ValueError):
            return max(SLEEP - round(1000 * float(text.removeprefix("fake:sleep "))), -MAX_ID)
    return _COMMANDS.get(text, SEP)

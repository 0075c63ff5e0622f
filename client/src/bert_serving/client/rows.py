"""The rows of a request and their packed form: texts, pairs of texts, and lists of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import msgpack

from .errors import MalformedMessage
from .frames import Buffer, unpack

Text: TypeAlias = str | tuple[str, str]
Tokens: TypeAlias = list[str] | tuple[list[str], list[str]]
Row: TypeAlias = Text | Tokens
"""A text, a pair of texts, a list of tokens, or a pair of lists of tokens."""

MAX_ROWS_BYTES = 1 << 28
MAX_TEXT_ITEMS = 3 << 13  # the most rows, each a list of two
MAX_TOKEN_ITEMS = 1 << 20
MAX_DEPTH = 3  # a list of rows, which are pairs, of lists of tokens


def pack_rows(rows: Sequence[Row]) -> bytes:
    """Return the buffer of an `Encode`: one msgpack list, a pair as a list of two.

    Raises:
        ValueError: a text that is not valid Unicode (a lone surrogate).

    """
    packed: bytes = msgpack.packb(rows)
    return packed


def unpack_rows(buffer: Buffer, rows: int, *, is_tokenized: bool) -> list[Row]:
    """Return the rows of an `Encode`: str, or list of str when tokenized; a pair as a tuple.

    Raises:
        MalformedMessage: not that many rows, or a row that is no text (or tokens).

    """
    values = unpack(
        buffer,
        "rows buffer",
        max_bytes=MAX_ROWS_BYTES,
        max_depth=MAX_DEPTH,
        max_items=MAX_TOKEN_ITEMS if is_tokenized else MAX_TEXT_ITEMS,
        is_typed=True,
    )
    if type(values) is not list or len(values) != rows:
        raise MalformedMessage(
            f"the rows buffer does not hold the {rows} rows its header announces"
        )
    if not is_tokenized and set(map(type, values)) <= {str}:
        return values
    check = _tokens_row if is_tokenized else _text_row
    return [check(value, number) for number, value in enumerate(values)]


def _text_row(value: Any, number: int) -> Text:
    if type(value) is str:
        return value
    if type(value) is list and len(value) == 2 and all(type(text) is str for text in value):
        return (value[0], value[1])
    raise MalformedMessage(f"row {number} is neither a text nor a pair of texts")


def _tokens_row(value: Any, number: int) -> Tokens:
    if type(value) is list:
        if all(type(token) is str for token in value):
            return value
        if len(value) == 2 and all(
            type(side) is list and all(type(token) is str for token in side) for side in value
        ):
            return (value[0], value[1])
    raise MalformedMessage(f"row {number} is neither a list of tokens nor a pair of such lists")

"""Cutting whatever a caller passes to `encode()` into requests of bounded size.

Rows are checked here, so that a caller's mistake is a `TypeError` or `ValueError` that
names the row. A sequence is checked whole before anything is sent; an iterator is
drawn from only as fast as requests go out, so that it may be endless.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from itertools import islice
from typing import Any

from .errors import TooLarge
from .messages import Limits
from .pairs import check_separator, split_row
from .rows import Row, pack_rows

ON_EMPTY = ("encode", "error")


@dataclass(slots=True)
class Chunk:
    """The rows of one request, packed: rows `start` to `start + rows` of the call."""

    start: int
    rows: int
    buffer: bytes


class RowSource:
    """The rows of one call, handed out as chunks.

    Args:
        rows: any iterable of rows; a NumPy array or pandas Series of str is one too.
        is_tokenized: rows are lists of tokens (a pair: a tuple of two such lists),
            not texts (a pair: a tuple of two texts).
        on_empty: `encode` takes a blank row as it is ([CLS] [SEP]), `error` refuses it.
        pair_separator: makes a pair of a row that contains it; None: only tuples are pairs.
        is_counted: `total` must be known, so that an iterator is drawn to its end at once.

    Raises:
        TypeError: not an iterable of rows.
        ValueError: a blank row under `on_empty="error"`, or an option that does not exist.

    """

    def __init__(
        self,
        rows: Iterable[Any],
        *,
        is_tokenized: bool = False,
        on_empty: str = "encode",
        pair_separator: str | None = None,
        is_counted: bool = False,
    ) -> None:
        if on_empty not in ON_EMPTY:
            raise ValueError(f"on_empty={on_empty!r}: expected one of {', '.join(ON_EMPTY)}")
        self._is_tokenized = is_tokenized
        self._refuse_blank = on_empty == "error"
        self._pair_separator = check_separator(pair_separator)
        self._taken = 0
        rows = _ordered(rows)
        if is_counted and not isinstance(rows, Sequence):
            rows = list(rows)
        self.total: int | None = None
        self._waiting: list[Row] = []
        if isinstance(rows, Sequence):
            self.total = len(rows)
            self._rows: Iterator[Any] = iter(self._checked(rows, 0))
        else:
            self._rows = iter(rows)

    @property
    def is_exhausted(self) -> bool:
        """Whether no row is left, as far as can be told without drawing one."""
        return self._taken == self.total

    def take(self, limits: Limits) -> Chunk | None:
        """Return the next chunk, or None when the rows have come to their end.

        Raises:
            TypeError, ValueError: a row of an iterator is not what a row can be.
            TooLarge: a row alone is more than the server takes.

        """
        rows = self._waiting
        most = limits.rows_a_request(self.total)
        if not rows:
            rows = list(islice(self._rows, most))
            if self.total is None:
                rows = self._checked(rows, self._taken)
        if not rows:
            self.total = self._taken
            return None
        count = min(len(rows), most)
        buffer = self._pack(rows[:count])
        while len(buffer) > limits.max_bytes and count > 1:
            count = max(1, count * limits.max_bytes // (len(buffer) + 1))
            buffer = self._pack(rows[:count])
        if len(buffer) > limits.max_request_bytes:
            raise TooLarge(
                f"row {self._taken} has {len(buffer)} bytes, the server takes requests of at most "
                f"{limits.max_request_bytes} (its option -max_request_bytes): shorten the row"
            )
        chunk = Chunk(self._taken, count, buffer)
        self._waiting = rows[count:]
        self._taken += count
        return chunk

    def _pack(self, rows: Sequence[Row]) -> bytes:
        try:
            return pack_rows(rows)
        except UnicodeEncodeError as error:
            raise ValueError(
                f"a row between {self._taken} and {self._taken + len(rows) - 1} is no valid "
                f"Unicode text ({error.reason}): {error.object[error.start : error.end]!r}"
            ) from None

    def _checked(self, rows: Sequence[Any], start: int) -> list[Row]:
        if not self._is_tokenized and set(map(type, rows)) <= {str}:
            checked: list[Row] = list(rows)
        else:
            check = _tokens_row if self._is_tokenized else _text_row
            checked = [check(row, start + number) for number, row in enumerate(rows)]
        if self._pair_separator is not None:
            checked = [split_row(row, self._pair_separator) for row in checked]
        if self._refuse_blank:
            _refuse_blank(checked, start)
        return checked


def _ordered(rows: Any) -> Iterable[Any]:
    if type(rows) is list:
        return rows
    if getattr(rows, "ndim", 1) > 1 and not hasattr(rows, "tolist"):
        raise TypeError(f"a {type(rows).__name__} has several columns: pass one of them")
    if hasattr(rows, "tolist"):  # NumPy and pandas: plain str are checked and packed faster
        rows = rows.tolist()
    if isinstance(rows, (bytes, bytearray, str)):
        raise TypeError(f"got one {type(rows).__name__}, expected an iterable of texts")
    if isinstance(rows, (Mapping, Set)):
        raise TypeError(f"a {type(rows).__name__} has no order of rows: pass a list")
    if not isinstance(rows, Iterable):
        raise TypeError(f"got {type(rows).__name__}, expected a text or an iterable of texts")
    return rows


def _text_row(row: Any, number: int) -> Row:
    if isinstance(row, str):
        return str.__str__(row)  # a subclass may have another one: an enum's is its name
    if isinstance(row, tuple) and len(row) == 2 and all(isinstance(text, str) for text in row):
        return (str.__str__(row[0]), str.__str__(row[1]))
    hint = " (lists of tokens need is_tokenized=True)" if isinstance(row, list) else ""
    raise TypeError(
        f"row {number} is {_named(row)}, expected a str or, for a pair, a tuple of two str{hint}"
    )


def _tokens_row(row: Any, number: int) -> Row:
    if isinstance(row, (list, tuple)):
        if all(isinstance(token, str) for token in row):
            return [str.__str__(token) for token in row]
        if len(row) == 2 and all(
            isinstance(side, (list, tuple)) and all(isinstance(token, str) for token in side)
            for side in row
        ):
            first, second = ([str.__str__(token) for token in side] for side in row)
            return (first, second)
    raise TypeError(
        f"row {number} is {_named(row)}, expected a list of str (is_tokenized=True) "
        "or, for a pair, a tuple of two such lists"
    )


def _named(row: Any) -> str:
    kind = type(row).__name__
    return f"a {kind} of {len(row)}" if isinstance(row, (list, tuple)) else f"{kind} {row!r:.50}"


def _refuse_blank(rows: Sequence[Row], start: int) -> None:
    for number, row in enumerate(rows):
        if _is_blank(row):
            raise ValueError(
                f"row {start + number} is blank; pass on_empty='encode' to encode it as [CLS] [SEP]"
            )


def _is_blank(row: Any) -> bool:
    if isinstance(row, str):
        return not row.strip()
    return all(map(_is_blank, row))

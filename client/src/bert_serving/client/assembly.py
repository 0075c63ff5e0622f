"""Putting the answers of a call's requests together, in whatever order they arrive."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from .errors import MalformedMessage
from .messages import Result, RowTokens, ViewArray

Array: TypeAlias = npt.NDArray[Any]
Embeddings: TypeAlias = Array | list[Array]
"""`[rows, dim]` of a pooled view; for a token-level one, `[tokens of the row, dim]` a row."""


@dataclass
class Encoding:
    """Everything that the server answered for the rows of one call.

    Attributes:
        views: for each view asked for, one array `[rows, dim]`, or (pooling `none`) a list
            with an array `[tokens, dim]` for each row.
        n_tokens: tokens of each row, special ones included, int64 `[rows]`.
        truncated: whether the row was cut to the maximum length, bool `[rows]`.
        tokens: the token strings of each row; None unless asked for.
        token_ids: their vocabulary ids, an int32 array a row; None unless asked for.
        segment_ids: 0 in the first text of a pair, 1 in the second; None unless asked for.
        queue_ms: time that the requests of this call waited on the server, added up.
        tokenize_ms: time to tokenize their batches, added up.
        compute_ms: time to compute their batches, added up.

    """

    views: dict[str, Embeddings]
    n_tokens: Array
    truncated: Array
    tokens: list[list[str]] | None = None
    token_ids: list[Array] | None = None
    segment_ids: list[Array] | None = None
    queue_ms: float = 0.0
    tokenize_ms: float = 0.0
    compute_ms: float = 0.0


class Tokens(NamedTuple):
    """What `tokenize()` returns: of one row, or lists of them with an entry a row.

    Attributes:
        tokens: the token strings, [CLS] and [SEP] included.
        ids: their vocabulary ids, int32 `[tokens]`.
        segment_ids: 0 in the first text of a pair, 1 in the second, uint8 `[tokens]`.

    """

    tokens: Any
    ids: Any
    segment_ids: Any


@dataclass(slots=True)
class _Part:
    """What is kept of one answer; its pooled views are in the whole call's arrays already."""

    start: int
    n_tokens: Sequence[int]
    truncated: Sequence[int]
    tokens: RowTokens | None
    ragged: dict[str, ViewArray]


class Assembly:
    """The arrays of one call while its answers come in.

    Pooled views go into one array, allocated at the first answer; it grows only when the
    number of rows was not known.
    """

    def __init__(
        self, view_names: Sequence[str], total: int | None, *, show_tokens: bool = False
    ) -> None:
        self._view_names = dict.fromkeys(view_names)
        self._show_tokens = show_tokens
        self._capacity = total or 0
        self._pooled: dict[str, Array] = {}
        self._parts: list[_Part] = []
        self._queue_ms = self._tokenize_ms = self._compute_ms = 0.0
        self.rows = 0

    def add(self, start: int, rows: int, result: Result) -> None:
        """Take in the answer for rows `start` to `start + rows`.

        Raises:
            MalformedMessage: the answer is not for these rows and views.

        """
        is_complete = result.views.keys() == self._view_names.keys()
        if (result.tokens is not None) is not self._show_tokens:
            is_complete = False
        if len(result.n_tokens) != rows or not is_complete:
            raise MalformedMessage(
                f"the server answered {len(result.n_tokens)} rows of views {sorted(result.views)}, "
                f"asked were {rows} rows of views {sorted(self._view_names)}"
            )
        ragged: dict[str, ViewArray] = {}
        for name, view in result.views.items():
            if view.row_splits is None:
                self._pooled_array(name, start + rows, view.values)[start : start + rows] = (
                    view.values
                )
            else:
                ragged[name] = ViewArray(view.values.copy(), view.row_splits)
        part = _Part(start, result.n_tokens, result.truncated, result.tokens, ragged)
        self._parts.append(part)
        self._queue_ms += result.queue_ms
        self._tokenize_ms += result.tokenize_ms
        self._compute_ms += result.compute_ms
        self.rows += rows

    def finish(self, empty: Callable[[str], Embeddings]) -> Encoding:
        """Return the whole; `empty(name)` is a view's value when there was no row at all."""
        parts = self._parts
        if len(parts) > 1:
            parts.sort(key=attrgetter("start"))
        encoding = Encoding(
            views={
                name: self._finished(name, parts) if parts else empty(name)
                for name in self._view_names
            },
            n_tokens=np.array([n for part in parts for n in part.n_tokens], dtype=np.int64),
            truncated=_flags(parts, self.rows),
            queue_ms=self._queue_ms,
            tokenize_ms=self._tokenize_ms,
            compute_ms=self._compute_ms,
        )
        if self._show_tokens:
            encoding.tokens = [row for part in parts for row in _token_texts(part)]
            encoding.token_ids = [row for part in parts for row in _token_rows(part, "ids")]
            encoding.segment_ids = [
                row for part in parts for row in _token_rows(part, "segment_ids")
            ]
        return encoding

    def _pooled_array(self, name: str, rows: int, values: Array) -> Array:
        array = self._pooled.get(name)
        if array is None:
            array = np.empty((max(self._capacity, rows), values.shape[1]), values.dtype)
        elif array.shape[1] != values.shape[1] or array.dtype != values.dtype:
            raise MalformedMessage(f"view {name!r} changed from {array.shape[1:]} {array.dtype}")
        elif len(array) < rows:
            grown = np.empty((max(2 * len(array), rows), array.shape[1]), array.dtype)
            grown[: len(array)] = array
            array = grown
        self._pooled[name] = array
        return array

    def _finished(self, name: str, parts: Sequence[_Part]) -> Embeddings:
        if name in self._pooled:
            array = self._pooled[name]
            return array if len(array) == self.rows else array[: self.rows].copy()
        return [row for part in parts for row in _split(part.ragged[name])]


def _split(view: ViewArray) -> list[Array]:
    splits = view.row_splits or ()
    return [view.values[splits[i] : splits[i + 1]] for i in range(len(splits) - 1)]


def _flags(parts: Sequence[_Part], rows: int) -> Array:
    flags = np.zeros(rows, dtype=bool)
    start = 0
    for part in parts:
        if part.truncated:
            flags[[start + row for row in part.truncated]] = True
        start += len(part.n_tokens)
    return flags


def _token_texts(part: _Part) -> list[list[str]]:
    if part.tokens is None:
        return []
    texts, splits = part.tokens.texts, _splits(part.n_tokens)
    return [list(texts[splits[i] : splits[i + 1]]) for i in range(len(part.n_tokens))]


def _token_rows(part: _Part, name: str) -> list[Array]:
    if part.tokens is None:
        return []
    values, splits = getattr(part.tokens, name).copy(), _splits(part.n_tokens)
    return [values[splits[i] : splits[i + 1]] for i in range(len(part.n_tokens))]


def _splits(n_tokens: Sequence[int]) -> list[int]:
    splits = [0]
    for n in n_tokens:
        splits.append(splits[-1] + n)
    return splits

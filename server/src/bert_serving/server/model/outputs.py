"""The arrays of a batch's answers: filled a micro-batch at a time, handed out a request at a time.

Most batches want the same view of all their rows, so there is one array for each distinct
view of a batch, and each request gets a slice of it, without a copy. Plain NumPy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bert_serving.client.messages import ViewArray
from bert_serving.client.view import View

from .layers import ENCODER_HEADS, resolve_layers
from .packing import MicroBatch
from .replica import EncodeRequest, ModelInfo, TokenRows


@dataclass(frozen=True)
class Output:
    """The values of one distinct view, for all requests of a batch that want it.

    Attributes:
        view: the view.
        layers: its layers, without negative numbers; none where a head is wanted.
        head: the encoder's head that it is made of; None where it is made of layers.
        values: a line for each row (of a token-level view: each token) of those requests.
        slices: which lines are whose, by the request's number.
        lines: the line of each row (or token) of the batch, -1 where the view is not
            wanted; None where it is wanted everywhere, so that they are the same.

    """

    view: View
    layers: tuple[int, ...]
    head: str | None
    values: npt.NDArray[Any]
    slices: dict[int, slice]
    lines: npt.NDArray[np.int64] | None

    def put(self, batch: MicroBatch, values: npt.NDArray[Any]) -> None:
        """Store a micro-batch's values, which are in its own order."""
        lines = batch.tokens if self.view.pooling == "none" else batch.rows
        if self.lines is not None:
            lines = self.lines[lines]
            values, lines = values[lines >= 0], lines[lines >= 0]
        self.values[lines] = values


def make_outputs(requests: Sequence[EncodeRequest], info: ModelInfo) -> list[Output]:
    """Return the arrays for all distinct views of a batch, still empty."""
    wanting: dict[View, list[int]] = {}
    for number, request in enumerate(requests):
        for view in dict.fromkeys(request.views.values()):
            wanting.setdefault(view, []).append(number)
    return [_make_output(view, numbers, requests, info) for view, numbers in wanting.items()]


def _make_output(
    view: View, numbers: Sequence[int], requests: Sequence[EncodeRequest], info: ModelInfo
) -> Output:
    sizes = [_size(view, request.rows) for request in requests]
    slices = {}
    end = 0
    for number in numbers:
        slices[number] = slice(end, end + sizes[number])
        end += sizes[number]
    lines = None
    if len(numbers) < len(requests):
        lines = np.full(sum(sizes), -1, np.int64)
        starts = np.cumsum(sizes) - sizes
        for number, own in slices.items():
            first = int(starts[number])
            lines[first : first + sizes[number]] = np.arange(own.start, own.stop)
    # zeros, not empty: a row without any token has no value that anybody would put
    values = np.zeros((end, view.width(info.hidden_size, info.head_sizes)), view.dtype)
    head = ENCODER_HEADS.get(view.pooling or "")
    layers = resolve_layers(view.layers or (), info.num_layers) if head is None else ()
    return Output(view, layers, head, values, slices, lines)


def make_answers(
    requests: Sequence[EncodeRequest], outputs: Sequence[Output]
) -> list[dict[str, ViewArray]]:
    """Return each request's arrays by the names of its views."""
    by_view = {output.view: output for output in outputs}
    answers = []
    for number, request in enumerate(requests):
        answer = {}
        for name, view in request.views.items():
            output = by_view[view]
            splits = _row_splits(request.rows) if view.pooling == "none" else None
            answer[name] = ViewArray(output.values[output.slices[number]], splits)
        answers.append(answer)
    return answers


def asked_rows(requests: Sequence[EncodeRequest]) -> npt.NDArray[np.int64]:
    """Return the numbers, in the batch, of the rows that anybody wants a view of."""
    is_asked = np.array([bool(request.views) for request in requests], np.bool_)
    sizes = [len(request.rows) for request in requests]
    return is_asked.repeat(sizes).nonzero()[0]


def join_rows(requests: Sequence[EncodeRequest]) -> TokenRows:
    """Return the rows of all requests of a batch, one after the other."""
    if len(requests) == 1:
        return requests[0].rows
    every = [request.rows for request in requests]
    return TokenRows(
        ids=np.concatenate([rows.ids for rows in every]),
        segment_ids=np.concatenate([rows.segment_ids for rows in every]),
        special=np.concatenate([rows.special for rows in every]),
        lengths=np.concatenate([rows.lengths for rows in every]),
        truncated=np.concatenate([rows.truncated for rows in every]),
    )


def _size(view: View, rows: TokenRows) -> int:
    return len(rows.ids) if view.pooling == "none" else len(rows)


def _row_splits(rows: TokenRows) -> list[int]:
    splits: list[int] = np.cumsum(rows.lengths, dtype=np.int64).tolist()
    return [0, *splits]

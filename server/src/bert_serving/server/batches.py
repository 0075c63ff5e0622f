"""A worker's batch: reading its requests, computing them, and wording the answers.

Every request of a batch gets an answer. What is wrong with one request is that
request's error; when the model fails on a batch, each request is tried alone.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from bert_serving.client.errors import ProtocolError
from bert_serving.client.frames import decode_header
from bert_serving.client.messages import (
    Encode,
    ErrorAnswer,
    Result,
    RowTokens,
    ViewArray,
)
from bert_serving.client.protocol import parse_encode
from bert_serving.client.rows import Row, unpack_rows
from bert_serving.client.view import View

from .answer_sizes import answer_bytes, refusals
from .model.replica import BetweenLayers, DeviceLost, EncodeRequest, Replica, TokenRows, nothing
from .worker_protocol import Answers, Batch

log = logging.getLogger("bert_serving.worker")

MAX_KNOWN_VIEWS = 1024


@dataclass(slots=True)
class _Entry:
    """One request on its way through the worker."""

    number: int  # its place in the batch
    id: int = 0
    message: Encode | None = None
    rows: Sequence[Row] = ()
    request: EncodeRequest | None = None
    answer: Result | ErrorAnswer | None = None


@dataclass(slots=True)
class PreparedBatch:
    """A batch whose rows are tokenized, ready to be computed."""

    id: int
    entries: Sequence[_Entry]
    queued_ms: Sequence[float]
    tokenize_ms: float
    prepared_at: float

    @property
    def unanswered(self) -> Sequence[_Entry]:
        """Return the entries that are not refused: what is to be computed."""
        return [entry for entry in self.entries if entry.answer is None]


@dataclass(slots=True)
class ComputedBatch:
    """What the model made of each entry that was not refused, or why it could not."""

    arrays: Sequence[dict[str, ViewArray] | ErrorAnswer]
    started_at: float
    compute_ms: float


class BatchReader:
    """Reads batches for one replica: all of a worker's work that needs no device."""

    def __init__(self, replica: Replica, default_view: View) -> None:
        self._replica = replica
        self._default_view = default_view
        self._known_views: dict[View, View] = {}

    def prepare(self, batch: Batch) -> PreparedBatch:
        """Return a batch with its rows tokenized, those of like requests together."""
        started = time.monotonic()
        entries = [self._read(n, frames) for n, frames in enumerate(batch.requests)]
        groups: dict[tuple[bool, int | None], list[_Entry]] = {}
        for entry in entries:
            if entry.message is not None and entry.answer is None:
                key = (entry.message.is_tokenized, entry.message.max_length)
                groups.setdefault(key, []).append(entry)
        for group in groups.values():
            self._tokenize(group)
        self._refuse_too_large(entries)
        prepared_at = time.monotonic()
        tokenize_ms = round((prepared_at - started) * 1000, 3)
        waited_ms = (started - batch.sent_at) * 1000
        queued_ms = [before + waited_ms for before in batch.queued_ms]
        return PreparedBatch(batch.id, entries, queued_ms, tokenize_ms, prepared_at)

    def _read(self, number: int, frames: Sequence[Any]) -> _Entry:
        """Return a request with its views filled and checked; its answer if it is refused."""
        entry = _Entry(number)
        try:
            header = decode_header(frames[0])
            entry.id = header["id"] if type(header.get("id")) is int else 0
            message = parse_encode(header, frames[1:])
            rows = unpack_rows(frames[1], message.rows, is_tokenized=message.is_tokenized)
            views = {name: self._filled(view) for name, view in message.views.items()}
        except (ProtocolError, ValueError) as error:
            entry.answer = ErrorAnswer(entry.id, "invalid_request", str(error))
        else:
            entry.message, entry.rows = message, rows
            entry.request = EncodeRequest(_NO_ROWS, views)
        return entry

    def _filled(self, view: View) -> View:
        """Return a view with no field open that this replica can give; nearly all are known."""
        filled = self._known_views.get(view)
        if filled is None:
            filled = view.filled_from(self._default_view)
            self._replica.check_view(filled)
            if len(self._known_views) < MAX_KNOWN_VIEWS:
                self._known_views[view] = filled
        return filled

    def _tokenize(self, group: Sequence[_Entry]) -> None:
        first = group[0].message
        assert first is not None
        try:
            tokens = self._replica.tokenize(
                [row for entry in group for row in entry.rows],
                is_tokenized=first.is_tokenized,
                max_length=first.max_length,
            )
        except Exception as error:  # noqa: BLE001  # the tokenizer's own; answered, not swallowed
            if len(group) > 1:
                for entry in group:
                    self._tokenize([entry])
            else:
                group[0].answer = ErrorAnswer(group[0].id, "invalid_request", str(error))
            return
        for entry, rows in zip(group, _cut(tokens, [len(e.rows) for e in group]), strict=True):
            assert entry.request is not None
            entry.request = EncodeRequest(rows, entry.request.views)

    def _refuse_too_large(self, entries: Sequence[_Entry]) -> None:
        asked = [(e, e.request) for e in entries if e.request is not None and e.answer is None]
        sizes = [answer_bytes(request, self._replica.info) for _, request in asked]
        for place, refusal in refusals([entry.id for entry, _ in asked], sizes).items():
            asked[place][0].answer = refusal


def compute(
    replica: Replica,
    batch: PreparedBatch,
    between_layers: BetweenLayers = nothing,
    max_tokens: int | None = None,
) -> ComputedBatch:
    """Return what the model makes of a prepared batch; see `Replica.encode`."""
    started = time.monotonic()
    encode = partial(replica.encode, between_layers=between_layers, max_tokens=max_tokens)
    arrays = _encode(encode, batch.unanswered)
    return ComputedBatch(arrays, started, round((time.monotonic() - started) * 1000, 3))


def word(replica: Replica, batch: PreparedBatch, computed: ComputedBatch) -> Answers:
    """Return the answers to a batch that is computed."""
    for entry, views in zip(batch.unanswered, computed.arrays, strict=True):
        if isinstance(views, ErrorAnswer):
            entry.answer = views
        else:
            entry.answer = _result(replica, entry, views, batch, computed)
    return Answers(
        batch.id,
        [entry.answer.to_frames()[1:] for entry in batch.entries if entry.answer is not None],
        [_token_count(entry) for entry in batch.entries],
    )


def _encode(
    encode: Callable[[list[EncodeRequest]], list[dict[str, ViewArray]]], entries: Sequence[_Entry]
) -> Sequence[dict[str, ViewArray] | ErrorAnswer]:
    requests = [entry.request for entry in entries if entry.request is not None]
    try:
        return encode(requests) if requests else []
    except DeviceLost:
        raise  # it is no request's fault, and no request could be answered
    except Exception as error:
        if len(entries) == 1:
            log.exception("the model failed on a request of %d rows", len(entries[0].rows))
            cause = f"the model failed on this request: {type(error).__name__}: {error}"
            return [ErrorAnswer(entries[0].id, "worker_failed", cause)]
        log.warning("the model failed on a batch of %d requests: trying each alone", len(entries))
    return [answer for entry in entries for answer in _encode(encode, [entry])]


def _result(
    replica: Replica,
    entry: _Entry,
    views: dict[str, ViewArray],
    batch: PreparedBatch,
    computed: ComputedBatch,
) -> Result:
    assert entry.message is not None and entry.request is not None
    rows = entry.request.rows
    tokens = None
    if entry.message.show_tokens:
        tokens = RowTokens(replica.token_texts(rows.ids), rows.ids, rows.segment_ids)
    waited_ms = (computed.started_at - batch.prepared_at) * 1000  # behind the batch before it
    return Result(
        id=entry.id,
        views=views,
        n_tokens=rows.lengths.tolist(),
        truncated=np.flatnonzero(rows.truncated).tolist() if rows.truncated.any() else [],
        tokens=tokens,
        queue_ms=round(batch.queued_ms[entry.number] + waited_ms, 3),
        tokenize_ms=batch.tokenize_ms,
        compute_ms=computed.compute_ms,
    )


def _token_count(entry: _Entry) -> int:
    return len(entry.request.rows.ids) if entry.request is not None else 0


def _cut(tokens: TokenRows, sizes: Sequence[int]) -> list[TokenRows]:
    """Return rows as parts of so many rows each, without copying them."""
    if len(sizes) == 1:
        return [tokens]
    ends = np.concatenate([[0], np.cumsum(tokens.lengths)])
    parts, row = [], 0
    for size in sizes:
        start, end = ends[row], ends[row + size]
        parts.append(
            TokenRows(
                tokens.ids[start:end],
                tokens.segment_ids[start:end],
                tokens.special[start:end],
                tokens.lengths[row : row + size],
                tokens.truncated[row : row + size],
            )
        )
        row += size
    return parts


_NO_ROWS = TokenRows(
    ids=np.empty(0, np.int32),
    segment_ids=np.empty(0, np.uint8),
    special=np.empty(0, np.bool_),
    lengths=np.empty(0, np.int32),
    truncated=np.empty(0, np.bool_),
)

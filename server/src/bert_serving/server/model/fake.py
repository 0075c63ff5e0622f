"""A replica in NumPy that costs about a microsecond a row: for tests of all that is not the model.

Embeddings are a hash of the row, so a test can say what each must be (`fake_embedding`),
and texts of the form `fake:...` make the replica misbehave on purpose. It implements the
whole `Replica` interface and must never import torch.

Texts that misbehave, as a whole text, inside `encode`:
    fake:crash          the process ends at once, with status 1
    fake:raise          RuntimeError
    fake:hang           never returns
    fake:freeze         never returns, and lets no other thread of the process go on
    fake:lose_device    DeviceLost, from then on whatever is encoded
    fake:sleep SECONDS  returns that much later

Options of the model's name, such as `fake:384?boot_s=2&row_us=100`:
    boot=fail    loading fails with ModelLoadError
    boot=freeze  loading never ends, and lets no other thread of the process go on
    boot_s=N     loading takes so many seconds
    row_us=N     `encode` sleeps so many microseconds a row
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Any
from urllib.parse import parse_qsl

import numpy as np
import numpy.typing as npt

from bert_serving.client.messages import ViewArray
from bert_serving.client.rows import Row
from bert_serving.client.view import View

from .fake_rows import (
    CRASH,
    FREEZE,
    HANG,
    LOSE_DEVICE,
    MAX_ID,
    RAISE,
    SEP,
    SLEEP,
    cls_ids,
    row_crc,
    rows_to_ids,
    token_text,
)
from .layers import check_view
from .replica import (
    BetweenLayers,
    DeviceLost,
    EncodeRequest,
    ModelInfo,
    ModelLoadError,
    TokenRows,
    nothing,
)

NUM_LAYERS = 12
MAX_LENGTH = 512
MAX_BATCH_TOKENS = 16384
MAX_DIM = 1 << 16


@dataclass(frozen=True)
class FakeOptions:
    """What a fake model's name says.

    Attributes:
        dim: dimensions of an embedding.
        boot: how loading ends: ok, fail or freeze.
        boot_s: seconds that loading takes.
        row_us: microseconds that `encode` sleeps a row.

    """

    dim: int
    boot: str = "ok"
    boot_s: float = 0.0
    row_us: float = 0.0

    @classmethod
    def parse(cls, name: str) -> FakeOptions:
        """Return the options in a name such as `fake:384?boot_s=2`.

        Raises:
            ModelLoadError: no such option, or a value that is no number.

        """
        dim, _, query = name.removeprefix("fake:").partition("?")
        if not dim.isdecimal() or not 0 < int(dim) <= MAX_DIM:
            raise ModelLoadError(f"model_dir={name!r}: expected fake:DIM, DIM 1 to {MAX_DIM}")
        options = dict(parse_qsl(query, keep_blank_values=True))
        boot = options.pop("boot", "ok")
        try:
            numbers = {key: float(options.pop(key, 0)) for key in ("boot_s", "row_us")}
        except ValueError as error:
            raise ModelLoadError(f"model_dir={name!r}: {error}") from None
        if options or boot not in ("ok", "fail", "freeze"):
            raise ModelLoadError(
                f"model_dir={name!r}: known options are boot=ok|fail|freeze, boot_s=N, row_us=N"
            )
        return cls(int(dim), boot, **numbers)


class FakeReplica:
    """Twelve layers that all say the same: the hash of the row, or of a word's place in it.

    A text has a word more than it has spaces; a row also has [CLS] and [SEP].
    """

    def __init__(
        self,
        dim: int,
        *,
        row_us: float = 0.0,
        max_length: int = MAX_LENGTH,
        max_batch_tokens: int = MAX_BATCH_TOKENS,
    ) -> None:
        self._multipliers = _multipliers(dim)
        self._row_s = row_us / 1e6
        self._is_device_lost = False
        self.max_batch_tokens = max_batch_tokens
        self.info = ModelInfo(
            name=f"fake:{dim}",
            architecture="fake",
            num_layers=NUM_LAYERS,
            hidden_size=dim,
            max_length=max_length,
            vocab_size=MAX_ID + 1,
            dtype="float32",
            device="cpu",
        )

    @classmethod
    def load(
        cls, name: str, *, max_length: int | None, max_batch_tokens: int | None
    ) -> FakeReplica:
        """Return the replica that a name such as `fake:384?row_us=100` asks for.

        Raises:
            ModelLoadError: the name is no good, or says `boot=fail`.

        """
        options = FakeOptions.parse(name)
        time.sleep(options.boot_s)
        if options.boot == "freeze":
            _freeze()
        if options.boot == "fail":
            raise ModelLoadError(f"model_dir={name!r}: told to fail")
        return cls(
            options.dim,
            row_us=options.row_us,
            max_length=max_length or MAX_LENGTH,
            max_batch_tokens=max_batch_tokens or MAX_BATCH_TOKENS,
        )

    def tokenize(
        self,
        rows: Sequence[Row],
        *,
        is_tokenized: bool,  # noqa: ARG002  # a list of tokens can be told from a text
        max_length: int | None,
    ) -> TokenRows:
        """Return rows as hashes; see `Replica`."""
        limit = min(max_length or self.info.max_length, self.info.max_length)
        if limit < 3:
            raise ValueError(f"max_length={limit}: expected at least 3, for [CLS], a token, [SEP]")
        return rows_to_ids(rows, limit)

    def token_texts(self, ids: npt.NDArray[np.int32]) -> list[str]:
        """Return `[CLS]`, `[SEP]`, or `wHASH` for each id."""
        return [token_text(token) for token in ids.tolist()]

    def check_view(self, view: View) -> None:
        """Raise ValueError for a layer beyond the twelve, or a head."""
        check_view(view, self.info)

    def advice(self, default_view: View) -> str | None:  # noqa: ARG002  # any view will do
        """Return None: there is nothing to know."""
        return None

    def encode(
        self,
        requests: Sequence[EncodeRequest],
        *,
        between_layers: BetweenLayers = nothing,
        max_tokens: int | None = None,  # noqa: ARG002  # it computes rows one by one
    ) -> list[dict[str, ViewArray]]:
        """Return each request's arrays; see `Replica`."""
        if self._row_s:
            seconds = self._row_s * sum(len(request.rows) for request in requests)
            for _ in range(NUM_LAYERS):
                time.sleep(seconds / NUM_LAYERS)
                between_layers()
        for request in requests:
            if len(request.rows.ids) and request.rows.ids.min() < SEP:
                self._is_device_lost |= LOSE_DEVICE in request.rows.ids
                _misbehave(request.rows.ids)
        if self._is_device_lost:
            raise DeviceLost("the fake device was told to be lost")
        answers: list[dict[str, ViewArray]] = [{} for _ in requests]
        wanted: dict[View, list[tuple[int, str]]] = {}
        for number, request in enumerate(requests):
            for name, view in request.views.items():
                wanted.setdefault(view, []).append((number, name))
        for view, places in wanted.items():
            arrays = self._view_arrays([requests[number].rows for number, _ in places], view)
            for (number, name), array in zip(places, arrays, strict=True):
                answers[number][name] = array
        return answers

    def _view_arrays(self, rows: Sequence[TokenRows], view: View) -> list[ViewArray]:
        """Return one view of several requests, computed at once."""
        splits = [[0, *np.cumsum(part.lengths).tolist()] for part in rows]
        if view.pooling == "none":
            ids = [part.ids for part in rows]
        else:
            ids = [part.ids[ends[:-1]] for part, ends in zip(rows, splits, strict=True)]
        values = _view_values(np.concatenate(ids), self._multipliers, view)
        arrays, start = [], 0
        for part, ends in zip(ids, splits, strict=True):
            own = values[start : start + len(part)]
            arrays.append(ViewArray(own, ends if view.pooling == "none" else None))
            start += len(part)
        return arrays


def fake_embedding(row: Row, dim: int) -> npt.NDArray[np.float32]:
    """Return what every pooled view of `dim` dimensions has for a row, float32 `[dim]`.

    Element j is `crc32(row) * (odd number j)` as a signed 32-bit integer over 2**32, so in
    [-0.5, 0.5). A text, a pair and a list of tokens differ even where their words agree.
    Where a view is wider than the model (`mean_max`, several layers side by side) the
    vector is repeated; `dims`, `normalize` and `dtype` come after that.
    """
    ids = cls_ids(np.array([row_crc(row)], np.uint32))
    return _vectors(ids, _multipliers(dim)).ravel()


def fake_tokens(row: Row) -> list[str]:
    """Return the token texts of a row, uncut: `[CLS]`, a word each, `[SEP]`."""
    return [token_text(token) for token in rows_to_ids([row], MAX_ID).ids.tolist()]


def fake_token_embeddings(row: Row, dim: int) -> npt.NDArray[np.float32]:
    """Return what a token-level view has for a row, float32 `[tokens, dim]`."""
    return _vectors(rows_to_ids([row], MAX_ID).ids, _multipliers(dim))


def _misbehave(ids: npt.NDArray[np.int32]) -> None:
    for command in ids[ids < SEP].tolist():
        if command == CRASH:
            os._exit(1)
        if command == RAISE:
            raise RuntimeError("fake:raise: told to fail")
        while command == HANG:
            time.sleep(3600)
        if command == FREEZE:
            _freeze()
        if command <= SLEEP:
            time.sleep((SLEEP - command) / 1000)


def _freeze() -> None:
    sum(repeat(0))  # in C, and with the interpreter's lock, for ever


def _multipliers(dim: int) -> npt.NDArray[np.int32]:
    odd = np.arange(dim, dtype=np.uint32) * np.uint32(0x9E3779B8) + np.uint32(0x85EBCA6B)
    return odd.view(np.int32)


def _vectors(
    ids: npt.NDArray[np.int32], multipliers: npt.NDArray[np.int32]
) -> npt.NDArray[np.float32]:
    values = np.empty((len(ids), len(multipliers)), np.float32)
    # one pass: the product wraps in int32 and is stored as float32
    np.multiply(ids[:, None], multipliers, out=values, dtype=np.int32, casting="unsafe")
    values *= np.float32(2.0**-32)
    return values


def _view_values(
    ids: npt.NDArray[np.int32], multipliers: npt.NDArray[np.int32], view: View
) -> npt.NDArray[Any]:
    values = _vectors(ids, multipliers)
    width = view.width(len(multipliers), {})
    if width > values.shape[1]:
        values = np.tile(values, -(-width // values.shape[1]))
    if width < values.shape[1]:
        values = np.ascontiguousarray(values[:, :width])
    if view.normalize:
        values /= np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12)
    return values.astype(view.dtype or "float32", copy=False)

"""An encoder as a `Replica`: requests in, arrays out, on any device.

It cuts a batch into micro-batches and has each computed and pooled. How layers are computed
is the encoder's business, how views are pooled `pooling`'s and `auto_pooling`'s, whose values
are whose `outputs`'s.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import NoReturn

import numpy as np
import numpy.typing as npt
import torch

from bert_serving.client.messages import ViewArray
from bert_serving.client.rows import Row
from bert_serving.client.view import DEFAULT_VIEW, View

from .arrivals import Arrivals
from .calibration import CPU_BUDGETS, CUDA_BUDGETS, Calibration, calibrate
from .device import free_memory, is_lost, is_out_of_memory, to_device
from .encoder import Encoder, States, TokenBatch, Wanted
from .heads import Activation, softmax
from .layers import check_view, client_heads
from .outputs import Output, asked_rows, join_rows, make_answers, make_outputs
from .packing import MicroBatch, pack
from .pooling import join, pool, shape
from .replica import (
    BetweenLayers,
    DeviceLost,
    EncodeRequest,
    ModelInfo,
    TokenRows,
    nothing,
)
from .segments import Segments, row_splits
from .sentence_recipe import SentenceRecipe
from .tokenizer import Tokenizer

logger = logging.getLogger(__name__)

LEAST_TOKENS = 16
"""A device that had memory for a row of so many once, and has none now, is lost to this process."""

_NO_RECIPE = SentenceRecipe(None, "it is not known what sentence-transformers would do")


class EncoderReplica:
    """One encoder on one device; see `Replica`.

    Args:
        encoder: what computes layers and heads.
        tokenizer: of its model.
        info: what is served, but for the heads, which the encoder knows.
        recipe: what the pooling `auto` is.
        label_activation: what makes probabilities of the scores of the encoder's labels.
        mask_cls_sep: leave special tokens out of pooling.
        max_batch_tokens: tokens computed at a time; halved when memory runs out.
        has_segments: take all rows of a micro-batch at once where they are pooled, not a
            group of equal length at a time.

    """

    def __init__(
        self,
        encoder: Encoder,
        tokenizer: Tokenizer,
        info: ModelInfo,
        *,
        recipe: SentenceRecipe = _NO_RECIPE,
        label_activation: Activation = softmax,
        mask_cls_sep: bool = False,
        max_batch_tokens: int = CPU_BUDGETS[-1],
        has_segments: bool = False,
    ) -> None:
        self._encoder = encoder
        self._tokenizer = tokenizer
        self._device = torch.device(info.device)
        self._mask_cls_sep = mask_cls_sep
        self._recipe = recipe
        self._label_activation = label_activation
        self._has_segments = has_segments
        head_sizes = {**client_heads(encoder.head_sizes), **recipe.head_sizes}
        self.info = replace(info, head_sizes=head_sizes)
        self.max_batch_tokens = max_batch_tokens

    def tokenize(
        self, rows: Sequence[Row], *, is_tokenized: bool, max_length: int | None
    ) -> TokenRows:
        """Return rows as token ids; see `Replica`."""
        limit = min(max_length or self.info.max_length, self.info.max_length)
        tokens = self._tokenizer.tokenize(rows, is_tokenized=is_tokenized, max_length=limit)
        if self._encoder.num_segments == 1 and tokens.segment_ids.any():
            raise ValueError("the model takes no pairs: it has one segment embedding only")
        return tokens

    def token_texts(self, ids: npt.NDArray[np.int32]) -> list[str]:
        """Return the token strings of vocabulary ids."""
        return self._tokenizer.token_texts(ids)

    def check_view(self, view: View) -> None:
        """Raise ValueError for a layer or a head that the model does not have."""
        self._recipe.check_view(view, self.info.hidden_size)
        check_view(view, self.info)

    def advice(self, default_view: View) -> str | None:
        """Return what to type for the vectors that the model was made for; see `Replica`."""
        return self._recipe.advice(default_view)

    @torch.inference_mode()
    def encode(
        self,
        requests: Sequence[EncodeRequest],
        *,
        between_layers: BetweenLayers = nothing,
        max_tokens: int | None = None,
    ) -> list[dict[str, ViewArray]]:
        """Return each request's arrays by view name; see `Replica`."""
        rows = join_rows(requests) if requests else None
        outputs = make_outputs(requests, self.info)
        if rows is not None:
            max_tokens = min(max_tokens or self.max_batch_tokens, self.max_batch_tokens)
            batches = pack(rows.lengths, asked_rows(requests), max_tokens)
            try:
                self._compute_batches(batches, rows, outputs, between_layers)
            except RuntimeError as error:
                if is_lost(self._device):
                    raise DeviceLost(f"{self._device} computes no more: {error}") from error
                raise
        return make_answers(requests, outputs)

    def calibrate(self) -> Calibration:
        """Measure how many tokens to compute at a time, and set `max_batch_tokens` to it."""
        budgets = CPU_BUDGETS if self._device.type == "cpu" else CUDA_BUDGETS
        self.max_batch_tokens = budgets[-1]
        # interrupted for nothing, but interrupted, as large requests are
        encode = partial(self._encode_lengths, between_layers=lambda: None)
        calibration = calibrate(encode, max_length=self.info.max_length, budgets=budgets)
        # less than the best where that did not fit into the memory, and was computed in parts
        self.max_batch_tokens = min(self.max_batch_tokens, calibration.max_batch_tokens)
        return replace(calibration, max_batch_tokens=self.max_batch_tokens)

    def warm_up(self) -> None:
        """Compute one row, so that the first request does not pay for what is done once."""
        self._encode_lengths([min(LEAST_TOKENS, self.info.max_length)])

    def _compute_batches(
        self,
        micro_batches: Sequence[MicroBatch],
        rows: TokenRows,
        outputs: Sequence[Output],
        between_layers: BetweenLayers,
    ) -> None:
        """Compute micro-batches; where memory runs out, what is left in smaller ones."""
        arrivals = Arrivals(self._device)
        wanted = self._wanted(outputs)
        batches = deque(micro_batches)
        while batches:
            try:
                self._compute(batches[0], rows, wanted, outputs, arrivals, between_layers)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                cause = " ".join(str(error).split())[:200]
            else:
                batches.popleft()
                continue
            # not while the error is handled: its traceback holds what is to be freed
            free_memory(self._device)
            if len(batches[0].rows) == 1:
                self._give_up(len(batches[0].tokens), cause)
            self._halve_budget(len(batches[0].tokens), cause)
            left = np.concatenate([batch.rows for batch in batches])
            batches = deque(pack(rows.lengths, left, self.max_batch_tokens))
        arrivals.collect()

    def _give_up(self, tokens: int, cause: str) -> NoReturn:
        """Say that a single row does not fit.

        Raises:
            RuntimeError: a shorter one does.
            DeviceLost: not even the shortest one fits any more.

        """
        least = min(LEAST_TOKENS, self.info.max_length)
        if tokens <= least:
            raise DeviceLost(f"no memory for {tokens} tokens on {self.info.device}: {cause}")
        self._encode_lengths([least])
        raise RuntimeError(
            f"not enough memory on {self.info.device} for one row of {tokens} tokens: cut "
            f"rows to fewer, ask for fewer layers, or start fewer workers there ({cause})"
        )

    def _halve_budget(self, tokens: int, cause: str) -> None:
        """Take half of what did not fit as the budget."""
        self.max_batch_tokens = max(min(tokens, self.max_batch_tokens) // 2, 1)
        logger.warning(
            "out of memory on %s with %d tokens: %d at a time from now on (%s)",
            self.info.device,
            tokens,
            self.max_batch_tokens,
            cause,
        )

    def _compute(
        self,
        batch: MicroBatch,
        rows: TokenRows,
        wanted: Wanted,
        outputs: Sequence[Output],
        arrivals: Arrivals,
        between_layers: BetweenLayers,
    ) -> None:
        tokens = self._token_batch(batch, rows)
        states = self._encoder.forward(tokens, wanted, between_layers=between_layers)
        special = None
        if self._mask_cls_sep:
            special = to_device(rows.special[batch.tokens], self._device)
        for output in outputs:
            values = self._pool(states, output, tokens, special)
            arrivals.add(output, batch, shape(values, output.view))

    def _wanted(self, outputs: Sequence[Output]) -> Wanted:
        """Return what outputs are made of."""
        layers: set[int] = set()
        firsts: set[int] = set()
        for output in outputs:
            (firsts if self._is_of_firsts(output.view) else layers).update(output.layers)
        heads = frozenset(output.head for output in outputs if output.head is not None)
        return Wanted(frozenset(layers), frozenset(firsts), heads)

    def _is_of_firsts(self, view: View) -> bool:
        """Return whether a view takes each row's first token, and no other."""
        if view.pooling == "auto":
            return self._recipe.pooling is not None and self._recipe.pooling.is_of_firsts
        return view.pooling == "first"

    def _token_batch(self, batch: MicroBatch, rows: TokenRows) -> TokenBatch:
        """Return a micro-batch on the device, in one copy."""
        tokens = np.empty((3, len(batch.tokens)), np.int64)
        tokens[0] = rows.ids[batch.tokens]
        tokens[1] = rows.segment_ids[batch.tokens]
        tokens[2] = batch.positions
        ids, segment_ids, positions = to_device(tokens, self._device).unbind()
        segments = None
        if self._has_segments:
            segments = Segments(to_device(row_splits(batch.groups), self._device), positions)
        return TokenBatch(ids, segment_ids, positions, batch.groups, segments)

    def _pool(
        self,
        states: States,
        output: Output,
        batch: TokenBatch,
        special: torch.Tensor | None,
    ) -> torch.Tensor:
        if output.head is not None:
            values = states.heads[output.head].float()
            is_probability = output.view.pooling == "classification"
            return self._label_activation(values) if is_probability else values
        reduce = output.view.layer_reduce or "concat"
        auto = self._recipe.pooling if output.view.pooling == "auto" else None
        if self._is_of_firsts(output.view):
            values = join([states.firsts[layer] for layer in output.layers], reduce)
            return auto.finish(values) if auto else values
        values = join([states.layers[layer] for layer in output.layers], reduce)
        if auto:
            return auto(values, batch.groups, batch.segments)
        return pool(values, output.view.pooling or "mean", batch.groups, special, batch.segments)

    def _encode_lengths(
        self, lengths: Sequence[int], *, between_layers: BetweenLayers = nothing
    ) -> None:
        """Encode rows of so many tokens each by the default view, or what the model has of it."""
        view = DEFAULT_VIEW
        if self.info.num_layers < 2:
            view = replace(view, layers=(-1,))
        total = sum(lengths)
        rows = TokenRows(
            ids=np.arange(total, dtype=np.int32) % self._encoder.vocab_size,
            segment_ids=np.zeros(total, np.uint8),
            special=np.zeros(total, np.bool_),
            lengths=np.array(lengths, np.int32),
            truncated=np.zeros(len(lengths), np.bool_),
        )
        self.encode([EncodeRequest(rows, {"": view})], between_layers=between_layers)

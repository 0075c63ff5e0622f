"""An encoder as a `Replica`: requests in, arrays out, on any device.

It cuts a batch into micro-batches and has each computed and pooled. How layers are computed
is the encoder's business, how views are pooled `pooling`'s and `auto_pooling`'s, whose values
are whose `outputs`'s.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from bert_serving.client.messages import ViewArray
from bert_serving.client.rows import Row
from bert_serving.client.view import DEFAULT_VIEW, View

from .calibration import CPU_BUDGETS, Calibration, calibrate
from .encoder import Encoder, States, TokenBatch
from .heads import Activation, softmax
from .layers import check_view, client_heads
from .outputs import Output, asked_rows, join_rows, make_answers, make_outputs
from .packing import Group, MicroBatch, pack
from .pooling import join, pool, shape
from .replica import BetweenLayers, EncodeRequest, ModelInfo, TokenRows, nothing
from .sentence_recipe import SentenceRecipe
from .tokenizer import Tokenizer

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
        max_batch_tokens: tokens computed at a time.

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
    ) -> None:
        self._encoder = encoder
        self._tokenizer = tokenizer
        self._device = torch.device(info.device)
        self._mask_cls_sep = mask_cls_sep
        self._recipe = recipe
        self._label_activation = label_activation
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
        self, requests: Sequence[EncodeRequest], *, between_layers: BetweenLayers = nothing
    ) -> list[dict[str, ViewArray]]:
        """Return each request's arrays by view name; see `Replica`."""
        rows = join_rows(requests) if requests else None
        outputs = make_outputs(requests, self.info)
        if rows is not None:
            for batch in pack(rows.lengths, asked_rows(requests), self.max_batch_tokens):
                self._compute(batch, rows, outputs, between_layers)
        return make_answers(requests, outputs)

    def calibrate(self) -> Calibration:
        """Measure how many tokens to compute at a time, and set `max_batch_tokens` to it."""
        self.max_batch_tokens = CPU_BUDGETS[-1]
        calibration = calibrate(self._encode_lengths, max_length=self.info.max_length)
        self.max_batch_tokens = calibration.max_batch_tokens
        return calibration

    def warm_up(self) -> None:
        """Compute one row, so that the first request does not pay for what is done once."""
        self._encode_lengths([min(16, self.info.max_length)])

    def _compute(
        self,
        batch: MicroBatch,
        rows: TokenRows,
        outputs: Sequence[Output],
        between_layers: BetweenLayers,
    ) -> None:
        tokens = TokenBatch(
            self._tensor(rows.ids[batch.tokens]),
            self._tensor(rows.segment_ids[batch.tokens]),
            self._tensor(batch.positions),
            batch.groups,
        )
        layers = {layer for output in outputs for layer in output.layers}
        heads = {output.head for output in outputs if output.head is not None}
        states = self._encoder.forward(tokens, layers, heads, between_layers=between_layers)
        special = None
        if self._mask_cls_sep:
            special = torch.from_numpy(rows.special[batch.tokens]).to(self._device)
        for output in outputs:
            values = self._pool(states, output, batch.groups, special)
            output.put(batch, shape(values, output.view).cpu().numpy())

    def _pool(
        self,
        states: States,
        output: Output,
        groups: Sequence[Group],
        special: torch.Tensor | None,
    ) -> torch.Tensor:
        if output.head is not None:
            values = states.heads[output.head].float()
            is_probability = output.view.pooling == "classification"
            return self._label_activation(values) if is_probability else values
        if output.view.pooling == "auto":
            assert self._recipe.pooling is not None
            layers = [states.layers[layer] for layer in output.layers]
            return self._recipe.pooling(join(layers, output.view.layer_reduce or "concat"), groups)
        return pool(states.layers, output.layers, output.view, groups, special)

    def _tensor(self, values: npt.NDArray[Any]) -> torch.Tensor:
        return torch.from_numpy(values.astype(np.int64, copy=False)).to(self._device)

    def _encode_lengths(self, lengths: Sequence[int]) -> None:
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
        self.encode([EncodeRequest(rows, {"": view})])

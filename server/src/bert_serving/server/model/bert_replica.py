"""A BERT encoder as a `Replica`: requests in, arrays out, on any device.

It cuts a batch into micro-batches and has each computed and pooled. How layers are computed
is `bert`'s business, how views are pooled `pooling`'s, whose values are whose `outputs`'s.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from bert_serving.client.messages import ViewArray
from bert_serving.client.rows import Row
from bert_serving.client.view import DEFAULT_VIEW, View

from .bert import BertEncoder
from .bert_config import BertConfig
from .calibration import CPU_BUDGETS, Calibration, calibrate
from .checkpoint import find_checkpoint
from .device import check_memory, choose_device, choose_dtype
from .kernels import Attend, LinearMaker, PlainLinear, attend_fused
from .kernels_cpu import PackedLinear, attend_cpu, has_packed_linear
from .layers import resolve_layers
from .outputs import Output, asked_rows, join_rows, make_answers, make_outputs
from .packing import MicroBatch, pack
from .pooling import pool
from .replica import EncodeRequest, ModelInfo, ModelLoadError, TokenRows
from .tokenizer import Tokenizer, load_tokenizer

if TYPE_CHECKING:
    from .loading import ReplicaConfig

logger = logging.getLogger(__name__)


class BertReplica:
    """One BERT on one device; see `Replica`."""

    def __init__(
        self,
        encoder: BertEncoder,
        tokenizer: Tokenizer,
        info: ModelInfo,
        *,
        mask_cls_sep: bool = False,
        max_batch_tokens: int = CPU_BUDGETS[-1],
    ) -> None:
        self._encoder = encoder
        self._tokenizer = tokenizer
        self._device = torch.device(info.device)
        self._mask_cls_sep = mask_cls_sep
        self.info = info
        self.max_batch_tokens = max_batch_tokens

    def tokenize(
        self, rows: Sequence[Row], *, is_tokenized: bool, max_length: int | None
    ) -> TokenRows:
        """Return rows as token ids; see `Replica`."""
        limit = min(max_length or self.info.max_length, self.info.max_length)
        tokens = self._tokenizer.tokenize(rows, is_tokenized=is_tokenized, max_length=limit)
        if self._encoder.config.type_vocab_size < 2 and tokens.segment_ids.any():
            raise ValueError("the model takes no pairs: it has one segment embedding only")
        return tokens

    def token_texts(self, ids: npt.NDArray[np.int32]) -> list[str]:
        """Return the token strings of vocabulary ids."""
        return self._tokenizer.token_texts(ids)

    def check_view(self, view: View) -> None:
        """Raise ValueError for a layer that the model does not have."""
        resolve_layers(view.layers or (), self.info.num_layers)

    @torch.inference_mode()
    def encode(self, requests: Sequence[EncodeRequest]) -> list[dict[str, ViewArray]]:
        """Return each request's arrays by view name; see `Replica`."""
        rows = join_rows(requests) if requests else None
        outputs = make_outputs(requests, self.info)
        if rows is not None:
            for batch in pack(rows.lengths, asked_rows(requests), self.max_batch_tokens):
                self._compute(batch, rows, outputs)
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

    def _compute(self, batch: MicroBatch, rows: TokenRows, outputs: Sequence[Output]) -> None:
        states = self._encoder.hidden_states(
            self._tensor(rows.ids[batch.tokens]),
            self._tensor(rows.segment_ids[batch.tokens]),
            self._tensor(batch.positions),
            batch.groups,
            {layer for output in outputs for layer in output.layers},
        )
        special = None
        if self._mask_cls_sep:
            special = torch.from_numpy(rows.special[batch.tokens]).to(self._device)
        for output in outputs:
            values = pool(states, output.layers, output.view, batch.groups, special)
            output.put(batch, values.cpu().numpy())

    def _tensor(self, values: npt.NDArray[Any]) -> torch.Tensor:
        return torch.from_numpy(values.astype(np.int64, copy=False)).to(self._device)

    def _encode_lengths(self, lengths: Sequence[int]) -> None:
        """Encode rows of so many tokens each by the default view, or what the model has of it."""
        view = DEFAULT_VIEW
        if self.info.num_layers < 2:
            view = replace(view, layers=(-1,))
        total = sum(lengths)
        rows = TokenRows(
            ids=np.arange(total, dtype=np.int32) % self._encoder.config.vocab_size,
            segment_ids=np.zeros(total, np.uint8),
            special=np.zeros(total, np.bool_),
            lengths=np.array(lengths, np.int32),
            truncated=np.zeros(len(lengths), np.bool_),
        )
        self.encode([EncodeRequest(rows, {"": view})])


def load_bert(config: ReplicaConfig) -> BertReplica:
    """Return the replica of a BERT checkpoint, calibrated and warm.

    Raises:
        ModelLoadError: it cannot be served; the message names the cause in one line.

    """
    if config.num_threads is not None:
        torch.set_num_threads(config.num_threads)
    device = choose_device(config.device)
    dtype = choose_dtype(config.dtype, device)
    checkpoint = find_checkpoint(config.model_dir)
    bert_config = BertConfig.parse(checkpoint.read_config())
    tokenizer = load_tokenizer(
        checkpoint.directory,
        max_positions=bert_config.max_positions,
        lower_case=config.lower_case,
        parallel=device.type != "cpu",
    )
    if tokenizer.vocab_size > bert_config.vocab_size:
        raise ModelLoadError(
            f"the tokenizer has {tokenizer.vocab_size} tokens, "
            f"the model only {bert_config.vocab_size}: their files do not belong together"
        )
    check_memory(bert_config.num_weights() * dtype.itemsize, device)
    make_linear, attend = _kernels(device)
    encoder = BertEncoder(
        bert_config,
        checkpoint.read_weights(),
        device=device,
        dtype=dtype,
        make_linear=make_linear,
        attend=attend,
    )
    replica = BertReplica(
        encoder,
        tokenizer,
        _model_info(config, bert_config, checkpoint.name, tokenizer, device, dtype),
        mask_cls_sep=config.mask_cls_sep,
    )
    if config.max_batch_tokens is None:
        logger.info("calibrated: %s", replica.calibrate())
    else:
        replica.max_batch_tokens = config.max_batch_tokens
        replica.warm_up()
    return replica


def _kernels(device: torch.device) -> tuple[LinearMaker, Attend]:
    if device.type == "cpu":
        return PackedLinear if has_packed_linear() else PlainLinear, attend_cpu
    return PlainLinear, attend_fused


def _model_info(
    config: ReplicaConfig,
    bert_config: BertConfig,
    name: str,
    tokenizer: Tokenizer,
    device: torch.device,
    dtype: torch.dtype,
) -> ModelInfo:
    max_length = tokenizer.max_length
    if config.max_seq_len is not None:
        if config.max_seq_len > max_length:
            raise ModelLoadError(
                f"max_seq_len={config.max_seq_len}: the model takes at most {max_length} tokens"
            )
        max_length = config.max_seq_len
    return ModelInfo(
        name=name,
        architecture="bert",
        num_layers=bert_config.num_layers,
        hidden_size=bert_config.hidden_size,
        max_length=max_length,
        vocab_size=bert_config.vocab_size,
        dtype=str(dtype).removeprefix("torch."),
        device=str(device),
    )

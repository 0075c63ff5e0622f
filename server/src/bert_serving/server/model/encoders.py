"""From a checkpoint on disk to the replica that serves it: which encoder, kernels and device."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import torch

from .bert import BertEncoder
from .bert_config import BertConfig
from .checkpoint import find_checkpoint
from .device import check_memory, choose_device, choose_dtype
from .encoder_replica import EncoderReplica
from .kernels import Attend, LinearMaker, PlainLinear, attend_fused
from .kernels_cpu import PackedLinear, attend_cpu, has_packed_linear
from .replica import ModelInfo, ModelLoadError
from .tokenizer import Tokenizer, load_tokenizer

if TYPE_CHECKING:
    from .loading import ReplicaConfig

logger = logging.getLogger(__name__)


def load_encoder_replica(config: ReplicaConfig) -> EncoderReplica:
    """Return the replica of a checkpoint, calibrated and warm.

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
    replica = EncoderReplica(
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

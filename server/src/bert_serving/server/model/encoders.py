"""From a checkpoint on disk to the replica that serves it: which encoder, kernels and device."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import torch

from .bert import BertEncoder
from .bert_config import BertConfig
from .checkpoint import find_checkpoint
from .conversions import converted
from .device import check_memory, choose_device, choose_dtype
from .encoder_replica import EncoderReplica
from .families import find_family
from .heads import check_num_labels, find_heads, label_activation
from .kernels import Attend, LinearMaker, PlainLinear, attend_fused
from .kernels_cpu import PackedLinear, attend_cpu, has_packed_linear
from .replica import ModelInfo, ModelLoadError
from .sentence_recipe import SentenceRecipe, read_sentence_recipe
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
    checkpoint = converted(
        find_checkpoint(config.model_dir, config.tuned_model_dir),
        config.ckpt_name,
        config.config_name,
    )
    settings = checkpoint.read_config()
    family = find_family(settings)
    if family is None:
        raise ModelLoadError(
            f"config.json: model_type={settings.get('model_type')!r} cannot be served"
        )
    bert_config = family.parse_config(settings)
    recipe = read_sentence_recipe(checkpoint.directory, bert_config.hidden_size, device)
    tokenizer = load_tokenizer(
        checkpoint.tokenizer_directory,
        max_positions=bert_config.max_length,
        lower_case=config.lower_case,
        parallel=device.type != "cpu",
        no_special_token=config.no_special_token,
        lower_case_first=config.as_sentence_transformers
        and recipe.lower_case
        and config.lower_case is None,
    )
    if tokenizer.vocab_size > bert_config.vocab_size:
        raise ModelLoadError(
            f"the tokenizer has {tokenizer.vocab_size} tokens, "
            f"the model only {bert_config.vocab_size}: their files do not belong together"
        )
    check_memory(bert_config.num_weights() * dtype.itemsize, device)
    make_linear, attend = _kernels(device)
    weights = family.rename(checkpoint.read_weights())
    encoder = BertEncoder(
        bert_config,
        weights,
        device=device,
        dtype=dtype,
        make_linear=make_linear,
        attend=attend,
        heads=find_heads(weights, settings, bert_config.hidden_size, device),
        has_positions=not config.no_position_embeddings,
    )
    check_num_labels(config.num_labels, encoder.head_sizes)
    replica = EncoderReplica(
        encoder,
        tokenizer,
        _model_info(
            config,
            settings["model_type"],
            bert_config,
            checkpoint.name,
            tokenizer,
            recipe,
            device,
            dtype,
        ),
        recipe=recipe,
        label_activation=label_activation(settings, encoder.head_sizes),
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
    architecture: str,
    bert_config: BertConfig,
    name: str,
    tokenizer: Tokenizer,
    recipe: SentenceRecipe,
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
    elif config.as_sentence_transformers and recipe.max_length is not None:
        max_length = min(max_length, recipe.max_length)
    return ModelInfo(
        name=name,
        architecture=architecture,
        num_layers=bert_config.num_layers,
        hidden_size=bert_config.hidden_size,
        max_length=max_length,
        vocab_size=bert_config.vocab_size,
        dtype=str(dtype).removeprefix("torch."),
        device=str(device),
    )

"""From a checkpoint on disk to the replica that serves it: which encoder, kernels and device."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .bert import BertEncoder
from .bert_config import BertConfig
from .calibration import waited_s
from .checkpoint import Checkpoint, Weights, find_checkpoint
from .compiled import load_compiled
from .conversions import converted
from .cuda_graphs import GraphedEncoder
from .device import (
    check_memory,
    choose_device,
    choose_dtype,
    compiler_needed,
    limit_memory,
    make_current,
    state_dtype,
)
from .encoder import Encoder
from .encoder_replica import EncoderReplica
from .families import FAMILIES, find_family
from .heads import check_num_labels, find_heads, label_activation
from .kept_calibration import calibration_path, keep_calibration, read_calibration
from .kernels import Kernels
from .kernels_cpu import CpuKernels
from .kernels_cuda import CudaKernels, find_varlen_attend
from .kernels_int8 import Int8Kernels
from .machine import matrix_gflops
from .mapped_files import MappedFiles
from .product_choice import is_compiled_faster
from .replica import ModelInfo, ModelLoadError
from .sentence_recipe import SentenceRecipe, read_sentence_recipe
from .tokenizer import Tokenizer
from .tokenizer_files import load_tokenizer

if TYPE_CHECKING:
    from .loading import ReplicaConfig
    from .transformers_encoder import TransformersEncoder
    from .transformers_model import TransformersPlan

logger = logging.getLogger(__name__)

_LIMIT_LOOK_S = 0.2  # for the machine's best matrix product, for each of two shapes

# of its cores' time that it waited for; with more, others have spoilt what was measured
_MOST_WAITED = 0.2


def load_encoder_replica(config: ReplicaConfig) -> EncoderReplica:
    """Return the replica of a checkpoint, calibrated and warm.

    Raises:
        ModelLoadError: it cannot be served; the message names the cause in one line.

    """
    if config.num_threads is not None:
        torch.set_num_threads(config.num_threads)
    device = choose_device(config.device)
    make_current(device)
    limit_memory(config.gpu_memory_fraction, device)
    dtype = choose_dtype(config.dtype, device)
    checkpoint = converted(
        find_checkpoint(config.model_dir, config.tuned_model_dir),
        config.ckpt_name,
        config.config_name,
    )
    settings = checkpoint.read_config()
    family = find_family(settings)
    plan = family.parse_config(settings) if family else _transformers_plan(settings)
    recipe = read_sentence_recipe(checkpoint.directory, plan.hidden_size, device)
    tokenizer = load_tokenizer(
        checkpoint.tokenizer_directory,
        max_positions=plan.max_length,
        lower_case=config.lower_case,
        parallel=device.type != "cpu",
        no_special_token=config.no_special_token,
        lower_case_first=config.as_sentence_transformers
        and recipe.lower_case
        and config.lower_case is None,
    )
    if tokenizer.vocab_size > plan.vocab_size:
        raise ModelLoadError(
            f"the tokenizer has {tokenizer.vocab_size} tokens, "
            f"the model only {plan.vocab_size}: their files do not belong together"
        )
    check_memory(plan.num_weights() * dtype.itemsize, device)
    encoder: Encoder
    if isinstance(plan, BertConfig):
        assert family is not None
        files = checkpoint.weights_as_they_are()
        weights = family.rename(checkpoint.read_weights())
        encoder = _packed_encoder(config, plan, weights, files, settings, device, dtype)
    else:
        encoder = _transformers_encoder(config, plan, checkpoint, device, dtype)
    check_num_labels(config.num_labels, encoder.head_sizes)
    replica = EncoderReplica(
        encoder,
        tokenizer,
        ModelInfo(
            name=checkpoint.name,
            architecture=settings["model_type"],
            num_layers=encoder.num_layers,
            hidden_size=encoder.hidden_size,
            max_length=_max_length(config, tokenizer, recipe),
            vocab_size=encoder.vocab_size,
            dtype=str(dtype).removeprefix("torch."),
            device=str(device),
        ),
        recipe=recipe,
        label_activation=label_activation(settings, encoder.head_sizes),
        mask_cls_sep=config.mask_cls_sep,
        has_segments=device.type == "cuda",
    )
    with compiler_needed() if config.compile else nullcontext():
        if config.max_batch_tokens is None:
            _calibrate(replica, plan, dtype, device, calibration_path(settings, dtype, device))
        else:
            replica.max_batch_tokens = config.max_batch_tokens
            replica.warm_up()
    if isinstance(plan, BertConfig):  # its layers are packed by now, others' may be the files
        checkpoint.forget_pages()
    return replica


def _calibrate(
    replica: EncoderReplica,
    plan: BertConfig | TransformersPlan,
    dtype: torch.dtype,
    device: torch.device,
    kept: Path,
) -> None:
    """Have a replica compute as many tokens at a time as is best: as is kept, or as it measures.

    Of workers that measure at once, all take what the first one to be done has kept.
    """
    calibration = read_calibration(kept)
    if calibration is not None:
        replica.max_batch_tokens = calibration.max_batch_tokens
        replica.warm_up()
        logger.info("calibrated before: %s; remove %s to measure again", calibration, kept)
        return
    started, before = time.perf_counter(), waited_s()
    calibration = replica.calibrate()
    wall = time.perf_counter() - started
    # a file that has none was warned of before
    if (others := read_calibration(kept, level=logging.DEBUG)) is not None:
        replica.max_batch_tokens = others.max_batch_tokens
        logger.info("calibrated: %s; but as another worker has it: %s", calibration, others)
        return
    waited = (waited_s() - before) / (wall * torch.get_num_threads())
    if isinstance(plan, BertConfig):
        best = matrix_gflops(dtype, device, _LIMIT_LOOK_S)
        tokens_per_s = calibration.tokens_per_s[calibration.max_batch_tokens]
        layers = max(plan.num_layers - 1, 1)  # as the default view has it
        share = plan.gflop(1, layers) * tokens_per_s / best
        calibration = replace(calibration, share=round(share, 3))
    if device.type == "cpu" and waited > _MOST_WAITED:
        logger.warning(
            "calibrated: %s; not kept, and the next start measures again: others had %.0f %% of "
            "these cores meanwhile",
            calibration,
            100 * waited,
        )
        return
    logger.info("calibrated: %s; kept in %s", calibration, kept)
    keep_calibration(kept, calibration)


def _packed_encoder(
    config: ReplicaConfig,
    plan: BertConfig,
    weights: Weights,
    files: MappedFiles,
    settings: Mapping[str, Any],
    device: torch.device,
    dtype: torch.dtype,
) -> Encoder:
    if config.compile and device.type == "cpu":
        logger.info(
            "compile changes nothing here: on a CPU this model's operations are hand-picked"
        )
    head_size = plan.hidden_size // plan.num_heads
    varlen = find_varlen_attend(device, dtype, head_size) if device.type == "cuda" else None
    kernels = CudaKernels(device, varlen) if device.type == "cuda" else _cpu_kernels(dtype)
    encoder = BertEncoder(
        plan,
        weights,
        device=device,
        dtype=state_dtype(dtype),
        kernels=kernels,
        heads=find_heads(weights, settings, plan.hidden_size, device),
        has_positions=not config.no_position_embeddings,
        compile=config.compile and device.type != "cpu",
        files=files,
    )
    if device.type == "cuda" and varlen is None:
        logger.info(
            "attention goes a group of equal length at a time: FlashAttention is for 16 bit, "
            "on a GPU of compute capability 8.0 or higher (heads of %d, %s)",
            head_size,
            dtype,
        )
    if varlen is None or config.no_cuda_graphs:
        return encoder
    return GraphedEncoder(encoder, device=device, dtype=dtype, varlen=varlen)


def _cpu_kernels(dtype: torch.dtype) -> Kernels:
    compiled = load_compiled()
    if dtype == torch.int8:
        return Int8Kernels(compiled)
    if compiled is not None and dtype == torch.float32:
        return CpuKernels(compiled, multiplies=is_compiled_faster(compiled))
    return CpuKernels(compiled)


def _transformers_plan(settings: Mapping[str, Any]) -> TransformersPlan:
    from .transformers_model import plan_model  # here, as transformers takes a second to import

    return plan_model(settings)


def _transformers_encoder(
    config: ReplicaConfig,
    plan: TransformersPlan,
    checkpoint: Checkpoint,
    device: torch.device,
    dtype: torch.dtype,
) -> TransformersEncoder:
    from .transformers_encoder import TransformersEncoder

    if dtype == torch.int8:
        raise ModelLoadError(
            "dtype='int8': this model is computed by transformers: expected float32, bfloat16, or "
            f"a model of {', '.join(FAMILIES)}"
        )
    if config.no_position_embeddings:
        raise ModelLoadError(
            "no_position_embeddings: this model is computed by transformers, which adds what the "
            f"model was trained with: expected a model of {', '.join(FAMILIES)}"
        )
    loaded = plan.load(checkpoint.weights_directory, dtype)
    return TransformersEncoder(
        loaded, device=device, max_length=plan.max_length, compile=config.compile
    )


def _max_length(config: ReplicaConfig, tokenizer: Tokenizer, recipe: SentenceRecipe) -> int:
    max_length = tokenizer.max_length
    if config.max_seq_len is not None:
        if config.max_seq_len > max_length:
            raise ModelLoadError(
                f"max_seq_len={config.max_seq_len}: the model takes at most {max_length} tokens"
            )
        max_length = config.max_seq_len
    elif config.as_sentence_transformers and recipe.max_length is not None:
        max_length = min(max_length, recipe.max_length)
    if max_length < tokenizer.least_length:
        is_asked = config.max_seq_len is not None
        raise ModelLoadError(
            (f"max_seq_len={max_length}" if is_asked else f"max. {max_length} tokens in a row")
            + f": expected at least {tokenizer.least_length}, as a pair of texts has "
            f"{tokenizer.least_length - 1} special tokens"
        )
    return max_length

"""A model looked at without serving it: what its files are, whether it loads, how fast it is."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from bert_serving.client.view import DEFAULT_VIEW

from .checkpoint import Checkpoint, find_checkpoint
from .compiled import levels_here, load_level
from .device import choose_device, choose_dtype
from .encoders import load_encoder_replica
from .families import find_family
from .google_checkpoint import is_google_directory
from .loading import ReplicaConfig
from .machine import matrix_gflops
from .replica import EncodeRequest

PROBE_TOKENS = 1024
PROBE_S = 1.0
LIMIT_LOOK_S = 0.3


@dataclass(frozen=True)
class ModelFacts:
    """What a model's files say.

    Attributes:
        name: as it was asked for.
        architecture: of its `config.json`.
        is_packed: computed by hand-written operations, not through transformers.
        num_weights: numbers that its weights are.
        weights_bytes: what they take in the type that they are computed in.
        dtype: that type.
        num_tensors: tensors in the files of weights; 0 where they were not read.
        awaits_conversion: a Google checkpoint, which the first start converts.

    """

    name: str
    architecture: str = ""
    is_packed: bool = True
    num_weights: int = 0
    weights_bytes: int = 0
    dtype: str = ""
    num_tensors: int = 0
    awaits_conversion: bool = False


@dataclass(frozen=True)
class SpeedFacts:
    """How fast a model computes.

    Attributes:
        load_s: seconds to load it.
        tokens_per_s: of short rows, its default view.
        gflops: what that is in matrix products; None where it is not known.
        best_gflops: the best matrix product of the device in that type.
        norm: of a vector that it gave; no number means that it computes nonsense.

    """

    load_s: float
    tokens_per_s: float
    gflops: float | None
    best_gflops: float
    norm: float


def kernel_levels() -> tuple[list[str], str | None, str]:
    """Return the levels that this processor can run, the best that loads, and why others do not."""
    levels, error = levels_here(), ""
    for level in levels:
        try:
            load_level(level)
        except OSError as failed:
            error = error or str(failed)
        else:
            return levels, level, error
    return levels, None, error


def inspect_model(config: ReplicaConfig) -> ModelFacts:
    """Return what a model's files say, all of which are read but none kept.

    Raises:
        ModelLoadError: they are missing, broken, or not what can be served.

    """
    checkpoint = find_checkpoint(config.model_dir, config.tuned_model_dir)
    directory = checkpoint.weights_directory
    if is_google_directory(directory, config.ckpt_name, config.config_name):
        return ModelFacts(checkpoint.name, awaits_conversion=True)
    settings = checkpoint.read_config()
    dtype = choose_dtype(config.dtype, choose_device(config.device))
    plan, is_packed = _plan(settings)
    return ModelFacts(
        name=checkpoint.name,
        architecture=str(settings.get("model_type")),
        is_packed=is_packed,
        num_weights=plan.num_weights(),
        weights_bytes=plan.num_weights() * dtype.itemsize,
        dtype=str(dtype).removeprefix("torch."),
        num_tensors=_count_finite(checkpoint),
    )


def measure_model(config: ReplicaConfig) -> SpeedFacts:
    """Load a model, encode with it, and compare that with the device's best matrix product.

    Raises:
        ModelLoadError: it cannot be loaded.

    """
    started = time.monotonic()
    replica = load_encoder_replica(replace(config, max_batch_tokens=PROBE_TOKENS))
    load_s = time.monotonic() - started
    checkpoint = find_checkpoint(config.model_dir, config.tuned_model_dir)
    plan, is_packed = _plan(checkpoint.read_config())
    device = choose_device(config.device)
    rows = replica.tokenize(["a probe of sixteen words or so"] * 100, is_tokenized=False, max_length=16)  # fmt: skip  # noqa: E501
    requests = [EncodeRequest(rows, {"probe": DEFAULT_VIEW})]
    vector = replica.encode(requests)[0]["probe"].values[0]
    tokens_per_s = len(rows.ids) / _best_seconds(lambda: replica.encode(requests))
    layers = max(plan.num_layers - 1, 1)  # as the default view has it
    return SpeedFacts(
        load_s=load_s,
        tokens_per_s=tokens_per_s,
        gflops=plan.gflop(1, layers) * tokens_per_s if is_packed else None,
        best_gflops=matrix_gflops(choose_dtype(config.dtype, device), device, LIMIT_LOOK_S),
        norm=float(np.linalg.norm(vector.astype(np.float64))),
    )


def gpus_of_torch() -> tuple[str | None, list[str]]:
    """Return the version of CUDA that torch was built for, and the GPUs that it finds."""
    names = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    return torch.version.cuda, names


def _plan(settings: dict[str, Any]) -> tuple[Any, bool]:
    family = find_family(settings)
    if family is not None:
        return family.parse_config(settings), True
    from .transformers_model import plan_model  # here, as transformers takes a second to import

    return plan_model(settings), False


def _count_finite(checkpoint: Checkpoint) -> int:
    """Return how many tensors the files have; ModelLoadError if one cannot be read."""
    weights = checkpoint.read_weights()
    for tensor in weights.values():  # each page is read: a disk that fails does so here
        tensor.sum()
    checkpoint.forget_pages()
    return len(weights)


def _best_seconds(work: Callable[[], object]) -> float:
    best, deadline = float("inf"), time.monotonic() + PROBE_S
    while time.monotonic() < deadline:
        started = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - started)
    return best

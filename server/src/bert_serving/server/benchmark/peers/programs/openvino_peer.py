"""OpenVINO on a graph that it converts itself: best of its hints and batch sizes."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from .batching import SIZES, example_inputs, open_tokenizer, pooled_model, sorted_batches
from .lines import Life, Options, Peer
from .tuning import fastest

# it reports its use to its maker from forked processes, which hung and outlived it
sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
import openvino  # noqa: E402  # it does without where that cannot be imported

HINTS = ("THROUGHPUT", "LATENCY")
"""Several batches side by side, or one on all cores."""

Setting = tuple[str, int]
SETTINGS: tuple[Setting, ...] = tuple((hint, size) for size in SIZES for hint in HINTS)


def open_peer(options: Options, _: Life) -> Peer:
    """Convert and compile the model; dtype `default` leaves it to OpenVINO."""
    pooled = pooled_model(options.model_dir, "sdpa", plain_mask=True)
    sizes = pooled.model.config
    with torch.inference_mode():
        graph = openvino.convert_model(pooled, example_input=example_inputs())
    compiled = {hint: _compile(graph, hint, options) for hint in HINTS}
    queues = {hint: openvino.AsyncInferQueue(model) for hint, model in compiled.items()}
    tokenize = open_tokenizer(options.model_dir)
    setting = SETTINGS[0]

    def encode_with(chosen: Setting, texts: list[str]) -> npt.NDArray[np.float32]:
        hint, size = chosen
        vectors = np.empty((len(texts), sizes.hidden_size), np.float32)

        def keep(request: Any, rows: Any) -> None:
            vectors[rows] = request.get_output_tensor().data

        queue = queues[hint]
        queue.set_callback(keep)
        for batch in sorted_batches(tokenize(texts), size):
            queue.start_async(list(batch.feeds.values()), batch.rows)
        queue.wait_all()
        return vectors

    def tune(texts: list[str], limit_s: float) -> str:
        nonlocal setting
        setting = fastest(SETTINGS, lambda tried: encode_with(tried, texts), limit_s)
        return f"{setting[0].lower()} hint, batches of {setting[1]}, sorted by length"

    precision = compiled[HINTS[0]].get_property("INFERENCE_PRECISION_HINT")
    return Peer(
        name="openvino",
        version=openvino.__version__.partition("-")[0],
        dtype={"f32": "float32", "bf16": "bfloat16", "f16": "float16"}[precision.to_string()],
        layers=sizes.num_hidden_layers,
        threads=options.threads,
        encode=lambda texts: encode_with(setting, texts),
        tune=tune,
    )


def _compile(graph: Any, hint: str, options: Options) -> Any:
    settings: dict[str, Any] = {
        "PERFORMANCE_HINT": hint,
        "INFERENCE_NUM_THREADS": options.threads,
    }
    if options.dtype != "default":
        settings["INFERENCE_PRECISION_HINT"] = {"float32": "f32", "bfloat16": "bf16"}[options.dtype]
    return openvino.Core().compile_model(graph, "CPU", settings)

"""onnxruntime on a graph exported by hand and fused by its own transformer optimiser.

In int8 its own dynamic quantization has made the products of it: a scale for each output of a
weight, and one for all activations of a batch.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.transformers import optimizer
from onnxruntime.transformers.fusion_options import FusionOptions

from .batching import SIZES, example_inputs, open_tokenizer, pooled_model, sorted_batches
from .lines import Life, Options, Peer
from .tuning import fastest

INPUTS = ("input_ids", "attention_mask", "token_type_ids")


def open_peer(options: Options, _: Life) -> Peer:
    """Export the model, have it optimised, and open it."""
    pooled = pooled_model(options.model_dir, "eager", plain_mask=False)
    sizes = pooled.model.config
    with tempfile.TemporaryDirectory(prefix="bert-serving-onnx-") as folder:
        exported, fused = Path(folder, "exported.onnx"), Path(folder, "fused.onnx")
        _export(pooled, exported)
        graph = optimizer.optimize_model(
            str(exported),
            model_type="bert",
            num_heads=sizes.num_attention_heads,
            hidden_size=sizes.hidden_size,
            optimization_options=FusionOptions("bert"),
        )
        graph.save_model_to_file(str(fused))
        served = fused if options.dtype == "float32" else _quantized(fused)
        session = onnxruntime.InferenceSession(
            str(served), _session_options(options.threads), providers=["CPUExecutionProvider"]
        )
    num_fused = graph.get_fused_operator_statistics()["Attention"]
    attention = f"attention fused in {num_fused} of {sizes.num_hidden_layers} layers"
    tokenize = open_tokenizer(options.model_dir)
    batch_size = SIZES[0]

    def encode_in(size: int, texts: list[str]) -> npt.NDArray[np.float32]:
        vectors = np.empty((len(texts), sizes.hidden_size), np.float32)
        for batch in sorted_batches(tokenize(texts), size):
            vectors[batch.rows] = session.run(None, batch.feeds)[0]
        return vectors

    def tune(texts: list[str], limit_s: float) -> str:
        nonlocal batch_size
        batch_size = fastest(SIZES, lambda size: encode_in(size, texts), limit_s)
        return f"batches of {batch_size}, sorted by length, {attention}"

    return Peer(
        name="onnxruntime",
        version=onnxruntime.__version__,
        dtype=options.dtype,
        layers=sizes.num_hidden_layers,
        threads=options.threads,
        encode=lambda texts: encode_in(batch_size, texts),
        tune=tune,
    )


def _export(pooled: torch.nn.Module, path: Path) -> None:
    axes = {name: {0: "rows", 1: "tokens"} for name in INPUTS}
    with torch.inference_mode():
        torch.onnx.export(
            pooled,
            example_inputs(),
            str(path),
            input_names=list(INPUTS),
            output_names=["embedding"],
            dynamic_axes={**axes, "embedding": {0: "rows"}},
            opset_version=17,
            dynamo=False,  # its graph is the one that the optimiser's patterns know
        )


def _quantized(path: Path) -> Path:
    quantized = path.with_name("quantized.onnx")
    quantize_dynamic(
        path,
        quantized,
        per_channel=True,
        weight_type=QuantType.QInt8,
        # what fused operators give, which shape inference does not know
        extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},
    )
    return quantized


def _session_options(threads: int) -> onnxruntime.SessionOptions:
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    # threads spin while a run lasts, and not when it is over: others are measured then
    settings.add_session_config_entry("session.force_spinning_stop", "1")
    return settings

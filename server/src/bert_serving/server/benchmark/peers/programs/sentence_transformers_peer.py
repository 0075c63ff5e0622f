"""sentence-transformers, which sorts by length itself, with its best batch size."""

from __future__ import annotations

from typing import Any

import sentence_transformers
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.models import Pooling, Transformer
from transformers import AutoConfig

from .batching import SIZES
from .lines import Life, Options, Peer
from .tuning import fastest


def open_peer(options: Options, _: Life) -> Peer:
    """Load the model."""
    torch.set_num_threads(options.threads)
    # not by the model's own recipe, which may cut rows and pool in its own way: equal work
    config = AutoConfig.from_pretrained(options.model_dir)
    transformer = Transformer(
        options.model_dir,
        model_kwargs={"dtype": getattr(torch, options.dtype)},
        max_seq_length=config.max_position_embeddings,
    )
    pooling = Pooling(config.hidden_size, "mean")
    model = SentenceTransformer(modules=[transformer, pooling], device="cpu")
    batch_size = SIZES[0]

    def encode(texts: list[str]) -> Any:
        return model.encode(texts, batch_size=batch_size)

    def tune(texts: list[str], limit_s: float) -> str:
        nonlocal batch_size
        batch_size = fastest(SIZES, lambda size: model.encode(texts, batch_size=size), limit_s)
        return f"batches of {batch_size}, sorted by length"

    return Peer(
        name="sentence-transformers",
        version=sentence_transformers.__version__,
        dtype=options.dtype,
        layers=config.num_hidden_layers,
        threads=torch.get_num_threads(),
        encode=encode,
        tune=tune,
    )

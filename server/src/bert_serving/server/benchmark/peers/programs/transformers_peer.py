"""transformers, in the loop that its documentation shows: padded batches of 32."""

from __future__ import annotations

import torch
import transformers
from transformers import AutoModel, AutoTokenizer

from .lines import Life, Options, Peer

BATCH_SIZE = 32


def open_peer(options: Options, _: Life) -> Peer:
    """Load the model."""
    torch.set_num_threads(options.threads)
    tokenizer = AutoTokenizer.from_pretrained(options.model_dir)
    model = AutoModel.from_pretrained(options.model_dir, dtype=getattr(torch, options.dtype))
    model.eval()

    @torch.inference_mode()
    def encode(texts: list[str]) -> list[list[float]]:
        vectors: list[list[float]] = []
        for start in range(0, len(texts), BATCH_SIZE):
            part = texts[start : start + BATCH_SIZE]
            batch = tokenizer(part, padding=True, truncation=True, return_tensors="pt")
            states = model(**batch).last_hidden_state
            mask = batch["attention_mask"].unsqueeze(-1).to(states.dtype)
            vectors.extend(((states * mask).sum(1) / mask.sum(1)).float().numpy())
        return vectors

    return Peer(
        name="transformers",
        version=transformers.__version__,
        dtype=options.dtype,
        layers=model.config.num_hidden_layers,
        threads=torch.get_num_threads(),
        encode=encode,
        settings=f"padded batches of {BATCH_SIZE}, in the order of the texts",
    )

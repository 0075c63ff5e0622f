"""Tiny random models of any architecture, saved as their makers would."""

from __future__ import annotations

import torch
from tiny_tokenizers import save_tokenizer
from transformers import AutoTokenizer

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
    # weights larger than those of a fresh model, so that activations matter
    "initializer_range": 0.3,
}


def save_tiny_model(directory, model_class, tokenizer="word_piece", **config):
    """Write a model with a tokenizer into a directory; return both."""
    save_tokenizer(tokenizer, directory)
    settings = {**SIZES, **config}
    if tokenizer != "word_piece":
        theirs = AutoTokenizer.from_pretrained(directory)
        settings = {"vocab_size": len(theirs), "pad_token_id": theirs.pad_token_id, **settings}
    torch.manual_seed(0)
    model = model_class(model_class.config_class(**settings)).eval()
    for name, weight in model.named_parameters():
        # a fresh model's biases are zeros, and its norms do nothing
        if name.endswith("bias") or "norm" in name.lower():
            weight.data += 0.3 * torch.randn(weight.shape)
    model.save_pretrained(directory)
    return directory, model

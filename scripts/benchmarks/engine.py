"""The model alone, as a worker loads it, against transformers and the best matrix product.

In this process, with no server around it: what changes here is the engine's doing.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bert_serving.client import BertClient
from bert_serving.client.view import DEFAULT_VIEW
from bert_serving.server.benchmark.machine import num_cores
from bert_serving.server.benchmark.measurement import Work, layers_needed
from bert_serving.server.benchmark.words import COMMON_WORDS, MOST_WORDS, sentences
from bert_serving.server.model.loading import ReplicaConfig, load_replica
from bert_serving.server.model.replica import EncodeRequest

from .models import embedded_model
from .rounds import medians, rate

LIMIT, LOOP, ENGINE, SERVER = "limit", "transformers", "engine", "server"

ROWS, FEW_ROWS = 512, 128
"""For the engine, and for transformers, which takes many times as long."""

BATCH_SIZE = 32
BUDGET = 512
"""Tokens at a time: always the same, so that what is compared is not another budget."""


def engine_ratios(model_dir: Path | None, dtype: str) -> dict[str, float]:
    """Return the engine's rate over that of transformers, and its share of the limit.

    Args:
        model_dir: the model's files; None is the embedded one.
        dtype: to compute in.

    """
    engine = Engine(model_dir, dtype)  # first: torch has to be loaded as a worker loads it
    texts = _texts(ROWS)
    tokens, pairs = engine.tokens(texts)
    few_tokens, _ = engine.tokens(texts[:FEW_ROWS])
    loop = _transformers_loop(model_dir or embedded_model(), dtype)
    for encode in (engine.encode, loop):  # what is done once is no part of a rate
        encode(texts[:BATCH_SIZE])
    rates = medians(
        {
            LIMIT: _limit(dtype),
            LOOP: lambda: rate(few_tokens, lambda: loop(texts[:FEW_ROWS])),
            ENGINE: lambda: rate(tokens, lambda: engine.encode(texts)),
        }
    )
    gflops = engine.work.gflop(tokens, pairs) / tokens * rates[ENGINE]
    return {
        "over transformers": rates[ENGINE] / rates[LOOP],
        "share of the best matrix product": gflops / rates[LIMIT],
    }


def server_ratio(port: int, dtype: str) -> float:
    """Return the rate through a server of the embedded model over that of the engine alone."""
    engine = Engine(None, dtype)
    texts = _texts(4 * ROWS)
    with BertClient(port=port) as bc:
        for encode in (engine.encode, bc.encode):
            encode(texts[:BATCH_SIZE])
        rates = medians(
            {
                ENGINE: lambda: rate(len(texts), lambda: engine.encode(texts)),
                SERVER: lambda: rate(len(texts), lambda: bc.encode(texts)),
            }
        )
    return rates[SERVER] / rates[ENGINE]


class Engine:
    """A replica that encodes texts by the default view."""

    def __init__(self, model_dir: Path | None, dtype: str) -> None:
        self._replica = load_replica(
            ReplicaConfig(
                model_dir=str(model_dir) if model_dir else None,
                dtype=dtype,
                num_threads=num_cores(),
                max_batch_tokens=BUDGET,
            )
        )

    @property
    def work(self) -> Work:
        """What a token costs."""
        info = self._replica.info
        return Work(layers_needed(DEFAULT_VIEW, info.num_layers), info.hidden_size, None)

    def encode(self, texts: list[str]) -> object:
        """Return the embeddings of texts."""
        rows = self._replica.tokenize(texts, is_tokenized=False, max_length=None)
        return self._replica.encode([EncodeRequest(rows, {"embedding": DEFAULT_VIEW})])

    def tokens(self, texts: list[str]) -> tuple[int, int]:
        """Return the number of tokens of texts, and the sum over texts of that squared."""
        rows = self._replica.tokenize(texts, is_tokenized=False, max_length=None)
        lengths = rows.lengths.astype(np.int64)
        return int(lengths.sum()), int((lengths**2).sum())


def _texts(count: int) -> list[str]:
    return sentences(COMMON_WORDS, count, length=None, longest=MOST_WORDS, seed=0)


def _transformers_loop(folder: Path, dtype: str) -> Callable[[list[str]], Any]:
    """Return what a user would write: the second-to-last layer's mean, in padded batches."""
    import torch
    from transformers import AutoModel, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()

    def encode(texts: list[str]) -> Any:
        means = []
        with torch.inference_mode():
            for first in range(0, len(texts), BATCH_SIZE):
                batch = texts[first : first + BATCH_SIZE]
                inputs = tokenizer(batch, padding=True, truncation=True, return_tensors="pt")
                states = model(**inputs, output_hidden_states=True).hidden_states[-2]
                mask = inputs["attention_mask"][..., None]
                means.append((states * mask).sum(1) / mask.sum(1))
        return torch.cat(means)

    return encode


def _limit(dtype: str) -> Callable[[], float]:
    import torch

    from bert_serving.server.model.machine import matrix_gflops

    best = 0.0

    def measure() -> float:
        nonlocal best
        best = max(best, matrix_gflops(getattr(torch, dtype), torch.device("cpu")))
        return best

    return measure

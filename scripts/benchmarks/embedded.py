"""The server on the embedded model, against sentence-transformers and the machine's limit."""

from __future__ import annotations

import numpy as np

from bert_serving.client import BertClient
from bert_serving.server.benchmark.machine import best_matrix_product
from bert_serving.server.benchmark.measurement import Work
from bert_serving.server.benchmark.words import COMMON_WORDS, MOST_WORDS, sentences

from .models import embedded_model
from .rounds import medians, rate, served, show

BATCH_SIZES = (16, 32, 64, 128)
HIDDEN_SIZE = 384
DEFAULT, LAST, HALF = "server, float32", "server, float32, last layer", "server, bfloat16"
LAYERS = {DEFAULT: 5, LAST: 6, HALF: 5}


def compare_model(count: int) -> None:
    """Print rates on so many short sentences, and the share of the best matrix product."""
    from sentence_transformers import SentenceTransformer

    texts = sentences(COMMON_WORDS, count, length=None, longest=MOST_WORDS, seed=0)
    few = texts[: count // 4]
    reference = SentenceTransformer(str(embedded_model()), device="cpu")

    def reference_rate(batch_size: int) -> float:
        return rate(len(few), lambda: reference.encode(few, batch_size=batch_size))

    rates = {size: reference_rate(size) for size in BATCH_SIZES}
    best = max(rates, key=lambda size: rates[size])
    name = f"sentence-transformers, batches of {best}"
    with (
        served(dtype="float32") as port,
        served(dtype="bfloat16") as half_port,
        BertClient(port=port) as bc,
        BertClient(port=half_port) as half,
    ):
        lengths = bc.encode_detailed(texts, {}).n_tokens.astype(np.int64)
        found = medians(
            {
                name: lambda: reference_rate(best),
                DEFAULT: lambda: rate(count, lambda: bc.encode(texts)),
                LAST: lambda: rate(count, lambda: bc.encode(texts, layers=[-1], normalize=True)),
                HALF: lambda: rate(count, lambda: half.encode(texts)),
            }
        )
    title = f"Embedded model, {count} sentences of {lengths.mean():.1f} tokens"
    show(title, found, name, "sentences/s")
    _show_shares(found, lengths)


def _show_shares(rates: dict[str, float], lengths: np.ndarray) -> None:
    for name, layers in LAYERS.items():
        dtype = "bfloat16" if name == HALF else "float32"
        limit = best_matrix_product(dtype, "cpu", 1, lambda: None).gflops
        if limit is None:
            continue
        gflop = Work(layers, HIDDEN_SIZE, limit).gflop(int(lengths.sum()), int((lengths**2).sum()))
        useful = gflop * rates[name] / len(lengths)
        print(
            f"  {name:<44} {useful:>10,.0f} useful GFLOP/s of the machine's {limit:,.0f}: "
            f"{useful / limit:.2f}"
        )

"""The embedded model in transformers' hands: what every client must get for its rows."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import transformers

from bert_serving.server.model.checkpoint import find_checkpoint


@cache
def reference() -> tuple[Any, Any]:
    """Return transformers' tokenizer and model."""
    folder = find_checkpoint(None).directory
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32)
    return tokenizer, model.eval()


@cache
def hidden_states(
    row: str | tuple[str, str], max_length: int = 512
) -> list[npt.NDArray[np.float32]]:
    """Return a row's hidden states, computed alone: of each layer, `[tokens, dim]`."""
    tokenizer, model = reference()
    sides = row if isinstance(row, tuple) else (row,)
    tokens = tokenizer(
        *sides, truncation="longest_first", max_length=max_length, return_tensors="pt"
    )
    with torch.inference_mode():
        states = model(**tokens, output_hidden_states=True).hidden_states
    return [state[0].numpy() for state in states]


POOLINGS: dict[str, Any] = {
    "mean": lambda states: states.mean(0),
    "max": lambda states: states.max(0),
    "mean_max": lambda states: np.concatenate([states.mean(0), states.max(0)]),
    "first": lambda states: states[0],
    "last": lambda states: states[-1],
}
REDUCTIONS: dict[str, Any] = {
    "concat": lambda states: np.concatenate(states, axis=1),
    "sum": sum,
    "mean": lambda states: sum(states) / len(states),
}


def expected(
    rows: Any, pooling: str = "mean", layers: tuple[int, ...] = (-2,), reduce: str = "concat"
) -> npt.NDArray[np.float32]:
    """Return the vectors of rows."""
    vectors = []
    for row in rows:
        states = [hidden_states(row)[layer] for layer in layers]
        vectors.append(POOLINGS[pooling](REDUCTIONS[reduce](states)))
    return np.stack(vectors)


def assert_equal(vectors: Any, wanted: Any) -> None:
    """Check that vectors are as close as float32 can promise."""
    assert vectors.shape == wanted.shape
    np.testing.assert_allclose(vectors, wanted, rtol=0, atol=1e-5)

"""What a careful user of a bare runtime writes around it: length-sorted, padded batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

SIZES = (16, 8, 32, 64, 4, 128)
"""Rows of a batch worth trying, the likeliest first."""

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Batch:
    """Some rows of equal, padded length.

    Attributes:
        rows: their places among all texts.
        input_ids, attention_mask: an entry a token.

    """

    rows: Ints
    input_ids: Ints
    attention_mask: Ints

    @property
    def feeds(self) -> dict[str, Ints]:
        """The inputs of a BERT, by name."""
        return {
            "input_ids": self.input_ids,
            "attention_mask": self.attention_mask,
            "token_type_ids": np.zeros_like(self.input_ids),
        }


def open_tokenizer(model_dir: str) -> Callable[[list[str]], list[list[int]]]:
    """Return what makes token ids of texts, in parallel, without padding."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(Path(model_dir, "tokenizer.json")))
    tokenizer.no_padding()
    tokenizer.enable_truncation(512)
    return lambda texts: [row.ids for row in tokenizer.encode_batch_fast(texts)]


def sorted_batches(token_ids: Sequence[list[int]], size: int) -> Iterator[Batch]:
    """Give batches of rows that are about as long as each other, the longest first."""
    order = sorted(range(len(token_ids)), key=lambda row: -len(token_ids[row]))
    for start in range(0, len(order), size):
        rows = order[start : start + size]
        ids = np.zeros((len(rows), len(token_ids[rows[0]])), np.int64)
        mask = np.zeros_like(ids)
        for place, row in enumerate(rows):
            ids[place, : len(token_ids[row])] = token_ids[row]
            mask[place, : len(token_ids[row])] = 1
        yield Batch(np.array(rows), ids, mask)


def pooled_model(model_dir: str, attention: str, *, plain_mask: bool) -> Any:
    """Return transformers' model with mean pooling on top, to be turned into another's graph.

    Args:
        model_dir: where it is.
        attention: how it is written down: `eager` in products and a softmax, `sdpa` as one.
        plain_mask: make the mask as BERT's own code did, not as transformers does: tracing
            that fails in some of its versions.

    """
    import torch
    from transformers import AutoModel

    class Pooled(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = AutoModel.from_pretrained(
                model_dir, dtype=torch.float32, attn_implementation=attention
            )

        def forward(self, input_ids: Any, attention_mask: Any, token_type_ids: Any) -> Any:
            mask = attention_mask
            if plain_mask:
                hidden = 1.0 - mask[:, None, None, :].to(torch.float32)
                mask = hidden * torch.finfo(torch.float32).min
            states = self.model(
                input_ids=input_ids, attention_mask=mask, token_type_ids=token_type_ids
            ).last_hidden_state
            weights = attention_mask.unsqueeze(-1).to(states.dtype)
            return (states * weights).sum(1) / weights.sum(1)

    return Pooled().eval()


def example_inputs() -> tuple[Any, Any, Any]:
    """Return inputs that a graph can be traced with."""
    import torch

    ids = torch.tensor([[101, 2000, 2001, 102], [101, 2002, 102, 0]])
    return ids, torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]]), torch.zeros_like(ids)

"""What sentence-transformers makes of token vectors, on the flat layout: the pooling `auto`.

Poolings side by side, then dense layers and normalization, in the order that a model's
`modules.json` has them; `sentence_recipe` reads that. sentence-transformers pools every
token, so what `-mask_cls_sep` says counts for nothing here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from .heads import Dense
from .packing import Group
from .pooling import POOLINGS, Pool, pool_groups
from .segments import Segments

Step = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class AutoPooling:
    """From token vectors to a vector a row.

    Attributes:
        modes: poolings by sentence-transformers' names, side by side.
        input_size: dimensions of the token vectors.
        size: dimensions of what comes out.
        steps: what is done with the pooled vectors, first to last.

    """

    modes: tuple[str, ...]
    input_size: int
    size: int
    steps: tuple[Step, ...] = ()

    def __call__(
        self, values: torch.Tensor, groups: Sequence[Group], segments: Segments | None = None
    ) -> torch.Tensor:
        """Return `[rows, size]` of `[tokens, input_size]`; rows are groups, or all segments."""
        if segments is not None:
            pooled = [segments.pool(values, mode) for mode in self.modes]
        else:
            pooled = [pool_groups(values, SENTENCE_POOLINGS[mode], groups) for mode in self.modes]
        return self.finish(torch.cat(pooled, dim=1))

    @property
    def is_of_firsts(self) -> bool:
        """Whether it takes each row's first token, and no other."""
        return self.modes == ("cls",)

    def finish(self, vectors: torch.Tensor) -> torch.Tensor:
        """Return `[rows, size]` of what has been pooled, `[rows, dimensions]`."""
        for step in self.steps:
            vectors = step(vectors)
        return vectors


@dataclass(frozen=True)
class Residual:
    """A dense layer to whose values its input is added, projected where the widths differ."""

    dense: Dense
    projection: torch.Tensor | None

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Return the layer's values, `[rows, out]`, of `[rows, in]`."""
        return self.dense(x) + (x if self.projection is None else x @ self.projection.T)


def _mean_sqrt_length(rows: torch.Tensor, _: torch.Tensor | None) -> torch.Tensor:
    return rows.sum(1) / math.sqrt(rows.shape[1])


def _weighted_mean(rows: torch.Tensor, _: torch.Tensor | None) -> torch.Tensor:
    """Return the mean with weights 1, 2, 3, ... by place (Muennighoff 2022, arXiv:2202.08904)."""
    weights = torch.arange(1, rows.shape[1] + 1, device=rows.device, dtype=rows.dtype)
    return (rows * weights[:, None]).sum(1) / weights.sum()


SENTENCE_POOLINGS: dict[str, Pool] = {
    "cls": POOLINGS["first"],
    "max": POOLINGS["max"],
    "mean": POOLINGS["mean"],
    "mean_sqrt_len_tokens": _mean_sqrt_length,
    "weightedmean": _weighted_mean,
    "lasttoken": POOLINGS["last"],
}
"""By sentence-transformers' names, in the order in which it joins several."""

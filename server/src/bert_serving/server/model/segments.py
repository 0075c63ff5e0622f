"""Every pooling over all rows of a micro-batch at once, for devices that wait for launches.

By groups of equal length a micro-batch of mixed sentences takes a hundred small operations:
on a GPU each is a launch, which costs more than what it computes. Here rows are segments of
the token axis, and a pooling is a few operations however many lengths there are. A segment
is added up by one thread, in the order of its tokens: atomic sums would come out a little
different each time. It computes in float32, as `pooling` does, and to the same values.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from .packing import Group


def row_splits(groups: Sequence[Group]) -> npt.NDArray[np.int64]:
    """Return where a micro-batch's rows begin, and the end of the last, `[rows + 1]`."""
    starts = [np.arange(group.token, group.end, group.length) for group in groups]
    return np.concatenate([*starts, [groups[-1].end]])


@dataclass(frozen=True)
class Segments:
    """A micro-batch's rows as segments of its token axis.

    Attributes:
        splits: where rows begin, and the end of the last, int64 `[rows + 1]`.
        positions: each token's number inside its row, int64 `[tokens]`.

    """

    splits: torch.Tensor
    positions: torch.Tensor

    @property
    def lengths(self) -> torch.Tensor:
        """Tokens of each row, `[rows, 1]`."""
        return self.splits.diff()[:, None]

    def pool(
        self, values: torch.Tensor, pooling: str, special: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return `[rows, dim]` of float32 `[tokens, dim]`.

        Args:
            values: of the tokens.
            pooling: a client's name for it, or sentence-transformers'.
            special: tokens that are left out, bool `[tokens]`; see `pooling.pool`.

        """
        return SEGMENT_POOLINGS[pooling](self, values, special)

    def first(self, values: torch.Tensor) -> torch.Tensor:
        """Return the values of each row's first token."""
        return values[self.splits[:-1]]

    def last(self, values: torch.Tensor) -> torch.Tensor:
        """Return the values of each row's last token."""
        return values[self.splits[1:] - 1]

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Return the sum over each row's tokens."""
        return self._reduce(values, "sum")

    def max(self, values: torch.Tensor) -> torch.Tensor:
        """Return the largest values of each row's tokens."""
        return self._reduce(values, "max")

    def _reduce(self, values: torch.Tensor, how: str) -> torch.Tensor:
        # unsafe: not checked, which would wait for the device
        return torch.segment_reduce(values, how, offsets=self.splits, axis=0, unsafe=True)


def _mean(rows: Segments, values: torch.Tensor, special: torch.Tensor | None) -> torch.Tensor:
    if special is None:
        return rows.sum(values) / rows.lengths
    kept = rows.sum((~special[:, None]).float()).clamp_(min=1)
    return rows.sum(values.masked_fill(special[:, None], 0)) / kept


def _max(rows: Segments, values: torch.Tensor, special: torch.Tensor | None) -> torch.Tensor:
    if special is None:
        return rows.max(values)
    largest = rows.max(values.masked_fill(special[:, None], -torch.inf))
    is_empty = rows.sum((~special[:, None]).float()) == 0
    return largest.masked_fill(is_empty, 0)


def _mean_max(rows: Segments, values: torch.Tensor, special: torch.Tensor | None) -> torch.Tensor:
    return torch.cat([_mean(rows, values, special), _max(rows, values, special)], dim=1)


def _mean_sqrt_length(rows: Segments, values: torch.Tensor, _: torch.Tensor | None) -> torch.Tensor:
    return rows.sum(values) / rows.lengths.sqrt()


def _weighted_mean(rows: Segments, values: torch.Tensor, _: torch.Tensor | None) -> torch.Tensor:
    weights = rows.positions[:, None] + 1
    return rows.sum(values * weights) / (rows.lengths * (rows.lengths + 1) / 2)


def _first(rows: Segments, values: torch.Tensor, _: torch.Tensor | None) -> torch.Tensor:
    return rows.first(values)


def _last(rows: Segments, values: torch.Tensor, _: torch.Tensor | None) -> torch.Tensor:
    return rows.last(values)


SegmentPool = Callable[[Segments, torch.Tensor, torch.Tensor | None], torch.Tensor]

SEGMENT_POOLINGS: dict[str, SegmentPool] = {
    "mean": _mean,
    "max": _max,
    "mean_max": _mean_max,
    "first": _first,
    "last": _last,
    # sentence-transformers' names
    "cls": _first,
    "mean_sqrt_len_tokens": _mean_sqrt_length,
    "weightedmean": _weighted_mean,
    "lasttoken": _last,
}
"""What `pooling.POOLINGS` and `auto_pooling.SENTENCE_POOLINGS` are by groups."""

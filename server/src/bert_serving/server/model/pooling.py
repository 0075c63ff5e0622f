"""Every view of hidden states on the flat layout: joined, pooled, cut, scaled.

All rows of a micro-batch are pooled at one time, a group of equal length at a time, so
that pooling needs no mask; or, on a GPU, all groups at once (`segments`). It computes in
float32 whatever the model computes in. It knows nothing of requests.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F  # noqa: N812  its usual name

from bert_serving.client.view import View

from .packing import Group
from .segments import Segments

Pool = Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor]


def pool(
    values: torch.Tensor,
    pooling: str,
    groups: Sequence[Group],
    special: torch.Tensor | None = None,
    segments: Segments | None = None,
) -> torch.Tensor:
    """Return values pooled: `[rows, dim]`, or `[tokens, dim]` where that is `none`.

    Args:
        values: what a view's layers are joined to, float32 `[tokens, dim]`.
        pooling: a client's name for it.
        groups: rows of equal length that cover the tokens.
        special: the tokens that are left out, bool `[tokens]`: mean and max are over the
            others (zero where there is none), and `none` has zeros for them; `first` and
            `last` take their token all the same.
        segments: the same rows, to be pooled all at once; without them groups are.

    """
    if pooling == "none":
        return values if special is None else values.masked_fill(special[:, None], 0)
    if segments is not None:
        return segments.pool(values, pooling, special)
    return pool_groups(values, POOLINGS[pooling], groups, special)


def shape(values: torch.Tensor, view: View) -> torch.Tensor:
    """Return pooled values as a view wants them: cut, scaled, in its own type."""
    if view.dims is not None:
        values = values[:, : view.dims]
    if view.normalize:
        values = F.normalize(values, dim=1)
    dtype = torch.float16 if view.dtype == "float16" else torch.float32
    return values.to(dtype).contiguous()


def join(states: Sequence[torch.Tensor], layer_reduce: str) -> torch.Tensor:
    """Return several layers' hidden states as one, in float32."""
    if len(states) == 1:
        return states[0].float()
    if layer_reduce == "concat":
        return torch.cat([state.float() for state in states], dim=1)
    total = sum(states[1:], start=states[0].float())
    return total / len(states) if layer_reduce == "mean" else total


def pool_groups(
    values: torch.Tensor,
    pool_rows: Pool,
    groups: Sequence[Group],
    special: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return `[rows, dim]` of `[tokens, dim]`, each group pooled at one time."""
    pooled = []
    for group in groups:
        rows = values[group.token : group.end].view(group.rows, group.length, -1)
        left_out = None
        if special is not None:
            left_out = special[group.token : group.end].view(group.rows, group.length, 1)
        pooled.append(pool_rows(rows, left_out))
    return torch.cat(pooled) if len(pooled) > 1 else pooled[0]


def _mean(rows: torch.Tensor, left_out: torch.Tensor | None) -> torch.Tensor:
    if left_out is None:
        return rows.mean(1)
    kept = (~left_out).sum(1).clamp_(min=1)
    return rows.masked_fill(left_out, 0).sum(1) / kept


def _max(rows: torch.Tensor, left_out: torch.Tensor | None) -> torch.Tensor:
    if left_out is None:
        return rows.amax(1)
    largest = rows.masked_fill(left_out, -torch.inf).amax(1)
    return largest.masked_fill(left_out.all(1), 0)


POOLINGS: dict[str, Pool] = {
    "mean": _mean,
    "max": _max,
    "mean_max": lambda rows, left_out: torch.cat(
        [_mean(rows, left_out), _max(rows, left_out)], dim=1
    ),
    "first": lambda rows, _: rows[:, 0],
    "last": lambda rows, _: rows[:, -1],
}

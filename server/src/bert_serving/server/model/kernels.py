"""What a transformer layer is made of, on any device: the interface, and torch's plain way.

`Linear` and `attend` are the two places where devices differ; `kernels_cpu` has the fast
ones for CPUs. This module works everywhere torch does, and is right rather than fast.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
import torch.nn.functional as F  # noqa: N812  its usual name

from .packing import Group


class Linear(Protocol):
    """A matrix product with bias, and an activation of its result where there is one."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Return `activation(x @ weight.T + bias)`: `[tokens, in]` to `[tokens, out]`."""


class LinearMaker(Protocol):
    """Makes the linears of a model, which keep the weights in whatever form they like."""

    def __call__(
        self, weight: torch.Tensor, bias: torch.Tensor, activation: str | None = None
    ) -> Linear:
        """Return the linear of a `[out, in]` weight and an `[out]` bias."""


class Attend(Protocol):
    """Attention of all rows of a micro-batch, each over its own tokens."""

    def __call__(self, qkv: torch.Tensor, groups: Sequence[Group], num_heads: int) -> torch.Tensor:
        """Return the mixed values, `[tokens, hidden]`, of `[tokens, 3 * hidden]`.

        A token has its query, key and value side by side; queries are scaled already.
        """


_ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
    "silu": F.silu,
}


class PlainLinear:
    """A linear with torch's own product."""

    def __init__(
        self, weight: torch.Tensor, bias: torch.Tensor, activation: str | None = None
    ) -> None:
        self._weight = weight
        self._bias = bias
        self._activation = _ACTIVATIONS[activation] if activation else None

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Return `activation(x @ weight.T + bias)`."""
        y = F.linear(x, self._weight, self._bias)
        return self._activation(y) if self._activation else y


def attend_fused(qkv: torch.Tensor, groups: Sequence[Group], num_heads: int) -> torch.Tensor:
    """Attend by `scaled_dot_product_attention`, a group at a time; see `Attend`."""
    out = new_mixed(qkv, groups)
    for group in groups:
        attend_group_fused(qkv, out, group, num_heads)
    return out


def new_mixed(qkv: torch.Tensor, groups: Sequence[Group]) -> torch.Tensor:
    """Return room for attention's result; beyond the groups is padding, which holds zeros."""
    out = qkv.new_empty(len(qkv), qkv.shape[1] // 3)
    out[groups[-1].end if groups else 0 :] = 0
    return out


def attend_group_fused(qkv: torch.Tensor, out: torch.Tensor, group: Group, num_heads: int) -> None:
    """Attend over one group of equal length: there is nothing to mask."""
    rows, length = group.rows, group.length
    part = qkv[group.token : group.end].view(rows, length, 3, num_heads, -1)
    query, key, value = part.permute(2, 0, 3, 1, 4)
    mixed = F.scaled_dot_product_attention(query, key, value, scale=1.0)
    out[group.token : group.end].view(rows, length, num_heads, -1).copy_(mixed.transpose(1, 2))

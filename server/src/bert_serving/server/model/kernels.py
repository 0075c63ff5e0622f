"""What a transformer layer is made of, on any device: the interface, and torch's plain way.

A device's `Kernels` make them; `kernels_cpu` and `kernels_cuda` have the fast ones.
`PlainKernels` work everywhere torch does, and are right rather than fast.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
import torch.nn.functional as F  # noqa: N812  its usual name

from .packing import Group


class Embed(Protocol):
    """Embeddings, added up, and the LayerNorm of them."""

    def __call__(self, numbers: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return float32 `[tokens, width]`, of the numbers of each table's lines, `[tokens]`."""


class Linear(Protocol):
    """A matrix product with bias, and an activation of its result where there is one."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Return `activation(x @ weight.T + bias)`: `[tokens, in]` to `[tokens, out]`."""


class AddNorm(Protocol):
    """A residual's sum and the LayerNorm of it."""

    def __call__(self, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        """Return `LayerNorm(x + residual)`, `[tokens, hidden]` as both are; `x` may be spoilt."""


class Attention(Protocol):
    """Attention of all rows of one micro-batch, each over its own tokens."""

    def __call__(self, qkv: torch.Tensor) -> torch.Tensor:
        """Return the mixed values, `[tokens, hidden]`, of `[tokens, 3 * hidden]`.

        A token has its query, key and value side by side; queries are scaled already. Beyond
        the rows is padding, for which anything may come.
        """


@dataclass(frozen=True)
class Layer:
    """The parts of one transformer layer; `qkv` gives query, key and value side by side."""

    qkv: Linear
    attention_out: Linear
    attention_norm: AddNorm
    feed_in: Linear
    feed_out: Linear
    feed_norm: AddNorm


class WholeLayers(Protocol):
    """Layers that follow each other in one go, instead of part by part."""

    def takes(self, attend: Attention) -> bool:
        """Return whether it can, with this attention."""

    def __call__(self, x: torch.Tensor, attend: Attention) -> torch.Tensor:
        """Return the hidden state behind them, `[tokens, hidden]`, as the parts would."""


class Kernels(Protocol):
    """Makes what layers are made of, for one device."""

    def embed(
        self, tables: Sequence[torch.Tensor], weight: torch.Tensor, bias: torch.Tensor, eps: float
    ) -> Embed:
        """Return the sum of embeddings, `[size, width]` each, and its LayerNorm in float32."""

    def linear(
        self, weight: torch.Tensor, bias: torch.Tensor, activation: str | None = None
    ) -> Linear:
        """Return the linear of a `[out, in]` weight and an `[out]` bias, in its own form."""

    def takes_any_size(self, weights: Iterable[Sequence[int]], dtype: torch.dtype) -> bool:
        """Return whether products of such weights cost nothing for each new number of tokens.

        Libraries prepare a kernel for each number they meet, and keep it.

        Args:
            weights: the shapes of all there are.
            dtype: what they are in.

        """

    def add_norm(self, weight: torch.Tensor, bias: torch.Tensor, eps: float) -> AddNorm:
        """Return the sum and LayerNorm with a `[hidden]` weight and bias."""

    def attention(self, groups: Sequence[Group], num_heads: int) -> Attention:
        """Return the attention of a micro-batch's rows: prepared once, used in each layer."""

    def whole_layers(self, layers: Sequence[Layer]) -> WholeLayers | None:
        """Return what computes layers that `self` has made, one or more; None if nothing does."""


_ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
    "silu": F.silu,
}


def activate(x: torch.Tensor, activation: str | None) -> torch.Tensor:
    """Return the activation of that name, of x; x itself for None."""
    return _ACTIVATIONS[activation](x) if activation else x


class PlainLinear:
    """A linear with torch's own product."""

    def __init__(
        self, weight: torch.Tensor, bias: torch.Tensor, activation: str | None = None
    ) -> None:
        self._weight = weight
        self._bias = bias
        self._activation = activation

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Return `activation(x @ weight.T + bias)`."""
        return activate(F.linear(x, self._weight, self._bias), self._activation)


class PlainKernels:
    """torch's own operations; see `Kernels`."""

    def embed(
        self, tables: Sequence[torch.Tensor], weight: torch.Tensor, bias: torch.Tensor, eps: float
    ) -> Embed:
        """Return torch's embeddings and LayerNorm."""
        norm = partial(layer_norm, weight=weight, bias=bias, eps=eps)

        def embed(numbers: Sequence[torch.Tensor]) -> torch.Tensor:
            x, *others = map(F.embedding, numbers, tables)
            x = x.float()
            for other in others:
                x += other
            return norm(x)

        return embed

    def linear(
        self, weight: torch.Tensor, bias: torch.Tensor, activation: str | None = None
    ) -> Linear:
        """Return torch's linear."""
        return PlainLinear(weight, bias, activation)

    def takes_any_size(
        self,
        weights: Iterable[Sequence[int]],  # noqa: ARG002
        dtype: torch.dtype,  # noqa: ARG002
    ) -> bool:
        """Return that they do not: it is not known what is below torch."""
        return False

    def add_norm(self, weight: torch.Tensor, bias: torch.Tensor, eps: float) -> AddNorm:
        """Return torch's sum and LayerNorm."""
        return lambda x, residual: layer_norm(x.add_(residual), weight, bias, eps)

    def attention(self, groups: Sequence[Group], num_heads: int) -> Attention:
        """Return torch's attention, a group at a time."""
        return partial(attend_fused, groups=groups, num_heads=num_heads)

    def whole_layers(self, layers: Sequence[Layer]) -> WholeLayers | None:  # noqa: ARG002
        """Return None: a layer is computed part by part."""
        return None


def layer_norm(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float
) -> torch.Tensor:
    """Return the LayerNorm of each token."""
    return F.layer_norm(x, weight.shape, weight, bias, eps)


def attend_fused(qkv: torch.Tensor, groups: Sequence[Group], num_heads: int) -> torch.Tensor:
    """Attend by `scaled_dot_product_attention`, a group at a time; see `Attention`."""
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

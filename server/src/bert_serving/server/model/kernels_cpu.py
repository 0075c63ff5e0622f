"""The fast linear, attention and LayerNorm for CPUs.

Matrix products are compiled (`native/products.c`), or go through oneDNN, whichever is faster;
both with weights packed once, in the order in which they are read: torch's default for float32,
MKL, reaches half of that on some CPUs. The activation is applied while a block of the result is
still in cache. (The residual's sum can be fused likewise, and was not faster.)

What lies between the products is compiled (`compiled`), with torch's operations in its place
where it is not: for the sizes it does not know, and on machines it was not built for.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial

import numpy as np
import torch

from .compiled import (
    LANES,
    LONGEST_ROW,
    CompiledKernels,
    EmbeddingWeights,
    LayerStack,
    LayerWeights,
    Spans,
    knows_heads,
)
from .kernels import (
    AddNorm,
    Attention,
    Embed,
    Layer,
    Linear,
    PlainKernels,
    PlainLinear,
    WholeLayers,
    activate,
    attend_group_fused,
    new_mixed,
)
from .packing import Group

# oneDNN's names: the post-op and its algorithm
_POST_OPS = {
    None: ("none", ""),
    "gelu": ("gelu", "none"),
    "gelu_tanh": ("gelu", "tanh"),
    "relu": ("relu", ""),
    "silu": ("swish", ""),
}

# the number of tokens that the packed layout is chosen for; others work as well
_PACKED_FOR_TOKENS = 1024


def has_packed_linear() -> bool:
    """Return whether this torch has the operators that `PackedLinear` is made of."""
    is_built_in: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return is_built_in and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")


class PackedLinear:
    """A linear on oneDNN's packed weights, with the activation fused."""

    def __init__(
        self, weight: torch.Tensor, bias: torch.Tensor, activation: str | None = None
    ) -> None:
        # private to torch, made for its own inductor: there is no public way to them
        operators = torch.ops.mkldnn
        self._linear = operators._linear_pointwise  # noqa: SLF001
        self._weight = operators._reorder_linear_weight(weight, _PACKED_FOR_TOKENS)  # noqa: SLF001
        self._bias = bias
        self._post_op, self._algorithm = _POST_OPS[activation]

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Return `activation(x @ weight.T + bias)`."""
        y: torch.Tensor = self._linear(
            x, self._weight, self._bias, self._post_op, [], self._algorithm
        )
        return y


class PanelLinear:
    """A linear by the compiled product, with the GELU fused; see `CompiledKernels.linear`."""

    def __init__(
        self,
        weight: torch.Tensor,
        bias: torch.Tensor,
        activation: str | None,
        compiled: CompiledKernels,
    ) -> None:
        self.panels = compiled.panels(weight)
        self.bias = bias
        self.has_gelu = activation == "gelu"
        self._activation = None if self.has_gelu else activation
        self._compiled = compiled

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Return `activation(x @ weight.T + bias)`."""
        y = self._compiled.linear(x, self.panels, self.bias, has_gelu=self.has_gelu)
        return activate(y, self._activation)


def library_linear(
    weight: torch.Tensor, bias: torch.Tensor, activation: str | None = None
) -> Linear:
    """Return oneDNN's linear, or torch's where this torch was built without it."""
    make = PackedLinear if has_packed_linear() else PlainLinear
    return make(weight, bias, activation)


class CpuKernels:
    """The fastest of what there is on a CPU; see `Kernels`.

    Args:
        compiled: what was compiled for it; None for torch's own.
        multiplies: have the compiled product where it knows a weight (`product_choice`).

    """

    def __init__(self, compiled: CompiledKernels | None, *, multiplies: bool = False) -> None:
        self._compiled = compiled
        self._multiplies = multiplies

    def embed(
        self, tables: Sequence[torch.Tensor], weight: torch.Tensor, bias: torch.Tensor, eps: float
    ) -> Embed:
        """Return the compiled sum of float32 embeddings, or torch's."""
        is_known = len(weight) % LANES == 0 and all(of.dtype == torch.float32 for of in tables)
        if self._compiled is None or not is_known:
            return PlainKernels().embed(tables, weight, bias, eps)
        return CompiledEmbed(tables, weight, bias, eps, self._compiled)

    def linear(
        self, weight: torch.Tensor, bias: torch.Tensor, activation: str | None = None
    ) -> Linear:
        """Return the compiled linear or the library's, whichever is faster."""
        if self._has_product(weight.shape, weight.dtype):
            assert self._compiled is not None
            return PanelLinear(weight, bias, activation, self._compiled)
        return library_linear(weight, bias, activation)

    def takes_any_size(self, weights: Iterable[Sequence[int]], dtype: torch.dtype) -> bool:
        """Return whether all these products are compiled ones, which keep nothing."""
        return all(self._has_product(shape, dtype) for shape in weights)

    def _has_product(self, shape: Sequence[int], dtype: torch.dtype) -> bool:
        return (
            self._multiplies
            and self._compiled is not None
            and dtype == torch.float32
            and self._compiled.knows_weight(*shape)
        )

    def add_norm(self, weight: torch.Tensor, bias: torch.Tensor, eps: float) -> AddNorm:
        """Return the sum and LayerNorm."""
        if self._compiled is None or len(weight) % LANES:
            return PlainKernels().add_norm(weight, bias, eps)
        return CompiledAddNorm(weight, bias, eps, self._compiled)

    def attention(self, groups: Sequence[Group], num_heads: int) -> Attention:
        """Return the attention of a micro-batch's rows."""
        if self._compiled is None:
            return partial(attend_cpu, groups=groups, num_heads=num_heads)
        return CompiledAttention(self._compiled, groups, num_heads)

    def whole_layers(self, layers: Sequence[Layer]) -> WholeLayers | None:
        """Return the compiled layers, if all their parts are compiled ones."""
        weights = [_layer_weights(layer) for layer in layers]
        known = [of for of in weights if of is not None]
        return CompiledLayers(LayerStack(known), layers) if len(known) == len(layers) else None


class CompiledEmbed:
    """The compiled sum of embeddings; see `Embed`."""

    def __init__(
        self,
        tables: Sequence[torch.Tensor],
        weight: torch.Tensor,
        bias: torch.Tensor,
        eps: float,
        compiled: CompiledKernels,
    ) -> None:
        self._parts = (*tables, weight, bias)  # whose numbers they are
        self._weights = EmbeddingWeights(tables, weight, bias, eps)
        self._compiled = compiled

    def __call__(self, numbers: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return `[tokens, width]`, of the numbers of each table's lines."""
        return self._compiled.embed(self._weights, numbers)


class CompiledAddNorm:
    """The compiled sum and LayerNorm; see `AddNorm`."""

    def __init__(
        self, weight: torch.Tensor, bias: torch.Tensor, eps: float, compiled: CompiledKernels
    ) -> None:
        self.weight = weight
        self.bias = bias
        self.eps = eps
        self._compiled = compiled

    def __call__(self, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        """Return `LayerNorm(x + residual)`, in x."""
        return self._compiled.add_norm(x, residual, self.weight, self.bias, self.eps)


class CompiledAttention:
    """Attention with all rows but the longest in one call; see `Attention`.

    Rows of more than `LONGEST_ROW` tokens are torch's, which is good at large products.
    """

    def __init__(self, compiled: CompiledKernels, groups: Sequence[Group], num_heads: int) -> None:
        self._compiled = compiled
        self._groups = groups
        self._num_heads = num_heads
        short = [group for group in groups if group.length <= LONGEST_ROW]
        lengths = np.array([group.length for group in short], np.int64)
        lengths = lengths.repeat([group.rows for group in short])
        # the shortest rows come first, one behind the other
        self._short = Spans(lengths.cumsum() - lengths, lengths)
        self._long = groups[len(short) :]

    def __call__(self, qkv: torch.Tensor) -> torch.Tensor:
        """Return the mixed values."""
        if not knows_heads(qkv.shape[1] // 3, self._num_heads):
            return attend_cpu(qkv, self._groups, self._num_heads)
        mixed = new_mixed(qkv, self._groups)
        if len(self._short):
            self._compiled.attend(qkv, mixed, self._short, self._num_heads)
        for group in self._long:
            _attend_group(qkv, mixed, group, self._num_heads)
        return mixed

    def knows(self, hidden: int) -> bool:
        """Return whether all of it is compiled, for hidden states of this size."""
        return not self._long and knows_heads(hidden, self._num_heads)

    def layers(self, stack: LayerStack, x: torch.Tensor) -> torch.Tensor:
        """Return the hidden state behind layers, for these rows; see `CompiledKernels`."""
        return self._compiled.layers(stack, x, self._short, self._num_heads)


class CompiledLayers:
    """Layers in one call; see `WholeLayers`.

    Args:
        stack: their weights.
        layers: which have them.

    """

    def __init__(self, stack: LayerStack, layers: Sequence[Layer]) -> None:
        self._stack = stack
        self._layers = layers  # whose tensors they are

    def takes(self, attend: Attention) -> bool:
        """Return whether all of the attention is compiled."""
        return isinstance(attend, CompiledAttention) and attend.knows(self._stack.hidden)

    def __call__(self, x: torch.Tensor, attend: Attention) -> torch.Tensor:
        """Return the hidden state behind them."""
        assert isinstance(attend, CompiledAttention)
        return attend.layers(self._stack, x)


def _layer_weights(layer: Layer) -> LayerWeights | None:
    """Return a layer's weights for the library; None if not all its parts are compiled ones."""
    match layer:
        case Layer(
            qkv=PanelLinear() as qkv,
            attention_out=PanelLinear() as attention_out,
            attention_norm=CompiledAddNorm() as attention_norm,
            feed_in=PanelLinear(has_gelu=True) as feed_in,
            feed_out=PanelLinear() as feed_out,
            feed_norm=CompiledAddNorm() as feed_norm,
        ):
            linears = [(of.panels, of.bias) for of in (qkv, attention_out, feed_in, feed_out)]
            norms = [(of.weight, of.bias) for of in (attention_norm, feed_norm)]
            return LayerWeights(linears, norms, feed_norm.eps)
    return None


_FEW_ROWS = 8
"""Groups of so few rows are attended in float32 also where the rest is bfloat16.

In bfloat16 oneDNN makes a kernel for each shape, a millisecond and 0.6 MB each, and it is
the small groups that come in all shapes; MKL's float32 has one for all. On sentences of
mixed lengths this is 15 to 40 % faster altogether, and takes 0.4 GB instead of 0.7 (measured).
"""


def attend_cpu(qkv: torch.Tensor, groups: Sequence[Group], num_heads: int) -> torch.Tensor:
    """Attend a group at a time, by whichever way is faster for its length; see `Attention`."""
    out = new_mixed(qkv, groups)
    for group in groups:
        _attend_group(qkv, out, group, num_heads)
    return out


def _attend_group(qkv: torch.Tensor, out: torch.Tensor, group: Group, num_heads: int) -> None:
    if _is_fused_faster(group, qkv.dtype):
        attend_group_fused(qkv, out, group, num_heads)
    else:
        _attend_group_by_products(qkv, out, group, num_heads)


def _is_fused_faster(group: Group, dtype: torch.dtype) -> bool:
    return dtype == torch.float32 and group.length > 128


def _attend_group_by_products(
    qkv: torch.Tensor, out: torch.Tensor, group: Group, num_heads: int
) -> None:
    """Attend by two batched products and a softmax between them."""
    rows, length = group.rows, group.length
    part = qkv[group.token : group.end].view(rows, length, 3, num_heads, -1)
    if rows <= _FEW_ROWS:
        part = part.float()
    query, key, value = part.permute(2, 0, 3, 1, 4).reshape(3, rows * num_heads, length, -1)
    mixed = torch.bmm(torch.bmm(query, key.transpose(1, 2)).softmax(-1), value)
    out[group.token : group.end].view(rows, length, num_heads, -1).copy_(
        mixed.view(rows, num_heads, length, -1).transpose(1, 2)
    )

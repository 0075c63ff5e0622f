"""Matrix products of 8-bit integers for CPUs, around which everything else is bfloat16.

Weights are quantized once, with a scale for each output; activations as they come, from the least
to the largest of each token (per token as in Yao et al. 2022, ZeroQuant, arXiv:2206.01861). One
range for a whole batch, as torch's own dynamic quantization has it, would make what a row becomes
depend on the rows that happen to be computed beside it.

A token's codes are its numbers up to a scale and an offset: what LayerNorm gives has a few large
numbers, mostly of one sign, and codes around zero would leave half of their range unused (on the
embedded model the least cosine was 0.985 with them, and is 0.993). So that the offset falls out
of the product, an output's weights are codes that add up to zero, and their mean, which is
multiplied with what the token's numbers add up to.
"""

from __future__ import annotations

import torch

from .compiled import LANES, Codes, CompiledKernels
from .kernels import Linear, activate
from .kernels_cpu import CpuKernels

_LARGEST = 127
_PACKED_FOR_TOKENS = 1024  # see `PackedLinear`


class Int8Product:
    """oneDNN's product of activations' codes with those of a weight, packed once.

    Attributes:
        means: the mean of each output's weights, float32 `[out]`.

    """

    def __init__(self, weight: torch.Tensor) -> None:
        weight = weight.float()
        self.means = weight.mean(1)
        codes, self._scales = _centred_codes(weight - self.means[:, None])
        # made for torch's own inductor: there is no public way to them
        operators = torch.ops.onednn
        self._weight = operators.qlinear_prepack(codes, [_PACKED_FOR_TOKENS, weight.shape[1]])
        self._zeros = torch.zeros(len(weight), dtype=torch.int64)
        self._linear = operators.qlinear_pointwise

    def __call__(self, codes: torch.Tensor) -> torch.Tensor:
        """Return `codes @ (weight - means).T` of uint8 `[tokens, in]`, in bfloat16.

        Integers are added up exactly, and what is added to all codes of a token adds nothing.
        """
        y: torch.Tensor = self._linear(
            *(codes, 1.0, 0, self._weight, self._scales, self._zeros, None),
            *(1.0, 0, torch.bfloat16, "none", [], ""),
        )
        return y


class QuantizedLinear:
    """A linear by a product of 8-bit integers, of bfloat16 numbers and with such a result."""

    def __init__(
        self,
        weight: torch.Tensor,
        bias: torch.Tensor,
        activation: str | None,
        compiled: CompiledKernels | None,
    ) -> None:
        self._product = Int8Product(weight)
        self._bias = bias.float()
        self._activation = activation
        self._compiled = compiled

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Return `activation(x @ weight.T + bias)`, about."""
        codes = self._compiled.quantize(x) if self._compiled else quantize(x)
        product = self._product(codes.codes)
        means, bias = self._product.means, self._bias
        if self._compiled is None:
            return finish(product, codes, means, bias, self._activation)
        has_gelu = self._activation == "gelu"
        y = self._compiled.finish(product, codes, means, bias, has_gelu=has_gelu)
        return y if has_gelu else activate(y, self._activation)


class Int8Kernels(CpuKernels):
    """A CPU's kernels with linears of 8 bits; the rest is bfloat16. See `Kernels`."""

    def linear(
        self, weight: torch.Tensor, bias: torch.Tensor, activation: str | None = None
    ) -> Linear:
        """Return a linear of 8 bits, or of bfloat16 for sizes that do not fill vectors."""
        if any(size % LANES for size in weight.shape):
            return super().linear(weight, bias, activation)
        return QuantizedLinear(weight, bias, activation, self._compiled)


def quantize(x: torch.Tensor) -> Codes:
    """Return the codes of `[tokens, width]` numbers: 0 is a token's least, 255 its largest."""
    x = x.float()
    least, most = x.aminmax(dim=1, keepdim=True)
    scales = (most - least) / 255
    codes = (x - least) / torch.where(scales > 0, scales, 1.0)
    return Codes(codes.round_().to(torch.uint8), scales.squeeze(1), x.sum(1))


def finish(
    product: torch.Tensor,
    codes: Codes,
    means: torch.Tensor,
    bias: torch.Tensor,
    activation: str | None,
) -> torch.Tensor:
    """Return the activations of numbers that were multiplied as codes, in the product's type.

    Args:
        product: of the codes with a centred weight, `[tokens, out]`.
        codes: what was multiplied.
        means: of each output's weights, `[out]`.
        bias: `[out]`.
        activation: its name; None for none.

    """
    y = product.float() * codes.scales[:, None] + torch.outer(codes.totals, means) + bias
    return activate(y, activation).to(product.dtype)


def _centred_codes(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return int8 codes that add up to zero in each row, and each row's scale.

    Args:
        weight: float32 `[out, in]`; its rows have a mean of zero.

    """
    largest = weight.abs().amax(1)
    scales = torch.where(largest > 0, largest / _LARGEST, 1.0)
    exact = weight / scales[:, None]
    codes = exact.round()
    # what rounding has added to a row is taken from the codes that it raised most
    excess = codes.sum(1)
    raised = ((codes - exact) * excess.sign()[:, None]).argsort(1, descending=True)
    is_changed = torch.arange(weight.shape[1]) < excess.abs()[:, None]
    changes = torch.zeros_like(codes).scatter_(1, raised, is_changed.float())
    codes -= changes * excess.sign()[:, None]
    return codes.to(torch.int8), scales

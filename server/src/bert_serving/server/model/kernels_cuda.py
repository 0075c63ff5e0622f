"""The fast attention for GPUs: all rows of a micro-batch in one launch a layer.

FlashAttention (Dao 2023, arXiv:2307.08691) over cumulative lengths, as torch has it in
`varlen_attn`: rows of any lengths lie one behind the other, without padding or mask. Where it
cannot be had, in float32 or on a GPU before Ampere, attention goes a group of equal length at
a time, a launch each. Written from torch 2.13's documentation and source: it has not run on a
GPU yet. On a CPU it is tested with a plain `varlen_attn` in place of torch's.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch

from .device import to_device
from .kernels import Attention, PlainKernels
from .packing import Group
from .segments import row_splits

# what FlashAttention asks for
_LEAST_CAPABILITY = (8, 0)
_MOST_HEAD_SIZE, _HEAD_SIZE_STEP = 256, 8
_DTYPES = (torch.bfloat16, torch.float16)


class VarlenAttend(Protocol):
    """Attention over cumulative lengths: what is used of torch's `varlen_attn`."""

    def __call__(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        cu_seq_q: torch.Tensor,
        cu_seq_k: torch.Tensor,
        max_q: int,
        max_k: int,
        *,
        scale: float,
        num_splits: int,
    ) -> torch.Tensor:
        """Return the mixed values, `[tokens, heads, head size]` as query, key and value are."""


def find_varlen_attend(
    device: torch.device, dtype: torch.dtype, head_size: int
) -> VarlenAttend | None:
    """Return torch's `varlen_attn` if it can be used on a GPU for such heads, else None."""
    if (
        dtype not in _DTYPES
        or head_size > _MOST_HEAD_SIZE
        or head_size % _HEAD_SIZE_STEP
        or torch.cuda.get_device_capability(device) < _LEAST_CAPABILITY
        or not torch.backends.cuda.is_flash_attention_available()
    ):
        return None
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:  # torch before 2.10
        return None
    if not {"scale", "num_splits"} <= inspect.signature(varlen_attn).parameters.keys():
        return None
    return varlen_attn  # type: ignore[return-value]  # it may return more, if asked to


class VarlenAttention:
    """Attention of one micro-batch's rows in one launch; see `Attention`.

    What it gives beyond the rows is whatever was in memory.

    Args:
        splits: where rows begin, and the end of the last, int32 `[rows + 1]`; rows may be empty.
        longest: at least the tokens of the longest row.
        num_heads: of the model.
        attend: what computes it.

    """

    def __init__(
        self, splits: torch.Tensor, longest: int, num_heads: int, attend: VarlenAttend
    ) -> None:
        self._splits = splits
        self._longest = longest
        self._num_heads = num_heads
        self._attend = attend

    def __call__(self, qkv: torch.Tensor) -> torch.Tensor:
        """Return the mixed values, `[tokens, hidden]`."""
        query, key, value = qkv.view(len(qkv), 3, self._num_heads, -1).unbind(1)
        mixed = self._attend(
            query,
            key,
            value,
            self._splits,
            self._splits,
            self._longest,
            self._longest,
            scale=1.0,  # it is in the query's weights
            num_splits=1,  # more would add up in an order that the longest row decides
        )
        return mixed.reshape(len(qkv), -1)


class CudaKernels(PlainKernels):
    """torch's products, and attention without padding; see `Kernels`.

    cuBLAS adds the bias itself. Its own GELU is the tanh approximation, which is another
    function than most models have: so activations are torch's.

    Args:
        device: where to compute.
        varlen: what `find_varlen_attend` found.

    """

    def __init__(self, device: torch.device, varlen: VarlenAttend | None) -> None:
        self._device = device
        self.varlen = varlen

    def attention(self, groups: Sequence[Group], num_heads: int) -> Attention:
        """Return the attention of a micro-batch's rows."""
        if self.varlen is None:
            return super().attention(groups, num_heads)
        splits = to_device(row_splits(groups).astype(np.int32), self._device)
        return VarlenAttention(splits, groups[-1].length, num_heads, self.varlen)

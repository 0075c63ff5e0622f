"""The fast kernels of a device give what torch's plain ones do."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bert_serving.server.model.compiled import (
    LONGEST_ROW,
    WIDEST_HEAD,
    CompiledKernels,
    load_compiled,
)
from bert_serving.server.model.kernels import attend_fused, layer_norm
from bert_serving.server.model.kernels_cpu import CpuKernels
from bert_serving.server.model.packing import pack, padded_size

HEADS, WIDTH = 4, 16


def random_batch(lengths):
    """Return a micro-batch's groups, and a query, key and value for each of its tokens."""
    (batch,) = pack(np.array(lengths), np.arange(len(lengths)), sum(lengths))
    torch.manual_seed(0)
    qkv = torch.randn(padded_size(sum(lengths)), 3 * HEADS * WIDTH)
    qkv[:, : HEADS * WIDTH] *= WIDTH**-0.5
    return batch.groups, qkv


@pytest.fixture(params=["compiled", "torch"])
def kernels(request):
    """The kernels of a CPU, with and without what is compiled."""
    compiled = load_compiled() if request.param == "compiled" else None
    if request.param == "compiled" and compiled is None:
        pytest.skip("no kernels were compiled for this machine")
    return CpuKernels(compiled)


TYPES = pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.05)]
)


@pytest.mark.parametrize(
    "lengths",
    [
        [1],
        [5] * 7,
        [3, 3, 9, 200],
        list(range(1, 70)),
        [*range(1, 33), *range(1, 33), 32, 33, 130],
        np.random.default_rng(0).integers(1, 60, 150).tolist(),
        [7, LONGEST_ROW, LONGEST_ROW + 1],
    ],
    ids=lambda lengths: f"{len(lengths)} rows to {max(lengths)}",
)
@TYPES
def test_attention_is_that_of_torch(kernels, lengths, dtype, tolerance):
    groups, qkv = random_batch(lengths)
    expected = attend_fused(qkv, groups, HEADS)
    mixed = kernels.attention(groups, HEADS)(qkv.to(dtype))
    assert mixed.dtype == dtype
    torch.testing.assert_close(mixed.float(), expected, rtol=tolerance, atol=tolerance)
    assert not mixed[sum(lengths) :].any()


def test_attention_keeps_to_float_where_scores_are_far_apart(kernels):
    groups, qkv = random_batch([1, 4, 17, 40])
    qkv[:, : HEADS * WIDTH] *= 300  # weights of nearly one and nearly zero
    expected = attend_fused(qkv, groups, HEADS)
    mixed = kernels.attention(groups, HEADS)(qkv)
    torch.testing.assert_close(mixed, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("width", [20, WIDEST_HEAD, WIDEST_HEAD + 16, 2048])
def test_heads_of_any_width_are_attended(kernels, width):
    lengths = np.array([3, LONGEST_ROW])
    (batch,) = pack(lengths, np.arange(2), int(lengths.sum()))
    qkv = torch.randn(int(lengths.sum()), 3 * 2 * width)
    qkv[:, : 2 * width] *= width**-0.5
    expected = attend_fused(qkv, batch.groups, 2)
    mixed = kernels.attention(batch.groups, 2)(qkv)
    torch.testing.assert_close(mixed, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("hidden", [16, 20, 384, 768])
@TYPES
def test_the_sum_and_its_norm_are_those_of_torch(kernels, hidden, dtype, tolerance):
    torch.manual_seed(0)
    x, residual = torch.randn(2, 9, hidden).mul_(3).to(dtype)
    weight, bias = torch.rand(2, hidden).to(dtype)
    both = x.float() + residual.float()
    expected = layer_norm(both, weight.float(), bias.float(), 1e-12)
    normed = kernels.add_norm(weight, bias, 1e-12)(x, residual)
    assert normed.dtype == dtype
    torch.testing.assert_close(normed.float(), expected, rtol=tolerance, atol=tolerance)


def test_compiled_kernels_refuse_what_they_would_misread():
    compiled = load_compiled()
    if not isinstance(compiled, CompiledKernels):
        pytest.skip("no kernels were compiled for this machine")
    qkv, mixed = torch.zeros(4, 96), torch.zeros(4, 32)
    with pytest.raises(AssertionError):  # a row beyond the tokens
        compiled.attend(qkv, mixed, np.array([0]), np.array([5]), 2)
    wide = torch.zeros(4, 3 * 1024), torch.zeros(4, 1024)
    with pytest.raises(AssertionError):  # heads that a thread's stack has no room for
        compiled.attend(*wide, np.array([0]), np.array([4]), 2)
    with pytest.raises(AssertionError):  # columns of something larger
        compiled.attend(qkv, torch.zeros(4, 64)[:, :32], np.array([0]), np.array([4]), 2)
    with pytest.raises(AssertionError):  # two types
        compiled.add_norm(mixed, mixed.bfloat16(), torch.ones(32), torch.ones(32), 1e-12)

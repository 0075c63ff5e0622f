"""The fast kernels of a device give what torch's plain ones do."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bert_serving.server.model.kernels import attend_fused
from bert_serving.server.model.kernels_cpu import attend_cpu
from bert_serving.server.model.packing import pack, padded_size

HEADS, WIDTH = 4, 16


def random_batch(lengths):
    """Return a micro-batch's groups, and a query, key and value for each of its tokens."""
    (batch,) = pack(np.array(lengths), np.arange(len(lengths)), sum(lengths))
    torch.manual_seed(0)
    qkv = torch.randn(padded_size(sum(lengths)), 3 * HEADS * WIDTH)
    qkv[:, : HEADS * WIDTH] *= WIDTH**-0.5
    return batch.groups, qkv


@pytest.mark.parametrize(
    "lengths",
    [
        [1],
        [5] * 7,
        [3, 3, 9, 200],
        list(range(1, 70)),
        [*range(1, 33), *range(1, 33), 32, 33, 130],
        np.random.default_rng(0).integers(1, 60, 150).tolist(),
    ],
    ids=lambda lengths: f"{len(lengths)} rows to {max(lengths)}",
)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.05)])
def test_attention_on_a_cpu_is_that_of_torch(lengths, dtype, tolerance):
    groups, qkv = random_batch(lengths)
    expected = attend_fused(qkv, groups, HEADS)
    mixed = attend_cpu(qkv.to(dtype), groups, HEADS)
    assert mixed.dtype == dtype
    torch.testing.assert_close(mixed.float(), expected, rtol=tolerance, atol=tolerance)
    assert not mixed[sum(lengths) :].any()

"""Pooling all rows at once gives what pooling them by groups of equal length gives."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bert_serving.client.view import POOLINGS as CLIENT_POOLINGS
from bert_serving.server.model.auto_pooling import SENTENCE_POOLINGS
from bert_serving.server.model.packing import pack
from bert_serving.server.model.pooling import POOLINGS, pool_groups
from bert_serving.server.model.segments import SEGMENT_POOLINGS, Segments, row_splits

BY_GROUPS = {**POOLINGS, **SENTENCE_POOLINGS}
DIM = 24


def packed(lengths):
    """Return a micro-batch of rows of such lengths, its segments, and values of its tokens."""
    (batch,) = pack(np.array(lengths), np.arange(len(lengths)), sum(lengths))
    segments = Segments(
        torch.from_numpy(row_splits(batch.groups)), torch.from_numpy(batch.positions)
    )
    torch.manual_seed(0)
    return batch, segments, 3 * torch.randn(sum(lengths), DIM)


def test_both_ways_know_the_same_poolings():
    assert SEGMENT_POOLINGS.keys() == BY_GROUPS.keys()


def test_splits_are_where_rows_begin_and_end():
    batch, segments, _ = packed([3, 1, 3, 7])
    assert segments.splits.tolist() == [0, 1, 4, 7, 14]
    assert segments.lengths.squeeze(1).tolist() == sorted([3, 1, 3, 7])
    assert row_splits(batch.groups).dtype == np.int64


@pytest.mark.parametrize("pooling", BY_GROUPS)
@pytest.mark.parametrize(
    "lengths",
    [[1], [512], [4] * 9, [2, 7, 7, 1, 512], np.random.default_rng(0).integers(1, 90, 300)],
    ids=lambda lengths: f"{len(lengths)} rows",
)
def test_segments_give_what_groups_give(pooling, lengths):
    batch, segments, values = packed(list(lengths))
    ours = segments.pool(values, pooling)
    expected = pool_groups(values, BY_GROUPS[pooling], batch.groups)
    assert ours.dtype == torch.float32
    # as a sum it is larger than the values are
    tolerance = 1e-5 if pooling == "mean_sqrt_len_tokens" else 1e-6
    torch.testing.assert_close(ours, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("pooling", sorted(POOLINGS.keys() & set(CLIENT_POOLINGS)))
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_segments_leave_out_what_groups_leave_out(pooling, share):
    batch, segments, values = packed([1, 1, 2, 5, 5, 9, 40])
    special = torch.from_numpy(np.random.default_rng(0).random(len(values)) < share)
    special[2] = True  # of a row of its own
    ours = segments.pool(values, pooling, special)
    expected = pool_groups(values, POOLINGS[pooling], batch.groups, special)
    torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-6)
    assert ours.isfinite().all()
